//! One node, wired: what starts in which order, and how it ends.
mod opening;
mod watching;

use crate::api;
use crate::api::node::{Node, NodeInfo};
use crate::api::read_pool::ReadPool;
use crate::api::validate::Limits;
use crate::cluster::{Cluster, Hooks};
use crate::config::Settings;
use crate::disk::{self, DiskError};
use crate::gossip::{self, Gossip};
use crate::http::{self, Http};
use crate::identity::{self, IdentityError};
use crate::ids::NodeId;
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
use crate::raft::handle::Replicas;
use crate::raft::log::{LogError, RaftLog};
use crate::raft::runtime::{FlushSettings, Parts, RaftRuntime};
use crate::readiness::{self, Readiness};
use crate::replicas::ReplicaHome;
use crate::router::Router;
use crate::stop::{self, Stop};
use crate::transfers::ReplicaTransfers;
use crate::watermark::Watermark;
use opening::{load_replicas, open_log};
use ringfold_proto::internal::{MetaJoin, MetaState};
use ringfold_tls::{Tls, TlsError};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use watching::{sync_watermark, watch_clock, watch_disk};

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
    Tls(#[from] TlsError),
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

/// Runs the node until it is told to stop.
pub async fn run(settings: Settings, told: Stop) -> Result<(), RunError> {
    let settings = Arc::new(settings);
    let stop = CancellationToken::new();
    let http = Arc::new(Http::default());
    if let Some(address) = settings.http_listen {
        let listener = listen("http_listen", address).await?;
        tokio::spawn(http::serve(listener, http.clone()));
    }
    let dir = settings.data_dir.clone();
    let directory = |action| {
        let path = dir.display().to_string();
        move |source| RunError::Directory { path, action, source }
    };
    let tls = settings.tls_files().map(Tls::open).transpose()?;
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
            tls: tls.clone(),
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
        leaving: AtomicBool::new(false),
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
    if let Some(tls) = tls.clone() {
        tasks.spawn(cancellable(&stop, tls.watch()));
    }
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
        router: Router::new(tls.clone()),
        metrics: http.metrics.clone(),
        readiness: Readiness::default(),
    });
    http.metrics.show(&node);
    let _ = http.node.set(node.clone());
    tasks.spawn(cancellable(&stop, readiness::watch(node.clone())));
    tracing::info!(
        clients = %settings.client_listen, peers = %settings.peer_listen,
        data_dir = %dir.display(), "node started"
    );
    let close = CancellationToken::new();
    let closing = close.clone();
    let serve =
        api::server::serve(
            client_listener,
            tls,
            node.clone(),
            async move { closing.cancelled().await },
        );
    let wait = Duration::from_millis(settings.stop_wait_ms);
    let leave = async {
        tokio::select! {
            // It was removed, or belongs to another cluster.
            () = stop.cancelled() => {}
            () = told.asked.cancelled() => {
                tracing::info!("told to stop");
                stop::leave(&node, wait, &told.at_once).await;
            }
        }
        stop.cancel();
        close.cancel();
    };
    let (served, ()) = tokio::join!(serve, leave);
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
