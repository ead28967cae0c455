use std::collections::{BTreeMap, BTreeSet};

use crate::place::validated;
use crate::{Placement, PlacementError, PlacementInput};

/// An invariant that a placement breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("nothing can be placed: {0}")]
    Input(PlacementError),
    #[error("{actual} partitions are placed, expected {expected}")]
    Partitions { actual: usize, expected: usize },
    #[error("partition {partition} has {actual} replicas, expected {expected}")]
    Replicas { partition: usize, actual: usize, expected: usize },
    #[error("partition {partition} is on node {node_id} twice")]
    Repeated { partition: usize, node_id: u64 },
    #[error("partition {partition} is on node {node_id}, which is no member with a weight above 0")]
    NoMember { partition: usize, node_id: u64 },
    #[error("node {node_id} has {actual} replicas, over its cap of {most}")]
    OverCap { node_id: u64, actual: usize, most: usize },
    #[error("zone {zone:?} has {actual} replicas, expected {least} to {most} for the best spread")]
    ZoneTotal { zone: String, actual: usize, least: usize, most: usize },
    #[error(
        "partition {partition} has {actual} replicas in zone {zone:?}, expected {least} to {most}"
    )]
    ZoneSpread { partition: usize, zone: String, actual: usize, least: usize, most: usize },
    #[error("node {node_id} has {actual} replicas, expected {least} to {most}")]
    Balance { node_id: u64, actual: usize, least: usize, most: usize },
    #[error("node {node_id} leads {actual} partitions, expected {least} to {most}")]
    Leaders { node_id: u64, actual: usize, least: usize, most: usize },
}

/// Recomputes every invariant of a placement at rest from the input alone, by other ways than
/// the planner's. `input.current` does not matter here.
pub fn check(input: &PlacementInput<'_>, placement: &Placement) -> Result<(), Vec<Violation>> {
    let checked = PlacementInput { current: None, ..input.clone() };
    validated(&checked).map_err(|e| vec![Violation::Input(e)])?;
    let found = shape(input, placement);
    let found = if found.is_empty() {
        totals(input, placement)
    } else {
        // Sums over a placement of the wrong shape would say nothing.
        found
    };
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn shape(input: &PlacementInput<'_>, placement: &Placement) -> Vec<Violation> {
    let mut found = Vec::new();
    let (actual, expected) = (placement.partitions.len(), input.partitions as usize);
    if actual != expected {
        found.push(Violation::Partitions { actual, expected });
    }
    for (partition, ids) in placement.partitions.iter().enumerate() {
        let (actual, expected) = (ids.len(), input.replication_factor as usize);
        if actual != expected {
            found.push(Violation::Replicas { partition, actual, expected });
        }
        let mut seen = BTreeSet::new();
        for &node_id in ids {
            if !seen.insert(node_id) {
                found.push(Violation::Repeated { partition, node_id });
            }
            let member = input.members.iter().find(|m| m.node_id == node_id);
            if member.is_none_or(|m| m.weight == 0) {
                found.push(Violation::NoMember { partition, node_id });
            }
        }
    }
    found
}

#[derive(Default)]
struct Node<'a> {
    zone: &'a str,
    share: f64,
    cap: f64,
    replicas: usize,
    leads: usize,
}

#[derive(Default)]
struct Zone {
    share: f64,
    room: f64,
    replicas: usize,
}

fn totals(input: &PlacementInput<'_>, placement: &Placement) -> Vec<Violation> {
    let partitions = f64::from(input.partitions);
    let total = partitions * f64::from(input.replication_factor);
    let members: Vec<_> = input.members.iter().filter(|m| m.weight > 0).collect();
    let shares = proportional(
        total,
        &members.iter().map(|m| (f64::from(m.weight), 0.0, partitions)).collect::<Vec<_>>(),
    );
    let mut nodes: BTreeMap<u64, Node<'_>> = BTreeMap::new();
    let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
    for (m, share) in members.iter().zip(shares) {
        let cap = rounded_up(input.load_factor * share).min(partitions);
        let zone = zones.entry(&m.zone).or_default();
        zone.share += share;
        zone.room += cap;
        nodes.insert(m.node_id, Node { zone: &m.zone, share, cap, ..Node::default() });
    }
    for ids in &placement.partitions {
        for (i, id) in ids.iter().enumerate() {
            let Some(node) = nodes.get_mut(id) else {
                continue;
            };
            node.replicas += 1;
            node.leads += usize::from(i == 0);
            if let Some(zone) = zones.get_mut(node.zone) {
                zone.replicas += 1;
            }
        }
    }

    let mut found = Vec::new();
    let bounds = zone_bounds(&zones, partitions, total);
    spread(placement, &nodes, &zones, &bounds, &mut found);
    balance(&nodes, &zones, &bounds, total, &mut found);
    let replication_factor = input.replication_factor as usize;
    for (&node_id, node) in &nodes {
        let (least, most) =
            (node.replicas / replication_factor, node.replicas.div_ceil(replication_factor));
        if !(least..=most).contains(&node.leads) {
            found.push(Violation::Leaders { node_id, actual: node.leads, least, most });
        }
    }
    found
}

