//! The nodes that a client knows: their connections, and which of them leads which partition.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ringfold_proto::v1;
use tonic::transport::{Channel, Endpoint};

use crate::{ClientConfig, ClientError, lazy_channel};

/// A node that failed is asked last for so long.
const AVOID: Duration = Duration::from_secs(2);
/// Members beyond this number are not connected to: a bound against a broken answer.
const NODES_MAX: usize = 4_096;

/// One node's connections. They open when first used, and again after they broke.
pub(crate) struct Node {
    pub(crate) url: String,
    channels: Vec<Channel>,
    next_channel: AtomicUsize,
    started: Instant,
    avoid_until_ms: AtomicU64,
}

impl Node {
    pub(crate) fn open(url: &str, config: &ClientConfig) -> Result<Arc<Node>, ClientError> {
        let url = url.trim_end_matches('/').to_owned();
        let endpoint = Endpoint::from_shared(url.clone())
            .ok()
            .filter(|e| matches!(e.uri().scheme_str(), Some("http" | "https")))
            .filter(|e| e.uri().host().is_some())
            .ok_or_else(|| {
                ClientError::Invalid(format!(
                    "{url:?} is not an endpoint: give http://host:port, such as http://127.0.0.1:2600"
                ))
            })?
            .connect_timeout(config.connect_timeout)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        let tls = match (endpoint.uri().scheme_str(), &config.tls) {
            (Some("https"), None) => {
                let message = format!("{url} needs TLS, and no certificates are given");
                return Err(ClientError::Invalid(message));
            }
            (Some("https"), Some(tls)) => Some(tls.clone()),
            _ => None,
        };
        let channel = |_| match (&config.connector, &tls) {
            (Some(connector), _) => connector.channel(&endpoint, tls.clone()),
            (None, _) => lazy_channel(&endpoint, tls.clone()),
        };
        let channels = (0..config.channels_per_node.max(1)).map(channel).collect();
        Ok(Arc::new(Node {
            url,
            channels,
            next_channel: AtomicUsize::new(0),
            started: Instant::now(),
            avoid_until_ms: AtomicU64::new(0),
        }))
    }

    pub(crate) fn channel(&self) -> Channel {
        let next = self.next_channel.fetch_add(1, Ordering::Relaxed);
        self.channels[next % self.channels.len()].clone()
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Asks it last for a while.
    pub(crate) fn avoid(&self) {
        self.avoid_until_ms.store(self.elapsed_ms() + AVOID.as_millis() as u64, Ordering::Relaxed);
    }

    fn is_avoided(&self) -> bool {
        let until = self.avoid_until_ms.load(Ordering::Relaxed);
        until != 0 && self.elapsed_ms() < until
    }
}

/// The partition of a stream: the top bits of its name's xxh3. `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    let bits = partitions.max(1).trailing_zeros();
    let hash = xxhash_rust::xxh3::xxh3_64(stream.as_bytes());
    // With one partition the shift is by all 64 bits, which is none to the processor.
    hash.checked_shr(64 - bits).unwrap_or(0) as u32
}

#[derive(Clone, Default)]
struct Leader {
    term: u64,
    node: Option<Arc<Node>>,
}

/// Who leads which partition, as far as this client knows. Wrong entries cost a forward, no more.
#[derive(Clone, Default)]
pub(crate) struct Map {
    cluster_id: String,
    /// By partition; empty before the cluster is placed.
    leaders: Vec<Leader>,
    /// Endpoints of the settings first, then members.
    nodes: Vec<Arc<Node>>,
    endpoints: usize,
}

impl Map {
    pub(crate) fn new(endpoints: Vec<Arc<Node>>) -> Map {
        Map { endpoints: endpoints.len(), nodes: endpoints, ..Default::default() }
    }

    pub(crate) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    pub(crate) fn is_placed(&self) -> bool {
        !self.leaders.is_empty()
    }

    pub(crate) fn partition_of(&self, stream: &str) -> Option<u32> {
        self.is_placed().then(|| partition_of(stream, self.leaders.len() as u32))
    }

    /// The leader where it is known and not known to be in trouble; else any node, in turn, the last
    /// choice being the node that just failed.
    pub(crate) fn pick(
        &self,
        partition: Option<u32>,
        turn: usize,
        except: Option<&Arc<Node>>,
    ) -> Arc<Node> {
        let usable =
            |n: &&Arc<Node>| !n.is_avoided() && except.is_none_or(|except| !Arc::ptr_eq(except, n));
        let leader =
            partition.and_then(|p| self.leaders.get(p as usize)).and_then(|l| l.node.as_ref());
        if let Some(leader) = leader.filter(usable) {
            return leader.clone();
        }
        let in_turn =
            || self.nodes.iter().cycle().skip(turn % self.nodes.len()).take(self.nodes.len());
        let other = in_turn().find(usable).or_else(|| {
            // All are in trouble: any but the one that just failed.
            in_turn().find(|n| except.is_none_or(|except| !Arc::ptr_eq(except, n)))
        });
        other.unwrap_or(&self.nodes[turn % self.nodes.len()]).clone()
    }

    /// The map with a leader that a node named, if the map knows that node and says otherwise.
    pub(crate) fn with_leader(&self, partition: u32, url: &str) -> Option<Map> {
        let url = url.trim_end_matches('/');
        let leader = self.leaders.get(partition as usize)?;
        if leader.node.as_ref().is_some_and(|n| n.url == url) {
            return None;
        }
        let node = self.nodes.iter().find(|n| n.url == url)?.clone();
        let mut map = self.clone();
        map.leaders[partition as usize].node = Some(node);
        Some(map)
    }

