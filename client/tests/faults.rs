//! The client against a cluster with planned faults.
#![allow(clippy::unwrap_used)] // helpers of tests count as outside of tests
mod support;

use std::{collections::HashSet, time::Duration};

use futures::TryStreamExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use ringfold_client::{
    Client, ClientConfig, ClientError, Consistency, Expected, ListOptions, NewEvent, ReadOptions,
};
use support::{FakeCluster, Fault};

fn event(n: usize) -> NewEvent {
    NewEvent::new("Counted", format!("{{\"n\":{n}}}"))
}

fn numbers(cluster: &FakeCluster, stream: &str) -> Vec<usize> {
    let shared = cluster.shared.lock();
    shared.streams[stream]
        .iter()
        .map(|e| {
            let v: serde_json::Value = serde_json::from_slice(&e.data).unwrap();
            v["n"].as_u64().unwrap() as usize
        })
        .collect()
}

#[tokio::test]
async fn an_append_is_tried_again_with_the_same_ids_and_stored_once() {
    let cluster = FakeCluster::start(2);
    let client = cluster.client().await;
    cluster.shared.lock().forwards = true;
    cluster.plan([Fault::Overloaded, Fault::UnknownLost, Fault::UnknownStored, Fault::Hang]);
    let appended =
        client.append("s-1", vec![event(1), event(2)], Expected::NoStream).await.unwrap();
    assert_eq!((appended.first_revision, appended.last_revision), (0, 1));
    assert_eq!(client.last_position(), appended.last_position);
    let shared = cluster.shared.lock();
    assert_eq!(shared.seen.len(), 5);
    let ids: HashSet<_> = shared.seen.iter().map(|(_, ids)| ids.clone()).collect();
    assert_eq!(ids.len(), 1, "each try had the same ids");
    assert_eq!(shared.streams["s-1"].len(), 2);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    cluster.plan([Fault::DiskFull]);
    let e = client.append("s-1", vec![event(1)], Expected::Any).await.unwrap_err();
    assert!(matches!(e, ClientError::Refused(_)) && e.is_not_stored(), "{e}");
    assert_eq!((e.reason(), e.is_retryable()), ("DISK_FULL", false));
    assert_eq!(e.server_error().unwrap().metadata["free_bytes"], "1");
    assert_eq!(cluster.shared.lock().seen.len(), 1);
}

#[tokio::test]
async fn a_refusal_after_an_unknown_try_stays_unknown() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    cluster.plan([Fault::UnknownStored, Fault::DiskFull]);
    let e = client.append("s-1", vec![event(1)], Expected::Any).await.unwrap_err();
    assert!(matches!(e, ClientError::Unknown { tries: 2, .. }), "{e}");
    assert_eq!(cluster.shared.lock().streams["s-1"].len(), 1);
}

#[tokio::test]
async fn an_append_without_an_answer_ends_at_the_deadline_as_unknown() {
    let cluster = FakeCluster::start(1);
    let mut config = cluster.config();
    config.deadline = Duration::from_millis(800);
    config.retry.try_timeout = Duration::from_millis(200);
    let client = Client::connect(config).await.unwrap();
    cluster.plan([Fault::Hang; 100]);
    let call = client.append("s-1", vec![event(1)], Expected::Any);
    // Ten times the deadline: a machine under load is slow, not endless.
    let ended = tokio::time::timeout(Duration::from_secs(8), call).await;
    let e = ended.expect("it ends").unwrap_err();
    assert!(matches!(e, ClientError::Unknown { .. }), "{e}");
    assert!(cluster.shared.lock().seen.len() >= 2, "it was tried again");
}

#[tokio::test]
async fn the_leader_that_a_refusal_names_is_asked_from_then_on() {
    let cluster = FakeCluster::start(3);
    let client = cluster.client().await;
    cluster.shared.lock().leaders.fill(2);
    for n in 0..3 {
        client.append("s-1", vec![event(n)], Expected::Any).await.unwrap();
    }
    let nodes: Vec<usize> = cluster.shared.lock().seen.iter().map(|s| s.0).collect();
    assert_eq!(nodes, [0, 2, 2, 2]);
}

#[tokio::test]
async fn the_leader_that_a_forwarded_answer_names_is_asked_from_then_on() {
    let cluster = FakeCluster::start(2);
    let client = cluster.client().await;
    {
        let mut shared = cluster.shared.lock();
        shared.leaders.fill(1);
        shared.forwards = true;
    }
    for n in 0..2 {
        client.append("s-1", vec![event(n)], Expected::Any).await.unwrap();
    }
    let nodes: Vec<usize> = cluster.shared.lock().seen.iter().map(|s| s.0).collect();
    assert_eq!(nodes, [0, 1]);
}

