//! One node's Raft groups as a pure step: inputs and the time go in, one round comes out.
//!
//! A round is what all groups have to send, to write with one sync, and to apply. The step reads no
//! clock, touches no network and waits for nothing, so a whole cluster runs from a seed in a test.
//! After TiKV's raftstore; the order within a round is what `raft`'s asynchronous ready demands.
use crate::clock::EPOCH_UNIX_MS;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::panics;
use crate::raft::apply::{ApplyNotice, ApplyTask, StateMachine};
use crate::raft::group::{Group, Proposal};
use crate::raft::handle::{ProposeError, ReadError, ReplicaView, Request, Role, TransferOutcome};
use crate::raft::log::{LogOp, RaftLog, ReplicaRecord, Vote};
use crate::raft::membership::Membership;
pub use crate::raft::message::{Channel, PeerMessage};
use prost_raft::Message as _;
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;

/// The time of a round, read once before its inputs are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// Unix time.
    pub wall_ms: u64,
}

#[derive(Debug, Clone)]
pub struct DriverSettings {
    pub node: NodeId,
    pub tick_ms: u64,
    pub heartbeat_ticks: usize,
    pub election_ticks: usize,
    /// Proposals are packed into entries of up to so many bytes.
    pub entry_bytes: usize,
    /// Entries of one group that may wait for their majority; more proposals are packed meanwhile.
    pub entries_in_flight: u64,
    /// While one waits, another one follows only once so many bytes wait to go into it.
    pub entry_joins_bytes: u64,
    pub partition_inflight_bytes: u64,
    pub node_inflight_bytes: u64,
    /// Bound on the log kept of one partition.
    pub kept_log_bytes: u64,
    /// A replica that has nothing is sent the whole log if that is no larger, else a checkpoint: entries
    /// have no limit of their own on their rate, and reading old ones holds up the driver.
    pub catch_up_bytes: u64,
    /// Log entries of one partition kept in memory once applied.
    pub cache_bytes: u64,
    pub max_state_bytes: u32,
    pub snapshot_every: u32,
    /// Set in a simulation: election timeouts come from it.
    pub seed: Option<u64>,
    /// Faults planted by tests that prove the simulation; none in a product.
    pub faults: PlantedFaults,
}

/// Bugs that a test plants to see them found. All off outside such tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlantedFaults {
    pub ack_before_sync: bool,
    pub lease_over_pause: bool,
    pub commit_back_at_restart: bool,
    pub membership_lost_at_restart: bool,
    /// A membership change is logged without the commit index known then.
    pub change_without_commit: bool,
    /// A membership change is taken whatever membership it was planned on.
    pub stale_change: bool,
    /// A checkpoint is taken whose membership lacks its receiver.
    pub checkpoint_without_receiver: bool,
    /// The log is compacted past the checkpoints that are on their way.
    pub compaction_past_transfer: bool,
}

impl DriverSettings {
    pub fn new(node: NodeId) -> DriverSettings {
        DriverSettings {
            node,
            tick_ms: 100,
            heartbeat_ticks: 3,
            election_ticks: 10,
            entry_bytes: 1 << 20,
            entries_in_flight: 4,
            entry_joins_bytes: 128 << 10,
            partition_inflight_bytes: 16 << 20,
            node_inflight_bytes: 256 << 20,
            kept_log_bytes: 32 << 20,
            catch_up_bytes: 2 << 20,
            cache_bytes: 512 << 10,
            max_state_bytes: 1 << 20,
            snapshot_every: 100,
            seed: None,
            faults: PlantedFaults::default(),
        }
    }

    pub fn election_ns(&self) -> u64 {
        self.election_ticks as u64 * self.tick_ms * 1_000_000
    }

    /// How long a replica that has heard its leader votes for nobody else: longer than a lease, and no
    /// longer than a candidate waits at least.
    pub fn promise_ns(&self) -> u64 {
        self.election_ns() - self.tick_ms * 1_000_000
    }

    /// Three quarters of the shortest election timeout.
    pub fn lease_ns(&self) -> u64 {
        match self.faults.lease_over_pause {
            true => self.election_ns() * 60,
            // A follower's shortest timeout is up to one and a quarter ticks less than its ticks say.
            false => {
                let ticks = (self.election_ticks as u64).saturating_sub(2);
                (self.election_ns() / 4 * 3).min(ticks * self.tick_ms * 1_000_000)
            }
        }
    }
}

