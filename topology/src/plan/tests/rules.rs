//! The rules, one by one.

use super::super::*;
use super::case::*;
use super::sim::member;
use Health::{Closed, Ready, Unknown};
use Role::{Entering, Learner, Leaving, Left, Recorded, Voter};

#[test]
fn a_cluster_that_is_as_intended_rests() {
    let plan = case([1, 2, 3], &voters([1, 2, 3])).plan();
    assert_eq!(plan, Plan { at_rest: true, ..Plan::default() });
}

#[test]
fn a_move_goes_from_record_to_learner_to_swap_to_the_end_of_its_data() {
    use StepKind::{AddLearner, CreateReplica, Forget, LeaveJoint};
    let step = |more: &[_]| case([1, 2, 4], &and([1, 2, 3], more)).step();
    assert_eq!(step(&[]), (CreateReplica { node_id: 4 }, Reason::Balance));
    assert_eq!(step(&[(4, Recorded, Unknown)]), (AddLearner { replica_id: 4 }, Reason::Balance));
    assert_eq!(step(&[(4, Learner, Ready)]), (swap(4, 3), Reason::Balance));
    let joint = [(1, Voter, Ready), (2, Voter, Ready), (3, Leaving, Ready), (4, Entering, Ready)];
    assert_eq!(case([1, 2, 4], &joint).step(), (LeaveJoint, Reason::Unfinished));
    let left = case([1, 2, 4], &and([1, 2, 4], &[(3, Left, Ready)]));
    assert_eq!(left.step(), (Forget { replica_id: 3 }, Reason::Unfinished));
}

#[test]
fn a_learner_is_waited_for_until_it_has_everything() {
    for health in [BEHIND, Unknown] {
        let why = case([1, 2, 4], &and([1, 2, 3], &[(4, Learner, health)])).waits();
        assert!(why.contains("replica 4 on node 4 catches up"), "{why}");
    }
}

#[test]
fn a_leader_that_is_to_go_hands_over_first() {
    let learner = [(4, Learner, Ready)];
    // To the preferred leader, where that has everything.
    let to_2 = (StepKind::TransferLeader { to_replica: 2 }, Reason::Balance);
    assert_eq!(case([2, 3, 4], &and([1, 2, 3], &learner)).step(), to_2);
    // The preferred one is not there yet: to one that leads least, and has everything.
    let mut other = case([4, 2, 3], &and([1, 2, 3], &learner));
    other.partition([2, 1, 5], &voters([2, 1, 5]));
    assert_eq!(other.plan().steps[0].kind, StepKind::TransferLeader { to_replica: 3 });
    let behind = [(1, Voter, Ready), (2, Voter, Ready), (3, Voter, BEHIND), (4, Learner, Ready)];
    let to_ready = case([4, 2, 3], &behind).step().0;
    assert_eq!(to_ready, StepKind::TransferLeader { to_replica: 2 });
    // Not to a node that gives its leaderships up.
    let mut unfit = case([2, 3, 4], &and([1, 2, 3], &learner));
    unfit.node(2).may_lead = false;
    assert_eq!(unfit.step().0, StepKind::TransferLeader { to_replica: 3 });
}

#[test]
fn a_leader_that_goes_alone_gets_a_second_voter_to_hand_over_to() {
    let mut alone = case([1, 2, 3], &[(1, Voter, Ready), (4, Learner, Ready)]);
    (alone.replication_factor, alone.target) = (1, vec![vec![4]]);
    let (kind, _) = alone.step();
    assert_eq!(kind, StepKind::Swap { promote: Some(4), remove: None });
    let mut both = case([1, 2, 3], &[(1, Voter, Ready), (4, Voter, Ready)]);
    (both.replication_factor, both.target) = (1, vec![vec![4]]);
    assert_eq!(both.step().0, StepKind::TransferLeader { to_replica: 4 });
    both.partitions[0].leader = Some(4);
    assert_eq!(both.step().0, StepKind::Swap { promote: None, remove: Some(1) });
}

