//! What storage alone costs: three RocksDBs that take the batches of an import.
use std::{path::Path, time::Instant};

use anyhow::Context as _;
use rocksdb::{DB, Options, WriteBatch};

use crate::{
    load::{ImportArgs, document, import_batches, import_stream},
    measure::{self, LoadArgs, Report, Samples},
};

/// Appends that are written as one batch, as a busy node packs them into one entry.
const APPENDS_PER_BATCH: usize = 64;

/// Writes the import's events into three databases in `dir`, one after the other, a batch into each:
/// for each event itself and its id, for each append the stream's head. With RocksDB's own log,
/// unsynced, as it comes.
///
/// # Errors
/// A database cannot be opened or written.
pub async fn run(dir: &Path, args: &ImportArgs) -> anyhow::Result<Report> {
    let mut options = Options::default();
    options.create_if_missing(true);
    let databases = (0..3)
        .map(|n| DB::open(&options, dir.join(n.to_string())))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot open databases in {}", dir.display()))?;
    let mut failed = None;
    let load = LoadArgs::new(1, 0.0, &[]);
    let report = measure::once("three RocksDBs", &load, async |phase| {
        let mut samples = Samples::new(&phase);
        let appends: Vec<_> = import_batches(args).enumerate().collect();
        for appends in appends.chunks(APPENDS_PER_BATCH) {
            let since = Instant::now();
            let mut events = 0;
            let written = databases.iter().try_for_each(|db| {
                let batch = batch_of(appends, args);
                events = appends.iter().map(|(_, r)| r.len() as u64).sum();
                db.write(batch)
            });
            if let Err(e) = written {
                failed = Some(e);
                break;
            }
            samples.record(since, Ok(events));
        }
        samples
    })
    .await;
    match failed {
        Some(e) => Err(e).context("a database refused a batch"),
        None => Ok(report),
    }
}

/// Built anew for each database, as each replica builds its own.
fn batch_of(appends: &[(usize, std::ops::Range<u32>)], args: &ImportArgs) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (n, events) in appends {
        let stream = import_stream(args.run, *n as u32 % args.streams);
        let hash = xxhash_rust::xxh3::xxh3_64(stream.as_bytes()).to_be_bytes();
        let key = |tag: u8, rest: &[u8]| {
            let mut key = vec![tag];
            key.extend_from_slice(&hash);
            key.extend_from_slice(stream.as_bytes());
            key.push(0);
            key.extend_from_slice(rest);
            key
        };
        let mut head = document(0, args.bytes);
        for e in events.clone() {
            let data = document(e.into(), args.bytes);
            batch.put(key(b'e', &u64::from(e).to_be_bytes()), &data);
            batch.put(key(b'i', &u128::from(e).to_be_bytes()), [0; 24]);
            head = data;
        }
        batch.put(key(b's', &[]), &head);
    }
    batch
}
