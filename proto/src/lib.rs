//! Ringfold's messages and services, generated from `proto/ringfold/`.

/// The public API, `ringfold.v1`.
#[allow(clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("ringfold.v1");
}

/// What nodes store and say to each other, `ringfold.internal.v1`. No other program may rely on it.
#[allow(clippy::all, clippy::pedantic)]
pub mod internal {
    tonic::include_proto!("ringfold.internal.v1");
}

/// Descriptors of all files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
