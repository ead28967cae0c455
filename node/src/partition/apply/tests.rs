//! Apply beside a naive model, over crashes, cut batches and both stores.
use super::*;
use crate::partition::content::hash_of_event;
use crate::partition::fold::tests::naive_fold;
use crate::partition::store::{AppliedMark, Batch, MemoryDisk, Order, Store};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use ringfold_proto::internal::{Close, Cut, Delete, PositionsRecord, Truncate};
use std::collections::BTreeMap;

const PARTITION: u32 = 37;

pub(crate) fn event(id: u128, data: &str) -> Event {
    let mut e = Event {
        id: Bytes::copy_from_slice(&id.to_be_bytes()),
        r#type: "Changed".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..Default::default()
    };
    e.content_hash = hash_of_event(&e);
    e
}

pub(crate) fn append(stream: &str, events: impl IntoIterator<Item = Event>) -> Command {
    command(Append {
        stream: stream.into(),
        events: events.into_iter().collect(),
        ..Default::default()
    })
}

fn command(append: Append) -> Command {
    Command { command: Some(Kind::Append(append)) }
}

pub(crate) fn encode(entry: &Entry) -> Bytes {
    let mut out = vec![ENTRY_FORMAT];
    entry.encode_raw(&mut out);
    out.into()
}

fn genesis() -> Genesis {
    Genesis::new(PARTITION, 2, &BTreeMap::from([("last".to_owned(), 1)]))
}

// The naive model: everything in lists, nothing kept between commands but what happened.

#[derive(Clone, Debug)]
struct Stored {
    stream: String,
    revision: u64,
    position: u64,
    event: Event,
}

#[derive(Default)]
struct Model {
    events: Vec<Stored>,
    last_position: u64,
    closed: u64,
    chain: [u8; 32],
}

impl Model {
    fn of<'a>(&'a self, stream: &'a str) -> impl Iterator<Item = &'a Stored> {
        self.events.iter().filter(move |e| e.stream == stream)
    }

    fn apply(&mut self, entry: &Entry) -> Vec<CommandOutcome> {
        let mut failed = false;
        let mut outcomes = Vec::new();
        for c in &entry.commands {
            outcomes.push(match c.command.as_ref().unwrap() {
                Kind::Append(a) => {
                    let broken = a.chained && failed;
                    let result = self.append(entry.stamp, a, broken);
                    failed = broken || result.is_err();
                    match result {
                        Ok(a) => CommandOutcome::Appended(a),
                        Err(r) => CommandOutcome::Refused(r),
                    }
                }
                Kind::Close(c) => {
                    self.closed = self.closed.max(c.position);
                    CommandOutcome::Done
                }
                other => panic!("{other:?}"),
            });
        }
        outcomes
    }

