pub(crate) mod naive;
mod properties;

use super::*;

pub(crate) fn member(node_id: u64, zone: &str, weight: u32) -> Member {
    Member { node_id, zone: zone.to_owned(), weight }
}

pub(crate) fn members(zones: &[&str]) -> Vec<Member> {
    (1..).zip(zones).map(|(id, zone)| member(id, zone, NORMAL_WEIGHT)).collect()
}

pub(crate) fn input<'a>(
    members: &'a [Member],
    partitions: u32,
    replication_factor: u32,
    current: Option<&'a Placement>,
) -> PlacementInput<'a> {
    PlacementInput { members, partitions, replication_factor, load_factor: LOAD_FACTOR, current }
}

fn loads(placement: &Placement, node_id: u64) -> usize {
    let ids = placement.partitions.iter().flatten();
    ids.filter(|&&id| id == node_id).count()
}

#[test]
fn partitions_of_streams_never_change() {
    // xxh3_64 by another implementation (Python's xxhash): the high bits of these.
    assert_eq!(xxh3_64(b"customer-42"), XXH3_CUSTOMER_42);
    for partitions in [1u32, 2, 64, 1024] {
        let bits = partitions.trailing_zeros();
        let top = XXH3_CUSTOMER_42.checked_shr(64 - bits).unwrap_or(0);
        assert_eq!(u64::from(partition_of("customer-42", partitions)), top);
    }
    assert_eq!(partition_of("", 1024), (XXH3_EMPTY >> 54) as u32);
}

#[test]
fn a_split_is_a_range_split() {
    for i in 0..1000 {
        let name = format!("customer-{i}");
        assert_eq!(partition_of(&name, 64), partition_of(&name, 128) / 2);
    }
}

#[test]
fn three_nodes_hold_everything_and_lead_a_third() {
    let members = members(&["", "", ""]);
    let plan = place(&input(&members, 64, 3, None)).unwrap();
    for id in 1..=3 {
        assert_eq!(loads(&plan.placement, id), 64);
        let led = plan.placement.partitions.iter().filter(|p| p[0] == id);
        assert!((21..=22).contains(&led.count()));
    }
    assert_eq!(plan.moves, 0);
}

#[test]
fn a_plan_explains_itself() {
    let members =
        [member(1, "a", 100), member(2, "b", 100), member(3, "c", 100), member(4, "c", 200)];
    let before = place(&input(&members[..3], 16, 3, None)).unwrap();
    let plan = place(&input(&members, 16, 3, Some(&before.placement))).unwrap();
    let text = plan.explanation.join("\n");
    assert_eq!(text, EXPLANATION, "\n{text}");
}

#[test]
fn a_partition_has_a_replica_in_each_of_three_zones() {
    let members = members(&["a", "a", "b", "b", "c", "c", "c"]);
    let plan = place(&input(&members, 64, 3, None)).unwrap();
    for ids in &plan.placement.partitions {
        let zones: std::collections::BTreeSet<_> =
            ids.iter().map(|id| &members[*id as usize - 1].zone).collect();
        assert_eq!(zones.len(), 3);
    }
}

#[test]
fn a_small_zone_takes_no_more_than_its_cap() {
    // Zone a would need a replica of each of the 64 partitions on its one node.
    let members = members(&["a", "b", "b", "b", "c", "c", "c", "c"]);
    let plan = place(&input(&members, 64, 3, None)).unwrap();
    assert_eq!(loads(&plan.placement, 1), 30, "1.25 * 64 * 3 / 8");
    assert!(plan.explanation.iter().any(|l| l.contains("at their caps")));
    check(&input(&members, 64, 3, None), &plan.placement).unwrap();
}

#[test]
fn a_node_of_double_weight_holds_double() {
    let members: Vec<_> =
        (1..=6).map(|id| member(id, "", if id == 6 { 200 } else { 100 })).collect();
    let plan = place(&input(&members, 512, 1, None)).unwrap();
    assert_eq!(loads(&plan.placement, 1), 73);
    assert!((146..=147).contains(&loads(&plan.placement, 6)));
}

#[test]
fn a_node_without_weight_gives_everything_up() {
    let mut members = members(&["", "", "", ""]);
    let before = place(&input(&members, 64, 3, None)).unwrap();
    members[1].weight = 0;
    let plan = place(&input(&members, 64, 3, Some(&before.placement))).unwrap();
    assert_eq!(loads(&plan.placement, 2), 0);
    assert_eq!(plan.moves, 48);
}