    /// The map as one node's topology changes it. A leader of an older term than a known one is not
    /// believed.
    pub(crate) fn with_topology(&self, t: &v1::TopologyResponse, config: &ClientConfig) -> Map {
        let same = t.cluster_id == self.cluster_id;
        let mut map = Map {
            cluster_id: t.cluster_id.clone(),
            leaders: Vec::new(),
            nodes: self.nodes[..self.endpoints].to_vec(),
            endpoints: self.endpoints,
        };
        let mut by_id = std::collections::HashMap::new();
        for member in &t.members {
            if member.state() == v1::MemberState::Removed || member.client_url.is_empty() {
                continue;
            }
            let url = member.client_url.trim_end_matches('/');
            let known = map.nodes.iter().chain(&self.nodes).find(|n| n.url == url);
            let node = match known.cloned().map_or_else(|| Node::open(url, config), Ok) {
                Ok(node) => node,
                Err(e) => {
                    tracing::debug!(node_id = member.node_id, error = %e, "member's URL left out");
                    continue;
                }
            };
            if !map.nodes.iter().any(|n| Arc::ptr_eq(n, &node)) && map.nodes.len() < NODES_MAX {
                map.nodes.push(node.clone());
            }
            by_id.insert(member.node_id, node);
        }
        if t.epoch == 0 || !t.partitions.is_power_of_two() || t.partitions > 1_024 {
            return map;
        }
        map.leaders = vec![Leader::default(); t.partitions as usize];
        for p in &t.partition_map {
            if let Some(leader) = map.leaders.get_mut(p.partition as usize) {
                *leader = Leader { term: p.term, node: by_id.get(&p.leader_node_id).cloned() };
            }
        }
        if same && self.leaders.len() == map.leaders.len() {
            for (new, known) in map.leaders.iter_mut().zip(&self.leaders) {
                if known.node.is_some()
                    && (known.term > new.term || (known.term == new.term && new.node.is_none()))
                {
                    *new = known.clone();
                }
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        ClientConfig::new(["http://127.0.0.1:1"])
    }

    fn topology(leaders: &[(u64, u64)]) -> v1::TopologyResponse {
        v1::TopologyResponse {
            cluster_id: "c".into(),
            epoch: 1,
            partitions: leaders.len() as u32,
            members: (1..=3)
                .map(|n| v1::Member {
                    node_id: n,
                    client_url: format!("http://127.0.0.1:{n}"),
                    ..Default::default()
                })
                .collect(),
            partition_map: leaders
                .iter()
                .zip(0..)
                .map(|(&(leader_node_id, term), partition)| v1::Partition {
                    partition,
                    leader_node_id,
                    term,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn map() -> Map {
        let seed = Node::open("http://127.0.0.1:1/", &config()).unwrap();
        Map::new(vec![seed])
    }

    #[test]
    fn partitions_are_the_top_bits_of_the_hash() {
        let hash = xxhash_rust::xxh3::xxh3_64(b"customer-42");
        assert_eq!(partition_of("customer-42", 1), 0);
        assert_eq!(partition_of("customer-42", 2), (hash >> 63) as u32);
        assert_eq!(partition_of("customer-42", 1_024), (hash >> 54) as u32);
        // A split keeps each stream within its partition's halves.
        for i in 0..100 {
            let name = format!("s-{i}");
            assert_eq!(partition_of(&name, 64), partition_of(&name, 128) / 2);
        }
    }

    #[tokio::test]
    async fn a_call_goes_to_the_leader_and_to_others_while_that_is_in_trouble() {
        let map = map().with_topology(&topology(&[(1, 1), (2, 1)]), &config());
        assert_eq!(map.nodes().len(), 3, "the seed is member 1");
        let leader = map.pick(Some(1), 0, None);
        assert_eq!(leader.url, "http://127.0.0.1:2");
        assert_ne!(map.pick(Some(1), 1, Some(&leader)).url, leader.url);
        leader.avoid();
        for turn in 0..4 {
            assert_ne!(map.pick(Some(1), turn, None).url, leader.url);
        }
        for node in map.nodes() {
            node.avoid();
        }
        assert_ne!(map.pick(Some(1), 1, Some(&leader)).url, leader.url);
    }

    #[tokio::test]
    async fn a_topology_of_an_older_term_does_not_bring_an_old_leader_back() {
        let map = map().with_topology(&topology(&[(2, 5)]), &config());
        let map = map.with_topology(&topology(&[(1, 4)]), &config());
        assert_eq!(map.pick(Some(0), 0, None).url, "http://127.0.0.1:2");
        let map = map.with_topology(&topology(&[(3, 6)]), &config());
        assert_eq!(map.pick(Some(0), 0, None).url, "http://127.0.0.1:3");
    }

    #[tokio::test]
    async fn a_named_leader_is_believed_only_where_it_is_a_known_node() {
        let map = map().with_topology(&topology(&[(2, 5)]), &config());
        assert!(map.with_leader(0, "http://elsewhere:2600").is_none());
        assert!(map.with_leader(0, "http://127.0.0.1:2").is_none());
        assert!(map.with_leader(9, "http://127.0.0.1:3").is_none());
        let map = map.with_leader(0, "http://127.0.0.1:3/").unwrap();
        assert_eq!(map.pick(Some(0), 0, None).url, "http://127.0.0.1:3");
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_url_is_refused_by_name() {
        let Err(e) = Node::open("https://x:1", &config()) else { panic!("it was taken") };
        assert!(e.to_string().contains("needs TLS"), "{e}");
        for bad in ["", "127.0.0.1:2600", "http://", "ftp://a"] {
            let Err(e) = Node::open(bad, &config()) else {
                panic!("{bad} was taken");
            };
            assert!(e.to_string().contains("give http://host:port"), "{e}");
        }
    }
}