/// A group to run: new, or as found in the log at start.
pub struct NewGroup {
    pub record: ReplicaRecord,
    pub vote: Option<Vote>,
    /// Last index in the log; below the record's truncated index: none.
    pub last_index: u64,
    /// The record is not in the log yet.
    pub fresh: bool,
    pub machine: Box<dyn StateMachine>,
    pub view: Arc<ReplicaView>,
}

/// A checkpoint that is verified and synced in `directory`.
pub struct Incoming {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub directory: u32,
    pub index: u64,
    pub term: u64,
    pub membership: Membership,
    pub membership_index: u64,
    /// Told whether the checkpoint was taken; else its directory can go.
    pub reply: oneshot::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MembershipChange {
    AddLearner(ReplicaId, NodeId),
    /// A learner that has everything becomes a voter.
    Promote(ReplicaId),
    /// A voter becomes a learner.
    Demote(ReplicaId),
    /// A learner leaves. A voter is demoted first, by a change of its own: who has this one in its log
    /// knows then that the group's elections do not need the old voter any more.
    Remove(ReplicaId),
    /// `Promote` and `Demote` at once, through a joint membership that `LeaveJoint` ends.
    Swap {
        promote: ReplicaId,
        remove: ReplicaId,
    },
    LeaveJoint,
}

/// What a group's replica knows, for the planner and the meta group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupFacts {
    pub is_leader: bool,
    pub term: u64,
    pub membership: Membership,
    pub membership_index: u64,
    pub last_index: u64,
    pub commit_index: u64,
    /// Highest index known to be in each replica's log; leader only.
    pub matched: BTreeMap<u64, u64>,
    pub change_pending: bool,
    /// Replicas that have said nothing for a while, as their leader; leader only.
    pub silent: BTreeSet<u64>,
    /// Replicas that this leader takes in no more.
    pub renounced: BTreeSet<u64>,
}

pub enum Input {
    Messages {
        from: NodeId,
        messages: Vec<PeerMessage>,
    },
    Request(Request),
    /// The sync of these is done, in the order of their writes.
    Persisted(Vec<PersistedItem>),
    Notices(Vec<ApplyNotice>),
    Create(Box<NewGroup>),
    Incoming(Box<Incoming>),
    /// The database holds everything up to `index` durably.
    Flushed {
        group: GroupId,
        replica: ReplicaId,
        index: u64,
    },
    ChangeMembership {
        group: GroupId,
        change: MembershipChange,
        /// Index of the membership that it was planned on: refused on another. `None`: any.
        planned_on: Option<u64>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Facts {
        group: GroupId,
        reply: oneshot::Sender<Option<GroupFacts>>,
    },
    /// Facts of all groups that run here.
    AllFacts {
        reply: oneshot::Sender<Vec<(GroupId, ReplicaId, GroupFacts)>>,
    },
    /// The replica is of no group any more, running or closed. Answered once its record says so,
    /// synced, and its database is closed: then its files can go.
    Destroy {
        group: GroupId,
        replica: ReplicaId,
        reply: oneshot::Sender<()>,
    },
    /// A replica that was confirmed not to be in the group, by a leader of this term and membership:
    /// it takes the replica in no more.
    Renounce {
        group: GroupId,
        replica: ReplicaId,
        term: u64,
        membership_index: u64,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// A transfer of a checkpoint at `index` runs: keep the log behind it. `None`: it ended.
    TransferFloor {
        group: GroupId,
        to: ReplicaId,
        index: Option<u64>,
    },
    /// This node's wall clock is so far ahead of its peers' median.
    ClockAhead {
        ms: i64,
    },
}

/// A Ready whose writes are in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistedItem {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub ready: Option<u64>,
    /// Index of a membership change whose record is in the batch.
    pub change: Option<u64>,
    /// A checkpoint's index: the record names its directory now.
    pub installed: Option<u64>,
    /// The record says that the replica is destroyed.
    pub destroyed: bool,
}

/// One batch with one sync, and what may go out only behind it.
#[derive(Default)]
pub struct Write {
    pub ops: Vec<LogOp>,
    pub persisted: Vec<PersistedItem>,
    pub messages: Vec<(NodeId, Channel, PeerMessage)>,
}

impl Write {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.persisted.is_empty() && self.messages.is_empty()
    }
}