#[test]
fn what_cannot_be_placed_is_refused_by_name() {
    let two = members(&["", ""]);
    let refused = |input: &PlacementInput<'_>| place(input).unwrap_err();
    assert_eq!(
        refused(&input(&two, 16, 3, None)),
        PlacementError::TooFewMembers { members: 2, replication_factor: 3 }
    );
    let weightless = [member(1, "", 100), member(2, "", 0)];
    assert_eq!(
        refused(&input(&weightless, 16, 2, None)),
        PlacementError::TooFewMembers { members: 1, replication_factor: 2 }
    );
    assert_eq!(
        refused(&input(&[], 16, 1, None)),
        PlacementError::TooFewMembers { members: 0, replication_factor: 1 }
    );
    for partitions in [0, 3, 2048] {
        assert_eq!(
            refused(&input(&two, partitions, 1, None)),
            PlacementError::Partitions(partitions)
        );
    }
    assert_eq!(refused(&input(&two, 16, 0, None)), PlacementError::ReplicationFactor);
    let twice = [member(7, "a", 100), member(7, "b", 100)];
    assert_eq!(refused(&input(&twice, 16, 1, None)), PlacementError::RepeatedMember(7));
    let of_another = place(&input(&two, 8, 1, None)).unwrap().placement;
    assert_eq!(
        refused(&input(&two, 16, 1, Some(&of_another))),
        PlacementError::CurrentPartitions { current: 8, expected: 16 }
    );
    for load_factor in [0.9, f64::NAN, f64::INFINITY] {
        let wrong = PlacementInput { load_factor, ..input(&two, 16, 1, None) };
        assert!(matches!(refused(&wrong), PlacementError::LoadFactor(_)));
    }
}

#[test]
fn check_finds_each_planted_fault() {
    let members = members(&["a", "a", "b", "b", "c", "c"]);
    let input = input(&members, 16, 3, None);
    let good = place(&input).unwrap().placement;
    assert_eq!(check(&input, &good), Ok(()));
    let found = |plant: &dyn Fn(&mut Vec<Vec<u64>>)| {
        let mut bad = good.clone();
        plant(&mut bad.partitions);
        check(&input, &bad).unwrap_err()
    };
    let any = |found: Vec<Violation>, f: fn(&Violation) -> bool| {
        assert!(found.iter().any(f), "{found:?}");
    };
    any(found(&|p| p.truncate(15)), |v| matches!(v, Violation::Partitions { actual: 15, .. }));
    any(found(&|p| p[3].truncate(2)), |v| matches!(v, Violation::Replicas { partition: 3, .. }));
    any(found(&|p| p[3][1] = p[3][0]), |v| matches!(v, Violation::Repeated { partition: 3, .. }));
    any(found(&|p| p[3][1] = 99), |v| matches!(v, Violation::NoMember { node_id: 99, .. }));
    // Node 1 takes all that node 2 of its zone has.
    let greedy = found(&|p| {
        for id in p.iter_mut().flatten().filter(|id| **id == 2) {
            *id = 1;
        }
    });
    any(greedy.clone(), |v| matches!(v, Violation::OverCap { node_id: 1, .. }));
    any(greedy, |v| matches!(v, Violation::Balance { node_id: 2, .. }));
    // Two partitions trade zones: totals stay, the spread does not.
    let traded = found(&|p| {
        let of = |row: &[u64], ids: [u64; 2]| row.iter().position(|id| ids.contains(id)).unwrap();
        let q = (1..16)
            .find(|&q| {
                let a = p[0][of(&p[0], [1, 2])];
                let b = p[q][of(&p[q], [3, 4])];
                !p[q].contains(&a) && !p[0].contains(&b)
            })
            .unwrap();
        let (i, j) = (of(&p[0], [1, 2]), of(&p[q], [3, 4]));
        (p[0][i], p[q][j]) = (p[q][j], p[0][i]);
    });
    any(traded, |v| matches!(v, Violation::ZoneSpread { partition: 0, .. }));
    // All of zone a moves to zone b, where there is room for no more than the caps.
    any(
        found(&|p| {
            for row in p.iter_mut() {
                let b = if row.contains(&3) { 4 } else { 3 };
                for id in row.iter_mut().filter(|id| **id <= 2) {
                    *id = b;
                }
            }
        }),
        |v| matches!(v, Violation::ZoneTotal { .. }),
    );
    any(found(&|p| p.iter_mut().for_each(|row| row.sort())), |v| {
        matches!(v, Violation::Leaders { .. })
    });
    any(
        check(&PlacementInput { replication_factor: 7, ..input.clone() }, &good).unwrap_err(),
        |v| matches!(v, Violation::Input(PlacementError::TooFewMembers { .. })),
    );
}

const XXH3_CUSTOMER_42: u64 = 0xf409_25ac_7f7b_5e61;
const XXH3_EMPTY: u64 = 0x2d06_8005_38d3_94c2;
const EXPLANATION: &str = r#"16 partitions × 3 replicas = 48, on 4 nodes in 3 zones
12 of 48 replicas move, 4 partitions get another leader
zone "a": 14 replicas, by weight 10.7; 0 or 1 of each partition; its nodes are at their caps
  node 1: 14 replicas, by weight 10.7, at most 14; leads 5; gets 0, gives up 2
zone "b": 14 replicas, by weight 10.7; 0 or 1 of each partition; its nodes are at their caps
  node 2: 14 replicas, by weight 10.7, at most 14; leads 5; gets 0, gives up 2
zone "c": 20 replicas, by weight 26.7; 1 or 2 of each partition
  node 3: 8 replicas, by weight 10.7, at most 14; leads 2; gets 0, gives up 8
  node 4: 12 replicas, by weight 16.0, at most 16; leads 4; gets 12, gives up 0"#;
