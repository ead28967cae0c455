//! Long runs (`make test-long`): random faults for `RINGFOLD_LONG_MINUTES` minutes from
//! `RINGFOLD_LONG_SEED` (else the clock), and a large cluster that changes its size. Each writes its
//! row into docs/reliability.md. Without the variable these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use ringfold_proto::v1::{Member, MemberState};
use ringfold_tests::ballast::Ballast;
use ringfold_tests::cluster::{LocalCluster, Settings};
use ringfold_tests::history::{Clock, History};
use ringfold_tests::load::{self, Load, Running, judge};
use ringfold_tests::netns::Net;
use ringfold_tests::resize::Resize;
use ringfold_tests::shim::Survivors;

const PARTITIONS: u32 = 64;
const NODES: usize = 7;
/// The nodes, one that joins, and one that has left but whose place is not free yet.
const PLACES: usize = NODES + 2;
/// A load is judged after so long, and a new one begins: a history lives in memory.
const SEGMENT: Duration = Duration::from_secs(300);
const PROGRESS_MAX: Duration = Duration::from_secs(120);
const REST_MAX: Duration = Duration::from_secs(600);
const GIB: u64 = 1 << 30;

fn minutes() -> Option<u64> {
    let minutes = std::env::var("RINGFOLD_LONG_MINUTES").ok();
    if minutes.is_none() {
        eprintln!("NOT RUN: set RINGFOLD_LONG_MINUTES, or run `make test-long`");
    }
    Some(minutes?.parse().expect("RINGFOLD_LONG_MINUTES is a whole number from 1"))
}

fn seed() -> u64 {
    let seed = std::env::var("RINGFOLD_LONG_SEED").ok();
    seed.map_or_else(
        || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 1_000_000,
        |s| s.parse().expect("RINGFOLD_LONG_SEED is a whole number"),
    )
}

/// A row of the table at the end of docs/reliability.md, written however the run ends.
struct Row {
    seed: u64,
    start: Instant,
    what: String,
    faults: BTreeMap<&'static str, u64>,
    operations: usize,
}

impl Row {
    fn new(seed: u64, what: &str) -> Self {
        let (start, what) = (Instant::now(), what.to_string());
        Self { seed, start, what, faults: BTreeMap::new(), operations: 0 }
    }

    fn count(&mut self, history: &History) {
        self.operations += history.appends.len() + history.reads.len() + history.lookups.len();
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        let output = |command: &str, args: &[&str]| {
            let out = Command::new(command).args(args).output();
            out.map_or_else(
                |_| "?".into(),
                |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
            )
        };
        let date = output("date", &["-u", "+%F"]);
        // The rows before this one are no change of what runs.
        let mut commit = output("git", &["rev-parse", "--short", "HEAD"]);
        if !output(
            "git",
            &["status", "--porcelain", "-uno", ":(top)", ":(top,exclude)docs/reliability.md"],
        )
        .is_empty()
        {
            commit.push_str(" and changes");
        }
        let build = if cfg!(debug_assertions) { "debug" } else { "release" };
        let faults: Vec<String> =
            self.faults.iter().map(|(name, n)| format!("{n} {name}")).collect();
        let result = if std::thread::panicking() { "FAILED" } else { "holds" };
        let minutes = self.start.elapsed().as_secs_f64() / 60.0;
        let row = format!(
            "| {date} | {commit} ({build}) | {} | {minutes:.1} | {}{} | {} | {result} |\n",
            self.seed,
            self.what,
            faults.join(", "),
            self.operations
        );
        eprint!("{row}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md");
        let mut text = std::fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&row);
        if let Err(e) = std::fs::write(&path, text) {
            eprintln!("{} is not written: {e}", path.display());
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    KillTwo,
    Pause,
    PowerOfOne,
    PowerOfAll,
    OneDirection,
    Isolate,
    Split,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kills",
            Fault::KillTwo => "kills of two",
            Fault::Pause => "stops",
            Fault::PowerOfOne => "power losses",
            Fault::PowerOfAll => "power losses of all",
            Fault::OneDirection => "directions cut",
            Fault::Isolate => "nodes cut off",
            Fault::Split => "splits",
        }
    }

    fn random(rng: &mut StdRng, net: bool) -> Self {
        let process =
            [Fault::Kill, Fault::KillTwo, Fault::Pause, Fault::PowerOfOne, Fault::PowerOfAll];
        let network = [Fault::OneDirection, Fault::Isolate, Fault::Split];
        if net && rng.random_bool(0.4) {
            *network.choose(rng).unwrap()
        } else {
            *process.choose(rng).unwrap()
        }
    }
}

struct Run {
    cluster: LocalCluster,
    net: Option<Arc<Net>>,
    resize: Resize,
    rng: StdRng,
}