/// What one step leaves to do.
#[derive(Default)]
pub struct Round {
    pub messages: Vec<(NodeId, Channel, PeerMessage)>,
    pub write: Write,
    pub apply: Vec<ApplyTask>,
    /// Replicas that are behind the kept log: (group, the replica, its node).
    pub checkpoints_wanted: Vec<(GroupId, ReplicaId, NodeId)>,
}

/// What was dropped, by reason; shared with status and metrics.
#[derive(Default)]
pub struct Counters {
    pub unknown_group: AtomicU64,
    pub foreign_replica: AtomicU64,
    pub undecodable: AtomicU64,
    pub refused_kind: AtomicU64,
    pub vote_held: AtomicU64,
    pub apply_behind: AtomicU64,
    pub no_address: AtomicU64,
}

pub struct Driver {
    pub(super) settings: DriverSettings,
    log: Arc<dyn RaftLog>,
    groups: HashMap<GroupId, Box<Group>>,
    /// Groups with something to do this round, in the order of their marks.
    dirty: Vec<GroupId>,
    with_proposals: Vec<GroupId>,
    with_reads: Vec<GroupId>,
    next_tick_ns: u64,
    /// Of the last round.
    now: Now,
    /// Of all groups, once this round has asked for it: it can only fall within a round but for
    /// what the round itself takes in.
    in_flight_bytes: Option<u64>,
    /// Rises each round and over restarts: the context of heartbeats and reads.
    round_number: u64,
    started_ns: u64,
    pub counters: Arc<Counters>,
    /// Leaderships are handed over until then, and to whom to say so.
    shedding_until_ns: u64,
    shedding_replies: Vec<oneshot::Sender<TransferOutcome>>,
    shed: u32,
    /// Groups handed over meanwhile. One that comes back stays: where others hand theirs over too,
    /// leaderships would go round without end.
    handed_over: HashSet<GroupId>,
    rng: u64,
    logger: slog::Logger,
    /// Replicas whose destruction waits for its sync.
    destroying: Vec<(GroupId, ReplicaId, oneshot::Sender<()>)>,
}

/// Half of what a position's milliseconds can hold: about the year 2090.
pub(super) const STAMP_MS_MAX: u64 = 1 << 41;

/// How long a request to hand over all leaderships stands.
const SHED_NS: u64 = 8_000_000_000;

impl Driver {
    pub fn new(settings: DriverSettings, log: Arc<dyn RaftLog>, now: Now) -> Driver {
        Driver {
            next_tick_ns: now.boot_ns + settings.tick_ms * 1_000_000,
            round_number: now.boot_ns,
            now,
            started_ns: now.boot_ns,
            rng: settings.seed.unwrap_or(0) | 1,
            settings,
            log,
            groups: HashMap::new(),
            dirty: Vec::new(),
            with_proposals: Vec::new(),
            with_reads: Vec::new(),
            in_flight_bytes: None,
            counters: Arc::new(Counters::default()),
            shedding_until_ns: 0,
            shedding_replies: Vec::new(),
            shed: 0,
            handed_over: HashSet::new(),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            destroying: Vec::new(),
        }
    }

    /// The node whose driver it is.
    pub fn node(&self) -> NodeId {
        self.settings.node
    }

    /// CLOCK_BOOTTIME at which the next step is due without input.
    pub fn next_tick_ns(&self) -> u64 {
        self.next_tick_ns
    }

