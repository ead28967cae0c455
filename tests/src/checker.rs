//! What must hold of a history and the log read at its end, in near-linear time.
//!
//! The final log is the reference. Everything that a client saw must be explained by it: an append
//! took effect at its place in the log, between its invocation and its answer; a read or a lookup
//! saw a prefix of the log, and (unless it is stale) one that holds everything which anybody had
//! seen or had acknowledged before it began. What only stale answers had shown does not bind answers
//! under a lease: a follower may have applied an entry before its leader.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use crate::fold::{Fold, Reducer};
use crate::history::{
    Append, AppendOutcome, Consistency, EventId, Expected, FinalLog, History, Lookup,
    LookupOutcome, Read, SeenEvent, Span,
};

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

/// All attempts of one append: they share their events.
struct Group<'a> {
    attempts: Vec<&'a Append>,
    /// First invocation; nothing of it can have been seen before.
    start_ns: u64,
    /// First acknowledgement, if any.
    acknowledged_ns: Option<u64>,
}

/// An event of the log with the times of its append.
struct Placed {
    stream: Arc<str>,
    revision: u64,
    position: u64,
    start_ns: u64,
    acknowledged_ns: Option<u64>,
}

/// What is known of a stream's length over time.
struct Bounds {
    /// (end of an observation, greatest length observed up to then), by end.
    floors: Vec<(u64, u64)>,
    /// The same without what stale answers showed.
    floors_of_fresh: Vec<(u64, u64)>,
    /// By revision: the latest invocation among the events up to it.
    latest_start_ns: Vec<u64>,
}

impl Bounds {
    /// The least length that a linearizable answer begun at `start_ns` may show.
    fn least(&self, start_ns: u64) -> u64 {
        self.least_of(Consistency::Linearizable, start_ns)
    }

    /// The least length that an answer begun at `start_ns` may show.
    fn least_of(&self, consistency: Consistency, start_ns: u64) -> u64 {
        let floors = match consistency {
            Consistency::Linearizable => &self.floors,
            Consistency::Lease => &self.floors_of_fresh,
            Consistency::Stale => return 0,
        };
        let i = floors.partition_point(|(end, _)| *end < start_ns);
        if i == 0 { 0 } else { floors[i - 1].1 }
    }

    /// When somebody was first shown so many events.
    fn seen_first_ns(&self, length: u64) -> u64 {
        self.floors.iter().find(|(_, l)| *l >= length).map_or(0, |(end, _)| *end)
    }

    /// The greatest length that an answer given at `end_ns` may show.
    fn greatest(&self, end_ns: u64) -> u64 {
        self.latest_start_ns.partition_point(|s| *s <= end_ns) as u64
    }
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

fn groups_of<'a>(appends: &[&'a Append]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut by_first: HashMap<EventId, Vec<usize>> = HashMap::new();
    for a in appends {
        let Some(first) = a.events.first() else {
            continue;
        };
        let same = by_first.entry(first.id).or_default();
        let known = same.iter().copied().find(|g| groups[*g].attempts[0].events == a.events);
        let g = known.unwrap_or_else(|| {
            groups.push(Group { attempts: Vec::new(), start_ns: u64::MAX, acknowledged_ns: None });
            same.push(groups.len() - 1);
            groups.len() - 1
        });
        let group = &mut groups[g];
        group.attempts.push(a);
        group.start_ns = group.start_ns.min(a.span.start_ns);
        if matches!(a.outcome, AppendOutcome::Acknowledged { .. }) {
            let end = a.span.end_ns;
            group.acknowledged_ns = Some(group.acknowledged_ns.map_or(end, |e| e.min(end)));
        }
    }
    groups
}

fn check_group(
    stream: &Arc<str>,
    group: &Group<'_>,
    log: &[SeenEvent],
    revision_of: &HashMap<EventId, u64>,
    found: &mut Found,
) {
    let events = &group.attempts[0].events;
    let revisions: Vec<Option<u64>> =
        events.iter().map(|e| revision_of.get(&e.id).copied()).collect();
    let stored = revisions.iter().flatten().count();
    if stored > 0 {
        let whole = revisions.windows(2).all(|p| match (p[0], p[1]) {
            (Some(a), Some(b)) => b == a + 1,
            _ => false,
        });
        if stored < events.len() || !whole {
            found.add(Kind::Torn, stream, || format!("an append's events are at {revisions:?}"));
        }
    }
    for a in &group.attempts {
        check_attempt(stream, a, &revisions, log, found);
    }
    let could_store =
        group.attempts.iter().any(|a| !matches!(a.outcome, AppendOutcome::Refused { .. }));
    if stored > 0 && !could_store {
        found.add(Kind::RefusedYetStored, stream, || {
            format!(
                "{:032x} is in the log, and its appends were all refused: {:?}",
                events[0].id, group.attempts[0].outcome
            )
        });
    }
    if let Some(first) = revisions[0] {
        let met = group.attempts.iter().any(|a| a.expected.met_by(first));
        if !met {
            found.add(Kind::ExpectedNotMet, stream, || {
                format!("revision {first} was appended with {:?}", group.attempts[0].expected)
            });
        }
    }
    if let Some(acknowledged_ns) = group.acknowledged_ns {
        for a in &group.attempts {
            if let AppendOutcome::Refused { reason, for_good: true, .. } = &a.outcome
                && a.span.start_ns > acknowledged_ns
            {
                found.add(Kind::RetryRefused, stream, || {
                    format!("{:032x}: {reason} although it was acknowledged before", events[0].id)
                });
            }
        }
    }
}

