//! What must hold of a history and the log read at its end, in near-linear time.
//!
//! The final log is the reference. Everything that a client saw must be explained by it: an append
//! took effect at its place in the log, between its invocation and its answer; a read or a lookup
//! saw a prefix of the log, and (unless it is stale) one that holds everything which anybody had
//! seen or had acknowledged before it began. What only stale answers had shown does not bind answers
//! under a lease: a follower may have applied an entry before its leader.
mod answers;
mod appends;
mod bounds;
mod order;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use self::answers::{check_lookups, check_read};
use self::appends::{check_group, check_times_of_append, groups_of};
use self::bounds::{Bounds, floors_of};
use self::order::{Placed, check_pipelines, check_positions};
use crate::fold::Reducer;
use crate::history::{Append, EventId, FinalLog, History, Lookup, Read, SeenEvent};

/// Violations reported of each kind; the first ones say enough.
const VIOLATIONS_OF_A_KIND_MAX: usize = 5;
/// Bits of a position that name the partition.
const PARTITION_MASK: u64 = (1 << 10) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An acknowledged event is not in the log.
    Lost,
    /// An event is there twice.
    Doubled,
    /// Revisions are not 0, 1, 2, ...
    Gap,
    /// An event that nobody appended.
    Phantom,
    /// An event with other content than was appended.
    Altered,
    /// Some events of an append are there, not all, or not side by side.
    Torn,
    /// An append is elsewhere than its answer said.
    WrongRevision,
    WrongPosition,
    WrongPartition,
    /// Positions do not rise along the stream, or one is used twice.
    PositionOrder,
    /// An append that was only ever refused is in the log.
    RefusedYetStored,
    /// A retry of an append acknowledged before was refused.
    RetryRefused,
    /// WRONG_EXPECTED_REVISION although no moment of the call allowed it.
    RefusedWithoutCause,
    /// Stored although the expected revision was another.
    ExpectedNotMet,
    /// An append is before what was seen or acknowledged before it was invoked.
    RealTimeOrder,
    /// Appends of one pipeline are not in the order in which they were sent.
    PipelineOrder,
    /// An append's position is not above the one it was to follow.
    CausalOrder,
    /// A read's page has gaps, or other events than the log.
    WrongPage,
    /// A read or lookup saw what was invoked only after it had ended.
    Future,
    /// A linearizable or lease answer lacks what was seen or acknowledged before it began.
    Stale,
    /// An answer lacks events up to the position that was asked for.
    BelowMinPosition,
    /// A state is not the fold of the events up to its revision.
    WrongState,
    /// A revision that the log does not have.
    BeyondLog,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub stream: Arc<str>,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {}: {}", self.kind, self.stream, self.detail)
    }
}

/// Which reducer folds a category; all others are merge-patch.
#[derive(Clone, Debug, Default)]
pub struct Reducers {
    pub last: BTreeSet<String>,
}

impl Reducers {
    pub fn of(&self, stream: &str) -> Reducer {
        let category = stream.split('-').next().unwrap_or_default();
        if self.last.contains(category) { Reducer::Last } else { Reducer::MergePatch }
    }
}

/// Checks all; an empty answer means that it holds.
pub fn check(history: &History, log: &FinalLog, reducers: &Reducers) -> Vec<Violation> {
    let mut found = Found::default();
    let mut streams: BTreeMap<&Arc<str>, Ops<'_>> = BTreeMap::new();
    for a in &history.appends {
        streams.entry(&a.stream).or_default().appends.push(a);
    }
    for r in &history.reads {
        streams.entry(&r.stream).or_default().reads.push(r);
    }
    for l in &history.lookups {
        streams.entry(&l.stream).or_default().lookups.push(l);
    }
    for stream in log.streams.keys() {
        streams.entry(stream).or_default();
    }
    let mut placed = Vec::new();
    for (stream, ops) in &streams {
        let events = log.streams.get(*stream).map_or(&[][..], Vec::as_slice);
        check_stream(stream, ops, events, reducers.of(stream), &mut found, &mut placed);
    }
    check_positions(placed, &mut found);
    check_pipelines(history, log, &mut found);
    found.violations
}

