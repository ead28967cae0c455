//! What must hold while replicas move.
use super::super::node::Node;
use super::{Broken, Held, Invariants, Kind, broken};
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::partition::apply::MetaOutcome;
use ringfold_node::raft::log::ReplicaRecord;
use ringfold_node::raft::membership::Membership;
use std::collections::BTreeSet;

impl Invariants {
    /// A command of the records was applied.
    pub fn recorded(&self, outcome: Result<MetaOutcome, String>) -> Result<MetaOutcome, Broken> {
        outcome.map_err(|detail| Broken { kind: Kind::Closed, detail })
    }

    fn last(&self, group: GroupId) -> Option<&Membership> {
        self.memberships.range((group, 0)..=(group, u64::MAX)).next_back().map(|(_, m)| m)
    }

    pub fn is_member(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.last(group).is_some_and(|m| m.contains(replica))
    }

    /// A replica is about to be made.
    pub fn founded_once(&self, replica: ReplicaId, nodes: &[Node]) -> Held {
        match nodes.iter().find(|n| n.log.durable.contains_key(&replica)) {
            Some(n) => broken(
                Kind::ReplicaIdUsedTwice,
                format!("{replica} is made again, {} has had it", n.id),
            ),
            None => Ok(()),
        }
    }

    /// A step's change is in effect, as entry `index`.
    pub fn changed(&self, group: GroupId, planned_on: u64, index: u64) -> Held {
        let before = self.memberships.range((group, 0)..(group, index)).next_back();
        match before {
            Some(((_, before), m)) if *before != planned_on => broken(
                Kind::StaleStep,
                format!(
                    "the change of entry {index} of {group} was planned on entry {planned_on}, \
                     made on {before}: {m:?}"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// The group's leader confirms that the replica is not in it. `was_member`: when it was asked.
    pub fn confirms(&mut self, group: GroupId, replica: ReplicaId, was_member: bool) -> Held {
        if was_member && self.is_member(group, replica) {
            return broken(
                Kind::MemberForgotten,
                format!("{group} is confirmed to be without {replica}: {:?}", self.last(group)),
            );
        }
        self.confirmed.insert(replica);
        Ok(())
    }

    /// The records give the replica up. A learner may have come in behind the confirmation: it has
    /// nothing and gets nothing, and is taken out again.
    pub fn forgets(&self, group: GroupId, replica: ReplicaId) -> Held {
        let votes = self.last(group).is_some_and(|m| m.is_voter(replica));
        if votes || self.is_member(group, replica) && !self.confirmed.contains(&replica) {
            return broken(
                Kind::MemberForgotten,
                format!("{replica} of {group} is forgotten: {:?}", self.last(group)),
            );
        }
        Ok(())
    }

    /// A node deletes the replica's data.
    pub fn destroys(&self, group: GroupId, replica: ReplicaId) -> Held {
        match self.last(group) {
            Some(m) if m.is_voter(replica) => {
                broken(Kind::MemberDestroyed, format!("{replica} of {group}: {m:?}"))
            }
            _ => Ok(()),
        }
    }

    /// A step of the planner never leaves a group to replicas whose disks are gone.
    pub(super) fn has_quorum(&self, record: &ReplicaRecord) -> Held {
        let m = &record.membership;
        for half in [&m.voters, &m.voters_outgoing] {
            let lost = half.iter().filter(|v| self.lost.contains(&ReplicaId(**v))).count();
            if !half.is_empty() && 2 * (half.len() - lost) <= half.len() {
                return broken(
                    Kind::QuorumLost,
                    format!("{lost} of {half:?} of {} are lost", record.group),
                );
            }
        }
        Ok(())
    }

    /// Whether no group would lose a second member before the first one is replaced. Learners count:
    /// they may be made voters before anybody hears that they are lost.
    pub fn may_lose(&self, replicas: &[ReplicaId]) -> bool {
        let mut groups: Vec<GroupId> = self.memberships.keys().map(|(g, _)| *g).collect();
        groups.dedup();
        groups.into_iter().all(|group| {
            // An older one may still be in effect somewhere.
            let last = self.memberships.range((group, 0)..=(group, u64::MAX)).rev().take(3);
            let members: BTreeSet<u64> = last
                .flat_map(|(_, m)| [&m.voters, &m.voters_outgoing, &m.learners])
                .flatten()
                .copied()
                .collect();
            let gone = members.iter().map(|m| ReplicaId(*m));
            gone.filter(|r| self.lost.contains(r) || replicas.contains(r)).count() <= 1
        })
    }

    /// A replica takes a checkpoint.
    pub fn installs(&self, record: &ReplicaRecord) -> Held {
        if record.membership.contains(record.replica) {
            return Ok(());
        }
        let Membership { voters, learners, .. } = &record.membership;
        broken(
            Kind::CheckpointLacksReceiver,
            format!("{} of {} gets {voters:?}, {learners:?}", record.replica, record.group),
        )
    }
}
