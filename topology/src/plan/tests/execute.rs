//! What a step does in the simulated cluster, and when it is refused.

use super::super::{Role, Step, StepKind};
use super::sim::{Change, Data, Sim};

impl Sim {
    /// Does the step, or refuses it because the facts have moved on.
    pub(super) fn execute(&mut self, step: &Step, version: u64) {
        let p = step.partition as usize;
        match step.kind {
            StepKind::CreateReplica { node_id } => {
                let taken = |id: &u64| self.node_of[id] == node_id;
                if self.groups[p].records.keys().any(taken) || self.groups[p].version != version {
                    return;
                }
                let id = self.new_id(node_id);
                self.groups[p].records.insert(id, false);
                self.creates += 1;
            }
            StepKind::AddLearner { replica_id } => {
                let Some(joined) = self.groups[p].records.get_mut(&replica_id) else { return };
                *joined = true;
                if self.rng.percent(self.faults) {
                    let wait = self.rng.below(6);
                    self.late_learners.push((wait, version, step.partition, replica_id));
                } else {
                    self.propose(p, version, Change::AddLearner(replica_id));
                }
            }
            StepKind::Swap { promote, remove } => {
                self.propose(p, version, Change::Swap(promote, remove));
            }
            StepKind::LeaveJoint => self.propose(p, version, Change::LeaveJoint),
            StepKind::RemoveLearner { replica_id } => {
                self.propose(p, version, Change::RemoveLearner(replica_id));
            }
            StepKind::TransferLeader { to_replica } => {
                let healthy = self.is_healthy(p, to_replica);
                let g = &mut self.groups[p];
                let may = g.membership.get(&to_replica).is_some_and(|r| *r != Role::Learner);
                if may && healthy && g.leader.is_some() && g.pending.is_none() {
                    g.leader = Some(to_replica);
                }
            }
            StepKind::Forget { replica_id } => {
                let quorum = self.has_majority(p, |id| self.is_healthy(p, id));
                let g = &mut self.groups[p];
                let joint = g.membership.values().any(|r| *r == Role::Leaving);
                let inside = g.membership.contains_key(&replica_id);
                // The read index.
                if quorum && g.leader.is_some() && g.pending.is_none() && !joint && !inside {
                    g.records.remove(&replica_id);
                    g.data.remove(&replica_id);
                }
            }
        }
    }

    /// The leader takes a change, if it is one of the membership that it was planned on.
    pub(super) fn propose(&mut self, p: usize, version: u64, change: Change) {
        let joint = self.fact(p).is_joint;
        let g = &self.groups[p];
        let is_learner = |id| g.membership.get(&id) == Some(&Role::Learner);
        let fits = match change {
            Change::AddLearner(id) => !joint && !g.membership.contains_key(&id),
            Change::RemoveLearner(id) => !joint && is_learner(id),
            Change::LeaveJoint => {
                joint && {
                    let leader = g.leader.and_then(|l| g.membership.get(&l));
                    leader != Some(&Role::Leaving)
                }
            }
            Change::Swap(promote, remove) => {
                let ready = |id| g.data.get(&id) == Some(&Data::Complete);
                let healthy_after = self.healthy_after(p, promote, remove);
                !joint
                    && promote.is_none_or(|id| is_learner(id) && ready(id) && self.is_up(id))
                    && remove.is_none_or(|id| g.leader != Some(id))
                    && healthy_after
            }
        };
        if fits && g.version == version && g.pending.is_none() && g.leader.is_some() {
            self.groups[p].pending = Some(change);
        }
    }

    /// What the leader knows when a late step arrives: it takes no change to a membership that
    /// could not commit.
    fn healthy_after(&self, p: usize, promote: Option<u64>, remove: Option<u64>) -> bool {
        let voters: Vec<u64> = self.groups[p]
            .membership
            .iter()
            .filter(|(id, role)| **role == Role::Voter && Some(**id) != remove)
            .map(|(id, _)| *id)
            .chain(promote)
            .collect();
        voters.iter().filter(|id| self.is_healthy(p, **id)).count() > voters.len() / 2
    }
}
