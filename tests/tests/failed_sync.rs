//! A sync that fails never ends in an acknowledgement: the node ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use ringfold_tests::cluster::{LocalCluster, Settings};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge_answers};
use ringfold_tests::shim::Survivors;

const PROGRESS_MAX: Duration = Duration::from_secs(60);
const END_MAX: Duration = Duration::from_secs(20);
/// Exit code: the log cannot be written or synced.
const LOG_FAILED: i32 = 4;

async fn fail_on(nodes: &[usize], seed: u64) {
    let mut cluster = LocalCluster::start(Settings { shim: true, ..Settings::default() }).await;
    let clock = Clock::new();
    let load = Load { seed, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    for i in nodes {
        cluster.nodes[*i].shim().fail_syncs(true);
    }
    for i in nodes {
        assert_eq!(cluster.wait_exit(*i, END_MAX).await, LOG_FAILED, "node {i}");
    }
    // What the failed syncs were to keep is lost.
    for i in nodes {
        cluster.nodes[*i].shim().fail_syncs(false);
        cluster.lose_power(*i, Survivors::None);
        cluster.start_node(*i);
    }
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    // raft-engine itself panics on a failed sync; what counts is how the node ends.
    judge_answers(&cluster, clock, &load, history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_sync_fails_ends_and_the_others_go_on() {
    fail_on(&[0], 51).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_when_the_syncs_of_all_nodes_fail() {
    fail_on(&[0, 1, 2], 52).await;
}
