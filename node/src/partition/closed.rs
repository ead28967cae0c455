//! The store of a replica that does not run: every call says why.
use super::store::{AppliedMark, Batch, Cached, Order, Store, StoreError};
use bytes::Bytes;
use std::path::{Path, PathBuf};

pub(super) struct ClosedStore {
    path: PathBuf,
    reason: String,
}

impl ClosedStore {
    pub fn new(reason: &str) -> ClosedStore {
        ClosedStore { path: PathBuf::new(), reason: reason.to_owned() }
    }

    fn error<T>(&self, action: &'static str) -> Result<T, StoreError> {
        Err(StoreError::new(&self.path, action, format!("the replica is closed: {}", self.reason)))
    }
}

impl Store for ClosedStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, _: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.error("read")
    }

    fn get_cached(&self, _: &[u8]) -> Result<Cached, StoreError> {
        self.error("read")
    }

    fn scan(
        &self,
        _: &[u8],
        _: &[u8],
        _: Order,
        _: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.error("read")
    }

    fn write(&self, _: &Batch) -> Result<(), StoreError> {
        self.error("written")
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.error("flushed")
    }

    fn checkpoint(&self, _: &Path) -> Result<(), StoreError> {
        self.error("copied")
    }

    fn checkpoint_mark(&self, _: &Path) -> Result<AppliedMark, StoreError> {
        self.error("read")
    }

    fn unflushed_bytes(&self) -> u64 {
        0
    }
}
