//! Concurrent writers with expected revisions: exactly one wins each revision.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::checker::assert_holds;
use ringfold_tests::cluster::{LocalCluster, Settings, factor, timed, within};
use ringfold_tests::history::{Append, AppendOutcome, Clock, Event, Expected, History, Span};
use ringfold_tests::load::{append_request, outcome_of, read_final};
use ringfold_tests::model::reducers;
use tokio::task::JoinSet;

const WRITERS: u32 = 8;
const REVISIONS: u64 = 60;
const CALL_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_writer_wins_each_revision() {
    let cluster = LocalCluster::start(Settings { partitions: 1, ..Settings::default() }).await;
    let clock = Clock::new();
    let stream: Arc<str> = "customer-race".into();
    let goal = REVISIONS * u64::from(factor());
    // The number of events that somebody has been told of.
    let length = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for client in 0..WRITERS {
        let stores: Vec<_> = cluster.nodes.iter().map(|n| n.store()).collect();
        let (stream, length) = (stream.clone(), length.clone());
        writers.spawn(async move {
            let mut rng = StdRng::seed_from_u64(u64::from(client));
            let mut history = History::default();
            loop {
                let at = length.load(Ordering::SeqCst);
                if at >= goal {
                    return history;
                }
                let expected = if at == 0 { Expected::NoStream } else { Expected::Exact(at - 1) };
                let events: Arc<[Event]> = [Event {
                    id: rng.random(),
                    data: Bytes::from(format!("{{\"writer\":{client},\"at\":{at}}}")),
                }]
                .into();
                let mut store = stores[rng.random_range(0..stores.len())].clone();
                let start_ns = clock.now_ns();
                let request = append_request(&stream, &events, expected, 0);
                let outcome =
                    outcome_of(within(store.append(timed(request, CALL_MAX)), CALL_MAX).await);
                match &outcome {
                    AppendOutcome::Acknowledged { last_revision, .. } => {
                        length.fetch_max(last_revision + 1, Ordering::SeqCst);
                    }
                    AppendOutcome::Refused { actual, .. } => {
                        let actual = actual.expect("only WRONG_EXPECTED_REVISION is due");
                        length.fetch_max(actual.map_or(0, |r| r + 1), Ordering::SeqCst);
                    }
                    AppendOutcome::Unknown { .. } => {}
                }
                history.appends.push(Append {
                    client,
                    stream: stream.clone(),
                    events,
                    expected,
                    after_position: 0,
                    pipeline: None,
                    span: Span { start_ns, end_ns: clock.now_ns() },
                    outcome,
                });
            }
        });
    }
    let mut history = History::default();
    while let Some(one) = writers.join_next().await {
        history.merge(one.unwrap());
    }
    let log = read_final(&cluster, clock, std::slice::from_ref(&stream), &mut history).await;
    assert!(log.streams[&stream].len() as u64 >= goal);
    let refused = history.appends.len() - history.acknowledged();
    assert!(refused > 0, "nobody raced");
    // It finds an append whose expected revision was not met, and a refusal without a cause.
    assert_holds(&history, &log, &reducers());
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_of_many_creates_a_stream() {
    let cluster = LocalCluster::start(Settings::default()).await;
    for round in 0..10 {
        let stream: Arc<str> = format!("order-created-{round}").into();
        let mut calls = JoinSet::new();
        for i in 0..12u128 {
            let mut store = cluster.nodes[(i % 3) as usize].store();
            let events = [Event { id: (round as u128) << 64 | i, data: Bytes::from_static(b"{}") }];
            let request = append_request(&stream, &events, Expected::NoStream, 0);
            calls.spawn(async move {
                outcome_of(within(store.append(timed(request, CALL_MAX)), CALL_MAX).await)
            });
        }
        let outcomes = calls.join_all().await;
        let won =
            outcomes.iter().filter(|o| matches!(o, AppendOutcome::Acknowledged { .. })).count();
        assert_eq!(won, 1, "{outcomes:?}");
        for o in &outcomes {
            if let AppendOutcome::Refused { actual, .. } = o {
                assert_eq!(*actual, Some(Some(0)));
            }
        }
    }
    cluster.assert_no_panic();
}
