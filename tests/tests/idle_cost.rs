//! What idle nodes cost. A report: figures are asserted nowhere, for they depend on the machine; what
//! is checked is that the nodes serve, idle, and that nothing of theirs is missing in the report.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::fs;
use std::time::{Duration, Instant};

use ringfold_tests::cluster::{LocalCluster, Settings, factor};

const PARTITIONS: u32 = 64;
const SETTLE: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(10);

struct Cost {
    cpu: Duration,
    resident_bytes: u64,
}

fn cost(pid: u32) -> Cost {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may hold spaces: fields are counted from its end.
    let fields: Vec<u64> = stat[stat.rfind(')').unwrap() + 2..]
        .split(' ')
        .map(|f| f.trim().parse().unwrap_or(0))
        .collect();
    // SAFETY: sysconf has no preconditions.
    let (tick, page) =
        unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    Cost {
        cpu: Duration::from_secs_f64((fields[11] + fields[12]) as f64 / tick as f64),
        resident_bytes: fields[21] * page as u64,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_nodes_serve_and_their_cost_is_reported() {
    let started_at = Instant::now();
    let cluster =
        LocalCluster::start(Settings { partitions: PARTITIONS, ..Settings::default() }).await;
    let serving_after = started_at.elapsed();
    let pids: Vec<u32> = cluster.nodes.iter().map(|n| n.pid().unwrap()).collect();
    tokio::time::sleep(SETTLE * factor()).await;
    let before: Vec<Cost> = pids.iter().map(|p| cost(*p)).collect();
    let measured = MEASURED * factor();
    tokio::time::sleep(measured).await;
    let after: Vec<Cost> = pids.iter().map(|p| cost(*p)).collect();
    let cpu: Duration = after.iter().zip(&before).map(|(a, b)| a.cpu - b.cpu).sum();
    let mut replicas = 0;
    for i in 0..cluster.nodes.len() {
        let status = cluster.status(i).await;
        let own = status.replicas.iter().filter(|r| r.partition.is_some()).count();
        assert_eq!(own, PARTITIONS as usize, "{status:?}");
        replicas += own;
    }
    let resident: u64 = after.iter().map(|c| c.resident_bytes).sum();
    eprintln!(
        "idle: {PARTITIONS} partitions on 3 nodes, serving after {serving_after:.1?}; \
         {:.1} % of one core for all three; {:.1} MiB resident a node, {:.2} MiB a replica",
        100.0 * cpu.as_secs_f64() / measured.as_secs_f64(),
        resident as f64 / 3.0 / f64::from(1 << 20),
        resident as f64 / replicas as f64 / f64::from(1 << 20),
    );
    assert!(resident > 0);
    cluster.wait_ready().await;
    cluster.assert_no_panic();
}
