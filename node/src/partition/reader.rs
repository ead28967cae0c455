//! Reads of one replica's database. None of these may run on an async runtime's threads, but for
//! `stream_cached`.
use super::content::hash_of_record;
use super::keys::{self, decode_value};
use super::store::{AppliedMark, Cached, Order, SharedStore, Store, StoreError, load_mark};
use arc_swap::ArcSwap;
use bytes::Bytes;
use ringfold_proto::internal::{EventRecord, StreamRecord};
use std::path::Path;
use std::sync::Arc;

/// Reads of one replica's database; cheap to clone. After a checkpoint was installed all clones
/// read the new one.
#[derive(Clone)]
pub struct Reader(Arc<ArcSwap<SharedStore>>);

/// Some events of a stream, in the order asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventPage {
    /// With their revisions.
    pub events: Vec<(u64, EventRecord)>,
    /// Revision to go on from; `None`: the end is reached.
    pub next: Option<u64>,
}

impl Reader {
    /// Reads of a store: for the machines that write it.
    pub fn new(store: SharedStore) -> Reader {
        Reader(Arc::new(ArcSwap::from_pointee(store)))
    }

    /// Bytes written since the last flush, about.
    pub fn unflushed_bytes(&self) -> u64 {
        self.0.load().unflushed_bytes()
    }

    /// Of a replica that does not run: every read fails with the reason.
    pub fn closed(reason: &str) -> Reader {
        Reader::new(Arc::new(super::closed::ClosedStore::new(reason)))
    }

    /// What `other` reads is what this reader and all its clones read from now on; gives the store
    /// that they have read.
    pub fn replace(&self, other: &Reader) -> SharedStore {
        SharedStore::clone(&self.0.swap(other.0.load_full()))
    }

    /// The store below, as it is now.
    pub fn store(&self) -> SharedStore {
        SharedStore::clone(&self.0.load())
    }

    /// A stream's record if memory has the answer: `None` says to ask `stream` on a read thread;
    /// `Some(None)` that there is no such stream. Never waits for a disk.
    pub fn stream_cached(&self, stream: &str) -> Result<Option<Option<StreamRecord>>, StoreError> {
        let store = self.0.load();
        match store.get_cached(&stream_key(stream))? {
            Cached::Found(value) => Ok(Some(Some(decode(&***store, value)?))),
            Cached::Missing => Ok(Some(None)),
            Cached::Unknown => Ok(None),
        }
    }

    /// A stream's head and state.
    pub fn stream(&self, stream: &str) -> Result<Option<StreamRecord>, StoreError> {
        record(&**self.0.load_full(), stream)
    }

    /// Events of a stream from a revision on (`None`: the first, or the last one backwards), at
    /// most `max_count` and about `max_bytes`, at least one. Each is checked against its checksum.
    /// From beyond an end: forwards nothing, or from the first one kept; backwards from the last.
    pub fn events(
        &self,
        stream: &str,
        from: Option<u64>,
        backwards: bool,
        max_count: usize,
        max_bytes: usize,
    ) -> Result<EventPage, StoreError> {
        let store = self.0.load_full();
        let store = &**store;
        // The head first: what it counts must be there, and nothing newer is shown.
        let Some(head) = record(store, stream)? else {
            return Ok(EventPage::default());
        };
        let (first, last) = (head.first_revision, head.revision);
        let (from, to, order) = if backwards {
            (first, from.unwrap_or(last).min(last), Order::Descending)
        } else {
            (from.unwrap_or(first).max(first), last, Order::Ascending)
        };
        let mut page = EventPage::default();
        if from > to {
            return Ok(page);
        }
        let hash = keys::stream_hash(stream);
        let start = keys::owned(|k| keys::event(k, hash, stream, from));
        let mut end = keys::owned(|k| keys::event(k, hash, stream, to));
        end.push(0);

        let mut expected = Some(if backwards { to } else { from });
        let (mut bytes, mut full, mut result) = (0, false, Ok(()));
        store.scan(&start, &end, order, &mut |key, value| {
            let Some(revision) = expected else {
                return false;
            };
            full = !page.events.is_empty()
                && (page.events.len() >= max_count || bytes + value.len() > max_bytes);
            if full {
                return false;
            }
            bytes += value.len();
            match event(store, stream, revision, key, value) {
                Ok(event) => page.events.push((revision, event)),
                Err(e) => {
                    result = Err(e);
                    return false;
                }
            }
            let end = if backwards { from } else { to };
            expected = match (revision == end, backwards) {
                (true, _) => None,
                (false, true) => Some(revision - 1),
                (false, false) => Some(revision + 1),
            };
            expected.is_some()
        })?;
        result?;
        match expected {
            // The scan ended before the last event that the head counts.
            Some(revision) if !full => Err(missing_event(store, stream, revision)),
            next => {
                page.next = next;
                Ok(page)
            }
        }
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
        let store = self.0.load_full();
        let store = &**store;
        let mut found = Vec::new();
        let mut bytes = 0;
        for (from, to) in name_ranges(category, prefix, after) {
            let mut result = Ok(());
            let mut full = false;
            store.scan(&from, &to, Order::Ascending, &mut |key, _| {
                full = !found.is_empty() && (found.len() >= max_count || bytes >= max_bytes);
                if full {
                    return false;
                }
                match named_stream(store, key) {
                    Ok((_, record)) if record.tombstone => true,
                    Ok((name, record)) => {
                        bytes += name.len() + record.state.len();
                        found.push((name, record));
                        true
                    }
                    Err(e) => {
                        result = Err(e);
                        false
                    }
                }
            })?;
            result?;
            if full {
                break;
            }
        }
        Ok(found)
    }

