//! One group's replica on this node: raft's state, what waits for it, and what its Ready leaves to do.
use crate::clock::EPOCH_UNIX_MS;
use crate::failpoint;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::apply::{ApplyTask, Committed, Replies, StateMachine, refuse};
use crate::raft::driver::{
    Channel, DriverSettings, GroupFacts, Incoming, MembershipChange, Now, PeerMessage,
    PersistedItem, PlantedFaults, Round, STAMP_MS_MAX, Write,
};
use crate::raft::handle::{ProposeError, ProposeResult, ReadError, ReplicaView, Role, Status};
use crate::raft::lease::Lease;
use crate::raft::log::{LogOp, RaftLog, ReplicaRecord, Vote};
use crate::raft::membership::{CATCH_UP_LAG_MAX, Membership};
use crate::raft::store::GroupStore;
use bytes::Bytes;
use prost_raft::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType,
    HardState, Message, MessageType, Snapshot,
};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

/// Commands of one caller that stay together in one entry.
pub(super) struct Proposal {
    pub commands: Vec<Bytes>,
    pub bytes: u64,
    pub after_position: u64,
    pub reply: oneshot::Sender<ProposeResult>,
}

type TransferReply = oneshot::Sender<Result<(), String>>;
type ReadReply = oneshot::Sender<Result<(), ReadError>>;

/// An entry of this leader that is not committed yet.
struct InFlight {
    index: u64,
    bytes: u64,
    replies: Replies,
}

/// A leadership on its way to another voter.
struct Transfer {
    to: u64,
    /// Given up then (CLOCK_BOOTTIME).
    deadline_ns: u64,
    /// TimeoutNow may have gone out.
    sent: bool,
    reply: Option<TransferReply>,
}

/// A membership change whose record waits for its sync.
struct Changing {
    index: u64,
    term: u64,
    change: ConfChangeV2,
}

/// Most committed entries that may wait for apply, in bytes, before a follower takes no more.
const APPLY_BEHIND_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of a follower's entries whose sync may be under way.
const UNSYNCED_BYTES_MAX: u64 = 32 << 20;
/// Reads of one group that may wait.
const READS_WAITING_MAX: usize = 16_384;
/// A read-index round that took so long may never be answered.
const READ_ROUND_LOST_NS: u64 = 50_000_000;
/// Bytes of committed entries that a Ready hands out.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;
/// Entries that a transfer's target may be behind: proposals wait until it has them.
const TRANSFER_LAG_MAX: u64 = 1_000;
const MESSAGE_BYTES_MAX: u64 = 512 << 10;
const MESSAGES_IN_FLIGHT_MAX: usize = 64;

