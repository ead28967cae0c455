//! What must hold of reads and lookups.
use std::sync::Arc;

use super::bounds::Bounds;
use super::{Found, Kind};
use crate::fold::{Fold, Reducer};
use crate::history::{Consistency, Lookup, LookupOutcome, Read, SeenEvent, Span};

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

pub(super) fn check_read(
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

pub(super) fn check_lookups(
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
