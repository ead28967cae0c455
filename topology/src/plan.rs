//! From what is intended and what is to the next small steps.
//!
//! [`plan`] is memoryless: the caller executes what steps it can, observes again, and calls again.
//! While the facts stay, the same steps come out, so a step that was lost is planned again, and one
//! that was done twice is refused by the membership that it was planned on. [`retarget`] gives the
//! intent when members change, [`can_drain`] says beforehand why a drain could not end.

mod decide;
mod drain;
mod facts;
mod leads;
mod remaining;
mod retarget;
mod slots;
mod step;
#[cfg(test)]
mod tests;
mod view;

pub use drain::{DrainRefusal, can_drain};
pub use facts::{
    Health, Limits, MemberState, PartitionFact, PlanInput, PlanMember, Reach, ReplicaFact, Role,
};
pub use remaining::{Phase, Remaining};
pub use retarget::retarget;
pub use step::{Plan, Reason, Step, StepKind, Waiting};
pub use view::transfer_source;

use decide::{Decider, Outcome};
use leads::Leads;
use slots::Slots;
use view::{Nodes, View};

/// The steps that are due now, at most one for each partition, the most urgent first.
///
/// The rules:
/// - A partition whose membership is not known, or that has no quorum of healthy voters, is left
///   alone. Healthy: on a node that is up, and not closed.
/// - One change at a time: nothing is planned while one is pending, and a joint configuration is
///   left before anything else.
/// - A replica is created, added as a learner, catches up, and becomes a voter in the same change
///   that takes out the one it replaces. Only a dead voter whose node is to hold the new replica
///   too is taken out first. Both memberships of a change have a healthy majority.
/// - A leader that is to go hands over first.
/// - Data is given up last, once the replica is out of the membership.
/// - Repair, drain, balance, leaders, in this order; the most endangered partition first. Pausing
///   holds back all but repairs and what is half done.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let nodes = Nodes::new(input.members);
    let mut plan = Plan::default();
    let mut views = Vec::with_capacity(input.partitions.len());
    for (partition, fact) in (0u32..).zip(input.partitions) {
        let wanted = input.target.get(partition as usize).map_or(&[][..], Vec::as_slice);
        if wanted.len() != input.replication_factor as usize {
            plan.waiting.push(Waiting {
                partition,
                explanation: format!(
                    "the target names {} nodes, expected {}: a new target is due",
                    wanted.len(),
                    input.replication_factor
                ),
            });
        }
        views.push(View::new(partition, fact, wanted, input.replication_factor, &nodes));
    }
    views.sort_by_key(View::urgency);
    let mut decider = Decider {
        slots: Slots::new(&input.limits, &nodes, &views),
        leads: Leads::new(&views, input.limits.leader_transfers),
        is_paused: input.is_paused,
    };
    for view in &views {
        let partition = view.partition;
        match decider.decide(view) {
            Outcome::Done => {}
            Outcome::Wait(explanation) => plan.waiting.push(Waiting { partition, explanation }),
            Outcome::Step { kind, reason, explanation } => {
                plan.steps.push(Step { partition, kind, reason, explanation });
            }
        }
        plan.remaining.extend(view.remaining());
    }
    // The sort is stable: among equals the most endangered stay first.
    plan.steps.sort_by_key(|s| s.reason);
    plan.waiting.sort_by_key(|w| w.partition);
    plan.remaining.sort_by_key(|r| (r.reason, r.partition));
    plan.at_rest = plan.steps.is_empty() && plan.waiting.is_empty() && plan.remaining.is_empty();
    plan
}
