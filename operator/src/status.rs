//! What the resource says of itself, from one look and what became of it. Pure.
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use ringfold_crds::{
    EventStoreClusterStatus, MemberStatus, Operation, OperationType, PartitionsStatus,
    RebalanceStatus, condition,
};

use crate::{
    build::{CLIENT_PORT, selector_text},
    decide::{Decision, Stalled},
    step::Outcome,
    validate::{Cluster, Invalid},
    world::{MemberState, View, World, pod_name},
};

/// Members that a status lists at most: the CRD's bound on nodes, and those that leave.
const MEMBERS_MAX: usize = 128;
const WAITING_MAX: usize = 8;

struct Says {
    holds: bool,
    reason: &'static str,
    message: String,
}

fn says(holds: bool, reason: &'static str, message: impl Into<String>) -> Says {
    Says { holds, reason, message: message.into() }
}

/// The status after a look.
pub fn status(
    cluster: &Cluster,
    world: &World,
    decision: &Decision,
    outcome: &Outcome,
    before: &EventStoreClusterStatus,
    now: Timestamp,
) -> EventStoreClusterStatus {
    let stalled = decision.stalled.as_ref().or(outcome.stalled.as_ref());
    let facts = [
        (condition::READY, ready(cluster, world, stalled)),
        (condition::AVAILABLE, available(cluster, world)),
        (condition::RECONCILING, reconciling(decision, outcome, stalled)),
        (condition::STALLED, stalled_says(stalled)),
        (condition::DEGRADED, degraded(cluster, world)),
        (condition::REBALANCING, rebalancing(world.view.as_ref())),
        (condition::PAUSED, paused(cluster)),
    ];
    let view = world.view.as_ref();
    EventStoreClusterStatus {
        observed_generation: cluster.generation,
        conditions: conditions(facts, cluster.generation, before, now),
        replicas: world.pods.len() as i32,
        ready_replicas: world.pods.values().filter(|p| p.is_settled()).count() as i32,
        selector: Some(selector_text(&cluster.name)),
        cluster_id: world.identity.as_ref().map(|i| i.cluster_id.clone()),
        version: version(world),
        feature_level: view.map(|v| v.feature_level as i32).or(before.feature_level),
        operation: operation(cluster, decision, outcome, before, now),
        members: view.map_or_else(|| before.members.clone(), |v| members(cluster, world, v)),
        partitions: view.map_or(before.partitions.clone(), |v| {
            Some(PartitionsStatus {
                total: v.partitions as i32,
                moving: v.moves as i32,
                under_replicated: v.under_replicated as i32,
                leaderless: v.leaderless as i32,
            })
        }),
        rebalance: view.filter(|v| v.moves + v.leader_moves > 0).map(|v| RebalanceStatus {
            reason: v.move_reason.clone().unwrap_or_default(),
            left: v.moves as i32,
            leaders_left: v.leader_moves as i32,
            waiting: v.waiting.iter().take(WAITING_MAX).cloned().collect(),
        }),
        endpoint: Some(format!("{}.{}.svc:{CLIENT_PORT}", cluster.name, cluster.namespace)),
    }
}

/// The status of a spec that cannot be acted on: the rest stays as it was.
pub fn refused(
    generation: i64,
    invalid: &Invalid,
    before: &EventStoreClusterStatus,
    now: Timestamp,
) -> EventStoreClusterStatus {
    let message = invalid.to_string();
    let facts = [
        (condition::READY, says(false, "InvalidSpec", &message)),
        (condition::RECONCILING, says(false, "Stalled", "")),
        (condition::STALLED, says(true, "InvalidSpec", &message)),
    ];
    let mut status = before.clone();
    status.observed_generation = generation;
    let new = conditions(facts, generation, before, now);
    status.conditions.retain(|c| new.iter().all(|n| n.type_ != c.type_));
    status.conditions.extend(new);
    status
}

