//! Calls about members and moves: answered by the leader of the meta group, forwarded to it by others.
use crate::api::deadline::Call;
use crate::api::errors::{ApiError, LeaderHint};
use crate::api::node::{Node, Rebalancer};
use crate::ids::{GroupId, NodeId};
use crate::meta::state::{is_active, is_draining, is_removed, was_removed};
use crate::partition::apply::MetaOutcome;
use crate::raft::handle::{ProposeError, Role};
use crate::router::frame;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::{
    MetaCommand, MetaDrainMember, MetaMember, MetaPause, MetaRemoveMember, MetaState,
    MetaUndrainMember,
};
use ringfold_proto::v1;
use ringfold_proto::v1::cluster_client::ClusterClient;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

pub type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Between two messages of a watch.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Who answers.
enum Leader {
    Here(Arc<dyn Rebalancer>),
    There(Box<ClusterClient<Channel>>),
}

fn leader(node: &Node, call: &Call) -> Result<Leader, ApiError> {
    node.partitions()?;
    let view = node.raft.replica(GroupId::META).ok_or(ApiError::NoMetaLeader)?;
    let (role, leader) = {
        let status = view.status.read();
        (status.role, status.leader)
    };
    if role == Role::Leader {
        let here = node.info.hooks.rebalancer().ok_or(ApiError::NoMetaLeader)?;
        return Ok(Leader::Here(here));
    }
    let leader = leader.filter(|l| *l != node.info.node_id()).ok_or(ApiError::NoMetaLeader)?;
    let meta = node.meta.borrow().clone();
    if call.forwarded {
        let member = meta.members.iter().find(|m| m.node_id == leader.0);
        let url = member.map(|m| m.client_url.clone()).unwrap_or_default();
        return Err(ApiError::NotLeader { leader: Some(LeaderHint { node: leader, url }) });
    }
    Ok(Leader::There(Box::new(node.router.cluster_client(&meta, leader)?)))
}

/// What a call asks the meta group for.
struct Wanted<'a> {
    node_id: u64,
    /// 0: any.
    if_epoch: u64,
    command: Command,
    /// Whether it is so already.
    is_so: &'a (dyn Fn(&MetaState) -> bool + Sync),
}

async fn propose(
    node: &Node,
    here: &dyn Rebalancer,
    call: &Call,
    wanted: Wanted<'_>,
) -> Result<(), ApiError> {
    let Wanted { node_id, if_epoch, command, is_so } = wanted;
    let command = MetaCommand { if_epoch, command: Some(command) };
    match call.within(true, here.propose(command)).await? {
        Ok(MetaOutcome::Refused(what)) => {
            // Applied here before it was answered.
            let meta = node.meta.borrow().clone();
            match check_epoch(&meta, if_epoch) {
                // The answer to the same call may have been lost before.
                Err(_) if is_so(&meta) => Ok(()),
                Err(stale) => Err(stale),
                Ok(()) => Err(ApiError::MemberRefused { node_id, what }),
            }
        }
        Ok(_) => Ok(()),
        Err(ProposeError::NotLeader { .. }) => Err(ApiError::NoMetaLeader),
        Err(ProposeError::Busy) => Err(ApiError::Overloaded("too much waits for the meta group")),
        // Each of these commands can be said again.
        Err(_) => Err(ApiError::NoMetaLeader),
    }
}

/// `STALE_EPOCH` where the cluster is at another epoch; 0: any will do.
pub fn check_epoch(meta: &MetaState, if_epoch: u64) -> Result<(), ApiError> {
    match if_epoch == 0 || if_epoch == meta.epoch {
        true => Ok(()),
        false => Err(ApiError::StaleEpoch { expected: if_epoch, actual: meta.epoch }),
    }
}

fn member(meta: &MetaState, node_id: u64) -> Result<&MetaMember, ApiError> {
    let found = meta.members.iter().find(|m| m.node_id == node_id && !is_removed(m));
    found.ok_or(ApiError::MemberNotFound { node_id })
}

