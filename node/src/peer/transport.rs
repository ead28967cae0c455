//! Raft messages between nodes. Loses messages rather than wait: raft sends them again.
//!
//! Each peer has two connections in each direction, one for votes and heartbeats, one for entries.
//! On one of them messages stay in order; a new connection begins behind a gap.
use super::address_book::AddressBook;
use super::connection::dial;
use super::control::{ControlError, ControlHandler, PeerClient, TransferHandler};
use super::frame::{Handshake, Kind, Timing};
use super::lane::Lane;
use super::{LocalNodeCell, listener};
use crate::clock;
use crate::ids::NodeId;
use crate::raft::message::{Channel, PeerMessage};
use parking_lot::RwLock;
use ringfold_proto::internal::{Hello, HelloAnswer, Join, JoinAnswer};
use ringfold_tls::Tls;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// A peer from which nothing was heard for so long cannot be reached. Peers send a pulse each second.
const HEARD_NS: u64 = 3_000_000_000;
/// Peers of which it is kept when they were heard.
pub(super) const PEERS_MAX: usize = 4_096;

#[derive(Debug, Clone)]
pub struct TransportSettings {
    pub connect_timeout_ms: u64,
    pub handshake_timeout_ms: u64,
    /// Bytes that may wait for one peer, on each channel.
    pub votes_queue_bytes: usize,
    pub entries_queue_bytes: usize,
    /// Bytes of one peer's messages on one channel that the driver may have before it; more are not
    /// read.
    pub receive_bytes: usize,
    /// Connections without a handshake yet, and for control requests and transfers.
    pub connections_max: usize,
    /// What this node runs with: peers with another one are refused.
    pub timing: Timing,
    /// `None`: peers are spoken to in the clear.
    pub tls: Option<Tls>,
}

impl Default for TransportSettings {
    fn default() -> TransportSettings {
        TransportSettings {
            connect_timeout_ms: 1_000,
            handshake_timeout_ms: 3_000,
            votes_queue_bytes: 8 << 20,
            entries_queue_bytes: 64 << 20,
            receive_bytes: 64 << 20,
            connections_max: 256,
            timing: Timing { tick_ms: 100, election_ticks: 10 },
            tls: None,
        }
    }
}

impl TransportSettings {
    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }
}

/// Takes messages of a peer, in order for each of its two channels. Called on the transport's
/// runtime: must not wait. As long as the messages' bytes are kept they count against
/// `receive_bytes`.
pub type OnMessages = Arc<dyn Fn(NodeId, Vec<PeerMessage>) + Send + Sync>;

/// Who takes what peers send.
#[derive(Clone)]
pub struct Handlers {
    pub messages: OnMessages,
    pub control: Arc<dyn ControlHandler>,
    pub transfers: Arc<dyn TransferHandler>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counted since the start; for status and metrics.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64),* }

        impl Counters {
            /// Names and values.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed))),*]
            }
        }
    };
}

counters! {
    sent_messages,
    sent_bytes,
    received_messages,
    received_bytes,
    /// To a node without a known address, or before this node has joined.
    dropped_no_address,
    dropped_queue_full,
    /// The peer could not be reached, or the connection broke.
    dropped_unconnected,
    dropped_too_large,
    connects,
    connect_failures,
    accepted,
    /// More connections than `connections_max`.
    refused_busy,
    /// Handshakes of another cluster, for another node, of another version, with other settings, or none in
    /// time.
    refused_handshakes,
    /// Connections closed because of bytes that are not what they should be.
    refused_frames,
    control_requests,
    control_refusals,
}

pub(super) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// When a peer was heard, and how its clock stood to ours.
#[derive(Default)]
pub(super) struct Heard {
    /// CLOCK_BOOTTIME; 0: never.
    at_ns: AtomicU64,
    /// This node's wall clock minus the peer's as its last pulse came in.
    ahead_ms: AtomicI64,
}

impl Heard {
    pub fn now(&self) {
        self.at_ns.store(clock::boottime_ns(), Ordering::Relaxed);
    }

