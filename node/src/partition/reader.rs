//! Reads of one replica's database. None of these may run on an async runtime's threads, but for
//! `stream_cached`.
use super::store::{AppliedMark, StoreError};
use ringfold_proto::internal::{EventRecord, StreamRecord};
use std::path::Path;

/// Reads of one replica's database; cheap to clone. After a checkpoint was installed all clones
/// read the new one.
#[derive(Clone)]
pub struct Reader;

/// Some events of a stream, in the order asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventPage {
    /// With their revisions.
    pub events: Vec<(u64, EventRecord)>,
    /// Revision to go on from; `None`: the end is reached.
    pub next: Option<u64>,
}

#[allow(unused)]
impl Reader {
    /// What `other` reads is what this reader and all its clones read from now on.
    pub fn replace(&self, other: &Reader) {
        todo!()
    }

    /// A stream's record if memory has the answer: `None` says to ask `stream` on a read thread;
    /// `Some(None)` that there is no such stream. Never waits for a disk.
    pub fn stream_cached(&self, stream: &str) -> Result<Option<Option<StreamRecord>>, StoreError> {
        todo!()
    }

    /// A stream's head and state.
    pub fn stream(&self, stream: &str) -> Result<Option<StreamRecord>, StoreError> {
        todo!()
    }

    /// Events of a stream from a revision on (`None`: the first, or the last one backwards), at
    /// most `max_count` and about `max_bytes`, at least one. Each is checked against its checksum.
    pub fn events(
        &self,
        stream: &str,
        from: Option<u64>,
        backwards: bool,
        max_count: usize,
        max_bytes: usize,
    ) -> Result<EventPage, StoreError> {
        todo!()
    }

    /// Streams in ascending byte order of their names, after `after` (exclusive), whose names begin
    /// with `prefix`; of `category` when it is not empty. At most `max_count` and about `max_bytes`.
    pub fn streams(
        &self,
        category: &str,
        prefix: &str,
        after: &str,
        max_count: usize,
        max_bytes: usize,
    ) -> Result<Vec<(String, StreamRecord)>, StoreError> {
        todo!()
    }

    /// How far the database is.
    pub fn mark(&self) -> Result<AppliedMark, StoreError> {
        todo!()
    }

    /// Writes everything to disk; the index that is durable then.
    pub fn flush(&self) -> Result<u64, StoreError> {
        todo!()
    }

    /// Flushes, then hard-links the database into `path`, which must not exist.
    pub fn checkpoint(&self, path: &Path) -> Result<AppliedMark, StoreError> {
        todo!()
    }
}
