//! Checkpoints that arrive damaged, are not what their manifest says, or do not fit: an error that
//! says so, another try, and nothing half installed. Needs nodes with failpoints, the full disk root
//! as well; elsewhere these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use ringfold_tests::cluster::{LocalCluster, Settings, Turn, eventually, scratch};
use ringfold_tests::disk::SmallDisk;
use ringfold_tests::failpoints::{self, Action};
use ringfold_tests::moving::{self, Moving, names};

const PARTITIONS: u32 = 16;
const SAID_MAX: Duration = Duration::from_secs(90);
const NEW: usize = 3;

/// Where the damage is done, and what the receiver says of it.
const DAMAGES: [(&str, &str); 5] = [
    ("chunk-damaged", "its checksum is another"),
    ("chunk-missing", "a chunk is empty or larger than asked for"),
    ("file-cut-short", "UNREADABLE"),
    ("manifest-lies", "the manifest is of term"),
    ("transfer-version", "another version of the protocol"),
];
const FAILED: &str = "checkpoint not installed";
const INSTALLED: &str = "checkpoint installed";

fn exist() -> bool {
    if !failpoints::EXIST {
        eprintln!("NOT RUN: failpoints are in builds with debug assertions only");
    }
    failpoints::EXIST
}

fn said<'a>(log: &'a str, what: &str) -> Vec<&'a str> {
    log.lines().filter(|l| l.contains(what)).collect()
}

/// Databases that came as checkpoints: those made empty are the first of their replica.
fn installed(m: &Moving) -> usize {
    let databases = names(&m.cluster.nodes[NEW].data_dir.join("partitions"));
    databases.iter().filter(|n| !n.ends_with(".1")).count()
}

/// While the damage goes on, transfers fail, say why, and are tried again.
async fn fails(m: &Moving, point: &str, reason: &str) {
    let node = &m.cluster.nodes[NEW];
    let before = said(&node.log(), FAILED).len();
    eventually(&format!("{point}: two tries fail"), SAID_MAX, || async {
        let log = node.log();
        let failed = &said(&log, FAILED)[before..];
        match failed.iter().filter(|l| l.contains(reason)).count() {
            2.. => Ok(()),
            n => Err(format!("{n} times {reason:?}: {failed:?}")),
        }
    })
    .await;
    // Whatever was on its way when the damage began has ended by now.
    assert_eq!(said(&node.log(), INSTALLED).len(), installed(m), "{point}: half installed");
    eprintln!("{point}: {reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_not_what_it_should_be_is_never_installed_and_fetched_again() {
    if !exist() {
        return;
    }
    let mut m = Moving::start(moving::settings(PARTITIONS, "8MiB"), 91).await;
    let points = m.cluster.failpoints();
    // One damaged chunk, or a short one: the same transfer mends that.
    points.arm("chunk-damaged", Action::Alter);
    assert_eq!(m.cluster.grow(), NEW);
    m.running.use_nodes(&m.cluster);
    points.wait(&m.cluster, "chunk-damaged", SAID_MAX).await;
    points.arm("chunk-short", Action::Alter);
    points.wait(&m.cluster, "chunk-short", SAID_MAX).await;
    eventually("the damaged file is fetched again", SAID_MAX, || async {
        let log = m.cluster.nodes[NEW].log();
        let again = said(&log, "a damaged file is fetched again");
        if again.is_empty() { Err(log.lines().count().to_string()) } else { Ok(()) }
    })
    .await;
    // From one damage to the next without a moment in between in which all is well.
    let mut before = None;
    for (point, reason) in DAMAGES {
        points.arm(point, Action::AlterAlways);
        before.map(|point| points.disarm(point));
        fails(&m, point, reason).await;
        before = Some(point);
    }
    before.map(|point| points.disarm(point));
    m.end(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_whose_disk_fills_up_says_so_and_takes_the_checkpoint_once_there_is_room() {
    if !exist() {
        return;
    }
    let turn = Turn::take().await;
    let disk = match SmallDisk::new(scratch(), "receiver", 1 << 30) {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            return;
        }
    };
    let settings = Settings {
        data_dirs: vec![(NEW, disk.path().join("data"))],
        ..moving::settings(PARTITIONS, "64MiB")
    };
    let mut cluster = LocalCluster::create(turn, settings);
    (0..3).for_each(|i| cluster.start_node(i));
    cluster.bootstrap(0).await;
    cluster.wait_ready().await;
    let mut m = Moving::with(cluster, 92).await;
    let points = m.cluster.failpoints();

    // Nearly full before an offer: refused by name, and nothing comes.
    points.arm("checkpoint-made", Action::Hold);
    assert_eq!(m.cluster.grow(), NEW);
    m.running.use_nodes(&m.cluster);
    let sender = points.wait(&m.cluster, "checkpoint-made", SAID_MAX).await.node;
    let free = disk.free_bytes();
    disk.fill_to(8 << 20);
    points.go_on("checkpoint-made");
    eventually("the offer is refused", SAID_MAX, || async {
        let log = m.cluster.nodes[sender].log();
        let refused = said(&log, "checkpoint not sent");
        match refused.iter().any(|l| l.contains("DISK_FULL") && l.contains("bytes free")) {
            true => Ok(()),
            false => Err(format!("{refused:?}")),
        }
    })
    .await;
    eprintln!("refused: DISK_FULL");

    // Full to the last byte while it comes.
    points.arm("chunk-written", Action::Hold);
    disk.clear();
    points.wait(&m.cluster, "chunk-written", SAID_MAX).await;
    assert!(disk.free_bytes() > free / 2);
    disk.fill_to(0);
    points.go_on("chunk-written");
    // The node may end on this (its log cannot grow), or fail to write the files, and live on.
    eventually("the receiver fails or ends", SAID_MAX, || {
        let log = m.cluster.nodes[NEW].log();
        let full = log.contains("No space left on device");
        std::future::ready(if full { Ok(()) } else { Err("not yet".to_string()) })
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    disk.clear();
    if !m.cluster.has_exited(NEW) {
        m.cluster.kill(NEW);
    }
    eprintln!("full in the middle");
    m.cluster.start_node(NEW);
    m.end(4).await;
}
