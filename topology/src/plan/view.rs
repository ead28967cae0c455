//! One partition as the planner sees it.

use std::collections::BTreeMap;

use super::{Health, MemberState, PartitionFact, PlanMember, Reach, Reason, ReplicaFact, Role};

pub(super) struct Nodes<'a>(BTreeMap<u64, &'a PlanMember>);

impl<'a> Nodes<'a> {
    pub(super) fn new(members: &'a [PlanMember]) -> Nodes<'a> {
        Nodes(members.iter().map(|m| (m.node_id, m)).collect())
    }

    pub(super) fn get(&self, node_id: u64) -> Option<&'a PlanMember> {
        self.0.get(&node_id).copied()
    }

    pub(super) fn is_up(&self, node_id: u64) -> bool {
        self.get(node_id).is_some_and(|m| m.reach == Reach::Up)
    }

    /// A node that is no member any more is lost too.
    pub(super) fn is_lost(&self, node_id: u64) -> bool {
        self.get(node_id).is_none_or(|m| m.reach == Reach::Down { lost: true })
    }

    pub(super) fn is_draining(&self, node_id: u64) -> bool {
        self.get(node_id).is_some_and(|m| m.state == MemberState::Draining)
    }

    /// A node whose disk is not known has room, and so has any for what is empty.
    pub(super) fn has_room(&self, node_id: u64, bytes: u64) -> bool {
        let free = self.get(node_id).and_then(|m| m.free_bytes);
        bytes == 0 || free.is_none_or(|free| free >= bytes)
    }

    pub(super) fn may_lead(&self, node_id: u64) -> bool {
        self.get(node_id).is_some_and(|m| m.may_lead)
    }
}

pub(super) struct View<'a> {
    pub partition: u32,
    pub fact: &'a PartitionFact,
    /// By replica id, so that the order in which they were observed does not matter.
    replicas: Vec<&'a ReplicaFact>,
    /// The target's nodes; empty where there is no whole target.
    pub wanted: &'a [u64],
    pub replication_factor: usize,
    pub nodes: &'a Nodes<'a>,
}

/// How urgent a partition is, the most urgent first: reason, healthy voters over the quorum,
/// partition.
pub(super) type Urgency = (Reason, isize, u32);

impl<'a> View<'a> {
    pub(super) fn new(
        partition: u32,
        fact: &'a PartitionFact,
        wanted: &'a [u64],
        replication_factor: u32,
        nodes: &'a Nodes<'a>,
    ) -> View<'a> {
        let replication_factor = replication_factor as usize;
        let wanted = if wanted.len() == replication_factor { wanted } else { &[] };
        let mut replicas: Vec<_> = fact.replicas.iter().collect();
        replicas.sort_by_key(|r| r.replica_id);
        View { partition, fact, replicas, wanted, replication_factor, nodes }
    }

    pub(super) fn replicas(&self) -> impl Iterator<Item = &'a ReplicaFact> {
        self.replicas.iter().copied()
    }

    pub(super) fn with_role(&self, role: Role) -> impl Iterator<Item = &'a ReplicaFact> {
        self.replicas().filter(move |r| r.role == role)
    }

    /// Those of the new membership, where it is a joint one.
    pub(super) fn voters(&self) -> impl Iterator<Item = &'a ReplicaFact> {
        self.replicas().filter(|r| matches!(r.role, Role::Voter | Role::Entering))
    }

    fn voters_before(&self) -> impl Iterator<Item = &'a ReplicaFact> {
        self.replicas().filter(|r| matches!(r.role, Role::Voter | Role::Leaving))
    }

    pub(super) fn is_wanted(&self, node_id: u64) -> bool {
        self.wanted.contains(&node_id)
    }

    pub(super) fn is_healthy(&self, r: &ReplicaFact) -> bool {
        self.nodes.is_up(r.node_id) && matches!(r.health, Health::Ready | Health::Behind { .. })
    }

    pub(super) fn is_ready(&self, r: &ReplicaFact) -> bool {
        self.nodes.is_up(r.node_id) && r.health == Health::Ready
    }

    /// It does not come back.
    pub(super) fn is_dead(&self, r: &ReplicaFact) -> bool {
        self.nodes.is_lost(r.node_id) || r.health == Health::Closed
    }

    /// Healthy voters over the quorum, in the worse of the two memberships where it is a joint one.
    /// Negative: no quorum.
    pub(super) fn slack(&self) -> isize {
        self.slack_of(self.voters()).min(self.slack_of(self.voters_before()))
    }

    pub(super) fn slack_of<'b>(&self, voters: impl Iterator<Item = &'b ReplicaFact>) -> isize {
        let (mut all, mut healthy) = (0, 0);
        for r in voters {
            all += 1;
            healthy += isize::from(self.is_healthy(r));
        }
        healthy - (all / 2 + 1)
    }

    /// The leader, if it still answers.
    pub(super) fn leader(&self) -> Option<&'a ReplicaFact> {
        let id = self.fact.leader?;
        self.replicas().find(|r| r.replica_id == id && self.nodes.is_up(r.node_id))
    }

    /// Dead voters and those whose node the target does not name.
    pub(super) fn departing(&self) -> impl Iterator<Item = &'a ReplicaFact> {
        self.voters().filter(|r| !self.is_wanted(r.node_id) || self.is_dead(r))
    }

    /// The target's nodes without a voter, in its order.
    pub(super) fn missing(&self) -> impl Iterator<Item = u64> {
        self.wanted.iter().copied().filter(|&n| self.voters().all(|r| r.node_id != n))
    }

    /// Why it is not as intended.
    pub(super) fn reason(&self) -> Reason {
        if self.fact.is_joint {
            Reason::Unfinished
        } else if self.wanted.is_empty() {
            Reason::Leaders
        } else if self.voters().any(|r| self.is_dead(r))
            || self.voters().count() < self.replication_factor
        {
            Reason::Repair
        } else if self.departing().any(|r| self.nodes.is_draining(r.node_id)) {
            Reason::Drain
        } else if self.departing().next().is_some() {
            Reason::Balance
        } else {
            Reason::Leaders
        }
    }

    pub(super) fn urgency(&self) -> Urgency {
        (self.reason(), self.slack(), self.partition)
    }

    /// A checkpoint of the partition goes, or is about to go, to this replica.
    pub(super) fn is_incoming(&self, r: &ReplicaFact) -> bool {
        let underway = match r.role {
            Role::Recorded => true,
            Role::Learner => !matches!(r.health, Health::Ready | Health::Closed),
            Role::Voter | Role::Entering | Role::Leaving | Role::Left => false,
        };
        underway && r.is_recorded && self.nodes.is_up(r.node_id)
    }

    pub(super) fn source(&self) -> Option<&'a ReplicaFact> {
        let ready: Vec<_> = self.voters().filter(|r| self.is_ready(r)).collect();
        let leader = self.fact.leader;
        let followers: Vec<_> =
            ready.iter().copied().filter(|r| Some(r.replica_id) != leader).collect();
        let from = if followers.is_empty() { ready } else { followers };
        from.get(self.partition as usize % from.len().max(1)).copied()
    }
}

/// The replica from which a checkpoint of the partition is streamed: a voter that has everything,
/// a follower where there is one. The limits of a node count by it. `None`: there is none now.
pub fn transfer_source(
    members: &[PlanMember],
    partition: u32,
    fact: &PartitionFact,
) -> Option<u64> {
    View::new(partition, fact, &[], 0, &Nodes::new(members)).source().map(|r| r.replica_id)
}