fn check_attempt(
    stream: &Arc<str>,
    a: &Append,
    revisions: &[Option<u64>],
    log: &[SeenEvent],
    found: &mut Found,
) {
    let AppendOutcome::Acknowledged {
        first_revision,
        last_revision,
        first_position,
        last_position,
        partition,
    } = a.outcome
    else {
        return;
    };
    for (e, revision) in a.events.iter().zip(revisions) {
        if revision.is_none() {
            found.add(Kind::Lost, stream, || {
                format!(
                    "{:032x}, acknowledged at {first_revision}..={last_revision}, is not in the log",
                    e.id
                )
            });
        }
    }
    let (Some(Some(first)), Some(Some(last))) = (revisions.first(), revisions.last()) else {
        return;
    };
    if (*first, *last) != (first_revision, last_revision) {
        found.add(Kind::WrongRevision, stream, || {
            format!(
                "answered {first_revision}..={last_revision}, the log has it at {first}..={last}"
            )
        });
    }
    let positions = (log[*first as usize].position, log[*last as usize].position);
    if positions != (first_position, last_position) {
        found.add(Kind::WrongPosition, stream, || {
            format!(
                "answered positions {:?}, the log has {positions:?}",
                (first_position, last_position)
            )
        });
    }
    if first_position & PARTITION_MASK != u64::from(partition) {
        found.add(Kind::WrongPartition, stream, || {
            format!("position {first_position} is not of partition {partition}")
        });
    }
    if first_position <= a.after_position && a.after_position > 0 {
        found.add(Kind::CausalOrder, stream, || {
            format!("position {first_position} was to be above {}", a.after_position)
        });
    }
}

impl Expected {
    /// Whether an append whose first event got this revision met the expectation.
    fn met_by(self, first_revision: u64) -> bool {
        match self {
            Expected::Any => true,
            Expected::NoStream => first_revision == 0,
            Expected::StreamExists => first_revision > 0,
            Expected::Exact(n) => first_revision == n + 1,
        }
    }
}

/// Everything that somebody was shown of the stream's length, as a running maximum by time.
fn floors_of(ops: &Ops<'_>, with_stale: bool) -> Vec<(u64, u64)> {
    let counts = |consistency| with_stale || consistency != Consistency::Stale;
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for a in &ops.appends {
        if let AppendOutcome::Acknowledged { last_revision, .. } = a.outcome {
            seen.push((a.span.end_ns, last_revision + 1));
        }
    }
    for r in ops.reads.iter().filter(|r| counts(r.consistency)) {
        if let Some(max) = r.seen.iter().flatten().map(|e| e.revision).max() {
            seen.push((r.span.end_ns, max + 1));
        }
    }
    for l in ops.lookups.iter().filter(|l| counts(l.consistency)) {
        if let LookupOutcome::State(s) = &l.outcome {
            seen.push((l.span.end_ns, s.revision + 1));
        }
    }
    seen.sort_unstable();
    let mut greatest = 0;
    for (_, length) in &mut seen {
        greatest = greatest.max(*length);
        *length = greatest;
    }
    seen
}

fn check_times_of_append(
    stream: &Arc<str>,
    group: &Group<'_>,
    bounds: &Bounds,
    revision_of: &HashMap<EventId, u64>,
    found: &mut Found,
) {
    if let Some(&first) = revision_of.get(&group.attempts[0].events[0].id) {
        let least = bounds.least(group.start_ns);
        if first < least {
            found.add(Kind::RealTimeOrder, stream, || {
                format!("revision {first} was invoked when {least} events had been seen")
            });
        }
    }
    for a in &group.attempts {
        let AppendOutcome::Refused { actual: Some(actual), .. } = &a.outcome else {
            continue;
        };
        let length = actual.map_or(0, |r| r + 1);
        let (least, greatest) = (bounds.least(a.span.start_ns), bounds.greatest(a.span.end_ns));
        if !(least..=greatest).contains(&length) || a.expected.met_by(length) {
            found.add(Kind::RefusedWithoutCause, stream, || {
                format!(
                    "expected {:?}, told of {length} events; there were {least} to {greatest}",
                    a.expected
                )
            });
        }
    }
}

