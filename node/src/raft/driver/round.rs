//! What goes into a round, and what comes out of it.
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::apply::{ApplyNotice, ApplyTask, StateMachine};
use crate::raft::handle::{ReplicaView, Request};
use crate::raft::log::{LogOp, ReplicaRecord, Vote};
use crate::raft::membership::Membership;
use crate::raft::message::{Channel, PeerMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::oneshot;

/// The time of a round, read once before its inputs are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// CLOCK_BOOTTIME.
    pub boot_ns: u64,
    /// Unix time.
    pub wall_ms: u64,
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
