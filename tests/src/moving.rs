//! What tests of moves begin and end with: partitions large enough that new replicas take
//! checkpoints of several chunks, a load, and a judgement that nothing was lost or left over.
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ballast::Ballast;
use crate::cluster::{LocalCluster, Settings, eventually};
use crate::failpoints::{self, Action, Hit};
use crate::history::Clock;
use crate::load::{self, Load, Running, judge};
use crate::resize::Resize;

/// More than a partition's log keeps.
const BALLAST_BYTES_PER_PARTITION: u64 = 5 << 19;
const BALLAST_EVENT_BYTES: usize = 64 << 10;
const HIT_MAX: Duration = Duration::from_secs(90);
pub const REST_MAX: Duration = Duration::from_secs(240);
pub const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// Settings for moves by checkpoints, one after the other on each node.
pub fn settings(partitions: u32, move_bytes_per_s: &str) -> Settings {
    let env = [
        ("RINGFOLD_NODE_MOVES_PER_NODE", "1"),
        ("RINGFOLD_NODE_MOVE_BYTES_PER_S", move_bytes_per_s),
        ("RINGFOLD_NODE_LOG_KEPT_BYTES", "1MiB"),
        ("RINGFOLD_NODE_MEMTABLE_BYTES", "16MiB"),
    ];
    let env = env.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
    Settings { partitions, env, failpoints: failpoints::EXIST, ..Settings::default() }
}

/// What a load on moving partitions is judged by.
pub struct Judge {
    clock: Clock,
    load: Load,
    ballast: Ballast,
}

impl Judge {
    /// Makes partitions large and starts the load; waits for so many acknowledged appends.
    pub async fn start(cluster: &LocalCluster, load: Load, progress: u64) -> (Self, Running) {
        let ballast = load_down(cluster, load.seed).await;
        let clock = Clock::new();
        let running = load::start(cluster, clock, &load);
        running.progress(progress, PROGRESS_MAX).await;
        (Self { clock, load, ballast }, running)
    }

    /// Checkpoints have moved, everything is there, and the history is right.
    pub async fn judge(self, cluster: &LocalCluster, running: Running) {
        assert!(cluster.checkpoints_installed() > 0 || !failpoints::EXIST);
        let history = running.stop().await;
        self.ballast.verify(cluster).await;
        judge(cluster, self.clock, &self.load, history).await;
    }
}

/// Makes partitions larger than the log that is kept.
async fn load_down(cluster: &LocalCluster, seed: u64) -> Ballast {
    if failpoints::EXIST {
        // Else the databases would only be flushed, and the logs compacted, after a minute.
        cluster.failpoints().arm("flush-early", Action::AlterAlways);
    }
    let partitions = cluster.partitions();
    let bytes = u64::from(partitions) * BALLAST_BYTES_PER_PARTITION;
    let ballast = Ballast::new(seed, partitions, bytes, BALLAST_EVENT_BYTES);
    ballast.append(cluster).await;
    ballast
}

/// A cluster whose partitions are to move, under load.
pub struct Moving {
    pub cluster: LocalCluster,
    pub running: Running,
    pub resize: Resize,
    judge: Judge,
}

impl Moving {
    pub async fn start(settings: Settings, seed: u64) -> Self {
        Self::with(LocalCluster::start(settings).await, seed).await
    }

    /// On a cluster that is there.
    pub async fn with(cluster: LocalCluster, seed: u64) -> Self {
        let load = Load { seed, streams: 32, ..Load::default() };
        let (judge, running) = Judge::start(&cluster, load, 100).await;
        let resize = Resize::new(cluster.nodes.len());
        Self { cluster, running, resize, judge }
    }

    /// Partitions move until the armed point is hit.
    pub async fn wait_hit(&mut self, point: &str) -> Hit {
        let points = self.cluster.failpoints();
        let deadline = Instant::now() + HIT_MAX;
        loop {
            if let Some(hit) = points.hit(&self.cluster, point) {
                return hit;
            }
            let plan = self.cluster.plan().await;
            assert!(Instant::now() < deadline, "{point} is not hit: {plan:?}");
            if plan.is_ok_and(|p| p.at_rest) {
                self.resize.go_on(&mut self.cluster, &self.running).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a checkpoint is on its way.
    pub async fn wait_copying(&self) {
        eventually("a checkpoint is on its way", HIT_MAX, || async {
            let plan = self.cluster.plan().await?;
            match plan.moves.iter().any(|m| m.phase == "copying") {
                true => Ok(()),
                false => Err(format!("{plan:?}")),
            }
        })
        .await;
    }

    /// Goes on until a node has joined and one has left.
    pub async fn finish_resize(&mut self) {
        let deadline = Instant::now() + REST_MAX;
        while !(self.resize.is_small() && self.resize.left > 0) {
            let plan = self.cluster.plan().await;
            assert!(Instant::now() < deadline, "no end of {:?}: {plan:?}", self.resize);
            self.resize.go_on(&mut self.cluster, &self.running).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Lets the moves end, and judges.
    pub async fn end(self, members: usize) {
        self.cluster.wait_at_rest(members, REST_MAX).await;
        self.running.progress(100, PROGRESS_MAX).await;
        self.judge.judge(&self.cluster, self.running).await;
        let mut replicas = 0;
        for node in self.cluster.running() {
            replicas += nothing_left_over(&node.data_dir).await;
        }
        // Each partition's three, and the meta group's one on each node.
        assert_eq!(replicas, 3 * self.cluster.partitions() as usize + members);
    }
}

/// Only live databases are on the disk, one of each replica; gives their number.
async fn nothing_left_over(data: &Path) -> usize {
    eventually("nothing is left over", PROGRESS_MAX, || async {
        // A sender keeps what it has made for another try, but nothing half made.
        let making = names(&data.join("checkpoints")).into_iter().filter(|n| n.contains("making"));
        let left: Vec<_> = names(&data.join("incoming")).into_iter().chain(making).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let databases = names(&data.join("partitions"));
    let mut ids: Vec<&str> = databases.iter().filter_map(|n| n.split('.').next()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), databases.len(), "two databases of one replica: {databases:?}");
    ids.len()
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