#[tokio::test]
async fn calls_go_on_through_another_node_when_the_leader_dies() {
    let mut cluster = FakeCluster::start(3);
    let client = cluster.client().await;
    client.append("s-1", vec![event(0)], Expected::Any).await.unwrap();
    cluster.kill(0);
    {
        let mut shared = cluster.shared.lock();
        shared.leaders.fill(1);
        shared.claimed_leaders.fill(1);
    }
    client.append("s-1", vec![event(1)], Expected::Any).await.unwrap();
    assert_eq!(numbers(&cluster, "s-1"), [0, 1]);
    let state = client.lookup("s-1", Consistency::Stale).await.unwrap();
    assert_eq!(state.unwrap().revision, 1);
}

#[tokio::test]
async fn without_any_node_an_append_is_unavailable_and_not_stored() {
    let mut cluster = FakeCluster::start(1);
    let mut config = cluster.config();
    config.deadline = Duration::from_millis(600);
    let url = cluster.url(0);
    let client = Client::connect(config.clone()).await.unwrap();
    cluster.kill(0);
    // The connection has no append in flight as it breaks; give its end a moment to arrive.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let e = client.append("s-1", vec![event(0)], Expected::Any).await.unwrap_err();
    assert!(matches!(e, ClientError::Unavailable { .. }), "{e:?}");
    assert!(e.is_not_stored() && e.is_retryable());
    assert!(e.to_string().contains("refused"), "names the cause: {e}");
    let e = Client::connect(config).await.err().expect("nobody answers");
    assert!(matches!(e, ClientError::Unavailable { .. }), "{e:?}");
    let e = client.node_status(&url).await.unwrap_err();
    assert!(matches!(e, ClientError::Unavailable { .. }), "{e:?}");
}

#[tokio::test]
async fn one_endpoint_of_many_is_enough_and_bad_ones_are_named() {
    let cluster = FakeCluster::start(1);
    let endpoints = ["http://127.0.0.1:1".to_owned(), cluster.url(0)];
    let client = Client::connect(ClientConfig::new(endpoints)).await.unwrap();
    assert_eq!(client.topology().await.unwrap().cluster_id, "fake");
    assert_eq!(client.node_status(&cluster.url(0)).await.unwrap().node_id, 1);
    let e = client.bootstrap(&cluster.url(0), Default::default()).await.unwrap_err();
    assert_eq!(e.reason(), "ALREADY_BOOTSTRAPPED");
    for bad in [vec![], vec!["localhost:2600"]] {
        let e = Client::connect(ClientConfig::new(bad)).await.err().unwrap();
        assert!(matches!(e, ClientError::Invalid(_)), "{e:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_no_state_and_an_error_to_read() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    let state = client.lookup("s-1", Consistency::Lease).await.unwrap();
    assert!(state.is_none());
    let read = client.read("s-1", ReadOptions::default());
    let e = read.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(e.reason(), "STREAM_NOT_FOUND");
}

#[tokio::test]
async fn a_read_that_breaks_goes_on_after_its_last_event() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    for n in 0..35 {
        client.append("s-1", vec![event(n)], Expected::Any).await.unwrap();
    }
    let read = async |options: ReadOptions, breaks_after: usize| {
        cluster.shared.lock().read_breaks_after = Some(breaks_after);
        let events: Vec<_> = client.read("s-1", options).try_collect().await.unwrap();
        events.iter().map(|e| e.revision).collect::<Vec<_>>()
    };
    for breaks_after in 0..4 {
        let all = read(ReadOptions::default(), breaks_after).await;
        assert_eq!(all, (0..35).collect::<Vec<_>>());
        let options = ReadOptions { backwards: true, ..Default::default() };
        let backwards = read(options, breaks_after).await;
        assert_eq!(backwards, (0..35).rev().collect::<Vec<_>>());
        let options =
            ReadOptions { from_revision: Some(5), max_count: Some(25), ..Default::default() };
        let some = read(options, breaks_after).await;
        assert_eq!(some, (5..30).collect::<Vec<_>>());
    }
    let options = ReadOptions { max_count: Some(0), ..Default::default() };
    assert!(read(options, 9).await.is_empty());
}

#[tokio::test]
async fn a_list_that_breaks_goes_on_after_its_last_name() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    let names: Vec<String> = (0..10).map(|n| format!("s-{n}")).collect();
    for name in &names {
        client.append(name, vec![event(0)], Expected::Any).await.unwrap();
    }
    cluster.shared.lock().read_breaks_after = Some(2);
    let listed: Vec<_> = client
        .list_streams(ListOptions::default())
        .map_ok(|s| s.stream)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(listed, names);
}

