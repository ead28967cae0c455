//! Replication: the only module that names the types of the `raft` and `raft-engine` crates.
pub mod apply;
pub mod driver;
mod group;
pub mod handle;
mod lease;
pub mod log;
pub mod mailbox;
pub mod membership;
pub mod message;
pub mod runtime;
mod store;

/// First byte of an entry's data.
pub const ENTRY_FORMAT: u8 = 1;