/// Checks, and fails the test with what was found.
pub fn assert_holds(history: &History, log: &FinalLog, reducers: &Reducers) {
    let violations = check(history, log, reducers);
    eprintln!("history: {}", history.summary());
    assert!(
        violations.is_empty(),
        "the history does not hold:\n{}",
        violations.iter().map(|v| format!("  {v}\n")).collect::<String>()
    );
}

#[derive(Default)]
struct Found {
    violations: Vec<Violation>,
}

impl Found {
    fn add(&mut self, kind: Kind, stream: &Arc<str>, detail: impl FnOnce() -> String) {
        let known = self.violations.iter().filter(|v| v.kind == kind).count();
        if known < VIOLATIONS_OF_A_KIND_MAX {
            self.violations.push(Violation { kind, stream: stream.clone(), detail: detail() });
        }
    }
}

#[derive(Default)]
struct Ops<'a> {
    appends: Vec<&'a Append>,
    reads: Vec<&'a Read>,
    lookups: Vec<&'a Lookup>,
}

fn check_stream(
    stream: &Arc<str>,
    ops: &Ops<'_>,
    log: &[SeenEvent],
    reducer: Reducer,
    found: &mut Found,
    placed: &mut Vec<Placed>,
) {
    let mut revision_of: HashMap<EventId, u64> = HashMap::with_capacity(log.len());
    for (i, e) in log.iter().enumerate() {
        if e.revision != i as u64 {
            found.add(Kind::Gap, stream, || {
                format!("event {i} of the log has revision {}", e.revision)
            });
        }
        if let Some(first) = revision_of.insert(e.id, i as u64) {
            found.add(Kind::Doubled, stream, || format!("{:032x} is at {first} and at {i}", e.id));
            revision_of.insert(e.id, first);
        }
    }
    for (i, pair) in log.windows(2).enumerate() {
        if pair[0].position >= pair[1].position {
            found.add(Kind::PositionOrder, stream, || {
                format!(
                    "revision {i} has position {}, the next one {}",
                    pair[0].position, pair[1].position
                )
            });
        }
        if (pair[0].position ^ pair[1].position) & PARTITION_MASK != 0 {
            found.add(Kind::WrongPartition, stream, || {
                format!("revisions {i} and {} are of two partitions", i + 1)
            });
        }
    }

    let groups = groups_of(&ops.appends);
    let mut group_at: Vec<Option<usize>> = vec![None; log.len()];
    for (g, group) in groups.iter().enumerate() {
        check_group(stream, group, log, &revision_of, found);
        for e in group.attempts[0].events.iter() {
            if let Some(&r) = revision_of.get(&e.id) {
                if log[r as usize].data == e.data {
                    group_at[r as usize] = Some(g);
                } else if group_at[r as usize].is_none() {
                    found.add(Kind::Altered, stream, || {
                        format!("revision {r} has other data than was appended")
                    });
                    group_at[r as usize] = Some(g);
                }
            }
        }
    }
    let mut latest = 0;
    let mut latest_start_ns = Vec::with_capacity(log.len());
    for (i, e) in log.iter().enumerate() {
        let group = group_at[i].map(|g| &groups[g]);
        if group.is_none() && revision_of.get(&e.id) == Some(&(i as u64)) {
            found.add(Kind::Phantom, stream, || format!("{:032x} at {i} was never appended", e.id));
        }
        let start_ns = group.map_or(0, |g| g.start_ns);
        latest = latest.max(start_ns);
        latest_start_ns.push(latest);
        placed.push(Placed {
            stream: stream.clone(),
            revision: i as u64,
            position: e.position,
            start_ns,
            acknowledged_ns: group.and_then(|g| g.acknowledged_ns),
        });
    }

    let bounds = Bounds {
        floors: floors_of(ops, true),
        floors_of_fresh: floors_of(ops, false),
        latest_start_ns,
    };
    for group in &groups {
        check_times_of_append(stream, group, &bounds, &revision_of, found);
    }
    for r in &ops.reads {
        check_read(stream, r, log, &bounds, found);
    }
    check_lookups(stream, &ops.lookups, log, &bounds, reducer, found);
}
