//! Whether a drain can end, before anything changes.

use std::collections::BTreeMap;

use super::view::{Nodes, View};
use super::{Health, MemberState, PlanInput, Reach, Role, retarget};
use crate::PlacementError;

/// Why a drain could not end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DrainRefusal {
    #[error("node {0} is no member: name one that the list of members has")]
    NoMember(u64),
    #[error(
        "{left} nodes would be left for {replication_factor} replicas of each partition: add nodes first"
    )]
    TooFewNodes { left: usize, replication_factor: u32 },
    #[error(
        "node {node_id} would get {needed} bytes and has room for {free}: free some or add nodes first"
    )]
    TooLittleDisk { node_id: u64, needed: u64, free: u64 },
    #[error(
        "partition {partition} has no quorum of healthy voters, so none of its replicas can move: bring its nodes back first"
    )]
    NoQuorum { partition: u32 },
    #[error(
        "partition {partition} has no leader that reports, so its replicas are not known: try again when it has"
    )]
    NotKnown { partition: u32 },
    #[error(transparent)]
    Placement(PlacementError),
}

/// Whether these nodes could be drained, with those that drain already. All reasons against it.
///
/// # Errors
/// Each [`DrainRefusal`] that was found, never an empty list.
pub fn can_drain(input: &PlanInput<'_>, node_ids: &[u64]) -> Result<(), Vec<DrainRefusal>> {
    let mut refusals: Vec<DrainRefusal> = node_ids
        .iter()
        .filter(|id| input.members.iter().all(|m| m.node_id != **id))
        .map(|&id| DrainRefusal::NoMember(id))
        .collect();
    let mut members = input.members.to_vec();
    for m in members.iter_mut().filter(|m| node_ids.contains(&m.node_id)) {
        m.state = MemberState::Draining;
    }
    let after = PlanInput { members: &members, ..input.clone() };
    let nodes = Nodes::new(&members);
    let views: Vec<View<'_>> = (0u32..)
        .zip(input.partitions)
        .map(|(p, fact)| View::new(p, fact, &[], input.replication_factor, &nodes))
        .collect();
    for v in views.iter().filter(|v| v.replicas().any(|r| node_ids.contains(&r.node_id))) {
        let partition = v.partition;
        if !v.fact.is_known {
            refusals.push(DrainRefusal::NotKnown { partition });
        } else if v.slack() < 0 {
            refusals.push(DrainRefusal::NoQuorum { partition });
        }
    }
    match retarget(&after) {
        Ok(found) => refusals.extend(too_little_disk(&views, &found.placement.partitions)),
        Err(PlacementError::TooFewMembers { members, replication_factor }) => {
            refusals.push(DrainRefusal::TooFewNodes { left: members, replication_factor });
        }
        Err(other) => refusals.push(DrainRefusal::Placement(other)),
    }
    if refusals.is_empty() { Ok(()) } else { Err(refusals) }
}

/// What the target would bring to each node, against what it has room for.
fn too_little_disk(views: &[View<'_>], target: &[Vec<u64>]) -> Vec<DrainRefusal> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for (v, row) in views.iter().zip(target) {
        let has = |n: u64| {
            v.replicas().any(|r| {
                r.node_id == n
                    && (matches!(r.role, Role::Voter | Role::Entering)
                        || r.role == Role::Learner && r.health == Health::Ready)
            })
        };
        for &n in row.iter().filter(|n| !has(**n)) {
            let bytes = needed.entry(n).or_default();
            *bytes = bytes.saturating_add(v.fact.bytes);
        }
    }
    let nodes = views.first().map(|v| v.nodes);
    needed
        .into_iter()
        .filter_map(|(node_id, needed)| {
            let m = nodes.and_then(|nodes| nodes.get(node_id))?;
            let free = m.free_bytes.filter(|free| *free < needed && m.reach == Reach::Up)?;
            Some(DrainRefusal::TooLittleDisk { node_id, needed, free })
        })
        .collect()
}