impl Run {
    fn pick(&mut self, n: usize) -> Vec<usize> {
        let running: Vec<usize> = (0..self.cluster.nodes.len())
            .filter(|i| self.cluster.is_running(*i) && self.resize.leaving() != Some(*i))
            .collect();
        running.choose_multiple(&mut self.rng, n).copied().collect()
    }

    async fn sleep(&mut self, max_ms: u64) {
        let ms = self.rng.random_range(50..max_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Makes a fault, and ends it; says whom it struck.
    async fn fault(&mut self, fault: Fault) -> Vec<usize> {
        let struck = match fault {
            Fault::KillTwo => self.pick(2),
            Fault::PowerOfAll => self.pick(usize::MAX),
            Fault::OneDirection => self.pick(2),
            Fault::Split => {
                let n = self.rng.random_range(2..=3);
                self.pick(n)
            }
            _ => self.pick(1),
        };
        match fault {
            Fault::Kill | Fault::KillTwo | Fault::PowerOfOne | Fault::PowerOfAll => {
                struck.iter().for_each(|i| self.cluster.crash(*i));
                if matches!(fault, Fault::PowerOfOne | Fault::PowerOfAll) {
                    for i in &struck {
                        let survivors = match self.rng.random_bool(0.5) {
                            true => Survivors::None,
                            false => Survivors::Random { seed: self.rng.random() },
                        };
                        self.cluster.lose_power(*i, survivors);
                    }
                }
                if !matches!(fault, Fault::PowerOfAll) {
                    self.sleep(4_000).await;
                }
                struck.iter().for_each(|i| self.cluster.start_node(*i));
            }
            Fault::Pause => {
                self.cluster.pause(struck[0]);
                self.sleep(15_000).await;
                self.cluster.resume(struck[0]);
            }
            Fault::OneDirection | Fault::Isolate | Fault::Split => {
                let net = self.net.clone().expect("a network");
                match fault {
                    Fault::OneDirection => net.cut(struck[0], struck[1]),
                    Fault::Isolate => net.isolate(struck[0]),
                    _ => {
                        let others = (0..self.cluster.nodes.len()).filter(|n| !struck.contains(n));
                        let live = others.filter(|n| self.cluster.is_running(*n));
                        for other in live.collect::<Vec<_>>() {
                            struck.iter().for_each(|n| net.partition(*n, other));
                        }
                    }
                }
                self.sleep(15_000).await;
                net.heal();
            }
        }
        struck
    }

    /// Waits until nothing moves, and a node that was removed has left: its process takes a moment to
    /// end, and answers nothing meanwhile.
    async fn wait_at_rest(&mut self, running: &Running) {
        let deadline = Instant::now() + REST_MAX;
        while let Err(why) = self.at_rest().await {
            assert!(Instant::now() < deadline, "not at rest within {REST_MAX:?}: {why}");
            if self.resize.leaving().is_some() {
                self.resize.go_on(&mut self.cluster, running).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Else why not.
    async fn at_rest(&self) -> Result<(), String> {
        if let Some(i) = self.resize.leaving() {
            return Err(format!("node {i} was removed, and has not ended"));
        }
        let plan = self.cluster.plan().await?;
        if !plan.at_rest {
            return Err(format!("{plan:?}"));
        }
        // Also one whose removal was taken although nobody answered the call.
        for node in self.cluster.running() {
            let topology = node.topology().await.map_err(|s| format!("{}: {s}", node.name))?;
            let removed = |m: &&Member| m.state == MemberState::Removed as i32;
            for member in topology.members.iter().filter(removed) {
                if self.cluster.running().any(|n| n.name == member.name) {
                    return Err(format!("{} was removed, and has not ended", member.name));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn random_faults_on_seven_nodes_that_come_and_go() {
    let Some(minutes) = minutes() else { return };
    let net = Net::new(PLACES).map_err(|why| eprintln!("no network faults: {why}")).ok();
    match net.clone() {
        Some(n) => n.block_on(random_faults(minutes, net)),
        None => tokio::runtime::Runtime::new().unwrap().block_on(random_faults(minutes, None)),
    }
}

async fn random_faults(minutes: u64, net: Option<Arc<Net>>) {
    let seed = seed();
    eprintln!("RINGFOLD_LONG_SEED={seed}, {minutes} minutes");
    let env = [
        // So that replicas take checkpoints, too.
        ("RINGFOLD_NODE_LOG_KEPT_BYTES", "1MiB"),
        ("RINGFOLD_NODE_MEMTABLE_BYTES", "32MiB"),
    ];
    let env = env.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    let settings = Settings {
        nodes: NODES,
        partitions: PARTITIONS,
        shim: true,
        net: net.clone(),
        env,
        ..Settings::default()
    };
    let cluster = LocalCluster::start(settings).await;
    let ballast = Ballast::new(seed, PARTITIONS, u64::from(PARTITIONS) << 21, 32 << 10);
    ballast.append(&cluster).await;
    let (resize, rng) = (Resize::new(NODES), StdRng::seed_from_u64(seed));
    let mut run = Run { cluster, net, resize, rng };
    let mut row = Row::new(seed, "");
    let (end, clock) = (Instant::now() + Duration::from_secs(60 * minutes), Clock::new());
    let mut round = 0;
    for segment in 1.. {
        let load =
            Load { seed: seed + u64::from(segment), segment, streams: 96, ..Load::default() };
        let running = load::start(&run.cluster, clock, &load);
        let until = end.min(Instant::now() + SEGMENT);
        while Instant::now() < until {
            let fault = Fault::random(&mut run.rng, run.net.is_some());
            let struck = run.fault(fault).await;
            *row.faults.entry(fault.name()).or_default() += 1;
            running.progress(20, PROGRESS_MAX).await;
            for _ in 0..run.rng.random_range(1..20) {
                run.resize.go_on(&mut run.cluster, &running).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            round += 1;
            eprintln!(
                "{:.1} min, round {round}: {fault:?} {struck:?}; {} acknowledged, {} joined, {} left",
                row.start.elapsed().as_secs_f64() / 60.0,
                running.acknowledged(),
                run.resize.grown,
                run.resize.left,
            );
        }
        run.wait_at_rest(&running).await;
        let history = running.stop().await;
        row.count(&history);
        judge(&run.cluster, clock, &load, history).await;
        if Instant::now() >= end {
            break;
        }
    }
    ballast.verify(&run.cluster).await;
    row.faults.insert("checkpoints installed", run.cluster.checkpoints_installed() as u64);
    row.faults.insert("nodes joined", run.resize.grown.into());
    row.faults.insert("nodes left", run.resize.left.into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gib_in_64_partitions_on_three_nodes_that_become_five_then_four_then_three() {
    if minutes().is_none() {
        return;
    }
    let seed = seed();
    eprintln!("RINGFOLD_LONG_SEED={seed}");
    let mut row = Row::new(seed, "1 GiB of events, 3 to 5 to 4 to 3 nodes");
    // Less than a partition has: checkpoints move it, not the log.
    let env = vec![("RINGFOLD_NODE_LOG_KEPT_BYTES".to_string(), "4MiB".to_string())];
    let settings = Settings { partitions: PARTITIONS, env, ..Settings::default() };
    let mut cluster = LocalCluster::start(settings).await;
    let ballast = Ballast::new(seed, PARTITIONS, GIB, 64 << 10);
    assert!(ballast.bytes() >= GIB);
    let mut step = Instant::now();
    let mut took = |what: &str| {
        eprintln!("{what}: {:.1} s", step.elapsed().as_secs_f64());
        step = Instant::now();
    };
    ballast.append(&cluster).await;
    took("1 GiB of events appended");
    let (clock, load) = (Clock::new(), Load { seed, streams: 96, ..Load::default() });
    let running = load::start(&cluster, clock, &load);
    running.progress(200, PROGRESS_MAX).await;
    took("load begun");
    let from_ns = clock.now_ns();

    let (fourth, _) = (cluster.grow(), cluster.grow());
    cluster.wait_at_rest(5, REST_MAX).await;
    running.use_nodes(&cluster);
    took("three to five nodes");
    leave(&mut cluster, &running, 0, 4).await;
    took("five to four nodes");
    leave(&mut cluster, &running, fourth, 3).await;
    took("four to three nodes");

    let to_ns = clock.now_ns();
    let history = running.stop().await;
    let (longest_ns, partition) =
        history.longest_append_outage_ns(from_ns, to_ns, |s| cluster.partition_of(s));
    eprintln!(
        "longest time without an append: {:?}, partition {partition}",
        Duration::from_nanos(longest_ns)
    );
    let checkpoints = cluster.checkpoints_installed();
    eprintln!("{checkpoints} checkpoints installed");
    assert!(checkpoints > 0);
    row.count(&history);
    judge(&cluster, clock, &load, history).await;
    ballast.verify(&cluster).await;
    took("judged");
}

async fn leave(cluster: &mut LocalCluster, running: &Running, node: usize, members: usize) {
    cluster.drain(node).await.unwrap();
    cluster.wait_at_rest(members, REST_MAX).await;
    cluster.remove(node, REST_MAX).await;
    running.use_nodes(cluster);
    running.progress(200, PROGRESS_MAX).await;
}
