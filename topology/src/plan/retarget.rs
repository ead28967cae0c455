//! The intent, when members change.

use super::view::{Nodes, View};
use super::{MemberState, PlanInput, Reach, Role};
use crate::{Explained, Member, Placement, PlacementError, PlacementInput, check, place};

/// The target for the members as they are now: without those that drain or are lost.
///
/// A target that still holds stays as it is, so this may be asked at any time. Otherwise the new
/// one costs as few new copies as there can be had, then as few needless ones: replicas that are
/// voters stay, and what is on its way is used, also when a drain is taken back.
///
/// # Errors
/// [`PlacementError`]: mostly too few members. The current target is kept then.
pub fn retarget(input: &PlanInput<'_>) -> Result<Explained, PlacementError> {
    let members: Vec<Member> = input
        .members
        .iter()
        .filter(|m| m.state == MemberState::Active && m.reach != Reach::Down { lost: true })
        .map(|m| Member { node_id: m.node_id, zone: m.zone.clone(), weight: m.weight })
        .collect();
    let usable = |n: &u64| members.iter().any(|m| m.node_id == *n && m.weight > 0);
    let placement = PlacementInput {
        members: &members,
        partitions: u32::try_from(input.partitions.len()).unwrap_or(u32::MAX),
        replication_factor: input.replication_factor,
        load_factor: input.load_factor,
        current: None,
    };
    let target = Placement { partitions: input.target.to_vec() };
    if check(&placement, &target).is_ok() {
        return Ok(Explained {
            placement: target,
            explanation: vec!["the target holds for these members, and stays".to_owned()],
            moves: 0,
        });
    }
    let nodes = Nodes::new(input.members);
    let views: Vec<View<'_>> = (0u32..)
        .zip(input.partitions)
        .map(|(p, fact)| {
            let wanted = input.target.get(p as usize).map_or(&[][..], Vec::as_slice);
            View::new(p, fact, wanted, input.replication_factor, &nodes)
        })
        .collect();
    // No one rule is best in every case (a move that goes on, a drain that is taken back), so the
    // placements that start from each are compared by what they cost.
    let mut best: Option<(Cost, Explained)> = None;
    for prefer in [Prefer::Voters, Prefer::Copies, Prefer::Target] {
        let rows = views.iter().map(|v| current(v, prefer, &usable)).collect();
        let current = Placement { partitions: rows };
        let found = place(&PlacementInput { current: Some(&current), ..placement.clone() })?;
        let cost = cost(&views, &found.placement);
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, found));
        }
    }
    best.map(|(_, found)| found).ok_or(PlacementError::NotFound)
}

/// What a partition keeps first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefer {
    /// Its voters, then copies on their way to nodes of the target.
    Voters,
    /// Nodes of the target that have a copy already, then its voters.
    Copies,
    /// Nodes of the target.
    Target,
}

/// The nodes that hold the partition, or are about to: at most as many as it has replicas, the
/// preferred leader first.
fn current(v: &View<'_>, prefer: Prefer, usable: &impl Fn(&u64) -> bool) -> Vec<u64> {
    let alive = |n: &u64| v.replicas().any(|r| r.node_id == *n && !v.is_dead(r));
    let voters: Vec<u64> = v.voters().map(|r| r.node_id).collect();
    let copies: Vec<u64> = v.wanted.iter().copied().filter(alive).collect();
    let target = v.wanted.to_vec();
    let order = match prefer {
        _ if voters.is_empty() => vec![target],
        Prefer::Voters => vec![voters, copies],
        Prefer::Copies => vec![copies, voters],
        Prefer::Target => vec![target, voters],
    };
    let mut row: Vec<u64> = Vec::with_capacity(v.replication_factor);
    for n in order.into_iter().flatten().filter(usable) {
        if row.len() < v.replication_factor && !row.contains(&n) {
            row.push(n);
        }
    }
    // The leader of the target, or of the fact, stays in front.
    let led = v.leader().map(|r| r.node_id);
    let leads = v.wanted.first().copied().filter(|n| row.contains(n)).or(led);
    row.sort_by_key(|n| Some(*n) != leads);
    row
}

/// (copies that must be made from nothing, copies on their way that are dropped, voters that go)
type Cost = (usize, usize, usize);

fn cost(views: &[View<'_>], target: &Placement) -> Cost {
    let (mut made, mut dropped, mut leave) = (0, 0, 0);
    for (v, row) in views.iter().zip(&target.partitions) {
        let useful =
            |n: u64| v.replicas().any(|r| r.node_id == n && r.role != Role::Left && !v.is_dead(r));
        made += row.iter().filter(|n| !useful(**n)).count();
        for r in v.replicas().filter(|r| !v.is_dead(r) && !row.contains(&r.node_id)) {
            match r.role {
                Role::Recorded | Role::Learner => dropped += 1,
                Role::Voter | Role::Entering => leave += 1,
                Role::Leaving | Role::Left => {}
            }
        }
    }
    (made, dropped, leave)
}
