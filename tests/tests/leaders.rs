//! Fresh answers while leaders pause, move and restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::cluster::{LocalCluster, Settings, factor};
use ringfold_tests::history::{Clock, Consistency, History};
use ringfold_tests::load::{self, Load, judge};
use tokio::task::JoinSet;

const PAUSE: Duration = Duration::from_secs(20);
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// Lookups that wait at the paused leader for its return.
const WAITING: u32 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_for_20_seconds_shows_nothing_old_when_it_goes_on() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let clock = Clock::new();
    let load = Load { seed: 31, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(200, PROGRESS_MAX).await;
    let names = load.names();
    let leader = cluster.leader_of(cluster.partition_of(&names[0])).await;
    cluster.pause(leader);
    // Lookups pile up in its sockets: they are the first that it answers, with whatever it believes.
    let mut waiting = JoinSet::new();
    let until_ns = clock.now_ns() + (PAUSE + Duration::from_secs(3)).as_nanos() as u64;
    for i in 0..WAITING {
        let mut store = cluster.nodes[leader].store();
        let stream = names[i as usize % names.len()].clone();
        waiting.spawn(async move {
            let mut history = History::default();
            while clock.now_ns() < until_ns {
                let consistency = match i % 2 {
                    0 => Consistency::Lease,
                    _ => Consistency::Linearizable,
                };
                let lookup =
                    load::lookup(&mut store, clock, 100 + i, stream.clone(), consistency, 0).await;
                history.lookups.push(lookup);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            history
        });
    }
    tokio::time::sleep(PAUSE).await;
    running.progress(100, PROGRESS_MAX).await;
    cluster.resume(leader);
    let mut seen = History::default();
    while let Some(one) = waiting.join_next().await {
        seen.merge(one.unwrap());
    }
    running.progress(200, PROGRESS_MAX).await;
    let mut history = running.stop().await;
    history.merge(seen);
    judge(&cluster, clock, &load, history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_stay_fresh_while_leaders_move_again_and_again() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let clock = Clock::new();
    let load = Load { seed: 32, readers: 8, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    let mut rng = StdRng::seed_from_u64(32);
    let mut transferred = 0;
    for _ in 0..12 * factor() {
        let i = rng.random_range(0..cluster.nodes.len());
        let answer = cluster.nodes[i].transfer_leaders().await.unwrap();
        transferred += answer.transferred;
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..1_500))).await;
    }
    assert!(transferred > 0, "no leader has moved");
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
}

/// A stop hands leadership over, so that clients lose less than an election; attempts through the
/// stopped node itself cost some.
const RESTART_OUTAGE_MAX: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_ends_each_node_with_0_and_loses_nothing() {
    let mut cluster = LocalCluster::start(Settings::default()).await;
    let clock = Clock::new();
    let load = Load { seed: 33, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    let from_ns = clock.now_ns();
    for i in 0..cluster.nodes.len() {
        let stopped_at = std::time::Instant::now();
        assert_eq!(cluster.stop(i).await, 0, "exit code after SIGTERM");
        eprintln!("node {i} stopped within {:?}", stopped_at.elapsed());
        // With one of three away, no other may go.
        let other = (i + 1) % 3;
        ringfold_tests::cluster::eventually("a safe stop is denied", PROGRESS_MAX, || async {
            let answer = cluster.nodes[other].safe_to_stop().await.map_err(|s| s.to_string())?;
            if answer.safe || answer.reasons.is_empty() {
                return Err(format!("{answer:?}"));
            }
            Ok(())
        })
        .await;
        cluster.start_node(i);
        cluster.wait_ready().await;
        ringfold_tests::cluster::eventually("a stop is safe again", PROGRESS_MAX, || async {
            let answer = cluster.nodes[other].safe_to_stop().await.map_err(|s| s.to_string())?;
            if !answer.safe {
                return Err(format!("{answer:?}"));
            }
            Ok(())
        })
        .await;
    }
    let to_ns = clock.now_ns();
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    let (longest_ns, partition) =
        history.longest_append_outage_ns(from_ns, to_ns, |s| cluster.partition_of(s));
    assert!(
        Duration::from_nanos(longest_ns) < RESTART_OUTAGE_MAX,
        "partition {partition} took no append for {:?}",
        Duration::from_nanos(longest_ns)
    );
    judge(&cluster, clock, &load, history).await;
}
