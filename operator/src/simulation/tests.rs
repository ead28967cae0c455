use std::{collections::BTreeSet, sync::Mutex};

use futures::executor::block_on;

use super::{
    cluster::{NAME, Sim},
    sides::Sides,
};
use crate::{
    decide::{Action, Decision, decide},
    step::{StepError, carry_out},
    validate::{Cluster, validate},
    world::World,
};

fn spec(seed: u64) -> Cluster {
    let (copies, replicas) = [(3, 3), (3, 5), (1, 1), (3, 4)][seed as usize % 4];
    let resource = serde_json::json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
        "metadata": {"name": NAME, "namespace": "shop", "uid": "u"},
        "spec": {"replicas": replicas, "replicationFactor": copies},
    });
    validate(&serde_json::from_value(resource).unwrap()).unwrap()
}

type Decide = fn(&Cluster, &World) -> Decision;

/// One look of the operator and what follows from it; the look may be old by the time it acts.
fn operate(sim: &mut Sim, decide: Decide) -> Decision {
    let (cluster, world) = (sim.spec.clone(), sim.observe());
    (sim.agreed, sim.hibernates) = (None, cluster.hibernated);
    let decision = decide(&cluster, &world);
    if sim.chance(20) {
        sim.happen();
    }
    let sides = Sides(Mutex::new(sim));
    match block_on(carry_out(&cluster, &world, &decision, &sides, &sides)) {
        Ok(_) | Err(StepError::Kubernetes(_) | StepError::Plane(_)) => {}
    }
    decision
}

/// What an operator decided that was deposed, or stood still, before it acted.
type Late = Option<(Cluster, World, Decision)>;

/// Now and then such an operator acts on its old look: its calls to the data plane, which are fenced.
fn operate_late(sim: &mut Sim, decide: Decide, late: &mut Late, fenced: bool) {
    if sim.chance(10) {
        let (cluster, mut world) = (sim.spec.clone(), sim.observe());
        let mut decision = decide(&cluster, &world);
        decision.replicas = None;
        if let Some(view) = world.view.as_mut().filter(|_| !fenced) {
            view.epoch = 0;
        }
        let asks = matches!(
            decision.action,
            Some(
                Action::Drain(_) | Action::Undrain(_) | Action::Remove(_) | Action::Restart { .. }
            )
        );
        if asks {
            *late = Some((cluster, world, decision));
        }
    } else if sim.chance(10)
        && let Some((cluster, world, decision)) = late.take()
    {
        (sim.agreed, sim.hibernates) = (None, cluster.hibernated);
        let sides = Sides(Mutex::new(sim));
        let _ = block_on(carry_out(&cluster, &world, &decision, &sides, &sides));
    }
}

/// Whole life of a cluster. `Err`: what was broken, or that it did not come to rest.
fn life(seed: u64, decide: Decide) -> Result<(), String> {
    life_with(seed, decide, true)
}

fn life_with(seed: u64, decide: Decide, fenced: bool) -> Result<(), String> {
    let mut sim = Sim::new(seed, spec(seed));
    let mut late: Late = None;
    let fail = |sim: &mut Sim, what: String| {
        let last = sim.log.len().saturating_sub(60);
        Err(format!("seed {seed}: {what}\n{}", sim.log[last..].join("\n")))
    };
    for _ in 0..300 {
        for _ in 0..2 {
            sim.happen();
        }
        operate_late(&mut sim, decide, &mut late, fenced);
        operate(&mut sim, decide);
        if let Some(broken) = sim.broken.first().cloned() {
            return fail(&mut sim, broken);
        }
    }
    sim.calm_down();
    let mut last = Decision::default();
    for _ in 0..3_000 {
        for _ in 0..4 {
            sim.happen();
        }
        last = operate(&mut sim, decide);
        if let Some(broken) = sim.broken.first().cloned() {
            return fail(&mut sim, broken);
        }
        if last.action.is_none() && last.doing.is_none() && sim.not_at_rest().is_none() {
            break;
        }
    }
    if let Some(why) = sim.not_at_rest() {
        return fail(&mut sim, format!("not at rest: {why}; last decision {last:?}"));
    }
    let writes = sim.writes;
    for _ in 0..5 {
        last = operate(&mut sim, decide);
    }
    match sim.writes == writes && last.stalled.is_none() {
        true => Ok(()),
        false => fail(&mut sim, format!("an idle operator writes: {last:?}")),
    }
}

fn lives() -> u64 {
    let factor = std::env::var("RINGFOLD_TEST_FACTOR").ok().and_then(|f| f.parse().ok());
    500 * factor.unwrap_or(1_u64)
}

