use std::collections::{BTreeMap, BTreeSet};

use crate::fit::Fit;
use crate::leaders::leaders;
use crate::quotas::{Node, Quotas, quotas};
use crate::ring::Ring;
use crate::{PARTITIONS_MAX, Placement, PlacementInput};

/// A placement and the reasons for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub placement: Placement,
    /// Lines that a person can read.
    pub explanation: Vec<String>,
    /// Replicas on nodes that did not have them (0 without a current placement).
    pub moves: usize,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlacementError {
    #[error("partitions are {0}: expected a power of two, at most {PARTITIONS_MAX}")]
    Partitions(u32),
    #[error("the replication factor is 0: expected at least 1")]
    ReplicationFactor,
    #[error("the load factor is {0}: expected a number of at least 1, usually 1.25")]
    LoadFactor(f64),
    #[error("node {0} is in the list of members twice: expected each once")]
    RepeatedMember(u64),
    #[error(
        "{replication_factor} replicas need as many members with a weight above 0, and there are {members}: add nodes or lower the replication factor"
    )]
    TooFewMembers { members: usize, replication_factor: u32 },
    #[error("the current placement has {current} partitions, and {expected} are to be placed")]
    CurrentPartitions { current: usize, expected: u32 },
    /// A fault of this crate.
    #[error(
        "no placement was found: please report this with the members and the current placement"
    )]
    NotFound,
}

/// The members that can hold something, ascending, and the zones by name.
pub(crate) fn validated(
    input: &PlacementInput<'_>,
) -> Result<(Vec<Node>, Vec<String>), PlacementError> {
    if !input.partitions.is_power_of_two() || input.partitions > PARTITIONS_MAX {
        return Err(PlacementError::Partitions(input.partitions));
    }
    if input.replication_factor == 0 {
        return Err(PlacementError::ReplicationFactor);
    }
    if !(input.load_factor >= 1.0 && input.load_factor.is_finite()) {
        return Err(PlacementError::LoadFactor(input.load_factor));
    }
    if let Some(current) = input.current
        && current.partitions.len() != input.partitions as usize
    {
        return Err(PlacementError::CurrentPartitions {
            current: current.partitions.len(),
            expected: input.partitions,
        });
    }
    let mut ids = BTreeSet::new();
    for m in input.members {
        if !ids.insert(m.node_id) {
            return Err(PlacementError::RepeatedMember(m.node_id));
        }
    }
    let usable = || input.members.iter().filter(|m| m.weight > 0);
    let zones: BTreeSet<&str> = usable().map(|m| m.zone.as_str()).collect();
    let zones: Vec<String> = zones.into_iter().map(String::from).collect();
    let mut nodes: Vec<Node> = usable()
        .map(|m| Node {
            id: m.node_id,
            zone: zones.binary_search(&m.zone).unwrap_or_default(),
            weight: m.weight,
        })
        .collect();
    nodes.sort_by_key(|n| n.id);
    if nodes.len() < input.replication_factor as usize {
        return Err(PlacementError::TooFewMembers {
            members: nodes.len(),
            replication_factor: input.replication_factor,
        });
    }
    Ok((nodes, zones))
}