/// The plan, out of a look at the cluster that begins now.
async fn seen(
    here: &dyn Rebalancer,
    call: &Call,
) -> Result<Arc<v1::RebalancePlanResponse>, ApiError> {
    call.within(false, here.refreshed()).await?;
    let mut plan = here.plan();
    // Right after an election the first look is still to come.
    let seen = call.within(false, plan.wait_for(|p| p.epoch > 0)).await?;
    Ok(seen.map_err(|_| ApiError::NodeStopping)?.clone())
}

pub async fn plan(node: &Node, call: &Call) -> Result<Response<v1::RebalancePlanResponse>, Status> {
    match leader(node, call)? {
        Leader::There(mut client) => {
            client.rebalance_plan(frame(v1::RebalancePlanRequest {}, call)).await
        }
        Leader::Here(here) => {
            let seen = seen(&*here, call).await?;
            Ok(Response::new(v1::RebalancePlanResponse::clone(&seen)))
        }
    }
}

pub async fn watch(
    node: &Node,
    call: &Call,
) -> Result<Response<Answers<v1::RebalancePlanResponse>>, Status> {
    match leader(node, call)? {
        Leader::There(mut client) => {
            let request = frame_stream(v1::RebalanceWatchRequest {}, call);
            Ok(Response::new(client.rebalance_watch(request).await?.into_inner().boxed()))
        }
        Leader::Here(here) => {
            let plans = stream::unfold((here.plan(), true), |(mut plan, first)| async move {
                if !first {
                    tokio::time::sleep(WATCH_EVERY).await;
                    plan.changed().await.ok()?;
                }
                let now = plan.borrow_and_update().clone();
                Some((Ok(v1::RebalancePlanResponse::clone(&now)), (plan, false)))
            });
            Ok(Response::new(
                plans.take_until(node.info.stopping.clone().cancelled_owned()).boxed(),
            ))
        }
    }
}

pub async fn pause(node: &Node, call: &Call, paused: bool, if_epoch: u64) -> Result<(), Status> {
    match leader(node, call)? {
        Leader::There(mut client) => {
            if paused {
                client.rebalance_pause(frame(v1::RebalancePauseRequest { if_epoch }, call)).await?;
            } else {
                let request = v1::RebalanceResumeRequest { if_epoch };
                client.rebalance_resume(frame(request, call)).await?;
            }
            Ok(())
        }
        Leader::Here(here) => {
            let wanted = Wanted {
                node_id: 0,
                if_epoch,
                command: Command::Pause(MetaPause { paused }),
                is_so: &|meta| meta.paused == paused,
            };
            Ok(propose(node, &*here, call, wanted).await?)
        }
    }
}

pub async fn undrain(
    node: &Node,
    call: &Call,
    request: v1::UndrainRequest,
) -> Result<Response<v1::UndrainResponse>, Status> {
    match leader(node, call)? {
        Leader::There(mut client) => client.undrain(frame(request, call)).await,
        Leader::Here(here) => {
            let node_id = request.node_id;
            member(&node.meta.borrow().clone(), node_id)?;
            let wanted = Wanted {
                node_id,
                if_epoch: request.if_epoch,
                command: Command::UndrainMember(MetaUndrainMember { node_id }),
                is_so: &|meta| member(meta, node_id).is_ok_and(is_active),
            };
            propose(node, &*here, call, wanted).await?;
            Ok(Response::new(v1::UndrainResponse {}))
        }
    }
}

