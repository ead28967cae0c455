//! What every store must do, and that both do the same.
use super::*;
use crate::partition::keys;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Flush,
    Get(Vec<u8>),
    Scan(Vec<u8>, Vec<u8>, bool, usize),
    Checkpoint,
}

/// Few keys, so that they meet; one a prefix of another.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, 0xff]), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let op = (key(), prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..20)));
    prop_oneof![
        4 => prop::collection::vec(op, 0..6).prop_map(Step::Write),
        1 => Just(Step::Flush),
        3 => key().prop_map(Step::Get),
        3 => (key(), key(), any::<bool>(), 1usize..8).prop_map(|(a, b, o, n)| Step::Scan(a, b, o, n)),
        1 => Just(Step::Checkpoint),
    ]
}

type Seen = Vec<(Vec<u8>, Vec<u8>)>;

fn scan(store: &dyn Store, from: &[u8], to: &[u8], order: Order, max: usize) -> Seen {
    let mut seen = Vec::new();
    store
        .scan(from, to, order, &mut |k, v| {
            seen.push((k.to_vec(), v.to_vec()));
            seen.len() < max
        })
        .unwrap();
    seen
}

fn all(store: &dyn Store) -> Seen {
    scan(store, &[], &[0xff; 8], Order::Ascending, usize::MAX)
}