    pub fn pulse(&self, peer_wall_ms: u64) {
        let ahead = (clock::wall_ms() as i64).saturating_sub_unsigned(peer_wall_ms);
        self.ahead_ms.store(ahead, Ordering::Relaxed);
    }

    fn is_recent(&self) -> bool {
        let at_ns = self.at_ns.load(Ordering::Relaxed);
        at_ns > 0 && clock::boottime_ns().saturating_sub(at_ns) < HEARD_NS
    }
}

pub(super) struct Shared {
    pub settings: TransportSettings,
    pub local: LocalNodeCell,
    pub book: AddressBook,
    pub counters: Counters,
    pub stop: CancellationToken,
    runtime: Handle,
    lanes: RwLock<HashMap<(NodeId, Channel), Arc<Lane>>>,
    heard: RwLock<HashMap<NodeId, Arc<Heard>>>,
}

impl Shared {
    /// The way to a node; `None`: it has no address, or this node has no identity yet.
    fn lane(self: &Arc<Shared>, node: NodeId, channel: Channel) -> Option<Arc<Lane>> {
        if let Some(lane) = self.lanes.read().get(&(node, channel)) {
            return Some(lane.clone());
        }
        let local = self.local.get()?;
        if local.node == node || self.stop.is_cancelled() {
            return None;
        }
        self.book.get(node)?;
        let mut lanes = self.lanes.write();
        let lane = lanes.entry((node, channel)).or_insert_with(|| {
            let lane = Arc::new(Lane::new(node, channel));
            self.runtime.spawn(lane.clone().run(self.clone()));
            lane
        });
        Some(lane.clone())
    }

    pub fn remove_lane(&self, lane: &Arc<Lane>) {
        let mut lanes = self.lanes.write();
        let key = (lane.node, lane.channel);
        if lanes.get(&key).is_some_and(|l| Arc::ptr_eq(l, lane)) {
            lanes.remove(&key);
        }
    }

    pub fn heard(&self, node: NodeId) -> Arc<Heard> {
        let mut heard = self.heard.write();
        if heard.len() >= PEERS_MAX {
            heard.retain(|_, h| h.is_recent());
        }
        heard.entry(node).or_default().clone()
    }
}

/// Cheap to clone; all clones are the same transport.
#[derive(Clone)]
pub struct Transport(Arc<Shared>);

impl Transport {
    /// Starts connecting to the nodes of the address book once this node has an identity. `runtime`
    /// runs all of the transport's tasks, and its timers and sockets must be enabled.
    pub fn new(
        settings: TransportSettings,
        local: LocalNodeCell,
        book: AddressBook,
        runtime: Handle,
    ) -> Transport {
        let shared = Arc::new(Shared {
            settings,
            local,
            book,
            counters: Counters::default(),
            stop: CancellationToken::new(),
            runtime,
            lanes: RwLock::default(),
            heard: RwLock::default(),
        });
        shared.runtime.spawn(keep_pulses(shared.clone()));
        Transport(shared)
    }

    /// Takes connections until the transport stops.
    pub fn listen(&self, listener: TcpListener, handlers: Handlers) {
        self.0.runtime.spawn(listener::accept(self.0.clone(), listener, handlers));
    }

    /// Never waits. All messages of one call to one peer on one channel go out together, or are
    /// dropped together and counted.
    pub fn send(&self, messages: Vec<(NodeId, Channel, PeerMessage)>) {
        let mut batches: Vec<(NodeId, Channel, Vec<PeerMessage>)> = Vec::new();
        for (node, channel, m) in messages {
            // A handful of peers: faster than a map.
            match batches.iter_mut().find(|b| b.0 == node && b.1 == channel) {
                Some(b) => b.2.push(m),
                None => batches.push((node, channel, vec![m])),
            }
        }
        for (node, channel, batch) in batches {
            let sent = batch.len() as u64;
            let bytes_max = match channel {
                Channel::Votes => self.0.settings.votes_queue_bytes,
                Channel::Entries => self.0.settings.entries_queue_bytes,
            };
            match self.0.lane(node, channel) {
                None => count(&self.0.counters.dropped_no_address, sent),
                Some(lane) => {
                    if !lane.push(batch, bytes_max) {
                        count(&self.0.counters.dropped_queue_full, sent);
                    }
                }
            }
        }
    }