/// Checks an answer that shows the first `length` events.
fn check_length(
    stream: &Arc<str>,
    what: &str,
    length: u64,
    consistency: Consistency,
    span: Span,
    bounds: &Bounds,
    found: &mut Found,
) {
    let greatest = bounds.greatest(span.end_ns);
    if length > bounds.latest_start_ns.len() as u64 {
        found.add(Kind::BeyondLog, stream, || format!("a {what} saw {length} events"));
    } else if length > greatest {
        found.add(Kind::Future, stream, || {
            format!("a {what} saw {length} events when only {greatest} had been invoked")
        });
    }
    let least = bounds.least_of(consistency, span.start_ns);
    if length < least {
        found.add(Kind::Stale, stream, || {
            let (start, end) = (span.start_ns / 1_000, span.end_ns / 1_000);
            let seen = bounds.seen_first_ns(least) / 1_000;
            format!(
                "a {consistency:?} {what} saw {length} events from {start} to {end} us; \
                 {least} had been seen at {seen} us"
            )
        });
    }
}

fn check_min_position(
    stream: &Arc<str>,
    what: &str,
    length: u64,
    min_position: u64,
    log: &[SeenEvent],
    found: &mut Found,
) {
    let wanted = log.partition_point(|e| e.position <= min_position) as u64;
    if min_position > 0 && length < wanted {
        found.add(Kind::BelowMinPosition, stream, || {
            format!(
                "a {what} saw {length} events; {wanted} are at or below position {min_position}"
            )
        });
    }
}

fn check_read(
    stream: &Arc<str>,
    read: &Read,
    log: &[SeenEvent],
    bounds: &Bounds,
    found: &mut Found,
) {
    let Some(seen) = &read.seen else { return };
    for e in seen {
        if log.get(e.revision as usize) != Some(e) {
            found.add(Kind::WrongPage, stream, || {
                format!("a read saw another event at {}", e.revision)
            });
        }
    }
    let step_ok = seen.windows(2).all(|p| {
        if read.backwards {
            p[1].revision + 1 == p[0].revision
        } else {
            p[1].revision == p[0].revision + 1
        }
    });
    let full = read.max_count > 0 && seen.len() as u64 >= read.max_count;
    let start_ok = match (seen.first(), read.backwards, read.from_revision) {
        (None, _, _) => true,
        (Some(e), false, from) => e.revision == from.unwrap_or(0),
        (Some(e), true, from) => from.is_none_or(|f| e.revision <= f),
    };
    // Backwards ends at the stream's first event.
    let end_ok = !read.backwards || full || seen.last().is_none_or(|e| e.revision == 0);
    let count_ok = read.max_count == 0 || seen.len() as u64 <= read.max_count;
    if !(step_ok && start_ok && end_ok && count_ok) {
        found.add(Kind::WrongPage, stream, || {
            format!(
                "from {:?}, backwards {}, max {}: saw {:?}",
                read.from_revision,
                read.backwards,
                read.max_count,
                seen.iter().map(|e| e.revision).collect::<Vec<_>>()
            )
        });
        return;
    }
    let greatest = seen.iter().map(|e| e.revision + 1).max();
    // How many events the answer says are there, where it says so.
    let length = match (greatest, read.backwards) {
        (Some(g), false) if !full => Some(g),
        (Some(g), true) if read.from_revision.is_none_or(|f| g <= f) => Some(g),
        (None, false) => Some(read.from_revision.unwrap_or(0)),
        (None, true) => Some(0),
        _ => None,
    };
    match length {
        Some(length) => {
            // An empty page forwards says "at most so many".
            if seen.is_empty() {
                let least = bounds.least_of(read.consistency, read.span.start_ns);
                if least > length {
                    found.add(Kind::Stale, stream, || {
                        format!("an empty read from {length} when {least} events had been seen")
                    });
                }
            } else {
                check_length(stream, "read", length, read.consistency, read.span, bounds, found);
            }
            check_min_position(stream, "read", length, read.min_position, log, found);
        }
        // It shows events without saying that they are all.
        None => check_length(
            stream,
            "read",
            greatest.unwrap_or(0),
            Consistency::Stale,
            read.span,
            bounds,
            found,
        ),
    }
}

