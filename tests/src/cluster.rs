//! Nodes on loopback, each a process of the real binary: start, kill, pause, damage, restart.
//!
//! One cluster at a time on a machine (a lock file), because faults and two cores do not share well.
//! Nodes die with the test process, however it ends; folders of dead test processes are removed by
//! the next one. `RINGFOLD_TEST_KEEP=1` keeps the folder, and so does a failed test.
//!
//! | file | subject |
//! |---|---|
//! | `machine` | what tests share on one machine: binaries, folders, ports, turns |
//! | `process` | processes: started, signalled, waited for |
//! | `node` | one node, and what it is asked alone |
//! | `calls` | channels, and calls with a bound |
//! | `state` | what the cluster says of itself, and waiting for it |
//! | `members` | nodes that come, drain and go |
mod calls;
mod machine;
mod members;
mod node;
mod process;
mod state;

pub(crate) use calls::{LOOPBACK, RPC_MAX};
pub use calls::{channel, channel_to, detail, reason, store_client, timed, within};
pub use machine::{Turn, binary, factor, free_ports, scratch};
pub use node::Node;
pub(crate) use process::REMOVED_EXIT;
pub use process::{STOP_MAX, has_ended, signal, spawn, wait_exit};
pub use state::{READY_MAX, eventually};

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::{BootstrapRequest, Reducer};
use tonic::transport::Channel;

use crate::certificates::Certificates;
use crate::failpoints::Failpoints;
use crate::netns::Net;
use crate::shim::{Shim, library};

pub const GOSSIP_KEY: &str = "the tests' gossip key, which is no secret";

#[derive(Clone, Debug)]
pub struct Settings {
    pub nodes: usize,
    pub partitions: u32,
    /// 0: as many as nodes, three at most.
    pub replication_factor: u32,
    /// Preload the shim, so that `lose_power` works.
    pub shim: bool,
    /// Environment of every node.
    pub env: Vec<(String, String)>,
    /// A network of its own instead of loopback: start the cluster in its `block_on`.
    pub net: Option<Arc<Net>>,
    /// Data directories elsewhere, by node.
    pub data_dirs: Vec<(usize, PathBuf)>,
    /// Nodes gossip, on the UDP port with the number of their peer port.
    pub gossip: bool,
    /// The nodes' failpoints can be armed: only where they [exist](crate::failpoints::EXIST).
    pub failpoints: bool,
    /// Nodes and clients speak TLS.
    pub tls: Option<Arc<Certificates>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            partitions: 4,
            replication_factor: 0,
            shim: false,
            env: Vec::new(),
            net: None,
            data_dirs: Vec::new(),
            gossip: true,
            failpoints: false,
            tls: None,
        }
    }
}

pub struct LocalCluster {
    pub nodes: Vec<Node>,
    pub cluster_id: String,
    settings: Settings,
    root: PathBuf,
    turn: Arc<Turn>,
}

impl LocalCluster {
    /// Starts nodes, bootstraps, and waits until every partition has a leader.
    pub async fn start(settings: Settings) -> Self {
        Self::start_in(Turn::take().await, settings).await
    }

    /// Another cluster in the same turn.
    pub async fn start_beside(other: &Self, settings: Settings) -> Self {
        Self::start_in(Turn::shared(other), settings).await
    }

    async fn start_in(turn: Arc<Turn>, settings: Settings) -> Self {
        let mut cluster = Self::create(turn, settings);
        for i in 0..cluster.nodes.len() {
            cluster.start_node(i);
        }
        cluster.bootstrap(0).await;
        cluster.wait_ready().await;
        cluster
    }