    /// One round: first what was written and applied, then peers' messages, then the rest; at most
    /// one tick, after the messages that wait (a paused process must hear its peers first).
    pub fn step(&mut self, now: Now, inputs: &mut Vec<Input>) -> Round {
        let mut round = Round::default();
        self.now = now;
        self.round_number += 1;
        self.in_flight_bytes = None;
        let mut rest = Vec::with_capacity(inputs.len());
        let mut messages = Vec::new();
        for input in inputs.drain(..) {
            match input {
                Input::Persisted(items) => {
                    for item in items {
                        self.persisted(item, &mut round);
                    }
                }
                Input::Notices(notices) => {
                    for n in notices {
                        self.notice(n, &mut round);
                    }
                }
                Input::Messages { from, messages: m } => messages.push((from, m)),
                other => rest.push(other),
            }
        }
        for (from, list) in messages {
            for m in list {
                self.message(now, from, m, &mut round);
            }
        }
        for input in rest {
            self.input(now, input, &mut round);
        }
        if now.boot_ns >= self.next_tick_ns {
            let tick_ns = self.settings.tick_ms * 1_000_000;
            // No burst of ticks after a pause, and never two ticks much closer than a tick: a lease
            // counts on a follower's election timeout lasting nearly as long as its ticks say.
            let late = now.boot_ns - self.next_tick_ns;
            let due = if late > tick_ns / 4 { now.boot_ns } else { self.next_tick_ns };
            self.next_tick_ns = due + tick_ns;
            self.tick(now, &mut round);
        }
        self.start_reads(now, &mut round);
        self.start_proposals(now, &mut round);
        self.readies(now, &mut round);
        round
    }

