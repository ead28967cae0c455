//! The checker accepts correct histories, and finds each fault planted into one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::checker::{Kind, check};
use ringfold_tests::fold::Fold;
use ringfold_tests::history::{
    Append, AppendOutcome, Consistency, Event, Expected, FinalLog, History, LookupOutcome,
    SeenEvent, SeenState, Span,
};
use ringfold_tests::model::{Shape, correct, reducers};

/// Histories that each fault is planted into.
const SEEDS: u64 = 120;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn correct_histories_are_accepted(
        seed: u64,
        clients in 1u32..12,
        streams in 1u32..6,
        operations in 0u32..400,
    ) {
        let (history, log) = correct(seed, Shape { clients, streams, operations });
        let found = check(&history, &log, &reducers());
        prop_assert!(found.is_empty(), "{found:#?}");
    }
}

/// Plants a fault into many correct histories. Wherever there was a place for it, it must be found.
fn finds(
    kind: Kind,
    places_min: u64,
    plant: impl Fn(&mut History, &mut FinalLog, &mut StdRng) -> bool,
) {
    let mut places = 0;
    for seed in 0..SEEDS {
        let (mut history, mut log) = correct(seed, Shape::default());
        let mut rng = StdRng::seed_from_u64(seed);
        if !plant(&mut history, &mut log, &mut rng) {
            continue;
        }
        places += 1;
        let found = check(&history, &log, &reducers());
        assert!(
            found.iter().any(|v| v.kind == kind),
            "seed {seed}: {kind:?} was planted, found: {found:#?}"
        );
    }
    assert!(places >= places_min, "only {places} histories had a place for it");
}

const MOST: u64 = SEEDS * 3 / 4;

fn pick<T>(rng: &mut StdRng, all: Vec<T>) -> Option<T> {
    let mut all = all;
    (!all.is_empty()).then(|| all.swap_remove(rng.random_range(0..all.len())))
}

fn is_acknowledged(a: &Append) -> bool {
    matches!(a.outcome, AppendOutcome::Acknowledged { .. })
}

fn revisions(a: &Append) -> (u64, u64) {
    match a.outcome {
        AppendOutcome::Acknowledged { first_revision, last_revision, .. } => {
            (first_revision, last_revision)
        }
        _ => panic!("not acknowledged"),
    }
}

/// An acknowledged append, by index.
fn acknowledged(h: &History, rng: &mut StdRng) -> Option<usize> {
    let all = (0..h.appends.len()).filter(|i| is_acknowledged(&h.appends[*i]));
    pick(rng, all.collect())
}

/// Appends that were sent once and acknowledged.
fn sent_once(h: &History) -> Vec<usize> {
    (0..h.appends.len())
        .filter(|i| is_acknowledged(&h.appends[*i]))
        .filter(|i| {
            let first = h.appends[*i].events[0].id;
            h.appends.iter().filter(|a| a.events[0].id == first).count() == 1
        })
        .collect()
}

fn log_of<'a>(log: &'a mut FinalLog, stream: &Arc<str>) -> &'a mut Vec<SeenEvent> {
    log.streams.get_mut(stream).expect("it has events")
}

fn any_log<'a>(
    log: &'a mut FinalLog,
    rng: &mut StdRng,
    events_min: usize,
) -> Option<&'a mut Vec<SeenEvent>> {
    let all = log.streams.values_mut().filter(|l| l.len() >= events_min).collect();
    pick(rng, all)
}

fn renumber(log: &mut [SeenEvent]) {
    for (i, e) in log.iter_mut().enumerate() {
        e.revision = i as u64;
    }
}

/// What a correct lookup says when `length` events are there.
fn state_at(log: &FinalLog, stream: &Arc<str>, length: u64) -> LookupOutcome {
    if length == 0 {
        return LookupOutcome::None;
    }
    let events = &log.streams[stream][..length as usize];
    let mut fold = Fold::new(reducers().of(stream));
    events.iter().for_each(|e| fold.push(&e.data));
    LookupOutcome::State(SeenState {
        revision: length - 1,
        position: events[events.len() - 1].position,
        data: fold.to_bytes(),
    })
}

