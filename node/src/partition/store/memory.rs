//! The twin in memory: for simulations, with the crash of a database without a write-ahead log.
use super::{AppliedMark, Batch, Cached, Order, Store, StoreError, load_mark};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk full of databases. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<RwLock<BTreeMap<PathBuf, Arc<MemoryStore>>>>);

impl MemoryDisk {
    /// Opens the database at a path, or creates it where `create` says so.
    pub fn open(&self, path: &Path, create: bool) -> Result<Arc<MemoryStore>, StoreError> {
        let mut stores = self.0.write();
        match stores.get(path) {
            Some(store) => Ok(store.clone()),
            None if create => {
                let store = Arc::new(MemoryStore::empty(path, self.clone()));
                stores.insert(path.to_owned(), store.clone());
                Ok(store)
            }
            None => Err(StoreError::new(path, "opened", "there is none")),
        }
    }

    /// Every database is what it was at its last flush.
    pub fn crash(&self) {
        for store in self.0.read().values() {
            store.crash();
        }
    }

    pub fn remove(&self, path: &Path) {
        self.0.write().remove(path);
    }

    /// Paths of all databases, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.read().keys().cloned().collect()
    }

    /// Puts a copy of one disk's database, as it was at its last flush, on this disk.
    pub fn copy_from(&self, other: &MemoryDisk, from: &Path, to: &Path) -> Result<(), StoreError> {
        let source = other.open(from, false)?;
        let copy = MemoryStore::empty(to, self.clone());
        copy.content.write().live = source.content.read().durable();
        self.0.write().insert(to.to_owned(), Arc::new(copy));
        Ok(())
    }
}

/// One database on a `MemoryDisk`.
pub struct MemoryStore {
    path: PathBuf,
    disk: MemoryDisk,
    content: RwLock<Content>,
}

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Default)]
struct Content {
    live: Map,
    /// Of each key changed since the last flush, what it was then.
    undo: BTreeMap<Bytes, Option<Bytes>>,
    unflushed_bytes: u64,
}

impl Content {
    fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let key = Bytes::copy_from_slice(key);
        let old = match value {
            Some(v) => self.live.insert(key.clone(), Bytes::copy_from_slice(v)),
            None => self.live.remove(&key),
        };
        self.undo.entry(key).or_insert(old);
    }

    fn durable(&self) -> Map {
        let mut map = self.live.clone();
        for (key, old) in &self.undo {
            match old {
                Some(v) => map.insert(key.clone(), v.clone()),
                None => map.remove(key),
            };
        }
        map
    }
}

impl MemoryStore {
    fn empty(path: &Path, disk: MemoryDisk) -> MemoryStore {
        MemoryStore { path: path.to_owned(), disk, content: RwLock::default() }
    }

    /// The database is what it was at its last flush.
    pub fn crash(&self) {
        let mut content = self.content.write();
        content.unflushed_bytes = 0;
        for (key, old) in std::mem::take(&mut content.undo) {
            match old {
                Some(v) => content.live.insert(key, v),
                None => content.live.remove(&key),
            };
        }
    }
}

impl Store for MemoryStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.content.read().live.get(key).cloned())
    }

    fn get_cached(&self, key: &[u8]) -> Result<Cached, StoreError> {
        Ok(self.get(key)?.map_or(Cached::Missing, Cached::Found))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let content = self.content.read();
        let mut range = content.live.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        while let Some((key, value)) = match order {
            Order::Ascending => range.next(),
            Order::Descending => range.next_back(),
        } {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut content = self.content.write();
        for (key, value) in batch.iter() {
            content.set(key, value);
        }
        content.unflushed_bytes += batch.bytes() as u64;
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut content = self.content.write();
        content.undo.clear();
        content.unflushed_bytes = 0;
        Ok(())
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        self.flush()?;
        let copy = MemoryStore::empty(path, self.disk.clone());
        copy.content.write().live = self.content.read().live.clone();
        let mut stores = self.disk.0.write();
        if stores.contains_key(path) {
            return Err(StoreError::new(path, "made a checkpoint", "it exists already"));
        }
        stores.insert(path.to_owned(), Arc::new(copy));
        Ok(())
    }

    fn checkpoint_mark(&self, path: &Path) -> Result<AppliedMark, StoreError> {
        load_mark(&*self.disk.open(path, false)?)?
            .ok_or_else(|| StoreError::new(path, "read", "it has no applied mark"))
    }

    fn unflushed_bytes(&self) -> u64 {
        self.content.read().unflushed_bytes
    }
}