#[tokio::test]
async fn the_appender_keeps_each_streams_order_through_faults_and_the_death_of_a_leader() {
    const STREAMS: usize = 8;
    const EACH: usize = 150;
    let mut cluster = FakeCluster::start(3);
    let mut config = cluster.config();
    config.in_flight_max = 64;
    config.deadline = Duration::from_secs(60);
    let client = Client::connect(config).await.unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    cluster.plan((0..STREAMS * EACH).map(|_| match rng.random_range(0..100) {
        0..2 => Fault::Overloaded,
        2..4 => Fault::UnknownLost,
        4..6 => Fault::UnknownStored,
        _ => Fault::None,
    }));
    let appender = client.appender();
    let mut pending = Vec::new();
    for n in 0..EACH {
        if n == EACH / 2 {
            cluster.kill(0);
            let mut shared = cluster.shared.lock();
            shared.leaders = vec![1, 2, 1, 2];
            shared.claimed_leaders = vec![1, 2, 2, 2];
        }
        for s in 0..STREAMS {
            let stream = format!("s-{s}");
            let push = appender.push(&stream, vec![event(n)], Expected::Any);
            pending.push((s, push.await));
        }
    }
    appender.flush().await;
    let mut last = [None; STREAMS];
    for (s, answer) in pending {
        let appended = answer.await.unwrap();
        assert!(last[s] < Some(appended.first_revision), "each its own revision");
        last[s] = Some(appended.first_revision);
    }
    for s in 0..STREAMS {
        let want: Vec<usize> = (0..EACH).collect();
        assert_eq!(numbers(&cluster, &format!("s-{s}")), want);
    }
}

#[tokio::test]
async fn after_a_failure_for_good_later_appends_of_the_stream_fail_until_it_is_resumed() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    let appender = client.appender();
    cluster.plan([Fault::None, Fault::DiskFull]);
    let mut pending = Vec::new();
    for n in 0..4 {
        pending.push(appender.push("s-1", vec![event(n)], Expected::Any).await);
    }
    let mut reasons = Vec::new();
    for answer in pending {
        reasons.push(answer.await.map_err(|e| e.reason().to_owned()).err());
    }
    let earlier = Some("EARLIER_APPEND_FAILED".to_owned());
    let full = Some("DISK_FULL".to_owned());
    assert_eq!(reasons, [None, full, earlier.clone(), earlier]);
    let refused = appender.push("s-1", vec![event(9)], Expected::Any).await;
    assert_eq!(refused.await.unwrap_err().reason(), "EARLIER_APPEND_FAILED");
    // Another stream does not mind.
    let other = appender.push("s-2", vec![event(0)], Expected::Any).await;
    other.await.unwrap();
    appender.resume("s-1");
    for n in 1..4 {
        let again = appender.push("s-1", vec![event(n)], Expected::Any).await;
        again.await.unwrap();
    }
    assert_eq!(numbers(&cluster, "s-1"), [0, 1, 2, 3]);
}

#[tokio::test]
async fn what_is_in_flight_ends_after_the_appender_is_dropped() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    let appender = client.appender();
    cluster.plan([Fault::Overloaded]);
    let pending = appender.push("s-1", vec![event(0)], Expected::Any).await;
    drop(appender);
    pending.await.unwrap();
    assert_eq!(numbers(&cluster, "s-1"), [0]);
}

#[tokio::test]
async fn an_append_over_the_limit_is_refused_before_it_hurts_its_neighbours() {
    let cluster = FakeCluster::start(1);
    let appender = cluster.client().await.appender();
    let data = vec![b'1'; 5 << 20];
    let e = appender
        .push("s-1", vec![NewEvent::new("T", data)], Expected::Any)
        .await
        .await
        .unwrap_err();
    assert_eq!(e.reason(), "APPEND_TOO_LARGE");
    assert_eq!(e.server_error().unwrap().metadata["limit"], "4194304");
    let events = (0..1_025).map(event).collect();
    let e = appender.push("s-1", events, Expected::Any).await;
    assert!(e.await.unwrap_err().to_string().contains("1024"));
    assert!(cluster.shared.lock().seen.is_empty());
}
