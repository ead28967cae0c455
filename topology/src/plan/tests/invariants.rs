//! What every plan must hold, recomputed from the facts by other ways than the planner's.

use std::collections::BTreeMap;

use super::super::*;

fn reach(input: &PlanInput<'_>, node_id: u64) -> Option<Reach> {
    input.members.iter().find(|m| m.node_id == node_id).map(|m| m.reach)
}

fn healthy(input: &PlanInput<'_>, r: &ReplicaFact) -> bool {
    reach(input, r.node_id) == Some(Reach::Up)
        && !matches!(r.health, Health::Closed | Health::Unknown)
}

fn majority_is_healthy(input: &PlanInput<'_>, voters: &[ReplicaFact]) -> bool {
    2 * voters.iter().filter(|r| healthy(input, r)).count() > voters.len()
}

pub fn hold(input: &PlanInput<'_>, plan: &Plan) {
    let mut seen = std::collections::BTreeSet::new();
    for step in &plan.steps {
        assert!(seen.insert(step.partition), "more than one change: {step:?}");
        one(input, step);
    }
    assert!(plan.steps.is_sorted_by_key(|s| s.reason), "the order of reasons: {:?}", plan.steps);
    if plan.at_rest {
        assert!(plan.steps.is_empty() && plan.waiting.is_empty() && plan.remaining.is_empty());
    } else {
        let said = plan.steps.len() + plan.waiting.len();
        assert!(said > 0, "nothing goes on, and nothing says why: {:?}", plan.remaining);
    }
    limits(input, plan);
    // The order of what was observed does not matter.
    let members: Vec<_> = input.members.iter().rev().cloned().collect();
    let mut partitions = input.partitions.to_vec();
    partitions.iter_mut().for_each(|p| p.replicas.reverse());
    let other = PlanInput { members: &members, partitions: &partitions, ..input.clone() };
    assert_eq!(*plan, super::super::plan(&other), "the same facts in another order");
}

fn one(input: &PlanInput<'_>, step: &Step) {
    let p = step.partition as usize;
    let (fact, wanted) = (&input.partitions[p], &input.target[p]);
    let find = |id: u64| {
        *fact.replicas.iter().find(|r| r.replica_id == id).expect("a replica of the partition")
    };
    let roles = |a: Role, b: Role| -> Vec<ReplicaFact> {
        fact.replicas.iter().filter(|r| r.role == a || r.role == b).copied().collect()
    };
    let (new, old) = (roles(Role::Voter, Role::Entering), roles(Role::Voter, Role::Leaving));
    assert!(fact.is_known && !fact.change_pending && fact.leader.is_some(), "{step:?} {fact:?}");
    assert!(majority_is_healthy(input, &new) && majority_is_healthy(input, &old), "{step:?}");
    if input.is_paused {
        assert!(step.reason <= Reason::Repair, "paused: {step:?}");
    }
    match step.kind {
        StepKind::LeaveJoint => {
            assert!(fact.is_joint);
            assert_ne!(find(fact.leader.unwrap()).role, Role::Leaving, "a leader takes itself out");
        }
        StepKind::TransferLeader { to_replica } => {
            let to = find(to_replica);
            assert!(matches!(to.role, Role::Voter | Role::Entering), "{step:?}");
            assert!(healthy(input, &to) && to.health == Health::Ready, "{step:?}");
            assert_ne!(fact.leader, Some(to_replica));
        }
        _ => assert!(!fact.is_joint, "a joint membership is finished first: {step:?}"),
    }
    match step.kind {
        StepKind::CreateReplica { node_id } => {
            assert!(wanted.contains(&node_id));
            assert!(fact.replicas.iter().all(|r| r.node_id != node_id), "two on one node");
            assert_eq!(reach(input, node_id), Some(Reach::Up));
        }
        StepKind::AddLearner { replica_id } => {
            let r = find(replica_id);
            assert!(r.role == Role::Recorded && wanted.contains(&r.node_id), "{step:?}");
        }
        StepKind::RemoveLearner { replica_id } => {
            assert_eq!(find(replica_id).role, Role::Learner);
        }
        StepKind::Forget { replica_id } => {
            assert!(matches!(find(replica_id).role, Role::Left | Role::Recorded), "{step:?}");
        }
        StepKind::Swap { promote, remove } => swap(input, step, &old, promote.map(find), remove),
        StepKind::LeaveJoint | StepKind::TransferLeader { .. } => {}
    }
}

