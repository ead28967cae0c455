//! The database below a replica: RocksDB, and its twin in memory for simulations.
use std::path::Path;

#[derive(Debug, Clone, thiserror::Error)]
#[error("the database at {path} cannot be {action}: {reason}")]
pub struct StoreError {
    pub path: String,
    pub action: &'static str,
    pub reason: String,
}

/// How far a replica's database is, read from inside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppliedMark {
    pub index: u64,
    pub term: u64,
    pub last_position: u64,
    /// BLAKE3 chain over the events applied.
    pub chain: [u8; 32],
    pub events: u64,
    /// Encoded `ringfold.internal.v1.Membership` of the last change applied, and its index.
    pub membership: Option<(u64, Vec<u8>)>,
}

/// Block cache, rate limiter and background threads that all databases of a process share.
#[derive(Clone)]
pub struct SharedResources;

#[allow(unused)]
impl SharedResources {
    pub fn new(cache_bytes: usize, background_threads: i32) -> SharedResources {
        todo!()
    }
}

/// Reads the mark of a checkpoint's directory without opening it for writing.
#[allow(unused)]
pub fn read_mark(path: &Path) -> Result<AppliedMark, StoreError> {
    todo!()
}
