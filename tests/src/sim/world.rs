//! One run: virtual time, the queue of events, and the judgement at the end.
use super::clients::{Answer, Call, Client, Waiting, seen};
use super::faults::{Faults, Planted, STRIKES, Strike, around_ms};
use super::invariants::{Broken, Held, Invariants, Kind};
use super::moves::Move;
use super::network::{self, Network};
use super::node::{Checkpoint, Clock, LANES, Node};
use super::planner::PlanEvent;
use super::records::Records;
use super::strikes::has_change;
use super::{Failure, Options, Report};
use crate::checker;
use crate::history::{FinalLog, History};
use crate::model;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_node::ids::{GroupId, NodeId, ReplicaId};
use ringfold_node::partition::apply::PlantedFaults as ApplyFaults;
use ringfold_node::raft::apply::{ApplyNotice, ApplyTask};
use ringfold_node::raft::driver::{Channel, DriverSettings, Input, PeerMessage, PlantedFaults};
use ringfold_node::raft::membership::Membership;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// How long faults strike, and how long the cluster has to come to rest behind them.
const FAULTS_NS: u64 = 2_000_000_000;
const REST_NS: u64 = 4_000_000_000;
/// The planner waits in each round for members that are gone, and moves one thing after the other.
const MOVES_REST_NS: u64 = 12_000_000_000;
/// Clients go on for so long without faults.
const CALM_NS: u64 = 150_000_000;
const TICK_MS: u64 = 10;
/// Of what is written down of one event.
const LINE_BYTES_MAX: usize = 240;

pub enum Event {
    Step {
        node: usize,
        life: u64,
    },
    Synced {
        node: usize,
        life: u64,
    },
    Apply {
        node: usize,
        life: u64,
        lane: usize,
    },
    Flush {
        node: usize,
        life: u64,
    },
    Frame {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    Call {
        node: usize,
        call: Call,
    },
    Read {
        node: usize,
        life: u64,
        waiting: Box<Waiting>,
    },
    Answer {
        client: u32,
        token: u64,
        from: usize,
        answer: Answer,
    },
    ClientActs(u32),
    ClientWaited {
        client: u32,
        token: u64,
    },
    Prepare {
        node: usize,
        life: u64,
        way: Way,
    },
    Offer {
        node: usize,
        way: Way,
        checkpoint: Box<Checkpoint>,
    },
    Fetched {
        node: usize,
        life: u64,
        way: Way,
        directory: u32,
        checkpoint: Box<Checkpoint>,
    },
    Sent {
        node: usize,
        life: u64,
        way: Way,
    },
    /// Where it happens, in which life.
    Plan {
        at: Option<(usize, Option<u64>)>,
        what: PlanEvent,
    },
    Strike(Strike),
    Restart {
        node: usize,
    },
    Resume {
        node: usize,
        life: u64,
    },
    Heal,
    Look,
    End,
}

/// A checkpoint's way: from a node in one of its lives to a replica on another.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub from: usize,
    pub from_life: u64,
    pub to: usize,
    pub serial: u64,
}

impl Event {
    /// The node that it happens on, in which of its lives.
    fn place(&self) -> Option<(usize, Option<u64>)> {
        match self {
            Event::Step { node, life }
            | Event::Synced { node, life }
            | Event::Apply { node, life, .. }
            | Event::Flush { node, life }
            | Event::Read { node, life, .. }
            | Event::Prepare { node, life, .. }
            | Event::Fetched { node, life, .. }
            | Event::Sent { node, life, .. } => Some((*node, Some(*life))),
            Event::Frame { to: node, .. }
            | Event::Call { node, .. }
            | Event::Offer { node, .. } => Some((*node, None)),
            Event::Plan { at, .. } => *at,
            _ => None,
        }
    }

