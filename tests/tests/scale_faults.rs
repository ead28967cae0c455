//! Faults while partitions move.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests
#![allow(clippy::print_stderr)] // progress

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::cluster::{LocalCluster, Settings, eventually, factor};
use ringfold_tests::load::{Load, Running};
use ringfold_tests::moving::{self, Judge, PROGRESS_MAX, REST_MAX};
use ringfold_tests::shim::Survivors;

/// Moves one after the other, and slowly, so that faults hit them in their middle.
fn slow_moves(partitions: u32) -> Settings {
    moving::settings(partitions, "4MiB")
}

fn steady(seed: u64) -> Load {
    Load { seed, streams: 32, pad_bytes: 1 << 10, ..Load::default() }
}

/// A cluster, what its load is judged by, and the load.
async fn started(settings: Settings, seed: u64) -> (LocalCluster, Judge, Running) {
    let cluster = LocalCluster::start(settings).await;
    let (judge, running) = Judge::start(&cluster, steady(seed), 300).await;
    (cluster, judge, running)
}

/// Kills one node after the other until nothing moves any more, `rounds` at least.
async fn kill_while_it_moves(
    cluster: &mut LocalCluster,
    running: &Running,
    rng: &mut StdRng,
    rounds: u32,
) {
    let mut round = 0;
    let deadline = Instant::now() + REST_MAX;
    loop {
        let at_rest = cluster.plan().await.is_ok_and(|p| p.at_rest);
        if round >= rounds && at_rest {
            return;
        }
        assert!(Instant::now() < deadline, "still moving: {:?}", cluster.plan().await);
        let up: Vec<usize> = (0..cluster.nodes.len()).filter(|i| cluster.is_running(*i)).collect();
        if round < rounds {
            let victim = up[rng.random_range(0..up.len())];
            cluster.kill(victim);
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..1_500))).await;
            cluster.start_node(victim);
            cluster.wait_ready().await;
            running.progress(20, PROGRESS_MAX).await;
            eprintln!("round {round}: node {victim} killed and back, at rest before: {at_rest}");
        } else {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        round += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_killed_again_and_again_while_partitions_come_and_go() {
    let (mut cluster, judge, running) = started(slow_moves(16), 41).await;
    let mut rng = StdRng::seed_from_u64(41);
    let fourth = cluster.grow();
    cluster.wait_members(4).await;
    kill_while_it_moves(&mut cluster, &running, &mut rng, 5 * factor()).await;
    cluster.wait_at_rest(4, REST_MAX).await;
    eprintln!("four nodes: at rest");
    cluster.drain(1).await.unwrap();
    kill_while_it_moves(&mut cluster, &running, &mut rng, 5 * factor()).await;
    cluster.wait_at_rest(3, REST_MAX).await;
    cluster.remove(1, REST_MAX).await;
    assert!(cluster.is_running(fourth));
    judge.judge(&cluster, running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_turns_round_in_its_middle_and_two_drains_at_once() {
    let (mut cluster, judge, running) = started(slow_moves(16), 42).await;
    let (fourth, fifth) = (cluster.grow(), cluster.grow());
    cluster.wait_at_rest(5, REST_MAX).await;
    for _ in 0..3 {
        cluster.drain(2).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.undrain(2).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    cluster.wait_at_rest(5, REST_MAX).await;
    eprintln!("turned round, at rest");
    // Both at once, one of the old nodes and one of the new.
    cluster.drain(0).await.unwrap();
    cluster.drain(fourth).await.unwrap();
    cluster.wait_at_rest(3, REST_MAX).await;
    cluster.remove(0, REST_MAX).await;
    cluster.remove(fourth, REST_MAX).await;
    assert!(cluster.is_running(fifth));
    running.progress(100, PROGRESS_MAX).await;
    judge.judge(&cluster, running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_moves_that_is_stopped_for_20_s_and_goes_on_harms_nothing() {
    let (mut cluster, judge, running) = started(slow_moves(16), 43).await;
    cluster.grow();
    cluster.wait_members(4).await;
    let leader = cluster.meta_leader().await;
    cluster.pause(leader);
    tokio::time::sleep(Duration::from_secs(20)).await;
    cluster.resume(leader);
    cluster.wait_at_rest(4, REST_MAX).await;
    running.progress(100, PROGRESS_MAX).await;
    judge.judge(&cluster, running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_without_power_in_the_middle_of_moves() {
    let settings = Settings { shim: true, ..slow_moves(16) };
    let (mut cluster, judge, running) = started(settings, 44).await;
    cluster.grow();
    cluster.wait_members(4).await;
    for round in 0..2 * factor() {
        tokio::time::sleep(Duration::from_millis(600 + 500 * u64::from(round))).await;
        cluster.kill_all();
        for i in 0..4 {
            cluster.lose_power(i, Survivors::None);
        }
        for i in 0..4 {
            cluster.start_node(i);
        }
        cluster.wait_ready().await;
    }
    cluster.wait_at_rest(4, REST_MAX).await;
    running.progress(100, PROGRESS_MAX).await;
    judge.judge(&cluster, running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_rebuilt_elsewhere_and_an_old_data_directory_is_sent_away() {
    let mut settings = slow_moves(16);
    settings.env.push(("RINGFOLD_NODE_REPAIR_AFTER_MS".into(), "4000".into()));
    let (mut cluster, judge, running) = started(settings, 45).await;
    cluster.grow();
    cluster.wait_at_rest(4, REST_MAX).await;
    cluster.kill(1);
    let lost = cluster.node_id(1).await;
    eventually("nothing is left on the lost node", REST_MAX, || async {
        let node = cluster.running().next().ok_or("no node runs")?;
        let topology = node.topology().await.map_err(|s| s.to_string())?;
        let holds =
            |p: &&ringfold_proto::v1::Partition| p.replicas.iter().any(|r| r.node_id == lost);
        match topology.partition_map.iter().filter(holds).count() {
            0 => Ok(()),
            n => Err(format!("{n} partitions, {:?}", cluster.plan().await)),
        }
    })
    .await;
    eprintln!("repaired");
    // It comes back: a member like any other, with new replicas.
    cluster.start_node(1);
    cluster.wait_at_rest(4, REST_MAX).await;
    eprintln!("back again, at rest");
    cluster.drain(1).await.unwrap();
    cluster.wait_at_rest(3, REST_MAX).await;
    cluster.remove(1, REST_MAX).await;
    // Its data directory is brought back.
    cluster.start_node(1);
    assert_eq!(cluster.wait_exit(1, REST_MAX).await, 5, "{}", cluster.nodes[1].log());
    running.progress(100, PROGRESS_MAX).await;
    judge.judge(&cluster, running).await;
}
