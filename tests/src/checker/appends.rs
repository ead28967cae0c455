//! What must hold of appends and their retries.
use std::collections::HashMap;
use std::sync::Arc;

use super::bounds::Bounds;
use super::{Found, Kind, PARTITION_MASK};
use crate::history::{Append, AppendOutcome, EventId, Expected, SeenEvent};

/// All attempts of one append: they share their events.
pub(super) struct Group<'a> {
    pub(super) attempts: Vec<&'a Append>,
    /// First invocation; nothing of it can have been seen before.
    pub(super) start_ns: u64,
    /// First acknowledgement, if any.
    pub(super) acknowledged_ns: Option<u64>,
}

pub(super) fn groups_of<'a>(appends: &[&'a Append]) -> Vec<Group<'a>> {
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

pub(super) fn check_group(
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

pub(super) fn check_times_of_append(
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
