//! What a node says of itself to whoever runs it, and how it stops when the cluster needs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::{Duration, Instant};

use ringfold_tests::cluster::{LocalCluster, Settings, eventually};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge};

const READY_MAX: Duration = Duration::from_secs(60);
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// Far longer than a restart takes, and far shorter than a test may.
const WAIT_MS: u64 = 120_000;

async fn wait_for(cluster: &LocalCluster, i: usize, path: &str, expected: u16) -> String {
    eventually(&format!("{path} of node {i} says {expected}"), READY_MAX, || async {
        match cluster.nodes[i].get(path).await {
            Some((status, text)) if status == expected => Ok(text),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_once_its_replicas_have_caught_up_and_lives_without_a_quorum() {
    let mut cluster = LocalCluster::start(Settings::default()).await;
    for i in 0..3 {
        wait_for(&cluster, i, "/readyz", 200).await;
    }
    let clock = Clock::new();
    let load = Load { seed: 41, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(200, PROGRESS_MAX).await;
    cluster.kill(0);
    running.progress(200, PROGRESS_MAX).await;
    cluster.start_node(0);
    wait_for(&cluster, 0, "/readyz", 200).await;
    let status = cluster.status(0).await;
    assert!(status.ready && status.waiting.is_empty(), "{status:?}");
    let text = wait_for(&cluster, 0, "/metrics", 200).await;
    for metric in [
        "ringfold_node_ready 1",
        "ringfold_node_replicas{role=\"closed\"} 0",
        "ringfold_node_applied_position{partition=\"3\"}",
        "ringfold_node_members{state=\"active\"} 3",
        "ringfold_node_disk_bytes{kind=\"free\"}",
    ] {
        assert!(text.contains(metric), "{metric} is not in\n{text}");
    }
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    let leaders = |text: &str| -> u32 {
        let line = "ringfold_node_replicas{role=\"leader\"} ";
        text.lines().find_map(|l| l.strip_prefix(line)).unwrap().parse().unwrap()
    };
    let mut led = 0;
    let mut appends = 0;
    for i in 0..3 {
        let text = wait_for(&cluster, i, "/metrics", 200).await;
        led += leaders(&text);
        let line = "ringfold_node_append_seconds_count ";
        let count: u64 = text.lines().find_map(|l| l.strip_prefix(line)).unwrap().parse().unwrap();
        appends += count;
    }
    assert_eq!(led, 4, "each partition has one leader");
    assert!(appends > 0, "clients append");
    judge(&cluster, clock, &load, history).await;

    // Alone, a node that starts lives, and cannot know how far the others are.
    for i in 0..3 {
        cluster.kill(i);
    }
    cluster.start_node(1);
    wait_for(&cluster, 1, "/livez", 200).await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let (status, why) = cluster.nodes[1].get("/readyz").await.unwrap();
        assert!(status == 503 && !why.trim().is_empty(), "{status}: {why}");
        assert_eq!(cluster.nodes[1].get("/livez").await.unwrap(), (200, "ok\n".into()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    cluster.start_node(0);
    wait_for(&cluster, 1, "/readyz", 200).await;
    // Once ready, it stays so without a quorum.
    cluster.kill(0);
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert_eq!(cluster.nodes[1].get("/readyz").await.unwrap().0, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_that_are_told_to_stop_one_serves_until_the_other_is_back() {
    let env = vec![("RINGFOLD_NODE_STOP_WAIT_MS".to_owned(), WAIT_MS.to_string())];
    let mut cluster = LocalCluster::start(Settings { env, ..Settings::default() }).await;
    for i in 0..3 {
        wait_for(&cluster, i, "/readyz", 200).await;
    }
    let clock = Clock::new();
    let load = Load { seed: 42, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    // The one with the lower id goes first.
    let (mut first, mut second) = (0, 1);
    if cluster.node_id(first).await > cluster.node_id(second).await {
        (first, second) = (second, first);
    }
    cluster.tell_to_stop(first);
    cluster.tell_to_stop(second);
    assert_eq!(cluster.ended(first, PROGRESS_MAX).await, Some(0));
    let (status, why) = cluster.nodes[second].get("/readyz").await.unwrap();
    assert_eq!((status, why.as_str()), (503, "it was told to stop\n"));
    // It goes on, and so do the clients.
    assert_eq!(cluster.ended(second, Duration::from_secs(5)).await, None);
    running.progress(100, PROGRESS_MAX).await;
    cluster.start_node(first);
    assert_eq!(
        cluster.ended(second, PROGRESS_MAX).await,
        Some(0),
        "{}",
        cluster.nodes[second].log()
    );
    running.progress(100, PROGRESS_MAX).await;
    cluster.start_node(second);
    wait_for(&cluster, second, "/readyz", 200).await;
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;

    // All at once: nobody waits for anybody.
    let began = Instant::now();
    for i in 0..3 {
        cluster.tell_to_stop(i);
    }
    for i in 0..3 {
        assert_eq!(cluster.ended(i, Duration::from_millis(WAIT_MS / 2)).await, Some(0));
    }
    eprintln!("all stopped within {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_twice_ends_though_it_is_needed() {
    let env = vec![("RINGFOLD_NODE_STOP_WAIT_MS".to_owned(), WAIT_MS.to_string())];
    let mut cluster = LocalCluster::start(Settings { env, ..Settings::default() }).await;
    wait_for(&cluster, 1, "/readyz", 200).await;
    cluster.kill(0);
    cluster.tell_to_stop(1);
    assert_eq!(cluster.ended(1, Duration::from_secs(5)).await, None);
    cluster.tell_to_stop(1);
    assert_eq!(cluster.ended(1, Duration::from_millis(WAIT_MS / 2)).await, Some(0));
}
