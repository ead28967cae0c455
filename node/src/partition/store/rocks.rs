//! RocksDB: no write-ahead log, one column family, and all databases of the process share caches,
//! memtable budget, rate limit and background threads.
use super::{AppliedMark, Batch, Cached, Order, SharedStore, Store, StoreError, load_mark};
use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, DataBlockIndexType, Env,
    ErrorKind, FlushOptions, InfoLogger, LogLevel, Options, ReadOptions, ReadTier,
    WriteBufferManager, WriteOptions,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Large, so that what is written again and again, such as heads, is flushed once only.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
const FILES_OPEN_MAX: i32 = 64;
const BACKGROUND_BYTES_PER_S: i64 = 256 << 20;

/// Block cache, memtable budget, rate limit and background threads that all databases of a process
/// share. Cheap to clone.
#[derive(Clone)]
pub struct SharedResources {
    options: Arc<Options>,
    cache: Cache,
    memtables: WriteBufferManager,
}

impl SharedResources {
    /// A memtable budget as large as the cache, 64 MiB at least.
    pub fn new(cache_bytes: usize, background_threads: i32) -> SharedResources {
        Self::with_memtables(cache_bytes, cache_bytes.max(64 << 20), background_threads)
    }

    /// `memtable_bytes`: what all databases hold unflushed together, about; beyond it RocksDB
    /// flushes by itself.
    pub fn with_memtables(
        cache_bytes: usize,
        memtable_bytes: usize,
        background_threads: i32,
    ) -> SharedResources {
        let cache = Cache::new_hyper_clock_cache(cache_bytes, 0);
        let memtables = WriteBufferManager::new_write_buffer_manager(memtable_bytes, false);
        let mut options = quiet_options();
        if let Ok(mut env) = Env::new() {
            env.set_low_priority_background_threads(background_threads.max(1));
            env.set_high_priority_background_threads(background_threads.max(1));
            options.set_env(&env);
        }
        // One limiter behind a shared pointer in the options: copies of them share it.
        options.set_ratelimiter(BACKGROUND_BYTES_PER_S, 100_000, 10);
        options.set_write_buffer_manager(&memtables);
        options.set_max_background_jobs(2);

        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_arena_block_size(64 << 10);
        options.set_max_write_buffer_number(4);
        // Most ids asked for are new: a bloom filter spares the walk through the memtable.
        options.set_memtable_prefix_bloom_ratio(0.005);
        options.set_memtable_whole_key_filtering(true);
        // Only the apply thread writes.
        options.set_allow_concurrent_memtable_write(false);
        options.set_avoid_unnecessary_blocking_io(true);

        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_block_size(4 << 10);
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(true);
        table.set_optimize_filters_for_memory(true);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        // In small parts: whole, the index of one file would not fit into a small cache, and every
        // read would load it again (measured: 30 times slower).
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(4 << 10);
        table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
        // Small databases have one level, which each compaction writes again as a whole.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_target_file_size_base(32 << 20);
        options.set_max_bytes_for_level_base(64 << 20);
        options.set_bytes_per_sync(1 << 20);
        SharedResources { options: Arc::new(options), cache, memtables }
    }

    /// Bytes in the block cache and in all memtables.
    pub fn memory_bytes(&self) -> (usize, usize) {
        (self.cache.get_usage(), self.memtables.get_usage())
    }
}

/// Where in the memtable a key goes is looked for from where the last one with the same first bytes
/// went: the tag and half of the stream's hash. Events, ids and heads of a stream that is appended to
/// again and again lie beside each other. (Binding and C interface know it by its name only.)
const INSERT_HINTS: &str = "memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.5";

/// No log files, no statistics, few files open.
fn quiet_options() -> Options {
    let hinted = Options::default().get_options_from_string(INSERT_HINTS);
    let mut options = hinted.unwrap_or_else(|error| {
        tracing::warn!(%error, "RocksDB inserts without hints: appends take longer");
        Options::default()
    });
    // What RocksDB calls its header comes whatever the level is.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Error, |level, message| {
        if matches!(level, LogLevel::Error | LogLevel::Fatal) {
            tracing::error!(message, "RocksDB");
        }
    }));
    options.set_log_level(LogLevel::Error);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_open_files(FILES_OPEN_MAX);
    options.set_max_file_opening_threads(1);
    options.set_table_cache_num_shard_bits(2);
    options.set_manifest_preallocation_size(64 << 10);
    options.set_max_manifest_file_size(4 << 20);
    options
}

/// Opens the database in a directory, or creates it where `create` says so.
pub fn open_rocks(
    path: &Path,
    resources: &SharedResources,
    create: bool,
) -> Result<SharedStore, StoreError> {
    Ok(Arc::new(RocksStore::open(path, resources, create)?))
}

/// Reads the mark of a checkpoint's directory without opening it for writing.
pub fn read_mark(path: &Path) -> Result<AppliedMark, StoreError> {
    let db = DB::open_for_read_only(&quiet_options(), path, false)
        .map_err(|e| StoreError::new(path, "opened", e))?;
    load_mark(&RocksStore::around(path, db))?
        .ok_or_else(|| StoreError::new(path, "read", "it has no applied mark"))
}

pub struct RocksStore {
    path: PathBuf,
    db: DB,
    read: ReadOptions,
    read_cached: ReadOptions,
    write: WriteOptions,
    /// Ever written, and how much of that is known to be flushed.
    written_bytes: AtomicU64,
    flushed_bytes: AtomicU64,
    /// Behind `db`: fields are dropped in their order.
    files: Files,
}