fn length_of(outcome: &LookupOutcome) -> Option<u64> {
    match outcome {
        LookupOutcome::State(s) => Some(s.revision + 1),
        LookupOutcome::None => Some(0),
        LookupOutcome::Failed(_) => None,
    }
}

// ---- events

#[test]
fn a_lost_acknowledged_append_is_found() {
    finds(Kind::Lost, MOST, |h, l, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        let a = &h.appends[i];
        let log = log_of(l, &a.stream);
        log.retain(|e| a.events.iter().all(|x| x.id != e.id));
        renumber(log);
        true
    });
}

#[test]
fn a_lost_last_event_is_found() {
    finds(Kind::Lost, 20, |h, l, rng| {
        let Some(log) = any_log(l, rng, 1) else {
            return false;
        };
        let last = log.pop().unwrap();
        h.appends.iter().any(|a| is_acknowledged(a) && a.events.iter().any(|e| e.id == last.id))
    });
}

#[test]
fn a_whole_lost_stream_is_found() {
    finds(Kind::Lost, MOST, |h, l, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        l.streams.remove(&h.appends[i].stream);
        true
    });
}

#[test]
fn a_doubled_event_is_found() {
    finds(Kind::Doubled, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 1) else {
            return false;
        };
        let mut copy = log[rng.random_range(0..log.len())].clone();
        copy.revision = log.len() as u64;
        copy.position = log[log.len() - 1].position + 1024;
        log.push(copy);
        true
    });
}

#[test]
fn events_in_another_order_are_found() {
    finds(Kind::WrongRevision, 40, |h, l, rng| {
        let pairs: Vec<usize> =
            (0..h.appends.len()).filter(|i| is_acknowledged(&h.appends[*i])).collect();
        let Some(i) = pick(rng, pairs) else {
            return false;
        };
        let a = &h.appends[i];
        let (first, _) = revisions(a);
        let log = log_of(l, &a.stream);
        if first == 0 {
            return false;
        }
        let (x, y) = (first as usize - 1, first as usize);
        let (left, right) = (log[x].clone(), log[y].clone());
        (log[x].id, log[x].data) = (right.id, right.data);
        (log[y].id, log[y].data) = (left.id, left.data);
        true
    });
}

#[test]
fn a_gap_in_the_revisions_is_found() {
    finds(Kind::Gap, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 1) else {
            return false;
        };
        let from = rng.random_range(0..log.len());
        log[from..].iter_mut().for_each(|e| e.revision += 1);
        true
    });
}

#[test]
fn an_event_that_nobody_appended_is_found() {
    finds(Kind::Phantom, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 1) else {
            return false;
        };
        let mut event = log[log.len() - 1].clone();
        event.id = rng.random();
        event.revision += 1;
        event.position += 1024;
        log.push(event);
        true
    });
}

#[test]
fn an_event_with_other_data_is_found() {
    finds(Kind::Altered, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 1) else {
            return false;
        };
        let at = rng.random_range(0..log.len());
        log[at].data = Bytes::from_static(b"{\"not\":\"this\"}");
        true
    });
}

#[test]
fn half_an_append_is_found() {
    finds(Kind::Torn, 10, |h, l, rng| {
        let Some(log) = any_log(l, rng, 2) else {
            return false;
        };
        let last = log.pop().unwrap();
        h.appends.iter().any(|a| a.events.len() > 1 && a.events.iter().any(|e| e.id == last.id))
    });
}

#[test]
fn two_appends_interleaved_are_found() {
    finds(Kind::Torn, 30, |h, l, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        let a = &h.appends[i];
        let (_, last) = revisions(a);
        let log = log_of(l, &a.stream);
        if a.events.len() < 2 || last as usize + 1 >= log.len() {
            return false;
        }
        let (x, y) = (last as usize, last as usize + 1);
        let (left, right) = (log[x].clone(), log[y].clone());
        (log[x].id, log[x].data) = (right.id, right.data);
        (log[y].id, log[y].data) = (left.id, left.data);
        true
    });
}

