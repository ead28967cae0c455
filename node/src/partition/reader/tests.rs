use super::*;
use crate::partition::apply::tests::{append, encode, event};
use crate::partition::apply::{Genesis, PartitionMachine};
use crate::partition::store::{Batch, MemoryDisk, SharedResources};
use crate::raft::apply::StateMachine;
use proptest::prelude::*;
use ringfold_proto::internal::Entry;
use std::collections::BTreeSet;

fn machine(disk: &MemoryDisk, path: &str) -> PartitionMachine {
    let store = disk.open(Path::new(path), true).unwrap();
    PartitionMachine::with_store(store, &Genesis::new(0, 2, []), true).unwrap()
}

/// A partition with one event for each name, a hundred for `long`.
fn filled<'a>(disk: &MemoryDisk, names: impl IntoIterator<Item = &'a str>) -> PartitionMachine {
    let mut m = machine(disk, "/p");
    let mut commands = vec![append("long", (0..100).map(|i| event(i, &format!("{{\"n\":{i}}}"))))];
    commands.extend(names.into_iter().map(|name| append(name, [event(1_000, "{}")])));
    m.apply(1, 1, encode(&Entry { commands, ..Default::default() })).unwrap();
    m
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn pages_of_events_are_what_a_list_would_give(
        from in prop::option::of(0u64..120), backwards in any::<bool>(),
        max_count in 0usize..130, max_bytes in 0usize..8_000,
    ) {
        let disk = MemoryDisk::default();
        let m = filled(&disk, ["long-", "lon"]);
        let page = m.reader().events("long", from, backwards, max_count, max_bytes).unwrap();
        let all: Vec<u64> = if backwards {
            (0..=from.unwrap_or(99).min(99)).rev().collect()
        } else {
            (from.unwrap_or(0)..100).collect()
        };
        let got: Vec<u64> = page.events.iter().map(|(r, _)| *r).collect();
        prop_assert!(got.len() <= max_count.max(1));
        prop_assert_eq!(&got[..], &all[..got.len()]);
        prop_assert_eq!(page.next, all.get(got.len()).copied());
        if !all.is_empty() {
            prop_assert!(!got.is_empty());
        }
        // Full in one of its bounds, or all there is: an event takes less than 120 bytes here.
        if page.next.is_some() {
            prop_assert!(got.len() >= max_count.max(1) || got.len() * 120 + 120 > max_bytes);
        }
        for (revision, e) in page.events {
            prop_assert_eq!(e, m.reader().events("long", Some(revision), false, 1, 0).unwrap().events[0].1.clone());
        }
    }

    #[test]
    fn lists_of_streams_are_what_a_sorted_set_would_give(
        names in prop::collection::btree_set("[ab!-]{1,4}", 0..30),
        category in "[ab!]{0,2}", prefix in "[ab!-]{0,2}", after in "[ab!-]{0,3}", max_count in 0usize..10,
    ) {
        let disk = MemoryDisk::default();
        let m = filled(&disk, names.iter().map(String::as_str));
        let all: BTreeSet<&str> = names.iter().map(String::as_str).chain(["long"]).collect();
        let expected: Vec<&str> = all
            .into_iter()
            .filter(|n| category.is_empty() || keys::category(n) == category)
            .filter(|n| n.starts_with(&prefix) && (after.is_empty() || *n > after.as_str()))
            .take(max_count.max(1))
            .collect();
        let got = m.reader().streams(&category, &prefix, &after, max_count, usize::MAX).unwrap();
        prop_assert_eq!(got.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), expected);
        for (name, record) in got {
            prop_assert_eq!(Some(record), m.reader().stream(&name).unwrap());
        }
    }
}

#[test]
fn a_list_is_bounded_in_bytes() {
    let disk = MemoryDisk::default();
    let m = filled(&disk, ["a", "b", "c"]);
    assert_eq!(m.reader().streams("", "", "", 10, 0).unwrap().len(), 1);
    assert_eq!(m.reader().streams("", "", "", 10, 4).unwrap().len(), 2);
}

#[test]
fn a_stream_that_is_not_there_is_none() {
    let disk = MemoryDisk::default();
    let reader = filled(&disk, []).reader();
    assert_eq!(reader.stream("none").unwrap(), None);
    assert_eq!(reader.stream_cached("none").unwrap(), Some(None));
    assert_eq!(reader.events("none", None, false, 1, 1).unwrap(), EventPage::default());
    assert_eq!(reader.stream_cached("long").unwrap().unwrap(), reader.stream("long").unwrap());
}

/// Changes the store behind the machine's back.
fn damaged(change: impl FnOnce(&SharedStore, &mut Batch)) -> Reader {
    let disk = MemoryDisk::default();
    let reader = filled(&disk, ["other"]).reader();
    let store = reader.store();
    let mut batch = Batch::default();
    change(&store, &mut batch);
    store.write(&batch).unwrap();
    reader
}