fn swap(
    input: &PlanInput<'_>,
    step: &Step,
    voters: &[ReplicaFact],
    promote: Option<ReplicaFact>,
    remove: Option<u64>,
) {
    let p = step.partition as usize;
    let wanted = &input.target[p];
    if let Some(new) = promote {
        assert!(new.role == Role::Learner && new.health == Health::Ready, "{step:?}");
        assert!(healthy(input, &new) && wanted.contains(&new.node_id), "{step:?}");
    }
    let mut after: Vec<ReplicaFact> =
        voters.iter().filter(|r| Some(r.replica_id) != remove).copied().collect();
    assert_eq!(after.len() + usize::from(remove.is_some()), voters.len(), "removes no voter");
    after.extend(promote);
    assert!(majority_is_healthy(input, &after), "below its quorum: {step:?} {voters:?}");
    let Some(gone) = voters.iter().find(|r| Some(r.replica_id) == remove) else { return };
    assert_ne!(input.partitions[p].leader, remove, "the leader hands over first");
    let lost = reach(input, gone.node_id).is_none_or(|r| r == Reach::Down { lost: true });
    let dead = lost || gone.health == Health::Closed;
    assert!(dead || !wanted.contains(&gone.node_id), "one that is wanted: {step:?}");
    let rf = input.replication_factor as usize;
    assert!(after.len() >= rf || dead, "a successor comes with it: {step:?}");
}

/// A transfer is one from the creation of the record until the learner has everything.
fn limits(input: &PlanInput<'_>, plan: &Plan) {
    let mut by_node: BTreeMap<u64, (u32, bool)> = BTreeMap::new();
    let (mut moves, mut repairs) = ((0, false), (0, false));
    let mut count = |p: usize, to: u64, is_new: bool| {
        let fact = &input.partitions[p];
        let voters =
            || fact.replicas.iter().filter(|r| matches!(r.role, Role::Voter | Role::Entering));
        let source = transfer_source(input.members, p as u32, fact);
        let from = source.and_then(|id| fact.replicas.iter().find(|r| r.replica_id == id));
        for n in from.map(|r| r.node_id).into_iter().chain([to]) {
            let (used, began) = by_node.entry(n).or_default();
            (*used, *began) = (*used + 1, *began || is_new);
        }
        let dead = |r: &ReplicaFact| {
            reach(input, r.node_id).is_none_or(|r| r == Reach::Down { lost: true })
                || r.health == Health::Closed
        };
        let ill = voters().any(dead) || voters().count() < input.replication_factor as usize;
        let (used, began) = if ill && !fact.is_joint { &mut repairs } else { &mut moves };
        (*used, *began) = (*used + 1, *began || is_new);
    };
    for (p, fact) in input.partitions.iter().enumerate() {
        for r in &fact.replicas {
            let incoming = r.role == Role::Recorded
                || r.role == Role::Learner && !matches!(r.health, Health::Ready | Health::Closed);
            let free = input.members.iter().find(|m| m.node_id == r.node_id);
            let is_stuck = free.and_then(|m| m.free_bytes).is_some_and(|free| free < fact.bytes);
            if incoming && !is_stuck && r.is_recorded && reach(input, r.node_id) == Some(Reach::Up)
            {
                count(p, r.node_id, false);
            }
        }
    }
    for step in &plan.steps {
        if let StepKind::CreateReplica { node_id } = step.kind {
            count(step.partition as usize, node_id, true);
        }
    }
    let within = |(used, began): (u32, bool), most: u32| !began || used <= most;
    assert!(within(moves, input.limits.moves_total), "{moves:?} moves");
    assert!(within(repairs, input.limits.repairs_total), "{repairs:?} repairs");
    for (n, used) in by_node {
        assert!(within(used, input.limits.moves_per_node), "node {n}: {used:?} transfers");
    }
}