// ---- answers to appends

#[test]
fn an_answer_with_another_revision_is_found() {
    finds(Kind::WrongRevision, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        if let AppendOutcome::Acknowledged { first_revision, last_revision, .. } =
            &mut h.appends[i].outcome
        {
            *first_revision += 1;
            *last_revision += 1;
        }
        true
    });
}

#[test]
fn an_answer_with_another_position_is_found() {
    finds(Kind::WrongPosition, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        if let AppendOutcome::Acknowledged { last_position, .. } = &mut h.appends[i].outcome {
            *last_position += 1024;
        }
        true
    });
}

#[test]
fn an_answer_with_another_partition_is_found() {
    finds(Kind::WrongPartition, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        if let AppendOutcome::Acknowledged { partition, .. } = &mut h.appends[i].outcome {
            *partition += 1;
        }
        true
    });
}

#[test]
fn positions_that_fall_are_found() {
    finds(Kind::PositionOrder, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 2) else {
            return false;
        };
        let at = rng.random_range(1..log.len());
        let lower = log[at - 1].position;
        log[at - 1].position = log[at].position;
        log[at].position = lower;
        true
    });
}

#[test]
fn a_position_used_by_two_streams_is_found() {
    finds(Kind::PositionOrder, MOST, |_, l, _| {
        let mut logs =
            l.streams.iter_mut().filter(|(name, _)| !name.starts_with("last")).map(|(_, log)| log);
        let (Some(a), Some(b)) = (logs.next(), logs.next()) else {
            return false;
        };
        b[0].position = a[0].position;
        true
    });
}

#[test]
fn a_stream_in_two_partitions_is_found() {
    finds(Kind::WrongPartition, MOST, |_, l, rng| {
        let Some(log) = any_log(l, rng, 2) else {
            return false;
        };
        let at = log.len() - 1;
        log[at].position += 3;
        true
    });
}

#[test]
fn a_refused_append_that_is_stored_is_found() {
    finds(Kind::RefusedYetStored, MOST, |h, _, rng| {
        let Some(i) = pick(rng, sent_once(h)) else {
            return false;
        };
        h.appends[i].outcome =
            AppendOutcome::Refused { reason: "OVERLOADED".into(), actual: None, for_good: true };
        true
    });
}

#[test]
fn a_refused_retry_of_an_acknowledged_append_is_found() {
    finds(Kind::RetryRefused, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        let mut retry = h.appends[i].clone();
        retry.span = Span { start_ns: retry.span.end_ns + 1, end_ns: retry.span.end_ns + 2 };
        retry.outcome = AppendOutcome::Refused {
            reason: "WRONG_EXPECTED_REVISION".into(),
            actual: None,
            for_good: true,
        };
        h.appends.push(retry);
        true
    });
}

#[test]
fn a_refusal_without_a_cause_is_found() {
    finds(Kind::RefusedWithoutCause, MOST, |h, l, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        let mut refused = h.appends[i].clone();
        let last = l.streams[&refused.stream].len() as u64 - 1;
        refused.events = [Event { id: rng.random(), data: Bytes::from_static(b"{}") }].into();
        refused.expected = Expected::Exact(last);
        refused.span = after_all(h);
        refused.outcome = AppendOutcome::Refused {
            reason: "WRONG_EXPECTED_REVISION".into(),
            actual: Some(Some(last)),
            for_good: true,
        };
        h.appends.push(refused);
        true
    });
}

#[test]
fn a_refusal_that_names_a_revision_of_long_ago_is_found() {
    finds(Kind::RefusedWithoutCause, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        let mut refused = h.appends[i].clone();
        refused.events = [Event { id: rng.random(), data: Bytes::from_static(b"{}") }].into();
        refused.expected = Expected::Exact(7_000);
        refused.span = after_all(h);
        refused.outcome = AppendOutcome::Refused {
            reason: "WRONG_EXPECTED_REVISION".into(),
            actual: Some(None),
            for_good: true,
        };
        h.appends.push(refused);
        true
    });
}

