//! The same event ids again: stored once, the same answer, whatever happened between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use bytes::Bytes;
use ringfold_proto::v1::{
    AppendRequest, AppendResponse, AppendStreamRequest, ReadRequest, append_stream_response,
};
use ringfold_tests::cluster::{LocalCluster, Settings, detail, reason, timed, within};
use ringfold_tests::history::{Event, Expected};
use ringfold_tests::load::append_request;
use tokio::task::JoinSet;
use tonic::Code;

const CALL_MAX: Duration = Duration::from_secs(10);

fn events(ids: std::ops::Range<u128>) -> Vec<Event> {
    ids.map(|id| Event { id, data: Bytes::from(format!("{{\"n\":{id}}}")) }).collect()
}

async fn append(
    cluster: &LocalCluster,
    node: usize,
    request: AppendRequest,
) -> Result<AppendResponse, tonic::Status> {
    let mut store = cluster.nodes[node].store();
    within(store.append(timed(request, CALL_MAX)), CALL_MAX).await
}

async fn length(cluster: &LocalCluster, stream: &str) -> usize {
    let mut store = cluster.nodes[0].store();
    let request = ReadRequest { stream: stream.into(), ..ReadRequest::default() };
    let mut pages = store.read(request).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(page) = pages.message().await.unwrap() {
        count += page.events.len();
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_has_the_same_answer_through_every_node_and_after_restarts() {
    let mut cluster = LocalCluster::start(Settings::default()).await;
    let first = append_request("order-1", &events(0..3), Expected::NoStream, 0);
    let answer = append(&cluster, 0, first.clone()).await.unwrap();
    // Others' events come after it: the expected revision of the retry is long over.
    let other = append_request("order-1", &events(10..11), Expected::Any, 0);
    append(&cluster, 1, other).await.unwrap();
    for node in 0..3 {
        assert_eq!(append(&cluster, node, first.clone()).await.unwrap(), answer);
    }
    let mut expected_otherwise = first.clone();
    expected_otherwise.expected = append_request("order-1", &[], Expected::Exact(77), 0).expected;
    assert_eq!(
        append(&cluster, 2, expected_otherwise).await.unwrap(),
        answer,
        "ids come before the expected revision"
    );
    cluster.kill_all();
    for node in 0..3 {
        cluster.start_node(node);
    }
    cluster.wait_ready().await;
    for node in 0..3 {
        assert_eq!(append(&cluster, node, first.clone()).await.unwrap(), answer);
    }
    for node in 0..3 {
        assert_eq!(cluster.stop(node).await, 0);
        cluster.start_node(node);
        cluster.wait_ready().await;
    }
    assert_eq!(append(&cluster, 1, first).await.unwrap(), answer);
    assert_eq!(length(&cluster, "order-1").await, 4);
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_append_many_times_at_once_is_stored_once() {
    let cluster = LocalCluster::start(Settings::default()).await;
    for round in 0..10u128 {
        let stream = format!("order-{round}");
        let request =
            append_request(&stream, &events(100 * round..100 * round + 2), Expected::NoStream, 0);
        let mut calls = JoinSet::new();
        for i in 0..24 {
            let mut store = cluster.nodes[i % 3].store();
            let request = timed(request.clone(), CALL_MAX);
            calls.spawn(async move { within(store.append(request), CALL_MAX).await });
        }
        let answers: Vec<_> = calls
            .join_all()
            .await
            .into_iter()
            .map(|a| a.expect("each of them is answered"))
            .collect();
        assert!(answers.windows(2).all(|p| p[0] == p[1]), "{answers:?}");
        assert_eq!(length(&cluster, &stream).await, 2);
    }
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_append_twice_within_one_packed_entry_is_stored_once() {
    let cluster = LocalCluster::start(Settings { partitions: 1, ..Settings::default() }).await;
    // Pipelined, so that neighbours share an entry; each append is sent three times in a row.
    const APPENDS: u64 = 200;
    let requests = (0..3 * APPENDS).map(|i| {
        let n = u128::from(i / 3);
        AppendStreamRequest {
            sequence: i,
            append: Some(append_request("order-1", &events(10 * n..10 * n + 2), Expected::Any, 0)),
            resume: i == 0,
        }
    });
    let mut store = cluster.nodes[1].store();
    let mut answers = store
        .append_stream(tokio_stream::iter(requests.collect::<Vec<_>>()))
        .await
        .unwrap()
        .into_inner();
    let mut by_append: Vec<Vec<AppendResponse>> = vec![Vec::new(); APPENDS as usize];
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.result.unwrap() {
            append_stream_response::Result::Ok(ok) => {
                by_append[(answer.sequence / 3) as usize].push(ok);
            }
            append_stream_response::Result::Error(e) => panic!("{}: {e:?}", answer.sequence),
        }
    }
    for (n, answers) in by_append.iter().enumerate() {
        assert_eq!(answers.len(), 3);
        assert!(answers.windows(2).all(|p| p[0] == p[1]), "{answers:?}");
        assert_eq!(answers[0].first_revision, 2 * n as u64);
    }
    assert_eq!(length(&cluster, "order-1").await, 2 * APPENDS as usize);
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_with_other_content_or_in_other_company_is_a_conflict() {
    let cluster = LocalCluster::start(Settings::default()).await;
    append(&cluster, 0, append_request("order-1", &events(0..3), Expected::Any, 0)).await.unwrap();
    let mut other = events(0..3);
    other[1].data = Bytes::from_static(b"{\"other\":true}");
    let conflicts = [
        ("other content", other),
        ("one known, one new", events(2..4)),
        ("one new, one known", {
            let mut e = events(9..10);
            e.extend(events(0..1));
            e
        }),
        ("another order", {
            let mut e = events(0..3);
            e.swap(0, 1);
            e
        }),
    ];
    for (what, events) in conflicts {
        let refused = append(&cluster, 1, append_request("order-1", &events, Expected::Any, 0))
            .await
            .expect_err(what);
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::AlreadyExists, "EVENT_ID_CONFLICT"),
            "{what}"
        );
        assert!(detail(&refused, "id").is_some(), "{what}: names the id");
    }
    assert_eq!(length(&cluster, "order-1").await, 3);
    // In another stream the same id is another event.
    append(&cluster, 2, append_request("order-2", &events(0..3), Expected::Any, 0)).await.unwrap();
    cluster.assert_no_panic();
}
