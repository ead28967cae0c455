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

/// What the step asks for, unless it was planned on an older epoch than this node knows.
pub fn accept(step: &Step, own_epoch: u64) -> Result<Act, Refusal> {
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