fn conditions<const N: usize>(
    facts: [(&'static str, Says); N],
    generation: i64,
    before: &EventStoreClusterStatus,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |(type_, says): (&str, Says)| {
        let status = if says.holds { "True" } else { "False" };
        let last = before.conditions.iter().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: says.reason.to_owned(),
            message: says.message,
            observed_generation: Some(generation),
            last_transition_time: last.map_or(Time(now), |c| c.last_transition_time.clone()),
        }
    };
    facts.into_iter().map(condition).collect()
}

fn available(cluster: &Cluster, world: &World) -> Says {
    if cluster.hibernated {
        return says(false, "Hibernated", "the nodes are stopped, as spec.hibernated asks");
    }
    match &world.view {
        None => says(false, "NoAnswer", "no majority of nodes answers"),
        Some(v) if v.epoch == 0 => says(false, "NotPlaced", "the partitions are not placed yet"),
        Some(v) if v.leaderless > 0 => {
            says(false, "Leaderless", format!("{} partitions have no leader", v.leaderless))
        }
        Some(v) => says(true, "Serving", format!("{} partitions are served", v.partitions)),
    }
}

/// Served, and as the spec asks, but for what leaves and what moves.
fn ready(cluster: &Cluster, world: &World, stalled: Option<&Stalled>) -> Says {
    let available = available(cluster, world);
    if !available.holds {
        return available;
    }
    let wanted = world.pods.range(..cluster.replicas);
    let settled = wanted.clone().filter(|(_, p)| p.is_settled()).count();
    if settled < cluster.replicas as usize {
        let message = format!("{settled} of {} nodes are ready", cluster.replicas);
        return says(false, stalled.map_or("NodesNotReady", |s| s.reason), message);
    }
    let Some(revision) = world.stateful_set.as_ref().and_then(|s| s.revision.as_ref()) else {
        return says(false, "Upgrading", "the newest settings are not known to Kubernetes yet");
    };
    let old = wanted.filter(|(_, p)| p.revision != *revision).count();
    if old > 0 {
        let message =
            format!("{old} nodes are still to restart with the newest image and settings");
        return says(false, stalled.map_or("Upgrading", |s| s.reason), message);
    }
    says(true, "AsAsked", format!("{settled} nodes are ready"))
}

fn reconciling(decision: &Decision, outcome: &Outcome, stalled: Option<&Stalled>) -> Says {
    match (&decision.doing, stalled) {
        (_, Some(_)) => says(false, "Stalled", ""),
        (None, None) => says(false, "AtRest", ""),
        (Some(doing), None) => says(true, word(doing.kind), step(&doing.step, outcome)),
    }
}

fn step(step: &str, outcome: &Outcome) -> String {
    match outcome.waiting.is_empty() {
        true => step.to_owned(),
        false => {
            let most = outcome.waiting.iter().take(WAITING_MAX).cloned().collect::<Vec<_>>();
            format!("{step}, once the cluster agrees: {}", most.join("; "))
        }
    }
}

fn stalled_says(stalled: Option<&Stalled>) -> Says {
    match stalled {
        Some(s) => says(true, s.reason, &s.message),
        None => says(false, "GoesOn", ""),
    }
}

fn degraded(cluster: &Cluster, world: &World) -> Says {
    let unreadable = world.authority_unreadable.as_ref();
    let unreadable = unreadable.map(|why| says(true, "AuthorityUnreadable", why));
    let Some(view) = &world.view else {
        return unreadable.unwrap_or_else(|| {
            let reason = if cluster.hibernated { "Hibernated" } else { "NoAnswer" };
            says(!cluster.hibernated, reason, "")
        });
    };
    let lost: Vec<_> =
        world.orphans(view, &cluster.name).map(|(n, m)| format!("node {n} ({})", m.name)).collect();
    if !lost.is_empty() {
        return says(
            true,
            "VolumeLost",
            format!(
                "{} has no volume any more; its replicas are made anew on other nodes",
                lost.join(", ")
            ),
        );
    }
    let disks: Vec<_> = world
        .reports
        .iter()
        .filter_map(|(o, r)| {
            Some(format!("{}: {}", pod_name(&cluster.name, *o), r.lost_reason.as_ref()?))
        })
        .collect();
    if !disks.is_empty() {
        let message = format!("{}. Replace it: kubectl ringfold replace POD", disks.join("; "));
        return says(true, "DiskLost", message);
    }
    // Nodes whose certificates have run out are away for that reason.
    if let Some(unreadable) = unreadable {
        return unreadable;
    }
    let away: Vec<_> =
        view.living().filter(|(_, m)| !m.reachable).map(|(_, m)| m.name.clone()).collect();
    if !away.is_empty() {
        return says(true, "NodeAway", format!("{} does not answer", away.join(", ")));
    }
    match view.under_replicated {
        0 => says(false, "Whole", ""),
        n => says(
            true,
            "UnderReplicated",
            format!("{n} partitions have fewer replicas than asked for"),
        ),
    }
}

fn rebalancing(view: Option<&View>) -> Says {
    match view {
        Some(v) if v.moves + v.leader_moves > 0 => says(
            true,
            "Moving",
            format!("{} replicas and {} leaderships are to move", v.moves, v.leader_moves),
        ),
        _ => says(false, "AtRest", ""),
    }
}

fn paused(cluster: &Cluster) -> Says {
    match cluster.paused {
        true => says(true, "Asked", "the operator changes nothing while spec.paused is true"),
        false => says(false, "NotAsked", ""),
    }
}

fn word(kind: OperationType) -> &'static str {
    match kind {
        OperationType::Bootstrap => "Bootstrap",
        OperationType::ScaleOut => "ScaleOut",
        OperationType::ScaleIn => "ScaleIn",
        OperationType::Upgrade => "Upgrade",
        OperationType::Replace => "Replace",
        OperationType::Resize => "Resize",
        OperationType::Hibernate => "Hibernate",
    }
}

