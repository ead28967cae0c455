//! Replication: the only module that names the types of the `raft` and `raft-engine` crates.
pub mod handle;
