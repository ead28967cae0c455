//! How long a stream was, as far as clients were shown.
use super::Ops;
use crate::history::{AppendOutcome, Consistency, LookupOutcome};

/// What is known of a stream's length over time.
pub(super) struct Bounds {
    /// (end of an observation, greatest length observed up to then), by end.
    pub(super) floors: Vec<(u64, u64)>,
    /// The same without what stale answers showed.
    pub(super) floors_of_fresh: Vec<(u64, u64)>,
    /// By revision: the latest invocation among the events up to it.
    pub(super) latest_start_ns: Vec<u64>,
}

impl Bounds {
    /// The least length that a linearizable answer begun at `start_ns` may show.
    pub(super) fn least(&self, start_ns: u64) -> u64 {
        self.least_of(Consistency::Linearizable, start_ns)
    }

    /// The least length that an answer begun at `start_ns` may show.
    pub(super) fn least_of(&self, consistency: Consistency, start_ns: u64) -> u64 {
        let floors = match consistency {
            Consistency::Linearizable => &self.floors,
            Consistency::Lease => &self.floors_of_fresh,
            Consistency::Stale => return 0,
        };
        let i = floors.partition_point(|(end, _)| *end < start_ns);
        if i == 0 { 0 } else { floors[i - 1].1 }
    }

    /// When somebody was first shown so many events.
    pub(super) fn seen_first_ns(&self, length: u64) -> u64 {
        self.floors.iter().find(|(_, l)| *l >= length).map_or(0, |(end, _)| *end)
    }

    /// The greatest length that an answer given at `end_ns` may show.
    pub(super) fn greatest(&self, end_ns: u64) -> u64 {
        self.latest_start_ns.partition_point(|s| *s <= end_ns) as u64
    }
}

/// Everything that somebody was shown of the stream's length, as a running maximum by time.
pub(super) fn floors_of(ops: &Ops<'_>, with_stale: bool) -> Vec<(u64, u64)> {
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
