//! A group's membership, and what a change makes of it, as data.
//!
//! The driver must sync an applied membership before it takes effect, so it computes it here first
//! and compares with what raft makes of it. Follows raft's joint consensus (Ongaro 2014, 4.3) as
//! the `raft` crate implements it.
use crate::ids::{NodeId, ReplicaId};
use raft::eraftpb::{ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use ringfold_proto::internal;
use std::collections::BTreeMap;

/// Committed entries that a learner may lack when it becomes a voter, and a replica that still counts
/// as having everything: under steady writes it always lacks those on their way.
pub const CATCH_UP_LAG_MAX: u64 = 64;

/// Committed members of a group, and the node that each replica lives on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Membership {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    /// Not empty: a joint configuration, which must be left.
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
    pub nodes: BTreeMap<ReplicaId, NodeId>,
}

/// Replicas that are not in the group any more whose nodes stay known.
pub const GONE_KEPT: usize = 32;

/// A change that is not allowed where the group stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("the group is in a joint configuration, which must be left first")]
    InJoint,
    #[error("the group is in no joint configuration")]
    NotInJoint,
    #[error("the change would leave no voter")]
    NoVoter,
}

impl Membership {
    /// The membership that all replicas of a group start from.
    pub fn genesis(voters: &[(ReplicaId, NodeId)]) -> Membership {
        let mut ids: Vec<u64> = voters.iter().map(|(r, _)| r.0).collect();
        ids.sort_unstable();
        Membership { voters: ids, nodes: voters.iter().copied().collect(), ..Default::default() }
    }

