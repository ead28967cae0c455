//! Nodes on loopback, each a process of the real binary: start, kill, pause, damage, restart.
//!
//! One cluster at a time on a machine (a lock file), because faults and two cores do not share well.
//! Nodes die with the test process, however it ends; folders of dead test processes are removed by
//! the next one. `RINGFOLD_TEST_KEEP=1` keeps the folder, and so does a failed test.
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::{
    BootstrapRequest, DrainRequest, Member, MemberState, MembershipListRequest,
    MembershipListResponse, NodeStatusRequest, NodeStatusResponse, RebalancePlanRequest,
    RebalancePlanResponse, Reducer, RemoveMemberRequest, SafeToStopRequest, SafeToStopResponse,
    TopologyRequest, TopologyResponse, TransferLeadersRequest, TransferLeadersResponse,
    UndrainRequest,
};
use ringfold_tls::{Protocol, Stream, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt;

use crate::certificates::Certificates;
use crate::failpoints::Failpoints;
use crate::netns::Net;
use crate::shim::{Loss, Shim, Survivors, library};

/// How long a cluster may take until every partition has a leader.
pub const READY_MAX: Duration = Duration::from_secs(60);
/// How long a node may take to stop after SIGTERM: 10 s, and some for a busy machine.
pub const STOP_MAX: Duration = Duration::from_secs(20);
pub(crate) const LOOPBACK: &str = "127.0.0.1";
const CONNECT_MAX: Duration = Duration::from_secs(1);
pub(crate) const RPC_MAX: Duration = Duration::from_secs(5);
/// Exit code of a node that was removed.
pub(crate) const REMOVED_EXIT: i32 = 5;
pub const GOSSIP_KEY: &str = "the tests' gossip key, which is no secret";
/// Below the range that the kernel takes outgoing ports from.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Multiplies the durations of long tests (`RINGFOLD_TEST_FACTOR`, default 1).
pub fn factor() -> u32 {
    std::env::var("RINGFOLD_TEST_FACTOR")
        .map_or(1, |v| v.parse().expect("RINGFOLD_TEST_FACTOR is a whole number from 1"))
}

/// A binary of the workspace: from the environment, or beside this test's folder.
///
/// # Panics
/// When it is not there, with what to do.
pub fn binary(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let path = profile_dir().join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --bins` first, or name it in {variable}",
        path.display()
    );
    path
}

/// `<target>/<profile>`: tests run from `<target>/<profile>/deps`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_path_buf()
}

/// Where clusters and other tests keep their files: a folder per test process, swept by the next.
pub fn scratch() -> &'static Path {
    static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
        let base = profile_dir().parent().unwrap().join("tmp/ringfold");
        fs::create_dir_all(&base).unwrap();
        for entry in fs::read_dir(&base).unwrap() {
            let path = entry.unwrap().path();
            let pid = path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                unmount_below(&path);
                let _ = fs::remove_dir_all(&path);
            }
        }
        let mine = base.join(std::process::id().to_string());
        fs::create_dir_all(&mine).unwrap();
        mine
    });
    &SCRATCH
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|l| l.split(' ').nth(1)) {
        if Path::new(mount).starts_with(dir) {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

/// The machine's one place for a cluster, held until it is dropped.
pub struct Turn(#[allow(dead_code)] File); // closing the file gives the lock back

impl Turn {
    pub async fn take() -> Arc<Self> {
        let path = scratch().parent().unwrap().join("lock");
        let file = File::create(path).unwrap();
        // SAFETY: flock takes a descriptor that is open for as long as `file` lives.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Arc::new(Self(file))
    }

    /// The turn of a cluster that runs already, for another beside it.
    pub fn shared(cluster: &LocalCluster) -> Arc<Self> {
        cluster.turn.clone()
    }
}

/// `n` ports that nobody listens on.
pub fn free_ports(n: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = u32::from(PORTS.end - PORTS.start);
    let mut ports = Vec::with_capacity(n);
    for _ in 0..span {
        if ports.len() == n {
            return ports;
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = (std::process::id().wrapping_mul(37).wrapping_add(next)) % span;
        let port = PORTS.start + place as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            ports.push(port);
        }
    }
    panic!("no {n} free ports in {PORTS:?}");
}

/// Starts a child that gets SIGKILL when this process ends, however it ends.
///
/// The kernel sends it when the *thread* that started the child ends, so one thread, which lives as
/// long as the process, starts them all.
///
/// # Errors
/// Those of `Command::spawn`.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<std::sync::Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        std::sync::Mutex::new(sender)
    });
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe, as code between fork and exec must be.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It died before the wish was heard.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("the test has ended"));
            }
            Ok(())
        });
    }
    let (answer, answered) = mpsc::channel();
    SPAWNER.lock().unwrap().send((command, answer)).unwrap();
    answered.recv().unwrap()
}

pub fn signal(child: &Child, signal: i32) {
    // SAFETY: the child is ours and not waited for yet, so the pid is still its own.
    let done = unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(done, 0, "kill: {}", io::Error::last_os_error());
}

/// Waits for a child's end.
pub async fn wait_exit(child: &mut Child, max: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + max;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Repeats `check` until it gives a value.
///
/// # Panics
/// When it does not within `max`, with what was waited for and the last reason.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    max: Duration,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + max;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => {
                panic!("{what}: not within {max:?}: {why}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

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

pub struct Node {
    pub name: String,
    pub host: String,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    pub log_path: PathBuf,
    child: Option<Child>,
    /// It is no member any more.
    pub is_removed: bool,
    is_secure: bool,
    shim: Option<Shim>,
    store: EventStoreClient<Channel>,
    admin: ClusterClient<Channel>,
}

impl Node {
    pub fn url(&self) -> String {
        url(&self.host, self.client_port, self.is_secure)
    }

    /// Where its health and metrics are: on another address of loopback, so that no port is taken.
    pub fn http(&self) -> Option<String> {
        (self.host == LOOPBACK).then(|| format!("127.0.0.2:{}", self.client_port))
    }

    /// Status and text of an HTTP answer; `None`: nobody answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let get = async {
            let mut stream = TcpStream::connect(self.http()?).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            let (head, text) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, text.to_owned()))
        };
        tokio::time::timeout(RPC_MAX, get).await.ok()?
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn store(&self) -> EventStoreClient<Channel> {
        self.store.clone()
    }

    pub fn admin(&self) -> ClusterClient<Channel> {
        self.admin.clone()
    }

    pub fn shim(&self) -> &Shim {
        self.shim.as_ref().expect("Settings::shim")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    /// # Errors
    /// The call's own.
    pub async fn status(&self) -> Result<NodeStatusResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.node_status(timed(NodeStatusRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn topology(&self) -> Result<TopologyResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.topology(timed(TopologyRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn membership(&self) -> Result<MembershipListResponse, tonic::Status> {
        let mut admin = self.admin();
        within(admin.membership_list(timed(MembershipListRequest {}, RPC_MAX)), RPC_MAX).await
    }

    /// # Errors
    /// The call's own.
    pub async fn transfer_leaders(&self) -> Result<TransferLeadersResponse, tonic::Status> {
        let max = Duration::from_secs(10);
        let mut admin = self.admin();
        within(admin.transfer_leaders(timed(TransferLeadersRequest::default(), max)), max).await
    }

    /// # Errors
    /// The call's own.
    pub async fn safe_to_stop(&self) -> Result<SafeToStopResponse, tonic::Status> {
        let mut admin = self.admin();
        let request = SafeToStopRequest::default();
        within(admin.safe_to_stop(timed(request, RPC_MAX)), RPC_MAX).await
    }
}

/// A request with its deadline said to the server.
pub fn timed<T>(message: T, max: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(max);
    request
}

/// Waits for an answer a little longer than the server was told to: a paused one says nothing.
///
/// # Errors
/// The call's own, or DEADLINE_EXCEEDED.
pub async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    max: Duration,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout(max + Duration::from_millis(500), call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
    }
}

/// The reason of an error's ErrorInfo, empty when it has none.
pub fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A field of an error's ErrorInfo.
pub fn detail(status: &tonic::Status, field: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(field).cloned()
}

pub fn channel(port: u16) -> Channel {
    channel_to(LOOPBACK, port, None)
}

/// With whatever certificate a test likes.
pub fn channel_to(host: &str, port: u16, tls: Option<Tls>) -> Channel {
    let endpoint = Endpoint::from_shared(url(host, port, tls.is_some())).unwrap();
    let endpoint = endpoint.connect_timeout(CONNECT_MAX);
    let Some(tls) = tls else { return endpoint.connect_lazy() };
    let host = host.to_owned();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let opened = async {
                let tcp = TcpStream::connect((host.as_str(), port)).await?;
                Stream::opened(tcp, &host, Some(&tls), Protocol::Http2).await
            };
            tokio::time::timeout(CONNECT_MAX, opened).await?.map(TokioIo::new)
        }
    }))
}

fn url(host: &str, port: u16, is_secure: bool) -> String {
    format!("http{}://{host}:{port}", if is_secure { "s" } else { "" })
}

pub fn store_client(channel: Channel) -> EventStoreClient<Channel> {
    EventStoreClient::new(channel)
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20)
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

    /// Starts a further node, which joins; gives its place in `nodes`.
    pub fn grow(&mut self) -> usize {
        let ports = free_ports(2);
        let i = self.add(ports[0], ports[1]);
        self.start_node(i);
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

    pub fn start_node(&mut self, i: usize) {
        assert!(self.nodes[i].child.is_none(), "node {i} runs already");
        let mut command = self.command(i);
        let log = File::options().create(true).append(true).open(&self.nodes[i].log_path).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = spawn(command).expect("ringfold-node starts");
        self.nodes[i].child = Some(child);
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

    /// Waits until every partition has a leader, which each running node with a replica knows.
    pub async fn wait_ready(&self) {
        eventually("every partition has a leader", READY_MAX, || async {
            let mut led = BTreeSet::new();
            for node in self.running() {
                let topology = node.topology().await.map_err(|s| format!("{}: {s}", node.name))?;
                let active = topology
                    .members
                    .iter()
                    .filter(|m| m.state == MemberState::Active as i32)
                    .count();
                if topology.epoch == 0
                    || active < self.settings.nodes.min(self.running().count())
                    || topology.node_id == 0
                {
                    return Err(format!(
                        "{}: epoch {}, {active} members active",
                        node.name, topology.epoch
                    ));
                }
                for p in &topology.partition_map {
                    let is_here = p.replicas.iter().any(|r| r.node_id == topology.node_id);
                    match p.leader_node_id {
                        0 if is_here => {
                            return Err(format!(
                                "{}: no leader of partition {}",
                                node.name, p.partition
                            ));
                        }
                        0 => {}
                        _ => _ = led.insert(p.partition),
                    }
                }
            }
            if led.len() < self.settings.partitions as usize {
                return Err(format!("{} partitions led", led.len()));
            }
            Ok(())
        })
        .await;
    }

    /// A client of each node that was not removed, running or not.
    pub fn stores(&self) -> Vec<EventStoreClient<Channel>> {
        self.nodes.iter().filter(|n| !n.is_removed).map(Node::store).collect()
    }

    /// The node's id in the cluster.
    pub async fn node_id(&self, i: usize) -> u64 {
        eventually("the node is a member", READY_MAX, || async {
            let name = &self.nodes[i].name;
            for node in self.running() {
                if let Ok(t) = node.topology().await
                    && let Some(m) = t.members.iter().find(|m| m.name == *name)
                {
                    return Ok(m.node_id);
                }
            }
            Err(format!("{name} is no member yet"))
        })
        .await
    }

    pub fn is_running(&self, i: usize) -> bool {
        self.nodes[i].child.is_some()
    }

    /// Waits until so many members are active.
    pub async fn wait_members(&self, members: usize) {
        eventually("members are active", READY_MAX, || async {
            let node = self.running().next().ok_or("no node runs")?;
            let topology = node.topology().await.map_err(|s| s.to_string())?;
            let active = |m: &&Member| m.state == MemberState::Active as i32;
            match topology.members.iter().filter(active).count() {
                n if n == members => Ok(()),
                n => Err(format!("{n} of {members}")),
            }
        })
        .await;
    }

    /// Which node leads the meta group, by its place in `nodes`.
    pub async fn meta_leader(&self) -> usize {
        eventually("the meta group has a leader", READY_MAX, || async {
            for node in self.running() {
                let Ok(t) = node.topology().await else { continue };
                let leads = |m: &&Member| m.node_id == t.meta_leader_node_id;
                if let Some(m) = t.members.iter().find(leads)
                    && let Some(i) = self.nodes.iter().position(|n| n.name == m.name)
                {
                    return Ok(i);
                }
            }
            Err("none known".to_string())
        })
        .await
    }

    /// The plan of moves, from whoever leads the meta group.
    pub async fn plan(&self) -> Result<RebalancePlanResponse, String> {
        let mut answer = Err("no node runs".to_string());
        // A node that was removed ends by itself, and counts as running until somebody looks.
        for node in self.running() {
            answer = self.plan_of(node).await;
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// The same, asked through this node.
    pub async fn plan_of(&self, node: &Node) -> Result<RebalancePlanResponse, String> {
        let request = timed(RebalancePlanRequest {}, RPC_MAX);
        let answer = within(node.admin().rebalance_plan(request), RPC_MAX).await;
        answer.map_err(|s| s.to_string())
    }

    /// Waits until so many members are active, none drains, and nothing is left to move.
    pub async fn wait_at_rest(&self, members: usize, max: Duration) {
        eventually("the cluster is at rest", max, || async {
            let node = self.running().next().ok_or("no node runs")?;
            let topology = node.topology().await.map_err(|s| s.to_string())?;
            let active = |m: &&Member| m.state == MemberState::Active as i32;
            let active: Vec<u64> =
                topology.members.iter().filter(active).map(|m| m.node_id).collect();
            if active.len() != members {
                return Err(format!("active members: {active:?}"));
            }
            for p in &topology.partition_map {
                if p.replicas.iter().any(|r| !active.contains(&r.node_id)) {
                    return Err(format!(
                        "partition {} is on others: {:?}",
                        p.partition, p.replicas
                    ));
                }
            }
            let plan = self.plan().await?;
            if plan.at_rest { Ok(()) } else { Err(format!("{plan:?}")) }
        })
        .await;
    }

    /// Asks for a drain; the answer's first message is that it goes on.
    pub async fn drain(&self, i: usize) -> Result<(), tonic::Status> {
        let node_id = self.node_id(i).await;
        let through = self.running().next().expect("a node runs");
        let request = tonic::Request::new(DrainRequest { node_id, if_epoch: 0 });
        let mut progress = within(through.admin().drain(request), RPC_MAX).await?;
        progress.message().await.map(|_| ())
    }

    pub async fn undrain(&self, i: usize) -> Result<(), tonic::Status> {
        let node_id = self.node_id(i).await;
        let through = self.running().next().expect("a node runs");
        let request = timed(UndrainRequest { node_id, if_epoch: 0 }, RPC_MAX);
        within(through.admin().undrain(request), RPC_MAX).await.map(|_| ())
    }

    /// Removes a node that holds nothing any more; its process ends by itself.
    pub async fn remove(&mut self, i: usize, max: Duration) {
        let node_id = self.node_id(i).await;
        eventually("the node is removed", max, || async {
            let through = self.running().find(|n| n.name != self.nodes[i].name);
            let through = through.ok_or("no other node runs")?;
            let request = timed(RemoveMemberRequest { node_id, if_epoch: 0 }, RPC_MAX);
            let removed = within(through.admin().remove_member(request), RPC_MAX).await;
            removed.map(|_| ()).map_err(|s| s.to_string())
        })
        .await;
        assert_eq!(self.wait_exit(i, max).await, REMOVED_EXIT, "{}", self.nodes[i].log());
        self.nodes[i].is_removed = true;
    }

    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.child.is_some())
    }

    pub fn partitions(&self) -> u32 {
        self.settings.partitions
    }

    /// The top bits of the name's hash.
    pub fn partition_of(&self, stream: &str) -> u32 {
        partition_of(stream, self.settings.partitions)
    }

    /// Which node leads a partition, by its place in `nodes`.
    pub async fn leader_of(&self, partition: u32) -> usize {
        eventually("a leader", READY_MAX, || async {
            for node in self.running() {
                let Ok(topology) = node.topology().await else {
                    continue;
                };
                let leader = topology
                    .partition_map
                    .iter()
                    .find(|p| p.partition == partition)
                    .map_or(0, |p| p.leader_node_id);
                let name =
                    topology.members.iter().find(|m| m.node_id == leader).map(|m| m.name.clone());
                if let Some(i) = name.and_then(|n| self.nodes.iter().position(|x| x.name == n))
                    && self.nodes[i].child.is_some()
                {
                    return Ok(i);
                }
            }
            Err(format!("none known of partition {partition}"))
        })
        .await
    }

    /// SIGTERM, and nothing more: [`Self::ended`] says when it has ended.
    pub fn tell_to_stop(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGTERM);
    }

    /// Waits until a node has ended by itself; gives the exit code.
    pub async fn ended(&mut self, i: usize, within: Duration) -> Option<i32> {
        let child = self.nodes[i].child.as_mut().expect("it runs");
        let status = wait_exit(child, within).await?;
        self.nodes[i].child = None;
        Some(status.code().unwrap_or(-1))
    }

    /// SIGTERM; gives the exit code.
    pub async fn stop(&mut self, i: usize) -> i32 {
        let mut child = self.nodes[i].child.take().expect("it runs");
        signal(&child, libc::SIGTERM);
        match wait_exit(&mut child, STOP_MAX).await {
            Some(status) => status.code().unwrap_or(-1),
            None => {
                signal(&child, libc::SIGKILL);
                let _ = child.wait();
                panic!("node {i} did not stop within {STOP_MAX:?} of SIGTERM");
            }
        }
    }

    pub fn kill(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("it runs");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("node {i} was to be killed, and had ended by itself: {status}");
        }
        signal(&child, libc::SIGKILL);
        child.wait().unwrap();
    }

    /// As [`Self::kill`], also of one that has ended by itself.
    pub fn crash(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("it runs");
        // One that had ended is a zombie until it is waited for: no harm.
        signal(&child, libc::SIGKILL);
        child.wait().unwrap();
    }

    /// All at one moment, and then what was not synced is gone.
    pub fn kill_all(&mut self) {
        for node in self.running() {
            // One that had ended by itself is a zombie until it is waited for: no harm.
            signal(node.child.as_ref().unwrap(), libc::SIGKILL);
        }
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                child.wait().unwrap();
            }
        }
    }

    /// With `Settings::shim`, of a stopped node.
    pub fn lose_power(&self, i: usize, survivors: Survivors) -> Loss {
        assert!(self.nodes[i].child.is_none(), "node {i} still runs");
        self.nodes[i].shim().drop_unsynced(survivors)
    }

    pub fn pause(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGSTOP);
    }

    pub fn resume(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGCONT);
    }

    /// Waits for a node that ends by itself; gives the exit code.
    pub async fn wait_exit(&mut self, i: usize, max: Duration) -> i32 {
        let mut child = self.nodes[i].child.take().expect("it runs");
        match wait_exit(&mut child, max).await {
            Some(status) => status.code().unwrap_or(-1),
            None => {
                self.nodes[i].child = Some(child);
                panic!("node {i} did not end within {max:?}");
            }
        }
    }

    /// The exit code of a node that was started and has ended by itself; of one killed: -1.
    pub fn exited(&mut self, i: usize) -> Option<i32> {
        let child = self.nodes[i].child.as_mut().expect("it was started");
        let status = child.try_wait().unwrap()?;
        self.nodes[i].child = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Whether a node that was started has ended by itself.
    pub fn has_exited(&mut self, i: usize) -> bool {
        self.exited(i).is_some()
    }

    pub async fn status(&self, i: usize) -> NodeStatusResponse {
        let node = &self.nodes[i];
        eventually("node status", READY_MAX, || async {
            node.status().await.map_err(|s| s.to_string())
        })
        .await
    }

    /// Once all replicas have applied as much, their chains over the events are equal.
    pub async fn assert_replicas_agree(&self) {
        for partition in 0..self.settings.partitions {
            eventually("replicas at one index", READY_MAX, || async move {
                let mut marks = Vec::new();
                for node in self.running() {
                    let status = node.status().await.map_err(|s| s.to_string())?;
                    let replicas = status.replicas.into_iter();
                    marks.extend(
                        replicas
                            .filter(|r| r.partition == Some(partition))
                            .map(|r| (r.applied_index, r.position, r.chain, node.name.clone())),
                    );
                }
                if marks.windows(2).any(|p| p[0].0 != p[1].0) {
                    return Err(format!("partition {partition}: {marks:?}"));
                }
                assert!(
                    marks.windows(2).all(|p| (p[0].1, &p[0].2) == (p[1].1, &p[1].2)),
                    "replicas of partition {partition} differ at one index: {marks:?}"
                );
                Ok(())
            })
            .await;
        }
    }

    /// Checkpoints that nodes have installed: small data may move by the log alone.
    pub fn checkpoints_installed(&self) -> usize {
        let installed = |n: &Node| n.log().matches("checkpoint installed").count();
        self.nodes.iter().map(installed).sum()
    }

    /// No node has panicked: a caught panic is in its log too.
    pub fn assert_no_panic(&self) {
        for node in &self.nodes {
            let log = node.log();
            let panicked: Vec<&str> = log.lines().filter(|l| l.contains("panicked at")).collect();
            assert!(panicked.is_empty(), "{}: {panicked:#?}", node.name);
        }
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
