//! One node, wired: what starts in which order, and how it ends.
use crate::api::node::{Node, NodeInfo};
use crate::api::read_pool::ReadPool;
use crate::api::validate::Limits;
use crate::cluster::{Cluster, Hooks};
use crate::config::Settings;
use crate::disk::{self, DiskError};
use crate::gossip::{self, Gossip};
use crate::identity::{self, IdentityError};
use crate::ids::{NodeId, ReplicaId};
use crate::meta::join::JoinError;
use crate::meta::rebalance::{Rebalance, RebalanceSettings};
use crate::partition::store::SharedResources;
use crate::peer::LocalNodeCell;
use crate::peer::address_book::AddressBook;
use crate::peer::control::{NoTransfers, TransferHandler};
use crate::peer::frame::Timing;
use crate::peer::transfer::{TransferError, TransferSettings, Transfers};
use crate::peer::transport::{Handlers, Transport, TransportSettings};
use crate::raft::driver::{Counters, DriverSettings, Input, NewGroup};
use crate::raft::handle::{RaftHandle, Replicas};
use crate::raft::log::engine::{EngineLog, EngineSettings};
use crate::raft::log::{LogError, RaftLog};
use crate::raft::runtime::{FlushSettings, Parts, RaftRuntime};
use crate::replicas::ReplicaHome;
use crate::router::Router;
use crate::transfers::ReplicaTransfers;
use crate::watermark::{LogState, Watermark, judge};
use crate::{api, clock};
use ringfold_proto::internal::{Identity, MetaJoin, MetaState};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("data_dir {path} cannot be {action}: {source}")]
    Directory { path: String, action: &'static str, source: std::io::Error },
    #[error("{setting} {address} cannot be listened on: {source}")]
    Listen { setting: &'static str, address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Serve(#[from] api::server::ServeError),
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// Ended because the log could not be written: what was acknowledged is safe, nothing else is.
pub const EXIT_LOG: i32 = 4;

impl RunError {
    /// The process's exit code (docs/settings.md).
    pub fn exit_code(&self) -> i32 {
        match self {
            RunError::Identity(_) | RunError::Join(JoinError::ForeignCluster { .. }) => 3,
            RunError::Join(JoinError::Removed(_)) => 5,
            _ => 1,
        }
    }
}

/// Leaderships are handed over for so long before the port closes.
const HAND_OVER: Duration = Duration::from_secs(3);

/// What the log of the data directory is, and what it holds.
struct OpenedLog {
    log: Option<Arc<dyn RaftLog>>,
    watermark: Option<Arc<Watermark>>,
    lost: Option<String>,
}

/// Runs the node until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), RunError> {
    let settings = Arc::new(settings);
    let dir = settings.data_dir.clone();
    let directory = |action| {
        let path = dir.display().to_string();
        move |source| RunError::Directory { path, action, source }
    };
    std::fs::create_dir_all(&dir).map_err(directory("created"))?;
    let _lock = identity::lock(&dir)?;
    let disk = Arc::new(disk::Disk::open(&dir, settings.disk_min_free_bytes)?);
    let identity = identity::load_or_create(&dir)?;
    let client_listener = listen("client_listen", settings.client_listen).await?;
    let peer_listener = listen("peer_listen", settings.peer_listen).await?;
    let gossip_socket = gossip::bind(&settings).await.map_err(|source| RunError::Listen {
        setting: "gossip_listen",
        address: settings.gossip_listen,
        source,
    })?;
    let gossip_counters: Arc<gossip::transport::Counters> = Arc::default();
    let members: Arc<gossip::membership::Membership> = Arc::default();

    let opened = open_log(&dir, &identity);
    let (meta_sender, meta) = watch::channel(Arc::new(MetaState::default()));
    let resources =
        SharedResources::with_memtables(settings.cache_bytes, settings.memtable_bytes, 2);
    let home = ReplicaHome::new(&dir, resources, meta_sender).map_err(directory("written"))?;
    let replicas: Arc<Replicas> = Arc::default();
    let (groups, known) = load_replicas(&opened, &home, &replicas).map_err(directory("cleaned"))?;

    let cell = LocalNodeCell::new(None);
    let book = AddressBook::default();
    let transport = Transport::new(
        TransportSettings {
            timing: Timing {
                tick_ms: settings.tick_ms.try_into().unwrap_or(u32::MAX),
                election_ticks: settings.election_ticks.try_into().unwrap_or(u32::MAX),
            },
            ..TransportSettings::default()
        },
        cell.clone(),
        book,
        tokio::runtime::Handle::current(),
    );
    let transfers: Arc<OnceLock<Transfers>> = Arc::default();
    let runtime = match &opened.log {
        // Nothing is written to a lost log, and no replica of it runs.
        Some(log) if opened.lost.is_none() => Some(
            start_raft(
                &settings,
                log.clone(),
                opened.watermark.clone(),
                &transport,
                &home,
                (groups, replicas.clone()),
                transfers.clone(),
            )
            .map_err(RunError::Thread)?,
        ),
        _ => None,
    };
    let raft = match &runtime {
        Some(r) => r.handle.clone(),
        None => crate::raft::handle::RaftHandle::stopped(replicas.clone()),
    };
    let input: Arc<dyn Fn(Input) + Send + Sync> = match &runtime {
        Some(r) => r.sender(),
        None => Arc::new(|_| {}),
    };
    let driver_counters = runtime.as_ref().map(|r| r.counters.clone());
    let cluster = Arc::new(Cluster {
        data_dir: dir.clone(),
        me: MetaJoin {
            name: settings.name.clone(),
            client_url: settings.client_url.clone(),
            peer_address: settings.peer_address.clone(),
            zone: settings.zone.clone(),
            ..MetaJoin::default()
        },
        seeds: settings.seeds.clone(),
        identity: tokio::sync::Mutex::new(identity.clone()),
        home,
        raft: raft.clone(),
        input: input.clone(),
        transport: transport.clone(),
        meta: meta.clone(),
        info: OnceLock::new(),
        known: parking_lot::Mutex::new(known),
        driver_counters: {
            let gossip = gossip_counters.clone();
            Box::new(move || {
                let mut all = driver_values(driver_counters.as_deref());
                all.extend(gossip.values().into_iter().map(|(name, n)| (name.to_owned(), n)));
                all
            })
        },
        stop: stop.clone(),
        controls: AtomicBool::new(false),
        step_term: AtomicU64::new(0),
        followed: AtomicU64::new(0),
        rebalance: Arc::new(Rebalance::new(RebalanceSettings {
            repair_after_ms: settings.repair_after_ms,
            limits: ringfold_topology::plan::Limits {
                moves_per_node: settings.moves_per_node,
                ..Default::default()
            },
        })),
    });
    let info = Arc::new(NodeInfo {
        name: settings.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: Instant::now(),
        membership: OnceLock::new(),
        disk: Default::default(),
        lost: OnceLock::new(),
        stopping: stop.clone(),
        hooks: Box::new(Hooks(cluster.clone())),
    });
    let _ = cluster.info.set(info.clone());
    if let Some(reason) = &opened.lost {
        tracing::error!(reason, "the log is lost: all replicas of this node are closed");
        let _ = info.lost.set(reason.clone());
    }
    if !identity.cluster_id.is_empty() {
        cluster.become_member(&identity);
    }
    let handler: Arc<dyn TransferHandler> = match opened.lost {
        Some(_) => Arc::new(NoTransfers),
        None => {
            let host = ReplicaTransfers { raft: raft.clone(), input: input.clone() };
            let mut transfer = TransferSettings::new(dir.clone());
            transfer.disk_min_free_bytes = settings.disk_min_free_bytes;
            transfer.bytes_per_s = settings.move_bytes_per_s;
            let t = Transfers::new(transfer, transport.clone(), Arc::new(host))?;
            Arc::new(transfers.get_or_init(|| t).clone())
        }
    };
    let messages_input = input.clone();
    transport.listen(
        peer_listener,
        Handlers {
            messages: Arc::new(move |from, messages| {
                messages_input(Input::Messages { from, messages })
            }),
            control: cluster.clone(),
            transfers: handler,
        },
    );
    let left = Arc::new(OnceLock::new());
    let tasks = tokio_util::task::TaskTracker::new();
    if opened.lost.is_none() {
        if !identity.cluster_id.is_empty() {
            cluster.start_member(&identity);
        }
        tasks.spawn(cancellable(&stop, cluster.clone().follow()));
        tasks.spawn(cancellable(&stop, watch_clock(transport.clone(), input.clone())));
        let (joining, greeting) = (cluster.clone().join(), cluster.clone().greet());
        let (left, stop_all) = (left.clone(), stop.clone());
        tasks.spawn(cancellable(&stop, async move {
            if let Err(e) = tokio::try_join!(joining, greeting) {
                tracing::error!(error = %e, "this node cannot be a member");
                let _ = left.set(e);
                stop_all.cancel();
            }
        }));
    }
    let gossip = Gossip {
        settings: settings.clone(),
        socket: gossip_socket,
        info: info.clone(),
        raft: raft.clone(),
        meta: meta.clone(),
        peers: transport.clone(),
        membership: members.clone(),
        counters: gossip_counters,
    };
    tasks.spawn(cancellable(&stop, gossip.run()));
    tasks.spawn(disk.clone().run(stop.clone()));
    tasks.spawn(cancellable(&stop, watch_disk(disk, info.clone(), raft.clone())));
    if let Some(w) = opened.watermark.clone() {
        tasks.spawn(cancellable(&stop, sync_watermark(w)));
    }
    let node = Arc::new(Node {
        raft: raft.clone(),
        meta,
        info: info.clone(),
        members,
        limits: Limits::default(),
        reads: ReadPool::new(settings.read_threads).map_err(RunError::Thread)?,
        router: Router::default(),
    });
    tracing::info!(
        clients = %settings.client_listen, peers = %settings.peer_listen,
        data_dir = %dir.display(), "node started"
    );
    let close = CancellationToken::new();
    let closing = close.clone();
    let serve = api::server::serve(client_listener, node, async move { closing.cancelled().await });
    let hand_over = async {
        stop.cancelled().await;
        tracing::info!("stopping: handing leaderships over");
        match tokio::time::timeout(HAND_OVER, raft.transfer_all()).await {
            Ok(Ok(o)) => {
                tracing::info!(moved = o.transferred, left = o.remaining, "leaderships handed over")
            }
            _ => tracing::warn!("leaderships were not all handed over in time"),
        }
        close.cancel();
    };
    let (served, ()) = tokio::join!(serve, hand_over);
    tasks.close();
    transport.stop();
    if let Some(runtime) = runtime {
        let _ = tokio::task::spawn_blocking(move || runtime.stop()).await;
    }
    if let Some(w) = &opened.watermark
        && let Err(e) = w.sync_now()
    {
        tracing::warn!(error = %e, "WATERMARK was not synced");
    }
    tracing::info!("node stopped");
    served?;
    match left.get() {
        Some(e) => Err(JoinError::clone(e).into()),
        None => Ok(()),
    }
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Listen { setting, address, source })
}

