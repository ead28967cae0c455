//! What the services know of the node around them.
use super::errors::ApiError;
use super::read_pool::ReadPool;
use super::validate::Limits;
use crate::gossip::membership::Membership as MemberView;
use crate::ids::NodeId;
use crate::metrics::Metrics;
use crate::partition::apply::MetaOutcome;
use crate::raft::handle::{ProposeError, RaftHandle};
use crate::readiness::Readiness;
use crate::router::Router;
use futures::future::BoxFuture;
use ringfold_proto::internal::{MetaCommand, MetaState};
use ringfold_proto::v1;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// All that the services of one node share.
pub struct Node {
    pub raft: RaftHandle,
    /// State of the meta group as this node has applied it.
    pub meta: watch::Receiver<Arc<MetaState>>,
    pub info: Arc<NodeInfo>,
    /// The members, as this node sees them.
    pub members: Arc<MemberView>,
    pub limits: Limits,
    pub reads: ReadPool,
    pub router: Router,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
}

/// Who this node is, once it belongs to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub node: NodeId,
    pub cluster_id: String,
}

/// The node itself: set and called by its wiring, read by the services.
pub struct NodeInfo {
    pub name: String,
    pub version: &'static str,
    pub started: Instant,
    /// Set once, at the join or at a start with an identity.
    pub membership: OnceLock<Membership>,
    pub disk: Disk,
    /// Why the node's log or disk is lost.
    pub lost: OnceLock<String>,
    /// It was told to stop, and serves as long as the cluster needs it.
    pub leaving: AtomicBool,
    /// Cancelled when the node stops: health says so, streams end.
    pub stopping: CancellationToken,
    pub hooks: Box<dyn NodeHooks>,
}

/// What other parts of the node do for the services.
pub trait NodeHooks: Send + Sync {
    /// Creates the cluster. The request is checked, and its defaults are filled in; the node may
    /// be a member already.
    fn bootstrap(
        &self,
        request: v1::BootstrapRequest,
    ) -> BoxFuture<'static, Result<v1::BootstrapResponse, ApiError>>;
    /// Heard of within the last seconds.
    fn reachable(&self, node: NodeId) -> bool;
    /// Voters of the meta group; empty where not known.
    fn meta_voters(&self) -> Vec<NodeId>;
    /// What was dropped or refused, by name.
    fn counters(&self) -> BTreeMap<String, u64>;
    /// The plan of the cluster's moves; `None` on a node that takes no part in it.
    fn rebalancer(&self) -> Option<Arc<dyn Rebalancer>> {
        None
    }
}

/// What the leader of the meta group does for the services.
pub trait Rebalancer: Send + Sync {
    /// Ends after a look at the cluster that begins after now.
    fn refreshed(&self) -> BoxFuture<'_, ()>;
    /// The plan as of the last look at the cluster; of the epoch 0 before the first one.
    fn plan(&self) -> watch::Receiver<Arc<v1::RebalancePlanResponse>>;
    /// Why draining the node could not end, a line each; by the last look at the cluster.
    fn drain_obstacles(&self, node: NodeId) -> Vec<String>;
    /// Proposes to the meta group, which this node must lead.
    fn propose(
        &self,
        command: MetaCommand,
    ) -> BoxFuture<'static, Result<MetaOutcome, ProposeError>>;
}

/// State of the data directory's disk, written by its watcher.
#[derive(Debug, Default)]
pub struct Disk {
    pub total_bytes: AtomicU64,
    pub free_bytes: AtomicU64,
    /// Below so many free bytes appends are refused.
    pub limit_bytes: AtomicU64,
    pub appends_refused: AtomicBool,
}

impl Disk {
    /// `DISK_FULL` while appends are refused.
    pub fn check_appends(&self) -> Result<(), ApiError> {
        if !self.appends_refused.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(ApiError::DiskFull {
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
            limit_bytes: self.limit_bytes.load(Ordering::Relaxed),
        })
    }
}

impl NodeInfo {
    /// 0 before the node belongs to a cluster.
    pub fn node_id(&self) -> NodeId {
        self.membership.get().map_or(NodeId(0), |m| m.node)
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.stopping.is_cancelled()
    }

    pub fn cluster_id(&self) -> &str {
        self.membership.get().map_or("", |m| &m.cluster_id)
    }
}

impl Node {
    /// Number of partitions. `NOT_BOOTSTRAPPED` before the node belongs to a cluster; a member that
    /// has not read the cluster's state yet is starting, or has lost its log.
    pub fn partitions(&self) -> Result<u32, ApiError> {
        match self.meta.borrow().partitions {
            0 => Err(match (self.info.membership.get(), self.info.lost.get()) {
                (_, Some(reason)) => ApiError::ReplicaClosed(reason.clone()),
                (Some(_), None) => ApiError::NodeStarting,
                (None, None) => ApiError::NotBootstrapped,
            }),
            n => Ok(n),
        }
    }

    /// Whether the node may be counted on: see [`Readiness`].
    pub fn is_ready(&self) -> bool {
        self.is_serving() && self.readiness.is_reached()
    }

    /// What the node waits for before it is ready, a line each.
    pub fn waits_for(&self) -> Vec<String> {
        if let Some(reason) = self.info.lost.get() {
            return vec![format!("its disk or log is lost: {reason}")];
        }
        if self.info.is_leaving() {
            return vec!["it was told to stop".into()];
        }
        if self.info.membership.get().is_none() {
            return vec![
                "it belongs to no cluster yet: it is to be bootstrapped, or to join".into(),
            ];
        }
        if self.meta.borrow().placement.is_empty() {
            return vec!["it does not know where the cluster's partitions are yet".into()];
        }
        match self.readiness.is_reached() {
            true => Vec::new(),
            false => self.readiness.waits_for(),
        }
    }

    /// Whether the node takes calls: for health.
    pub fn is_serving(&self) -> bool {
        self.info.membership.get().is_some()
            && self.info.lost.get().is_none()
            && !self.info.is_leaving()
            && !self.meta.borrow().placement.is_empty()
    }
}
