//! A second planner that shares nothing with the product's: it buys the best placement there is
//! on a network of unit costs, one replica after the other. Slow, so the clusters are small.

use proptest::prelude::*;

use super::properties::{SWAPS_MOST, cluster};
use super::*;

/// Least-cost flow by Bellman and Ford.
#[derive(Default)]
struct Network {
    /// (from, to, room, cost); an edge and its way back are neighbours.
    edges: Vec<(usize, usize, i64, i64)>,
    vertices: usize,
}

impl Network {
    fn vertex(&mut self) -> usize {
        self.vertices += 1;
        self.vertices - 1
    }

    fn edge(&mut self, from: usize, to: usize, room: i64, cost: i64) {
        self.edges.push((from, to, room, cost));
        self.edges.push((to, from, 0, -cost));
    }

    /// (flow, cost)
    fn fill(&mut self, source: usize, sink: usize) -> (i64, i64) {
        let (mut flow, mut total) = (0, 0);
        loop {
            let mut costs = vec![i64::MAX; self.vertices];
            let mut via = vec![usize::MAX; self.vertices];
            costs[source] = 0;
            let mut changed = true;
            while changed {
                changed = false;
                for (e, &(from, to, room, cost)) in self.edges.iter().enumerate() {
                    if room > 0 && costs[from] < i64::MAX && costs[from] + cost < costs[to] {
                        costs[to] = costs[from] + cost;
                        via[to] = e;
                        changed = true;
                    }
                }
            }
            if costs[sink] == i64::MAX {
                return (flow, total);
            }
            let mut at = sink;
            while at != source {
                let e = via[at];
                self.edges[e].2 -= 1;
                self.edges[e ^ 1].2 += 1;
                at = self.edges[e].0;
            }
            flow += 1;
            total += costs[sink];
        }
    }
}

/// One step worse in spread is worse than any balance.
const SPREAD_COST: i64 = 100_000_000;
/// And one replica worse in balance than any moves.
const BALANCE_COST: i64 = 10_000;

struct Bounds {
    least: i64,
    most: i64,
    cap: i64,
}

/// Shares handed out in tiny equal rounds to those that are not full.
fn bounds(input: &PlacementInput<'_>) -> Vec<Bounds> {
    let total = f64::from(input.partitions * input.replication_factor);
    let most = f64::from(input.partitions);
    let mut shares = vec![0.0; input.members.len()];
    let mut left = total;
    while left > 1e-9 {
        let open: f64 = (0..shares.len())
            .filter(|&i| shares[i] < most - 1e-12)
            .map(|i| f64::from(input.members[i].weight))
            .sum();
        let before = left;
        for (share, m) in shares.iter_mut().zip(input.members) {
            let more = (before * f64::from(m.weight) / open).min(most - *share);
            *share += more;
            left -= more;
        }
    }
    shares
        .iter()
        .map(|s| Bounds {
            least: (0.9 * s + 1e-6).floor() as i64,
            most: (1.1 * s - 1e-6).ceil() as i64,
            cap: ((input.load_factor * s - 1e-6).ceil() as i64).min(i64::from(input.partitions)),
        })
        .collect()
}

fn best_cost(input: &PlacementInput<'_>) -> i64 {
    let mut net = Network::default();
    let (source, sink) = (net.vertex(), net.vertex());
    let zones: std::collections::BTreeSet<&str> =
        input.members.iter().map(|m| m.zone.as_str()).collect();
    let nodes: Vec<usize> = input.members.iter().map(|_| net.vertex()).collect();
    let mut base = 0;
    for (&node, b) in nodes.iter().zip(bounds(input)) {
        base += BALANCE_COST * b.least;
        net.edge(node, sink, b.least.min(b.cap), -BALANCE_COST);
        net.edge(node, sink, b.most.min(b.cap) - b.least.min(b.cap), 0);
        net.edge(node, sink, (b.cap - b.most).max(0), BALANCE_COST);
    }
    for partition in 0..input.partitions as usize {
        let p = net.vertex();
        net.edge(source, p, i64::from(input.replication_factor), 0);
        for zone in &zones {
            let in_zone = net.vertex();
            for nth in 0..i64::from(input.replication_factor) {
                net.edge(p, in_zone, 1, SPREAD_COST * (2 * nth + 1));
            }
            for (m, &node) in input.members.iter().zip(&nodes) {
                if m.zone == *zone && m.weight > 0 {
                    let moves = input
                        .current
                        .is_some_and(|c| !c.partitions[partition].contains(&m.node_id));
                    net.edge(in_zone, node, 1, i64::from(moves));
                }
            }
        }
    }
    let (flow, cost) = net.fill(source, sink);
    assert_eq!(flow, i64::from(input.partitions * input.replication_factor));
    cost + base
}

fn cost(input: &PlacementInput<'_>, placement: &Placement) -> i64 {
    let mut cost = 0;
    for ids in &placement.partitions {
        let mut zones = std::collections::BTreeMap::<&str, i64>::new();
        for id in ids {
            let member = input.members.iter().find(|m| m.node_id == *id).unwrap();
            *zones.entry(&member.zone).or_default() += 1;
        }
        cost += SPREAD_COST * zones.values().map(|n| n * n).sum::<i64>();
    }
    for (m, b) in input.members.iter().zip(bounds(input)) {
        let load = loads(placement, m.node_id) as i64;
        assert!(load <= b.cap);
        cost += BALANCE_COST * ((b.least - load).max(0) + (load - b.most).max(0));
    }
    cost
}

/// The fewest moves to a placement that is spread and balanced as well as this one.
pub(crate) fn least_moves(input: &PlacementInput<'_>, placement: &Placement) -> usize {
    (best_cost(input) - cost(input, placement)) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No placement is spread better, and none of those spread as well is balanced better.
    #[test]
    fn the_naive_planner_finds_nothing_better(
        (members, partitions, replication_factor, load_factor) in cluster(7, 4, 4),
    ) {
        let input = PlacementInput {
            load_factor,
            ..input(&members, partitions, replication_factor, None)
        };
        let plan = place(&input).unwrap();
        prop_assert_eq!(cost(&input, &plan.placement), best_cost(&input));
    }

    /// How much must move for the best spread and balance is known.
    #[test]
    fn the_naive_planner_moves_little_less(
        (members, partitions, first_factor, _) in cluster(7, 4, 3),
        (mut others, _, other_factor, _) in cluster(7, 4, 3),
        zone_stays in any::<bool>(),
    ) {
        let replication_factor = first_factor.min(other_factor);
        let first = input(&members, partitions, replication_factor, None);
        let before = place(&first).unwrap().placement;
        for (other, m) in others.iter_mut().zip(&members).filter(|_| zone_stays) {
            other.zone.clone_from(&m.zone);
        }
        let input = input(&others, partitions, replication_factor, Some(&before));
        let plan = place(&input).unwrap();
        let best = best_cost(&input);
        let cost = cost(&input, &plan.placement) + plan.moves as i64;
        let slack = (partitions * replication_factor) as usize / 10 + SWAPS_MOST;
        prop_assert!(cost <= best + slack as i64, "{cost} against {best}");
    }
}
