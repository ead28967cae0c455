//! What a command of the meta group does to its state: pure, and the same on every replica. A
//! refused command changes nothing.
use super::replicas;
use crate::partition::apply::MetaOutcome;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{
    MetaActivateMember, MetaCommand, MetaDrainMember, MetaFollow, MetaInit, MetaJoin, MetaMember,
    MetaPartition, MetaPlace, MetaRemoveMember, MetaReplica, MetaRetarget, MetaState,
    MetaUndrainMember,
};
use ringfold_proto::v1::MemberState;
use std::collections::BTreeSet;

pub const PARTITIONS_MAX: u32 = 1_024;
/// Removed members that stay in the list, for people to see; older ones are known by their ids alone.
const REMOVED_KEPT: usize = 128;
/// Members that are not removed.
pub const MEMBERS_MAX: usize = 1_024;
const TEXT_BYTES_MAX: usize = 512;

const JOINING: u32 = MemberState::Joining as u32;
const ACTIVE: u32 = MemberState::Active as u32;
const DRAINING: u32 = MemberState::Draining as u32;
const REMOVED: u32 = MemberState::Removed as u32;

/// The node that bootstraps, and its replica of the meta group.
pub const FIRST_ID: u64 = 1;

/// Applies one command. An error is a command that this version does not know: the group must stop.
pub fn apply_command(state: &mut MetaState, cmd: MetaCommand) -> Result<MetaOutcome, String> {
    let Some(command) = cmd.command else {
        return Err("a command of the meta group is unknown to this version".into());
    };
    let outcome = match command {
        Command::Init(c) => init(state, c),
        _ if state.cluster_id.is_empty() => Err("the cluster is not bootstrapped".into()),
        _ if cmd.if_epoch != 0 && cmd.if_epoch != state.epoch => Err(format!(
            "planned on epoch {}, and the placement is at {}",
            cmd.if_epoch, state.epoch
        )),
        Command::Join(c) => join(state, c),
        Command::Place(c) => place(state, c),
        Command::Follow(c) => follow(state, c),
        Command::ActivateMember(c) => activate(state, c),
        Command::Retarget(c) => retarget(state, c),
        Command::CreateReplica(c) => replicas::create(state, c),
        Command::AdmitReplica(c) => replicas::admit(state, c),
        Command::ForgetReplica(c) => replicas::forget(state, c),
        Command::DrainMember(c) => drain(state, c),
        Command::UndrainMember(c) => undrain(state, c),
        Command::RemoveMember(c) => remove(state, c),
        Command::Pause(c) => {
            state.paused = c.paused;
            Ok(MetaOutcome::Done)
        }
    };
    Ok(outcome.unwrap_or_else(MetaOutcome::Refused))
}

type Outcome = Result<MetaOutcome, String>;

fn init(state: &mut MetaState, c: MetaInit) -> Outcome {
    if !state.cluster_id.is_empty() {
        if state.cluster_id == c.cluster_id {
            return Ok(MetaOutcome::Done);
        }
        return Err(format!("the cluster is bootstrapped as {}", state.cluster_id));
    }
    if c.cluster_id.is_empty() || c.cluster_id.len() > TEXT_BYTES_MAX {
        return Err("a cluster id must be given".into());
    }
    if !c.partitions.is_power_of_two() || c.partitions > PARTITIONS_MAX {
        return Err(format!(
            "{} partitions: a power of two up to {PARTITIONS_MAX} is allowed",
            c.partitions
        ));
    }
    if ![1, 3, 5].contains(&c.replication_factor) {
        return Err(format!("replication factor {}: 1, 3 or 5 is allowed", c.replication_factor));
    }
    let first = c.first.unwrap_or_default();
    check_texts(&first)?;
    let mut member = MetaMember {
        node_id: FIRST_ID,
        meta_replica_id: FIRST_ID,
        state: JOINING,
        ..MetaMember::default()
    };
    describe(&mut member, first);
    *state = MetaState {
        cluster_id: c.cluster_id,
        partitions: c.partitions,
        replication_factor: c.replication_factor,
        initial_members: c.initial_members.max(c.replication_factor),
        feature_level: c.feature_level,
        epoch: 0,
        next_node_id: FIRST_ID + 1,
        next_replica_id: FIRST_ID + 1,
        members: vec![member],
        placement: Vec::new(),
        default_reducer: c.default_reducer,
        category_reducers: c.category_reducers,
        paused: false,
    };
    Ok(MetaOutcome::Done)
}