fn after_all(h: &History) -> Span {
    let end = h.appends.iter().map(|a| a.span.end_ns);
    let last = end.chain(h.lookups.iter().map(|l| l.span.end_ns)).max().unwrap_or(0);
    Span { start_ns: last + 10, end_ns: last + 20 }
}

#[test]
fn two_winners_of_one_revision_are_found() {
    finds(Kind::ExpectedNotMet, MOST, |h, _, rng| {
        let once = sent_once(h);
        let pairs: Vec<(usize, usize)> = once
            .iter()
            .flat_map(|a| once.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| {
                h.appends[*a].stream == h.appends[*b].stream
                    && 0 < revisions(&h.appends[*a]).0
                    && revisions(&h.appends[*a]).0 < revisions(&h.appends[*b]).0
            })
            .collect();
        let Some((a, b)) = pick(rng, pairs) else {
            return false;
        };
        let both = Expected::Exact(revisions(&h.appends[a]).0 - 1);
        h.appends[a].expected = both;
        h.appends[b].expected = both;
        true
    });
}

#[test]
fn two_creations_of_one_stream_are_found() {
    finds(Kind::ExpectedNotMet, MOST, |h, _, rng| {
        let later: Vec<usize> =
            sent_once(h).into_iter().filter(|i| revisions(&h.appends[*i]).0 > 0).collect();
        let Some(i) = pick(rng, later) else {
            return false;
        };
        h.appends[i].expected = Expected::NoStream;
        true
    });
}

#[test]
fn an_append_before_one_that_had_ended_is_found() {
    finds(Kind::RealTimeOrder, MOST, |h, _, rng| {
        let once = sent_once(h);
        let pairs: Vec<(usize, usize)> = once
            .iter()
            .flat_map(|a| once.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| {
                h.appends[*a].stream == h.appends[*b].stream
                    && revisions(&h.appends[*a]).0 < revisions(&h.appends[*b]).0
            })
            .collect();
        let Some((a, b)) = pick(rng, pairs) else {
            return false;
        };
        let end = h.appends[b].span.end_ns;
        h.appends[a].span = Span { start_ns: end + 1, end_ns: end + 2 };
        true
    });
}

#[test]
fn positions_against_real_time_across_streams_are_found() {
    let append = |stream: &str, id, position, start_ns| Append {
        client: 0,
        stream: stream.into(),
        events: [Event { id, data: Bytes::from_static(b"{}") }].into(),
        expected: Expected::Any,
        after_position: 0,
        pipeline: None,
        span: Span { start_ns, end_ns: start_ns + 5 },
        outcome: AppendOutcome::Acknowledged {
            first_revision: 0,
            last_revision: 0,
            first_position: position,
            last_position: position,
            partition: 0,
        },
    };
    let history = |first: u64, second: u64| History {
        appends: vec![append("a-1", 1, first, 10), append("b-1", 2, second, 20)],
        ..History::default()
    };
    let log = |first, second| FinalLog {
        streams: [("a-1", 1, first), ("b-1", 2, second)]
            .map(|(stream, id, position)| {
                let event =
                    SeenEvent { revision: 0, position, id, data: Bytes::from_static(b"{}") };
                (stream.into(), vec![event])
            })
            .into(),
    };
    assert!(check(&history(1024, 2048), &log(1024, 2048), &reducers()).is_empty());
    let found = check(&history(2048, 1024), &log(2048, 1024), &reducers());
    assert!(found.iter().any(|v| v.kind == Kind::RealTimeOrder), "{found:?}");
}

