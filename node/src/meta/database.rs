//! The database of a meta replica: one value in a store like a partition's.
use super::machine::MetaStore;
use crate::partition::store::{AppliedMark, Batch, SharedStore, put_mark};
use crate::partition::{Reader, keys};

const KEY: &[u8] = keys::META;

pub struct MetaDatabase {
    store: SharedStore,
    reader: Reader,
    batch: Batch,
}

impl MetaDatabase {
    pub fn new(store: SharedStore) -> MetaDatabase {
        MetaDatabase { reader: Reader::new(store.clone()), store, batch: Batch::default() }
    }
}

impl MetaStore for MetaDatabase {
    fn load(&self) -> Result<Option<Vec<u8>>, String> {
        let value = self.store.get(KEY).map_err(|e| e.to_string())?;
        Ok(value.map(|v| v.to_vec()))
    }

    fn save(&mut self, value: &[u8], mark: &AppliedMark) -> Result<(), String> {
        self.batch.clear();
        self.batch.put(KEY, value);
        put_mark(&mut self.batch, mark);
        self.store.write(&self.batch).map_err(|e| e.to_string())
    }

    fn unflushed_bytes(&self) -> u64 {
        self.store.unflushed_bytes()
    }

    fn reader(&self) -> Reader {
        self.reader.clone()
    }
}