pub async fn remove(
    node: &Node,
    call: &Call,
    request: v1::RemoveMemberRequest,
) -> Result<Response<v1::RemoveMemberResponse>, Status> {
    match leader(node, call)? {
        Leader::There(mut client) => client.remove_member(frame(request, call)).await,
        Leader::Here(here) => {
            let node_id = request.node_id;
            let meta = node.meta.borrow().clone();
            if !meta.members.iter().any(|m| m.node_id == node_id) {
                return Err(ApiError::MemberNotFound { node_id }.into());
            }
            // One that drains is never made a voter again: what is seen here stays so.
            if node.info.hooks.meta_voters().contains(&NodeId(node_id)) {
                let what = format!(
                    "node {node_id} still votes in the meta group: wait until another has taken over, and ask again"
                );
                return Err(ApiError::MemberRefused { node_id, what }.into());
            }
            let wanted = Wanted {
                node_id,
                if_epoch: request.if_epoch,
                command: Command::RemoveMember(MetaRemoveMember { node_id }),
                is_so: &|meta| was_removed(meta, node_id),
            };
            propose(node, &*here, call, wanted).await?;
            Ok(Response::new(v1::RemoveMemberResponse {}))
        }
    }
}

pub async fn drain(
    node: &Arc<Node>,
    call: &Call,
    request: v1::DrainRequest,
) -> Result<Response<Answers<v1::DrainProgress>>, Status> {
    let here = match leader(node, call)? {
        Leader::There(mut client) => {
            let answers = client.drain(frame_stream(request, call)).await?.into_inner();
            return Ok(Response::new(answers.boxed()));
        }
        Leader::Here(here) => here,
    };
    let node_id = request.node_id;
    let meta = node.meta.borrow().clone();
    if !is_draining(member(&meta, node_id)?) {
        check_epoch(&meta, request.if_epoch)?;
        seen(&*here, &call.step()).await?;
        let reasons = here.drain_obstacles(NodeId(node_id));
        if !reasons.is_empty() {
            return Err(ApiError::DrainImpossible { node_id, reasons }.into());
        }
        let wanted = Wanted {
            node_id,
            if_epoch: request.if_epoch,
            command: Command::DrainMember(MetaDrainMember { node_id }),
            is_so: &|meta| member(meta, node_id).is_ok_and(is_draining),
        };
        propose(node, &*here, &call.step(), wanted).await?;
    }
    let at_start = replicas_of(&node.meta.borrow(), node_id);
    let (node, plan) = (node.clone(), here.plan());
    let stopping = node.info.stopping.clone();
    let progress = stream::unfold(Some((plan, true)), move |watched| {
        let node = node.clone();
        async move {
            let (mut plan, first) = watched?;
            if !first {
                tokio::time::sleep(WATCH_EVERY).await;
            }
            let meta = node.meta.borrow().clone();
            let draining = meta.members.iter().find(|m| m.node_id == node_id);
            if !draining.is_some_and(is_draining) {
                let what = format!("node {node_id} is not draining any more");
                let end = ApiError::MemberRefused { node_id, what };
                return Some((Err(end.into()), None));
            }
            if !node.raft.leads(GroupId::META) {
                // Said again it goes on watching, at the new leader.
                return Some((Err(ApiError::NoMetaLeader.into()), None));
            }
            let now = plan.borrow_and_update().clone();
            let left = replicas_of(&meta, node_id);
            let moves = now.moves.iter().filter(|m| m.from_node_id == node_id);
            let progress = v1::DrainProgress {
                node_id,
                replicas_at_start: at_start,
                replicas_left: left,
                done: left == 0,
                moves: moves.cloned().collect(),
                waiting: now.waiting.clone(),
            };
            Some((Ok(progress), (left > 0).then_some((plan, false))))
        }
    });
    Ok(Response::new(progress.take_until(stopping.cancelled_owned()).boxed()))
}

/// Partitions that a node holds or is to hold.
fn replicas_of(meta: &MetaState, node_id: u64) -> u32 {
    let holds = |p: &&ringfold_proto::internal::MetaPartition| {
        p.replicas.iter().any(|r| r.node_id == node_id) || p.target_node_ids.contains(&node_id)
    };
    meta.placement.iter().filter(holds).count() as u32
}

/// As `frame`, without a deadline where the client named none: it watches as long as it likes.
fn frame_stream<T>(message: T, call: &Call) -> tonic::Request<T> {
    let mut request = frame(message, call);
    if !call.has_deadline {
        request.metadata_mut().remove("grpc-timeout");
    }
    request
}
