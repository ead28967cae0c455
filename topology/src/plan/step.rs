//! What a plan consists of.

use std::fmt;

use super::Remaining;

/// What to do next, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The most urgent first; at most one for each partition.
    pub steps: Vec<Step>,
    /// Why something does not go on, by partition.
    pub waiting: Vec<Waiting>,
    /// Nothing to do, nothing to wait for: the fact is the intent.
    pub at_rest: bool,
    /// What moves where until rest, the most urgent first.
    pub remaining: Vec<Remaining>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub partition: u32,
    pub explanation: String,
}

/// One step. It holds for the membership that was observed, and for no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub partition: u32,
    pub kind: StepKind,
    pub reason: Reason,
    pub explanation: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// The meta group records a replica on the node, with a replica id never used before.
    CreateReplica {
        node_id: u64,
    },
    /// The record is marked as joined, then the learner is proposed.
    AddLearner {
        replica_id: u64,
    },
    /// One change: a learner becomes a voter, a voter becomes a learner, which a change of its own
    /// takes out then. Joint where it is both.
    Swap {
        promote: Option<u64>,
        remove: Option<u64>,
    },
    LeaveJoint,
    TransferLeader {
        to_replica: u64,
    },
    RemoveLearner {
        replica_id: u64,
    },
    /// The leader confirms by a read index that its membership is final, has no change pending and
    /// is without the replica; then the record goes, then the node deletes the data.
    Forget {
        replica_id: u64,
    },
}

/// Why, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Something is half done, or left over.
    Unfinished,
    /// A replica is lost.
    Repair,
    /// A node is being emptied.
    Drain,
    /// Members came or changed.
    Balance,
    /// Leaders are to be spread evenly.
    Leaders,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Unfinished => "unfinished",
            Reason::Repair => "repair",
            Reason::Drain => "drain",
            Reason::Balance => "balance",
            Reason::Leaders => "leaders",
        })
    }
}