#[test]
fn a_joint_membership_is_left_before_anything_else() {
    // Even where the target has changed, a voter is dead, and something is left over.
    let joint = [
        (1, Voter, Ready),
        (2, Voter, Ready),
        (3, Leaving, Ready),
        (4, Entering, Ready),
        (5, Left, Ready),
    ];
    let mut case = case([1, 2, 3], &joint).with_reach(4, LOST);
    case.is_paused = true;
    assert_eq!(case.step(), (StepKind::LeaveJoint, Reason::Unfinished));
    // Not by a leader that would take itself out.
    case.partitions[0].leader = Some(3);
    assert_eq!(case.step().0, StepKind::TransferLeader { to_replica: 1 });
}

#[test]
fn one_change_at_a_time() {
    let mut case = case([1, 2, 4], &and([1, 2, 3], &[(4, Learner, Ready)]));
    case.partitions[0].change_pending = true;
    assert!(case.waits().contains("a change of it is under way"));
}

#[test]
fn what_is_not_known_is_left_alone() {
    let mut case = case([1, 2, 4], &and([1, 2, 3], &[(5, Left, Unknown)]));
    case.partitions[0].is_known = false;
    assert!(case.waits().contains("not known"));
    case.partitions[0].is_known = true;
    case.partitions[0].leader = None;
    assert!(case.waits().contains("no leader"));
}

#[test]
fn a_partition_without_quorum_is_left_alone() {
    let ill = case([1, 4, 5], &and([1, 2, 3], &[(4, Learner, Ready)]));
    let why = ill.with_reach(2, LOST).with_reach(3, LOST).waits();
    assert!(why.contains("no quorum") && why.contains("replica 2 on node 2"), "{why}");
    let closed = [(1, Voter, Ready), (2, Voter, Closed), (3, Voter, Closed), (4, Learner, Ready)];
    assert!(case([1, 4, 5], &closed).waits().contains("no quorum"));
}

#[test]
fn a_change_that_would_leave_no_quorum_waits() {
    // Five voters for three, and two of those that stay are ill: the surplus ones are needed.
    let five = |health| {
        let health = move |n| if n < 4 { Ready } else { health };
        case([1, 4, 5], &(1..=5).map(|n| (n, Voter, health(n))).collect::<Vec<_>>())
    };
    let surplus = five(Ready);
    assert_eq!(surplus.step().0, StepKind::Swap { promote: None, remove: Some(2) });
    let why = five(Unknown).waits();
    assert!(why.contains("without replica 2 on node 2 too few healthy voters"), "{why}");
}

#[test]
fn a_move_waits_while_another_voter_is_down_and_a_repair_does_not() {
    let of = |r: &[_]| case([1, 3, 4], &and([1, 2, 3], r));
    for more in [vec![], vec![(4, Learner, Ready)], vec![(4, Learner, BEHIND)]] {
        let why = of(&more).with_reach(3, DOWN).waits();
        assert!(why.contains("replica 3 on node 3 is down"), "{why}");
        let drained = of(&more).draining(2).with_reach(3, DOWN).waits();
        assert!(drained.contains("drain goes on once it is back"), "{drained}");
    }
    // The one that goes may be down itself.
    assert_eq!(of(&[(4, Learner, Ready)]).with_reach(2, DOWN).step().0, swap(4, 2));
    let repair = case([1, 2, 4], &and([1, 2, 3], &[(4, Learner, Ready)]));
    assert_eq!(repair.with_reach(3, LOST).step(), (swap(4, 3), Reason::Repair));
}

#[test]
fn a_drain_without_a_new_target_is_no_rest() {
    let why = case([1, 2, 3], &voters([1, 2, 3])).draining(3).waits();
    assert!(why.contains("the target still names it"), "{why}");
}

#[test]
fn a_lost_replica_is_made_anew_before_it_is_taken_out() {
    let lost = |more: &[_]| case([1, 2, 4], &and([1, 2, 3], more)).with_reach(3, LOST);
    assert_eq!(lost(&[]).step(), (StepKind::CreateReplica { node_id: 4 }, Reason::Repair));
    assert_eq!(lost(&[(4, Learner, Ready)]).step(), (swap(4, 3), Reason::Repair));
}

