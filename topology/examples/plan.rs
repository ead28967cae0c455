//! How long planning takes: `cargo run --release -p ringfold-topology --example plan`.
#![allow(clippy::print_stdout)] // its purpose

use std::time::Instant;

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
        members.remove(1);
        timed("  another leaves", &members, Some(&joined))?;
    }
    Ok(())
}