    /// Only the folders and the ports; nothing runs yet.
    pub fn create(turn: Arc<Turn>, settings: Settings) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = scratch().join(format!("cluster-{number}"));
        fs::create_dir_all(&root).unwrap();
        let cluster_id = uuid::Uuid::new_v4().to_string();
        let mut cluster = Self { nodes: Vec::new(), cluster_id, settings, root, turn };
        let ports = free_ports(2 * cluster.settings.nodes);
        for ports in ports.chunks(2) {
            cluster.add(ports[0], ports[1]);
        }
        cluster
    }

    fn add(&mut self, client_port: u16, peer_port: u16) -> usize {
        let i = self.nodes.len();
        let (root, settings) = (&self.root, &self.settings);
        let data_dir = settings
            .data_dirs
            .iter()
            .find(|(n, _)| *n == i)
            .map_or_else(|| root.join(format!("node{i}/data")), |(_, d)| d.clone());
        fs::create_dir_all(&data_dir).unwrap();
        let shadow = root.join(format!("node{i}/shadow"));
        let host = settings.net.as_ref().map_or(LOOPBACK.into(), |net| net.host(i));
        let tls = settings.tls.as_ref().map(|c| c.admin.clone());
        let channel = channel_to(&host, client_port, tls);
        self.nodes.push(Node {
            name: format!("node{i}"),
            host,
            client_port,
            peer_port,
            log_path: root.join(format!("node{i}.log")),
            child: None,
            shim: settings.shim.then(|| Shim::new(&data_dir, &shadow)),
            data_dir,
            is_removed: false,
            is_secure: settings.tls.is_some(),
            store: store_client(channel.clone()),
            admin: ClusterClient::new(channel),
        });
        i
    }

    /// The command that starts node `i`.
    pub fn command(&self, i: usize) -> Command {
        let node = &self.nodes[i];
        // Of those that were removed nobody answers, and seeds have a limit.
        let seeds = self.nodes.iter().filter(|n| !n.is_removed);
        let seeds: Vec<String> = seeds.map(|n| format!("{}:{}", n.host, n.peer_port)).collect();
        let mut command = Command::new(binary("ringfold-node", "RINGFOLD_NODE_BIN"));
        command
            .arg("--data-dir")
            .arg(&node.data_dir)
            .args(["--name", &node.name])
            .args(["--client-listen", &format!("{}:{}", node.host, node.client_port)])
            .args(["--peer-listen", &format!("{}:{}", node.host, node.peer_port)])
            .args(["--seeds", &seeds.join(",")])
            .args(["--gossip-listen", &format!("{}:{}", node.host, node.peer_port)])
            .args(["--http-listen", &node.http().unwrap_or("off".into())])
            .env("RUST_BACKTRACE", "1")
            .envs(self.settings.env.iter().cloned())
            .stdin(Stdio::null());
        if self.settings.failpoints {
            command.env("RINGFOLD_FAILPOINTS", self.failpoints().dir());
        }
        if self.settings.gossip {
            command.env("RINGFOLD_NODE_GOSSIP_KEY", GOSSIP_KEY);
        }
        if let Some(certificates) = &self.settings.tls {
            command.envs(certificates.env());
        }
        if let Some(shim) = &node.shim {
            shim.preload(&mut command, library(scratch()));
        }
        if let Some(net) = &self.settings.net {
            net.enter(i, &mut command);
        }
        command
    }

    /// With `Settings::failpoints`.
    pub fn failpoints(&self) -> Failpoints {
        assert!(self.settings.failpoints, "Settings::failpoints");
        Failpoints::new(&self.root.join("failpoints"))
    }

    pub async fn bootstrap(&self, i: usize) {
        let nodes = self.settings.nodes as u32;
        let request = BootstrapRequest {
            cluster_id: self.cluster_id.clone(),
            partitions: self.settings.partitions,
            replication_factor: match self.settings.replication_factor {
                0 if nodes < 3 => 1,
                0 => 3,
                n => n,
            },
            initial_members: nodes,
            default_reducer: Reducer::MergePatch as i32,
            category_reducers: [(crate::model::LAST_CATEGORY.to_string(), Reducer::Last as i32)]
                .into(),
        };
        eventually("bootstrap", READY_MAX, || {
            let mut admin = self.nodes[i].admin();
            let request = timed(request.clone(), RPC_MAX);
            async move {
                within(admin.bootstrap(request), RPC_MAX)
                    .await
                    .map_err(|s| s.to_string())
            }
        })
        .await;
    }

    /// A client of each node that was not removed, running or not.
    pub fn stores(&self) -> Vec<EventStoreClient<Channel>> {
        self.nodes.iter().filter(|n| !n.is_removed).map(Node::store).collect()
    }

    pub fn is_running(&self, i: usize) -> bool {
        self.nodes[i].serves()
    }

    /// A node that was removed ends by itself, at a moment of its own.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.serves())
    }

    pub fn partitions(&self) -> u32 {
        self.settings.partitions
    }

    /// The top bits of the name's hash.
    pub fn partition_of(&self, stream: &str) -> u32 {
        partition_of(stream, self.settings.partitions)
    }
}

/// The top bits of `xxh3_64(stream)`; `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    let bits = partitions.trailing_zeros();
    let hash = xxhash_rust::xxh3::xxh3_64(stream.as_bytes());
    if bits == 0 { 0 } else { (hash >> (64 - bits)) as u32 }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.kill_all();
        let failed = std::thread::panicking();
        if failed {
            for node in &self.nodes {
                let log = node.log();
                // Without the frames of backtraces, which hide the rest.
                let frame = |l: &&str| {
                    let l = l.trim_start();
                    l.starts_with("at ")
                        || l.starts_with(|c: char| c.is_ascii_digit())
                            && l.contains(": ")
                            && !l.contains('Z')
                };
                let lines: Vec<&str> = log.lines().filter(|l| !frame(l)).collect();
                let tail = &lines[lines.len().saturating_sub(40)..];
                eprintln!("---- the end of {}:\n{}", node.log_path.display(), tail.join("\n"));
            }
            eprintln!("---- kept: {}", self.root.display());
        }
        if !failed && std::env::var_os("RINGFOLD_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}