/// Scaling, upgrades, bad images, lost volumes, replacements, a data plane that is away, hands that
/// meddle, an operator that dies between any two calls, and another that acts on an old look: no step is taken that the data plane did
/// not agree to, and once it is calm the cluster comes to rest at the spec.
#[test]
fn a_cluster_comes_to_rest_at_its_spec_and_no_step_is_taken_that_the_data_plane_did_not_agree_to() {
    let failures: Vec<_> = (0..lives()).filter_map(|seed| life(seed, decide).err()).collect();
    let heads: Vec<_> = failures.iter().filter_map(|f| f.lines().next()).collect();
    assert!(
        failures.is_empty(),
        "{} lives failed:\n{}\nthe first:\n{}",
        failures.len(),
        heads.join("\n"),
        failures[0]
    );
}

/// The lives above are lives in which everything happens.
#[test]
fn every_kind_of_step_is_taken() {
    static TAKEN: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    for seed in 0..100 {
        let _ = life(seed, |cluster, world| {
            let decision = decide(cluster, world);
            TAKEN.lock().unwrap().extend(decision.action.as_ref().map(Action::name));
            TAKEN.lock().unwrap().extend(decision.stalled.as_ref().map(|s| s.reason));
            decision
        });
    }
    let expected = [
        "Bootstrap",
        "BootstrapVolumeLost",
        "CreateIdentity",
        "DeleteClaim",
        "DeletePod",
        "Drain",
        "OrphanStatefulSet",
        "Pause",
        "PodNotReady",
        "RecordNode",
        "Remove",
        "ReserveBootstrap",
        "ResizeClaim",
        "Restart",
        "Undrain",
    ];
    let missing: Vec<_> =
        expected.iter().filter(|e| !TAKEN.lock().unwrap().contains(**e)).collect();
    assert!(missing.is_empty(), "never: {missing:?}");
}

#[test]
fn the_same_seed_is_the_same_life() {
    let run = || {
        let mut sim = Sim::new(7, spec(7));
        for _ in 0..200 {
            sim.happen();
            operate(&mut sim, decide);
        }
        sim.log
    };
    assert_eq!(run(), run());
}

fn is_found(flawed: Decide) -> bool {
    (0..200).any(|seed| life(seed, flawed).is_err())
}

#[test]
fn an_operator_that_was_deposed_does_harm_unless_it_is_fenced() {
    assert!((0..200).any(|seed| life_with(seed, decide, false).is_err()));
}

/// Mistakes that an operator may make, each found within 200 lives.
#[test]
fn planted_mistakes_are_found() {
    let flaws: [(&str, Decide); 9] = [
        ("shrinks at once", |cluster, world| {
            let mut d = decide(cluster, world);
            d.replicas = d.replicas.map(|r| r.min(cluster.replicas));
            d
        }),
        ("shrinks by two", |cluster, world| {
            let mut d = decide(cluster, world);
            let now = world.stateful_set.as_ref().map_or(0, |s| s.replicas);
            d.replicas =
                d.replicas.map(|r| if r < now && r > cluster.replicas { r - 1 } else { r });
            d
        }),
        ("restarts without asking", |cluster, world| {
            let mut d = decide(cluster, world);
            if let Some(Action::Restart { must_be_safe, .. }) = &mut d.action {
                *must_be_safe = false;
            }
            d
        }),
        ("never undrains", |cluster, world| {
            let mut d = decide(cluster, world);
            d.action = d.action.filter(|a| !matches!(a, Action::Undrain(_)));
            d
        }),
        ("leaves balancing paused", |cluster, world| {
            let mut d = decide(cluster, world);
            d.action = d.action.filter(|a| *a != Action::Pause(false));
            d
        }),
        ("forgets whose a volume is", |cluster, world| {
            let mut d = decide(cluster, world);
            d.action = d.action.filter(|a| !matches!(a, Action::RecordNode { .. }));
            d
        }),
        ("bootstraps whatever is empty", |cluster, world| {
            let mut world = world.clone();
            if let (Some(identity), Some(claim)) = (&mut world.identity, world.claims.get(&0)) {
                identity.bootstrap_claim_uid = Some(claim.uid.clone());
            }
            world.claims.values_mut().for_each(|c| c.node_id = None);
            decide(cluster, &world)
        }),
        ("takes a silent data plane for an empty one", |cluster, world| {
            let mut world = world.clone();
            world.view.get_or_insert_default();
            decide(cluster, &world)
        }),
        ("waits for a bad image before going back", |cluster, world| {
            let mut d = decide(cluster, world);
            d.action = d
                .action
                .filter(|a| !matches!(a, Action::DeletePod { resource_version: Some(_), .. }));
            d
        }),
    ];
    let missed: Vec<_> =
        flaws.iter().filter(|(_, flawed)| !is_found(*flawed)).map(|(name, _)| name).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