    fn mark(&mut self, id: GroupId) {
        if let Some(g) = self.groups.get_mut(&id)
            && !g.dirty
        {
            g.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Runs `f` on a group; a panic in it (the raft crate asserts much) closes that group alone.
    fn with_group<T>(
        &mut self,
        id: GroupId,
        round: &mut Round,
        f: impl FnOnce(&mut Group, &mut Round) -> Result<T, String>,
    ) -> Option<T> {
        let g = self.groups.get_mut(&id)?;
        let failed = match panics::catch(|| f(g, round)) {
            Ok(Ok(v)) => return Some(v),
            Ok(Err(reason)) => reason,
            Err(panic) => {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a message");
                format!("the replica's raft state is broken: {what}")
            }
        };
        self.close(id, &failed, round);
        None
    }

    /// Closes one group; the others go on.
    fn close(&mut self, id: GroupId, reason: &str, round: &mut Round) {
        let Some(g) = self.groups.remove(&id) else { return };
        let replica = g.replica;
        tracing::error!(group = %id, replica = replica.0, reason, "replica closed");
        g.close(reason);
        round.apply.push(ApplyTask::Close { group: id, replica, done: None });
    }

    /// Ends a replica for good: its id is never used again.
    fn destroy(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        reply: oneshot::Sender<()>,
        round: &mut Round,
    ) {
        let running = self.groups.get(&group).is_some_and(|g| g.replica == replica);
        let record = match running.then(|| self.groups.remove(&group)).flatten() {
            Some(g) => {
                // Its members are of no use any more, and the record stays for good.
                let record =
                    ReplicaRecord { membership: Membership::default(), ..g.record().clone() };
                g.close("it has left its group");
                record
            }
            // A closed one: nothing of its record is of use any more.
            None => ReplicaRecord {
                group,
                replica,
                directory: 0,
                membership: Membership::default(),
                membership_index: 0,
                truncated_index: 0,
                truncated_term: 0,
                destroyed: true,
                first_placed: false,
            },
        };
        round.write.ops.push(LogOp::Record(Box::new(ReplicaRecord { destroyed: true, ..record })));
        round.write.ops.push(LogOp::Clear { replica });
        round.write.persisted.push(PersistedItem {
            group,
            replica,
            ready: None,
            change: None,
            installed: None,
            destroyed: true,
        });
        self.destroying.push((group, replica, reply));
    }

    fn persisted(&mut self, item: PersistedItem, round: &mut Round) {
        let id = item.group;
        if item.destroyed {
            // Writes of before its end may be synced first: they say nothing of its record.
            let ended = |(g, r, _): &mut (GroupId, ReplicaId, _)| *g == id && *r == item.replica;
            for (group, replica, done) in self.destroying.extract_if(.., ended) {
                round.apply.push(ApplyTask::Close { group, replica, done: Some(done) });
            }
        }
        if self.groups.get(&id).is_none_or(|g| g.replica != item.replica) {
            return;
        }
        self.with_group(id, round, |g, round| g.persisted(&item, round));
        self.mark(id);
    }

    fn notice(&mut self, n: ApplyNotice, round: &mut Round) {
        match n {
            ApplyNotice::Applied { group, replica, index } => {
                if self.groups.get(&group).is_none_or(|g| g.replica != replica) {
                    return;
                }
                let cache_bytes = self.settings.cache_bytes;
                self.with_group(group, round, |g, _| {
                    g.applied(index, cache_bytes);
                    Ok(())
                });
                self.mark(group);
            }
            ApplyNotice::Failed { group, replica, reason } => {
                if self.groups.get(&group).is_some_and(|g| g.replica == replica) {
                    self.close(group, &reason, round);
                }
            }
        }
    }

    fn message(&mut self, now: Now, from: NodeId, m: PeerMessage, round: &mut Round) {
        let count = |c: &AtomicU64| {
            c.fetch_add(1, Ordering::Relaxed);
        };
        let Some(g) = self.groups.get_mut(&m.group) else {
            return count(&self.counters.unknown_group);
        };
        if g.replica != m.to {
            return count(&self.counters.foreign_replica);
        }
        let Ok(message) = Message::decode(&m.bytes[..]) else {
            return count(&self.counters.undecodable);
        };
        if message.from != m.from.0 || message.to != m.to.0 {
            return count(&self.counters.foreign_replica);
        }
        match message.get_msg_type() {
            // Forwarding is the router's work, and checkpoints have a way of their own.
            MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgTransferLeader
            | MessageType::MsgSnapshot => return count(&self.counters.refused_kind),
            MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgTimeoutNow
                if g.holds_votes(now) =>
            {
                return count(&self.counters.vote_held);
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if message.context != CAMPAIGN_TRANSFER
                    && g.keeps_to_leader(now, self.settings.promise_ns()) =>
            {
                return count(&self.counters.vote_held);
            }
            MessageType::MsgTimeoutNow if g.is_installing() => {
                return count(&self.counters.vote_held);
            }
            // An acknowledgement names the last entry by counting from the message's index.
            MessageType::MsgAppend
                if message.entries.first().is_some_and(|e| e.index != message.index + 1) =>
            {
                return count(&self.counters.undecodable);
            }
            MessageType::MsgAppend if g.is_behind() => {
                return count(&self.counters.apply_behind);
            }
            _ => {}
        }
        g.learn_node(m.from, from);
        let lease_ns = self.settings.lease_ns();
        self.with_group(m.group, round, |g, _| {
            g.step_message(now, message, lease_ns);
            Ok(())
        });
        self.mark(m.group);
    }

    fn input(&mut self, now: Now, input: Input, round: &mut Round) {
        match input {
            Input::Persisted(_) | Input::Notices(_) | Input::Messages { .. } => {}
            Input::Request(r) => self.request(now, r, round),
            Input::Create(new) => self.create(*new, round),
            Input::Incoming(incoming) => {
                let id = incoming.group;
                match self.groups.get(&id) {
                    Some(g) if g.replica == incoming.replica => {
                        self.with_group(id, round, |g, _| {
                            g.step_incoming(*incoming);
                            Ok(())
                        });
                        self.mark(id);
                    }
                    _ => {
                        let _ = incoming.reply.send(false);
                    }
                }
            }
            Input::Flushed { group, replica, index } => {
                let kept = self.settings.kept_log_bytes;
                if self.groups.get(&group).is_some_and(|g| g.replica == replica) {
                    self.with_group(group, round, |g, round| {
                        g.flushed(index, kept, &mut round.write);
                        Ok(())
                    });
                }
            }
            Input::ChangeMembership { group, change, planned_on, reply } => {
                if self.groups.contains_key(&group) {
                    let election_ns = self.settings.election_ns();
                    self.with_group(group, round, |g, _| {
                        g.change_membership(now, election_ns, change, planned_on, reply);
                        Ok(())
                    });
                    self.mark(group);
                } else {
                    let _ = reply.send(Err(format!("no replica of {group} is on this node")));
                }
            }
            Input::Renounce { group, replica, term, membership_index, reply } => {
                let _ = reply.send(match self.groups.get_mut(&group) {
                    Some(g) => g.renounce(replica, term, membership_index),
                    None => Err(format!("no replica of {group} is on this node")),
                });
            }
            Input::Facts { group, reply } => {
                let _ = reply.send(self.facts(group));
            }
            Input::AllFacts { reply } => {
                let (now, election_ns) = (self.now, self.settings.election_ns());
                let facts = |g: &Group| g.facts(now, election_ns);
                let all = self.groups.iter().map(|(id, g)| (*id, g.replica, facts(g)));
                let _ = reply.send(all.collect());
            }
            Input::Destroy { group, replica, reply } => self.destroy(group, replica, reply, round),
            Input::TransferFloor { group, to, index } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.transfer_floor(now, to, index);
                }
            }
            Input::ClockAhead { ms } => {
                tracing::warn!(
                    ahead_ms = ms,
                    "this node's clock is ahead of its peers': handing leaderships over"
                );
                self.shedding_until_ns = now.boot_ns + 1_000_000_000;
                self.handed_over.clear();
            }
        }
    }

    fn request(&mut self, now: Now, request: Request, round: &mut Round) {
        match request {
            Request::Propose { group, commands, after_position, reply } => {
                let total = match self.in_flight_bytes {
                    Some(total) => total,
                    None => self.groups.values().map(|g| g.in_flight_bytes()).sum(),
                };
                self.in_flight_bytes = Some(total);
                let Some(g) = self.groups.get_mut(&group) else {
                    let _ = reply.send(Err(ProposeError::NoReplica));
                    return;
                };
                let bytes: u64 = commands.iter().map(|c| c.len() as u64 + 8).sum();
                // A clock far beyond what positions can hold must not use them up.
                let now_ms = now.wall_ms.saturating_sub(EPOCH_UNIX_MS).min(STAMP_MS_MAX);
                let ahead_ms = (after_position >> 21).saturating_sub(now_ms);
                if !g.is_leader() {
                    let _ = reply.send(Err(ProposeError::NotLeader { leader: g.leader_node() }));
                } else if ahead_ms > 500 {
                    let _ = reply.send(Err(ProposeError::ClockBehind { ahead_ms }));
                } else if g.in_flight_bytes() + bytes > self.settings.partition_inflight_bytes
                    || total + bytes > self.settings.node_inflight_bytes
                {
                    let _ = reply.send(Err(ProposeError::Busy));
                } else {
                    self.in_flight_bytes = Some(total + bytes);
                    if g.enqueue(Proposal { commands, bytes, after_position, reply }) {
                        self.with_proposals.push(group);
                    }
                }
            }
            Request::ReadIndex { group, reply } => match self.groups.get_mut(&group) {
                None => {
                    let _ = reply.send(Err(ReadError::NoReplica));
                }
                Some(g) => {
                    if g.enqueue_read(reply) {
                        self.with_reads.push(group);
                    }
                }
            },
            Request::TransferAll { reply } => {
                self.shedding_until_ns = now.boot_ns + SHED_NS;
                self.shedding_replies.push(reply);
                self.shed = 0;
                self.handed_over.clear();
            }
            Request::Transfer { group, to, reply } => {
                if !self.groups.contains_key(&group) {
                    let _ = reply.send(Err(format!("no replica of {group} is on this node")));
                    return;
                }
                let election_ns = self.settings.election_ns();
                self.with_group(group, round, |g, _| {
                    g.transfer(now, to, election_ns, reply);
                    Ok(())
                });
                self.mark(group);
            }
        }
    }

    fn create(&mut self, new: NewGroup, round: &mut Round) {
        let id = new.record.group;
        if let Some(g) = self.groups.get(&id) {
            if g.replica != new.record.replica {
                let reason = format!("{} of the group runs on this node already", g.replica);
                Self::refuse_group(&new.view, &reason);
            }
            return;
        }
        let (fresh, record, view) = (new.fresh, new.record.clone(), new.view.clone());
        let (vote, last) = (new.vote, new.last_index);
        let made = panics::catch(|| {
            Group::new(
                &self.settings,
                self.log.clone(),
                &new.record,
                vote,
                last,
                &*new.machine,
                view.clone(),
                self.started_ns,
                &self.logger,
            )
        });
        let group = match made {
            Ok(Ok(group)) => group,
            Ok(Err(reason)) => return Self::refuse_group(&view, &reason),
            Err(_) => {
                return Self::refuse_group(
                    &view,
                    "raft refused the replica's state (see the log above)",
                );
            }
        };
        if fresh {
            round.write.ops.push(LogOp::Record(Box::new(record.clone())));
        }
        self.groups.insert(id, Box::new(group));
        round.apply.push(ApplyTask::Open { group: id, machine: new.machine, view });
        if fresh && record.first_placed {
            self.with_group(id, round, |g, _| {
                g.campaign();
                Ok(())
            });
        }
        if let Some(g) = self.groups.get_mut(&id) {
            g.publish();
        }
        self.mark(id);
    }

    fn refuse_group(view: &ReplicaView, reason: &str) {
        tracing::error!(group = %view.group, replica = view.replica.0, reason, "replica closed at start");
        view.close(reason);
    }

    fn tick(&mut self, now: Now, round: &mut Round) {
        let shedding = now.boot_ns < self.shedding_until_ns;
        let (mut led, mut leaving) = (0, 0);
        let ids: Vec<GroupId> = {
            let mut ids: Vec<GroupId> = self.groups.keys().copied().collect();
            ids.sort_unstable();
            ids
        };
        for id in ids {
            let election_ns = self.settings.election_ns();
            let random = self.settings.seed.is_some().then(|| self.next_random());
            let lease_ns = self.settings.lease_ns();
            let leaves = shedding && !self.handed_over.contains(&id);
            let ready = self.with_group(id, round, |g, _| {
                if let Some(r) = random {
                    g.seed_election_timeout(r);
                }
                Ok(g.tick(now, election_ns, lease_ns, leaves))
            });
            if ready == Some(true) {
                self.mark(id);
            }
            if let Some(g) = self.groups.get(&id)
                && g.is_leader()
                && g.has_other_voter()
            {
                led += 1;
                leaving += u32::from(leaves);
            }
        }
        if !self.shedding_replies.is_empty() && leaving == 0 {
            for reply in self.shedding_replies.drain(..) {
                let _ = reply.send(TransferOutcome { transferred: self.shed, remaining: led });
            }
        }
    }

    /// xorshift64*, for simulations only.
    fn next_random(&mut self) -> u64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn start_reads(&mut self, now: Now, round: &mut Round) {
        let mut later = Vec::new();
        for id in std::mem::take(&mut self.with_reads) {
            let number = self.round_number;
            if self.with_group(id, round, |g, _| Ok(g.start_reads(now, number))) == Some(true) {
                later.push(id);
            }
            self.mark(id);
        }
        self.with_reads = later;
    }

    fn start_proposals(&mut self, now: Now, round: &mut Round) {
        let mut later = Vec::new();
        for id in std::mem::take(&mut self.with_proposals) {
            let settings = self.settings.clone();
            let more = self.with_group(id, round, |g, _| Ok(g.start_proposals(now, &settings)));
            if more == Some(true) {
                later.push(id);
            }
            self.mark(id);
        }
        self.with_proposals = later;
    }

    /// Takes each group's Ready.
    fn readies(&mut self, now: Now, round: &mut Round) {
        while let Some(id) = self.dirty.pop() {
            let number = self.round_number;
            let faults = self.settings.faults;
            let again = self.with_group(id, round, |g, round| {
                g.dirty = false;
                g.ready(now, number, faults, round)
            });
            let Some(again) = again else { continue };
            if again {
                self.mark(id);
            }
            let Some(g) = self.groups.get_mut(&id) else { continue };
            if g.take_lost_leadership() && now.boot_ns < self.shedding_until_ns {
                self.shed += 1;
                self.handed_over.insert(id);
            }
            for to in g.take_wanted() {
                match g.node_of(to) {
                    Some(node) => round.checkpoints_wanted.push((id, to, node)),
                    None => {
                        self.counters.no_address.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Role of each group here; for tests and status.
    pub fn role(&self, group: GroupId) -> Option<Role> {
        self.groups.get(&group).map(|g| g.role())
    }

    pub fn facts(&self, group: GroupId) -> Option<GroupFacts> {
        let election_ns = self.settings.election_ns();
        self.groups.get(&group).map(|g| g.facts(self.now, election_ns))
    }

    /// Bytes of the group's log that are kept.
    pub fn kept_log_bytes(&self, group: GroupId) -> Option<u64> {
        self.groups.get(&group).map(|g| g.kept_log_bytes())
    }

    pub fn record(&self, group: GroupId) -> Option<&ReplicaRecord> {
        self.groups.get(&group).map(|g| g.record())
    }
}

#[cfg(test)]
mod tests;
