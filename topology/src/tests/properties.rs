use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Moves beyond the needed ones that no share of the total excuses in a small cluster, where a
/// partition is on half of the nodes already.
pub(super) const SWAPS_MOST: usize = 3;

/// (members, partitions, replication factor, load factor), as many members as they need.
pub(super) fn cluster(
    members_max: usize,
    partition_bits_max: u32,
    replication_factor_max: u32,
) -> impl Strategy<Value = (Vec<Member>, u32, u32, f64)> {
    let member = (
        select(vec!["a", "a", "b", "c", "d"]),
        select(vec![100, 100, 100, 100, 0, 1, 50, 150, 400]),
    );
    (
        proptest::collection::vec(member, 1..=members_max),
        0..=partition_bits_max,
        1..=replication_factor_max,
        select(vec![LOAD_FACTOR, LOAD_FACTOR, 1.0, 1.1, 2.0]),
    )
        .prop_map(|(mut members, bits, replication_factor, load_factor)| {
            members[0].1 = NORMAL_WEIGHT;
            let members: Vec<_> = (1..)
                .zip(members)
                .map(|(id, (zone, weight))| super::member(id * 7 % 31, zone, weight))
                .collect();
            let usable = members.iter().filter(|m| m.weight > 0).count() as u32;
            (members, 1 << bits, replication_factor.min(usable), load_factor)
        })
}

/// What must move whatever a planner does: replicas of nodes that are gone or over their cap or
/// their share, and those that a node with too little must get.
fn moves_least(input: &PlacementInput<'_>, before: &Placement, after: &Placement) -> usize {
    let kept: usize =
        input.members.iter().map(|m| loads(before, m.node_id).min(loads(after, m.node_id))).sum();
    after.partitions.iter().map(Vec::len).sum::<usize>() - kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_first_plan_holds_every_invariant(
        (members, partitions, replication_factor, load_factor) in cluster(12, 8, 5),
    ) {
        let input = PlacementInput { load_factor, ..input(&members, partitions, replication_factor, None) };
        let plan = place(&input).unwrap();
        prop_assert_eq!(check(&input, &plan.placement), Ok(()));
    }

    /// Also from a placement that broke every rule, by nodes that are gone.
    #[test]
    fn any_current_placement_leads_to_one_that_holds_every_invariant(
        (members, partitions, replication_factor, load_factor) in cluster(12, 6, 5),
        rows in proptest::collection::vec(proptest::collection::vec(0u64..40, 0..7), 64),
    ) {
        let current = Placement { partitions: rows[..partitions as usize].to_vec() };
        let input = PlacementInput {
            load_factor,
            ..input(&members, partitions, replication_factor, Some(&current))
        };
        let plan = place(&input).unwrap();
        prop_assert_eq!(check(&input, &plan.placement), Ok(()));
    }

    #[test]
    fn the_order_of_members_does_not_matter(
        (members, partitions, replication_factor, _) in cluster(12, 6, 5),
        seed in any::<Index>(),
    ) {
        let first = place(&input(&members, partitions, replication_factor, None));
        let mut other = members.clone();
        other.reverse();
        other.rotate_left(seed.index(members.len()));
        prop_assert_eq!(first, place(&input(&other, partitions, replication_factor, None)));
    }

    #[test]
    fn a_placement_that_holds_stays_as_it_is(
        (members, partitions, replication_factor, load_factor) in cluster(12, 6, 5),
    ) {
        let first = PlacementInput { load_factor, ..input(&members, partitions, replication_factor, None) };
        let before = place(&first).unwrap().placement;
        let again = place(&PlacementInput { current: Some(&before), ..first }).unwrap();
        prop_assert_eq!(again.moves, 0);
        prop_assert_eq!(again.placement, before);
    }

    /// Nodes come, go and change their weight, one after the other.
    #[test]
    fn a_history_of_changes_moves_little(
        (mut members, partitions, replication_factor, _) in cluster(10, 7, 4),
        changes in proptest::collection::vec((0..3, any::<Index>()), 1..12),
    ) {
        members.iter_mut().for_each(|m| *m = member(m.node_id, "", NORMAL_WEIGHT));
        let mut current = place(&input(&members, partitions, replication_factor, None)).unwrap().placement;
        for (i, (what, index)) in changes.into_iter().enumerate() {
            let at = index.index(members.len());
            match what {
                0 => members.push(member(100 + i as u64, "", NORMAL_WEIGHT)),
                1 if members.len() > replication_factor as usize => drop(members.remove(at)),
                _ => members[at].weight = if members[at].weight == 100 { 150 } else { 100 },
            }
            let input = input(&members, partitions, replication_factor, Some(&current));
            let plan = place(&input).unwrap();
            prop_assert_eq!(check(&input, &plan.placement), Ok(()));
            let least = moves_least(&input, &current, &plan.placement);
            let total = (partitions * replication_factor) as usize;
            prop_assert!(plan.moves <= least + total / 10 + SWAPS_MOST, "{} moves, {} needed of {}", plan.moves, least, total);
            current = plan.placement;
        }
    }

    #[test]
    fn a_node_that_joins_gets_its_share_and_nothing_else_moves(
        count in 3usize..40, bits in 4u32..10, zone_count in 1usize..4,
    ) {
        let partitions = 1 << bits;
        let zones = ["a", "b", "c"];
        let names: Vec<_> = (0..=count).map(|i| zones[i % zone_count]).collect();
        let members = members(&names);
        let before = place(&input(&members[..count], partitions, 3, None)).unwrap().placement;
        let plan = place(&input(&members, partitions, 3, Some(&before))).unwrap();
        let share = f64::from(partitions) * 3.0 / (count + 1) as f64;
        prop_assert!(plan.moves <= (1.1 * share).ceil() as usize, "{} moves for a share of {}", plan.moves, share);
    }

    #[test]
    fn a_node_that_leaves_moves_what_it_had(
        count in 4usize..40, bits in 4u32..10, leaver in any::<Index>(),
    ) {
        let partitions = 1 << bits;
        let mut members = members(&vec!["a"; count]);
        let before = place(&input(&members, partitions, 3, None)).unwrap().placement;
        let gone = members.remove(leaver.index(count));
        let plan = place(&input(&members, partitions, 3, Some(&before))).unwrap();
        let had = loads(&before, gone.node_id);
        prop_assert!(plan.moves <= had + had / 10 + SWAPS_MOST, "{} moves for {had}", plan.moves);
    }
}
