//! Where a call goes: to the replica here, or once to the node that leads.
mod connections;
mod decision;
#[cfg(test)]
mod tests;

pub use connections::Router;
pub use decision::{Decision, Known, decide};

use crate::api::deadline::{Call, FORWARDED};
use crate::api::errors::{ApiError, DOMAIN, LeaderHint, Reason};
use crate::api::node::Node;
use crate::ids::{GroupId, NodeId};
use crate::raft::handle::ReplicaView;
use connections::client_url;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;

/// Response metadata of a call that was forwarded: who answered.
pub const LEADER_NODE_ID: &str = "ringfold-leader-node-id";
pub const LEADER_URL: &str = "ringfold-leader-url";

const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// For an answer of a node that may not lead; one that was cut off may not even hear the question.
const GUESS_MAX: Duration = Duration::from_millis(500);
/// Pauses between attempts while nobody leads.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(100);

/// Why an operation has no outcome here.
#[derive(Debug)]
pub enum LocalError {
    /// Nothing was done: this replica does not lead, or is gone.
    NotLeader(Option<NodeId>),
    /// Nothing was done: try again after a pause.
    Busy(ApiError),
    Failed(ApiError),
}

impl From<ApiError> for LocalError {
    fn from(e: ApiError) -> LocalError {
        LocalError::Failed(e)
    }
}

/// One call that the leader's replica answers, or another node.
pub trait Operation: Sync {
    type Output: Send;
    /// Any replica may answer.
    fn stale(&self) -> bool;
    /// Whether it may be sent again when nobody knows what became of it.
    fn is_repeatable(&self) -> bool;
    fn local(
        &self,
        node: &Arc<Node>,
        view: &Arc<ReplicaView>,
        call: &Call,
    ) -> impl Future<Output = Result<Self::Output, LocalError>> + Send;
    /// Sends it on; `frame` makes the request with its deadline and its mark.
    fn remote(
        &self,
        client: EventStoreClient<Channel>,
        call: &Call,
    ) -> impl Future<Output = Result<Self::Output, Status>> + Send;
}

/// An outcome, and who else gave it.
#[derive(Debug)]
pub struct Routed<T> {
    pub value: T,
    pub forwarded_to: Option<LeaderHint>,
}

impl<T> Routed<T> {
    pub fn here(value: T) -> Routed<T> {
        Routed { value, forwarded_to: None }
    }

    /// A response that names the leader where the call was forwarded.
    pub fn into_response<U>(self, into: impl FnOnce(T) -> U) -> Response<U> {
        let mut response = Response::new(into(self.value));
        if let Some(leader) = self.forwarded_to {
            response.metadata_mut().insert(LEADER_NODE_ID, leader.node.0.into());
            if let Ok(url) = leader.url.parse() {
                response.metadata_mut().insert(LEADER_URL, url);
            }
        }
        response
    }
}

/// Marks a request as forwarded and gives it what is left of the deadline.
pub fn frame<T>(message: T, call: &Call) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request.set_timeout(call.remaining());
    request
}

fn leader_hint(node: &Node, leader: NodeId) -> LeaderHint {
    LeaderHint { node: leader, url: client_url(&node.meta.borrow(), leader) }
}

/// What a failed forward means.
#[derive(Debug)]
enum Forwarded {
    /// Nothing was done there; the leader that it named.
    NotLeader(Option<NodeId>),
    /// Nothing was done: it was never sent.
    Unreachable,
    /// An answer for the client.
    Answer(Status),
    /// Nobody knows what became of it.
    Lost(Status),
}

fn sort_out(status: Status) -> Forwarded {
    let mut source = std::error::Error::source(&status);
    while let Some(e) = source {
        if e.is::<tonic::ConnectError>() {
            return Forwarded::Unreachable;
        }
        source = e.source();
    }
    match status.get_details_error_info().filter(|info| info.domain == DOMAIN) {
        // Both are said before anything is done.
        Some(info)
            if [Reason::NotLeader, Reason::ReplicaClosed]
                .iter()
                .any(|r| r.name() == info.reason) =>
        {
            let leader = info.metadata.get("leader_node_id").and_then(|id| id.parse().ok());
            Forwarded::NotLeader(leader.map(NodeId))
        }
        Some(_) => Forwarded::Answer(status),
        None => Forwarded::Lost(status),
    }
}

/// Pauses that grow.
struct Backoff(Duration);

impl Backoff {
    /// Fails when the call must end first.
    async fn pause(&mut self, node: &Node, call: &Call, error: ApiError) -> Result<(), ApiError> {
        if call.remaining() <= self.0 {
            return Err(error);
        }
        tokio::select! {
            () = tokio::time::sleep(self.0) => {}
            () = node.info.stopping.cancelled() => return Err(ApiError::NodeStopping),
        }
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        Ok(())
    }
}

