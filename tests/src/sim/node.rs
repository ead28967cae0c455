//! One node, wired as the product wires it (`raft/runtime.rs`, `server.rs`), with threads and their
//! waits turned into events of the world.
use super::clients::Waiting;
use super::disk::{self, LogDisk};
use super::invariants::{Broken, Held, Kind};
use super::records::Leaving;
use super::steps;
use super::world::{Event, Way};
use ringfold_node::ids::{GroupId, NodeId, ReplicaId};
use ringfold_node::partition::apply::PlantedFaults;
use ringfold_node::partition::store::{AppliedMark, MemoryDisk};
use ringfold_node::raft::apply::{Applier, ApplyTask, Reopen};
use ringfold_node::raft::driver::{
    Driver, DriverSettings, GroupFacts, Input, NewGroup, Now, Write,
};
use ringfold_node::raft::handle::{Applied, ReplicaView, Role};
use ringfold_node::raft::log::{LogOp, RaftLog, ReplicaRecord, Vote};
use ringfold_node::raft::membership::Membership;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

/// Apply threads of a node.
pub const LANES: usize = 2;

/// A node's clocks against the world's time.
#[derive(Debug, Clone)]
pub struct Clock {
    since_ns: u64,
    base_ns: u64,
    ppm: i64,
    wall_ms: i64,
}

impl Clock {
    pub fn new(base_ns: u64, ppm: i64) -> Clock {
        Clock { since_ns: 0, base_ns, ppm, wall_ms: 1_760_000_000_000 }
    }

    pub fn boot_ns(&self, now_ns: u64) -> u64 {
        let passed = i128::from(now_ns - self.since_ns);
        self.base_ns + (passed * i128::from(1_000_000 + self.ppm) / 1_000_000) as u64
    }

    /// When this node's boot-time clock shows so much.
    pub fn at_boot_ns(&self, boot_ns: u64) -> u64 {
        let passed = i128::from(boot_ns.saturating_sub(self.base_ns));
        self.since_ns + (passed * 1_000_000 / i128::from(1_000_000 + self.ppm)) as u64 + 1
    }

    pub fn now(&self, now_ns: u64) -> Now {
        let wall_ms = self.wall_ms + (now_ns / 1_000_000) as i64;
        Now { boot_ns: self.boot_ns(now_ns), wall_ms: wall_ms.max(0) as u64 }
    }

    /// The machine starts again: its boot-time clock begins anew.
    pub fn reboot(&mut self, now_ns: u64, base_ns: u64) {
        self.since_ns = now_ns;
        self.base_ns = base_ns;
    }

    pub fn jump_wall(&mut self, ms: i64) {
        self.wall_ms += ms;
    }
}

pub struct Node {
    pub id: NodeId,
    pub clock: Clock,
    pub log: LogDisk,
    pub disk: MemoryDisk,
    /// Rises with each start.
    pub life: u64,
    pub running: Option<Running>,
    pub paused: bool,
    /// What comes in while it is paused.
    pub held: Vec<Event>,
    /// Version of the meta group's records that it knows, and that it knows after a start.
    pub seen: usize,
    pub seen_durable: usize,
    /// It never runs again.
    pub gone: bool,
    /// Replicas that were removed from their group: destroyed at the next start.
    pub retired: BTreeSet<ReplicaId>,
}

/// The process.
pub struct Running {
    pub driver: Driver,
    pub inputs: Vec<Input>,
    /// When the driver's next step is due.
    pub step_ns: u64,
    /// Rounds that wait for the log thread, and the batch that is being synced.
    pub writes: Vec<Write>,
    pub syncing: Option<Write>,
    pub lanes: [Lane; LANES],
    pub views: BTreeMap<GroupId, Arc<ReplicaView>>,
    pub calls: Vec<Waiting>,
    /// Checkpoints on their way to others, by receiver.
    pub sending: BTreeMap<(GroupId, ReplicaId), u64>,
    pub prepared: BTreeMap<GroupId, Checkpoint>,
    /// Groups that a checkpoint is being received for.
    pub receiving: BTreeSet<GroupId>,
    pub installs: Vec<Install>,
    /// Of checkpoints on their way to others.
    pub floors: BTreeMap<(GroupId, ReplicaId), Floor>,
    /// Replicas of all records of the log, destroyed ones too.
    pub known: BTreeSet<ReplicaId>,
    pub leaving: Option<Leaving>,
    pub steps: Vec<steps::Waiting>,
    /// Highest term of the meta group of the steps that came.
    pub step_term: u64,
    /// As `Cluster::followed`.
    pub followed: u64,
}