/// Runs the steps beside the naive model; what a crash at the end must leave.
fn run(
    store: &dyn Store,
    checkpoints: &dyn Fn(usize) -> PathBuf,
    reopen: &dyn Fn(&Path) -> SharedStore,
    steps: &[Step],
) -> Seen {
    let mut model = std::collections::BTreeMap::new();
    let mut durable = model.clone();
    for (i, step) in steps.iter().enumerate() {
        match step {
            Step::Write(ops) => {
                let mut batch = Batch::default();
                for (key, value) in ops {
                    match value {
                        Some(v) => {
                            batch.put(key, v);
                            model.insert(key.clone(), v.clone());
                        }
                        None => {
                            batch.delete(key);
                            model.remove(key);
                        }
                    }
                }
                store.write(&batch).unwrap();
                assert!(store.unflushed_bytes() > 0 || batch.bytes() == 0);
            }
            Step::Flush => {
                store.flush().unwrap();
                assert_eq!(store.unflushed_bytes(), 0);
                durable = model.clone();
            }
            Step::Get(key) => {
                let expected = model.get(key).map(|v| Bytes::copy_from_slice(v));
                assert_eq!(store.get(key).unwrap(), expected);
                match store.get_cached(key).unwrap() {
                    Cached::Found(v) => assert_eq!(Some(v), expected),
                    Cached::Missing => assert_eq!(expected, None),
                    Cached::Unknown => {}
                }
            }
            Step::Scan(from, to, ascending, max) => {
                let mut expected: Seen = model
                    .iter()
                    .filter(|(k, _)| from <= *k && *k < to)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                let order = if *ascending { Order::Ascending } else { Order::Descending };
                if !ascending {
                    expected.reverse();
                }
                expected.truncate(*max);
                assert_eq!(scan(store, from, to, order, *max), expected);
            }
            Step::Checkpoint => {
                let path = checkpoints(i);
                store.checkpoint(&path).unwrap();
                assert!(store.checkpoint(&path).is_err(), "over one that exists");
                assert_eq!(store.unflushed_bytes(), 0);
                durable = model.clone();
                let copy = reopen(&path);
                assert_eq!(all(&*copy), model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(all(store), model.into_iter().collect::<Vec<_>>());
    durable.into_iter().collect()
}

fn resources() -> SharedResources {
    SharedResources::new(8 << 20, 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn the_memory_store_is_an_ordered_map_that_forgets_what_was_not_flushed(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let disk = MemoryDisk::default();
        let path = Path::new("/db");
        let store = disk.open(path, true).unwrap();
        let durable = run(
            &*store,
            &|i| PathBuf::from(format!("/checkpoint-{i}")),
            &|path| disk.open(path, false).unwrap(),
            &steps,
        );
        let other = MemoryDisk::default();
        other.copy_from(&disk, path, path).unwrap();
        prop_assert_eq!(all(&*other.open(path, false).unwrap()), durable.clone());
        disk.crash();
        prop_assert_eq!(all(&*disk.open(path, false).unwrap()), durable);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn rocksdb_is_an_ordered_map_that_forgets_what_was_not_flushed(
        steps in prop::collection::vec(step(), 0..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let resources = resources();
        let store = RocksStore::open(&path, &resources, true).unwrap();
        let durable = run(
            &store,
            &|i| dir.path().join(format!("checkpoint-{i}")),
            &|path| open_rocks(path, &resources, false).unwrap(),
            &steps,
        );
        // A crash: the files as they are, without an orderly end.
        let image = dir.path().join("image");
        copy_dir(&path, &image);
        prop_assert_eq!(all(&*open_rocks(&image, &resources, false).unwrap()), durable);
        let live = all(&store);
        drop(store);
        prop_assert_eq!(all(&*open_rocks(&path, &resources, false).unwrap()), live, "an orderly end loses nothing");
    }
}

/// The files of a database that is open, as they are at one moment: what RocksDB needs no more it
/// removes at any time, and then what names it was copied too early.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    let names = || {
        let files = std::fs::read_dir(from).unwrap().map(|f| f.unwrap().file_name());
        files.filter(|name| name != "LOCK").collect::<BTreeSet<_>>()
    };
    loop {
        let before = names();
        std::fs::create_dir(to).unwrap();
        let copied = before.iter().all(|n| std::fs::copy(from.join(n), to.join(n)).is_ok());
        if copied && names() == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn a_database_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    let e = open_rocks(&path, &resources(), false).err().unwrap();
    assert!(e.to_string().contains("cannot be opened"), "{e}");
    assert!(!path.join("CURRENT").exists());
    assert!(read_mark(&path).is_err());
    assert!(MemoryDisk::default().open(&path, false).is_err());
}

#[test]
fn a_database_that_is_open_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let _open = open_rocks(dir.path(), &resources(), true).unwrap();
    let e = open_rocks(dir.path(), &resources(), false).err().unwrap();
    assert!(e.reason.contains("lock"), "{e}");
}

#[test]
fn damaged_files_are_errors_and_never_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let key = |i: u32| keys::owned(|k| k.extend_from_slice(&i.to_be_bytes()));
    {
        let store = RocksStore::open(&path, &resources(), true).unwrap();
        let mut batch = Batch::default();
        for i in 0..2_000u32 {
            batch.put(&key(i), &[i as u8; 100]);
        }
        store.write(&batch).unwrap();
        store.flush().unwrap();
    }
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|f| f.unwrap().path()).collect();
    let table = files.iter().find(|f| f.extension().is_some_and(|e| e == "sst")).unwrap();
    let good = std::fs::read(table).unwrap();
    let mut found = 0;
    for at in (0..good.len()).step_by(good.len() / 23) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(table, &bad).unwrap();
        // A cache of its own: nothing read before the damage answers.
        let Ok(store) = open_rocks(&path, &resources(), false) else {
            found += 1;
            continue;
        };
        let mut damaged = false;
        for i in (0..2_000).step_by(7) {
            match store.get(&key(i)) {
                Ok(v) => assert_eq!(v.as_deref(), Some(&[i as u8; 100][..]), "byte {at}"),
                Err(e) => {
                    assert!(e.reason.contains("Corruption"), "{e}");
                    damaged = true;
                }
            }
        }
        let scanned = store.scan(&[], &[0xff; 8], Order::Ascending, &mut |_, _| true);
        damaged |= scanned.is_err();
        found += u32::from(damaged);
    }
    assert!(found > 15, "{found} of 23 damages found");
}

#[test]
fn what_memory_does_not_hold_is_unknown_to_a_cached_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    {
        let store = RocksStore::open(&path, &resources(), true).unwrap();
        let mut batch = Batch::default();
        batch.put(b"a", b"1");
        store.write(&batch).unwrap();
        assert_eq!(store.get_cached(b"a").unwrap(), Cached::Found(Bytes::from_static(b"1")));
    }
    let store = open_rocks(&path, &resources(), false).unwrap();
    assert_eq!(store.get_cached(b"a").unwrap(), Cached::Unknown);
    assert_eq!(store.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(store.get_cached(b"a").unwrap(), Cached::Found(Bytes::from_static(b"1")));
    assert_eq!(store.get_cached(b"b").unwrap(), Cached::Missing);
}

#[test]
fn marks_are_read_from_checkpoints_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_rocks(&dir.path().join("db"), &resources(), true).unwrap();
    let mut mark = AppliedMark {
        index: 7,
        term: 2,
        chain: [3; 32],
        events: 9,
        last_position: 5,
        membership: None,
    };
    for membership in [None, Some((6, vec![1, 2]))] {
        mark.membership = membership;
        mark.index += 1;
        let mut batch = Batch::default();
        put_mark(&mut batch, &mark);
        store.write(&batch).unwrap();
        let path = dir.path().join(format!("checkpoint-{}", mark.index));
        store.checkpoint(&path).unwrap();
        let files = || {
            let mut files: Vec<_> =
                std::fs::read_dir(&path).unwrap().map(|f| f.unwrap().file_name()).collect();
            files.sort();
            files
        };
        let before = files();
        assert_eq!(read_mark(&path).unwrap(), mark);
        assert_eq!(files(), before);
    }
}