/// Answers a call of one partition: here if this node leads it, otherwise forwarded, and while
/// nobody leads, tried again up to the deadline. What may have been done is never done again
/// unless the operation is repeatable.
pub async fn route<O: Operation>(
    node: &Arc<Node>,
    partition: u32,
    call: &Call,
    operation: &O,
) -> Result<Routed<O::Output>, ApiError> {
    let group = GroupId::of_partition(partition);
    let mut backoff = Backoff(BACKOFF_FIRST);
    let mut attempt = 0;
    loop {
        if call.remaining().is_zero() {
            return Err(ApiError::DeadlineExceeded { in_flight: false });
        }
        let view = node.raft.replica(group);
        let local = view.as_ref().map(|v| {
            let status = v.status.read();
            (status.role, status.leader)
        });
        let decision = {
            let meta = node.meta.borrow();
            decide(&Known {
                me: node.info.node_id(),
                local,
                replicas: meta.placement.get(partition as usize).map_or(&[], |p| &p.replicas),
                hint: node.router.hint(partition),
                attempt,
                stale: operation.stale(),
                repeatable: operation.is_repeatable(),
            })
        };
        attempt += 1;
        match (decision, &view) {
            (Decision::Local, Some(view)) => match operation.local(node, view, call).await {
                Ok(value) => return Ok(Routed::here(value)),
                Err(LocalError::Failed(e)) => return Err(e),
                Err(LocalError::NotLeader(leader)) if call.forwarded => {
                    let leader = leader.map(|n| leader_hint(node, n));
                    return Err(ApiError::NotLeader { leader });
                }
                Err(LocalError::Busy(e)) if call.forwarded => return Err(e),
                Err(LocalError::NotLeader(_)) => {
                    backoff.pause(node, call, ApiError::NoLeader { partition }).await?;
                }
                Err(LocalError::Busy(e)) => backoff.pause(node, call, e).await?,
            },
            (Decision::Local | Decision::Wait, _) => {
                let closed = view.as_ref().and_then(|v| v.status.read().closed_reason.clone());
                let error = match closed {
                    Some(reason) => ApiError::ReplicaClosed(reason.to_string()),
                    None if call.forwarded => ApiError::NotLeader { leader: None },
                    None => ApiError::NoLeader { partition },
                };
                if call.forwarded {
                    return Err(error);
                }
                backoff.pause(node, call, error).await?;
            }
            (Decision::Ask(_), _) if call.forwarded => {
                return Err(ApiError::NotLeader { leader: None });
            }
            (Decision::Forward(to), _) if call.forwarded => {
                return Err(ApiError::NotLeader { leader: Some(leader_hint(node, to)) });
            }
            (Decision::Forward(to) | Decision::Ask(to), _) => {
                let leader = leader_hint(node, to);
                let client = EventStoreClient::new(node.router.channel(to, &leader.url)?)
                    .max_decoding_message_size(MESSAGE_MAX_BYTES);
                // Boxed, so that a call that is answered here stays small.
                let remote = Box::pin(operation.remote(client, call));
                let is_guess = operation.is_repeatable() && matches!(decision, Decision::Ask(_));
                let max = if is_guess { GUESS_MAX } else { Duration::MAX };
                let remote = async {
                    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
                    tokio::time::timeout(max, remote).await.unwrap_or_else(late)
                };
                let answer = call.within(!operation.is_repeatable(), remote).await?;
                let status = match answer {
                    Ok(value) => {
                        node.router.set_hint(partition, Some(to));
                        return Ok(Routed { value, forwarded_to: Some(leader) });
                    }
                    Err(status) => status,
                };
                let mut nobody = ApiError::NoLeader { partition };
                match sort_out(status) {
                    Forwarded::Answer(status) => {
                        return Err(ApiError::Forwarded(Box::new(status)));
                    }
                    Forwarded::Lost(status) if !operation.is_repeatable() => {
                        let message = format!("forwarded to {to}: {}", status.message());
                        return Err(ApiError::OutcomeUnknown(message.into()));
                    }
                    Forwarded::NotLeader(leader) => {
                        let next = leader.filter(|n| *n != to);
                        node.router.set_hint(partition, next);
                        // Somebody else leads: ask there at once, but only once.
                        if next.is_some() && attempt == 1 {
                            continue;
                        }
                    }
                    Forwarded::Unreachable => node.router.set_hint(partition, None),
                    Forwarded::Lost(_) => {
                        node.router.set_hint(partition, None);
                        // There may well be a leader: it has not answered.
                        nobody = ApiError::DeadlineExceeded { in_flight: false };
                    }
                }
                backoff.pause(node, call, nobody).await?;
            }
        }
    }
}