#[test]
fn a_closed_replica_leaves_where_its_node_is_to_get_the_new_one() {
    let closed = [(1, Voter, Ready), (2, Voter, Ready), (3, Voter, Closed)];
    let out = StepKind::Swap { promote: None, remove: Some(3) };
    assert_eq!(case([1, 2, 3], &closed).step(), (out, Reason::Repair));
    let learner = [(1, Voter, Ready), (2, Voter, Ready), (3, Learner, Closed)];
    assert_eq!(case([1, 2, 3], &learner).step().0, StepKind::RemoveLearner { replica_id: 3 });
    let left = [(1, Voter, Ready), (2, Voter, Ready), (3, Left, Closed)];
    assert_eq!(case([1, 2, 3], &left).step().0, StepKind::Forget { replica_id: 3 });
    let gone = [(1, Voter, Ready), (2, Voter, Ready)];
    let again = (StepKind::CreateReplica { node_id: 3 }, Reason::Repair);
    assert_eq!(case([1, 2, 3], &gone).step(), again);
    // Elsewhere its successor comes first.
    assert_eq!(case([1, 2, 4], &closed).step().0, StepKind::CreateReplica { node_id: 4 });
}

#[test]
fn the_dead_go_before_the_living() {
    let closed = [(1, Voter, Ready), (2, Voter, Ready), (3, Voter, Closed), (4, Learner, Ready)];
    // Also before one on a node that drains.
    assert_eq!(case([1, 4, 5], &closed).draining(2).step(), (swap(4, 3), Reason::Repair));
}

#[test]
fn a_node_that_is_down_is_waited_for_and_stops_nobody_else() {
    let why = case([1, 2, 3], &voters([1, 2, 3])).with_reach(3, DOWN).waits();
    assert!(why.contains("node 3 is down"), "{why}");
    // A copy to node 4 is stuck; the one to node 5 is made.
    let stuck = case([1, 4, 5], &and([1, 2, 3], &[(4, Learner, Unknown)])).with_reach(4, DOWN);
    assert_eq!(stuck.step().0, StepKind::CreateReplica { node_id: 5 });
    let why = case([1, 2, 4], &voters([1, 2, 3])).with_reach(4, DOWN).waits();
    assert!(why.contains("node 4 is down"), "{why}");
}

#[test]
fn repairs_come_first_then_drains_then_balance_then_leaders() {
    let mut case = case([2, 1, 3], &voters([1, 2, 3])).draining(5);
    case.partition([1, 2, 3], &voters([1, 2, 4]));
    case.partition([1, 2, 3], &voters([1, 2, 5]));
    case.partition([1, 2, 3], &[(1, Voter, Ready), (2, Voter, Ready), (4, Voter, Closed)]);
    case.partition([1, 2, 3], &and([1, 2, 3], &[(4, Left, Ready)]));
    case.limits.moves_per_node = 9;
    let found: Vec<_> = case.plan().steps.iter().map(|s| (s.partition, s.reason)).collect();
    use Reason::{Balance, Drain, Leaders, Repair, Unfinished};
    assert_eq!(found, [(4, Unfinished), (3, Repair), (2, Drain), (1, Balance), (0, Leaders)]);
}

#[test]
fn the_most_endangered_partition_is_repaired_first() {
    let five = |ill: &[u64]| -> Vec<_> {
        (1..=5).map(|n| (n, Voter, if ill.contains(&n) { Closed } else { Ready })).collect()
    };
    let mut case = case([1, 2, 3], &five(&[5]));
    case.members.push(member(6, "", 100));
    case.members.push(member(7, "", 100));
    case.partition([1, 2, 3], &five(&[4, 5]));
    case.partition([1, 2, 3], &five(&[5]));
    case.replication_factor = 5;
    case.target = vec![vec![1, 2, 3, 4, 6], vec![1, 2, 3, 6, 7], vec![1, 2, 3, 4, 6]];
    case.limits.repairs_total = 1;
    let plan = case.plan();
    let first: Vec<_> = plan.steps.iter().map(|s| s.partition).collect();
    assert_eq!(first, [1]);
    assert!(plan.waiting.iter().all(|w| w.explanation.contains("at most 1 at once")));
}

