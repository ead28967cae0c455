//! What the rest of the node sees of replication: propose, read index, and each replica's view.
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::partition::Reader;
use crate::partition::apply::CommandOutcome;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tokio::sync::{oneshot, watch};

/// Why a proposal has no outcome. Only `NotLeader` and `Busy` say that nothing was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was proposed: send it to the leader, if one is known.
    #[error("this replica does not lead")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was proposed: too many bytes wait for this partition or this node.
    #[error("too many appends wait: send it again later")]
    Busy,
    /// Nothing was proposed: the stamp asked for lies over 500 ms ahead of this node's clock.
    #[error("after_position lies {ahead_ms} ms ahead of this node's clock, 500 ms at most")]
    ClockBehind { ahead_ms: u64 },
    /// It may or may not be stored: send it again with the same event ids.
    #[error("the outcome is unknown: leadership changed or the replica went away")]
    Unknown,
    /// The replica was closed after a fault.
    #[error("the replica is closed: {0}")]
    Closed(Arc<str>),
    /// No replica of this group is on this node.
    #[error("no replica of this group is on this node")]
    NoReplica,
}

/// Why a read index was not confirmed. Nothing was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this replica does not lead")]
    NotLeader { leader: Option<NodeId> },
    #[error("too many reads wait: send it again later")]
    Busy,
    #[error("the replica is closed: {0}")]
    Closed(Arc<str>),
    #[error("no replica of this group is on this node")]
    NoReplica,
}

/// Outcomes of a proposal's commands, in their order. For the meta group: meta outcomes.
pub type ProposeResult = Result<Vec<CommandOutcome>, ProposeError>;

/// A replica's role as the driver last saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    #[default]
    Follower,
    Candidate,
    Leader,
    Learner,
    Closed,
}

/// One local replica as other threads see it. Written by the driver and the apply threads only.
pub struct ReplicaView {
    pub group: GroupId,
    pub replica: ReplicaId,
    /// Reads of the replica's database.
    pub reader: Reader,
    /// Progress of apply; readers wait on it.
    pub applied: watch::Sender<Applied>,
    /// This replica leads and has an entry under way, whose commit wakes the driver: what is proposed
    /// meanwhile joins the next entry and need not.
    pub entry_in_flight: AtomicBool,
    /// The same of a read-index round and the reads that are asked for meanwhile.
    pub read_in_flight: AtomicBool,
    /// Bytes written to the database since its last flush, about.
    pub unflushed_bytes: AtomicU64,
    /// CLOCK_BOOTTIME in ns until which this replica may answer LEASE reads; 0: none. Only set
    /// once everything acknowledged in earlier terms is applied here.
    pub lease_until_ns: AtomicU64,
    pub status: RwLock<Status>,
    /// The database is `<data>/partitions/<replica>.<directory>`. Of a checkpoint from when it was
    /// taken, before its record is synced.
    pub directory: AtomicU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    pub index: u64,
    /// Position of the last applied event.
    pub position: u64,
}

/// Slow-changing facts of a replica, for status, routing and health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub role: Role,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub first_index: u64,
    pub last_index: u64,
    pub commit_index: u64,
    /// Of a leader: once this index is applied, all that was acknowledged in earlier terms is.
    pub term_start: u64,
    pub flushed_index: u64,
    pub closed_reason: Option<Arc<str>>,
    /// Nodes of the group's voters, as this replica has applied.
    pub voters: Arc<[NodeId]>,
}

impl ReplicaView {
    pub fn new(
        group: GroupId,
        replica: ReplicaId,
        reader: Reader,
        applied: Applied,
    ) -> ReplicaView {
        ReplicaView {
            group,
            replica,
            reader,
            applied: watch::Sender::new(applied),
            entry_in_flight: AtomicBool::new(false),
            read_in_flight: AtomicBool::new(false),
            unflushed_bytes: AtomicU64::new(0),
            lease_until_ns: AtomicU64::new(0),
            status: RwLock::default(),
            directory: AtomicU32::new(1),
        }
    }

    /// Marks the replica as closed after a fault: it answers nothing any more.
    pub fn close(&self, reason: &str) {
        self.lease_until_ns.store(0, Ordering::Release);
        self.entry_in_flight.store(false, Ordering::Release);
        self.read_in_flight.store(false, Ordering::Release);
        let mut status = self.status.write();
        status.role = Role::Closed;
        status.closed_reason = Some(reason.into());
    }