    fn append(&mut self, stamp: u64, a: &Append, broken: bool) -> Result<Appended, Refusal> {
        let overlap: Vec<_> = a
            .events
            .iter()
            .map(|e| self.of(&a.stream).find(|s| s.event.id == e.id).cloned())
            .collect();
        if let Some(first) = overlap.iter().flatten().next() {
            let the_same = overlap.iter().enumerate().all(|(i, s)| {
                let Some(s) = s else { return false };
                let e = &a.events[i];
                s.event == *e
                    && s.revision == overlap[0].as_ref().map_or(0, |f| f.revision) + i as u64
            });
            if !the_same {
                // Which of the ids it names is not told here.
                let id = uuid::Uuid::nil();
                return Err(Refusal::EventIdConflict { id, revision: 0 });
            }
            let last = overlap.last().unwrap().as_ref().unwrap();
            return Ok(Appended {
                first_revision: first.revision,
                last_revision: last.revision,
                first_position: first.position,
                last_position: last.position,
            });
        }
        if broken {
            return Err(Refusal::EarlierAppendFailed);
        }
        let actual = self.of(&a.stream).map(|s| s.revision).max();
        let met = match a.expected() {
            Expected::Any => true,
            Expected::NoStream => actual.is_none(),
            Expected::StreamExists => actual.is_some(),
            Expected::Exact => actual == Some(a.exact),
        };
        if !met {
            return Err(Refusal::WrongExpectedRevision { actual });
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain).update(&(a.stream.len() as u32).to_le_bytes());
        hasher.update(a.stream.as_bytes());
        let first = self.events.len();
        for (i, event) in a.events.iter().enumerate() {
            let mut position = stamp | u64::from(PARTITION);
            // Position 0 and what shares its step are no event's: 0 says "none".
            while position >> 10 <= self.last_position.max(self.closed) >> 10 {
                position += 1 << 10;
            }
            self.last_position = position;
            let revision = actual.map_or(0, |r| r + 1) + i as u64;
            hasher.update(&revision.to_le_bytes()).update(&position.to_le_bytes());
            hasher.update(&event.id).update(&event.content_hash);
            let stream = a.stream.clone();
            self.events.push(Stored { stream, revision, position, event: event.clone() });
        }
        self.chain = hasher.finalize().into();
        let (first, last) = (&self.events[first], self.events.last().unwrap());
        Ok(Appended {
            first_revision: first.revision,
            last_revision: last.revision,
            first_position: first.position,
            last_position: last.position,
        })
    }
}

// Random entries.

#[derive(Debug, Clone)]
enum Op {
    New {
        stream: usize,
        events: Vec<(u8, u8)>,
        expected: i32,
        exact: u64,
        chained: bool,
    },
    /// A part of an append that came before, sent again.
    Retry {
        which: prop::sample::Index,
        from: usize,
        expected: i32,
        chained: bool,
    },
    Close(u64),
}

const STREAMS: [&str; 4] = ["a-1", "a", "last-1", "\u{10ffff}-x"];
const DATA: [&str; 6] = [
    r#"{"a":1}"#,
    r#"{"a":null,"b":{"c":[1,2.5]}}"#,
    r#"{"b":{"d":"0123456789 0123456789 0123456789"}}"#,
    r#"{"c":"0123456789 0123456789 0123456789"}"#,
    "not json",
    "[]",
];

fn op() -> impl Strategy<Value = Op> {
    let events = prop::collection::btree_set(0u8..60, 1..4).prop_flat_map(|ids| {
        let n = ids.len();
        let ids: Vec<_> = ids.into_iter().collect();
        (Just(ids).prop_shuffle(), prop::collection::vec(0u8..40, n))
            .prop_map(|(ids, data)| ids.into_iter().zip(data).collect())
    });
    let expected = prop_oneof![3 => Just(0), 1 => 1i32..3, 3 => Just(3)];
    prop_oneof![
        8 => (0..STREAMS.len(), events, expected.clone(), 0u64..4, any::<bool>()).prop_map(
            |(stream, events, expected, exact, chained)| Op::New { stream, events, expected, exact, chained }
        ),
        4 => (any::<prop::sample::Index>(), 0usize..2, expected, any::<bool>())
            .prop_map(|(which, from, expected, chained)| Op::Retry { which, from, expected, chained }),
        1 => (0u64..50_000).prop_map(Op::Close),
    ]
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0u64..50, prop::collection::vec(op(), 0..8));
    (prop::collection::vec(entry, 1..12), 1u32..5, prop_oneof![Just(0u32), 40u32..120]).prop_map(
        |(entries, snapshot_every, max_state_bytes)| {
            let mut history: Vec<Append> = Vec::new();
            entries
                .into_iter()
                .map(|(stamp, ops)| Entry {
                    stamp: stamp << 10,
                    snapshot_every,
                    max_state_bytes,
                    commands: ops.into_iter().map(|op| build(op, &mut history)).collect(),
                })
                .collect()
        },
    )
}

