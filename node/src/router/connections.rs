//! Connections to the other nodes, and the leaders that they named.
use super::MESSAGE_MAX_BYTES;
use crate::api::errors::ApiError;
use crate::ids::NodeId;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use ringfold_proto::internal::{MetaMember, MetaState};
use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_tls::{Protocol, Stream, Tls};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service as _;

const PARTITIONS_MAX: usize = 1_024;
/// Connections to each peer: one is one thread's work at either end.
const CHANNELS_PER_PEER: usize = 2;
/// Peers whose connections are kept.
const PEERS_MAX: usize = 256;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes that are sent and not acknowledged for so long end a connection: what was lost while a network
/// was cut would be sent again only seconds after it is whole.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

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

    pub(super) fn set_hint(&self, partition: u32, leader: Option<NodeId>) {
        if let Some(hint) = self.hints.get(partition as usize) {
            hint.store(leader.map_or(0, |n| n.0), Ordering::Relaxed);
        }
    }

    /// A connection to a node; it connects with its first call.
    pub(super) fn channel(&self, node: NodeId, url: &str) -> Result<Channel, ApiError> {
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

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

pub(super) fn client_url(meta: &MetaState, node: NodeId) -> String {
    let member = |m: &&MetaMember| m.node_id == node.0;
    meta.members.iter().find(member).map(|m| m.client_url.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_kept_and_made_anew_for_a_new_address() {
        let router = Router::default();
        for port in [1, 1, 2] {
            router.channel(NodeId(2), &format!("http://127.0.0.1:{port}")).unwrap();
        }
        assert_eq!(router.peers.read().len(), 1);
        assert_eq!(router.peers.read()[&NodeId(2)].url, "http://127.0.0.1:2");
        for n in 0..2 * PEERS_MAX as u64 {
            router.channel(NodeId(n), "http://127.0.0.1:1").unwrap();
        }
        assert!(router.peers.read().len() <= PEERS_MAX);
        assert!(router.channel(NodeId(9), "no url").is_err());
    }
}