fn event_key(revision: u64) -> Vec<u8> {
    keys::owned(|k| keys::event(k, keys::stream_hash("long"), "long", revision))
}

#[test]
fn missing_events_are_errors_wherever_they_were() {
    for lost in [0, 50, 99] {
        let reader = damaged(|_, batch| batch.delete(&event_key(lost)));
        for backwards in [false, true] {
            let e = reader.events("long", None, backwards, usize::MAX, usize::MAX);
            let e = e.map(|p| p.next).unwrap_err();
            assert!(
                e.reason.contains(&format!("event {lost} of stream \"long\" is missing")),
                "{e}"
            );
        }
        // A page that does not touch it is fine.
        assert!(reader.events("long", Some(10), false, 5, usize::MAX).is_ok());
    }
    let reader = damaged(|_, batch| (0..100).for_each(|r| batch.delete(&event_key(r))));
    assert!(reader.events("long", None, false, 1, 1).is_err());
}

#[test]
fn a_flipped_bit_in_an_event_is_an_error_or_changes_nothing() {
    let whole = damaged(|_, _| {}).events("long", Some(7), false, 1, 0).unwrap();
    let length = damaged(|_, _| {}).store().get(&event_key(7)).unwrap().unwrap().len();
    let mut found = 0;
    for at in 0..length {
        let reader = damaged(|store, batch| {
            let mut value = store.get(&event_key(7)).unwrap().unwrap().to_vec();
            value[at] ^= 4;
            batch.put(&event_key(7), &value);
        });
        match reader.events("long", Some(7), false, 1, 0) {
            Err(_) => found += 1,
            // What the server adds is covered by the file's checksums alone.
            Ok(page) => assert_eq!(page.events[0].1.data, whole.events[0].1.data, "byte {at}"),
        }
    }
    assert!(found > length / 2, "{found} of {length}");
}

#[test]
fn a_name_without_a_stream_and_a_newer_record_are_errors() {
    let key = stream_key("other");
    let reader = damaged(|_, batch| batch.delete(&key));
    let e = reader.streams("", "", "", 10, usize::MAX).map(|s| s.len()).unwrap_err();
    assert!(e.reason.contains("\"other\" is missing"), "{e}");
    let reader = damaged(|_, batch| batch.put(&key, &[9]));
    assert!(reader.stream("other").unwrap_err().reason.contains("format 9"));
    assert!(reader.stream_cached("other").is_err());
}

#[test]
fn all_clones_read_what_replaced_the_database() {
    let disk = MemoryDisk::default();
    let reader = filled(&disk, []).reader();
    let clone = reader.clone();
    assert!(clone.stream("long").unwrap().is_some());
    reader.replace(&machine(&disk, "/q").reader());
    assert!(clone.stream("long").unwrap().is_none());
}

#[test]
fn a_checkpoint_is_the_database_as_of_its_mark() {
    let dir = tempfile::tempdir().unwrap();
    let resources = SharedResources::new(8 << 20, 2);
    let genesis = Genesis::new(5, 2, []);
    let path = dir.path().join("1.0");
    let mut m = PartitionMachine::open(&path, &resources, &genesis, true).unwrap();
    let commands = vec![append("long", [event(1, "{\"a\":1}")])];
    m.apply(1, 3, encode(&Entry { commands, ..Default::default() })).unwrap();
    m.skip(2, 3, Some(b"members")).unwrap();
    assert!(m.unflushed_bytes() > 0);
    assert_eq!(m.reader().flush().unwrap(), 2);
    assert_eq!(m.unflushed_bytes(), 0);
    m.skip(3, 4, None).unwrap();
    let checkpoint = dir.path().join("1.1");
    let mark = m.reader().checkpoint(&checkpoint).unwrap();
    assert_eq!(mark, m.reader().mark().unwrap());
    assert_eq!((mark.index, mark.term, mark.events), (3, 4, 1));
    assert_eq!(mark.membership, Some((2, b"members".to_vec())));
    let copy = PartitionMachine::open(&checkpoint, &resources, &genesis, false).unwrap();
    assert_eq!(copy.applied(), m.applied());
    assert_eq!(copy.reader().stream("long").unwrap().unwrap().state, "{\"a\":1}");
    // Of another partition: refused.
    let e = PartitionMachine::open(&path, &resources, &Genesis::new(6, 2, []), false);
    assert!(e.err().unwrap().reason.contains("lock"));
    drop(copy);
    let e = PartitionMachine::open(&checkpoint, &resources, &Genesis::new(6, 2, []), false);
    assert!(e.err().unwrap().reason.contains("of partition 5, not of 6"));
}