    /// Whether it leads and has applied all that was acknowledged in earlier terms.
    pub fn is_settled(&self) -> bool {
        let status = self.status.read();
        status.role == Role::Leader && self.applied.borrow().index >= status.term_start
    }

    /// Whether a LEASE read may be answered now without a round.
    pub fn lease_is_valid(&self) -> bool {
        crate::clock::boottime_ns() < self.lease_until_ns.load(Ordering::Acquire)
    }
}

/// Input to the driver from other threads. Bounded in bytes by `RaftHandle`.
pub enum Request {
    Propose {
        group: GroupId,
        /// Encoded `ringfold.internal.v1.Command`s (for the meta group `MetaCommand`s), kept
        /// together, in order, in one entry.
        commands: Vec<Bytes>,
        /// Positions must lie above this one; 0: any.
        after_position: u64,
        reply: oneshot::Sender<ProposeResult>,
    },
    /// Answered once everything acknowledged before is applied here.
    ReadIndex { group: GroupId, reply: oneshot::Sender<Result<(), ReadError>> },
    /// Hand the leadership of all groups to others.
    TransferAll { reply: oneshot::Sender<TransferOutcome> },
    /// Hand the leadership of one group to a voter. Answered once it is given up, or why it is not.
    Transfer { group: GroupId, to: ReplicaId, reply: oneshot::Sender<Result<(), String>> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferOutcome {
    pub transferred: u32,
    pub remaining: u32,
}

/// Gives a request to the driver, or back when too many wait. The replica that it is for, where the
/// driver need not be woken for its sake.
pub type SendRequest =
    Arc<dyn Fn(Request, Option<&ReplicaView>) -> Result<(), Request> + Send + Sync>;

/// The replicas of this node, by group.
pub type Replicas = RwLock<HashMap<GroupId, Arc<ReplicaView>>>;

/// The rest of the node's access to the driver. Cheap to clone.
#[derive(Clone)]
pub struct RaftHandle {
    pub replicas: Arc<Replicas>,
    pub(crate) sender: SendRequest,
}

impl RaftHandle {
    /// Of a node whose log is lost: it only shows its closed replicas.
    pub fn stopped(replicas: Arc<Replicas>) -> RaftHandle {
        RaftHandle { replicas, sender: Arc::new(|request, _| Err(request)) }
    }

    /// Whether this node's replica of the group leads it, as far as it knows.
    pub fn leads(&self, group: GroupId) -> bool {
        self.replica(group).is_some_and(|v| v.status.read().role == Role::Leader)
    }

    /// Proposes commands as one unit. The receiver fails only when the node goes down: then the
    /// outcome is unknown.
    pub fn propose(
        &self,
        group: GroupId,
        commands: Vec<Bytes>,
        after_position: u64,
    ) -> oneshot::Receiver<ProposeResult> {
        let (reply, receiver) = oneshot::channel();
        let request = Request::Propose { group, commands, after_position, reply };
        let view = self.replica(group);
        if let Err(Request::Propose { reply, .. }) = (self.sender)(request, view.as_deref()) {
            let _ = reply.send(Err(ProposeError::Busy));
        }
        receiver
    }

    /// Confirms that this replica leads and has applied all that was acknowledged before now.
    pub fn read_index(&self, group: GroupId) -> oneshot::Receiver<Result<(), ReadError>> {
        let (reply, receiver) = oneshot::channel();
        let view = self.replica(group);
        let request = Request::ReadIndex { group, reply };
        if let Err(Request::ReadIndex { reply, .. }) = (self.sender)(request, view.as_deref()) {
            let _ = reply.send(Err(ReadError::Busy));
        }
        receiver
    }

    /// Hands the leadership of one group to a voter; answers within about an election timeout.
    ///
    /// # Errors
    /// Why it is not handed over, for a person to read.
    pub async fn transfer(&self, group: GroupId, to: ReplicaId) -> Result<(), String> {
        let (reply, done) = oneshot::channel();
        let sent = (self.sender)(Request::Transfer { group, to, reply }, None);
        sent.map_err(|_| "too much waits for the driver: try again later".to_owned())?;
        done.await.unwrap_or_else(|_| Err("the replica went away".into()))
    }

    /// Starts handing over all leaderships; answers when none is left or none can move.
    pub fn transfer_all(&self) -> oneshot::Receiver<TransferOutcome> {
        let (reply, receiver) = oneshot::channel();
        let _ = (self.sender)(Request::TransferAll { reply }, None);
        receiver
    }

    pub fn replica(&self, group: GroupId) -> Option<Arc<ReplicaView>> {
        self.replicas.read().get(&group).cloned()
    }
}
