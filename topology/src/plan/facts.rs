//! What is planned from: members, intent, and each group's committed membership.

/// What [`super::plan`], [`super::retarget`] and [`super::can_drain`] decide from.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// Each node once, in any order. Removed ones are left out.
    pub members: &'a [PlanMember],
    pub replication_factor: u32,
    /// As in [`crate::PlacementInput::load_factor`].
    pub load_factor: f64,
    /// The intent. By partition: node ids, the preferred leader first. Empty before the first
    /// placement.
    pub target: &'a [Vec<u64>],
    /// The fact, by partition.
    pub partitions: &'a [PartitionFact],
    pub limits: Limits,
    /// Holds back all but repairs and what is half done.
    pub is_paused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanMember {
    pub node_id: u64,
    /// Failure domain; the empty one is a zone like any other.
    pub zone: String,
    /// As in [`crate::Member::weight`].
    pub weight: u32,
    pub state: MemberState,
    pub reach: Reach,
    /// What may still be written, the node's reserve taken off. `None`: not known, taken as enough.
    pub free_bytes: Option<u64>,
    /// False while the node hands its leaderships over by itself (its clock is ahead, its disk is
    /// nearly full): none is moved to it.
    pub may_lead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    Active,
    /// Gives all its replicas up.
    Draining,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Up,
    Down {
        /// Down for longer than the repair setting, or its disk is reported lost: its replicas
        /// are made anew elsewhere.
        lost: bool,
    },
}

/// What is known of one partition's group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionFact {
    /// Those that the meta group has a record of, and those that are in the membership.
    pub replicas: Vec<ReplicaFact>,
    /// Replica id.
    pub leader: Option<u64>,
    /// The membership is a joint one.
    pub is_joint: bool,
    /// A membership change or a leader transfer was proposed and is not applied yet.
    pub change_pending: bool,
    /// A leader has reported recently. Otherwise its membership is not known, and nothing is done.
    pub is_known: bool,
    /// What a checkpoint of it is about to hold.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaFact {
    pub replica_id: u64,
    pub node_id: u64,
    pub role: Role,
    pub health: Health,
    /// The meta group has a record of it. False only for a learner whose addition came late, after
    /// its record had been given up: it is taken out again.
    pub is_recorded: bool,
}

/// Where a replica stands in its group's committed membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The meta group has handed out its id; it was never proposed as a learner.
    Recorded,
    Learner,
    /// Of the membership; of both if that is a joint one.
    Voter,
    /// Only of the new membership of a joint one.
    Entering,
    /// Only of the old membership of a joint one.
    Leaving,
    /// It was proposed as a learner once, and the membership is without it. Its data are given up
    /// once the leader has confirmed that by a read index.
    Left,
}

impl Role {
    /// `joined`: the record's mark, set before the learner is proposed. `new` and `old`: a voter
    /// of that membership; both the same unless it is a joint one.
    pub fn of(joined: bool, new: bool, old: bool, learner: bool) -> Role {
        match (new, old, learner, joined) {
            (true, true, ..) => Role::Voter,
            (true, false, ..) => Role::Entering,
            (false, true, ..) => Role::Leaving,
            (false, false, true, _) => Role::Learner,
            (false, false, false, true) => Role::Left,
            (false, false, false, false) => Role::Recorded,
        }
    }
}

/// What the leader and the replica's node say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Has everything, as the leader always has, but for what a replica under load always lacks:
    /// the observer sets how much.
    Ready,
    Behind {
        /// Log index up to which it has everything; 0 before its checkpoint.
        matched: u64,
        /// Entries.
        missing: u64,
    },
    /// Its data or its log are lost or damaged: it never votes again.
    Closed,
    Unknown,
}

/// How much goes on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Checkpoint transfers of one node, incoming and outgoing together.
    pub moves_per_node: u32,
    /// Transfers that drain or balance, in the whole cluster.
    pub moves_total: u32,
    /// Transfers that repair, in the whole cluster.
    pub repairs_total: u32,
    /// Leaderships handed over in one plan for the sake of an even load.
    pub leader_transfers: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { moves_per_node: 2, moves_total: 8, repairs_total: 8, leader_transfers: 8 }
    }
}