fn build(op: Op, history: &mut Vec<Append>) -> Command {
    let (append, new) = match op {
        Op::Close(position) => {
            return Command { command: Some(Kind::Close(Close { position })) };
        }
        Op::Retry { which, from, expected, chained } if !history.is_empty() => {
            let mut again = which.get(history).clone();
            again.events.drain(..from.min(again.events.len() - 1));
            (Append { expected, chained, ..again }, false)
        }
        Op::Retry { .. } => (
            Append { stream: "a-1".into(), events: vec![event(99, "{}")], ..Default::default() },
            true,
        ),
        Op::New { stream, events, expected, exact, chained } => {
            let events = events
                .iter()
                .map(|(id, data)| event(u128::from(*id), DATA[*data as usize % 6]))
                .collect();
            (Append { stream: STREAMS[stream].into(), events, expected, exact, chained }, true)
        }
    };
    if new {
        history.push(append.clone());
    }
    command(append)
}

// Running and comparing.

/// A store that can be told to flush or fail at a write.
struct Faulty {
    inner: SharedStore,
    /// Writes until it flushes by itself, and until it fails.
    flush_in: Mutex<usize>,
    fail_in: Mutex<usize>,
}

fn due(counter: &Mutex<usize>) -> bool {
    let mut n = counter.lock();
    *n = n.wrapping_sub(1);
    *n == 0
}

impl Store for Faulty {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(key)
    }
    fn get_cached(&self, key: &[u8]) -> Result<crate::partition::store::Cached, StoreError> {
        self.inner.get_cached(key)
    }
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.scan(from, to, order, visit)
    }
    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        if due(&self.fail_in) {
            return Err(StoreError::new(self.path(), "written", "crash"));
        }
        self.inner.write(batch)?;
        if due(&self.flush_in) {
            self.inner.flush()?;
        }
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }
    fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        self.inner.checkpoint(path)
    }
    fn checkpoint_mark(&self, path: &Path) -> Result<AppliedMark, StoreError> {
        self.inner.checkpoint_mark(path)
    }
    fn unflushed_bytes(&self) -> u64 {
        self.inner.unflushed_bytes()
    }
}

fn content(store: &dyn Store) -> Vec<(Bytes, Bytes)> {
    let mut all = Vec::new();
    store
        .scan(&[], &[0xff], Order::Ascending, &mut |k, v| {
            all.push((Bytes::copy_from_slice(k), Bytes::copy_from_slice(v)));
            true
        })
        .unwrap();
    all
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    batch_bytes: usize,
    heads_bytes: usize,
    faults: PlantedFaults,
}

fn limits() -> impl Strategy<Value = Limits> {
    (
        prop_oneof![1 => Just(BATCH_BYTES_MAX), 2 => 1usize..400],
        prop_oneof![Just(0), Just(2_000), Just(HEADS_BYTES_MAX)],
    )
        .prop_map(|(batch_bytes, heads_bytes)| Limits {
            batch_bytes,
            heads_bytes,
            faults: PlantedFaults::default(),
        })
}

fn machine(store: SharedStore, limits: Limits) -> PartitionMachine {
    let mut m = PartitionMachine::with_store(store, &genesis(), true).unwrap();
    m.batch_bytes_max = limits.batch_bytes;
    m.heads = Heads::new(limits.heads_bytes);
    m.plant(limits.faults);
    m
}

fn memory() -> SharedStore {
    MemoryDisk::default().open(Path::new("/p"), true).unwrap()
}

/// Without what a conflict names.
fn blurred(outcomes: Vec<CommandOutcome>) -> Vec<CommandOutcome> {
    let blur = |o| match o {
        CommandOutcome::Refused(Refusal::EventIdConflict { .. }) => {
            let id = uuid::Uuid::nil();
            CommandOutcome::Refused(Refusal::EventIdConflict { id, revision: 0 })
        }
        other => other,
    };
    outcomes.into_iter().map(blur).collect()
}