    /// How far the database is.
    pub fn mark(&self) -> Result<AppliedMark, StoreError> {
        mark(&**self.0.load_full())
    }

    /// Writes everything to disk; the index that is durable then.
    pub fn flush(&self) -> Result<u64, StoreError> {
        let store = self.0.load_full();
        // Before the flush: what is applied meanwhile may not be in it.
        let index = mark(&**store)?.index;
        store.flush()?;
        Ok(index)
    }

    /// Flushes, then hard-links the database into `path`, which must not exist.
    pub fn checkpoint(&self, path: &Path) -> Result<AppliedMark, StoreError> {
        let store = self.0.load_full();
        store.checkpoint(path)?;
        store.checkpoint_mark(path)
    }
}

fn stream_key(stream: &str) -> Vec<u8> {
    keys::owned(|k| keys::stream(k, keys::stream_hash(stream), stream))
}

fn decode<M: prost::Message + Default>(store: &dyn Store, value: Bytes) -> Result<M, StoreError> {
    decode_value(value).map_err(|e| StoreError::new(store.path(), "read", e))
}

fn record(store: &dyn Store, stream: &str) -> Result<Option<StreamRecord>, StoreError> {
    store.get(&stream_key(stream))?.map(|v| decode(store, v)).transpose()
}

fn mark(store: &dyn Store) -> Result<AppliedMark, StoreError> {
    load_mark(store)?.ok_or_else(|| StoreError::new(store.path(), "read", "it has no applied mark"))
}

fn missing_event(store: &dyn Store, stream: &str, revision: u64) -> StoreError {
    let reason = format!("event {revision} of stream {stream:?} is missing");
    StoreError::new(store.path(), "read", reason)
}

/// The event that must stand here, checked.
fn event(
    store: &dyn Store,
    stream: &str,
    revision: u64,
    key: &[u8],
    value: &[u8],
) -> Result<EventRecord, StoreError> {
    if keys::revision_of(key) != Some(revision) {
        return Err(missing_event(store, stream, revision));
    }
    let event: EventRecord = decode(store, Bytes::copy_from_slice(value))?;
    if event.content_hash != hash_of_record(&event) {
        let reason = format!("event {revision} of stream {stream:?} fails its checksum");
        return Err(StoreError::new(store.path(), "read", reason));
    }
    Ok(event)
}

fn named_stream(store: &dyn Store, key: &[u8]) -> Result<(String, StreamRecord), StoreError> {
    let error = |reason: String| StoreError::new(store.path(), "read", reason);
    let name = keys::name_of(key).ok_or_else(|| error("a stream's name is damaged".into()))?;
    let record = record(store, name)?
        .ok_or_else(|| error(format!("the record of stream {name:?} is missing")))?;
    Ok((name.to_owned(), record))
}

/// Where in the names the streams asked for are, in order.
fn name_ranges(category: &str, prefix: &str, after: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let begin_with = |prefix: &str| {
        let key = keys::owned(|k| keys::name(k, prefix));
        (key.clone(), keys::end_of_prefix(key))
    };
    let mut ranges = Vec::new();
    if category.is_empty() {
        ranges.push(begin_with(prefix));
    } else {
        // A name without a dash is its own category.
        if category.starts_with(prefix) {
            let key = keys::owned(|k| keys::name(k, category));
            let mut end = key.clone();
            end.push(0);
            ranges.push((key, end));
        }
        let dashed = format!("{category}-");
        if dashed.starts_with(prefix) {
            ranges.push(begin_with(&dashed));
        } else if prefix.starts_with(&dashed) {
            ranges.push(begin_with(prefix));
        }
    }
    if !after.is_empty() {
        let mut behind = keys::owned(|k| keys::name(k, after));
        behind.push(0);
        for (from, _) in &mut ranges {
            if *from < behind {
                from.clone_from(&behind);
            }
        }
    }
    ranges.retain(|(from, to)| from < to);
    ranges
}

#[cfg(test)]
mod tests;