#[test]
fn a_paused_cluster_repairs_and_ends_what_is_half_done() {
    let paused = |mut c: Case| {
        c.is_paused = true;
        c
    };
    let moving = and([1, 2, 3], &[(4, Learner, Ready)]);
    assert!(paused(case([1, 2, 4], &moving)).waits().contains("paused"));
    assert!(paused(case([2, 1, 3], &voters([1, 2, 3]))).waits().contains("paused"));
    let needless = paused(case([1, 2, 3], &moving)).step();
    assert_eq!(needless, (StepKind::RemoveLearner { replica_id: 4 }, Reason::Unfinished));
    let lost = paused(case([1, 2, 4], &moving)).with_reach(3, LOST);
    assert_eq!(lost.step(), (swap(4, 3), Reason::Repair));
}

#[test]
fn no_node_has_more_transfers_than_its_limit() {
    let mut case = case([1, 2, 4], &voters([1, 2, 3]));
    for _ in 0..5 {
        case.partition([1, 2, 4], &voters([1, 2, 3]));
    }
    let plan = case.plan();
    assert_eq!(plan.steps.len(), 2, "two at once to node 4");
    assert!(plan.waiting.iter().all(|w| w.explanation.contains("2 transfers under way")));
    assert_eq!(plan.remaining.len(), 6);
    assert_eq!(plan.remaining.iter().map(|r| r.bytes).sum::<u64>(), 600);
    case.limits.moves_total = 1;
    assert_eq!(case.plan().steps.len(), 1);
}

#[test]
fn a_node_without_room_gets_no_replica() {
    let mut full = case([1, 2, 4], &voters([1, 2, 3]));
    full.partition([1, 2, 4], &voters([1, 2, 3]));
    full.node(4).free_bytes = Some(150);
    let plan = full.plan();
    assert_eq!(plan.steps.len(), 1);
    let why = &plan.waiting[0].explanation;
    assert!(why.contains("room for 150 bytes, and 100 more"), "{why}");
}

#[test]
fn a_copy_that_its_node_has_no_room_for_holds_no_slot() {
    let copy = [(4, Learner, BEHIND)];
    let mut case = case([1, 2, 4], &and([1, 2, 3], &copy));
    case.partition([1, 2, 5], &voters([1, 2, 3]));
    case.limits.moves_total = 1;
    assert!(case.plan().steps.is_empty(), "the first one has the only slot");
    case.node(4).free_bytes = Some(99);
    let plan = case.plan();
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.steps[0].kind, StepKind::CreateReplica { node_id: 5 });
}

#[test]
fn leaders_move_only_to_voters_that_have_everything() {
    let to_2 = StepKind::TransferLeader { to_replica: 2 };
    assert_eq!(case([2, 1, 3], &voters([1, 2, 3])).step(), (to_2, Reason::Leaders));
    let behind = [(1, Voter, Ready), (2, Voter, BEHIND), (3, Voter, Ready)];
    assert!(case([2, 1, 3], &behind).waits().contains("catches up"));
    let mut unfit = case([2, 1, 3], &voters([1, 2, 3]));
    unfit.node(2).may_lead = false;
    assert!(unfit.plan().at_rest, "nothing is to be done until it may lead");
}

#[test]
fn a_copy_for_a_target_that_has_changed_is_used_or_dropped() {
    let copy = |target, role, health| case(target, &and([1, 2, 3], &[(4, role, health)])).step().0;
    assert_eq!(copy([1, 4, 5], Recorded, Unknown), StepKind::AddLearner { replica_id: 4 });
    assert_eq!(copy([1, 2, 3], Recorded, Unknown), StepKind::Forget { replica_id: 4 });
    assert_eq!(copy([1, 2, 3], Learner, BEHIND), StepKind::RemoveLearner { replica_id: 4 });
    assert_eq!(copy([1, 2, 5], Learner, Ready), StepKind::RemoveLearner { replica_id: 4 });
}

#[test]
fn a_learner_without_a_record_is_taken_out() {
    let mut late = case([1, 2, 4], &and([1, 2, 3], &[(4, Learner, Unknown)]));
    late.partitions[0].replicas[3].is_recorded = false;
    assert_eq!(late.step().0, StepKind::RemoveLearner { replica_id: 4 });
}

#[test]
fn without_a_whole_target_nothing_is_taken_away() {
    let mut early = case([1, 2, 3], &and([1, 2, 3], &[(4, Learner, Ready)]));
    early.target = Vec::new();
    assert!(early.waits().contains("a new target is due"));
}