fn version(world: &World) -> Option<String> {
    let mut versions = world.reports.values().map(|r| &r.version);
    let first = versions.next()?;
    versions.all(|v| v == first).then(|| first.clone())
}

fn operation(
    cluster: &Cluster,
    decision: &Decision,
    outcome: &Outcome,
    before: &EventStoreClusterStatus,
    now: Timestamp,
) -> Option<Operation> {
    let doing = decision.doing.as_ref()?;
    let pod = doing.ordinal.map(|o| pod_name(&cluster.name, o));
    let last = before.operation.as_ref().filter(|o| o.kind == doing.kind && o.pod == pod);
    Some(Operation {
        kind: doing.kind,
        step: step(&doing.step, outcome),
        pod,
        node_id: doing.node.and_then(|n| i64::try_from(n).ok()),
        since: last.and_then(|o| o.since.clone()).or(Some(Time(now))),
    })
}

fn members(cluster: &Cluster, world: &World, view: &View) -> Vec<MemberStatus> {
    let of = |node| world.claims.iter().find(|(_, c)| c.node_id == Some(node)).map(|(o, _)| *o);
    let member = |(node, m): (u64, &crate::world::Member)| {
        let ordinal = of(node);
        MemberStatus {
            node_id: i64::try_from(node).unwrap_or(i64::MAX),
            pod: ordinal.map(|o| pod_name(&cluster.name, o)),
            zone: Some(m.zone.clone()).filter(|z| !z.is_empty()),
            version: ordinal.and_then(|o| world.reports.get(&o)).map(|r| r.version.clone()),
            state: match m.state {
                MemberState::Joining => "Joining",
                MemberState::Active => "Active",
                MemberState::Draining => "Draining",
                MemberState::Removed => "Removed",
            }
            .into(),
            leaders: m.leaders as i32,
            replicas: m.replicas as i32,
        }
    };
    view.living().take(MEMBERS_MAX).map(member).collect()
}

/// Whether two statuses differ in no more than how far something is.
pub fn differ_in_progress_only(a: &EventStoreClusterStatus, b: &EventStoreClusterStatus) -> bool {
    let core = |s: &EventStoreClusterStatus| {
        let conditions = s.conditions.iter();
        let conditions: Vec<_> =
            conditions.map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect();
        (conditions, s.observed_generation, s.replicas, s.ready_replicas, s.version.clone())
    };
    core(a) == core(b)
}

#[cfg(test)]
mod tests;