/// A token has one node id for ever: a join said again, or a changed address, keeps it.
fn join(state: &mut MetaState, c: MetaJoin) -> Outcome {
    check_texts(&c)?;
    if c.token.is_empty() {
        return Err("a token must be given".into());
    }
    if c.feature_level_max < state.feature_level {
        return Err(format!(
            "the cluster is at feature level {}, and this node reads up to {}: start a newer version",
            state.feature_level, c.feature_level_max
        ));
    }
    let known = state.members.iter_mut().find(|m| match c.node_id {
        0 => m.token == c.token,
        id => m.node_id == id,
    });
    if let Some(m) = known {
        if m.token != c.token && !m.token.is_empty() {
            return Err(format!("node {} has joined with another data directory", m.node_id));
        }
        if is_removed(m) {
            return Err(format!("node {} was removed from the cluster", m.node_id));
        }
        describe(m, c);
        return Ok(joined(&state.cluster_id, m));
    }
    if was_removed(state, c.node_id) {
        return Err(format!("node {} was removed from the cluster", c.node_id));
    }
    if c.node_id != 0 {
        return Err(format!("there is no node {} in this cluster", c.node_id));
    }
    if state.members.iter().filter(|m| !is_removed(m)).count() >= MEMBERS_MAX {
        return Err(format!("the cluster has {MEMBERS_MAX} members, and no more are allowed"));
    }
    let mut member = MetaMember {
        node_id: take(&mut state.next_node_id),
        meta_replica_id: take(&mut state.next_replica_id),
        state: JOINING,
        ..MetaMember::default()
    };
    describe(&mut member, c);
    let outcome = joined(&state.cluster_id, &member);
    state.members.push(member);
    Ok(outcome)
}

fn follow(state: &mut MetaState, c: MetaFollow) -> Outcome {
    let next = &mut state.next_replica_id;
    let m = member(&mut state.members, c.node_id)?;
    if m.meta_replica_id == 0 {
        m.meta_replica_id = take(next);
    }
    Ok(MetaOutcome::Done)
}

fn activate(state: &mut MetaState, c: MetaActivateMember) -> Outcome {
    let m = member(&mut state.members, c.node_id)?;
    if m.state == JOINING {
        m.state = ACTIVE;
    }
    if is_active(m) {
        Ok(MetaOutcome::Done)
    } else {
        Err(format!("node {} is leaving the cluster", c.node_id))
    }
}

fn place(state: &mut MetaState, c: MetaPlace) -> Outcome {
    if state.epoch != 0 {
        return Err(format!("the partitions are placed, at epoch {}", state.epoch));
    }
    check_nodes(state, &c.partitions)?;
    let next = &mut state.next_replica_id;
    state.placement = c
        .partitions
        .into_iter()
        .map(|nodes| {
            let replicas: Vec<_> = nodes
                .node_ids
                .iter()
                .map(|id| MetaReplica { replica_id: take(next), node_id: *id, admitted: true })
                .collect();
            let genesis = replicas.clone();
            MetaPartition { replicas, target_node_ids: nodes.node_ids, genesis }
        })
        .collect();
    state.epoch += 1;
    Ok(MetaOutcome::Placed { epoch: state.epoch })
}

/// Moving a replica takes steps of its own: this says only where to.
fn retarget(state: &mut MetaState, c: MetaRetarget) -> Outcome {
    if state.epoch == 0 {
        return Err("the partitions are not placed yet".into());
    }
    check_nodes(state, &c.partitions)?;
    for (partition, nodes) in state.placement.iter_mut().zip(c.partitions) {
        partition.target_node_ids = nodes.node_ids;
    }
    state.epoch += 1;
    Ok(MetaOutcome::Placed { epoch: state.epoch })
}

/// Every partition on as many different active nodes as it has replicas.
fn check_nodes(state: &MetaState, partitions: &[Nodes]) -> Result<(), String> {
    if partitions.len() != state.partitions as usize {
        return Err(format!(
            "the placement has {} partitions, {} expected",
            partitions.len(),
            state.partitions
        ));
    }
    let active: BTreeSet<u64> =
        state.members.iter().filter(|m| is_active(m)).map(|m| m.node_id).collect();
    for (p, nodes) in partitions.iter().enumerate() {
        let distinct: BTreeSet<u64> = nodes.node_ids.iter().copied().collect();
        if nodes.node_ids.len() != state.replication_factor as usize
            || distinct.len() != nodes.node_ids.len()
        {
            return Err(format!(
                "partition {p} is placed on nodes {:?}, {} different ones expected",
                nodes.node_ids, state.replication_factor
            ));
        }
        if let Some(unknown) = distinct.difference(&active).next() {
            return Err(format!("partition {p} is placed on node {unknown}, which is not active"));
        }
    }
    Ok(())
}