/// Replicas that a leader remembers not to take in any more, the newest.
const RENOUNCED_MAX: usize = 16;
/// Election timeouts without a word after which a replica counts as silent.
const SILENT_ELECTIONS: u64 = 3;
const OWN_REMOVAL: &str = "a leader does not remove itself: move its leadership first";

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
    /// Starts a replica from what the log holds: entries up to `last` and its last vote.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        settings: &DriverSettings,
        log: Arc<dyn RaftLog>,
        record: &ReplicaRecord,
        vote: Option<Vote>,
        last: u64,
        machine: &dyn StateMachine,
        view: Arc<ReplicaView>,
        started_ns: u64,
        logger: &slog::Logger,
    ) -> Result<Group, String> {
        let (applied, _, _) = machine.applied();
        let truncated = (record.truncated_index, record.truncated_term);
        let last = last.max(truncated.0);
        if applied > last {
            return Err(format!(
                "the database has applied entry {applied}, but the log ends at {last}: the log lost its end"
            ));
        }
        if applied < truncated.0 {
            return Err(format!(
                "the database has applied entry {applied}, but the log begins behind {}: the database lost its end",
                truncated.0
            ));
        }
        if record.membership_index > last {
            return Err(format!(
                "the membership is of entry {}, but the log ends at {last}: the log lost its end",
                record.membership_index
            ));
        }
        let mut store = GroupStore::new(record.replica, log, truncated, &record.membership);
        store.catch_up_bytes = settings.catch_up_bytes;
        store.load(last, settings.kept_log_bytes / 2).map_err(|e| e.to_string())?;
        let v = vote.unwrap_or_default();
        let commit = match settings.faults.commit_back_at_restart {
            true => truncated.0,
            false => v.commit.max(applied).max(record.membership_index).max(truncated.0),
        };
        if commit > last {
            return Err(format!(
                "entry {commit} was committed, but the log ends at {last}: the log lost its end"
            ));
        }
        store.hard_state = HardState { term: v.term, vote: v.vote, commit };
        let cfg = Config {
            id: record.replica.0,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            min_election_tick: settings.election_ticks,
            max_election_tick: 2 * settings.election_ticks,
            applied: if settings.faults.commit_back_at_restart { truncated.0 } else { applied },
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            // raft 0.7 batches entries into an empty append of another index when a rejection moved
            // the follower back in the same round; the follower then acknowledges an entry that it
            // does not have. Proposals are packed before they come here.
            batch_append: false,
            read_only_option: ReadOnlyOption::Safe,
            // Proposals are bounded by us, before they are packed.
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        let raw = RawNode::new(&cfg, store, logger).map_err(|e| e.to_string())?;
        let seen = (raw.raft.term, raw.raft.state);
        Ok(Group {
            id: record.group,
            replica: record.replica,
            dirty: false,
            raw,
            record: record.clone(),
            view,
            writes: 0,
            unsynced: VecDeque::new(),
            saved_vote: (v.term, v.vote),
            votes_held_until_ns: match vote {
                Some(v) if v.term > 0 => started_ns + settings.election_ns(),
                _ => 0,
            },
            seen,
            lost_leadership: false,
            proposals: VecDeque::new(),
            waiting_bytes: 0,
            proposals_queued: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            applying: VecDeque::new(),
            last_stamp: 0,
            reads: Vec::new(),
            reads_asked: VecDeque::new(),
            reads_asked_ns: 0,
            reads_confirmed: VecDeque::new(),
            lease: Lease::default(),
            term_start: u64::MAX,
            committed: VecDeque::new(),
            committed_bytes: 0,
            handed: VecDeque::new(),
            changing: None,
            change_reply: None,
            incoming: None,
            installing: None,
            transfer: None,
            floors: HashMap::new(),
            flushed: applied.min(truncated.0),
            heard_ns: HashMap::new(),
            leader_since_ns: 0,
            led_ns: None,
            renounced: BTreeSet::new(),
            nodes: HashMap::new(),
            published: Status::default(),
            voters: voters_of(&record.membership),
            faults: settings.faults,
        })
    }

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

    /// Offers a verified checkpoint to raft; it takes it if it is ahead and names this replica.
    pub fn step_incoming(&mut self, incoming: Incoming) {
        let leader = self.raw.raft.leader_id;
        let useful = incoming.index > self.raw.raft.raft_log.committed
            && (incoming.membership.contains(self.replica)
                || self.faults.checkpoint_without_receiver)
            && self.incoming.is_none()
            && self.installing.is_none()
            && self.changing.is_none()
            && self.committed.is_empty()
            && leader != 0
            && !self.is_leader();
        if !useful {
            let _ = incoming.reply.send(false);
            return;
        }
        let mut snapshot = Snapshot::default();
        let m = snapshot.mut_metadata();
        m.index = incoming.index;
        m.term = incoming.term;
        let mut conf_state = incoming.membership.conf_state();
        if self.faults.checkpoint_without_receiver && !incoming.membership.contains(self.replica) {
            // raft refuses as well.
            conf_state.learners.push(self.replica.0);
        }
        m.set_conf_state(conf_state);
        let mut message = Message {
            from: leader,
            to: self.replica.0,
            term: self.raw.raft.term,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        let _ = self.raw.step(message);
        if self.raw.snap().is_some_and(|s| s.get_metadata().index == incoming.index) {
            self.incoming = Some(incoming);
        } else {
            let _ = incoming.reply.send(false);
        }
    }

    /// Queues a proposal. True: the group is to be visited by `start_proposals`.
    pub fn enqueue(&mut self, proposal: Proposal) -> bool {
        self.in_flight_bytes += proposal.bytes;
        self.waiting_bytes += proposal.bytes;
        self.proposals.push_back(proposal);
        !std::mem::replace(&mut self.proposals_queued, true)
    }

    /// Packs what waits into entries while the window has room. True: some still wait.
    pub fn start_proposals(&mut self, now: Now, settings: &DriverSettings) -> bool {
        self.proposals_queued = false;
        if !self.is_leader() {
            self.refuse_proposals();
            return false;
        }
        let mut packed: Vec<(Entry, InFlight)> = Vec::new();
        // What was committed in this round has made room, and is handed to apply later in it.
        let committed = self.raw.raft.raft_log.committed;
        let uncommitted = self.in_flight.iter().filter(|f| f.index > committed).count();
        while !self.proposals.is_empty() && self.transfer.is_none() {
            let in_flight = uncommitted + packed.len();
            // Each entry costs every replica the same again, however little is in it: behind one
            // that is under way only a full one is worth its own.
            let is_full = self.waiting_bytes >= settings.entry_joins_bytes;
            if in_flight >= settings.entries_in_flight as usize || (in_flight > 0 && !is_full) {
                break;
            }
            packed.push(self.pack(now, settings));
        }
        if !packed.is_empty() {
            let mut message = Message { from: self.replica.0, ..Default::default() };
            message.set_msg_type(MessageType::MsgPropose);
            let first = self.raw.raft.raft_log.last_index() + 1;
            let (entries, mut flights): (Vec<_>, Vec<_>) = packed.into_iter().unzip();
            message.set_entries(entries);
            match self.raw.step(message) {
                Ok(()) => {
                    for (flight, index) in flights.iter_mut().zip(first..) {
                        flight.index = index;
                    }
                    self.in_flight.extend(flights);
                }
                Err(_) => {
                    let error = ProposeError::NotLeader { leader: self.leader_node() };
                    for flight in flights {
                        self.in_flight_bytes -= flight.bytes;
                        refuse(flight.replies, &error);
                    }
                }
            }
        }
        self.proposals_queued = !self.proposals.is_empty();
        self.proposals_queued
    }

    /// One entry of the proposals in front (docs/formats.md): a format byte, the leader's stamp and
    /// limits, then the commands as they were encoded.
    fn pack(&mut self, now: Now, settings: &DriverSettings) -> (Entry, InFlight) {
        let mut count = 0;
        let mut bytes = 0;
        for p in &self.proposals {
            if count > 0 && bytes + p.bytes > settings.entry_bytes as u64 {
                break;
            }
            count += 1;
            bytes += p.bytes;
        }
        let mut data = Vec::with_capacity(bytes as usize + 32);
        data.push(crate::raft::ENTRY_FORMAT);
        let after = self.proposals.iter().take(count).map(|p| p.after_position).max().unwrap_or(0);
        let tag = if self.id == GroupId::META {
            META_COMMANDS_TAG
        } else {
            let now_ms = now.wall_ms.saturating_sub(EPOCH_UNIX_MS).min(STAMP_MS_MAX);
            let now_stamp = now_ms << 21;
            let stamp = now_stamp.max(((after >> 10) + 1) << 10).max(self.last_stamp);
            self.last_stamp = stamp;
            for (tag, value) in [
                (STAMP_TAG, stamp),
                (MAX_STATE_TAG, u64::from(settings.max_state_bytes)),
                (SNAPSHOT_EVERY_TAG, u64::from(settings.snapshot_every)),
            ] {
                data.push(tag);
                put_varint(&mut data, value);
            }
            COMMANDS_TAG
        };
        let mut replies = Vec::with_capacity(count);
        self.waiting_bytes -= bytes;
        for p in self.proposals.drain(..count) {
            for c in &p.commands {
                data.push(tag);
                put_varint(&mut data, c.len() as u64);
                data.extend_from_slice(c);
            }
            replies.push((p.commands.len() as u32, p.reply));
        }
        (Entry { data, ..Default::default() }, InFlight { index: 0, bytes, replies })
    }

    fn refuse_proposals(&mut self) {
        let error = ProposeError::NotLeader { leader: self.leader_node() };
        self.waiting_bytes = 0;
        for p in self.proposals.drain(..) {
            self.in_flight_bytes -= p.bytes;
            let _ = p.reply.send(Err(error.clone()));
        }
    }

    /// Queues a read. True: the group is to be visited by `start_reads`.
    pub fn enqueue_read(&mut self, reply: ReadReply) -> bool {
        if !self.is_leader() {
            let _ = reply.send(Err(ReadError::NotLeader { leader: self.leader_node() }));
            return false;
        }
        if self.reads.len() >= READS_WAITING_MAX {
            let _ = reply.send(Err(ReadError::Busy));
            return false;
        }
        self.reads.push(reply);
        self.reads.len() == 1
    }

    /// Asks one round for all reads that wait. True: they wait for the term's first commit, or for
    /// the round before.
    pub fn start_reads(&mut self, now: Now, number: u64) -> bool {
        if self.reads.is_empty() {
            return false;
        }
        if !self.is_leader() {
            self.refuse_reads();
            return false;
        }
        if !self.raw.raft.commit_to_current_term() {
            return true;
        }
        // What comes in while a round is under way makes the next one: under load fewer rounds serve
        // the same reads. One whose messages may be lost does not hold the others up.
        let is_answered = self.reads_asked.is_empty() || !self.raw.raft.read_states.is_empty();
        if !is_answered && now.boot_ns < self.reads_asked_ns + READ_ROUND_LOST_NS {
            return true;
        }
        self.reads_asked_ns = now.boot_ns;
        self.raw.read_index(number.to_be_bytes().to_vec());
        self.reads_asked.push_back((number, std::mem::take(&mut self.reads)));
        false
    }

    /// Answers the reads that were not confirmed; confirmed ones only wait for apply.
    fn refuse_reads(&mut self) {
        let error = ReadError::NotLeader { leader: self.leader_node() };
        let asked = self.reads_asked.drain(..).flat_map(|(_, replies)| replies);
        for reply in asked.chain(self.reads.drain(..)) {
            let _ = reply.send(Err(error.clone()));
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

    fn tick_transfer(&mut self, now: Now, election_ns: u64, shedding: bool) {
        match &self.transfer {
            Some(t) if now.boot_ns >= t.deadline_ns => {
                self.raw.raft.abort_leader_transfer();
                self.end_transfer(Err("the other voter has not taken over in time".into()));
                self.proposals_queued = false;
            }
            Some(_) => self.go_on_transfer(),
            None if shedding => {
                // Tried again with the next tick.
                let _ = self.begin_transfer(now, None, election_ns, None);
            }
            None => {}
        }
    }

    /// Hands leadership to `to`, and says how that ended.
    pub fn transfer(&mut self, now: Now, to: ReplicaId, election_ns: u64, reply: TransferReply) {
        if let Err((reason, Some(reply))) =
            self.begin_transfer(now, Some(to), election_ns, Some(reply))
        {
            let _ = reply.send(Err(reason));
        }
    }

    fn end_transfer(&mut self, result: Result<(), String>) {
        if let Some(reply) = self.transfer.take().and_then(|t| t.reply) {
            let _ = reply.send(result);
        }
    }

    /// Whether a replica was heard within `within_ns`; this one always is.
    fn is_heard(&self, replica: u64, now: Now, within_ns: u64) -> bool {
        replica == self.replica.0
            || self.heard_ns.get(&replica).is_some_and(|at| now.boot_ns < at + within_ns)
    }

    /// Hands leadership to `to`, or to the voter that has most of the log. Proposals wait meanwhile.
    ///
    /// # Errors
    /// Why it is not begun, and the reply.
    fn begin_transfer(
        &mut self,
        now: Now,
        to: Option<ReplicaId>,
        election_ns: u64,
        reply: Option<TransferReply>,
    ) -> Result<(), (String, Option<TransferReply>)> {
        if !self.is_leader() {
            return Err(("this replica does not lead".into(), reply));
        }
        if self.transfer.is_some() || self.changing.is_some() {
            let reason = "another leader transfer or a membership change is under way";
            return Err((reason.into(), reply));
        }
        let me = self.replica.0;
        let last = self.raw.raft.raft_log.last_index();
        let voters = &self.record.membership.voters;
        let best = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != me && voters.contains(id))
            .filter(|(id, _)| self.is_heard(**id, now, election_ns))
            .filter(|(_, p)| p.matched + TRANSFER_LAG_MAX >= last)
            .filter(|(id, _)| to.is_none_or(|to| to.0 == **id))
            .max_by_key(|(id, p)| (p.matched, **id))
            .map(|(id, _)| *id);
        let Some(to) = best else {
            return Err(("no such voter answers and has nearly everything".into(), reply));
        };
        let deadline_ns = now.boot_ns + election_ns;
        self.transfer = Some(Transfer { to, deadline_ns, sent: false, reply });
        self.go_on_transfer();
        Ok(())
    }

    /// Sends the transfer once all own entries are applied by the log's end and the target has them.
    fn go_on_transfer(&mut self) {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let Some(t) = &mut self.transfer else { return };
        let has_all = raft.prs().get(t.to).is_some_and(|p| p.matched == last);
        if !t.sent && raft.raft_log.committed == last && has_all {
            t.sent = true;
            let to = t.to;
            self.lease.void_for_term(self.raw.raft.term);
            self.publish_lease();
            self.raw.transfer_leader(to);
        }
    }

    pub fn change_membership(
        &mut self,
        now: Now,
        election_ns: u64,
        change: MembershipChange,
        planned_on: Option<u64>,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        let refused = self.propose_change(now, election_ns, change, planned_on);
        match refused {
            Ok(index) => self.change_reply = Some((index, reply)),
            Err(reason) => {
                let _ = reply.send(Err(reason));
            }
        }
    }

    fn propose_change(
        &mut self,
        now: Now,
        election_ns: u64,
        change: MembershipChange,
        planned_on: Option<u64>,
    ) -> Result<u64, String> {
        let raft = &self.raw.raft;
        if !self.is_leader() {
            return Err("this replica does not lead".into());
        }
        if raft.has_pending_conf() || self.changing.is_some() || self.transfer.is_some() {
            return Err("another membership change or a leader transfer is under way".into());
        }
        if !raft.commit_to_current_term() {
            return Err("the leader has committed nothing in its term yet".into());
        }
        let current = self.record.membership_index;
        if let Some(planned) = planned_on.filter(|p| *p != current && !self.faults.stale_change) {
            return Err(format!(
                "planned on the membership of entry {planned}, and the group is at that of {current}"
            ));
        }
        let mut v2 = ConfChangeV2::default();
        v2.set_transition(ConfChangeTransition::Auto);
        let mut context = Vec::new();
        match change {
            MembershipChange::AddLearner(replica, node) => {
                if self.record.membership.contains(replica) {
                    return Err(format!("{replica} is in the group"));
                }
                if self.renounced.contains(&replica.0) {
                    return Err(format!("{replica} was given up"));
                }
                v2.changes.push(single(ConfChangeType::AddLearnerNode, replica));
                context.extend_from_slice(&replica.0.to_le_bytes());
                context.extend_from_slice(&node.0.to_le_bytes());
            }
            MembershipChange::Promote(replica) => {
                self.has_caught_up(replica, now, election_ns)?;
                v2.changes.push(single(ConfChangeType::AddNode, replica));
            }
            MembershipChange::Demote(replica) => {
                self.is_not_own(replica)?;
                if !self.record.membership.is_voter(replica) {
                    return Err(format!("{replica} is no voter"));
                }
                v2.changes.push(single(ConfChangeType::AddLearnerNode, replica));
            }
            MembershipChange::Remove(replica) => {
                self.is_not_own(replica)?;
                if self.record.membership.is_voter(replica) {
                    return Err(format!("{replica} is a voter: it becomes a learner first"));
                }
                v2.changes.push(single(ConfChangeType::RemoveNode, replica));
            }
            MembershipChange::Swap { promote, remove } => {
                self.is_not_own(remove)?;
                self.has_caught_up(promote, now, election_ns)?;
                // An automatic leave would die with its leader.
                v2.set_transition(ConfChangeTransition::Explicit);
                v2.changes.push(single(ConfChangeType::AddNode, promote));
                // A learner first, and removed by a change of its own: who has that one in its log
                // knows that this one is committed, and elections need the old voter no more.
                v2.changes.push(single(ConfChangeType::AddLearnerNode, remove));
            }
            MembershipChange::LeaveJoint => {
                if !self.record.membership.voters.contains(&self.replica.0) {
                    return Err(OWN_REMOVAL.into());
                }
            }
        }
        let next = self.record.membership.after(&v2, &[]).map_err(|e| e.to_string())?;
        let current = &self.record.membership;
        let changes_voters = next.voters != current.voters || next.is_joint();
        for voters in [&next.voters, &next.voters_outgoing].into_iter().filter(|_| changes_voters) {
            let answers = |id: &&u64| self.is_heard(**id, now, election_ns);
            if !voters.is_empty() && voters.iter().filter(answers).count() <= voters.len() / 2 {
                return Err("no majority of the next membership answers now".into());
            }
        }
        let index = raft.raft_log.last_index() + 1;
        let (proposed, _) = points_of(&v2);
        let mut entry = Entry { data: v2.encode_to_vec(), context, ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = Message { from: self.replica.0, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry]);
        self.raw.step(message).map_err(|e| e.to_string())?;
        failpoint::hit(proposed, self.id);
        Ok(index)
    }

    fn is_not_own(&self, replica: ReplicaId) -> Result<(), String> {
        if replica == self.replica { Err(OWN_REMOVAL.into()) } else { Ok(()) }
    }

    /// Raft itself would make any learner a voter.
    fn has_caught_up(&self, replica: ReplicaId, now: Now, election_ns: u64) -> Result<(), String> {
        let raft = &self.raw.raft;
        // Of a short log one that was just added may have nothing at all.
        let p = raft.prs().get(replica.0).filter(|p| p.matched > 0);
        let p = p.filter(|_| self.is_heard(replica.0, now, election_ns));
        if p.is_none_or(|p| p.matched + CATCH_UP_LAG_MAX < raft.raft_log.committed) {
            return Err(format!("{replica} has not caught up"));
        }
        Ok(())
    }

    /// This leader takes the replica in no more: it was confirmed not to be in the group, and its
    /// record goes.
    ///
    /// # Errors
    /// It leads no more in that term, the membership has changed since, or is about to.
    pub fn renounce(
        &mut self,
        replica: ReplicaId,
        term: u64,
        membership_index: u64,
    ) -> Result<(), String> {
        let raft = &self.raw.raft;
        let is_same = self.is_leader()
            && (raft.term, self.record.membership_index) == (term, membership_index)
            && !self.record.membership.contains(replica)
            && !raft.has_pending_conf()
            && self.changing.is_none();
        if !is_same {
            return Err("the leader or the membership has changed meanwhile".into());
        }
        self.renounced.insert(replica.0);
        while self.renounced.len() > RENOUNCED_MAX {
            self.renounced.pop_first();
        }
        Ok(())
    }

    pub fn facts(&self, now: Now, election_ns: u64) -> GroupFacts {
        let raft = &self.raw.raft;
        let silent_ns = SILENT_ELECTIONS * election_ns;
        // Nobody has said anything to a leader that has just been elected.
        let judges = self.is_leader() && now.boot_ns >= self.leader_since_ns + silent_ns;
        let is_silent = |id: &u64| judges && !self.is_heard(*id, now, silent_ns);
        GroupFacts {
            renounced: self.renounced.clone(),
            silent: raft.prs().iter().map(|(id, _)| *id).filter(is_silent).collect(),
            is_leader: self.is_leader(),
            term: raft.term,
            membership: self.record.membership.clone(),
            membership_index: self.record.membership_index,
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            matched: match self.is_leader() {
                true => raft.prs().iter().map(|(id, p)| (*id, p.matched)).collect(),
                false => BTreeMap::new(),
            },
            change_pending: raft.has_pending_conf() || self.changing.is_some(),
        }
    }

    pub fn kept_log_bytes(&self) -> u64 {
        self.raw.store().kept_bytes()
    }

    pub fn transfer_floor(&mut self, now: Now, to: ReplicaId, index: Option<u64>) {
        const FORGET_NS: u64 = 600_000_000_000;
        match index {
            Some(index) => {
                self.floors.insert(to.0, (index, now.boot_ns + FORGET_NS));
            }
            None => {
                self.floors.remove(&to.0);
            }
        }
    }

    /// Entries below what is durable in the database can go, but not past a running transfer, and
    /// some are kept for followers that are a little behind.
    pub fn flushed(&mut self, index: u64, kept_bytes: u64, write: &mut Write) {
        self.flushed = self.flushed.max(index);
        let floor = self.floors.values().map(|(i, _)| *i).min().unwrap_or(u64::MAX);
        // A transfer that would pin more than this starts again from a new checkpoint.
        let gives_up =
            self.raw.store().kept_bytes() > 4 * kept_bytes || self.faults.compaction_past_transfer;
        let floor = if gives_up { u64::MAX } else { floor };
        let upto = self.flushed.min(floor).min(self.raw.raft.raft_log.applied);
        if let Some(to) = self.raw.store().compactable(upto, kept_bytes) {
            self.raw.mut_store().compact(to);
            let (index, term) = self.raw.store().truncated();
            self.record.truncated_index = index;
            self.record.truncated_term = term;
            write.ops.push(LogOp::Record(Box::new(self.record.clone())));
            write.ops.push(LogOp::Compact { replica: self.replica, first_kept: index + 1 });
        }
        self.publish();
    }

    /// The write of a Ready is synced.
    pub fn persisted(&mut self, item: &PersistedItem, round: &mut Round) -> Result<(), String> {
        if let Some(number) = item.ready {
            self.writes = self.writes.saturating_sub(1);
            self.raw.on_persist_ready(number);
            while self.unsynced.front().is_some_and(|(n, _)| *n <= number) {
                self.unsynced.pop_front();
            }
        }
        if item.installed.is_some()
            && let Some((index, directory)) = self.installing.take()
        {
            // To raft it is applied: what lies before it cannot be read any more.
            self.raw.advance_apply_to(index);
            round.apply.push(ApplyTask::Install {
                group: self.id,
                replica: self.replica,
                directory,
                index,
            });
        }
        if let Some(index) = item.change {
            self.change_is_durable(index, round)?;
        }
        Ok(())
    }

    fn change_is_durable(&mut self, index: u64, round: &mut Round) -> Result<(), String> {
        let Some(c) = self.changing.take_if(|c| c.index == index) else { return Ok(()) };
        let cs = self.raw.apply_conf_change(&c.change).map_err(|e| e.to_string())?;
        if !self.record.membership.matches(&cs) {
            return Err(format!(
                "raft's membership {cs:?} at entry {index} is not the recorded {:?}",
                self.record.membership
            ));
        }
        self.raw.mut_store().conf_state = cs;
        if self.is_leader() {
            failpoint::hit(points_of(&c.change).1, self.id);
        }
        if self.is_leader() && !self.record.membership.is_voter(self.replica) {
            // Elected before it had applied its removal, which an earlier leader had proposed. raft
            // would let it lead on, and panic.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        self.voters = voters_of(&self.record.membership);
        self.lease.reset();
        self.publish_lease();
        self.hand_over(
            vec![Committed {
                index,
                term: c.term,
                data: None,
                membership: Some(self.encoded_membership()),
                replies: Vec::new(),
            }],
            round,
        );
        if let Some((_, reply)) = self.change_reply.take_if(|(i, _)| *i == index) {
            let _ = reply.send(Ok(()));
        }
        self.dispatch(round)
    }

    fn encoded_membership(&self) -> Vec<u8> {
        use prost::Message as _;
        self.record.membership.to_proto().encode_to_vec()
    }

    fn hand_over(&self, entries: Vec<Committed>, round: &mut Round) {
        if !entries.is_empty() {
            round.apply.push(ApplyTask::Entries { group: self.id, replica: self.replica, entries });
        }
    }

    /// Hands committed entries to apply, up to a membership change that must be durable first.
    fn dispatch(&mut self, round: &mut Round) -> Result<(), String> {
        let mut out = Vec::new();
        while self.changing.is_none()
            && let Some(e) = self.committed.pop_front()
        {
            let replies = self.take_replies(&e);
            let (index, term) = (e.index, e.term);
            match e.get_entry_type() {
                EntryType::EntryNormal => out.push(Committed {
                    index,
                    term,
                    data: (!e.data.is_empty()).then(|| Bytes::from(e.data)),
                    membership: None,
                    replies,
                }),
                EntryType::EntryConfChangeV2 | EntryType::EntryConfChange => {
                    let mut done = Committed { index, term, data: None, membership: None, replies };
                    if index <= self.record.membership_index {
                        // Replayed: it has been in effect since the start.
                        if index == self.record.membership_index {
                            done.membership = Some(self.encoded_membership());
                        }
                        out.push(done);
                        continue;
                    }
                    let change = decode_change(&e)?;
                    match self.record.membership.after(&change, &nodes_in(&e.context)) {
                        // The same on every replica: a pure function of the membership.
                        Err(reason) => {
                            tracing::warn!(group = %self.id, index, %reason, "membership change ignored");
                            if let Some((_, reply)) =
                                self.change_reply.take_if(|(i, _)| *i == index)
                            {
                                let _ = reply.send(Err(reason.to_string()));
                            }
                            out.push(done);
                        }
                        Ok(next) => {
                            self.record.membership = next;
                            self.record.membership_index = index;
                            self.changing = Some(Changing { index, term, change });
                            if !self.faults.membership_lost_at_restart {
                                round.write.ops.push(LogOp::Record(Box::new(self.record.clone())));
                            }
                            round.write.persisted.push(PersistedItem {
                                group: self.id,
                                replica: self.replica,
                                ready: None,
                                change: Some(index),
                                installed: None,
                                destroyed: false,
                            });
                        }
                    }
                }
            }
        }
        self.hand_over(out, round);
        Ok(())
    }

    /// The callers of a committed entry, if it is theirs.
    fn take_replies(&mut self, e: &Entry) -> Replies {
        while self.in_flight.front().is_some_and(|f| f.index <= e.index) {
            let Some(f) = self.in_flight.pop_front() else { break };
            self.applying.push_back((e.index, f.bytes));
            // In-flight entries are dropped when leadership is lost, so an index is of this term.
            if f.index == e.index {
                return f.replies;
            }
            refuse(f.replies, &ProposeError::Unknown);
        }
        Vec::new()
    }

    /// The database has applied everything up to `index`.
    pub fn applied(&mut self, index: u64, cache_bytes: u64) {
        let log = &self.raw.raft.raft_log;
        if index > log.applied && index <= log.committed.min(log.persisted) {
            self.raw.advance_apply_to(index);
        }
        let persisted = self.raw.raft.raft_log.persisted;
        self.raw.mut_store().evict(index.min(persisted), cache_bytes);
        while self.applying.front().is_some_and(|(i, _)| *i <= index) {
            if let Some((_, bytes)) = self.applying.pop_front() {
                self.in_flight_bytes -= bytes;
            }
        }
        while self.handed.front().is_some_and(|(i, _)| *i <= index) {
            if let Some((_, bytes)) = self.handed.pop_front() {
                self.committed_bytes -= bytes;
            }
        }
        self.answer_reads();
        self.publish_lease();
    }

    fn answer_reads(&mut self) {
        let applied = self.view.applied.borrow().index;
        while self.reads_confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            if let Some((_, replies)) = self.reads_confirmed.pop_front() {
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }

    /// Takes raft's Ready. True: there is another.
    pub fn ready(
        &mut self,
        now: Now,
        number: u64,
        faults: PlantedFaults,
        round: &mut Round,
    ) -> Result<bool, String> {
        if self.transfer.is_some() {
            self.go_on_transfer();
        }
        if !self.raw.has_ready() {
            self.publish();
            return Ok(false);
        }
        let mut rd = self.raw.ready();
        self.note_role(now);
        for m in rd.take_messages() {
            self.send(now, number, m, &mut round.messages);
        }
        let mut persist = rd.must_sync();
        let mut installed = None;
        if !rd.snapshot().is_empty() {
            installed = Some(self.install(rd.snapshot().clone(), round)?);
            persist = true;
        }
        if let Some(hs) = rd.hs() {
            self.raw.mut_store().hard_state = hs.clone();
        }
        let entries = rd.take_entries();
        let changes_membership = !faults.change_without_commit
            && entries.iter().any(|e| e.get_entry_type() != EntryType::EntryNormal);
        if !entries.is_empty() {
            persist = true;
            let op = LogOp::Entries {
                replica: self.replica,
                first_index: entries[0].index,
                entries: entries.iter().map(|e| e.encode_to_vec()).collect(),
            };
            let bytes = entries.iter().map(|e| e.data.len() as u64).sum();
            self.unsynced.push_back((rd.number(), bytes));
            if !self.raw.mut_store().append(entries) {
                return Err("raft wrote entries that leave a gap in the log".into());
            }
            round.write.ops.push(op);
        }
        let hs = &self.raw.store().hard_state;
        // The commit index is not worth a write of its own: a restart takes the applied one. But
        // whoever has a membership change in its log must know, also after a restart, that the one
        // before it was committed: else it would campaign with a membership that the others have
        // left by two changes, and its majority and theirs need not meet.
        if (hs.term, hs.vote) != self.saved_vote || changes_membership {
            self.saved_vote = (hs.term, hs.vote);
            let vote = Vote { term: hs.term, vote: hs.vote, commit: hs.commit };
            round.write.ops.push(LogOp::Vote { replica: self.replica, vote });
            persist = true;
        }
        // Also a Ready that writes nothing waits behind those whose sync is under way.
        let later = (persist || self.writes > 0) && !faults.ack_before_sync;
        let messages = rd.take_persisted_messages();
        for m in messages {
            let out = if later { &mut round.write.messages } else { &mut round.messages };
            self.send(now, number, m, out);
        }
        for state in rd.take_read_states() {
            let Ok(context) = <[u8; 8]>::try_from(&state.request_ctx[..]) else { continue };
            let asked = u64::from_be_bytes(context);
            while self.reads_asked.front().is_some_and(|(n, _)| *n <= asked) {
                if let Some((_, replies)) = self.reads_asked.pop_front() {
                    self.reads_confirmed.push_back((state.index, replies));
                }
            }
        }
        let committed = rd.take_committed_entries();
        for e in &committed {
            self.committed_bytes += e.data.len() as u64;
            self.handed.push_back((e.index, e.data.len() as u64));
        }
        self.committed.extend(committed);
        let ready = rd.number();
        self.raw.advance_append_async(rd);
        if later {
            self.writes += 1;
            round.write.persisted.push(PersistedItem {
                group: self.id,
                replica: self.replica,
                ready: Some(ready),
                change: None,
                installed,
                destroyed: false,
            });
        } else {
            self.raw.on_persist_ready(ready);
        }
        self.dispatch(round)?;
        self.answer_reads();
        self.publish();
        Ok(self.raw.has_ready())
    }

    /// Sends one of raft's messages: heartbeats carry the round's number, for the lease.
    fn send(
        &mut self,
        now: Now,
        number: u64,
        mut m: Message,
        out: &mut Vec<(NodeId, Channel, PeerMessage)>,
    ) {
        let kind = m.get_msg_type();
        if kind == MessageType::MsgHeartbeat {
            if m.context.is_empty() {
                m.context = number.to_be_bytes().to_vec();
            }
            if let Ok(context) = <[u8; 8]>::try_from(&m.context[..]) {
                self.lease.sent(u64::from_be_bytes(context), now.boot_ns);
            }
        }
        // Its receiver may not be known any more: then nobody waits for the message.
        let Some(node) = self.node_of(ReplicaId(m.to)) else { return };
        let channel = match kind {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => Channel::Entries,
            _ => Channel::Votes,
        };
        out.push((
            node,
            channel,
            PeerMessage {
                group: self.id,
                from: ReplicaId(m.from),
                to: ReplicaId(m.to),
                bytes: m.encode_to_vec().into(),
            },
        ));
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

    /// Takes a checkpoint into the log: what it replaces goes, the record names its directory.
    fn install(&mut self, snapshot: Snapshot, round: &mut Round) -> Result<u64, String> {
        let meta = snapshot.get_metadata();
        let incoming = self.incoming.take_if(|i| i.index == meta.index).ok_or_else(|| {
            format!("raft installs a checkpoint at {} that was not offered", meta.index)
        })?;
        self.raw.mut_store().install(meta.index, meta.term, incoming.membership.conf_state());
        self.record.directory = incoming.directory;
        // Before anybody hears that it was taken: the next checkpoint gets a directory of its own.
        self.view.directory.store(incoming.directory, Ordering::Release);
        self.voters = voters_of(&incoming.membership);
        self.record.membership = incoming.membership;
        self.record.membership_index = incoming.membership_index;
        self.record.truncated_index = meta.index;
        self.record.truncated_term = meta.term;
        self.flushed = self.flushed.max(meta.index);
        round.write.ops.push(LogOp::Clear { replica: self.replica });
        round.write.ops.push(LogOp::Record(Box::new(self.record.clone())));
        self.installing = Some((meta.index, incoming.directory));
        let _ = incoming.reply.send(true);
        Ok(meta.index)
    }

    pub fn take_lost_leadership(&mut self) -> bool {
        std::mem::take(&mut self.lost_leadership)
    }

    /// Replicas that are behind the kept log.
    pub fn take_wanted(&mut self) -> Vec<ReplicaId> {
        let wanted = std::mem::take(&mut *self.raw.store().wanted.borrow_mut());
        if !self.is_leader() {
            return Vec::new();
        }
        wanted.into_iter().map(ReplicaId).collect()
    }

    fn publish_lease(&mut self) {
        let holds = self.is_leader() && self.view.applied.borrow().index >= self.term_start;
        let until = if holds { self.lease.until_ns(self.raw.raft.term) } else { 0 };
        self.view.lease_until_ns.store(until, Ordering::Release);
    }

    /// Shows the replica's state to other threads.
    pub fn publish(&mut self) {
        self.view.entry_in_flight.store(!self.in_flight.is_empty(), Ordering::Release);
        self.view.read_in_flight.store(!self.reads_asked.is_empty(), Ordering::Release);
        let raft = &self.raw.raft;
        let now = Status {
            role: self.role(),
            term: raft.term,
            leader: self.leader_node(),
            first_index: self.raw.store().first(),
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            term_start: self.term_start,
            flushed_index: self.flushed,
            closed_reason: None,
            voters: self.voters.clone(),
        };
        if now != self.published {
            self.published = now.clone();
            *self.view.status.write() = now;
        }
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

// Tags of internal.Entry and internal.MetaEntry (proto/ringfold/internal/v1); a test holds them
// equal to what the generated types write.
const STAMP_TAG: u8 = 1 << 3;
const MAX_STATE_TAG: u8 = 2 << 3;
const SNAPSHOT_EVERY_TAG: u8 = 3 << 3;
const COMMANDS_TAG: u8 = 15 << 3 | 2;
const META_COMMANDS_TAG: u8 = 1 << 3 | 2;

/// The leader's failpoints of a membership change: it is proposed, and it is in effect here.
fn points_of(change: &ConfChangeV2) -> (&'static str, &'static str) {
    let has = |kind| change.changes.iter().any(|c| c.get_change_type() == kind);
    if has(ConfChangeType::AddNode) {
        ("swap-proposed", "swap-done")
    } else if has(ConfChangeType::RemoveNode) {
        ("removal-proposed", "removal-done")
    } else if has(ConfChangeType::AddLearnerNode) {
        ("learner-proposed", "learner-done")
    } else {
        ("leave-proposed", "leave-done")
    }
}

fn single(kind: ConfChangeType, replica: ReplicaId) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: replica.0, ..Default::default() };
    single.set_change_type(kind);
    single
}

fn voters_of(membership: &Membership) -> Arc<[NodeId]> {
    let node = |v: &u64| membership.nodes.get(&ReplicaId(*v)).copied();
    membership.voters.iter().filter_map(node).collect()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn decode_change(e: &Entry) -> Result<ConfChangeV2, String> {
    if e.get_entry_type() != EntryType::EntryConfChangeV2 {
        return Err("a membership change of a kind that is never proposed".into());
    }
    ConfChangeV2::decode(&e.data[..]).map_err(|e| format!("a membership change: {e}"))
}

/// Pairs of replica id and node id in a membership change's context.
fn nodes_in(context: &[u8]) -> Vec<(ReplicaId, NodeId)> {
    context
        .chunks_exact(16)
        .filter_map(|c| {
            let (a, b) = c.split_at(8);
            Some((
                ReplicaId(u64::from_le_bytes(a.try_into().ok()?)),
                NodeId(u64::from_le_bytes(b.try_into().ok()?)),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use ringfold_proto::internal;

    #[test]
    fn packed_tags_are_those_of_the_generated_types() {
        let command = internal::Command {
            command: Some(internal::command::Command::Close(internal::Close { position: 5 })),
        };
        let e = internal::Entry {
            stamp: 300,
            max_state_bytes: 7,
            snapshot_every: 9,
            commands: vec![command.clone(), command.clone()],
        };
        let mut ours = Vec::new();
        for (tag, value) in [(STAMP_TAG, 300), (MAX_STATE_TAG, 7), (SNAPSHOT_EVERY_TAG, 9)] {
            ours.push(tag);
            put_varint(&mut ours, value);
        }
        for _ in 0..2 {
            let c = command.encode_to_vec();
            ours.push(COMMANDS_TAG);
            put_varint(&mut ours, c.len() as u64);
            ours.extend_from_slice(&c);
        }
        assert_eq!(ours, e.encode_to_vec());
        let meta = internal::MetaEntry {
            commands: vec![internal::MetaCommand { if_epoch: 4, command: None }],
        };
        let c = meta.commands[0].encode_to_vec();
        let mut ours = vec![META_COMMANDS_TAG];
        put_varint(&mut ours, c.len() as u64);
        ours.extend_from_slice(&c);
        assert_eq!(ours, meta.encode_to_vec());
    }
}