    fn number(&self) -> u64 {
        let (kind, a, b) = match self {
            Event::Step { node, life } => (0, *node as u64, *life),
            Event::Synced { node, life } => (1, *node as u64, *life),
            Event::Apply { node, life, .. } => (2, *node as u64, *life),
            Event::Flush { node, life } => (3, *node as u64, *life),
            Event::Frame { from, to, .. } => (4, *from as u64, *to as u64),
            Event::Call { node, call } => (5, *node as u64, u64::from(call.client)),
            Event::Read { node, life, .. } => (6, *node as u64, *life),
            Event::Answer { client, token, .. } => (7, u64::from(*client), *token),
            Event::ClientActs(client) => (8, u64::from(*client), 0),
            Event::ClientWaited { client, token } => (9, u64::from(*client), *token),
            Event::Prepare { node, way, .. } => (10, *node as u64, way.serial),
            Event::Offer { node, way, .. } => (11, *node as u64, way.serial),
            Event::Fetched { node, way, .. } => (12, *node as u64, way.serial),
            Event::Sent { node, way, .. } => (13, *node as u64, way.serial),
            Event::Strike(strike) => (14, *strike as u64, 0),
            Event::Restart { node } => (15, *node as u64, 0),
            Event::Resume { node, life } => (16, *node as u64, *life),
            Event::Heal => (17, 0, 0),
            Event::Look => (18, 0, 0),
            Event::End => (19, 0, 0),
            Event::Plan { at, .. } => {
                let (n, life) = at.unwrap_or((0, None));
                (20, n as u64, life.unwrap_or(0))
            }
        };
        kind << 56 | a << 40 | b
    }
}

pub struct World {
    seed: u64,
    pub options: Options,
    pub rng: StdRng,
    pub now_ns: u64,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub faults: Faults,
    /// When the faults ended.
    pub ended_ns: Option<u64>,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub check: Invariants,
    pub clients: Vec<Client>,
    pub history: History,
    /// Last revision of each stream, as clients were told.
    pub lengths: BTreeMap<Arc<str>, u64>,
    /// The voters that each group began with, and the replicas that it is to have now.
    pub genesis: BTreeMap<GroupId, Vec<(ReplicaId, NodeId)>>,
    pub placement: BTreeMap<GroupId, Vec<(ReplicaId, usize)>>,
    pub moves: BTreeMap<GroupId, Move>,
    /// Of the meta group, where the planner moves replicas.
    pub records: Option<Records>,
    replicas: u64,
    pub report: Report,
    hash: Xxh3,
    lines_max: usize,
    lines: VecDeque<String>,
}