/// Another epoch: what was planned before does not hold any more.
fn drain(state: &mut MetaState, c: MetaDrainMember) -> Outcome {
    let m = member(&mut state.members, c.node_id)?;
    match m.state {
        DRAINING => {}
        ACTIVE => {
            m.state = DRAINING;
            state.epoch += u64::from(state.epoch > 0);
        }
        _ => return Err(format!("node {} has not joined yet: remove it instead", c.node_id)),
    }
    Ok(MetaOutcome::Done)
}

fn undrain(state: &mut MetaState, c: MetaUndrainMember) -> Outcome {
    let m = member(&mut state.members, c.node_id)?;
    if m.state == DRAINING {
        m.state = ACTIVE;
        state.epoch += u64::from(state.epoch > 0);
    }
    Ok(MetaOutcome::Done)
}

fn remove(state: &mut MetaState, c: MetaRemoveMember) -> Outcome {
    if was_removed(state, c.node_id) {
        return Ok(MetaOutcome::Done);
    }
    let held = state.placement.iter().filter(|p| {
        p.target_node_ids.contains(&c.node_id) || p.replicas.iter().any(|r| r.node_id == c.node_id)
    });
    let held = held.count();
    let m = member(&mut state.members, c.node_id)?;
    if held > 0 {
        return Err(format!("node {} has {held} partitions: drain it first", c.node_id));
    }
    if m.state == ACTIVE {
        return Err(format!("node {} is active: drain it first", c.node_id));
    }
    m.state = REMOVED;
    state.epoch += u64::from(state.epoch > 0);
    let removed = state.members.iter().filter(|m| is_removed(m)).count();
    let mut surplus = removed.saturating_sub(REMOVED_KEPT);
    // In the order in which they joined.
    state.members.retain(|m| {
        let goes = is_removed(m) && surplus > 0;
        surplus -= usize::from(goes);
        !goes
    });
    Ok(MetaOutcome::Done)
}

pub fn is_joining(m: &MetaMember) -> bool {
    m.state == JOINING
}

pub fn is_draining(m: &MetaMember) -> bool {
    m.state == DRAINING
}

pub fn is_active(m: &MetaMember) -> bool {
    m.state == ACTIVE
}

pub fn is_removed(m: &MetaMember) -> bool {
    m.state == REMOVED
}

/// Whether the node was a member and is none any more. Its id is handed out once, so one that was
/// handed out and is not in the list was removed long ago.
pub fn was_removed(state: &MetaState, node_id: u64) -> bool {
    match state.members.iter().find(|m| m.node_id == node_id) {
        Some(m) => is_removed(m),
        None => node_id != 0 && node_id < state.next_node_id,
    }
}

/// A member that was not removed.
fn member(members: &mut [MetaMember], node_id: u64) -> Result<&mut MetaMember, String> {
    members
        .iter_mut()
        .find(|m| m.node_id == node_id && !is_removed(m))
        .ok_or_else(|| format!("there is no node {node_id} in this cluster"))
}

pub(super) fn take(next: &mut u64) -> u64 {
    let id = *next;
    *next += 1;
    id
}

fn joined(cluster_id: &str, m: &MetaMember) -> MetaOutcome {
    MetaOutcome::Joined {
        cluster_id: cluster_id.to_owned(),
        node_id: m.node_id,
        meta_replica_id: m.meta_replica_id,
    }
}

fn describe(m: &mut MetaMember, c: MetaJoin) {
    m.token = c.token;
    m.name = c.name;
    m.client_url = c.client_url;
    m.peer_address = c.peer_address;
    m.zone = c.zone;
    m.feature_level_max = c.feature_level_max;
}

fn check_texts(c: &MetaJoin) -> Result<(), String> {
    for (name, text) in [
        ("token", &c.token),
        ("name", &c.name),
        ("client_url", &c.client_url),
        ("peer_address", &c.peer_address),
        ("zone", &c.zone),
    ] {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("{name} has {} bytes, at most {TEXT_BYTES_MAX}", text.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
