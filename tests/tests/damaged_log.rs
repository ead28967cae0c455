//! A log that lost its end, or is not what was written: that node's replicas close and say so, and
//! the others go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::path::Path;
use std::time::Duration;

use ringfold_proto::v1::{ReplicaState, ReplicaStatus};
use ringfold_tests::cluster::{LocalCluster, Settings, eventually};
use ringfold_tests::disk;
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge};

const VICTIM: usize = 1;
/// WATERMARK may be a second behind the log.
const WATERMARK_MAX: Duration = Duration::from_millis(2_500);
const PROGRESS_MAX: Duration = Duration::from_secs(60);
const NOTICED_MAX: Duration = Duration::from_secs(30);

/// What the damage is to close.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closes {
    /// The log lost its end: who knows what each replica has promised.
    All,
    /// Those that the damaged bytes belong to, if it is known which.
    Some,
}

/// Runs a load, kills one node, damages its log, starts it again: it must have noticed.
async fn damaged(seed: u64, closes: Closes, yesterday: bool, damage: impl FnOnce(&Path)) {
    let mut cluster = LocalCluster::start(Settings::default()).await;
    let clock = Clock::new();
    let load = Load { seed, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(150, PROGRESS_MAX).await;
    let data = cluster.nodes[VICTIM].data_dir.clone();
    let kept = data.with_extension("yesterday");
    if yesterday {
        tokio::time::sleep(WATERMARK_MAX).await;
        cluster.kill(VICTIM);
        disk::copy_dir(&data.join("log"), &kept);
        cluster.start_node(VICTIM);
        cluster.wait_ready().await;
        running.progress(200, PROGRESS_MAX).await;
    }
    let mut history = running.stop().await;
    // Nothing is written any more, and what was is marked.
    tokio::time::sleep(WATERMARK_MAX).await;
    cluster.kill(VICTIM);
    if yesterday {
        std::fs::remove_dir_all(data.join("log")).unwrap();
        disk::copy_dir(&kept, &data.join("log"));
    }
    damage(&data);
    cluster.start_node(VICTIM);

    let status = eventually("the damage is reported", NOTICED_MAX, || async {
        let status = cluster.nodes[VICTIM].status().await.map_err(|s| s.to_string())?;
        let closed = |r: &&ReplicaStatus| {
            r.state == ReplicaState::Closed as i32 && !r.closed_reason.is_empty()
        };
        let count = status.replicas.iter().filter(closed).count();
        let all = count == status.replicas.len() && !status.lost_reason.is_empty();
        if all || closes == Closes::Some && count > 0 {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    eprintln!("reported: {status:?}");

    // The cluster goes on without it, and what is asked of it is answered by others or not at all.
    let load = Load { seed: seed + 1, ..load };
    let running = load::start(&cluster, clock, &load);
    running.progress(150, PROGRESS_MAX).await;
    history.merge(running.stop().await);
    judge_with_one_closed(&cluster, clock, &load, history).await;

    // What was closed never comes back to life: it is still closed, or rebuilt as another replica.
    cluster.kill(VICTIM);
    cluster.start_node(VICTIM);
    let was_closed: Vec<u64> = status
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Closed as i32)
        .map(|r| r.replica_id)
        .collect();
    eventually("what was closed stays closed, or is gone", NOTICED_MAX, || async {
        let status = cluster.status(VICTIM).await;
        let lives = |r: &&ReplicaStatus| {
            was_closed.contains(&r.replica_id) && r.state != ReplicaState::Closed as i32
        };
        assert_eq!(status.replicas.iter().find(lives), None);
        // Of a log that is gone nobody knows which replicas it had.
        let lost = closes == Closes::Some || !status.lost_reason.is_empty();
        let rebuilt = |p: u32| {
            let of = |r: &&ReplicaStatus| {
                r.partition == Some(p) && r.state != ReplicaState::Closed as i32
            };
            status.replicas.iter().any(|r| of(&r))
        };
        let closed = status.replicas.iter().any(|r| r.state == ReplicaState::Closed as i32);
        let all_rebuilt = (0..cluster.partitions()).all(rebuilt);
        if lost && (closed || closes == Closes::All || all_rebuilt) {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
}

/// As `judge`, but stale lookups at the closed node are refused, so it is asked nothing. A panic
/// that is caught and closes one replica is how such damage may show.
async fn judge_with_one_closed(
    cluster: &LocalCluster,
    clock: Clock,
    load: &Load,
    mut history: ringfold_tests::history::History,
) {
    let others = [0, 2].map(|i| cluster.nodes[i].store()).to_vec();
    let log = load::read_final_on(others, clock, &load.names(), &mut history).await;
    ringfold_tests::checker::assert_holds(&history, &log, &ringfold_tests::model::reducers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_synced_bytes_cut_off_are_noticed() {
    damaged(41, Closes::All, false, |data| {
        disk::cut_end(&disk::newest_log_file(data), 600);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_flipped_in_the_middle_is_noticed() {
    damaged(43, Closes::Some, false, |data| {
        disk::flip_bit(&disk::newest_log_file(data), 0.5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yesterdays_log_put_back_is_noticed() {
    damaged(45, Closes::All, true, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_is_noticed() {
    damaged(47, Closes::All, false, |data| {
        std::fs::remove_dir_all(data.join("log")).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undamaged_log_is_not_taken_for_a_damaged_one() {
    let mut cluster = LocalCluster::start(Settings::default()).await;
    let clock = Clock::new();
    let load = Load { seed: 49, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    for _ in 0..3 {
        running.progress(50, PROGRESS_MAX).await;
        cluster.kill(VICTIM);
        cluster.start_node(VICTIM);
        let status = cluster.status(VICTIM).await;
        assert_eq!(status.lost_reason, "");
    }
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
}