/// Everything that the database says against what the model knows.
fn compare(m: &PartitionMachine, model: &Model, entries: &[Entry]) -> Result<(), TestCaseError> {
    let reader = m.reader();
    let mark = reader.mark().unwrap();
    prop_assert_eq!(mark.index, entries.len() as u64);
    prop_assert_eq!(mark.chain, model.chain);
    prop_assert_eq!(mark.events, model.events.len() as u64);
    prop_assert_eq!(mark.last_position, model.last_position);
    let state_bytes_max = match entries[0].max_state_bytes {
        0 => STATE_BYTES_MAX,
        n => n as usize,
    };
    let listed: Vec<_> = reader.streams("", "", "", usize::MAX, usize::MAX).unwrap();
    let mut names: Vec<_> = model.events.iter().map(|e| e.stream.clone()).collect();
    names.sort();
    names.dedup();
    prop_assert_eq!(
        listed.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    for (name, record) in listed {
        let all: Vec<_> = model.of(&name).collect();
        let page = reader.events(&name, None, false, usize::MAX, usize::MAX).unwrap();
        prop_assert_eq!(page.events.len(), all.len());
        for ((revision, e), s) in page.events.iter().zip(&all) {
            prop_assert_eq!((*revision, e.position), (s.revision, s.position));
            prop_assert_eq!(e.recorded_at_ms as u64, position::unix_ms(e.position));
            prop_assert_eq!(
                (&e.id, &e.data, &e.r#type),
                (&s.event.id, &s.event.data, &s.event.r#type)
            );
        }
        let reducer = if name.starts_with("last-") { Reducer::Last } else { Reducer::MergePatch };
        let events: Vec<_> =
            all.iter().map(|s| (s.event.content_type.clone(), s.event.data.clone())).collect();
        let naive = naive_fold(reducer, &events, state_bytes_max);
        prop_assert_eq!(record.revision, all.len() as u64 - 1);
        prop_assert_eq!(record.position, all[all.len() - 1].position);
        prop_assert_eq!(&record.state[..], &naive.state[..]);
        prop_assert_eq!(&record.content_type, &naive.content_type);
        prop_assert_eq!(
            (!record.error_message.is_empty()).then_some(record.error_revision),
            naive.error
        );
        for revision in 0..=record.revision {
            let key = keys::owned(|k| keys::snapshot(k, keys::stream_hash(&name), &name, revision));
            let snapshot = reader.store().get(&key).unwrap();
            let naive = naive_fold(reducer, &events[..=revision as usize], state_bytes_max);
            let kept = (revision + 1) % u64::from(entries[0].snapshot_every) == 0
                && reducer == Reducer::MergePatch
                && naive.error.is_none();
            prop_assert_eq!(snapshot.is_some(), kept);
            if let Some(snapshot) = snapshot {
                let snapshot: SnapshotRecord = decode_value(snapshot).unwrap();
                prop_assert_eq!(&snapshot.state[..], &naive.state[..]);
            }
        }
    }
    // All events in the order of their positions, through the index.
    let mut indexed = Vec::new();
    let tag = keys::tag::POSITIONS;
    reader
        .store()
        .scan(&[tag], &[tag + 1], Order::Ascending, &mut |k, v| {
            let mut first = [0; 8];
            first.copy_from_slice(&k[1..]);
            let record: PositionsRecord = decode_value(Bytes::copy_from_slice(v)).unwrap();
            for run in record.runs {
                for i in 0..run.events {
                    let position =
                        u64::from_be_bytes(first) + (run.first_step + i) * position::STEP;
                    indexed.push((position, run.stream.clone(), run.first_revision + i));
                }
            }
            true
        })
        .unwrap();
    let expected: Vec<_> =
        model.events.iter().map(|e| (e.position, e.stream.clone(), e.revision)).collect();
    prop_assert_eq!(indexed, expected);
    Ok(())
}

fn apply_is_the_model(entries: &[Entry], limits: Limits) -> Result<(), TestCaseError> {
    let mut m = machine(memory(), limits);
    let mut model = Model::default();
    for (i, entry) in entries.iter().enumerate() {
        let outcomes = m.apply(i as u64 + 1, 1, encode(entry)).unwrap();
        prop_assert_eq!(blurred(outcomes), blurred(model.apply(entry)), "entry {}", i + 1);
    }
    compare(&m, &model, entries)
}

/// Crashes at each of `crashes` (writes until a flush, further writes until the crash), replays from
/// what was flushed, and ends with the content of a run without crashes.
fn a_replay_is_the_first_run(
    entries: &[Entry],
    limits: Limits,
    crashes: &[(usize, usize)],
) -> Result<(), TestCaseError> {
    let disk = MemoryDisk::default();
    let path = Path::new("/p");
    let whole = machine_after(entries, Limits { faults: PlantedFaults::default(), ..limits });
    let mut crashes = crashes.iter();
    loop {
        let (flush_in, fail_after) = crashes.next().copied().unwrap_or((0, 0));
        let fail_in = if fail_after == 0 { 0 } else { flush_in + fail_after };
        let inner: SharedStore = disk.open(path, true).unwrap();
        // Created and durable before faults begin.
        drop(machine(inner.clone(), limits));
        let (flush_in, fail_in) = (Mutex::new(flush_in), Mutex::new(fail_in));
        let mut m = machine(Arc::new(Faulty { inner, flush_in, fail_in }), limits);
        let next = m.applied().0;
        let crashed = entries
            .iter()
            .enumerate()
            .skip(next as usize)
            .any(|(i, entry)| m.apply(i as u64 + 1, 1, encode(entry)).is_err());
        if !crashed {
            prop_assert_eq!(content(&*m.store), content(&*whole.store));
            return Ok(());
        }
        prop_assert!(
            m.apply(m.mark.index + 1, 1, encode(&entries[0])).is_err(),
            "goes on after an error"
        );
        disk.crash();
    }
}

fn machine_after(entries: &[Entry], limits: Limits) -> PartitionMachine {
    let mut m = machine(memory(), limits);
    for (i, entry) in entries.iter().enumerate() {
        m.apply(i as u64 + 1, 1, encode(entry)).unwrap();
    }
    m
}

fn crashes() -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((1usize..10, 1usize..4), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn apply_does_what_the_naive_model_does(entries in entries(), limits in limits()) {
        apply_is_the_model(&entries, limits)?;
    }

    #[test]
    fn a_replay_after_crashes_at_any_write_ends_with_the_same_bytes(
        entries in entries(), limits in limits(), crashes in crashes()
    ) {
        a_replay_is_the_first_run(&entries, limits, &crashes)?;
    }

    #[test]
    fn what_is_cached_makes_no_difference(entries in entries(), limits in limits()) {
        let cold = machine_after(&entries, Limits { heads_bytes: 0, ..limits });
        let hot = machine_after(&entries, Limits { heads_bytes: HEADS_BYTES_MAX, ..limits });
        prop_assert_eq!(content(&*cold.store), content(&*hot.store));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn rocksdb_and_memory_end_with_the_same_bytes(
        entries in entries(), limits in limits(), reopen_at in 0usize..12
    ) {
        let dir = tempfile::tempdir().unwrap();
        let resources = SharedResources::new(8 << 20, 2);
        let path = dir.path().join("1.0");
        let open = || machine(open_rocks(&path, &resources, true).unwrap(), limits);
        let mut rocks = open();
        let mut memory = machine(memory(), limits);
        for (i, entry) in entries.iter().enumerate() {
            if i == reopen_at {
                drop(rocks);
                rocks = open();
                prop_assert_eq!(rocks.applied(), memory.applied());
            }
            let index = i as u64 + 1;
            prop_assert_eq!(rocks.apply(index, 1, encode(entry)), memory.apply(index, 1, encode(entry)));
        }
        prop_assert_eq!(content(&*rocks.store), content(&*memory.store));
    }
}

/// Proves the properties above: each planted fault breaks one within a few hundred cases.
fn finds(faults: PlantedFaults) -> bool {
    let config = Config { cases: 1_000, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&(entries(), limits(), crashes()), |(entries, limits, crashes)| {
            let limits = Limits { faults, ..limits };
            apply_is_the_model(&entries, limits)?;
            a_replay_is_the_first_run(&entries, limits, &crashes)
        })
        .is_err()
}

#[test]
fn planted_faults_are_found() {
    let none = PlantedFaults::default();
    assert!(!finds(none));
    assert!(finds(PlantedFaults { revision_before_ids: true, ..none }));
    assert!(finds(PlantedFaults { entry_ids_forgotten: true, ..none }));
    assert!(finds(PlantedFaults { commands_done_forgotten: true, ..none }));
}

// Single cases, to read.

fn apply_one(
    m: &mut PartitionMachine,
    commands: Vec<Command>,
) -> Result<Vec<CommandOutcome>, String> {
    let (index, ..) = m.applied();
    m.apply(index + 1, 1, encode(&Entry { commands, ..Default::default() }))
}

#[test]
fn a_retry_is_answered_as_the_first_time_whatever_it_expects() {
    let mut m = machine_after(&[], LIMITS);
    let first = |expected: Expected| {
        let mut c = append("a-1", [event(1, "{}"), event(2, "{}")]);
        if let Some(Kind::Append(a)) = &mut c.command {
            a.expected = expected.into();
        }
        c
    };
    let out =
        apply_one(&mut m, vec![first(Expected::NoStream), first(Expected::NoStream)]).unwrap();
    assert!(matches!(
        out[0],
        CommandOutcome::Appended(Appended { first_revision: 0, last_revision: 1, .. })
    ));
    assert_eq!(out[0], out[1]);
    let again = apply_one(&mut m, vec![append("a-1", [event(3, "{}")]), first(Expected::NoStream)])
        .unwrap();
    assert_eq!(again[1], out[0]);
}

#[test]
fn ids_that_overlap_otherwise_are_a_conflict_that_names_them() {
    let mut m = machine_after(&[], LIMITS);
    apply_one(&mut m, vec![append("a-1", [event(1, "{}"), event(2, "{}"), event(3, "{}")])])
        .unwrap();
    let cases = [
        (vec![event(2, "{\"other\":1}")], 2, 1),
        (vec![event(1, "{}"), event(9, "{}")], 1, 0),
        (vec![event(9, "{}"), event(3, "{}")], 3, 2),
        (vec![event(2, "{}"), event(1, "{}")], 1, 0),
        (vec![event(1, "{}"), event(3, "{}")], 3, 2),
        (vec![event(7, "{}"), event(7, "{}")], 7, 3),
    ];
    for (events, id, revision) in cases {
        let out = apply_one(&mut m, vec![append("a-1", events.clone())]).unwrap();
        let id = uuid::Uuid::from_u128(id);
        assert_eq!(
            out,
            [CommandOutcome::Refused(Refusal::EventIdConflict { id, revision })],
            "{events:?}"
        );
    }
    // Another stream has ids of its own.
    let out = apply_one(&mut m, vec![append("a-2", [event(1, "{\"x\":1}")])]).unwrap();
    assert!(matches!(out[0], CommandOutcome::Appended(_)));
}

#[test]
fn a_chain_that_broke_stays_broken_until_an_append_that_is_not_chained() {
    let mut m = machine_after(&[], LIMITS);
    let link = |id, chained, exact| {
        command(Append {
            stream: "a-1".into(),
            events: vec![event(id, "{}")],
            expected: if exact { Expected::Exact.into() } else { 0 },
            exact: 99,
            chained,
        })
    };
    apply_one(&mut m, vec![link(1, false, false)]).unwrap();
    let commands = vec![
        link(2, true, true),
        link(1, true, false),
        link(3, true, false),
        link(4, false, false),
    ];
    let out = apply_one(&mut m, commands).unwrap();
    let actual = Some(0);
    assert_eq!(out[0], CommandOutcome::Refused(Refusal::WrongExpectedRevision { actual }));
    // Stored before: answered again, but it mends nothing.
    assert!(matches!(out[1], CommandOutcome::Appended(_)));
    assert_eq!(out[2], CommandOutcome::Refused(Refusal::EarlierAppendFailed));
    assert!(matches!(out[3], CommandOutcome::Appended(Appended { first_revision: 1, .. })));
}

#[test]
fn a_tombstone_refuses_appends_but_not_their_retries() {
    let store = memory();
    let mut m = machine(store.clone(), LIMITS);
    apply_one(&mut m, vec![append("a-1", [event(1, "{}")])]).unwrap();
    let mut record = m.reader().stream("a-1").unwrap().unwrap();
    record.tombstone = true;
    let mut batch = Batch::default();
    put(&mut batch, &keys::owned(|k| keys::stream(k, keys::stream_hash("a-1"), "a-1")), &record);
    store.write(&batch).unwrap();
    let mut m = machine(store, LIMITS);
    let out =
        apply_one(&mut m, vec![append("a-1", [event(2, "{}")]), append("a-1", [event(1, "{}")])])
            .unwrap();
    assert_eq!(out[0], CommandOutcome::Refused(Refusal::Tombstoned));
    assert!(matches!(out[1], CommandOutcome::Appended(_)));
    assert!(m.reader().streams("", "", "", 9, 9).unwrap().is_empty());
}

#[test]
fn a_new_generation_is_for_new_streams_and_survives() {
    let store = memory();
    let mut m = machine(store.clone(), LIMITS);
    let activate = |category: &str, reducer, generation| Command {
        command: Some(Kind::Activate(Activate { category: category.into(), reducer, generation })),
    };
    apply_one(&mut m, vec![append("a-1", [event(1, r#"{"a":1}"#)]), activate("a", 1, 2)]).unwrap();
    let mut m = machine(store, LIMITS);
    let patch = |id| event(id, r#"{"b":2}"#);
    apply_one(
        &mut m,
        vec![append("a-1", [patch(2)]), append("a-2", [patch(3)]), append("b-1", [patch(4)])],
    )
    .unwrap();
    let of = |name| {
        let r = m.reader().stream(name).unwrap().unwrap();
        (r.reducer, r.generation, String::from_utf8(r.state.to_vec()).unwrap())
    };
    assert_eq!(of("a-1"), (2, 1, r#"{"a":1,"b":2}"#.into()));
    assert_eq!(of("a-2"), (1, 2, r#"{"b":2}"#.into()));
    assert_eq!(of("b-1"), (2, 1, r#"{"b":2}"#.into()));
}

const LIMITS: Limits = Limits {
    batch_bytes: BATCH_BYTES_MAX,
    heads_bytes: HEADS_BYTES_MAX,
    faults: PlantedFaults {
        revision_before_ids: false,
        entry_ids_forgotten: false,
        commands_done_forgotten: false,
    },
};

#[test]
fn what_this_version_does_not_know_stops_the_machine_and_changes_nothing() {
    let of = |command| {
        encode(&Entry {
            commands: vec![append("a-1", [event(1, "{}")]), Command { command }],
            ..Default::default()
        })
    };
    let mut bad_id = event(1, "{}");
    bad_id.id = Bytes::from_static(b"short");
    let with = |append: Command| encode(&Entry { commands: vec![append], ..Default::default() });
    let mut expectation = append("a-1", [event(1, "{}")]);
    if let Some(Kind::Append(a)) = &mut expectation.command {
        a.expected = 9;
    }
    let cases: Vec<(Bytes, &str)> = vec![
        (Bytes::new(), "empty"),
        (Bytes::from_static(&[2]), "format 2"),
        (Bytes::from_static(&[1, 0xff, 0xff]), "damaged"),
        (of(None), "unknown"),
        (of(Some(Kind::Truncate(Truncate::default()))), "Truncate"),
        (of(Some(Kind::Delete(Delete::default()))), "Delete"),
        (of(Some(Kind::Cut(Cut::default()))), "Cut"),
        (of(Some(Kind::Activate(Activate { reducer: 9, ..Default::default() }))), "reducer 9"),
        (of(Some(Kind::Close(Close { position: u64::MAX }))), "closed position"),
        (with(append("", [event(1, "{}")])), "malformed stream name"),
        (with(append("a\0b", [event(1, "{}")])), "malformed stream name"),
        (with(append(&"a".repeat(1_025), [event(1, "{}")])), "malformed stream name"),
        (with(append("a-1", [])), "without events"),
        (with(append("a-1", [bad_id])), "malformed id"),
        (with(expectation), "expectation 9"),
        (
            encode(&Entry {
                stamp: position::MAX,
                commands: vec![append("a-1", [event(1, "{}"), event(2, "{}")])],
                ..Default::default()
            }),
            "used up",
        ),
    ];
    for (data, reason) in cases {
        let mut m = machine(memory(), LIMITS);
        let before = content(&*m.store);
        let e = m.apply(1, 1, data).unwrap_err();
        assert!(e.contains(reason), "{reason}: {e}");
        assert_eq!(content(&*m.store), before, "{reason}");
        assert!(m.skip(1, 1, None).unwrap_err().contains(reason));
    }
}

#[test]
fn a_database_is_created_durably_and_only_where_that_was_said() {
    let disk = MemoryDisk::default();
    let path = Path::new("/p");
    let open = |create, genesis: &Genesis| {
        let store = disk.open(path, true).unwrap();
        PartitionMachine::with_store(store, genesis, create)
    };
    let e = open(false, &genesis()).err().unwrap();
    assert!(e.reason.contains("not a partition's database"), "{e}");
    let mut m = open(true, &genesis()).unwrap();
    apply_one(&mut m, vec![append("last-1", [event(1, "1")])]).unwrap();
    disk.crash();
    // A start knows the partition alone: the reducers are those of the creation.
    let known = Genesis { partition: PARTITION, ..Default::default() };
    let mut m = open(false, &known).unwrap();
    assert_eq!(m.applied(), (0, 0, 0));
    apply_one(&mut m, vec![append("last-1", [event(1, "1")])]).unwrap();
    assert_eq!(m.reader().stream("last-1").unwrap().unwrap().reducer, 1);
    m.reader().flush().unwrap();
    disk.crash();
    assert_eq!(open(false, &known).unwrap().applied().0, 1);
    // Its first records lost, others not: never created over them.
    let mut batch = Batch::default();
    batch.delete(keys::GENESIS);
    disk.open(path, false).unwrap().write(&batch).unwrap();
    assert!(open(true, &genesis()).err().unwrap().reason.contains("lost its records"));
}

#[test]
fn entries_come_in_order_without_a_gap() {
    let mut m = machine(memory(), LIMITS);
    assert!(
        m.apply(2, 1, encode(&Entry::default())).unwrap_err().contains("entry 1 is the next one")
    );
    let mut m = machine(memory(), LIMITS);
    m.skip(1, 1, None).unwrap();
    assert!(m.skip(1, 1, None).is_err());
}

#[test]
fn the_content_of_a_database_never_changes_its_format() {
    // Changed only together with a new format byte: replicas of two versions hold the same bytes.
    let mut m = machine(memory(), LIMITS);
    let commands = vec![
        append("customer-1", [event(1, r#"{"name":"Ada","age":36}"#), event(2, r#"{"age":null}"#)]),
        append("last-1", [event(3, "text")]),
    ];
    let entry = Entry { stamp: 5 << 21, snapshot_every: 2, max_state_bytes: 1_000, commands };
    m.apply(1, 1, encode(&entry)).unwrap();
    m.skip(2, 1, Some(b"membership")).unwrap();
    let mut hasher = blake3::Hasher::new();
    for (key, value) in content(&*m.store) {
        hasher.update(&(key.len() as u32).to_le_bytes()).update(&key);
        hasher.update(&(value.len() as u32).to_le_bytes()).update(&value);
    }
    assert_eq!(
        hasher.finalize().to_hex().as_str(),
        "cd753268ae38860a046ef25923faf59d037424b3332b8172f4b18c03a2170edc"
    );
}