fn check_lookups(
    stream: &Arc<str>,
    lookups: &[&Lookup],
    log: &[SeenEvent],
    bounds: &Bounds,
    reducer: Reducer,
    found: &mut Found,
) {
    let mut states = Vec::new();
    for l in lookups {
        let length = match &l.outcome {
            LookupOutcome::Failed(_) => continue,
            LookupOutcome::None => 0,
            LookupOutcome::State(s) => {
                states.push((s, *l));
                s.revision + 1
            }
        };
        check_length(stream, "lookup", length, l.consistency, l.span, bounds, found);
        check_min_position(stream, "lookup", length, l.min_position, log, found);
    }
    states.sort_by_key(|(s, _)| s.revision);
    let mut fold = Fold::new(reducer);
    let mut folded = 0;
    for (state, lookup) in states {
        let Some(event) = log.get(state.revision as usize) else {
            continue; // BeyondLog has said it
        };
        while folded <= state.revision {
            fold.push(&log[folded as usize].data);
            folded += 1;
        }
        if !fold.equals(&state.data) {
            found.add(Kind::WrongState, stream, || {
                format!(
                    "a {:?} lookup gave at {} the state {:?}, the fold is {:?}",
                    lookup.consistency,
                    state.revision,
                    state.data,
                    fold.to_bytes()
                )
            });
        }
        if event.position != state.position {
            found.add(Kind::WrongPosition, stream, || {
                format!(
                    "a lookup at {} said position {}, the log says {}",
                    state.revision, state.position, event.position
                )
            });
        }
    }
}

/// Within a partition positions follow real time, across streams.
fn check_positions(mut placed: Vec<Placed>, found: &mut Found) {
    placed.sort_by_key(|p| (p.position & PARTITION_MASK, p.position));
    let mut latest_start_ns = 0;
    let mut before: Option<&Placed> = None;
    for p in &placed {
        if let Some(b) = before {
            if b.position == p.position {
                found.add(Kind::PositionOrder, &p.stream, || {
                    format!(
                        "position {} of revision {} is also that of {} in {}",
                        p.position, p.revision, b.revision, b.stream
                    )
                });
            }
            if (b.position ^ p.position) & PARTITION_MASK != 0 {
                latest_start_ns = 0;
            }
        }
        if p.acknowledged_ns.is_some_and(|end| end < latest_start_ns) {
            found.add(Kind::RealTimeOrder, &p.stream, || {
                format!(
                    "revision {} was acknowledged before one with a lower position was invoked",
                    p.revision
                )
            });
        }
        latest_start_ns = latest_start_ns.max(p.start_ns);
        before = Some(p);
    }
}

/// On one call of AppendStream, an append is stored only behind all that were sent before it to its
/// stream: after one fails, later ones fail too.
fn check_pipelines(history: &History, log: &FinalLog, found: &mut Found) {
    type Lane<'a> = Vec<(u64, &'a Append)>;
    let mut lanes: HashMap<(u64, &Arc<str>), Lane<'_>> = HashMap::new();
    for a in &history.appends {
        if let Some((pipeline, sequence)) = a.pipeline {
            let lane = lanes.entry((pipeline, &a.stream)).or_default();
            lane.push((sequence, a));
        }
    }
    let revisions: HashMap<(&Arc<str>, EventId), u64> = log
        .streams
        .iter()
        .flat_map(|(stream, events)| events.iter().map(move |e| ((stream, e.id), e.revision)))
        .collect();
    for ((_, stream), mut lane) in lanes {
        lane.sort_unstable_by_key(|(sequence, _)| *sequence);
        // The last place of what was sent so far: where it is, or nowhere.
        let mut before: Option<(u64, Option<u64>)> = None;
        let mut sent = BTreeSet::new();
        for (sequence, a) in lane {
            let (Some(first), Some(last)) = (a.events.first(), a.events.last()) else {
                continue;
            };
            // The same append sent twice has the same answer.
            if !sent.insert(first.id) {
                continue;
            }
            if let (AppendOutcome::Acknowledged { first_revision, .. }, Some((earlier, place))) =
                (&a.outcome, before)
                && place.is_none_or(|p| p >= *first_revision)
            {
                found.add(Kind::PipelineOrder, stream, || {
                    format!(
                        "sequence {sequence} got {first_revision}, the earlier {earlier} is at {place:?}"
                    )
                });
            }
            let place = revisions.get(&(stream, last.id)).copied();
            before = match (before, place) {
                (Some((earlier, None)), _) => Some((earlier, None)),
                _ => Some((sequence, place)),
            };
        }
    }
}
