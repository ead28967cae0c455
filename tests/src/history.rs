//! What each client asked and saw. Times are nanoseconds on one monotonic clock of one process.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

/// An event's UUID as a number.
pub type EventId = u128;

/// The history's clock: nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    #[allow(clippy::new_without_default)] // a clock is not a default value
    pub fn new() -> Self {
        Self(Instant::now())
    }

    pub fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// When an operation was invoked, and when its end was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start_ns: u64,
    pub end_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Any,
    NoStream,
    StreamExists,
    Exact(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    Acknowledged {
        first_revision: u64,
        last_revision: u64,
        first_position: u64,
        last_position: u64,
        partition: u32,
    },
    /// The product said that this attempt stores nothing.
    Refused {
        reason: String,
        /// What WRONG_EXPECTED_REVISION says is there: `Some(None)` for no stream.
        actual: Option<Option<u64>>,
        /// It does not help to send it again: the product refuses the append, not the moment.
        for_good: bool,
    },
    /// It may or may not be stored: no answer, or one that says so.
    Unknown { why: String },
}

/// One attempt to append. A retry is another one with the same events.
#[derive(Clone, Debug)]
pub struct Append {
    pub client: u32,
    pub stream: Arc<str>,
    pub events: Arc<[Event]>,
    pub expected: Expected,
    pub after_position: u64,
    /// The pipeline (one call of AppendStream) and the place in it.
    pub pipeline: Option<(u64, u64)>,
    pub span: Span,
    pub outcome: AppendOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Linearizable,
    Lease,
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEvent {
    pub revision: u64,
    pub position: u64,
    pub id: EventId,
    pub data: Bytes,
}

/// Pages of a stream. `seen` is `None` when the call failed, empty when nothing (or no stream) is there.
#[derive(Clone, Debug)]
pub struct Read {
    pub client: u32,
    pub stream: Arc<str>,
    pub consistency: Consistency,
    pub min_position: u64,
    pub from_revision: Option<u64>,
    pub backwards: bool,
    /// 0: all.
    pub max_count: u64,
    pub span: Span,
    pub seen: Option<Vec<SeenEvent>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenState {
    pub revision: u64,
    pub position: u64,
    pub data: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupOutcome {
    State(SeenState),
    /// There is no such stream.
    None,
    Failed(String),
}

#[derive(Clone, Debug)]
pub struct Lookup {
    pub client: u32,
    pub stream: Arc<str>,
    pub consistency: Consistency,
    pub min_position: u64,
    pub span: Span,
    pub outcome: LookupOutcome,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub appends: Vec<Append>,
    pub reads: Vec<Read>,
    pub lookups: Vec<Lookup>,
}

impl History {
    pub fn merge(&mut self, other: History) {
        self.appends.extend(other.appends);
        self.reads.extend(other.reads);
        self.lookups.extend(other.lookups);
    }

    /// Appends that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.appends
            .iter()
            .filter(|a| matches!(a.outcome, AppendOutcome::Acknowledged { .. }))
            .count()
    }

    /// Counts of outcomes, for a line of output.
    pub fn summary(&self) -> String {
        let count =
            |f: fn(&AppendOutcome) -> bool| self.appends.iter().filter(|a| f(&a.outcome)).count();
        format!(
            "{} appends ({} acknowledged, {} refused, {} unknown), {} reads ({} failed), {} lookups ({} failed)",
            self.appends.len(),
            self.acknowledged(),
            count(|o| matches!(o, AppendOutcome::Refused { .. })),
            count(|o| matches!(o, AppendOutcome::Unknown { .. })),
            self.reads.len(),
            self.reads.iter().filter(|r| r.seen.is_none()).count(),
            self.lookups.len(),
            self.lookups.iter().filter(|l| matches!(l.outcome, LookupOutcome::Failed(_))).count(),
        )
    }

    /// The longest time in which nothing succeeded although something was tried, within `[from_ns, to_ns]`.
    pub fn longest_outage_ns(&self, from_ns: u64, to_ns: u64) -> u64 {
        let appends = self.appends.iter().filter_map(|a| {
            (!matches!(a.outcome, AppendOutcome::Unknown { .. })).then_some(a.span.end_ns)
        });
        let reads = self.reads.iter().filter_map(|r| r.seen.is_some().then_some(r.span.end_ns));
        let lookups = self.lookups.iter().filter_map(|l| {
            (!matches!(l.outcome, LookupOutcome::Failed(_))).then_some(l.span.end_ns)
        });
        longest_gap_ns(appends.chain(reads).chain(lookups), from_ns, to_ns)
    }

    /// The same for the appends of each partition (by `partition_of` a stream): the worst one and its partition.
    pub fn longest_append_outage_ns(
        &self,
        from_ns: u64,
        to_ns: u64,
        partition_of: impl Fn(&str) -> u32,
    ) -> (u64, u32) {
        let mut ends: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for a in &self.appends {
            let of = ends.entry(partition_of(&a.stream)).or_default();
            if !matches!(a.outcome, AppendOutcome::Unknown { .. }) {
                of.push(a.span.end_ns);
            }
        }
        ends.into_iter()
            .map(|(p, ends)| (longest_gap_ns(ends.into_iter(), from_ns, to_ns), p))
            .max()
            .unwrap_or_default()
    }
}

fn longest_gap_ns(ends: impl Iterator<Item = u64>, from_ns: u64, to_ns: u64) -> u64 {
    let mut ends: Vec<u64> = ends.filter(|e| (from_ns..=to_ns).contains(e)).collect();
    ends.push(to_ns);
    ends.sort_unstable();
    let mut before = from_ns;
    let mut longest = 0;
    for end in ends {
        longest = longest.max(end - before);
        before = end;
    }
    longest
}

/// The log read at the end, when all faults are over: the reference for everything else.
#[derive(Clone, Debug, Default)]
pub struct FinalLog {
    pub streams: BTreeMap<Arc<str>, Vec<SeenEvent>>,
}
