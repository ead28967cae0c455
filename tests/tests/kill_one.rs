//! One node dies again and again while writers and readers go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::cluster::{LocalCluster, Settings, factor};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge};
use ringfold_tests::shim::Survivors;

const ROUNDS: u32 = 6;
const DOWN_MS: std::ops::Range<u64> = 50..3_000;
/// An election (1 to 2 s), noticed and repeated once, on two busy cores, and one attempt of a client
/// (4 s) that waited on the dead node.
const OUTAGE_MAX: Duration = Duration::from_secs(12);
const PROGRESS_MAX: Duration = Duration::from_secs(60);

async fn one_by_one(shim: bool, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = LocalCluster::start(Settings { shim, ..Settings::default() }).await;
    let clock = Clock::new();
    let load = Load { seed, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    let from_ns = clock.now_ns();
    for _ in 0..ROUNDS * factor() {
        let victim = rng.random_range(0..cluster.nodes.len());
        cluster.kill(victim);
        if shim {
            cluster.lose_power(victim, Survivors::None);
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(DOWN_MS))).await;
        cluster.start_node(victim);
        // Its replicas are back in all groups before the next one dies: two are a majority.
        cluster.wait_ready().await;
        running.progress(50, PROGRESS_MAX).await;
    }
    let to_ns = clock.now_ns();
    let history = running.stop().await;
    let (longest_ns, partition) =
        history.longest_append_outage_ns(from_ns, to_ns, |s| cluster.partition_of(s));
    assert!(
        Duration::from_nanos(longest_ns) < OUTAGE_MAX,
        "partition {partition} took no append for {:?}",
        Duration::from_nanos(longest_ns)
    );
    judge(&cluster, clock, &load, history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_killed_again_and_again_gives_no_wrong_answer_and_no_long_outage() {
    one_by_one(false, 21).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_without_power_again_and_again_gives_no_wrong_answer_and_no_long_outage() {
    one_by_one(true, 22).await;
}

/// Bytes of log kept per partition: the least that is allowed, so that a short absence is enough.
const LOG_KEPT_BYTES: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fell_behind_the_kept_log_catches_up_by_a_checkpoint() {
    let mut cluster = LocalCluster::start(Settings {
        partitions: 2,
        env: vec![
            ("RINGFOLD_NODE_LOG_KEPT_BYTES".into(), LOG_KEPT_BYTES.to_string()),
            // The log is compacted behind what was flushed.
            ("RINGFOLD_NODE_MEMTABLE_BYTES".into(), (4 * LOG_KEPT_BYTES).to_string()),
        ],
        ..Settings::default()
    })
    .await;
    let clock = Clock::new();
    let load = Load {
        seed: 23,
        pad_bytes: 8 << 10,
        // What readers see is kept until the end.
        readers: 1,
        pause: Duration::from_millis(20),
        ..Load::default()
    };
    let running = load::start(&cluster, clock, &load);
    running.progress(50, PROGRESS_MAX).await;
    cluster.kill(2);
    // Until the others keep no entry that the absent one needs.
    let absent_at = cluster.status(0).await;
    let last_of = |p: Option<u32>| {
        absent_at.replicas.iter().find(|r| r.partition == p).map_or(0, |r| r.last_index)
    };
    let mut compacted = false;
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = cluster.status(0).await;
        compacted = now
            .replicas
            .iter()
            .filter(|r| r.partition.is_some())
            .all(|r| r.first_index > last_of(r.partition));
        if compacted {
            break;
        }
    }
    assert!(
        compacted,
        "the log was not compacted with {LOG_KEPT_BYTES} bytes kept: {:?}",
        cluster.status(0).await.replicas
    );
    cluster.start_node(2);
    cluster.wait_ready().await;
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
}
