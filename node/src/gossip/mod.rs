//! Gossip: what helps but never decides. chitchat carries what each node says of itself; here it
//! becomes the view of the members and hints where nodes are. Ownership comes from Raft alone.
mod addresses;
pub mod datagram;
pub mod facts;
mod generation;
pub mod membership;
pub mod transport;
pub mod view;

use crate::api::node::NodeInfo;
use crate::clock;
use crate::config::Settings;
use crate::ids::NodeId;
use crate::meta::state::was_removed;
use crate::peer::LocalNode;
use crate::peer::transport::Transport as PeerTransport;
use crate::raft::handle::{RaftHandle, Role};
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat,
};
use datagram::{Keys, Opener, Party};
use facts::Facts;
use membership::Membership;
use parking_lot::Mutex;
use ringfold_proto::internal::{MetaState, NodeAddress};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use transport::{Counters, SealedTransport};
use view::{Heard, Now};

const GOSSIP_INTERVAL: Duration = Duration::from_secs(1);
/// The view is renewed at least so often, and what this node says of itself every second time.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(500);
/// Seeds and members that are not live are looked up and greeted: often while nobody is live.
const DISCOVER_ALONE: Duration = Duration::from_secs(1);
const DISCOVER: Duration = Duration::from_secs(5);
/// A dead node's facts are forgotten after this, its generations too.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// Binds the gossip port; `None` where there is no key.
pub async fn bind(settings: &Settings) -> std::io::Result<Option<Arc<UdpSocket>>> {
    if settings.gossip_key.is_empty() {
        return Ok(None);
    }
    UdpSocket::bind(settings.gossip_listen).await.map(Arc::new).map(Some)
}

/// This node's gossip.
pub struct Gossip {
    pub settings: Arc<Settings>,
    /// `None`: this node does not gossip.
    pub socket: Option<Arc<UdpSocket>>,
    pub info: Arc<NodeInfo>,
    pub raft: RaftHandle,
    pub meta: watch::Receiver<Arc<MetaState>>,
    pub peers: PeerTransport,
    pub membership: Arc<Membership>,
    pub counters: Arc<Counters>,
}