/// Plans which nodes hold each partition, and which of them leads it. The same members,
/// settings and current placement give the same plan, on any machine.
///
/// The rules, the earlier ones stronger:
/// 1. `replication_factor` different nodes for each partition, none above its cap: load factor ×
///    its weighted share, rounded up.
/// 2. Each partition spread over as many zones as the caps allow.
/// 3. Each node within 10 % of its weighted share, rounded outwards; further off only as far as
///    the zones force it.
/// 4. Each node leads its replicas / `replication_factor` partitions, rounded either way.
/// 5. What is in the current placement stays; a chain of swaps where nothing else fits is the
///    only move beyond those that the first three rules ask for.
pub fn place(input: &PlacementInput<'_>) -> Result<Explained, PlacementError> {
    let (nodes, zones) = validated(input)?;
    let partitions = input.partitions as usize;
    let replication_factor = input.replication_factor as usize;
    let current = Current::new(input, &nodes);

    let mut loads = vec![0; nodes.len()];
    for &n in current.rows.iter().flatten() {
        loads[n] += 1;
    }
    let quotas =
        quotas(&nodes, zones.len(), partitions, replication_factor, input.load_factor, &loads);
    let by_zone = zone_counts(&nodes, &quotas, &current.rows, &loads, replication_factor)
        .ok_or(PlacementError::NotFound)?;
    let mut rows = vec![Vec::with_capacity(replication_factor); partitions];
    for (z, counts) in by_zone.iter().enumerate() {
        fill_zone(z, counts, &nodes, &quotas, &current.rows, &mut rows)
            .ok_or(PlacementError::NotFound)?;
    }
    let leaders = leaders(&rows, &current.leaders, nodes.len(), replication_factor);

    let placement = Placement {
        partitions: rows
            .iter()
            .zip(&leaders)
            .map(|(row, &leader)| {
                let mut ids: Vec<u64> = row.iter().map(|&n| nodes[n].id).collect();
                ids.sort_by_key(|&id| (id != nodes[leader].id, id));
                ids
            })
            .collect(),
    };
    let explanation = Report {
        input,
        nodes: &nodes,
        zones: &zones,
        quotas: &quotas,
        by_zone: &by_zone,
        current: &current,
        rows: &rows,
        leaders: &leaders,
    };
    let moves = explanation.moves();
    Ok(Explained { explanation: explanation.lines(), placement, moves })
}

/// The current placement in terms of the nodes that may stay.
struct Current {
    known: bool,
    rows: Vec<Vec<usize>>,
    leaders: Vec<Option<usize>>,
}

impl Current {
    fn new(input: &PlacementInput<'_>, nodes: &[Node]) -> Current {
        let partitions = input.partitions as usize;
        let mut current = Current {
            known: input.current.is_some(),
            rows: vec![Vec::new(); partitions],
            leaders: vec![None; partitions],
        };
        let index = |id: u64| nodes.binary_search_by_key(&id, |n| n.id).ok();
        for (p, ids) in input.current.iter().flat_map(|c| &c.partitions).enumerate() {
            current.leaders[p] = ids.first().and_then(|&id| index(id));
            for n in ids.iter().filter_map(|&id| index(id)) {
                if !current.rows[p].contains(&n) {
                    current.rows[p].push(n);
                }
            }
        }
        current
    }
}

/// By zone, by partition: how many replicas. Each zone's total is shared out evenly, so what
/// remains to be chosen is who gets the one that is left over.
fn zone_counts(
    nodes: &[Node],
    quotas: &Quotas,
    current: &[Vec<usize>],
    loads: &[usize],
    replication_factor: usize,
) -> Option<Vec<Vec<usize>>> {
    let partitions = current.len();
    let bases: Vec<usize> = quotas.zones.iter().map(|total| total / partitions).collect();
    let extras: Vec<usize> = quotas.zones.iter().map(|total| total % partitions).collect();
    let demand = replication_factor.checked_sub(bases.iter().sum())?;
    let kept: Vec<Vec<usize>> = current
        .iter()
        .map(|row| {
            let mut counts = BTreeMap::new();
            for &n in row {
                *counts.entry(nodes[n].zone).or_insert(0) += 1;
            }
            counts
                .into_iter()
                .filter(|&(z, count)| extras[z] > 0 && count > bases[z])
                .map(|(z, _)| z)
                .collect()
        })
        .collect();
    let ids: Vec<u64> = nodes.iter().map(|n| n.id).collect();
    let ring = Ring::new(&ids);
    let rows = Fit { demands: &vec![demand; partitions], quotas: &extras, kept: &kept }.fill(
        |p| ring.walk(p).map(|n| nodes[n].zone),
        // Where one of the zone's nodes has too much anyway.
        |p, z| current[p].iter().any(|&n| nodes[n].zone == z && loads[n] > quotas.nodes[n]),
    )?;
    let mut counts: Vec<Vec<usize>> = bases.iter().map(|&base| vec![base; partitions]).collect();
    for (p, row) in rows.iter().enumerate() {
        for &z in row {
            counts[z][p] += 1;
        }
    }
    Some(counts)
}

