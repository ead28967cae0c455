//! What a node lets a step of the plan do: steps come late, twice, and from leaders of the meta group
//! that lead no more. Pure; `rebalance.rs` asks the driver and acts.
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::peer::control::refusal;
use crate::raft::driver::{GroupFacts, MembershipChange};
use ringfold_proto::internal::step::Kind;
use ringfold_proto::internal::{Refusal, Step, Swap};

/// Reasons of refused steps.
pub const STALE_STEP: &str = "STALE_STEP";
pub const NOT_LEADER: &str = "NOT_LEADER";
pub const STEP_FAILED: &str = "STEP_FAILED";

/// What a step asks of the node that leads its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Change(MembershipChange),
    HandOver(ReplicaId),
    ConfirmWithout(ReplicaId),
}

/// What the step asks for, unless it was planned on an older epoch than this node knows, or by a
/// leader of the meta group before the last one that it knows.
pub fn accept(step: &Step, own_epoch: u64, own_term: u64) -> Result<Act, Refusal> {
    if step.term < own_term {
        return Err(refusal(
            STALE_STEP,
            format!("planned in term {} of the meta group, which is at {own_term}", step.term),
        ));
    }
    if step.epoch < own_epoch {
        return Err(refusal(
            STALE_STEP,
            format!("planned on epoch {}, and the placement is at {own_epoch}", step.epoch),
        ));
    }
    if GroupId(step.group) == GroupId::META {
        return Err(refusal(STEP_FAILED, "the meta group is not moved by steps"));
    }
    Ok(match step.kind {
        Some(Kind::AddLearner(l)) => {
            Act::Change(MembershipChange::AddLearner(ReplicaId(l.replica_id), NodeId(l.node_id)))
        }
        Some(Kind::Swap(Swap { promote, remove: 0 })) => {
            Act::Change(MembershipChange::Promote(ReplicaId(promote)))
        }
        Some(Kind::Swap(Swap { promote: 0, remove })) => {
            Act::Change(MembershipChange::Remove(ReplicaId(remove)))
        }
        Some(Kind::Swap(Swap { promote, remove })) => Act::Change(MembershipChange::Swap {
            promote: ReplicaId(promote),
            remove: ReplicaId(remove),
        }),
        Some(Kind::Demote(voter)) => Act::Change(MembershipChange::Demote(ReplicaId(voter))),
        Some(Kind::LeaveJoint(_)) => Act::Change(MembershipChange::LeaveJoint),
        Some(Kind::TransferLeaderTo(to)) => Act::HandOver(ReplicaId(to)),
        Some(Kind::ConfirmWithout(replica)) => Act::ConfirmWithout(ReplicaId(replica)),
        None => return Err(refusal("UNKNOWN_STEP", "this node does not know the step")),
    })
}

/// Facts of a group that this node leads, with the membership that a step was planned on.
pub fn led(facts: Option<GroupFacts>, planned_on: u64) -> Result<GroupFacts, Refusal> {
    let facts = facts
        .filter(|f| f.is_leader)
        .ok_or_else(|| refusal(NOT_LEADER, "this node does not lead the group"))?;
    if facts.membership_index != planned_on {
        return Err(refusal(
            STALE_STEP,
            format!(
                "planned on the membership of entry {planned_on}, and the group is at that of {}",
                facts.membership_index
            ),
        ));
    }
    Ok(facts)
}

/// The first look, before a read index is asked for.
pub fn is_without(facts: &GroupFacts, replica: ReplicaId) -> Result<(), Refusal> {
    let is_final = !facts.change_pending
        && !facts.membership.is_joint()
        && !facts.membership.contains(replica);
    if is_final {
        return Ok(());
    }
    Err(refusal(STEP_FAILED, format!("{replica} may still be in the group")))
}

/// The second look. The read index was confirmed between the two: whoever confirmed it knew this
/// membership as the last one committed, and no change was under way.
pub fn is_confirmed_without(
    before: &GroupFacts,
    after: &GroupFacts,
    replica: ReplicaId,
) -> Result<(), Refusal> {
    is_without(before, replica)?;
    is_without(after, replica)?;
    if (before.term, before.membership_index) == (after.term, after.membership_index) {
        return Ok(());
    }
    Err(refusal(STEP_FAILED, "the leader or the membership has changed meanwhile"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::membership::Membership;
    use ringfold_proto::internal::LeaveJoint;

    const GONE: ReplicaId = ReplicaId(9);

    fn facts() -> GroupFacts {
        GroupFacts {
            is_leader: true,
            term: 3,
            membership: Membership { voters: vec![1, 2, 3], ..Default::default() },
            membership_index: 7,
            ..Default::default()
        }
    }

    #[test]
    fn a_step_of_an_older_epoch_is_refused_and_a_newer_one_is_not() {
        let kind = Some(Kind::LeaveJoint(LeaveJoint {}));
        let step = Step { group: 1, epoch: 4, membership_index: 7, kind, term: 2 };
        for (own_epoch, is_taken) in [(3, true), (4, true), (5, false)] {
            assert_eq!(accept(&step, own_epoch, 2).is_ok(), is_taken, "{own_epoch}");
        }
        for (own_term, is_taken) in [(1, true), (2, true), (3, false)] {
            assert_eq!(accept(&step, 4, own_term).is_ok(), is_taken, "{own_term}");
        }
        let of_meta = Step { group: GroupId::META.0, ..step };
        assert_eq!(accept(&of_meta, 4, 2).unwrap_err().reason, STEP_FAILED);
        assert_eq!(accept(&Step { kind: None, ..step }, 4, 2).unwrap_err().reason, "UNKNOWN_STEP");
    }

    #[test]
    fn only_a_leader_on_the_planned_membership_goes_on() {
        assert_eq!(led(None, 7).unwrap_err().reason, NOT_LEADER);
        let follower = GroupFacts { is_leader: false, ..facts() };
        assert_eq!(led(Some(follower), 7).unwrap_err().reason, NOT_LEADER);
        assert_eq!(led(Some(facts()), 6).unwrap_err().reason, STALE_STEP);
        assert_eq!(led(Some(facts()), 7).unwrap(), facts());
    }

    #[test]
    fn nothing_is_confirmed_while_the_membership_may_change() {
        assert!(is_confirmed_without(&facts(), &facts(), GONE).is_ok());
        let joint = Membership { voters_outgoing: vec![1, 2, 9], ..facts().membership };
        let learner = Membership { learners: vec![9], ..facts().membership };
        for other in [
            GroupFacts { change_pending: true, ..facts() },
            GroupFacts { membership: joint, ..facts() },
            GroupFacts { membership: learner, ..facts() },
            GroupFacts { term: 4, ..facts() },
            GroupFacts { membership_index: 8, ..facts() },
        ] {
            assert!(is_confirmed_without(&facts(), &other, GONE).is_err(), "{other:?}");
            assert!(is_confirmed_without(&other, &facts(), GONE).is_err(), "{other:?}");
        }
    }
}
