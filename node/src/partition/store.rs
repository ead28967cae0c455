//! The database below a replica: RocksDB, and its twin in memory for simulations.
mod memory;
mod rocks;
#[cfg(test)]
mod tests;

pub use super::mark::{AppliedMark, load_mark, put_mark};
pub use memory::{MemoryDisk, MemoryStore};
pub use rocks::{RocksStore, SharedResources, open_rocks, read_mark};

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database at {path} cannot be {action}: {reason}")]
pub struct StoreError {
    pub path: String,
    pub action: &'static str,
    pub reason: String,
}

impl StoreError {
    pub(crate) fn new(path: &Path, action: &'static str, reason: impl ToString) -> StoreError {
        StoreError { path: path.display().to_string(), action, reason: reason.to_string() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// What a read that never waits for a disk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    Found(Bytes),
    Missing,
    /// Memory does not know: ask again with `get`, on a thread that may wait.
    Unknown,
}

/// An ordered map of bytes without a write-ahead log: what was written since the last flush is lost
/// in a crash, always from the end of a batch on. One thread writes, any thread reads.
pub trait Store: Send + Sync {
    fn path(&self) -> &Path;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// As `get`, from the memtable and the block cache alone.
    fn get_cached(&self, key: &[u8]) -> Result<Cached, StoreError>;

    /// Shows what lies in `from..to`, as it is at the start of the scan, until `visit` says false.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError>;

    /// All of the batch or nothing.
    fn write(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Everything written before is durable when it returns.
    fn flush(&self) -> Result<(), StoreError>;

    /// A durable copy of everything written before, in a directory that must not exist.
    fn checkpoint(&self, path: &Path) -> Result<(), StoreError>;

    /// The mark inside a checkpoint that `checkpoint` made.
    fn checkpoint_mark(&self, path: &Path) -> Result<AppliedMark, StoreError>;

    /// Bytes written since the last flush, about.
    fn unflushed_bytes(&self) -> u64;

    /// Nothing names this store any more: once its last user has let it go, its files are removed.
    fn discard(&self) {}

    /// Bytes that a checkpoint would have, about.
    fn bytes(&self) -> u64 {
        self.unflushed_bytes()
    }
}

pub type SharedStore = Arc<dyn Store>;

/// Puts and deletes that go in together. One buffer, kept between batches.
#[derive(Default, Debug, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    ops: Vec<Op>,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    key_end: usize,
    /// The end of the value; `None`: a delete.
    value_end: Option<usize>,
}

impl Batch {
    /// `key` and `value` append to the buffer that they get, and change nothing else in it.
    pub fn put_with(&mut self, key: impl FnOnce(&mut Vec<u8>), value: impl FnOnce(&mut Vec<u8>)) {
        key(&mut self.bytes);
        let key_end = self.bytes.len();
        value(&mut self.bytes);
        self.ops.push(Op { key_end, value_end: Some(self.bytes.len()) });
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.put_with(|k| k.extend_from_slice(key), |v| v.extend_from_slice(value));
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ops.push(Op { key_end: self.bytes.len(), value_end: None });
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ops.clear();
        // One large entry does not hold its memory for good.
        self.bytes.shrink_to(BATCH_BYTES_KEPT);
        self.ops.shrink_to(BATCH_BYTES_KEPT / 64);
    }

    /// Key and value (`None`: delete) in the order in which they came.
    fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut start = 0;
        self.ops.iter().map(move |op| {
            let key = &self.bytes[start..op.key_end];
            let value = op.value_end.map(|end| &self.bytes[op.key_end..end]);
            start = op.value_end.unwrap_or(op.key_end);
            (key, value)
        })
    }
}

const BATCH_BYTES_KEPT: usize = 64 << 10;
