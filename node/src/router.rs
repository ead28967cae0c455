//! Where a call goes: to the replica here, or once to the node that leads.
#[cfg(test)]
mod tests;

use crate::api::deadline::{Call, FORWARDED};
use crate::api::errors::{ApiError, DOMAIN, LeaderHint, Reason};
use crate::api::node::Node;
use crate::ids::{GroupId, NodeId};
use crate::raft::handle::{ReplicaView, Role};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use ringfold_proto::internal::{MetaMember, MetaReplica, MetaState};
use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_tls::{Protocol, Stream, Tls};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt;
use tower::Service as _;

/// Response metadata of a call that was forwarded: who answered.
pub const LEADER_NODE_ID: &str = "ringfold-leader-node-id";
pub const LEADER_URL: &str = "ringfold-leader-url";

const PARTITIONS_MAX: usize = 1_024;
/// Connections to each peer: one is one thread's work at either end.
const CHANNELS_PER_PEER: usize = 2;
/// Peers whose connections are kept.
const PEERS_MAX: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// Attempts that wait for the replica here to know a leader, before others are asked in between.
const WAITS_MAX: usize = 8;
/// For an answer of a node that may not lead; one that was cut off may not even hear the question.
const GUESS_MAX: Duration = Duration::from_millis(500);
/// Bytes that are sent and not acknowledged for so long end a connection: what was lost while a network
/// was cut would be sent again only seconds after it is whole.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);
/// Pauses between attempts while nobody leads.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(100);

/// What is known where a call comes in.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub me: NodeId,
    /// The replica here, and the leader that it knows.
    pub local: Option<(Role, Option<NodeId>)>,
    /// Placement of the partition.
    pub replicas: &'a [MetaReplica],
    /// The leader that another node named.
    pub hint: Option<NodeId>,
    /// Attempts of this call so far.
    pub attempt: usize,
    /// Any replica may answer.
    pub stale: bool,
    /// It may be sent again when nobody knows what became of it.
    pub repeatable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Local,
    /// To the node that leads, by what is known.
    Forward(NodeId),
    /// To one that may know who leads.
    Ask(NodeId),
    /// Nobody to ask now: an election, or no placement yet.
    Wait,
}

/// Where to try next.
pub fn decide(known: &Known<'_>) -> Decision {
    // One that the records do not give to this node has left its group and is about to be destroyed;
    // it may never have heard of that. A node that has just started knows no records.
    let is_mine = |r: &MetaReplica| r.node_id == known.me.0;
    let is_recorded = known.replicas.is_empty() || known.replicas.iter().any(is_mine);
    // A learner may have nothing yet, and know nobody.
    let alive = known.local.filter(|(role, leader)| match role {
        Role::Closed => false,
        Role::Leader => true,
        Role::Learner => is_recorded && leader.is_some() && !known.stale,
        Role::Follower | Role::Candidate => is_recorded,
    });
    // Nor may one that was cut off from the others, or has left and is still recorded. What must not be
    // sent twice waits all the same: a guess that hears nothing would be its end.
    let asks_others = known.repeatable && known.attempt >= WAITS_MAX && known.attempt % 2 == 1;
    match alive {
        Some(_) if known.stale => return Decision::Local,
        Some((Role::Leader, _)) => return Decision::Local,
        Some((_, Some(leader))) if leader != known.me => return Decision::Forward(leader),
        // The replica here takes part in the election: it will know.
        Some(_) if !asks_others => return Decision::Wait,
        _ => {}
    }
    if let Some(hint) = known.hint.filter(|h| *h != known.me && !known.stale) {
        return Decision::Forward(hint);
    }
    let others = || known.replicas.iter().map(|r| NodeId(r.node_id)).filter(|n| *n != known.me);
    match others().count() {
        0 => Decision::Wait,
        // Where every second attempt asks, each of the others has its turn too.
        n => {
            let turn = if alive.is_some() { known.attempt / 2 } else { known.attempt };
            others().nth(turn % n).map_or(Decision::Wait, Decision::Ask)
        }
    }
}

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