#[test]
fn a_pipeline_out_of_order_is_found() {
    finds(Kind::PipelineOrder, 20, |h, _, rng| {
        let pairs: Vec<(usize, usize)> = (0..h.appends.len())
            .flat_map(|a| (0..a).map(move |b| (a, b)))
            .filter(|(a, b)| {
                let (a, b) = (&h.appends[*a], &h.appends[*b]);
                is_acknowledged(a)
                    && is_acknowledged(b)
                    && a.stream == b.stream
                    && matches!((a.pipeline, b.pipeline), (Some(x), Some(y)) if x.0 == y.0)
            })
            .collect();
        let Some((a, b)) = pick(rng, pairs) else {
            return false;
        };
        let sequence = h.appends[a].pipeline;
        h.appends[a].pipeline = h.appends[b].pipeline;
        h.appends[b].pipeline = sequence;
        true
    });
}

#[test]
fn a_pipeline_that_goes_on_after_a_failure_is_found() {
    finds(Kind::PipelineOrder, 40, |h, _, rng| {
        let piped: Vec<usize> = (0..h.appends.len())
            .filter(|i| is_acknowledged(&h.appends[*i]) && h.appends[*i].pipeline.is_some())
            .collect();
        let Some(i) = pick(rng, piped) else {
            return false;
        };
        let later = h.appends[i].clone();
        let (pipeline, sequence) = later.pipeline.unwrap();
        // One sent before it on the same call, which failed.
        let before = sequence.saturating_sub(1);
        if h.appends.iter().any(|a| a.pipeline == Some((pipeline, before)) || sequence == 0) {
            return false;
        }
        h.appends.push(Append {
            events: [Event { id: rng.random(), data: Bytes::from_static(b"{}") }].into(),
            pipeline: Some((pipeline, before)),
            outcome: AppendOutcome::Unknown { why: "lost".into() },
            ..later
        });
        true
    });
}

#[test]
fn a_position_not_above_the_one_sent_along_is_found() {
    finds(Kind::CausalOrder, MOST, |h, _, rng| {
        let Some(i) = acknowledged(h, rng) else {
            return false;
        };
        if let AppendOutcome::Acknowledged { first_position, .. } = h.appends[i].outcome {
            h.appends[i].after_position = first_position;
        }
        true
    });
}

// ---- lookups

/// A fresh lookup, and the length before an append that had been acknowledged when it began.
fn lookup_after_append(h: &History, rng: &mut StdRng, lease: bool) -> Option<(usize, u64)> {
    let wanted = if lease { Consistency::Lease } else { Consistency::Linearizable };
    let pairs =
        (0..h.lookups.len()).filter(|l| h.lookups[*l].consistency == wanted).flat_map(|l| {
            h.appends.iter().filter_map(move |a| {
                let lookup = &h.lookups[l];
                (is_acknowledged(a)
                    && a.stream == lookup.stream
                    && a.span.end_ns < lookup.span.start_ns)
                    .then(|| (l, revisions(a).0))
            })
        });
    pick(rng, pairs.collect())
}

#[test]
fn a_linearizable_lookup_without_an_acknowledged_append_is_found() {
    finds(Kind::Stale, MOST, |h, l, rng| {
        let Some((i, length)) = lookup_after_append(h, rng, false) else {
            return false;
        };
        h.lookups[i].outcome = state_at(l, &h.lookups[i].stream, length);
        true
    });
}

#[test]
fn a_lease_lookup_without_an_acknowledged_append_is_found() {
    finds(Kind::Stale, MOST, |h, l, rng| {
        let Some((i, length)) = lookup_after_append(h, rng, true) else {
            return false;
        };
        h.lookups[i].outcome = state_at(l, &h.lookups[i].stream, length);
        true
    });
}