/// Entries behind it are kept.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    pub index: u64,
    /// The driver knows of it.
    pub is_held: bool,
}

/// A log that is kept for a checkpoint at index `floor`.
pub struct KeptLog {
    group: GroupId,
    floor: u64,
    first: u64,
    bytes: u64,
    directory: u32,
}

pub struct Lane {
    pub applier: Applier,
    pub tasks: VecDeque<ApplyTask>,
    pub busy: bool,
}

/// A checkpoint on its maker's disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub path: PathBuf,
    pub mark: AppliedMark,
    pub membership: Membership,
    pub membership_index: u64,
}

/// A checkpoint that was offered to the driver.
pub struct Install {
    pub taken: oneshot::Receiver<bool>,
    pub path: PathBuf,
    pub way: Way,
}

impl Node {
    pub fn new(id: NodeId, clock: Clock) -> Node {
        Node {
            id,
            clock,
            log: LogDisk::default(),
            disk: MemoryDisk::default(),
            life: 0,
            running: None,
            paused: false,
            held: Vec::new(),
            seen: 0,
            seen_durable: 0,
            gone: false,
            retired: BTreeSet::new(),
        }
    }

    pub fn is_awake(&self) -> bool {
        self.running.is_some() && !self.paused
    }

    pub fn view(&self, group: GroupId) -> Option<&Arc<ReplicaView>> {
        self.running.as_ref()?.views.get(&group)
    }

    /// The process ends at once. What was being written may be there or not.
    pub fn crash(&mut self, batch_survives: bool) -> Result<(), String> {
        let running = self.running.take();
        self.paused = false;
        self.held.clear();
        self.disk.crash();
        if let Some(write) = running.and_then(|r| r.syncing)
            && batch_survives
            && !write.ops.is_empty()
        {
            self.log.write(write.ops)?;
        }
        Ok(())
    }

    /// The disk is gone, and a new one is empty.
    pub fn lose_disk(&mut self) {
        self.log = LogDisk::default();
        self.disk = MemoryDisk::default();
        self.retired.clear();
    }

    /// Starts the process on what the disk holds; the records found.
    pub fn start(
        &mut self,
        now_ns: u64,
        settings: DriverSettings,
        faults: PlantedFaults,
        forgets_destroyed: bool,
    ) -> Result<Vec<(ReplicaRecord, Option<Vote>, u64)>, String> {
        self.life += 1;
        for replica in std::mem::take(&mut self.retired) {
            let loaded = self.log.log.load().map_err(|e| e.to_string())?;
            if let Some(l) = loaded.into_iter().find(|l| l.record.replica == replica) {
                let record = ReplicaRecord { destroyed: true, ..l.record };
                self.log.write(vec![LogOp::Record(Box::new(record))])?;
            }
        }
        let mut loaded = self.log.log.load().map_err(|e| e.to_string())?;
        let mut known: BTreeSet<_> = loaded.iter().map(|l| l.record.replica).collect();
        loaded.retain(|l| !l.record.destroyed);
        if forgets_destroyed {
            known = loaded.iter().map(|l| l.record.replica).collect();
        }
        self.seen = self.seen_durable;
        let live: BTreeSet<PathBuf> =
            loaded.iter().map(|l| disk::directory(l.record.replica, l.record.directory)).collect();
        for path in self.disk.paths() {
            if !live.contains(&path) {
                self.disk.remove(&path);
            }
        }
        let reopen: Reopen = {
            let disk = self.disk.clone();
            Arc::new(move |group, replica, directory| {
                disk::open(&disk, group, replica, directory, false, faults)
            })
        };
        let lane =
            || Lane { applier: Applier::new(reopen.clone()), tasks: VecDeque::new(), busy: false };
        let mut running = Running {
            driver: Driver::new(settings, self.log.log.clone(), self.clock.now(now_ns)),
            inputs: Vec::new(),
            step_ns: u64::MAX,
            writes: Vec::new(),
            syncing: None,
            lanes: [lane(), lane()],
            views: BTreeMap::new(),
            calls: Vec::new(),
            sending: BTreeMap::new(),
            prepared: BTreeMap::new(),
            receiving: BTreeSet::new(),
            installs: Vec::new(),
            floors: BTreeMap::new(),
            known,
            leaving: None,
            steps: Vec::new(),
            step_term: 0,
            followed: 0,
        };
        let mut found = Vec::new();
        for l in loaded {
            let last = l.entries.map_or(0, |(_, last)| last);
            let index = running.open(&self.disk, l.record.clone(), l.vote, last, false, faults)?;
            found.push((l.record, l.vote, index));
        }
        self.running = Some(running);
        Ok(found)
    }