/// The files of a database that is closed when this is dropped.
struct Files {
    path: PathBuf,
    discarded: AtomicBool,
}

impl Drop for Files {
    fn drop(&mut self) {
        if !*self.discarded.get_mut() {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let remove = move || {
            if let Err(error) = std::fs::remove_dir_all(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                // The next start removes what no record names.
                tracing::warn!(path = %path.display(), %error, "a database was not removed");
            }
        };
        // Unlinking large files takes time, and the last user may be an apply thread.
        if let Err(error) = std::thread::Builder::new().name("remove".into()).spawn(remove) {
            tracing::warn!(%error, "no thread to remove a database: the next start does");
        }
    }
}

impl RocksStore {
    pub fn open(
        path: &Path,
        resources: &SharedResources,
        create: bool,
    ) -> Result<RocksStore, StoreError> {
        let mut options = (*resources.options).clone();
        options.create_if_missing(create);
        if create {
            std::fs::create_dir_all(path).map_err(|e| StoreError::new(path, "created", e))?;
        }
        let db = DB::open(&options, path).map_err(|e| StoreError::new(path, "opened", e))?;
        Ok(Self::around(path, db))
    }

    fn around(path: &Path, db: DB) -> RocksStore {
        let mut read_cached = ReadOptions::default();
        read_cached.set_read_tier(ReadTier::BlockCache);
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        RocksStore {
            path: path.to_owned(),
            db,
            read: ReadOptions::default(),
            read_cached,
            write,
            written_bytes: AtomicU64::new(0),
            flushed_bytes: AtomicU64::new(0),
            files: Files { path: path.to_owned(), discarded: AtomicBool::new(false) },
        }
    }

    fn error(&self, action: &'static str) -> impl FnOnce(rocksdb::Error) -> StoreError {
        move |e| StoreError::new(&self.path, action, e)
    }
}

impl Store for RocksStore {
    fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.db.get_pinned_opt(key, &self.read).map_err(self.error("read"))?;
        Ok(value.map(|v| Bytes::copy_from_slice(&v)))
    }

    fn get_cached(&self, key: &[u8]) -> Result<Cached, StoreError> {
        match self.db.get_pinned_opt(key, &self.read_cached) {
            Ok(Some(v)) => Ok(Cached::Found(Bytes::copy_from_slice(&v))),
            Ok(None) => Ok(Cached::Missing),
            Err(e) if e.kind() == ErrorKind::Incomplete => Ok(Cached::Unknown),
            Err(e) => Err(self.error("read")(e)),
        }
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
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        let mut iterator = self.db.raw_iterator_opt(options);
        match order {
            Order::Ascending => iterator.seek_to_first(),
            Order::Descending => iterator.seek_to_last(),
        }
        while let Some((key, value)) = iterator.item() {
            if !visit(key, value) {
                return Ok(());
            }
            match order {
                Order::Ascending => iterator.next(),
                Order::Descending => iterator.prev(),
            }
        }
        // An iterator that met an error looks like one at its end.
        iterator.status().map_err(self.error("read"))
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut out =
            rocksdb::WriteBatch::with_capacity_bytes(batch.bytes() + 16 * batch.ops.len() + 16);
        for (key, value) in batch.iter() {
            match value {
                Some(value) => out.put(key, value),
                None => out.delete(key),
            }
        }
        self.db.write_opt(out, &self.write).map_err(self.error("written"))?;
        self.written_bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let before = self.written_bytes.load(Ordering::Relaxed);
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(self.error("flushed"))?;
        self.flushed_bytes.fetch_max(before, Ordering::Relaxed);
        Ok(())
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        // Without a write-ahead log the checkpoint always flushes first.
        let before = self.written_bytes.load(Ordering::Relaxed);
        Checkpoint::new(&self.db)
            .and_then(|c| c.create_checkpoint(path))
            .map_err(self.error("copied to a checkpoint"))?;
        self.flushed_bytes.fetch_max(before, Ordering::Relaxed);
        Ok(())
    }

    fn checkpoint_mark(&self, path: &Path) -> Result<AppliedMark, StoreError> {
        read_mark(path)
    }

    fn discard(&self) {
        self.files.discarded.store(true, Ordering::Relaxed);
    }

    fn unflushed_bytes(&self) -> u64 {
        let flushed = self.flushed_bytes.load(Ordering::Relaxed);
        self.written_bytes.load(Ordering::Relaxed).saturating_sub(flushed)
    }

    fn bytes(&self) -> u64 {
        let files = self.db.property_int_value("rocksdb.live-sst-files-size").ok().flatten();
        files.unwrap_or(0) + self.unflushed_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The option has no function of its own: a version that calls it otherwise would be slow.
    #[test]
    fn this_rocksdb_knows_insert_hints() {
        Options::default().get_options_from_string(INSERT_HINTS).unwrap();
        let unknown = INSERT_HINTS.replace("hint", "other");
        assert!(Options::default().get_options_from_string(unknown).is_err());
    }
    #[test]
    fn a_discarded_database_goes_with_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.1");
        let resources = SharedResources::with_memtables(1 << 20, 1 << 20, 1);
        let store = std::sync::Arc::new(RocksStore::open(&path, &resources, true).unwrap());
        let mut batch = Batch::default();
        batch.put(b"k", b"v");
        store.write(&batch).unwrap();
        let reader = store.clone();
        store.discard();
        drop(store);
        assert_eq!(reader.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
        assert!(path.exists());
        drop(reader);
        let start = std::time::Instant::now();
        while path.exists() {
            assert!(start.elapsed() < std::time::Duration::from_secs(20), "it is still there");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
