//! The size of the StatefulSet.
use crate::{
    validate::Cluster,
    world::{Ordinal, View, World},
};

/// As many pods as the spec asks for, and as many more as hold members that were not removed: pods
/// disappear only from the top, one at a time, and only after the data plane let their nodes go.
pub fn size(cluster: &Cluster, world: &World) -> u32 {
    if cluster.hibernated {
        return 0;
    }
    let now = world.stateful_set.as_ref().map_or(0, |s| s.replicas);
    let top = world.claims.keys().next_back().map_or(0, |o| o + 1);
    let Some(view) = &world.view else {
        // Nothing is known: whatever may hold data has its pod.
        return cluster.replicas.max(now).max(top);
    };
    let needed = world.claims.keys().rev().find(|o| world.is_needed(view, &cluster.name, **o));
    let wanted = cluster.replicas.max(needed.map_or(0, |o| o + 1));
    if wanted >= now {
        grown(world, view, now, wanted)
    } else if leftover(world, now).is_some() {
        // The one above goes first, with its volume.
        now
    } else {
        now - 1
    }
}

/// A volume whose node was removed goes before a pod comes to it again.
fn grown(world: &World, view: &View, now: u32, wanted: u32) -> u32 {
    (now..wanted).find(|o| world.is_stale(view, *o)).unwrap_or(wanted)
}

/// What lies above the StatefulSet's size.
pub fn leftover(world: &World, now: u32) -> Option<Ordinal> {
    let pod = world.pods.range(now..).next_back().map(|(o, _)| *o);
    let claim = world.claims.range(now..).next_back().map(|(o, _)| *o);
    pod.max(claim)
}
