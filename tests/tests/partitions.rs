//! Nodes that lose each other: real processes, each in a network namespace. Needs root; elsewhere
//! these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::cluster::{LocalCluster, READY_MAX, Settings, eventually, factor};
use ringfold_tests::history::{Clock, Consistency, LookupOutcome};
use ringfold_tests::load::{self, Load, judge};
use ringfold_tests::netns::Net;

const NODES: usize = 3;
const PROGRESS_MAX: Duration = Duration::from_secs(60);

fn network() -> Option<Arc<Net>> {
    match Net::new(NODES) {
        Ok(net) => Some(net),
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            None
        }
    }
}

async fn cluster(net: &Arc<Net>) -> LocalCluster {
    LocalCluster::start(Settings { nodes: NODES, net: Some(net.clone()), ..Settings::default() })
        .await
}

/// Whom node `asked` takes for the leader of a partition.
async fn leader_told_by(cluster: &LocalCluster, asked: usize, partition: u32) -> Option<usize> {
    let topology = cluster.nodes[asked].topology().await.ok()?;
    let leader = topology.partition_map.get(partition as usize)?.leader_node_id;
    let name = &topology.members.iter().find(|m| m.node_id == leader)?.name;
    cluster.nodes.iter().position(|n| n.name == *name)
}

/// Waits until all of `asked` take the same one for the leader, none of `not`.
async fn new_leader(cluster: &LocalCluster, asked: &[usize], not: usize, partition: u32) -> usize {
    eventually("a leader among the others", READY_MAX, || async {
        let mut told = Vec::new();
        for a in asked {
            told.push(leader_told_by(cluster, *a, partition).await);
        }
        match told[0] {
            Some(leader) if leader != not && told.iter().all(|t| *t == Some(leader)) => Ok(leader),
            _ => Err(format!("partition {partition} is led by {told:?}")),
        }
    })
    .await
}

/// A load runs while `fault` cuts the network, again and again, and `judge` has the last word.
fn faults_under_load(
    seed: u64,
    rounds: u32,
    fault: impl AsyncFn(&LocalCluster, &Net, &mut StdRng, u32),
) {
    let Some(net) = network() else { return };
    net.block_on(async {
        let cluster = cluster(&net).await;
        let (clock, mut rng) = (Clock::new(), StdRng::seed_from_u64(seed));
        let load = Load { seed, ..Load::default() };
        let running = load::start(&cluster, clock, &load);
        running.progress(200, PROGRESS_MAX).await;
        for _ in 0..rounds * factor() {
            let partition = rng.random_range(0..cluster.partitions());
            fault(&cluster, &net, &mut rng, partition).await;
            // The others go on without it.
            running.progress(100, PROGRESS_MAX).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
            net.heal();
            cluster.wait_ready().await;
            running.progress(100, PROGRESS_MAX).await;
        }
        let history = running.stop().await;
        judge(&cluster, clock, &load, history).await;
    });
}

#[test]
fn a_leader_that_loses_all_others_gives_no_wrong_answer_and_is_replaced() {
    faults_under_load(61, 2, async |cluster, net, _, partition| {
        let leader = cluster.leader_of(partition).await;
        net.isolate(leader);
        let others: Vec<usize> = (0..NODES).filter(|n| *n != leader).collect();
        new_leader(cluster, &others, leader, partition).await;
    });
}

#[test]
fn a_follower_that_loses_all_others_gives_no_wrong_answer_and_disturbs_nobody_when_it_is_back() {
    faults_under_load(62, 1, async |cluster, net, rng, partition| {
        let leader = cluster.leader_of(partition).await;
        net.isolate((leader + rng.random_range(1..NODES)) % NODES);
    });
}

#[test]
fn what_is_lost_in_one_direction_only_leads_to_no_wrong_answer() {
    let turn = std::cell::Cell::new(false);
    faults_under_load(63, 2, async |cluster, net, rng, partition| {
        let leader = cluster.leader_of(partition).await;
        let other = (leader + rng.random_range(1..NODES)) % NODES;
        // Both directions in turn.
        let (from, to) = if turn.replace(!turn.get()) { (leader, other) } else { (other, leader) };
        net.cut(from, to);
    });
}

#[test]
fn a_deaf_leader_and_a_mute_one_are_replaced() {
    let mute = std::cell::Cell::new(false);
    faults_under_load(64, 2, async |cluster, net, _, partition| {
        let leader = cluster.leader_of(partition).await;
        let others: Vec<usize> = (0..NODES).filter(|n| *n != leader).collect();
        // One after the other.
        let mute = mute.replace(!mute.get());
        for o in &others {
            if mute { net.cut(leader, *o) } else { net.cut(*o, leader) }
        }
        new_leader(cluster, &others, leader, partition).await;
    });
}

#[test]
fn a_node_alone_serves_no_linearizable_or_lease_read_and_a_stale_one_all_the_same() {
    let Some(net) = network() else { return };
    net.block_on(async {
        let cluster = cluster(&net).await;
        let (clock, load) = (Clock::new(), Load { seed: 65, ..Load::default() });
        let running = load::start(&cluster, clock, &load);
        running.progress(200, PROGRESS_MAX).await;
        let names = load.names();
        let partition = cluster.partition_of(&names[0]);
        let leader = cluster.leader_of(partition).await;
        let others: Vec<usize> = (0..NODES).filter(|n| *n != leader).collect();
        net.isolate(leader);
        // Whoever else leads was elected after every lease of the one that is alone.
        new_leader(&cluster, &others, leader, partition).await;
        running.progress(100, PROGRESS_MAX).await;
        let ask = async |consistency| {
            let mut store = cluster.nodes[leader].store();
            load::lookup(&mut store, clock, 100, names[0].clone(), consistency, 0).await.outcome
        };
        let (linearizable, lease, stale) = tokio::join!(
            ask(Consistency::Linearizable),
            ask(Consistency::Lease),
            ask(Consistency::Stale)
        );
        assert!(matches!(linearizable, LookupOutcome::Failed(_)), "{linearizable:?}");
        assert!(matches!(lease, LookupOutcome::Failed(_)), "{lease:?}");
        assert!(!matches!(stale, LookupOutcome::Failed(_)), "{stale:?}");
        net.heal();
        cluster.wait_ready().await;
        running.progress(100, PROGRESS_MAX).await;
        let history = running.stop().await;
        judge(&cluster, clock, &load, history).await;
    });
}
