//! A process dies between any two steps of a move, while writers and readers go on: the nodes'
//! failpoints say when. Builds without debug assertions have none; there these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests
#![allow(clippy::print_stderr)] // progress

use std::time::Duration;

use ringfold_tests::cluster::eventually;
use ringfold_tests::failpoints::{self, Action, Hit};
use ringfold_tests::moving::{self, Moving, PROGRESS_MAX};

const MEMBERS: usize = 3;
const PARTITIONS: u32 = 16;

/// What a new replica goes through until it has its data.
const COMING: [&str; 22] = [
    "meta-create-before",
    "meta-create-after",
    "create-folder-unsynced",
    "create-unsynced",
    "create-synced",
    "meta-admit-before",
    "meta-admit-after",
    "learner-proposed",
    "learner-done",
    "checkpoint-made",
    "checkpoint-prepared",
    "offer-taken",
    "chunk-first",
    "chunk-middle",
    "chunk-last",
    "chunk-written",
    "file-unsynced",
    "install-before-rename",
    "install-renamed",
    "install-taken",
    "install-unsynced",
    "install-synced",
];

/// What follows until the old one is gone.
const GOING: [&str; 16] = [
    "swap-proposed",
    "swap-done",
    "membership-unsynced",
    "membership-synced",
    "leave-proposed",
    "leave-done",
    "leadership-before",
    "removal-proposed",
    "removal-done",
    "meta-forget-before",
    "meta-forget-after",
    "destroy-before",
    "destroy-unsynced",
    "destroy-synced",
    "destroy-files-left",
    "destroy-done",
];

/// Another process than the one that stands at the point, by its part in the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Has the partition's new replica.
    Receiver,
    /// Leads the partition: sends the checkpoint, proposes its membership.
    Leader,
    /// Leads the moves.
    MetaLeader,
}

/// While one process stands at the point, the other one is killed.
const MEANWHILE: [(&str, Part); 16] = [
    ("meta-create-after", Part::Receiver),
    ("create-unsynced", Part::MetaLeader),
    ("meta-admit-after", Part::Leader),
    ("learner-proposed", Part::Receiver),
    ("learner-done", Part::MetaLeader),
    ("checkpoint-prepared", Part::Receiver),
    ("chunk-middle", Part::Receiver),
    ("chunk-written", Part::Leader),
    ("install-before-rename", Part::Leader),
    ("install-renamed", Part::MetaLeader),
    ("install-synced", Part::Leader),
    ("swap-proposed", Part::Receiver),
    ("swap-done", Part::MetaLeader),
    ("removal-proposed", Part::MetaLeader),
    ("meta-forget-before", Part::Leader),
    ("destroy-synced", Part::Leader),
];

async fn start(seed: u64) -> Option<Moving> {
    if !failpoints::EXIST {
        eprintln!("NOT RUN: failpoints are in builds with debug assertions only");
        return None;
    }
    Some(Moving::start(moving::settings(PARTITIONS, "64MiB"), seed).await)
}

/// The process ends at the point, starts again, and the cluster goes on.
async fn dies_at(m: &mut Moving, point: &str) {
    m.cluster.failpoints().arm(point, Action::Kill);
    let hit = m.wait_hit(point).await;
    assert_eq!(m.cluster.wait_exit(hit.node, PROGRESS_MAX).await, -1, "by a signal");
    m.cluster.start_node(hit.node);
    eprintln!("{point}: node {} was killed, partition {}", hit.node, hit.partition);
    m.running.progress(5, PROGRESS_MAX).await;
}

/// A process stands at the point, another one is killed and starts again, and both go on.
async fn another_dies_at(m: &mut Moving, point: &str, part: Part) {
    let points = m.cluster.failpoints();
    points.arm(point, Action::Hold);
    let hit = m.wait_hit(point).await;
    let victim = who(m, hit, part).await;
    m.cluster.kill(victim);
    points.go_on(point);
    m.cluster.start_node(victim);
    let Hit { node, partition } = hit;
    eprintln!("{point}: node {node} held, {part:?} {victim} killed, partition {partition}");
    m.running.progress(5, PROGRESS_MAX).await;
}

/// As the others know it: the node that is held may not answer.
async fn who(m: &Moving, hit: Hit, part: Part) -> usize {
    let others: Vec<usize> =
        (0..m.cluster.nodes.len()).filter(|n| *n != hit.node && m.cluster.is_running(*n)).collect();
    eventually("a part's node is known", Duration::from_secs(15), || async {
        for other in &others {
            let Ok(t) = m.cluster.nodes[*other].topology().await else { continue };
            let p = &t.partition_map[hit.partition as usize];
            let id = match part {
                Part::Receiver => p.replicas.iter().max_by_key(|r| r.replica_id).map(|r| r.node_id),
                Part::Leader => Some(p.leader_node_id),
                Part::MetaLeader => Some(t.meta_leader_node_id),
            };
            let name = t.members.iter().find(|m| Some(m.node_id) == id).map(|m| &m.name);
            let found = m.cluster.nodes.iter().position(|n| Some(&n.name) == name);
            if let Some(i) = found.filter(|i| m.cluster.is_running(*i)) {
                return Ok(i);
            }
        }
        Err("nobody says".to_string())
    })
    .await
}

async fn dies_at_each(seed: u64, points: &[&str]) {
    let Some(mut m) = start(seed).await else { return };
    for point in points {
        dies_at(&mut m, point).await;
    }
    m.finish_resize().await;
    m.end(MEMBERS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_at_any_point_of_a_replicas_coming_loses_nothing() {
    dies_at_each(71, &COMING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_at_any_point_of_a_replicas_going_loses_nothing() {
    dies_at_each(72, &GOING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_dies_while_another_stands_at_a_point_of_a_move() {
    let Some(mut m) = start(73).await else { return };
    for (point, part) in MEANWHILE {
        another_dies_at(&mut m, point, part).await;
    }
    m.finish_resize().await;
    m.end(MEMBERS).await;
}
