//! The cluster's size changes while writers and readers go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests
#![allow(clippy::print_stderr)] // progress

use std::time::Duration;

use ringfold_tests::cluster::{LocalCluster, Settings};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge};

const REST_MAX: Duration = Duration::from_secs(180);
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// An election (1 to 2 s) on two busy cores that also move partitions, and one attempt of a client
/// (4 s) that waited on a node that ended.
const OUTAGE_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_become_five_then_four_then_three_and_no_event_is_lost() {
    let settings = Settings { partitions: 16, ..Settings::default() };
    let mut cluster = LocalCluster::start(settings).await;
    let clock = Clock::new();
    let load = Load { seed: 31, streams: 48, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(200, PROGRESS_MAX).await;
    let from_ns = clock.now_ns();

    let (fourth, fifth) = (cluster.grow(), cluster.grow());
    cluster.wait_at_rest(5, REST_MAX).await;
    running.progress(200, PROGRESS_MAX).await;
    eprintln!("five nodes: at rest");

    // One of the first nodes leaves: it leads, it votes in the meta group, and clients use it.
    let began = std::time::Instant::now();
    cluster.drain(0).await.unwrap();
    cluster.wait_at_rest(4, REST_MAX).await;
    eprintln!("a drain under load: {:.1?}", began.elapsed());
    cluster.remove(0, REST_MAX).await;
    running.progress(200, PROGRESS_MAX).await;
    eprintln!("four nodes: at rest");

    let began = std::time::Instant::now();
    cluster.drain(fourth).await.unwrap();
    cluster.wait_at_rest(3, REST_MAX).await;
    eprintln!("a drain under load: {:.1?}", began.elapsed());
    cluster.remove(fourth, REST_MAX).await;
    running.progress(200, PROGRESS_MAX).await;
    eprintln!("three nodes: at rest");

    // The last three cannot become two.
    let refused = cluster.drain(fifth).await.unwrap_err();
    assert_eq!(ringfold_tests::cluster::reason(&refused), "DRAIN_IMPOSSIBLE", "{refused:?}");

    let to_ns = clock.now_ns();
    let history = running.stop().await;
    let (longest_ns, partition) =
        history.longest_append_outage_ns(from_ns, to_ns, |s| cluster.partition_of(s));
    let longest = Duration::from_nanos(longest_ns);
    eprintln!("longest time without an append: {longest:?}, partition {partition}");
    assert!(longest < OUTAGE_MAX, "partition {partition} took no append for {longest:?}");
    judge(&cluster, clock, &load, history).await;
}