/// By zone, the least and the most replicas of a best spread: one more of a partition in a zone
/// only where every other zone has as many of it, or no room.
fn zone_bounds(
    zones: &BTreeMap<&str, Zone>,
    partitions: f64,
    total: f64,
) -> BTreeMap<String, (f64, f64)> {
    // Pour in one replica of every partition for every zone until all are placed.
    let mut level = 0.0;
    let poured =
        |level: f64| -> f64 { zones.values().map(|z| z.room.min(level * partitions)).sum() };
    while poured(level + 1.0) < total {
        level += 1.0;
    }
    zones
        .iter()
        .map(|(&name, z)| {
            (
                name.to_owned(),
                (z.room.min(level * partitions), z.room.min((level + 1.0) * partitions)),
            )
        })
        .collect()
}

fn spread(
    placement: &Placement,
    nodes: &BTreeMap<u64, Node<'_>>,
    zones: &BTreeMap<&str, Zone>,
    bounds: &BTreeMap<String, (f64, f64)>,
    found: &mut Vec<Violation>,
) {
    let partitions = placement.partitions.len();
    for (&name, zone) in zones {
        let (least, most) = bounds[name];
        if (zone.replicas as f64) < least || zone.replicas as f64 > most {
            found.push(Violation::ZoneTotal {
                zone: name.to_owned(),
                actual: zone.replicas,
                least: least as usize,
                most: most as usize,
            });
        }
    }
    for (partition, ids) in placement.partitions.iter().enumerate() {
        for (&name, zone) in zones {
            let inside = |id: &&u64| nodes.get(id).is_some_and(|n| n.zone == name);
            let actual = ids.iter().filter(inside).count();
            let least = zone.replicas / partitions;
            let most = zone.replicas.div_ceil(partitions);
            if !(least..=most).contains(&actual) {
                found.push(Violation::ZoneSpread {
                    partition,
                    zone: name.to_owned(),
                    actual,
                    least,
                    most,
                });
            }
        }
    }
}

fn balance(
    nodes: &BTreeMap<u64, Node<'_>>,
    zones: &BTreeMap<&str, Zone>,
    bounds: &BTreeMap<String, (f64, f64)>,
    total: f64,
    found: &mut Vec<Violation>,
) {
    let names: Vec<&str> = zones.keys().copied().collect();
    let items: Vec<_> =
        names.iter().map(|&name| (zones[name].share, bounds[name].0, bounds[name].1)).collect();
    for (name, zone_total) in names.iter().zip(proportional(total, &items)) {
        let members: Vec<_> = nodes.iter().filter(|(_, n)| n.zone == *name).collect();
        let items: Vec<_> = members.iter().map(|(_, n)| (n.share, 0.0, n.cap)).collect();
        for (&(&node_id, node), forced) in members.iter().zip(proportional(zone_total, &items)) {
            let actual = node.replicas;
            if actual as f64 > node.cap {
                let most = node.cap as usize;
                found.push(Violation::OverCap { node_id, actual, most });
            }
            let least = rounded_down(0.9 * node.share).min(rounded_down(forced)) as usize;
            let most = rounded_up(1.1 * node.share).max(rounded_up(forced)) as usize;
            if !(least..=most).contains(&actual) {
                found.push(Violation::Balance { node_id, actual, least, most });
            }
        }
    }
}

/// A whole number that arithmetic put a hair off is that number.
fn rounded_down(x: f64) -> f64 {
    (x + 1e-6).floor()
}

fn rounded_up(x: f64) -> f64 {
    (x - 1e-6).ceil()
}

/// Shares `total` out by weight, within each one's least and most. Items are (weight, least,
/// most). Goes from one bound that is met to the next, where the planner halves an interval.
fn proportional(total: f64, items: &[(f64, f64, f64)]) -> Vec<f64> {
    let mut factors: Vec<f64> =
        items.iter().flat_map(|&(w, least, most)| [least / w, most / w]).collect();
    factors.sort_by(f64::total_cmp);
    let at = |factor: f64| items.iter().map(move |&(w, l, m)| (factor * w).clamp(l, m));
    let sum = |factor: f64| at(factor).sum::<f64>();
    // Between two neighbours the sum rises in a straight line.
    let after = factors.partition_point(|&f| sum(f) < total);
    let factor = match (after.checked_sub(1).map(|i| factors[i]), factors.get(after)) {
        (Some(low), Some(&high)) => {
            let (below, above) = (sum(low), sum(high));
            low + (high - low) * (total - below) / (above - below)
        }
        (low, high) => high.copied().or(low).unwrap_or_default(),
    };
    at(factor).collect()
}