    pub fn contains(&self, replica: ReplicaId) -> bool {
        [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next]
            .iter()
            .any(|ids| ids.contains(&replica.0))
    }

    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica.0) || self.voters_outgoing.contains(&replica.0)
    }

    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    pub fn conf_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
        }
    }

    /// The membership after `change`; `node` is where an added replica lives.
    pub fn after(
        &self,
        change: &ConfChangeV2,
        nodes: &[(ReplicaId, NodeId)],
    ) -> Result<Membership, ChangeError> {
        let mut next = self.clone();
        if change.changes.is_empty() {
            if !self.is_joint() {
                return Err(ChangeError::NotInJoint);
            }
            next.voters_outgoing.clear();
            next.learners.append(&mut next.learners_next);
            next.auto_leave = false;
        } else {
            if self.is_joint() {
                return Err(ChangeError::InJoint);
            }
            let joint =
                change.changes.len() > 1 || change.transition != ConfChangeTransition::Auto as i32;
            if joint {
                next.voters_outgoing.clone_from(&self.voters);
                next.auto_leave = change.transition != ConfChangeTransition::Explicit as i32;
            }
            for c in &change.changes {
                let id = c.node_id;
                match c.get_change_type() {
                    ConfChangeType::AddNode => {
                        next.forget_learner(id);
                        if !next.voters.contains(&id) {
                            next.voters.push(id);
                        }
                    }
                    ConfChangeType::AddLearnerNode => {
                        next.voters.retain(|v| *v != id);
                        next.forget_learner(id);
                        if next.voters_outgoing.contains(&id) {
                            next.learners_next.push(id);
                        } else {
                            next.learners.push(id);
                        }
                    }
                    ConfChangeType::RemoveNode => {
                        next.voters.retain(|v| *v != id);
                        next.forget_learner(id);
                    }
                }
            }
            next.nodes.extend(nodes.iter().copied());
            next.forget_nodes(self);
        }
        if next.voters.is_empty() {
            return Err(ChangeError::NoVoter);
        }
        next.sort();
        Ok(next)
    }

    /// Where replicas live that have left is of use for a while only: it tells those that have left
    /// from those that never came. The newest are kept, by every replica the same, and those that leave
    /// just now.
    fn forget_nodes(&mut self, before: &Membership) {
        let gone = self.nodes.keys().copied().filter(|r| !self.contains(*r));
        let (just_now, earlier): (Vec<_>, Vec<_>) = gone.partition(|r| before.contains(*r));
        for r in earlier.iter().rev().skip(GONE_KEPT.saturating_sub(just_now.len())) {
            self.nodes.remove(r);
        }
    }

    fn forget_learner(&mut self, id: u64) {
        self.learners.retain(|l| *l != id);
        self.learners_next.retain(|l| *l != id);
    }

    fn sort(&mut self) {
        self.voters.sort_unstable();
        self.learners.sort_unstable();
        self.voters_outgoing.sort_unstable();
        self.learners_next.sort_unstable();
    }

    /// Whether raft's own view is the same, in any order.
    pub fn matches(&self, cs: &ConfState) -> bool {
        let same = |a: &[u64], b: &[u64]| {
            let mut b = b.to_vec();
            b.sort_unstable();
            a == b
        };
        same(&self.voters, &cs.voters)
            && same(&self.learners, &cs.learners)
            && same(&self.voters_outgoing, &cs.voters_outgoing)
            && same(&self.learners_next, &cs.learners_next)
            && self.auto_leave == cs.auto_leave
    }

    pub fn to_proto(&self) -> internal::Membership {
        internal::Membership {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
            nodes: self.nodes.iter().map(|(r, n)| (r.0, n.0)).collect(),
        }
    }

    pub fn from_proto(m: &internal::Membership) -> Membership {
        let mut out = Membership {
            voters: m.voters.clone(),
            learners: m.learners.clone(),
            voters_outgoing: m.voters_outgoing.clone(),
            learners_next: m.learners_next.clone(),
            auto_leave: m.auto_leave,
            nodes: m.nodes.iter().map(|(r, n)| (ReplicaId(*r), NodeId(*n))).collect(),
        };
        out.sort();
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft::eraftpb::ConfChangeSingle;
    use raft::storage::MemStorage;
    use raft::{Config, RawNode};

    #[test]
    fn nodes_of_replicas_that_have_left_do_not_pile_up() {
        let mut m = Membership::genesis(&[1, 2].map(|n| (ReplicaId(n), NodeId(n))));
        for id in 3..200u64 {
            let add = change(&[(ConfChangeType::AddLearnerNode, id)], false);
            m = m.after(&add, &[(ReplicaId(id), NodeId(id))]).unwrap();
            assert_eq!(m.nodes[&ReplicaId(id)], NodeId(id));
            m = m.after(&change(&[(ConfChangeType::RemoveNode, id)], false), &[]).unwrap();
            assert!(m.nodes.contains_key(&ReplicaId(id)), "it is known to have been there");
        }
        assert_eq!(m.nodes.len(), 2 + GONE_KEPT);
        // The oldest one too, when it leaves last.
        let m = m.after(&change(&[(ConfChangeType::RemoveNode, 2)], false), &[]).unwrap();
        assert_eq!(m.nodes.len(), 1 + GONE_KEPT);
        assert!([1, 2].iter().all(|r| m.nodes.contains_key(&ReplicaId(*r))));
    }

    fn change(parts: &[(ConfChangeType, u64)], explicit: bool) -> ConfChangeV2 {
        let mut c = ConfChangeV2::default();
        for (t, id) in parts {
            let mut s = ConfChangeSingle { node_id: *id, ..Default::default() };
            s.set_change_type(*t);
            c.changes.push(s);
        }
        if explicit {
            c.set_transition(ConfChangeTransition::Explicit);
        }
        c
    }

    proptest! {
        /// The independent twin: raft's own confchange module.
        #[test]
        fn agrees_with_raft(steps in prop::collection::vec(
            (prop::collection::vec((0..3i32, 1..7u64), 0..3), any::<bool>()), 1..12)
        ) {
            let store = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
            let cfg = Config { id: 1, ..Default::default() };
            let logger = slog::Logger::root(slog::Discard, slog::o!());
            let mut raw = RawNode::new(&cfg, store, &logger).unwrap();
            let mut ours = Membership::genesis(&[1, 2, 3].map(|i| (ReplicaId(i), NodeId(i))));
            for (parts, explicit) in steps {
                let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode,
                    ConfChangeType::AddLearnerNode];
                let parts: Vec<_> = parts.into_iter().map(|(k, id)| (kinds[k as usize], id)).collect();
                let mut seen = std::collections::HashSet::new();
                if !parts.iter().all(|(_, id)| seen.insert(*id)) {
                    continue;
                }
                let c = change(&parts, explicit && !parts.is_empty());
                match ours.after(&c, &[]) {
                    Ok(next) => {
                        let cs = raw.apply_conf_change(&c).unwrap();
                        prop_assert!(next.matches(&cs), "{next:?} {cs:?}");
                        ours = next;
                    }
                    Err(_) => {
                        if !parts.is_empty() || ours.is_joint() {
                            prop_assert!(raw.apply_conf_change(&c).is_err());
                        }
                    }
                }
            }
        }
    }
}