impl Gossip {
    /// Runs once the node is a member. Drop it to stop.
    pub async fn run(self) {
        let mut local = self.peers.local().subscribe();
        let me = match local.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(me)) => me.clone(),
            _ => return,
        };
        match &self.socket {
            Some(socket) => self.gossip(&me, socket).await,
            None => {
                tracing::warn!(
                    "gossip is off: it needs a key (gossip_key_file). Members are not seen as live \
                     or lost, and addresses come from seeds and the meta group alone"
                );
                let mut meta = self.meta.clone();
                loop {
                    let state = meta.borrow_and_update().clone();
                    self.membership.observe(now(), me.node, &state.members, None);
                    if meta.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// chitchat panics on a message that breaks its rules; only a node with the key can send one. It
    /// is started anew then, as a new generation.
    async fn gossip(&self, me: &LocalNode, socket: &Arc<UdpSocket>) {
        let previous = &self.settings.gossip_previous_key;
        let previous = (!previous.is_empty()).then(|| previous.text());
        let keys = Keys::new(self.settings.gossip_key.text(), previous);
        let party = Party::new(keys, &me.cluster_id, me.node);
        let opener = Arc::new(Mutex::new(Opener::new(party.clone())));
        let mut pause = RESTART_MIN;
        loop {
            let started = Instant::now();
            let transport = SealedTransport {
                socket: socket.clone(),
                party: party.clone(),
                generation: self.next_generation().await,
                opener: opener.clone(),
                counters: self.counters.clone(),
            };
            let error = match self.start(me, &transport).await {
                Ok(handle) => tokio::select! {
                    ended = handle.termination_watcher() => match ended {
                        Ok(()) => "it was told to end".to_owned(),
                        Err(e) => e.to_string(),
                    },
                    () = self.watch(&handle, me.node) => return,
                    () = self.discover(&handle) => return,
                },
                Err(e) => e.to_string(),
            };
            transport::count(&self.counters.restarts);
            tracing::error!(error, pause_ms = pause.as_millis() as u64, "gossip starts anew");
            tokio::time::sleep(pause).await;
            let lasted = started.elapsed() > 2 * RESTART_MAX;
            pause = if lasted { RESTART_MIN } else { (pause * 2).min(RESTART_MAX) };
        }
    }

    async fn next_generation(&self) -> u64 {
        let dir = self.settings.data_dir.clone();
        let next = move || generation::next(&dir, clock::wall_ms());
        // It syncs a file. A panic in it, which there is none, leaves the clock.
        tokio::task::spawn_blocking(next).await.unwrap_or_else(|_| clock::wall_ms())
    }

    async fn start(
        &self,
        me: &LocalNode,
        transport: &SealedTransport,
    ) -> anyhow::Result<ChitchatHandle> {
        let others = addresses::look_up(self.names(&HashSet::new())).await;
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let address = addresses::advertised(&self.settings, &host_name, &others).await;
        let generation = transport.generation;
        tracing::info!(%address, generation, "gossip");
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(me.node.0.to_string(), generation, address),
            cluster_id: me.cluster_id.to_string(),
            gossip_interval: GOSSIP_INTERVAL,
            listen_addr: self.settings.gossip_listen,
            // We greet them ourselves, oftener, and those that are not in the settings.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: GOSSIP_INTERVAL,
                dead_node_grace_period: FORGET_AFTER,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: FORGET_AFTER,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let facts = self.facts(0).to_pairs().map(|(name, value)| (name.to_owned(), value));
        spawn_chitchat(config, facts.into(), transport).await
    }

    /// Keeps the view, the hints, and what this node says of itself. Ends with the meta group.
    async fn watch(&self, handle: &ChitchatHandle, me: NodeId) {
        let mut meta = self.meta.clone();
        let mut timer = tokio::time::interval(OBSERVE_INTERVAL);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cpu = CpuUse::start();
        let mut said = Instant::now();
        let mut own = self.facts(0);
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                changed = meta.changed() => if changed.is_err() {
                    return;
                },
            }
            let state = meta.borrow_and_update().clone();
            let mut heard = handle.with_chitchat(|c| heard(c)).await;
            heard.push(Heard { node: me, is_alive: true, facts: own.clone(), ..Heard::default() });
            self.membership.observe(now(), me, &state.members, Some(&heard));
            self.give_hints(&state, &heard);
            if said.elapsed() >= Duration::from_secs(1) {
                said = Instant::now();
                own = self.facts(cpu.percent());
                let pairs = own.to_pairs();
                handle
                    .with_chitchat(|c| {
                        for (name, value) in &pairs {
                            // Nothing happens where it is as before.
                            c.self_node_state().set(name, value);
                        }
                    })
                    .await;
            }
        }
    }

    /// Where live nodes say that they are: counts only while nothing better is known.
    fn give_hints(&self, state: &MetaState, heard: &[Heard]) {
        let me = self.peers.local().get().map(|l| l.node);
        let others = heard.iter().filter(|h| Some(h.node) != me);
        for h in others.filter(|h| h.is_alive && !h.facts.peer_address.is_empty()) {
            if was_removed(state, h.node.0) {
                continue;
            }
            let hint = NodeAddress {
                node_id: h.node.0,
                peer_address: h.facts.peer_address.clone(),
                client_url: h.facts.client_url.clone(),
            };
            self.peers.address_book().learn_hint(&hint, self.peers.is_reachable(h.node));
        }
    }

    /// Greets seeds, and members that are not live. Never ends.
    async fn discover(&self, handle: &ChitchatHandle) {
        loop {
            let (live, live_addresses): (HashSet<NodeId>, HashSet<SocketAddr>) = handle
                .with_chitchat(|c| {
                    let nodes = c.live_nodes().filter_map(|id| Some((node_of(id)?, id)));
                    nodes.map(|(node, id)| (node, id.gossip_advertise_addr)).unzip()
                })
                .await;
            for address in addresses::look_up(self.names(&live)).await {
                if !live_addresses.contains(&address) {
                    // Fails only once chitchat has ended, which is seen elsewhere.
                    let _ = handle.gossip(address);
                }
            }
            // This node is always live.
            tokio::time::sleep(if live.len() < 2 { DISCOVER_ALONE } else { DISCOVER }).await;
        }
    }

    /// Hosts and ports where others may gossip: seeds, and known nodes other than those.
    fn names(&self, without: &HashSet<NodeId>) -> HashSet<String> {
        let known = self.peers.address_book().nodes().into_iter();
        let known = known.filter(|(node, _)| !without.contains(node)).map(|(_, a)| a.peer_address);
        let seeds = self.settings.seeds.iter().map(|s| Arc::from(s.as_str()));
        // Seeds first: the number of names is bounded.
        let all = seeds.chain(known).filter(|a| **a != *self.settings.peer_address);
        all.take(addresses::NAMES_MAX)
            .filter_map(|a| addresses::of_peer(&a, &self.settings))
            .collect()
    }

    fn facts(&self, cpu_percent: u32) -> Facts {
        let (mut replicas, mut leaders) = (0, 0);
        for view in self.raft.replicas.read().values() {
            if view.group.partition().is_some() {
                replicas += 1;
                leaders += u32::from(view.status.read().role == Role::Leader);
            }
        }
        let (s, disk) = (&self.settings, &self.info.disk);
        Facts {
            name: s.name.clone(),
            zone: s.zone.clone(),
            client_url: s.client_url.clone(),
            peer_address: s.peer_address.clone(),
            version: self.info.version.to_owned(),
            replicas,
            leaders,
            disk_free_bytes: disk.free_bytes.load(Ordering::Relaxed),
            disk_total_bytes: disk.total_bytes.load(Ordering::Relaxed),
            cpu_percent,
        }
        .rounded()
    }
}

