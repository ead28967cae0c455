//! Order across streams: of a partition's positions, and of a pipeline's appends.
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Found, Kind, PARTITION_MASK};
use crate::history::{Append, AppendOutcome, EventId, FinalLog, History};

/// An event of the log with the times of its append.
pub(super) struct Placed {
    pub(super) stream: Arc<str>,
    pub(super) revision: u64,
    pub(super) position: u64,
    pub(super) start_ns: u64,
    pub(super) acknowledged_ns: Option<u64>,
}

/// Within a partition positions follow real time, across streams.
pub(super) fn check_positions(mut placed: Vec<Placed>, found: &mut Found) {
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
pub(super) fn check_pipelines(history: &History, log: &FinalLog, found: &mut Found) {
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
