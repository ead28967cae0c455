//! One group's replica on this node: raft's state, what waits for it, and what its Ready leaves to do.
mod change;
mod checkpoint;
mod committed;
mod proposals;
mod reads;
mod ready;
mod start;
mod status;
mod transfer;

pub(super) use proposals::Proposal;

use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::apply::refuse;
use crate::raft::driver::{Incoming, Now, PlantedFaults};
use crate::raft::handle::{ProposeError, ReadError, ReplicaView, Role, Status};
use crate::raft::lease::Lease;
use crate::raft::log::ReplicaRecord;
use crate::raft::membership::Membership;
use crate::raft::store::GroupStore;
use change::Changing;
use proposals::InFlight;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{RawNode, StateRole};
use reads::ReadReply;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;
use transfer::Transfer;

/// Most committed entries that may wait for apply, in bytes, before a follower takes no more.
const APPLY_BEHIND_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of a follower's entries whose sync may be under way.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;
/// Election timeouts without a word after which a replica counts as silent.
const SILENT_ELECTIONS: u64 = 3;

pub(super) struct Group {
    pub id: GroupId,
    pub replica: ReplicaId,
    pub dirty: bool,
    raw: RawNode<GroupStore>,
    record: ReplicaRecord,
    view: Arc<ReplicaView>,
    /// Readies whose write is not synced yet.
    writes: u32,
    /// Ready numbers and bytes of entries whose sync is under way.
    unsynced: VecDeque<(u64, u64)>,
    saved_vote: (u64, u64),
    /// Until then this replica neither votes nor campaigns: it may have answered a heartbeat that
    /// a lease counts on before it was restarted.
    votes_held_until_ns: u64,
    /// Term and role as of the last Ready.
    seen: (u64, StateRole),
    lost_leadership: bool,
    proposals: VecDeque<Proposal>,
    /// Of `proposals`.
    waiting_bytes: u64,
    proposals_queued: bool,
    in_flight: VecDeque<InFlight>,
    /// Bytes from enqueued to applied.
    in_flight_bytes: u64,
    /// Index and bytes of own entries that are committed and not applied.
    applying: VecDeque<(u64, u64)>,
    last_stamp: u64,
    reads: Vec<ReadReply>,
    /// Reads that wait for the answer to their round.
    reads_asked: VecDeque<(u64, Vec<ReadReply>)>,
    /// When the last of those rounds began (CLOCK_BOOTTIME).
    reads_asked_ns: u64,
    /// Reads that wait until an index is applied.
    reads_confirmed: VecDeque<(u64, Vec<ReadReply>)>,
    lease: Lease,
    /// Index of the first entry of the term led: once applied here, so is all that was acknowledged.
    term_start: u64,
    committed: VecDeque<Entry>,
    committed_bytes: u64,
    /// Index and bytes of entries that are committed and not applied.
    handed: VecDeque<(u64, u64)>,
    changing: Option<Changing>,
    change_reply: Option<(u64, oneshot::Sender<Result<(), String>>)>,
    incoming: Option<Incoming>,
    /// Installed, but its record waits for the sync.
    installing: Option<(u64, u32)>,
    transfer: Option<Transfer>,
    /// Checkpoints on their way, by receiver: index and when to forget it.
    floors: HashMap<u64, (u64, u64)>,
    flushed: u64,
    /// While this replica leads: when each other one was last heard in this term (CLOCK_BOOTTIME).
    /// raft's own mark of activity is cleared at every check of the quorum, until the next answer.
    heard_ns: HashMap<u64, u64>,
    leader_since_ns: u64,
    /// When a leader was last heard, of this term or a higher one (CLOCK_BOOTTIME).
    led_ns: Option<u64>,
    /// Replicas that this leader has confirmed to be without, and whose records go.
    renounced: BTreeSet<u64>,
    /// Nodes of replicas whose messages came from there.
    nodes: HashMap<u64, NodeId>,
    published: Status,
    voters: Arc<[NodeId]>,
    faults: PlantedFaults,
}