/// Adds zone `z`'s nodes to the rows.
fn fill_zone(
    z: usize,
    counts: &[usize],
    nodes: &[Node],
    quotas: &Quotas,
    current: &[Vec<usize>],
    rows: &mut [Vec<usize>],
) -> Option<()> {
    let in_zone: Vec<usize> = (0..nodes.len()).filter(|&n| nodes[n].zone == z).collect();
    let ids: Vec<u64> = in_zone.iter().map(|&n| nodes[n].id).collect();
    let ring = Ring::new(&ids);
    let quotas: Vec<usize> = in_zone.iter().map(|&n| quotas.nodes[n]).collect();
    let kept: Vec<Vec<usize>> = current
        .iter()
        .map(|row| row.iter().filter_map(|n| in_zone.binary_search(n).ok()).collect())
        .collect();
    let filled = Fit { demands: counts, quotas: &quotas, kept: &kept }
        .fill(|p| ring.walk(p), |_, _| false)?;
    for (row, columns) in rows.iter_mut().zip(filled) {
        row.extend(columns.into_iter().map(|c| in_zone[c]));
    }
    Some(())
}

/// What a person wants to know of a plan.
struct Report<'a> {
    input: &'a PlacementInput<'a>,
    nodes: &'a [Node],
    zones: &'a [String],
    quotas: &'a Quotas,
    by_zone: &'a [Vec<usize>],
    current: &'a Current,
    rows: &'a [Vec<usize>],
    leaders: &'a [usize],
}

impl Report<'_> {
    fn moves(&self) -> usize {
        if !self.current.known {
            return 0;
        }
        let before = &self.current.rows;
        (self.rows.iter().zip(before))
            .map(|(row, before)| row.iter().filter(|&n| !before.contains(n)).count())
            .sum()
    }

    fn lines(&self) -> Vec<String> {
        let total = self.rows.len() * self.input.replication_factor as usize;
        let mut lines = vec![format!(
            "{} partitions × {} replicas = {total}, on {} nodes in {} zones",
            self.rows.len(),
            self.input.replication_factor,
            self.nodes.len(),
            self.zones.len(),
        )];
        if self.current.known {
            let led = self.current.leaders.iter().zip(self.leaders);
            lines.push(format!(
                "{} of {total} replicas move, {} partitions get another leader",
                self.moves(),
                led.filter(|(before, leader)| **before != Some(**leader)).count(),
            ));
        }
        let nodes = self.node_lines();
        for (z, name) in self.zones.iter().enumerate() {
            lines.push(self.zone_line(z, name));
            let members = (0..nodes.len()).filter(|&n| self.nodes[n].zone == z);
            lines.extend(members.map(|n| nodes[n].clone()));
        }
        lines
    }

    fn zone_line(&self, z: usize, name: &str) -> String {
        let members = || (0..self.nodes.len()).filter(|&n| self.nodes[n].zone == z);
        let share: f64 = members().map(|n| self.quotas.shares[n]).sum();
        let room: usize = members().map(|n| self.quotas.caps[n]).sum();
        let counts = &self.by_zone[z];
        let least = counts.iter().min().copied().unwrap_or_default();
        let most = counts.iter().max().copied().unwrap_or_default();
        let each = if least == most { format!("{least}") } else { format!("{least} or {most}") };
        let full = if self.quotas.zones[z] == room && least < most {
            "; its nodes are at their caps"
        } else {
            ""
        };
        format!(
            "zone {name:?}: {} replicas, by weight {share:.1}; {each} of each partition{full}",
            self.quotas.zones[z],
        )
    }

    fn node_lines(&self) -> Vec<String> {
        let mut before = vec![0; self.nodes.len()];
        let mut stay = vec![0; self.nodes.len()];
        let mut leads = vec![0; self.nodes.len()];
        for (p, row) in self.rows.iter().enumerate() {
            leads[self.leaders[p]] += 1;
            for &n in &self.current.rows[p] {
                before[n] += 1;
                stay[n] += usize::from(row.contains(&n));
            }
        }
        (self.nodes.iter().enumerate())
            .map(|(n, node)| {
                let replicas = self.quotas.nodes[n];
                let changes = if self.current.known {
                    format!("; gets {}, gives up {}", replicas - stay[n], before[n] - stay[n])
                } else {
                    String::new()
                };
                format!(
                    "  node {}: {replicas} replicas, by weight {:.1}, at most {}; leads {}{changes}",
                    node.id, self.quotas.shares[n], self.quotas.caps[n], leads[n],
                )
            })
            .collect()
    }
}