fn cancellable(
    stop: &CancellationToken,
    f: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let stop = stop.clone();
    async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = f => {}
        }
    }
}

/// Says that the log was lost, for good: what is written behind a lost end must never be taken for it.
const LOST: &str = "LOST";

/// Opens the log and judges it before anything is written to it.
fn open_log(dir: &Path, identity: &Identity) -> OpenedLog {
    let path = dir.join("log");
    let existed = path.exists();
    let lost = |log, reason: String| OpenedLog { log, watermark: None, lost: Some(reason) };
    let for_good = |log, reason: String| {
        if let Err(e) = identity::write_atomically(&dir.join(LOST), reason.as_bytes()) {
            tracing::error!(error = %e, "{LOST} could not be written");
        }
        lost(log, reason)
    };
    if let Ok(reason) = std::fs::read_to_string(dir.join(LOST)) {
        let log = existed.then(|| EngineLog::open(&path, EngineSettings::default()).ok()).flatten();
        return lost(log.map(|l| Arc::new(l) as Arc<dyn RaftLog>), reason);
    }
    let (watermark, found) = match Watermark::open(dir) {
        Ok(opened) => opened,
        Err(e) => return lost(None, e.to_string()),
    };
    if !existed && identity.node_id != 0 {
        return for_good(None, "the log is missing, but this node has been a member".into());
    }
    let log = match EngineLog::open(&path, EngineSettings::default()) {
        Ok(log) => Arc::new(log),
        Err(e) => return lost(None, e.to_string()),
    };
    match judge(log.last_number(), found, identity.node_id != 0, existed) {
        LogState::Lost { reason } => for_good(Some(log), reason),
        // Before the identity says that there is a log, its folder must be there for good.
        LogState::Fine => match sync_folder(&path).and_then(|()| sync_folder(dir)) {
            Ok(()) => {
                OpenedLog { log: Some(log), watermark: Some(Arc::new(watermark)), lost: None }
            }
            Err(e) => lost(None, format!("the log's folder cannot be synced: {e}")),
        },
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

type Loaded = (Vec<NewGroup>, BTreeSet<ReplicaId>);

/// Opens what the log has records of. Of a lost log the replicas are shown as closed.
fn load_replicas(
    opened: &OpenedLog,
    home: &ReplicaHome,
    replicas: &Replicas,
) -> std::io::Result<Loaded> {
    let (mut groups, mut known) = (Vec::new(), BTreeSet::new());
    let Some(log) = &opened.log else { return Ok((groups, known)) };
    let loaded = match log.load() {
        Ok(loaded) => loaded,
        Err(e) => {
            // A record of a newer version: nothing can be run, and nothing is removed.
            return Err(std::io::Error::other(e.to_string()));
        }
    };
    if opened.lost.is_none() {
        let live = loaded.iter().filter(|l| !l.record.destroyed).map(|l| l.record.directory_name());
        home.clean(&live.collect())?;
    }
    known.extend(loaded.iter().map(|l| l.record.replica));
    let live: Vec<_> = loaded.into_iter().filter(|l| !l.record.destroyed).collect();
    match &opened.lost {
        Some(reason) => {
            for l in live {
                ReplicaHome::register_closed(l.record.group, l.record.replica, reason, replicas);
            }
        }
        None => groups = home.load_all(live, replicas),
    }
    Ok((groups, known))
}

fn start_raft(
    settings: &Settings,
    log: Arc<dyn RaftLog>,
    watermark: Option<Arc<Watermark>>,
    transport: &Transport,
    home: &ReplicaHome,
    (groups, replicas): (Vec<NewGroup>, Arc<Replicas>),
    transfers: Arc<OnceLock<Transfers>>,
) -> std::io::Result<RaftRuntime> {
    let driver = DriverSettings {
        tick_ms: settings.tick_ms,
        heartbeat_ticks: settings.heartbeat_ticks,
        election_ticks: settings.election_ticks,
        kept_log_bytes: settings.log_kept_bytes,
        ..DriverSettings::new(NodeId(0))
    };
    let send = transport.clone();
    let home = home.clone();
    let parts = Parts {
        settings: driver,
        log,
        replicas,
        send: Arc::new(move |messages| send.send(messages)),
        checkpoint_wanted: Arc::new(move |group, replica, node| {
            if let Some(t) = transfers.get() {
                t.want(group, replica, node);
            }
        }),
        synced: Box::new(move |number| match &watermark {
            Some(w) => w.advance(number).map_err(|e| LogError::Io {
                path: "WATERMARK".into(),
                action: "written",
                reason: e.to_string(),
            }),
            None => Ok(()),
        }),
        fatal: Arc::new(|error| {
            tracing::error!(%error, "the log failed: nothing may go on from memory that was not synced");
            std::process::exit(EXIT_LOG);
        }),
        reopen: Arc::new(move |group, replica, directory| home.open(group, replica, directory)),
        apply_threads: settings.apply_threads,
        flush: FlushSettings::default(),
    };
    RaftRuntime::start(parts, groups)
}

fn driver_values(counters: Option<&Counters>) -> BTreeMap<String, u64> {
    let Some(c) = counters else { return BTreeMap::new() };
    [
        ("raft_unknown_group", &c.unknown_group),
        ("raft_foreign_replica", &c.foreign_replica),
        ("raft_undecodable", &c.undecodable),
        ("raft_refused_kind", &c.refused_kind),
        ("raft_vote_held", &c.vote_held),
        ("raft_apply_behind", &c.apply_behind),
        ("raft_no_address", &c.no_address),
    ]
    .into_iter()
    .map(|(name, n)| (name.to_owned(), n.load(Ordering::Relaxed)))
    .collect()
}

/// Syncs WATERMARK once a second when it changed.
async fn sync_watermark(watermark: Arc<Watermark>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let w = watermark.clone();
        let synced = tokio::task::spawn_blocking(move || w.sync_if_due(clock::boottime_ns())).await;
        if let Ok(Err(e)) = synced {
            tracing::error!(error = %e, "WATERMARK cannot be synced");
        }
    }
}

/// Gives leaderships up while this node's clock is far ahead of its peers'.
async fn watch_clock(transport: Transport, input: Arc<dyn Fn(Input) + Send + Sync>) {
    const AHEAD_MS_MAX: i64 = 500;
    let mut seconds_ahead = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match transport.clock_ahead_ms() {
            Some(ms) if ms > AHEAD_MS_MAX => {
                seconds_ahead += 1;
                // One measurement right after a pause is wrong.
                if seconds_ahead >= 3 {
                    input(Input::ClockAhead { ms });
                }
            }
            _ => seconds_ahead = 0,
        }
    }
}

/// Shows the disk to the services, and hands leaderships over when it becomes nearly full: this node
/// refuses appends then.
async fn watch_disk(disk: Arc<disk::Disk>, info: Arc<NodeInfo>, raft: RaftHandle) {
    let mut refused = false;
    loop {
        info.disk.total_bytes.store(disk.total_bytes(), Ordering::Relaxed);
        info.disk.free_bytes.store(disk.free_bytes(), Ordering::Relaxed);
        info.disk.limit_bytes.store(disk.limit_bytes(), Ordering::Relaxed);
        let now = disk.appends_refused();
        info.disk.appends_refused.store(now, Ordering::Relaxed);
        if now && !refused {
            let _ = raft.transfer_all().await;
        }
        refused = now;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