/// Two lookups one after the other, where the first showed what nobody had acknowledged yet when the
/// second began; the length that the acknowledgements alone demand of the second.
fn lookup_after_lookup(h: &History, rng: &mut StdRng, first: Consistency) -> Option<(usize, u64)> {
    let mut pairs = Vec::new();
    for a in h.lookups.iter().filter(|a| a.consistency == first) {
        for (i, b) in h.lookups.iter().enumerate() {
            // What only stale answers had shown does not bind a leader's lease.
            let is_bound = match b.consistency {
                Consistency::Linearizable => true,
                Consistency::Lease => first != Consistency::Stale,
                Consistency::Stale => false,
            };
            if a.stream != b.stream || !is_bound || a.span.end_ns >= b.span.start_ns {
                continue;
            }
            let acknowledged = h
                .appends
                .iter()
                .filter(|x| {
                    is_acknowledged(x) && x.stream == b.stream && x.span.end_ns < b.span.start_ns
                })
                .map(|x| revisions(x).1 + 1)
                .max()
                .unwrap_or(0);
            if length_of(&a.outcome).is_some_and(|l| l > acknowledged) {
                pairs.push((i, acknowledged));
            }
        }
    }
    pick(rng, pairs)
}

#[test]
fn a_lookup_that_goes_back_in_time_is_found() {
    finds(Kind::Stale, 10, |h, l, rng| {
        let Some((i, length)) = lookup_after_lookup(h, rng, Consistency::Linearizable) else {
            return false;
        };
        h.lookups[i].outcome = state_at(l, &h.lookups[i].stream, length);
        true
    });
}

#[test]
fn a_lookup_that_goes_back_behind_a_stale_one_is_found() {
    finds(Kind::Stale, 5, |h, l, rng| {
        let Some((i, length)) = lookup_after_lookup(h, rng, Consistency::Stale) else {
            return false;
        };
        h.lookups[i].outcome = state_at(l, &h.lookups[i].stream, length);
        true
    });
}

#[test]
fn a_stale_lookup_below_the_position_asked_for_is_found() {
    finds(Kind::BelowMinPosition, 40, |h, l, rng| {
        let all = (0..h.lookups.len()).filter(|i| {
            let lookup = &h.lookups[*i];
            lookup.min_position > 0
                && l.streams
                    .get(&lookup.stream)
                    .is_some_and(|log| log[0].position <= lookup.min_position)
        });
        let Some(i) = pick(rng, all.collect()) else {
            return false;
        };
        h.lookups[i].outcome = LookupOutcome::None;
        true
    });
}

fn lookup_with_state(h: &History, rng: &mut StdRng) -> Option<usize> {
    let all =
        (0..h.lookups.len()).filter(|i| matches!(h.lookups[*i].outcome, LookupOutcome::State(_)));
    pick(rng, all.collect())
}

fn change_state(h: &mut History, i: usize, change: impl FnOnce(&mut SeenState)) {
    if let LookupOutcome::State(s) = &mut h.lookups[i].outcome {
        change(s);
    }
}

#[test]
fn a_wrong_state_is_found() {
    finds(Kind::WrongState, MOST, |h, _, rng| {
        let Some(i) = lookup_with_state(h, rng) else {
            return false;
        };
        change_state(h, i, |s| s.data = Bytes::from_static(b"{\"wrong\":1}"));
        true
    });
}

#[test]
fn the_right_state_under_another_revision_is_found() {
    finds(Kind::WrongState, MOST, |h, l, rng| {
        let Some(i) = lookup_with_state(h, rng) else {
            return false;
        };
        let stream = h.lookups[i].stream.clone();
        let length = length_of(&h.lookups[i].outcome).unwrap();
        let LookupOutcome::State(before) = state_at(l, &stream, length - 1) else {
            return false;
        };
        let mut different = false;
        change_state(h, i, |s| {
            different = s.data != before.data;
            s.data = before.data;
        });
        different
    });
}

