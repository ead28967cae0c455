//! This node as a member: bootstrap and join, and what follows from the meta group's state.
mod following;
mod joining;
mod roles;

pub use roles::Hooks;

use crate::api::node::{Membership as ApiMembership, NodeInfo};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::FEATURE_LEVEL_MAX;
use crate::meta::controller::{self, init_command};
use crate::meta::rebalance::Rebalance;
use crate::peer::LocalNode;
use crate::peer::transport::Transport;
use crate::raft::driver::Input;
use crate::raft::handle::RaftHandle;
use crate::rebalance::ClusterHost;
use crate::replicas::ReplicaHome;
use ringfold_proto::internal::{Identity, MetaJoin, MetaState};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// This node's part in its cluster.
pub struct Cluster {
    pub data_dir: PathBuf,
    /// Name, zone and addresses, without ids.
    pub me: MetaJoin,
    pub seeds: Vec<String>,
    /// Held while the identity changes.
    pub identity: Mutex<Identity>,
    pub home: ReplicaHome,
    pub raft: RaftHandle,
    pub input: Arc<dyn Fn(Input) + Send + Sync>,
    pub transport: Transport,
    pub meta: watch::Receiver<Arc<MetaState>>,
    pub info: OnceLock<Arc<NodeInfo>>,
    /// Replicas that the log has a record of, destroyed ones too.
    pub known: parking_lot::Mutex<BTreeSet<ReplicaId>>,
    pub driver_counters: Box<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>,
    pub stop: CancellationToken,
    pub controls: AtomicBool,
    pub rebalance: Arc<Rebalance>,
    /// The highest term of the meta group that a step was planned in.
    pub step_term: AtomicU64,
    /// All replicas with lower ids that the records give to this node were made.
    pub followed: AtomicU64,
}

impl Cluster {
    /// This member as a join tells of it.
    fn as_join(&self, identity: &Identity) -> MetaJoin {
        MetaJoin {
            token: identity.token.clone(),
            node_id: identity.node_id,
            feature_level_max: FEATURE_LEVEL_MAX,
            ..self.me.clone()
        }
    }

    /// Makes the identity known to all parts of the node, and starts what a member does.
    pub fn become_member(self: &Arc<Self>, identity: &Identity) {
        let node = NodeId(identity.node_id);
        let cluster_id: Arc<str> = identity.cluster_id.as_str().into();
        self.transport.local().set(LocalNode { cluster_id, node });
        if let Some(info) = self.info.get() {
            let cluster_id = identity.cluster_id.clone();
            let _ = info.membership.set(ApiMembership { node, cluster_id });
        }
    }

    /// Starts the meta group's replica and the controller.
    pub fn start_member(self: &Arc<Self>, identity: &Identity) {
        self.found_meta(identity);
        if self.controls.swap(true, Ordering::AcqRel) {
            return;
        }
        let init = identity
            .bootstrap
            .as_ref()
            .map(|genesis| init_command(&identity.cluster_id, genesis, self.as_join(identity)));
        let place: Arc<controller::Place> = Arc::new(|state: &MetaState| following::place(state));
        tokio::spawn(controller::run(
            self.clone(),
            self.meta.clone(),
            init,
            place,
            self.stop.clone(),
        ));
        let host = Arc::new(ClusterHost::new(self.clone()));
        tokio::spawn(self.rebalance.clone().run(host, self.stop.clone()));
        if identity.bootstrap.is_some() {
            let cluster = self.clone();
            tokio::spawn(async move {
                let mut identity = cluster.identity.lock().await;
                if let Err(e) = cluster.finish_bootstrap(&mut identity).await {
                    tracing::error!(error = %e, "the bootstrap is not finished");
                }
            });
        }
    }

    fn meta_leader(&self) -> Option<NodeId> {
        self.raft.replica(GroupId::META)?.status.read().leader
    }
}
