//! Settings and data directories that a node must refuse: all faults at once, by name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ringfold_tests::cluster::{LocalCluster, Settings, Turn, binary, scratch, spawn, wait_exit};

const END_MAX: Duration = Duration::from_secs(20);
/// Exit codes of ringfold-node.
const SETTINGS: i32 = 2;
const DATA_DIRECTORY: i32 = 3;

async fn run(mut command: Command) -> Output {
    let mut child = spawn({
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })
    .unwrap();
    if wait_exit(&mut child, END_MAX).await.is_none() {
        let _ = child.kill();
        let out = child.wait_with_output().unwrap();
        panic!(
            "it was to refuse, and ran on:\n{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    child.wait_with_output().unwrap()
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[tokio::test]
async fn five_mistakes_in_a_configuration_are_all_told_at_once() {
    let dir = scratch().join("five-mistakes");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("node.yaml");
    // From a file, from the environment, from a flag; and data_dir is missing.
    fs::write(&file, "client_listen: nowhere\nelection_ticks: -3\nlog_format: poem\n").unwrap();
    let mut command = Command::new(binary("ringfold-node", "RINGFOLD_NODE_BIN"));
    command
        .arg("--config")
        .arg(&file)
        .env("RINGFOLD_NODE_TICK_MS", "soon")
        .args(["--peer-listen", "127.0.0.1:99999"]);
    let out = run(command).await;
    let told = text(&out);
    assert_eq!(out.status.code(), Some(SETTINGS), "{told}");
    for name in
        ["client_listen", "election_ticks", "log_format", "tick_ms", "peer_listen", "data_dir"]
    {
        assert!(told.contains(name), "{name} is not named in:\n{told}");
    }
    assert!(!told.contains("panicked"), "{told}");
}

#[tokio::test]
async fn unknown_settings_are_named() {
    let dir = scratch().join("unknown");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("node.yaml");
    fs::write(&file, "data_dir: /nowhere\ndata_dri: /nowhere\n").unwrap();
    let mut command = Command::new(binary("ringfold-node", "RINGFOLD_NODE_BIN"));
    command.arg("--config").arg(&file).arg("--client-listne=x");
    let out = run(command).await;
    let told = text(&out);
    assert_eq!(out.status.code(), Some(SETTINGS), "{told}");
    for name in ["data_dri", "client-listne"] {
        assert!(told.contains(name), "{name} is not named in:\n{told}");
    }
}

fn one_node() -> Settings {
    Settings { nodes: 1, partitions: 2, ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_in_use_is_refused() {
    let cluster = LocalCluster::start(one_node()).await;
    let beside = LocalCluster::create(
        Turn::shared(&cluster),
        Settings { data_dirs: vec![(0, cluster.nodes[0].data_dir.clone())], ..one_node() },
    );
    let out = run(beside.command(0)).await;
    assert_eq!(out.status.code(), Some(DATA_DIRECTORY), "{}", text(&out));
    cluster.wait_ready().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_a_newer_format_is_refused_and_left_as_it_is() {
    let mut cluster = LocalCluster::start(one_node()).await;
    assert_eq!(cluster.stop(0).await, 0);
    let path = cluster.nodes[0].data_dir.join("IDENTITY");
    let mut identity = fs::read(&path).unwrap();
    let sum_at = identity.len() - 4;
    identity[0] = 200;
    let sum = crc32c::crc32c(&identity[..sum_at]);
    identity[sum_at..].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, &identity).unwrap();
    let out = run(cluster.command(0)).await;
    let told = text(&out);
    assert_eq!(out.status.code(), Some(DATA_DIRECTORY), "{told}");
    assert!(told.contains("200"), "it names the format:\n{told}");
    assert_eq!(fs::read(&path).unwrap(), identity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_identity_is_refused() {
    let mut cluster = LocalCluster::start(one_node()).await;
    assert_eq!(cluster.stop(0).await, 0);
    let path = cluster.nodes[0].data_dir.join("IDENTITY");
    let mut identity = fs::read(&path).unwrap();
    identity[5] ^= 0x40;
    fs::write(&path, &identity).unwrap();
    let out = run(cluster.command(0)).await;
    assert_eq!(out.status.code(), Some(DATA_DIRECTORY), "{}", text(&out));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_another_cluster_is_refused() {
    let mut foreign = LocalCluster::start(one_node()).await;
    assert_eq!(foreign.stop(0).await, 0);
    let mut cluster = LocalCluster::start_beside(&foreign, Settings::default()).await;
    assert_eq!(cluster.stop(2).await, 0);
    cluster.nodes[2].data_dir = foreign.nodes[0].data_dir.clone();
    let out = run(cluster.command(2)).await;
    let told = text(&out);
    assert_eq!(out.status.code(), Some(DATA_DIRECTORY), "{told}");
    assert!(
        told.contains(&foreign.cluster_id) && told.contains(&cluster.cluster_id),
        "it names both clusters:\n{told}"
    );
    cluster.assert_no_panic();
}