    /// Whether the node was heard from within the last 3 s. True for this node itself.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.0.local.get().is_some_and(|l| l.node == node)
            || self.0.heard.read().get(&node).is_some_and(|h| h.is_recent())
    }

    /// How far this node's wall clock is ahead of the median of the peers heard from; `None`: of
    /// none. Right after this process was paused it is too high, until the next pulse comes in:
    /// believe only what holds for two seconds.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        let heard = self.0.heard.read();
        let recent = heard.values().filter(|h| h.is_recent());
        let mut ahead: Vec<i64> = recent.map(|h| h.ahead_ms.load(Ordering::Relaxed)).collect();
        ahead.sort_unstable();
        // Of two, the one that says less.
        ahead.get(ahead.len().checked_sub(1)? / 2).copied()
    }

    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub fn address_book(&self) -> &AddressBook {
        &self.0.book
    }

    pub fn local(&self) -> &LocalNodeCell {
        &self.0.local
    }

    /// Opens a connection for requests. `to` 0: whoever lives at `address` (`host:port`).
    pub async fn connect(
        &self,
        address: &str,
        to: NodeId,
        kind: Kind,
    ) -> Result<PeerClient, ControlError> {
        let (cluster_id, from) = match self.0.local.get() {
            Some(local) => (local.cluster_id, local.node),
            None => ("".into(), NodeId(0)),
        };
        let handshake = Handshake {
            kind,
            cluster_id,
            from,
            to,
            nonce: rand::random(),
            timing: self.0.settings.timing,
        };
        let (stream, node) = dial(address, &handshake, &self.0.settings).await?;
        Ok(PeerClient::new(stream, node))
    }

    /// Opens a connection for requests to a node of the address book.
    pub async fn connect_to(&self, node: NodeId, kind: Kind) -> Result<PeerClient, ControlError> {
        let address = self.0.book.get(node).ok_or(ControlError::NoAddress(node))?;
        self.connect(&address.peer_address, node, kind).await
    }

    /// One Hello to whoever lives at `address`, a seed. What the answer says of this cluster's nodes
    /// goes into the address book.
    pub async fn hello(&self, address: &str, hello: Hello) -> Result<HelloAnswer, ControlError> {
        let mut client = self.connect(address, NodeId(0), Kind::Control).await?;
        let answer = client.hello(hello).await?;
        for hint in &answer.nodes {
            let node = NodeId(hint.node_id);
            if self.0.local.get().is_none_or(|l| l.node != node) {
                self.0.book.learn_hint(hint, self.is_reachable(node));
            }
        }
        Ok(answer)
    }

    /// Asks whoever lives at `address` who it is, as a node without a cluster: also one of another
    /// cluster answers.
    pub async fn who(&self, address: &str) -> Result<HelloAnswer, ControlError> {
        let handshake = Handshake {
            kind: Kind::Control,
            cluster_id: "".into(),
            from: NodeId(0),
            to: NodeId(0),
            nonce: rand::random(),
            timing: self.0.settings.timing,
        };
        let (stream, node) = dial(address, &handshake, &self.0.settings).await?;
        PeerClient::new(stream, node).hello(Hello::default()).await
    }

    /// One Join to the node at `address`, which must lead the meta group.
    pub async fn join(&self, address: &str, join: Join) -> Result<JoinAnswer, ControlError> {
        self.connect(address, NodeId(0), Kind::Control).await?.join(join).await
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    pub(super) fn stopped(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Closes all connections; later messages are dropped.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}

/// Keeps a connection for votes to every known node, so that each hears the other's pulse.
async fn keep_pulses(shared: Arc<Shared>) {
    let keep = async {
        let mut changes = shared.book.subscribe();
        let mut local = shared.local.subscribe();
        loop {
            for node in shared.book.nodes().into_keys() {
                let _ = shared.lane(node, Channel::Votes);
            }
            tokio::select! {
                () = changes.changed() => {}
                Ok(()) = local.changed() => {}
            }
        }
    };
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = keep => {}
    }
}

#[cfg(test)]
mod tests;
