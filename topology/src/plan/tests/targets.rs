//! New targets, and drains that cannot end.

use super::super::*;
use super::case::*;
use crate::PlacementError;

#[test]
fn a_target_that_holds_stays_and_one_with_a_lost_node_does_not() {
    let four = |case: &mut Case| {
        case.members.truncate(4);
        for row in [[2, 3, 4], [3, 4, 1], [4, 1, 2]] {
            case.partition(row, &voters(row));
        }
    };
    let mut case = case([1, 2, 3], &voters([1, 2, 3]));
    four(&mut case);
    assert_eq!(case.with(retarget).unwrap().placement.partitions, case.target);
    case.node(4).reach = DOWN;
    assert_eq!(case.with(retarget).unwrap().placement.partitions, case.target, "waited for");
    case.node(4).reach = LOST;
    let found = case.with(retarget).unwrap();
    assert_eq!(found.moves, 3);
    assert!(found.placement.partitions.iter().flatten().all(|n| *n != 4));
    // It returns before anything was swapped: all stays where it is.
    let before = std::mem::replace(&mut case.target, found.placement.partitions);
    case.node(4).reach = Reach::Up;
    let sorted = |rows: &[Vec<u64>]| -> Vec<Vec<u64>> {
        rows.iter()
            .cloned()
            .map(|mut r| {
                r.sort_unstable();
                r
            })
            .collect()
    };
    let back = case.with(retarget).unwrap().placement.partitions;
    assert_eq!(sorted(&back), sorted(&before));
}

#[test]
fn a_drain_that_cannot_end_is_refused_by_name() {
    let mut case = case([1, 2, 3], &voters([1, 2, 3]));
    let drain = |case: &Case, ids: &[u64]| case.with(|i| can_drain(i, ids)).unwrap_err();
    assert_eq!(case.with(|i| can_drain(i, &[3])), Ok(()));
    assert_eq!(drain(&case, &[99]), [DrainRefusal::NoMember(99)]);
    let few = DrainRefusal::TooFewNodes { left: 2, replication_factor: 3 };
    assert_eq!(drain(&case, &[1, 2, 3]), [few]);
    for id in [4, 5] {
        case.node(id).free_bytes = Some(30);
    }
    let full = drain(&case, &[3]);
    assert!(
        matches!(full[..], [DrainRefusal::TooLittleDisk { needed: 100, free: 30, .. }]),
        "{full:?}"
    );
    case.members.iter_mut().for_each(|m| m.free_bytes = None);
    case.partitions[0].is_known = false;
    assert_eq!(drain(&case, &[3]), [DrainRefusal::NotKnown { partition: 0 }]);
    case.partitions[0].is_known = true;
    case.node(1).reach = DOWN;
    case.node(2).reach = DOWN;
    assert_eq!(drain(&case, &[3]), [DrainRefusal::NoQuorum { partition: 0 }]);
    let alone = case.with(|i| retarget(&PlanInput { replication_factor: 6, ..i.clone() }));
    let few = PlacementError::TooFewMembers { members: 5, replication_factor: 6 };
    assert_eq!(alone.unwrap_err(), few);
}
