//! What is left to do, for a person to read.

use super::view::View;
use super::{Health, Reason, ReplicaFact, Role};

/// One replica or one leadership that is not yet where it is meant to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    pub partition: u32,
    /// Node that gives it up. `None`: one more is made.
    pub from: Option<u64>,
    /// Node that gets it. `None`: it is only given up.
    pub to: Option<u64>,
    pub phase: Phase,
    /// What has yet to be copied, at most.
    pub bytes: u64,
    pub reason: Reason,
}

/// How far it has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    NotBegun,
    /// The new replica is recorded or receives.
    Copying,
    /// The new replica has everything, or none is needed: memberships change.
    Changing,
    /// Only data are to be deleted, or a needless copy to be dropped.
    CleaningUp,
    /// Only the leadership moves.
    Leader,
}

impl View<'_> {
    pub(super) fn remaining(&self) -> Vec<Remaining> {
        let partition = self.partition;
        let mut found = Vec::new();
        if !self.fact.is_known || self.wanted.is_empty() {
            return found;
        }
        let reason = self.reason();
        let mut from: Vec<&ReplicaFact> = self.departing().collect();
        // A dead voter is replaced first; where it stands if its node is to have the new one.
        from.sort_by_key(|r| (!self.is_dead(r), r.replica_id));
        let rebuilt = from.iter().filter(|r| self.is_wanted(r.node_id)).map(|r| r.node_id);
        let to: Vec<u64> = self.missing().chain(rebuilt).collect();
        for i in 0..from.len().max(to.len()) {
            let (phase, bytes) = match to.get(i) {
                Some(&n) => self.progress(n),
                None => (Phase::Changing, 0),
            };
            found.push(Remaining {
                partition,
                from: from.get(i).map(|r| r.node_id),
                to: to.get(i).copied(),
                phase,
                bytes,
                reason,
            });
        }
        let leftovers = self.replicas().filter(|r| match r.role {
            Role::Left | Role::Leaving => true,
            Role::Recorded | Role::Learner => !to.contains(&r.node_id),
            Role::Voter | Role::Entering => false,
        });
        found.extend(leftovers.map(|r| Remaining {
            partition,
            from: Some(r.node_id),
            to: None,
            phase: Phase::CleaningUp,
            bytes: 0,
            reason: Reason::Unfinished,
        }));
        if found.is_empty() && self.preferred().is_some() {
            found.push(Remaining {
                partition,
                from: self.leader().map(|r| r.node_id),
                to: self.wanted.first().copied(),
                phase: Phase::Leader,
                bytes: 0,
                reason: Reason::Leaders,
            });
        }
        found
    }

    fn progress(&self, node_id: u64) -> (Phase, u64) {
        let copies = || {
            self.replicas().filter(move |r| {
                r.node_id == node_id && matches!(r.role, Role::Recorded | Role::Learner)
            })
        };
        if copies().any(|r| r.role == Role::Learner && r.health == Health::Ready) {
            (Phase::Changing, 0)
        } else if copies().next().is_some() {
            (Phase::Copying, self.fact.bytes)
        } else {
            (Phase::NotBegun, self.fact.bytes)
        }
    }
}