fn now() -> Now {
    Now { boot_ms: clock::boottime_ns() / 1_000_000, unix_ms: clock::wall_ms() }
}

fn node_of(id: &ChitchatId) -> Option<NodeId> {
    id.node_id.parse().ok().map(NodeId)
}

/// All other nodes that chitchat knows, each in its newest generation.
fn heard(chitchat: &Chitchat) -> Vec<Heard> {
    let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let me = chitchat.self_chitchat_id();
    let mut newest = BTreeMap::<NodeId, Heard>::new();
    for (id, state) in chitchat.node_states() {
        let Some(node) = node_of(id).filter(|_| id.node_id != me.node_id) else { continue };
        if newest.get(&node).is_some_and(|h| h.generation > id.generation_id) {
            continue;
        }
        let heard = Heard {
            node,
            generation: id.generation_id,
            heartbeat: state.heartbeat().into(),
            is_alive: live.contains(id),
            facts: Facts::from_pairs(state.key_values()),
        };
        newest.insert(node, heard);
    }
    newest.into_values().collect()
}

/// Processor time of this process between two looks.
struct CpuUse {
    at_ns: u64,
    used_ns: u64,
}

impl CpuUse {
    fn start() -> CpuUse {
        CpuUse { at_ns: clock::boottime_ns(), used_ns: used_ns() }
    }

    /// Since the last look, 100: one core.
    fn percent(&mut self) -> u32 {
        let new = CpuUse::start();
        let used_ns = new.used_ns.saturating_sub(self.used_ns);
        let passed_ns = new.at_ns.saturating_sub(self.at_ns).max(1);
        *self = new;
        (u128::from(used_ns) * 100 / u128::from(passed_ns)) as u32
    }
}

fn used_ns() -> u64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