impl World {
    pub fn new(seed: u64, options: Options, lines_max: usize) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let faults = Faults::of_seed(&mut rng, options);
        let count = options.nodes + usize::from(faults.spare_node);
        let nodes = (1..=count as u64)
            .map(|id| Node::new(NodeId(id), random_clock(&mut rng, faults.clock_ppm)))
            .collect();
        World {
            seed,
            options,
            now_ns: 0,
            queue: BTreeMap::new(),
            serial: 0,
            ended_ns: None,
            nodes,
            network: Network::default(),
            check: Invariants::default(),
            clients: (0..faults.clients).map(|_| Client::default()).collect(),
            history: History::default(),
            lengths: BTreeMap::new(),
            genesis: BTreeMap::new(),
            placement: BTreeMap::new(),
            moves: BTreeMap::new(),
            records: None,
            replicas: 0,
            report: Report::default(),
            hash: Xxh3::new(),
            lines_max,
            lines: VecDeque::new(),
            rng,
            faults,
        }
    }

    pub fn run(mut self) -> Result<Report, Box<Failure>> {
        let held = self.live().and_then(|()| self.judge());
        self.report.hash = self.hash.digest();
        self.report.acknowledged = self.history.acknowledged();
        self.report.elections = self.check.elections();
        self.report.membership_changes = self.check.membership_changes();
        match held {
            Ok(()) => Ok(self.report),
            Err(Broken { kind, detail }) => Err(Box::new(Failure {
                seed: self.seed,
                options: self.options,
                kind,
                detail,
                at_ms: self.now_ns / 1_000_000,
                trace: self.lines.into(),
            })),
        }
    }

    fn live(&mut self) -> Held {
        self.begin()?;
        while let Some(((at_ns, _), event)) = self.queue.pop_first() {
            // No two events at one time: who was first is never left open.
            self.now_ns = at_ns.max(self.now_ns + 1);
            self.report.events += 1;
            self.hash.update(&self.now_ns.to_le_bytes());
            self.hash.update(&event.number().to_le_bytes());
            let look = matches!(event, Event::Look);
            self.happens(at_ns, event)?;
            if look && self.is_at_rest() {
                return Ok(());
            }
            let rest_ns = if self.options.planner { MOVES_REST_NS } else { REST_NS };
            if self.ended_ns.is_some_and(|e| self.now_ns > e + rest_ns) {
                break;
            }
        }
        Err(Broken { kind: Kind::NotLive, detail: self.unrest() })
    }

    fn begin(&mut self) -> Held {
        let nodes = self.options.nodes;
        if self.options.planner {
            self.begin_records()?;
            self.elect()?;
        }
        let scripted = if self.options.planner { 0 } else { self.faults.partitions };
        for p in 0..scripted {
            let group = GroupId::of_partition(p);
            let hosts: Vec<(ReplicaId, usize)> =
                (0..3).map(|i| (self.next_replica(), (p as usize + i) % nodes)).collect();
            let voters: Vec<_> = hosts.iter().map(|(r, n)| (*r, self.nodes[*n].id)).collect();
            self.check.begins(group, Membership::genesis(&voters));
            self.genesis.insert(group, voters);
            self.placement.insert(group, hosts);
        }
        for n in 0..self.nodes.len() {
            self.start(n)?;
            for (group, hosts) in self.placement.clone() {
                if self.records.is_some() {
                    continue;
                }
                for (replica, _) in hosts.iter().filter(|(_, at)| *at == n) {
                    self.found(n, group, *replica);
                }
            }
        }
        for c in 0..self.faults.clients {
            let at_ns = self.rng.random_range(0..20_000_000);
            self.after(at_ns, Event::ClientActs(c));
        }
        for strike in STRIKES {
            self.strike_later(strike);
        }
        self.after(FAULTS_NS, Event::End);
        self.after(self.faults.look_gap_ms * 1_000_000, Event::Look);
        Ok(())
    }

    pub fn strike_later(&mut self, strike: Strike) {
        let gap_ms = self.faults.gap_ms(strike);
        if gap_ms > 0 {
            let ns = around_ms(&mut self.rng, gap_ms);
            self.after(ns, Event::Strike(strike));
        }
    }

    pub fn next_replica(&mut self) -> ReplicaId {
        self.replicas += 1;
        ReplicaId(self.replicas)
    }

    pub fn new_clock(&mut self) -> Clock {
        random_clock(&mut self.rng, self.faults.clock_ppm)
    }

    pub fn partition_of(&self, stream: &str) -> u32 {
        let number: u32 = stream.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        number % self.faults.partitions
    }

    pub fn after(&mut self, ns: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now_ns + ns, self.serial), event);
    }

    /// Writes a line, in a run that is told.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.lines_max == 0 {
            return;
        }
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        let (ms, us) = (self.now_ns / 1_000_000, self.now_ns / 1_000 % 1_000);
        let mut line = line();
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        self.lines.push_back(format!("{ms:5}.{us:03} {line}"));
    }

    fn happens(&mut self, at_ns: u64, event: Event) -> Held {
        if let Some((n, life)) = event.place() {
            let node = &mut self.nodes[n];
            if life.is_some_and(|l| l != node.life) || node.running.is_none() && life.is_some() {
                return Ok(());
            }
            if node.paused {
                // Its step is due again when it goes on.
                if !matches!(event, Event::Step { .. }) {
                    node.held.push(event);
                }
                return Ok(());
            }
        }
        match event {
            Event::Step { node, .. } => return self.step(at_ns, node),
            Event::Synced { node, .. } => return self.synced(node),
            Event::Apply { node, lane, .. } => return self.apply(node, lane),
            Event::Flush { node, .. } => self.flush(node),
            Event::Frame { from, to, bytes } => self.frame(from, to, &bytes),
            Event::Call { node, call } => self.called(node, call),
            Event::Read { node, waiting, .. } => self.reads(node, *waiting),
            Event::Answer { client, token, from, answer } => {
                self.note(|| format!("client {client} hears of node {}: {answer:?}", from + 1));
                self.answered(client, token, from, answer);
            }
            Event::ClientActs(client) => self.client_acts(client),
            Event::ClientWaited { client, token } => self.client_waited(client, token),
            Event::Prepare { node, way, .. } => return self.prepare(node, way),
            Event::Offer { node, way, checkpoint } => self.offer(node, way, checkpoint),
            Event::Fetched { node, way, directory, checkpoint, .. } => {
                self.fetched(node, way, directory, &checkpoint);
            }
            Event::Sent { node, way, .. } => self.sent(node, way),
            Event::Strike(strike) => return self.strike(strike),
            Event::Restart { node } => return self.start(node),
            Event::Resume { node, life } => self.resume(node, life),
            Event::Heal => {
                self.note(|| "the network is whole".into());
                self.network.heal();
            }
            Event::Plan { what, .. } => return self.plan_event(what),
            Event::Look => {
                self.watch_planner()?;
                self.go_on_moves();
                self.after(self.faults.look_gap_ms * 1_000_000, Event::Look);
            }
            Event::End => {
                self.end();
                return self.end_scaling();
            }
        }
        Ok(())
    }

    /// All faults are over.
    fn end(&mut self) {
        self.note(|| "no more faults".into());
        self.ended_ns = Some(self.now_ns);
        self.faults.end();
        self.network.heal();
        for n in 0..self.nodes.len() {
            let life = self.nodes[n].life;
            self.resume(n, life);
        }
    }

    pub fn clients_rest(&self) -> bool {
        self.ended_ns.is_some_and(|e| self.now_ns > e + CALM_NS)
    }

    fn settings(&mut self, n: usize) -> DriverSettings {
        let planted = |p| self.options.planted == Some(p);
        let faults = PlantedFaults {
            ack_before_sync: planted(Planted::AcknowledgedBeforeSync),
            lease_over_pause: planted(Planted::LeaseKeptOverPause),
            commit_back_at_restart: planted(Planted::CommitBackAtRestart),
            membership_lost_at_restart: planted(Planted::MembershipLostAtRestart),
            change_without_commit: planted(Planted::ChangeWithoutCommit),
            stale_change: planted(Planted::StaleStepTaken),
            checkpoint_without_receiver: planted(Planted::CheckpointWithoutReceiver),
            compaction_past_transfer: planted(Planted::CompactionPastTransfer),
        };
        DriverSettings {
            tick_ms: TICK_MS,
            heartbeat_ticks: self.faults.heartbeat_ticks,
            election_ticks: self.faults.election_ticks,
            entry_bytes: self.faults.entry_bytes,
            kept_log_bytes: self.faults.kept_log_bytes,
            catch_up_bytes: self.faults.catch_up_bytes,
            cache_bytes: self.faults.cache_bytes,
            snapshot_every: 5,
            seed: Some(self.rng.random()),
            faults,
            ..DriverSettings::new(self.nodes[n].id)
        }
    }

    pub fn apply_faults(&self) -> ApplyFaults {
        ApplyFaults {
            revision_before_ids: self.options.planted == Some(Planted::RevisionCheckedBeforeIds),
            ..ApplyFaults::default()
        }
    }

    /// Starts a node's process on what its disk holds.
    pub fn start(&mut self, n: usize) -> Held {
        if self.nodes[n].running.is_some() || self.nodes[n].gone {
            return Ok(());
        }
        let (settings, faults) = (self.settings(n), self.apply_faults());
        let forgets = self.options.planted == Some(Planted::DestroyedForgotten);
        let closed = |detail| Broken { kind: Kind::Closed, detail };
        let found = self.nodes[n].start(self.now_ns, settings, faults, forgets).map_err(closed)?;
        self.note(|| format!("node {} starts with {} replicas", n + 1, found.len()));
        for (record, vote, applied) in found {
            self.check.starts(&record, vote, applied)?;
        }
        if self.options.planted == Some(Planted::ReplicaIdUsedTwice) && self.now_ns > 0 {
            for (group, hosts) in self.placement.clone() {
                for (replica, _) in hosts.iter().filter(|(_, at)| *at == n) {
                    if self.nodes[n].view(group).is_none() {
                        self.found(n, group, *replica);
                    }
                }
            }
        }
        let life = self.nodes[n].life;
        let flush_ns = around_ms(&mut self.rng, self.faults.flush_gap_ms);
        self.after(flush_ns, Event::Flush { node: n, life });
        self.wake(n);
        if let Some(version) = self.records.as_ref().map(Records::last) {
            self.follow(n)?;
            self.tell(n, version);
        }
        Ok(())
    }

    /// Makes a new replica on a node that runs.
    pub fn found(&mut self, n: usize, group: GroupId, replica: ReplicaId) {
        let (voters, faults) = (self.genesis[&group].clone(), self.apply_faults());
        let first = voters[0].0 == replica;
        self.note(|| format!("{replica} of {group} is made on node {}", n + 1));
        self.check.founded(replica);
        if let Err(reason) = self.nodes[n].found(group, replica, &voters, first, faults) {
            self.note(|| reason);
        }
        self.wake(n);
    }

    pub fn input(&mut self, n: usize, input: Input) {
        if let Some(running) = &mut self.nodes[n].running {
            running.inputs.push(input);
            self.wake(n);
        }
    }

    pub fn wake(&mut self, n: usize) {
        let at_ns = self.now_ns + self.rng.random_range(5_000..60_000);
        self.step_at(n, at_ns);
    }

    fn step_at(&mut self, n: usize, at_ns: u64) {
        let life = self.nodes[n].life;
        let Some(running) = &mut self.nodes[n].running else { return };
        if at_ns < running.step_ns {
            running.step_ns = at_ns;
            self.after(at_ns - self.now_ns, Event::Step { node: n, life });
        }
    }

    /// A round of the driver.
    fn step(&mut self, at_ns: u64, n: usize) -> Held {
        let node = &mut self.nodes[n];
        let Some(running) = node.running.as_mut().filter(|r| r.step_ns == at_ns) else {
            return Ok(());
        };
        running.step_ns = u64::MAX;
        let mut inputs = std::mem::take(&mut running.inputs);
        let kept = running.kept_logs();
        let round = running.driver.step(node.clock.now(self.now_ns), &mut inputs);
        let tick_ns = running.driver.next_tick_ns();
        running.check_kept_logs(&kept, self.faults.kept_log_bytes)?;
        self.send(n, round.messages)?;
        if !round.write.is_empty() {
            if let Some(running) = &mut self.nodes[n].running {
                running.writes.push(round.write);
            }
            self.sync(n);
        }
        for task in round.apply {
            self.check.handed(&task, &self.nodes)?;
            if let ApplyTask::Install { group, .. } = &task
                && let Some(record) =
                    self.nodes[n].running.as_ref().and_then(|r| r.driver.record(*group))
            {
                self.check.installs(record)?;
            }
            self.queue_task(n, task);
        }
        for (group, replica, node) in round.checkpoints_wanted {
            self.want(n, group, replica, node);
        }
        self.check.state(n, &self.nodes, self.now_ns)?;
        self.poll_calls(n);
        self.poll_installs(n);
        self.poll_steps(n)?;
        self.poll_leaving(n)?;
        let late_ns = self.faults.late_ns(&mut self.rng);
        let at_ns = self.nodes[n].clock.at_boot_ns(tick_ns).max(self.now_ns + 1) + late_ns;
        self.step_at(n, at_ns);
        Ok(())
    }

    fn send(&mut self, n: usize, messages: Vec<(NodeId, Channel, PeerMessage)>) -> Held {
        let mut frames: BTreeMap<(usize, Channel), Vec<PeerMessage>> = BTreeMap::new();
        for (to, channel, m) in messages {
            let synced = self.nodes[n].log.durable.get(&m.from).cloned().unwrap_or_default();
            self.check.leaves(&m, self.options.promises.then_some(&synced))?;
            frames.entry((to.0 as usize - 1, channel)).or_default().push(m);
        }
        for ((to, channel), messages) in frames {
            let at =
                self.network.arrivals(self.now_ns, (n, to, channel), &self.faults, &mut self.rng);
            if at.is_empty() {
                continue;
            }
            let bytes = network::encode(&messages);
            for at_ns in at {
                let bytes = match self.rng.random_bool(self.faults.damage) {
                    true => network::damage(&bytes, &mut self.rng),
                    false => bytes.clone(),
                };
                self.after(at_ns - self.now_ns, Event::Frame { from: n, to, bytes });
            }
        }
        Ok(())
    }

    fn frame(&mut self, from: usize, to: usize, bytes: &Bytes) {
        self.hash.update(bytes);
        if !self.network.is_open(from, to) || self.nodes[to].running.is_none() {
            return;
        }
        let messages = network::decode(bytes);
        if self.lines_max > 0 {
            for m in &messages {
                let shown = super::invariants::shown(m);
                self.note(|| format!("node {} <- {}: {shown}", to + 1, from + 1));
            }
        }
        if !messages.is_empty() {
            let from = self.nodes[from].id;
            self.input(to, Input::Messages { from, messages });
        }
    }

    /// The log thread takes all rounds that wait into one batch.
    fn sync(&mut self, n: usize) {
        let life = self.nodes[n].life;
        let Some(running) = &mut self.nodes[n].running else { return };
        if running.syncing.is_some() || running.writes.is_empty() {
            return;
        }
        let mut batch = ringfold_node::raft::driver::Write::default();
        for w in running.writes.drain(..) {
            batch.ops.extend(w.ops);
            batch.persisted.extend(w.persisted);
            batch.messages.extend(w.messages);
        }
        let ns = if batch.ops.is_empty() { 1_000 } else { self.faults.sync_ns(&mut self.rng) };
        running.syncing = Some(batch);
        self.after(ns, Event::Synced { node: n, life });
    }

    fn synced(&mut self, n: usize) -> Held {
        let node = &mut self.nodes[n];
        let Some(batch) = node.running.as_mut().and_then(|r| r.syncing.take()) else {
            return Ok(());
        };
        let changes = self.faults.change_crash > 0.0 && has_change(&batch.ops);
        if !batch.ops.is_empty() {
            node.log.write(batch.ops).map_err(|detail| Broken { kind: Kind::Closed, detail })?;
        }
        // The driver hears of it before any peer can answer.
        if !batch.persisted.is_empty() {
            self.input(n, Input::Persisted(batch.persisted));
        }
        self.send(n, batch.messages)?;
        if changes {
            self.crash_behind_change(n)?;
        }
        self.sync(n);
        Ok(())
    }

    fn queue_task(&mut self, n: usize, task: ApplyTask) {
        let at = task.group().0 as usize % LANES;
        if let Some(running) = &mut self.nodes[n].running {
            running.lanes[at].tasks.push_back(task);
        }
        self.apply_later(n, at);
    }

    fn apply_later(&mut self, n: usize, at: usize) {
        let life = self.nodes[n].life;
        let Some(running) = &mut self.nodes[n].running else { return };
        let lane = &mut running.lanes[at];
        if !lane.busy && !lane.tasks.is_empty() {
            lane.busy = true;
            let ns = self.faults.apply_ns(&mut self.rng);
            self.after(ns, Event::Apply { node: n, life, lane: at });
        }
    }

    /// An apply thread runs some of what waits for it.
    fn apply(&mut self, n: usize, at: usize) -> Held {
        let count = self.rng.random_range(1..=4);
        let swap = self.options.planted == Some(Planted::AppliedOutOfOrder)
            && n == 1
            && self.rng.random_bool(0.1);
        let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
        let lane = &mut running.lanes[at];
        lane.busy = false;
        if swap {
            swap_entries(&mut lane.tasks);
        }
        let mut notices = Vec::new();
        for _ in 0..count {
            let Some(task) = lane.tasks.pop_front() else { break };
            let group = task.group();
            let Some(notice) = lane.applier.run(task) else { continue };
            let leaves = running.leaving.as_ref().is_some_and(|l| l.group == group);
            if let ApplyNotice::Applied { .. } = notice
                && !leaves
                && let Some(view) = running.views.get(&group)
            {
                let mark = view
                    .reader
                    .mark()
                    .map_err(|e| Broken { kind: Kind::Closed, detail: e.to_string() })?;
                self.hash.update(&mark.chain);
                self.check.applied(group, mark)?;
            }
            notices.push(notice);
        }
        if !notices.is_empty() {
            self.input(n, Input::Notices(notices));
        }
        self.apply_later(n, at);
        self.poll_calls(n);
        self.poll_leaving(n)
    }

    /// The flush thread looks at the databases.
    fn flush(&mut self, n: usize) {
        let life = self.nodes[n].life;
        let Some(running) = &self.nodes[n].running else { return };
        let views: Vec<_> = running.views.values().cloned().collect();
        for view in views {
            if let Ok(index) = view.reader.flush() {
                let (group, replica) = (view.group, view.replica);
                self.input(n, Input::Flushed { group, replica, index });
            }
        }
        self.nodes[n].seen_durable = self.nodes[n].seen;
        let ns = around_ms(&mut self.rng, self.faults.flush_gap_ms);
        self.after(ns, Event::Flush { node: n, life });
    }

    /// Whether all is done, led and equal.
    fn is_at_rest(&self) -> bool {
        self.clients_rest()
            && self.clients_are_idle()
            && self.moves.is_empty()
            && self.records_rest()
            && self.placement.keys().all(|group| self.group_rests(*group))
    }

    fn leader(&self, group: GroupId) -> Option<usize> {
        let led = |n: &Node| n.running.as_ref().and_then(|r| r.is_leader(group));
        let leader = (0..self.nodes.len()).filter_map(|n| Some((led(&self.nodes[n])?, n))).max();
        leader.map(|(_, n)| n)
    }

    fn group_rests(&self, group: GroupId) -> bool {
        let Some(leader) = self.leader(group) else { return false };
        let Some(facts) = self.nodes[leader].running.as_ref().and_then(|r| r.facts(group)) else {
            return false;
        };
        let hosts = &self.placement[&group];
        let mut voters: Vec<u64> = hosts.iter().map(|(r, _)| r.0).collect();
        voters.sort_unstable();
        facts.membership.voters == voters
            && facts.membership.learners.is_empty()
            && facts.commit_index == facts.last_index
            && hosts.iter().all(|(replica, n)| {
                self.nodes[*n].view(group).is_some_and(|v| {
                    v.replica == *replica && v.applied.borrow().index == facts.last_index
                })
            })
    }

    fn unrest(&self) -> String {
        let mut out = format!("moves {:?}, clients idle: {}", self.moves, self.clients_are_idle());
        for group in self.placement.keys() {
            out += &format!("\n  {group}: {:?}", self.placement[group]);
            for n in &self.nodes {
                if let Some(r) = &n.running {
                    let applied = n.view(*group).map(|v| v.applied.borrow().index);
                    let facts = r.facts(*group);
                    out += &format!("\n    {}: applied {applied:?}, {facts:?}", n.id);
                }
            }
        }
        out += &self.planner_unrest();
        out
    }

    /// Reads the log at the end, compares the replicas, and asks the checker.
    fn judge(&mut self) -> Held {
        let fail = |kind, detail: String| Broken { kind, detail };
        let mut log = FinalLog::default();
        let streams = (0..self.faults.streams).map(|i| {
            let category = if i % 3 == 1 { model::LAST_CATEGORY } else { "merge" };
            Arc::<str>::from(format!("{category}-{i}"))
        });
        for stream in streams {
            let group = GroupId::of_partition(self.partition_of(&stream));
            let mut logs = Vec::new();
            for (_, n) in &self.placement[&group] {
                let Some(view) = self.nodes[*n].view(group) else { continue };
                let page = view.reader.events(&stream, None, false, usize::MAX, usize::MAX);
                let page = page.map_err(|e| fail(Kind::Closed, e.to_string()))?;
                logs.push(seen(page.events));
            }
            if logs.windows(2).any(|p| p[0] != p[1]) {
                return Err(fail(Kind::ContentDiffers, format!("{stream} at the end")));
            }
            if let Some(events) = logs.pop().filter(|l| !l.is_empty()) {
                log.streams.insert(stream, events);
            }
        }
        let violations = checker::check(&self.history, &log, &model::reducers());
        match violations.first() {
            None => Ok(()),
            Some(first) => {
                let all: Vec<String> = violations.iter().map(|v| v.to_string()).collect();
                Err(fail(Kind::History(first.kind), all.join("\n  ")))
            }
        }
    }
}

fn random_clock(rng: &mut StdRng, most_ppm: i64) -> Clock {
    let ppm = rng.random_range(-most_ppm..=most_ppm);
    Clock::new(rng.random_range(1_000_000..100_000_000_000), ppm)
}

/// Swaps the content of two entries that wait for apply: a planted fault.
fn swap_entries(tasks: &mut VecDeque<ApplyTask>) {
    let mut waiting = tasks.iter_mut().filter_map(|t| match t {
        ApplyTask::Entries { group, entries, .. } => Some((*group, entries)),
        _ => None,
    });
    let Some((group, first)) = waiting.next() else { return };
    let mut all: Vec<_> = first.iter_mut().collect();
    all.extend(waiting.filter(|(g, _)| *g == group).flat_map(|(_, e)| e.iter_mut()));
    all.retain(|e| e.data.is_some());
    if let [a, b, ..] = &mut all[..] {
        std::mem::swap(&mut a.data, &mut b.data);
    }
}