#[test]
fn a_lookup_of_what_was_not_invoked_yet_is_found() {
    finds(Kind::Future, MOST, |h, l, rng| {
        let all = (0..h.lookups.len()).filter(|i| {
            let lookup = &h.lookups[*i];
            l.streams.get(&lookup.stream).is_some_and(|log| {
                let last = log[log.len() - 1].id;
                h.appends
                    .iter()
                    .filter(|a| a.events.iter().any(|e| e.id == last))
                    .all(|a| a.span.start_ns > lookup.span.end_ns)
            })
        });
        let Some(i) = pick(rng, all.collect()) else {
            return false;
        };
        let stream = h.lookups[i].stream.clone();
        h.lookups[i].outcome = state_at(l, &stream, l.streams[&stream].len() as u64);
        true
    });
}

#[test]
fn a_lookup_beyond_the_log_is_found() {
    finds(Kind::BeyondLog, MOST, |h, l, rng| {
        let Some(i) = lookup_with_state(h, rng) else {
            return false;
        };
        let length = l.streams[&h.lookups[i].stream].len() as u64;
        change_state(h, i, |s| s.revision = length);
        true
    });
}

// ---- reads

fn read_with_events(h: &History, rng: &mut StdRng, events_min: usize) -> Option<usize> {
    let all = (0..h.reads.len())
        .filter(|i| h.reads[*i].seen.as_ref().is_some_and(|s| s.len() >= events_min));
    pick(rng, all.collect())
}

fn change_read(h: &mut History, i: usize, change: impl FnOnce(&mut Vec<SeenEvent>)) {
    change(h.reads[i].seen.as_mut().unwrap());
}

#[test]
fn a_page_with_a_hole_is_found() {
    finds(Kind::WrongPage, MOST, |h, _, rng| {
        let Some(i) = read_with_events(h, rng, 3) else {
            return false;
        };
        change_read(h, i, |seen| {
            seen.remove(1);
        });
        true
    });
}

#[test]
fn a_page_in_another_order_is_found() {
    finds(Kind::WrongPage, MOST, |h, _, rng| {
        let Some(i) = read_with_events(h, rng, 2) else {
            return false;
        };
        change_read(h, i, |seen| seen.swap(0, 1));
        true
    });
}

#[test]
fn a_page_that_starts_too_late_is_found() {
    finds(Kind::WrongPage, 40, |h, _, rng| {
        let Some(i) = read_with_events(h, rng, 2) else {
            return false;
        };
        if h.reads[i].backwards {
            return false;
        }
        change_read(h, i, |seen| {
            seen.remove(0);
        });
        true
    });
}

#[test]
fn a_page_backwards_that_ends_too_early_is_found() {
    finds(Kind::WrongPage, 40, |h, _, rng| {
        let all = (0..h.reads.len()).filter(|i| {
            let r = &h.reads[*i];
            r.backwards && r.max_count == 0 && r.seen.as_ref().is_some_and(|s| s.len() > 1)
        });
        let Some(i) = pick(rng, all.collect()) else {
            return false;
        };
        change_read(h, i, |seen| {
            seen.pop();
        });
        true
    });
}

#[test]
fn a_page_with_a_foreign_event_is_found() {
    finds(Kind::WrongPage, MOST, |h, _, rng| {
        let Some(i) = read_with_events(h, rng, 1) else {
            return false;
        };
        change_read(h, i, |seen| seen[0].id ^= 1);
        true
    });
}

#[test]
fn a_linearizable_read_without_an_acknowledged_append_is_found() {
    finds(Kind::Stale, MOST / 2, |h, _, rng| {
        let mut pairs = Vec::new();
        for (r, read) in h.reads.iter().enumerate() {
            let whole = !read.backwards && read.from_revision.is_none() && read.max_count == 0;
            if read.consistency == Consistency::Stale || !whole {
                continue;
            }
            for a in h.appends.iter().filter(|a| is_acknowledged(a)) {
                if a.stream == read.stream && a.span.end_ns < read.span.start_ns {
                    pairs.push((r, revisions(a).0));
                }
            }
        }
        let Some((i, length)) = pick(rng, pairs) else {
            return false;
        };
        change_read(h, i, |seen| seen.truncate(length as usize));
        true
    });
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let (a, b) = (correct(7, Shape::default()), correct(7, Shape::default()));
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
}