    /// Makes a replica of a group that began with `voters`.
    pub fn found(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        voters: &[(ReplicaId, NodeId)],
        first_placed: bool,
        faults: PlantedFaults,
    ) -> Result<(), String> {
        let record = ReplicaRecord {
            group,
            replica,
            directory: 1,
            membership: Membership::genesis(voters),
            membership_index: 0,
            truncated_index: 0,
            truncated_term: 0,
            destroyed: false,
            first_placed,
        };
        let Some(running) = &mut self.running else { return Ok(()) };
        self.disk.remove(&disk::directory(replica, 1));
        running.open(&self.disk, record, None, 0, true, faults).map(|_| ())
    }
}

impl Running {
    fn open(
        &mut self,
        disk: &MemoryDisk,
        record: ReplicaRecord,
        vote: Option<Vote>,
        last_index: u64,
        fresh: bool,
        faults: PlantedFaults,
    ) -> Result<u64, String> {
        let (group, replica) = (record.group, record.replica);
        let machine = disk::open(disk, group, replica, record.directory, fresh, faults)?;
        let (index, _, position) = machine.applied();
        let applied = Applied { index, position };
        let view = Arc::new(ReplicaView::new(group, replica, machine.reader(), applied));
        view.directory.store(record.directory, Ordering::Release);
        self.views.insert(group, view.clone());
        let new = NewGroup { record, vote, last_index, fresh, machine, view };
        self.inputs.push(Input::Create(Box::new(new)));
        Ok(index)
    }

    /// Before a step: what of the logs is kept for checkpoints.
    pub fn kept_logs(&mut self) -> Vec<KeptLog> {
        let mut kept = Vec::new();
        for ((group, _), floor) in &mut self.floors {
            if std::mem::replace(&mut floor.is_held, true)
                && let Some(view) = self.views.get(group)
                && let Some(bytes) = self.driver.kept_log_bytes(*group)
            {
                let first = view.status.read().first_index;
                let directory = view.directory.load(Ordering::Acquire);
                kept.push(KeptLog { group: *group, floor: floor.index, first, bytes, directory });
            }
        }
        kept
    }

    /// Behind the step: it is still there, but where it grew too large or a checkpoint replaced it.
    pub fn check_kept_logs(&self, kept: &[KeptLog], bytes_max: u64) -> Held {
        for k in kept {
            let Some(view) = self.views.get(&k.group) else { continue };
            let first = view.status.read().first_index;
            if first > k.first.max(k.floor + 1)
                && k.bytes <= 4 * bytes_max
                && view.directory.load(Ordering::Acquire) == k.directory
            {
                let detail = format!("{} begins at {first}, a transfer is at {}", k.group, k.floor);
                return Err(Broken { kind: Kind::CompactedPastTransfer, detail });
            }
        }
        Ok(())
    }

    pub fn facts(&self, group: GroupId) -> Option<GroupFacts> {
        self.driver.facts(group)
    }

    pub fn is_leader(&self, group: GroupId) -> Option<u64> {
        let status = self.views.get(&group)?.status.read();
        (status.role == Role::Leader).then_some(status.term)
    }
}
