//! What the leader of the meta group does: compares what is intended with what is, and takes small
//! steps. `decide` is pure; `run` reads facts, decides and executes, one action at a time.
use super::FEATURE_LEVEL_MAX;
use super::state::{FIRST_ID, is_active, is_joining, is_removed};
use crate::ids::{NodeId, ReplicaId};
use crate::partition::apply::MetaOutcome;
use crate::raft::driver::{GroupFacts, MembershipChange};
use crate::raft::handle::ProposeError;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{
    MetaActivateMember, MetaCommand, MetaFollow, MetaGenesis, MetaInit, MetaJoin, MetaMember,
    MetaPlace, MetaState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two looks at the facts.
const IDLE: Duration = Duration::from_millis(100);
/// After a step, the next one is likely due.
const BUSY: Duration = Duration::from_millis(20);
const ACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What the leader's own replica of the meta group knows.
#[derive(Debug, Clone, Default)]
pub struct MetaFacts {
    pub group: GroupFacts,
    /// Replica of the meta group on this node.
    pub own: ReplicaId,
    /// Nodes that do not answer now.
    pub down: BTreeSet<u64>,
    /// Nodes that have not answered for so long, or whose log is lost, that others take over.
    pub lost: BTreeSet<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MetaAction {
    Propose(MetaCommand),
    Change(MembershipChange),
    /// Hand the meta group's leadership to this replica.
    Transfer(ReplicaId),
    /// Nothing can be done about it here but to say so.
    CannotPlace(String),
}

/// A placement: by partition its nodes, the first of which campaigns at the first start.
pub type Place = dyn Fn(&MetaState) -> Result<Vec<Vec<NodeId>>, String> + Send + Sync;

/// The command that begins a cluster, for the node that was told to bootstrap it.
pub fn init_command(cluster_id: &str, genesis: &MetaGenesis, first: MetaJoin) -> MetaCommand {
    MetaCommand {
        if_epoch: 0,
        command: Some(Command::Init(MetaInit {
            cluster_id: cluster_id.into(),
            partitions: genesis.partitions,
            replication_factor: genesis.replication_factor,
            initial_members: genesis.initial_members,
            feature_level: FEATURE_LEVEL_MAX,
            default_reducer: genesis.default_reducer,
            category_reducers: genesis.category_reducers.clone(),
            first: Some(first),
        })),
    }
}

/// Voters of the meta group for so many active members: below three, a second voter would only be
/// a second way to stop.
pub fn voters_wanted(active_members: usize) -> usize {
    match active_members {
        0..3 => 1,
        3..9 => 3,
        _ => 5,
    }
}

/// The steps that are due, at most one membership change among them. Empty on all but the leader.
pub fn decide(
    state: &MetaState,
    facts: &MetaFacts,
    init: Option<&MetaCommand>,
    place: &Place,
) -> Vec<MetaAction> {
    if !facts.group.is_leader {
        return Vec::new();
    }
    if state.cluster_id.is_empty() {
        return init.cloned().map(MetaAction::Propose).into_iter().collect();
    }
    let propose = |c| MetaAction::Propose(MetaCommand { if_epoch: 0, command: Some(c) });
    let members: Vec<&MetaMember> = state.members.iter().filter(|m| !is_removed(m)).collect();
    let mut actions = Vec::new();
    for m in &members {
        if m.meta_replica_id == 0 {
            actions.push(propose(Command::Follow(MetaFollow { node_id: m.node_id })));
        } else if is_joining(m) && has_everything(facts, m) {
            let activate = MetaActivateMember { node_id: m.node_id };
            actions.push(propose(Command::ActivateMember(activate)));
        }
    }
    let active: Vec<&MetaMember> = members.iter().copied().filter(|m| is_active(m)).collect();
    let membership = &facts.group.membership;
    let fit = |m: &&MetaMember| is_active(m) && !facts.lost.contains(&m.node_id);
    let fit: Vec<&MetaMember> = members.iter().copied().filter(fit).collect();
    let wanted = voters_wanted(fit.len());
    let is_voter = |m: &&&MetaMember| membership.is_voter(ReplicaId(m.meta_replica_id));
    let voters_missing = wanted.saturating_sub(fit.iter().filter(is_voter).count());
    if !facts.group.change_pending {
        let change = if membership.is_joint() {
            Some(MetaAction::Change(MembershipChange::LeaveJoint))
        } else {
            add_learner(&members, facts)
                .or_else(|| promote(&fit, facts, voters_missing))
                .map(MetaAction::Change)
                .or_else(|| retire_voter(&fit, facts, wanted))
                .or_else(|| remove_learner(state, facts))
        };
        actions.extend(change);
    }
    // The record of who has what must not be on fewer nodes than what it records.
    let enough = state.initial_members.max(state.replication_factor) as usize;
    if state.epoch == 0 && active.len() >= enough && voters_missing == 0 {
        actions.push(match place(state) {
            Ok(nodes) => propose(Command::Place(MetaPlace {
                partitions: nodes
                    .into_iter()
                    .map(|n| Nodes { node_ids: n.into_iter().map(|n| n.0).collect() })
                    .collect(),
            })),
            Err(reason) => MetaAction::CannotPlace(reason),
        });
    }
    actions
}

/// The member's replica is in the group and has all that is committed.
fn has_everything(facts: &MetaFacts, m: &MetaMember) -> bool {
    let replica = ReplicaId(m.meta_replica_id);
    let matched = facts.group.matched.get(&replica.0).copied().unwrap_or(0);
    facts.group.membership.contains(replica)
        && (replica == facts.own || matched > 0 && matched >= facts.group.commit_index)
}

fn add_learner(members: &[&MetaMember], facts: &MetaFacts) -> Option<MembershipChange> {
    members
        .iter()
        .map(|m| (ReplicaId(m.meta_replica_id), NodeId(m.node_id)))
        .find(|(replica, _)| replica.0 != 0 && !facts.group.membership.contains(*replica))
        .map(|(replica, node)| MembershipChange::AddLearner(replica, node))
}

/// A learner to make a voter: in the zone with the fewest voters, then the oldest node. Begun only
/// once so many are ready that the group does not stay at an even number.
fn promote(active: &[&MetaMember], facts: &MetaFacts, missing: usize) -> Option<MembershipChange> {
    let is_voter = |m: &MetaMember| facts.group.membership.is_voter(ReplicaId(m.meta_replica_id));
    let mut voters_of_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for m in active.iter().filter(|m| is_voter(m)) {
        *voters_of_zone.entry(&m.zone).or_default() += 1;
    }
    let ready: Vec<_> =
        active.iter().filter(|m| !is_voter(m) && has_everything(facts, m)).collect();
    if missing == 0 || ready.len() < missing {
        return None;
    }
    ready
        .into_iter()
        .min_by_key(|m| (voters_of_zone.get(m.zone.as_str()).copied().unwrap_or(0), m.node_id))
        .map(|m| MembershipChange::Promote(ReplicaId(m.meta_replica_id)))
}

/// A voter too many becomes a learner: one that drains, is lost or was removed first, once enough
/// others vote. It leads no more when it does.
fn retire_voter(fit: &[&MetaMember], facts: &MetaFacts, wanted: usize) -> Option<MetaAction> {
    let voters = &facts.group.membership.voters;
    let fit_voters: Vec<&MetaMember> = {
        let votes = |m: &&&MetaMember| voters.contains(&m.meta_replica_id);
        fit.iter().filter(votes).copied().collect()
    };
    if fit_voters.len() < wanted || fit_voters.is_empty() {
        return None;
    }
    let is_fit = |v: &u64| fit_voters.iter().any(|m| m.meta_replica_id == *v);
    let leaving = match voters.iter().find(|v| !is_fit(v)) {
        Some(v) => *v,
        None if fit_voters.len() > wanted => spare_voter(&fit_voters, facts)?,
        None => return None,
    };
    if leaving == facts.own.0 {
        let caught_up = |m: &&&MetaMember| {
            m.meta_replica_id != leaving
                && !facts.down.contains(&m.node_id)
                && has_everything(facts, m)
        };
        let to = fit_voters.iter().find(caught_up)?;
        return Some(MetaAction::Transfer(ReplicaId(to.meta_replica_id)));
    }
    // Also of a member that was removed: it goes by a change of its own.
    Some(MetaAction::Change(MembershipChange::Demote(ReplicaId(leaving))))
}

/// In the zone with the most voters the youngest, and not the leader if another will do.
fn spare_voter(voters: &[&MetaMember], facts: &MetaFacts) -> Option<u64> {
    let mut of_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for m in voters {
        *of_zone.entry(&m.zone).or_default() += 1;
    }
    let spare = |m: &&&MetaMember| {
        let others = of_zone.get(m.zone.as_str()).copied().unwrap_or(0);
        (others, m.meta_replica_id != facts.own.0, m.node_id)
    };
    voters.iter().max_by_key(spare).map(|m| m.meta_replica_id)
}

/// The replica of a member that was removed, once it has heard so, or does not listen.
fn remove_learner(state: &MetaState, facts: &MetaFacts) -> Option<MetaAction> {
    let group = &facts.group;
    let member = |id: u64| state.members.iter().find(|m| m.meta_replica_id == id);
    let goes = |id: &&u64| match member(**id) {
        // The planner does not ask removed members: whether one is away the group itself knows.
        Some(m) => is_removed(m) && (has_everything(facts, m) || group.silent.contains(*id)),
        None => **id != facts.own.0,
    };
    let replica = group.membership.learners.iter().find(goes)?;
    Some(MetaAction::Change(MembershipChange::Remove(ReplicaId(*replica))))
}

/// The meta group as the controller reaches it.
#[tonic::async_trait]
pub trait MetaGroup: Send + Sync + 'static {
    /// `None` while this node has no replica of the meta group.
    async fn facts(&self) -> Option<MetaFacts>;
    async fn propose(&self, command: &MetaCommand) -> Result<MetaOutcome, ProposeError>;
    /// Refused on another membership than that of entry `planned_on`.
    async fn change(&self, change: MembershipChange, planned_on: u64) -> Result<(), String>;
    async fn transfer(&self, to: ReplicaId) -> Result<(), String>;
}

/// Runs on every node until `stop`; acts only while its replica leads. `init`: on the node that
/// bootstraps, until the cluster has its id.
pub async fn run(
    group: Arc<dyn MetaGroup>,
    state: watch::Receiver<Arc<MetaState>>,
    init: Option<MetaCommand>,
    place: Arc<Place>,
    stop: CancellationToken,
) {
    let mut said = String::new();
    let rounds = async {
        loop {
            let facts = group.facts().await.unwrap_or_default();
            let now = state.borrow().clone();
            let mut progress = false;
            for action in decide(&now, &facts, init.as_ref(), &*place) {
                match tokio::time::timeout(
                    ACTION_TIMEOUT,
                    execute(&*group, &action, facts.group.membership_index),
                )
                .await
                {
                    Ok(Ok(())) => {
                        tracing::info!(?action, "meta group: step taken");
                        progress = true;
                    }
                    Ok(Err(reason)) => say_once(&mut said, &action, &reason),
                    Err(_) => say_once(&mut said, &action, "it has not answered in time"),
                }
            }
            tokio::time::sleep(if progress { BUSY } else { IDLE }).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = rounds => {}
    }
}

async fn execute(
    group: &dyn MetaGroup,
    action: &MetaAction,
    planned_on: u64,
) -> Result<(), String> {
    match action {
        MetaAction::Propose(command) => match group.propose(command).await {
            Ok(MetaOutcome::Refused(reason)) => Err(reason),
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string()),
        },
        MetaAction::Change(change) => group.change(*change, planned_on).await,
        MetaAction::Transfer(to) => group.transfer(*to).await,
        MetaAction::CannotPlace(reason) => Err(format!("the partitions wait: {reason}")),
    }
}

/// The same trouble each 100 ms is said once.
fn say_once(said: &mut String, action: &MetaAction, reason: &str) {
    if said != reason {
        tracing::warn!(?action, reason, "meta group: step not taken, tried again");
        reason.clone_into(said);
    }
}

/// Node and replica that every cluster begins with.
pub fn first_voter() -> (ReplicaId, NodeId) {
    (ReplicaId(FIRST_ID), NodeId(FIRST_ID))
}

#[cfg(test)]
mod tests;
