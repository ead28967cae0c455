//! `MembershipList` and `MembershipChanges`: the view of gossip as messages.
use super::member;
use crate::api::deadline::Call;
use crate::api::errors::ApiError;
use crate::api::node::Node;
use crate::gossip::facts::Facts;
use crate::gossip::membership::{Follower, List, News};
use crate::gossip::view::{ChangeKind, Entry, Liveness};
use futures::stream::{self, BoxStream, StreamExt};
use ringfold_proto::v1;
use ringfold_proto::v1::membership_changes_response::News as Told;
use std::sync::Arc;
use tonic::Status;

pub fn list(node: &Node, list: List) -> v1::MembershipListResponse {
    v1::MembershipListResponse {
        cluster_id: node.info.cluster_id().to_owned(),
        node_id: node.info.node_id().0,
        gossips: list.gossips,
        members: list.entries.into_iter().map(|e| entry(node, e)).collect(),
        sequence: list.sequence,
    }
}

/// Ends with an error: at the deadline, if the call has one, or when the node stops.
pub fn changes(
    node: Arc<Node>,
    call: Call,
) -> Result<BoxStream<'static, Result<v1::MembershipChangesResponse, Status>>, ApiError> {
    let follower =
        node.members.follow().ok_or(ApiError::Overloaded("too many follow the members"))?;
    let next = move |state: Option<(Arc<Node>, Follower)>| async move {
        let (node, mut follower) = state?;
        let deadline = async {
            match call.has_deadline {
                true => tokio::time::sleep_until(call.deadline).await,
                false => std::future::pending().await,
            }
        };
        let stopping = node.info.stopping.clone();
        let ended = tokio::select! {
            news = follower.next() => {
                let told = response(&node, news);
                return Some((Ok(told), Some((node, follower))));
            }
            () = deadline => ApiError::DeadlineExceeded { in_flight: false },
            () = stopping.cancelled() => ApiError::NodeStopping,
        };
        Some((Err(ended.into()), None))
    };
    Ok(stream::unfold(Some((node, follower)), next).boxed())
}

fn response(node: &Node, news: News) -> v1::MembershipChangesResponse {
    match news {
        News::List { list: l, lagged } => {
            v1::MembershipChangesResponse { news: Some(Told::List(list(node, l))), lagged }
        }
        News::Change(n) => {
            let kind = match n.change.kind {
                ChangeKind::Added => v1::MembershipChangeKind::Added,
                ChangeKind::Lost => v1::MembershipChangeKind::Lost,
                ChangeKind::Rejoined => v1::MembershipChangeKind::Rejoined,
                ChangeKind::Left => v1::MembershipChangeKind::Left,
            };
            let change = v1::MembershipChange {
                sequence: n.sequence,
                kind: kind as i32,
                member: Some(entry(node, n.change.entry.clone())),
            };
            v1::MembershipChangesResponse { news: Some(Told::Change(change)), lagged: false }
        }
    }
}

fn entry(node: &Node, e: Entry) -> v1::MembershipEntry {
    let liveness = match e.liveness {
        Liveness::Unknown => v1::Liveness::Unspecified,
        Liveness::Live => v1::Liveness::Live,
        Liveness::Lost => v1::Liveness::Lost,
    };
    v1::MembershipEntry {
        member: Some(member(node, &e.member)),
        liveness: liveness as i32,
        since_unix_ms: e.since_unix_ms,
        facts: e.facts.map(facts),
    }
}

fn facts(f: Facts) -> v1::NodeFacts {
    v1::NodeFacts {
        name: f.name,
        zone: f.zone,
        client_url: f.client_url,
        peer_address: f.peer_address,
        version: f.version,
        replicas: f.replicas,
        leaders: f.leaders,
        disk_free_bytes: f.disk_free_bytes,
        disk_total_bytes: f.disk_total_bytes,
        cpu_percent: f.cpu_percent,
    }
}
