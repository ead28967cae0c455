//! The test support itself: what it starts ends with it, its disks fill up, its damage is damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfold_tests::cluster::{
    Turn, binary, eventually, free_ports, has_ended, partition_of, scratch, spawn, wait_exit,
};
use ringfold_tests::disk::{self, SmallDisk};

/// Set in the process that is to be killed in the middle.
const CHILD: &str = "RINGFOLD_TEST_HARNESS_CHILD";

#[tokio::test]
async fn nodes_die_with_a_test_that_is_killed() {
    if std::env::var_os(CHILD).is_some() {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        // From a thread that ends: the node is to outlive it.
        let mut child = std::thread::spawn(|| spawn(sleep).unwrap()).join().unwrap();
        eprintln!("pid={}", child.id());
        child.wait().unwrap();
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "nodes_die_with_a_test_that_is_killed", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut test = spawn(test).unwrap();
    let mut lines = BufReader::new(test.stderr.take().unwrap()).lines();
    let pid: u32 =
        lines.find_map(|l| l.unwrap().strip_prefix("pid=").map(|p| p.parse().unwrap())).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        Path::new(&format!("/proc/{pid}")).exists(),
        "it outlives the thread that asked for it"
    );
    test.kill().unwrap();
    test.wait().unwrap();
    eventually("it dies with the test", Duration::from_secs(5), || async {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie, where nobody collects orphans, is dead as well.
        if state.is_empty() || state.contains(") Z ") { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test]
async fn a_childs_end_is_seen_and_its_exit_code_can_still_be_read() {
    let mut command = Command::new("sh");
    command.args(["-c", "read line; exit 7"]).stdin(Stdio::piped());
    let mut child = spawn(command).unwrap();
    assert!(!has_ended(&child));
    drop(child.stdin.take());
    for _ in 0..2 {
        eventually("its end is seen", Duration::from_secs(5), || {
            std::future::ready(has_ended(&child).then_some(()).ok_or("it runs".to_owned()))
        })
        .await;
    }
    let status = wait_exit(&mut child, Duration::ZERO).await.unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(has_ended(&child), "and stays so");
}

#[tokio::test]
async fn clusters_take_turns() {
    let first = Turn::take().await;
    let waiting = tokio::spawn(async {
        let _second = Turn::take().await;
        Instant::now()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let given_back_at = Instant::now();
    drop(first);
    assert!(waiting.await.unwrap() >= given_back_at);
}

#[test]
fn a_missing_binary_says_what_to_do() {
    let message = std::panic::catch_unwind(|| binary("ringfold-nothing", "RINGFOLD_NOTHING_BIN"))
        .unwrap_err()
        .downcast::<String>()
        .unwrap();
    assert!(message.contains("cargo build --bins"), "{message}");
    assert!(message.contains("RINGFOLD_NOTHING_BIN"), "{message}");
}

#[test]
fn ports_are_free_and_differ() {
    let ports = free_ports(40);
    let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
    assert_eq!(distinct.len(), 40);
}

#[test]
fn streams_spread_over_all_partitions() {
    assert_eq!(partition_of("customer-42", 1), 0);
    for partitions in [2, 4, 64] {
        let hit: std::collections::BTreeSet<u32> =
            (0..2_000).map(|i| partition_of(&format!("customer-{i}"), partitions)).collect();
        assert_eq!(hit.len(), partitions as usize);
        assert!(hit.iter().all(|p| *p < partitions));
    }
}

#[tokio::test]
async fn a_small_disk_fills_up_and_is_cleared() {
    let _turn = Turn::take().await;
    let disk = match SmallDisk::new(scratch(), "harness", 64 << 20) {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            return;
        }
    };
    let free = disk.free_bytes();
    assert!(free > 32 << 20 && free <= disk.total_bytes());
    disk.fill_to(1 << 20);
    assert!(disk.free_bytes() <= 2 << 20, "{}", disk.free_bytes());
    let full = fs::write(disk.path().join("more"), vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    fs::remove_file(disk.path().join("more")).unwrap();
    disk.clear();
    assert!(disk.free_bytes() > free - (1 << 20));
}

#[test]
fn damage_is_done_to_what_was_written_and_not_to_the_room_behind_it() {
    let dir = scratch().join("damage");
    fs::create_dir_all(dir.join("log")).unwrap();
    let path = dir.join("log/0000000000000002.raftlog");
    fs::write(dir.join("log/0000000000000001.raftlog"), [9; 200]).unwrap();
    let mut content = vec![7; 1_000];
    content.extend([0; 5_000]);
    fs::write(&path, &content).unwrap();
    assert_eq!(disk::newest_log_file(&dir), path);
    assert_eq!(disk::used_bytes(&path), 1_000);
    disk::flip_bit(&path, 0.5);
    let flipped = fs::read(&path).unwrap();
    let differ: Vec<usize> = (0..content.len()).filter(|i| flipped[*i] != content[*i]).collect();
    assert_eq!(differ, [500]);
    disk::cut_end(&path, 300);
    assert_eq!(fs::read(&path).unwrap(), &flipped[..700]);
}
