//! Calls about members and moves, against a cluster whose leader changes.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests count as outside of tests
#[allow(dead_code)] // each file of tests uses a part of it
mod support;

use std::time::Duration;

use futures::StreamExt as _;
use ringfold_client::{Client, ClientConfig, ClientError, DrainProgress, RebalancePlan};
use support::FakeCluster;

fn progress(replicas_at_start: u32, replicas_left: u32) -> DrainProgress {
    DrainProgress {
        node_id: 2,
        replicas_at_start,
        replicas_left,
        done: replicas_left == 0,
        ..DrainProgress::default()
    }
}

fn plan(epoch: u64) -> RebalancePlan {
    RebalancePlan { epoch, ..RebalancePlan::default() }
}

#[tokio::test]
async fn a_drain_goes_on_with_the_next_leader_and_ends_when_it_is_done() {
    let cluster = FakeCluster::start(2);
    let client = cluster.client().await;
    cluster.shared.lock().drains = [
        vec![Ok(progress(9, 9)), Ok(progress(9, 7)), Err("NO_LEADER")],
        vec![Err("NO_LEADER")],
        // The answers break off where the node that gave them is stopped.
        vec![Ok(progress(6, 5))],
        vec![Ok(progress(3, 3)), Ok(progress(3, 0)), Ok(progress(3, 0))],
    ]
    .into();
    let all: Vec<_> = client.drain(2).map(Result::unwrap).collect().await;
    let seen: Vec<_> = all.iter().map(|p| (p.replicas_at_start, p.replicas_left)).collect();
    assert_eq!(seen, [(9, 9), (9, 7), (9, 5), (9, 3), (9, 0)]);
}

#[tokio::test]
async fn a_drain_that_is_refused_ends_with_the_refusal() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    cluster.shared.lock().drains =
        [vec![Ok(progress(9, 9)), Err("MEMBER_REFUSED")], vec![Ok(progress(9, 0))]].into();
    let mut drain = client.drain(2);
    assert_eq!(drain.next().await.unwrap().unwrap().replicas_left, 9);
    let e = drain.next().await.unwrap().unwrap_err();
    assert!(matches!(e, ClientError::Refused(_)) && e.reason() == "MEMBER_REFUSED", "{e}");
    assert!(drain.next().await.is_none());
    assert_eq!(cluster.shared.lock().drains.len(), 1, "it is not said again");
}

#[tokio::test]
async fn a_drain_without_any_leader_ends_at_the_deadline() {
    let cluster = FakeCluster::start(1);
    let config = ClientConfig { deadline: Duration::from_millis(500), ..cluster.config() };
    let client = Client::connect(config).await.unwrap();
    let e = client.drain(2).next().await.unwrap().unwrap_err();
    let ClientError::Unavailable { tries, last } = e else { panic!("{e}") };
    assert!(tries > 1);
    assert_eq!(last.reason, "NO_LEADER");
}

#[tokio::test]
async fn a_watch_leaves_a_node_that_leads_no_more() {
    let cluster = FakeCluster::start(2);
    let client = cluster.client().await;
    cluster.shared.lock().watches = [
        vec![Ok(plan(0)), Ok(plan(1))],
        vec![Ok(plan(2)), Ok(plan(3)), Ok(plan(0)), Ok(plan(3))],
        vec![Ok(plan(4))],
    ]
    .into();
    let epochs: Vec<_> = client.rebalance_watch().take(3).map(|p| p.unwrap().epoch).collect().await;
    assert_eq!(epochs, [2, 3, 4]);
}

#[tokio::test]
async fn a_removal_without_an_answer_is_said_again() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    client.remove_member(5).await.unwrap();
    assert_eq!(cluster.shared.lock().removed, [(5, 0), (5, 0)]);
}

#[tokio::test]
async fn a_client_at_an_epoch_names_it_with_every_try() {
    let cluster = FakeCluster::start(1);
    let client = cluster.client().await;
    client.at_epoch(7).remove_member(5).await.unwrap();
    assert_eq!(cluster.shared.lock().removed, [(5, 7), (5, 7)]);
}
