//! Generates the messages and services without an installed protoc.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "ringfold/v1/event_store.proto",
        "ringfold/v1/cluster.proto",
        "ringfold/internal/v1/entry.proto",
        "ringfold/internal/v1/record.proto",
        "ringfold/internal/v1/meta.proto",
        "ringfold/internal/v1/node.proto",
    ];
    for f in files {
        println!("cargo::rerun-if-changed={f}");
    }
    let set = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        // The same bytes for the same content: states and records are compared across replicas.
        .btree_map(".")
        .compile_fds(set)?;
    Ok(())
}
