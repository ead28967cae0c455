//! What nodes say of themselves: this one, and the others as far as they answer.
use super::safety;
use crate::api::deadline::Call;
use crate::api::errors::ApiError;
use crate::api::node::Node;
use crate::ids::NodeId;
use crate::partition::store::AppliedMark;
use crate::raft::handle::{ReplicaView, Role};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use ringfold_proto::v1;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::Request;

/// A node that does not tell its status within this time is counted as down.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes asked at once.
const CONCURRENCY: usize = 32;

/// This node.
pub async fn own(node: &Node) -> Result<v1::NodeStatusResponse, ApiError> {
    let info = &node.info;
    let mut views: Vec<_> = node.raft.replicas.read().values().cloned().collect();
    views.sort_unstable_by_key(|v| v.group);
    let marks = {
        let views = views.clone();
        let marks = move || views.iter().map(|v| mark(v)).collect::<Vec<_>>();
        node.reads.run(marks).await?
    };
    let replicas = views.iter().zip(marks).map(|(view, mark)| replica_status(view, mark));
    Ok(v1::NodeStatusResponse {
        node_id: info.node_id().0,
        name: info.name.clone(),
        version: info.version.to_string(),
        cluster_id: info.cluster_id().to_string(),
        uptime_ms: info.started.elapsed().as_millis() as u64,
        disk_total_bytes: info.disk.total_bytes.load(Ordering::Relaxed),
        disk_free_bytes: info.disk.free_bytes.load(Ordering::Relaxed),
        appends_refused: info.disk.appends_refused.load(Ordering::Relaxed),
        lost_reason: info.lost.get().cloned().unwrap_or_default(),
        replicas: replicas.collect(),
        counters: info.hooks.counters(),
        ready: node.is_ready(),
        waiting: node.waits_for(),
        stopping: info.is_leaving(),
    })
}

/// Of other nodes, those that answer.
pub async fn of(
    node: &Node,
    nodes: impl IntoIterator<Item = NodeId>,
    within: Duration,
) -> BTreeMap<NodeId, v1::NodeStatusResponse> {
    let timeout = TIMEOUT.min(within);
    let meta = node.meta.borrow().clone();
    let asked = nodes.into_iter().map(|n| {
        let client = node.router.cluster_client(&meta, n);
        async move {
            let mut request = Request::new(v1::NodeStatusRequest {});
            request.set_timeout(timeout);
            let mut client = client.ok()?;
            let answer = tokio::time::timeout(timeout, client.node_status(request)).await;
            Some((n, answer.ok()?.ok()?.into_inner()))
        }
    });
    let answers = stream::iter(asked).buffer_unordered(CONCURRENCY);
    answers.filter_map(|answer| async move { answer }).collect().await
}

/// Of every node but one, as far as they answer.
pub async fn of_all_but(
    node: &Node,
    call: &Call,
    without: NodeId,
) -> Result<BTreeMap<NodeId, v1::NodeStatusResponse>, ApiError> {
    let me = node.info.node_id();
    let mut others: Vec<_> = node.meta.borrow().members.iter().map(|m| NodeId(m.node_id)).collect();
    others.retain(|n| *n != me && *n != without);
    let mut statuses = of(node, others, call.remaining()).await;
    if without != me {
        statuses.insert(me, own(node).await?);
    }
    Ok(statuses)
}

/// Why the cluster needs the node `target` now, a line each; empty: it may stop.
pub async fn needs(node: &Node, call: &Call, target: NodeId) -> Result<Vec<String>, ApiError> {
    let statuses = of_all_but(node, call, target).await?;
    let meta = node.meta.borrow().clone();
    let voters = node.info.hooks.meta_voters();
    Ok(safety::reasons(target, &meta, &voters, &statuses))
}

/// Why the cluster needs this node, which was told to stop. Of nodes that stop at the same time the
/// one with the lowest id goes first. `None`: all others stop as well, or do not answer, so that there
/// is nobody to wait for.
pub async fn needs_leaving(node: &Node, call: &Call) -> Result<Option<Vec<String>>, ApiError> {
    let me = node.info.node_id();
    let mut statuses = of_all_but(node, call, me).await?;
    if statuses.values().all(|s| s.stopping) {
        return Ok(None);
    }
    // One that goes later is there as long as this one waits.
    for (_, status) in statuses.range_mut(me..) {
        status.stopping = false;
    }
    let meta = node.meta.borrow().clone();
    let voters = node.info.hooks.meta_voters();
    Ok(Some(safety::reasons(me, &meta, &voters, &statuses)))
}

/// How far a partition's database is; `None` for the meta group, and where it cannot be read.
fn mark(view: &ReplicaView) -> Option<AppliedMark> {
    view.group.partition()?;
    if view.status.read().role == Role::Closed {
        return None;
    }
    view.reader.mark().inspect_err(|e| tracing::error!(group = %view.group, error = %e)).ok()
}

fn replica_status(view: &ReplicaView, mark: Option<AppliedMark>) -> v1::ReplicaStatus {
    let settled = view.is_settled();
    let status = view.status.read().clone();
    let applied = *view.applied.borrow();
    // Position and chain belong to the index that they were read with.
    let (applied_index, position, chain) = match mark {
        Some(m) => (m.index, m.last_position, Bytes::copy_from_slice(&m.chain)),
        None => (applied.index, applied.position, Bytes::new()),
    };
    v1::ReplicaStatus {
        partition: view.group.partition(),
        replica_id: view.replica.0,
        state: match status.role {
            Role::Follower => v1::ReplicaState::Follower,
            Role::Candidate => v1::ReplicaState::Candidate,
            Role::Leader => v1::ReplicaState::Leader,
            Role::Learner => v1::ReplicaState::Learner,
            Role::Closed => v1::ReplicaState::Closed,
        } as i32,
        term: status.term,
        last_index: status.last_index,
        commit_index: status.commit_index,
        applied_index,
        flushed_index: status.flushed_index,
        first_index: status.first_index,
        closed_reason: status.closed_reason.map(|r| r.to_string()).unwrap_or_default(),
        position,
        chain,
        // It may have lost its leadership between the two looks.
        settled: settled && status.role == Role::Leader,
    }
}
