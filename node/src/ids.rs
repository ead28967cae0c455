//! Identifiers: numbers of different things must not be mixed up.
use std::fmt;

/// A node: never returns once removed. Handed out by the meta group, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub u64);

/// A replica of one group: handed out by the meta group once and never again, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ReplicaId(pub u64);

/// A Raft group: 0 is the meta group, `p + 1` is partition `p`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GroupId(pub u32);

impl GroupId {
    pub const META: GroupId = GroupId(0);

    pub fn of_partition(partition: u32) -> GroupId {
        GroupId(partition + 1)
    }

    /// The partition that this group replicates; `None` for the meta group.
    pub fn partition(self) -> Option<u32> {
        self.0.checked_sub(1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "replica {}", self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition() {
            None => write!(f, "the meta group"),
            Some(p) => write!(f, "partition {p}"),
        }
    }
}