struct Peer {
    url: String,
    channels: Vec<Channel>,
    next: AtomicUsize,
}

/// Connections to the other nodes, and the leaders that they named.
pub struct Router {
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    /// By partition, of those without a replica here; 0: none.
    hints: Box<[AtomicU64]>,
    tls: Option<Tls>,
}

impl Default for Router {
    fn default() -> Router {
        Router {
            peers: RwLock::default(),
            hints: (0..PARTITIONS_MAX).map(|_| AtomicU64::new(0)).collect(),
            tls: None,
        }
    }
}

impl Router {
    /// `tls`: for nodes whose URL begins with https.
    pub fn new(tls: Option<Tls>) -> Router {
        Router { tls, ..Router::default() }
    }

    /// This node's certificates.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The leader that another node named, where no replica is here.
    pub fn hint(&self, partition: u32) -> Option<NodeId> {
        let node = self.hints.get(partition as usize)?.load(Ordering::Relaxed);
        (node != 0).then_some(NodeId(node))
    }

    fn set_hint(&self, partition: u32, leader: Option<NodeId>) {
        if let Some(hint) = self.hints.get(partition as usize) {
            hint.store(leader.map_or(0, |n| n.0), Ordering::Relaxed);
        }
    }

    /// A connection to a node; it connects with its first call.
    fn channel(&self, node: NodeId, url: &str) -> Result<Channel, ApiError> {
        let peer = self.peers.read().get(&node).filter(|p| p.url == url).cloned();
        let peer = match peer {
            Some(peer) => peer,
            None => self.connect(node, url)?,
        };
        let i = peer.next.fetch_add(1, Ordering::Relaxed) % CHANNELS_PER_PEER;
        peer.channels.get(i).cloned().ok_or(ApiError::Internal)
    }

    fn connect(&self, node: NodeId, url: &str) -> Result<Arc<Peer>, ApiError> {
        let endpoint = Endpoint::from_shared(url.to_string())
            .map_err(|e| ApiError::internal(format_args!("{node} has the URL {url}: {e}")))?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let peer = Arc::new(Peer {
            url: url.to_string(),
            channels: (0..CHANNELS_PER_PEER).map(|_| self.lazily(&endpoint)).collect(),
            next: AtomicUsize::new(0),
        });
        let mut peers = self.peers.write();
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        peers.insert(node, peer.clone());
        Ok(peer)
    }

    fn lazily(&self, endpoint: &Endpoint) -> Channel {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        let Some(tls) = self.tls.clone().filter(|_| is_https(endpoint.uri())) else {
            return endpoint.connect_with_connector_lazy(http);
        };
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let (tls, mut http) = (tls.clone(), http.clone());
            async move {
                let tcp = http.call(uri.clone()).await.map_err(std::io::Error::other)?.into_inner();
                let host = uri.host().unwrap_or_default();
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let opened = Stream::opened(tcp, host, Some(&tls), Protocol::Http2);
                let opened = tokio::time::timeout(CONNECT_TIMEOUT, opened).await??;
                Ok::<_, std::io::Error>(TokioIo::new(opened))
            }
        }))
    }

    /// A client of another node's `Cluster` service.
    pub fn cluster_client(
        &self,
        meta: &MetaState,
        node: NodeId,
    ) -> Result<ClusterClient<Channel>, ApiError> {
        let url = client_url(meta, node);
        self.channel(node, &url)
            .map(|c| ClusterClient::new(c).max_decoding_message_size(MESSAGE_MAX_BYTES))
    }
}

/// Marks a request as forwarded and gives it what is left of the deadline.
pub fn frame<T>(message: T, call: &Call) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request.set_timeout(call.remaining());
    request
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn client_url(meta: &MetaState, node: NodeId) -> String {
    let member = |m: &&MetaMember| m.node_id == node.0;
    meta.members.iter().find(member).map(|m| m.client_url.clone()).unwrap_or_default()
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
