//! One node's Raft groups as a pure step: inputs and the time go in, one round comes out.
//!
//! A round is what all groups have to send, to write with one sync, and to apply. The step reads no
//! clock, touches no network and waits for nothing, so a whole cluster runs from a seed in a test.
//! After TiKV's raftstore; the order within a round is what `raft`'s asynchronous ready demands.
mod inputs;
mod replicas;
mod round;
mod settings;
#[cfg(test)]
mod tests;

pub use crate::raft::message::{Channel, PeerMessage};
pub use round::{
    Counters, GroupFacts, Incoming, Input, MembershipChange, NewGroup, Now, PersistedItem, Round,
    Write,
};
pub use settings::{DriverSettings, PlantedFaults};

use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::panics;
use crate::raft::apply::ApplyTask;
use crate::raft::group::Group;
use crate::raft::handle::{Role, TransferOutcome};
use crate::raft::log::{RaftLog, ReplicaRecord};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

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