impl Group {
    pub fn record(&self) -> &ReplicaRecord {
        &self.record
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.record.membership.is_voter(self.replica) => Role::Follower,
            StateRole::Follower => Role::Learner,
        }
    }

    pub fn leader_node(&self) -> Option<NodeId> {
        match self.raw.raft.leader_id {
            0 => None,
            id => self.node_of(ReplicaId(id)),
        }
    }

    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.record.membership.nodes.get(&replica).or_else(|| self.nodes.get(&replica.0)).copied()
    }

    /// Remembers where a replica's messages come from: a learner that joins knows no membership.
    pub fn learn_node(&mut self, replica: ReplicaId, node: NodeId) {
        if !self.record.membership.nodes.contains_key(&replica) && self.nodes.len() < 64 {
            self.nodes.insert(replica.0, node);
        }
    }

    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    pub fn has_other_voter(&self) -> bool {
        self.record.membership.voters.iter().any(|v| *v != self.replica.0)
    }

    /// Whether votes wait until this replica's promises of before its restart have run out.
    pub fn holds_votes(&self, now: Now) -> bool {
        now.boot_ns < self.votes_held_until_ns
    }

    /// Whether a checkpoint's record waits for its sync. raft must not campaign meanwhile: it would
    /// look for entries that the checkpoint replaced.
    pub fn is_installing(&self) -> bool {
        self.raw.raft.raft_log.applied < self.raw.store().truncated().0
    }

    /// A follower that cannot sync or apply as fast as it is sent takes no more entries meanwhile.
    pub fn is_behind(&self) -> bool {
        let unsynced: u64 = self.unsynced.iter().map(|(_, bytes)| bytes).sum();
        self.committed_bytes > APPLY_BEHIND_BYTES_MAX || unsynced > UNSYNCED_BYTES_MAX
    }

    /// It has heard its leader so lately that the leader's lease may rest on it. raft asks for that only
    /// while it knows the leader, and forgets it with any word of a higher term: the refusal of an old
    /// request for votes, say, just ahead of a new request.
    pub fn keeps_to_leader(&self, now: Now, promise_ns: u64) -> bool {
        !self.is_leader() && self.led_ns.is_some_and(|at| now.boot_ns < at + promise_ns)
    }

    /// Whether a replica was heard within `within_ns`; this one always is.
    fn is_heard(&self, replica: u64, now: Now, within_ns: u64) -> bool {
        replica == self.replica.0
            || self.heard_ns.get(&replica).is_some_and(|at| now.boot_ns < at + within_ns)
    }

    pub fn step_message(&mut self, now: Now, message: Message, lease_ns: u64) {
        let is_of_leader =
            matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if is_of_leader && message.term >= self.raw.raft.term {
            self.led_ns = Some(now.boot_ns);
        }
        if self.is_leader()
            && message.term == self.raw.raft.term
            && self.raw.raft.prs().get(message.from).is_some()
        {
            self.heard_ns.insert(message.from, now.boot_ns);
        }
        let answers_heartbeat = message.get_msg_type() == MessageType::MsgHeartbeatResponse
            && self.is_leader()
            && message.term == self.raw.raft.term;
        if answers_heartbeat {
            self.note_committed(&message);
        }
        if answers_heartbeat && let Ok(number) = <[u8; 8]>::try_from(&message.context[..]) {
            let prs = self.raw.raft.prs();
            self.lease.answered(
                u64::from_be_bytes(number),
                message.from,
                self.replica.0,
                lease_ns,
                |set| prs.has_quorum(&set.iter().copied().collect()),
            );
            self.publish_lease();
        }
        // An error says that the sender is unknown or a proposal was dropped: raft tries again.
        let _ = self.raw.step(message);
    }

    /// What a replica has committed it has, durably: its answer left behind the sync. One that took
    /// a checkpoint and whose acknowledgement was lost would else be offered checkpoints that it
    /// does not need for as long as nothing is written.
    fn note_committed(&mut self, message: &Message) {
        let raft = &self.raw.raft;
        let index = message.commit;
        let is_news = raft.prs().get(message.from).is_some_and(|p| index > p.matched);
        if is_news && index <= raft.raft_log.committed {
            let mut has = Message {
                from: message.from,
                to: self.replica.0,
                term: raft.term,
                index,
                commit: index,
                ..Default::default()
            };
            has.set_msg_type(MessageType::MsgAppendResponse);
            let _ = self.raw.step(has);
        }
    }

    pub fn campaign(&mut self) {
        let _ = self.raw.campaign();
    }

    /// Election timeouts from the simulation's seed: the library draws them from a global source.
    pub fn seed_election_timeout(&mut self, random: u64) {
        let least = self.raw.raft.election_timeout();
        self.raw.raft.set_randomized_election_timeout(least + (random % least as u64) as usize);
    }

    /// One tick. True: there is a Ready to take.
    pub fn tick(&mut self, now: Now, election_ns: u64, lease_ns: u64, shedding: bool) -> bool {
        let raft = &self.raw.raft;
        // No campaign while votes are held, but no later one either.
        let holds = self.holds_votes(now) || self.is_installing();
        if holds && raft.election_elapsed + 1 >= raft.election_timeout() {
            return false;
        }
        self.raw.tick();
        self.forget_lost_leader(now, election_ns);
        if self.is_leader() {
            if self.record.membership.voters == [self.replica.0]
                && !self.record.membership.is_joint()
            {
                self.lease.alone(now.boot_ns, lease_ns);
            }
            self.tick_transfer(now, election_ns, shedding);
        }
        self.floors.retain(|_, (_, until)| *until > now.boot_ns);
        self.publish_lease();
        true
    }

    /// Whoever does not campaign would believe for ever in the last leader that it heard: a learner that
    /// was removed while it could not be reached would never look for others to ask.
    fn forget_lost_leader(&mut self, now: Now, election_ns: u64) {
        let raft = &mut self.raw.raft;
        let is_lost =
            self.led_ns.is_none_or(|at| now.boot_ns >= at + SILENT_ELECTIONS * election_ns);
        if is_lost && raft.state == StateRole::Follower && !raft.promotable() {
            raft.leader_id = raft::INVALID_ID;
        }
    }

    /// What follows from a new term or role.
    fn note_role(&mut self, at: Now) {
        let raft = &self.raw.raft;
        let now = (raft.term, raft.state);
        if now == self.seen {
            return;
        }
        let led = self.seen.1 == StateRole::Leader;
        self.seen = now;
        if led {
            self.lost_leadership = true;
            self.end_transfer(Ok(()));
            // They may still be committed by the next leader.
            for f in self.in_flight.drain(..) {
                self.in_flight_bytes -= f.bytes;
                refuse(f.replies, &ProposeError::Unknown);
            }
            self.refuse_proposals();
            self.refuse_reads();
            if let Some((_, reply)) = self.change_reply.take() {
                let _ = reply.send(Err("leadership was lost: the outcome is unknown".into()));
            }
        }
        self.heard_ns.clear();
        self.renounced.clear();
        self.leader_since_ns = at.boot_ns;
        self.lease.reset();
        self.term_start = match now.1 {
            StateRole::Leader => self.raw.raft.raft_log.last_index(),
            _ => u64::MAX,
        };
        self.publish_lease();
    }

    /// Ends the replica after a fault: everybody who waits hears of it.
    pub fn close(mut self: Box<Self>, reason: &str) {
        self.view.close(reason);
        let reason: Arc<str> = reason.into();
        for f in self.in_flight.drain(..) {
            refuse(f.replies, &ProposeError::Unknown);
        }
        for p in self.proposals.drain(..) {
            let _ = p.reply.send(Err(ProposeError::Closed(reason.clone())));
        }
        let asked = self.reads_asked.drain(..).chain(self.reads_confirmed.drain(..));
        for reply in asked.flat_map(|(_, r)| r).chain(self.reads.drain(..)) {
            let _ = reply.send(Err(ReadError::Closed(reason.clone())));
        }
        if let Some(i) = self.incoming.take() {
            let _ = i.reply.send(false);
        }
    }
}

fn voters_of(membership: &Membership) -> Arc<[NodeId]> {
    let node = |v: &u64| membership.nodes.get(&ReplicaId(*v)).copied();
    membership.voters.iter().filter_map(node).collect()
}
