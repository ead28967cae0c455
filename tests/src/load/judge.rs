//! The end of a load: everything is read again, and the history is judged.
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfold_proto::v1;

use super::calls::{lookup, read};
use super::{Load, Store};
use crate::ballast;
use crate::checker;
use crate::cluster::LocalCluster;
use crate::history::{Clock, Consistency, FinalLog, History, LookupOutcome, Read, Span};
use crate::model;

/// Reads every stream whole, and looks each up through every node with every consistency; all of it
/// goes into the history too.
///
/// # Panics
/// When a stream cannot be read within a minute, or ListStreams and ListStates do not agree with it.
pub async fn read_final(
    cluster: &LocalCluster,
    clock: Clock,
    names: &[Arc<str>],
    history: &mut History,
) -> FinalLog {
    let stores = cluster.running().map(|n| n.store()).collect();
    read_final_on(stores, clock, names, history).await
}

/// The same through these only.
///
/// # Panics
/// As [`read_final`].
pub async fn read_final_on(
    stores: Vec<Store>,
    clock: Clock,
    names: &[Arc<str>],
    history: &mut History,
) -> FinalLog {
    const READER: u32 = u32::MAX;
    let mut log = FinalLog::default();
    for stream in names {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut turn = 0;
        let events = loop {
            let request = Read {
                client: READER,
                stream: stream.clone(),
                consistency: Consistency::Linearizable,
                min_position: 0,
                from_revision: None,
                backwards: false,
                max_count: 0,
                span: Span { start_ns: 0, end_ns: 0 },
                seen: None,
            };
            let mut store = stores[turn % stores.len()].clone();
            let read = read(&mut store, clock, request).await;
            turn += 1;
            history.reads.push(read.clone());
            if let Some(seen) = read.seen {
                break seen;
            }
            assert!(Instant::now() < deadline, "{stream} cannot be read within a minute");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let last = events.last().map_or(0, |e| e.position);
        for store in &stores {
            for consistency in [Consistency::Linearizable, Consistency::Lease, Consistency::Stale] {
                // Leaders are still spread over the nodes: one may be between two.
                let lookup = loop {
                    let mut store = store.clone();
                    let lookup =
                        lookup(&mut store, clock, READER, stream.clone(), consistency, last).await;
                    let LookupOutcome::Failed(error) = &lookup.outcome else { break lookup };
                    assert!(
                        Instant::now() < deadline,
                        "a lookup of {stream} within a minute after all faults were over: {error}"
                    );
                    history.lookups.push(lookup);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                };
                history.lookups.push(lookup);
            }
        }
        if !events.is_empty() {
            log.streams.insert(stream.clone(), events);
        }
    }
    let segment = names.first().and_then(|n| Some(n.split_once('.')?.1));
    check_lists(stores, segment, &log).await;
    log
}

/// Ends a test: every stream is read, the history is judged, replicas are compared.
pub async fn judge(cluster: &LocalCluster, clock: Clock, load: &Load, history: History) {
    judge_answers(cluster, clock, load, history).await;
    cluster.assert_no_panic();
}

/// The same, where a panic that ends a node in good order is no fault.
pub async fn judge_answers(
    cluster: &LocalCluster,
    clock: Clock,
    load: &Load,
    mut history: History,
) {
    cluster.wait_ready().await;
    let log = read_final(cluster, clock, &load.names(), &mut history).await;
    checker::assert_holds(&history, &log, &model::reducers());
    cluster.assert_replicas_agree().await;
}

/// Whether a stream is ballast, or of the load of another segment.
fn is_foreign(stream: &str, segment: Option<&str>) -> bool {
    stream.split('-').next() == Some(ballast::CATEGORY)
        || stream.split_once('.').map(|(_, segment)| segment) != segment
}

async fn check_lists(stores: Vec<Store>, segment: Option<&str>, log: &FinalLog) {
    let heads: Vec<(String, u64)> = log
        .streams
        .iter()
        .map(|(name, events)| (name.to_string(), events.len() as u64 - 1))
        .collect();
    for (i, mut store) in stores.into_iter().enumerate() {
        let mut streams = Vec::new();
        let mut pages = store
            .list_streams(v1::ListStreamsRequest::default())
            .await
            .expect("ListStreams")
            .into_inner();
        while let Some(page) = pages.message().await.expect("ListStreams") {
            let loads = page.streams.into_iter().filter(|s| !is_foreign(&s.stream, segment));
            streams.extend(loads.map(|s| (s.stream, s.revision)));
        }
        assert_eq!(streams, heads, "ListStreams through the {i}th");
        let mut states = Vec::new();
        let mut pages = store
            .list_states(v1::ListStatesRequest::default())
            .await
            .expect("ListStates")
            .into_inner();
        while let Some(page) = pages.message().await.expect("ListStates") {
            let loads = page.states.into_iter().filter(|s| !is_foreign(&s.stream, segment));
            states.extend(loads.map(|s| (s.stream, s.revision)));
        }
        assert_eq!(states, heads, "ListStates through the {i}th");
    }
}
