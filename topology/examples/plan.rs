//! How long planning takes: `cargo run --release -p ringfold-topology --example plan`.
#![allow(clippy::print_stdout)] // its purpose

use std::time::Instant;

use ringfold_topology::plan::{
    Health, Limits, MemberState, PartitionFact, PlanInput, PlanMember, Reach, ReplicaFact, Role,
    plan, retarget,
};
use ringfold_topology::{
    LOAD_FACTOR, Member, NORMAL_WEIGHT, Placement, PlacementError, PlacementInput, place,
};

fn timed(
    what: &str,
    members: &[Member],
    current: Option<&Placement>,
) -> Result<Placement, PlacementError> {
    let start = Instant::now();
    let plan = place(&PlacementInput {
        members,
        partitions: 1024,
        replication_factor: 3,
        load_factor: LOAD_FACTOR,
        current,
    })?;
    println!("{what:<40} {:>8.1} ms, {} moves", start.elapsed().as_secs_f64() * 1e3, plan.moves);
    Ok(plan.placement)
}

/// A node drains: the new target, and the first steps towards it.
fn timed_steps(members: &[Member], placed: &Placement) -> Result<(), PlacementError> {
    let mut nodes: Vec<PlanMember> = members
        .iter()
        .map(|m| PlanMember {
            node_id: m.node_id,
            zone: m.zone.clone(),
            weight: m.weight,
            state: MemberState::Active,
            reach: Reach::Up,
            free_bytes: None,
            may_lead: true,
        })
        .collect();
    nodes[1].state = MemberState::Draining;
    let voter = |(replica_id, &node_id): (u64, &u64)| ReplicaFact {
        replica_id,
        node_id,
        role: Role::Voter,
        health: Health::Ready,
        is_recorded: true,
    };
    let partitions: Vec<PartitionFact> = placed
        .partitions
        .iter()
        .map(|row| PartitionFact {
            replicas: (1..).zip(row).map(voter).collect(),
            leader: Some(1),
            is_known: true,
            bytes: 1 << 30,
            ..PartitionFact::default()
        })
        .collect();
    let input = |target| PlanInput {
        members: &nodes,
        replication_factor: 3,
        load_factor: LOAD_FACTOR,
        target,
        partitions: &partitions,
        limits: Limits::default(),
        is_paused: false,
    };
    let start = Instant::now();
    let target = retarget(&input(&placed.partitions))?.placement.partitions;
    println!("{:<40} {:>8.1} ms", "  a node drains: target", start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let found = plan(&input(&target));
    println!(
        "{:<40} {:>8.1} ms, {} steps, {} moves to do",
        "  a node drains: steps",
        start.elapsed().as_secs_f64() * 1e3,
        found.steps.len(),
        found.remaining.len(),
    );
    Ok(())
}

fn main() -> Result<(), PlacementError> {
    for (nodes, zones) in [(3, 1), (10, 1), (100, 3), (1000, 1), (1000, 3), (1000, 1000)] {
        let mut members: Vec<Member> = (0..=nodes)
            .map(|id| Member {
                node_id: id,
                zone: format!("zone-{}", id % zones),
                weight: NORMAL_WEIGHT,
            })
            .collect();
        let name = format!("{nodes} nodes, {zones} zones, 1,024 partitions");
        let before = timed(&name, &members[1..], None)?;
        let joined = timed("  one joins", &members, Some(&before))?;
        timed_steps(&members, &joined)?;
        members.remove(1);
        timed("  another leaves", &members, Some(&joined))?;
    }
    Ok(())
}
