//! This node as a member: bootstrap and join, and what follows from the meta group's state.
use crate::api::errors::ApiError;
use crate::api::node::{Membership as ApiMembership, NodeHooks, NodeInfo};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::controller;
use crate::partition::apply::{CommandOutcome, MetaOutcome};
use crate::peer::control::{ControlHandler, refusal};
use crate::peer::transport::Transport;
use crate::peer::{LocalNode, control};
use crate::raft::driver::{Input, NewGroup};
use crate::raft::handle::{ProposeError, RaftHandle, Role};
use crate::replicas::ReplicaHome;
use crate::identity;
use futures::future::BoxFuture;
use prost::Message as _;
use ringfold_proto::internal::{
    Hello, HelloAnswer, Identity, Join, JoinAnswer, MetaCommand, MetaGenesis, MetaInit, MetaJoin,
    MetaState, NodeAddress, ReducerTable, Refusal, meta_command, reducer_table,
};
use ringfold_proto::v1;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// The replica of the meta group and the node id that a cluster begins with.
const FIRST: u64 = 1;

/// This node's part in its cluster.
pub struct Cluster {
    pub data_dir: PathBuf,
    pub name: String,
    pub client_url: String,
    pub peer_address: String,
    pub zone: String,
    /// Held while the identity changes.
    pub identity: Mutex<Identity>,
    pub home: ReplicaHome,
    pub raft: RaftHandle,
    pub input: Arc<dyn Fn(Input) + Send + Sync>,
    pub transport: Transport,
    pub meta: watch::Receiver<Arc<MetaState>>,
    pub info: OnceLock<Arc<NodeInfo>>,
    /// Replicas that the log has a record of, destroyed ones too.
    pub known: parking_lot::Mutex<HashSet<ReplicaId>>,
    pub extra_counters: Box<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>,
}

impl Cluster {
    /// This member as a Join tells of it.
    pub fn as_join(&self, identity: &Identity) -> MetaJoin {
        MetaJoin {
            token: identity.token.clone(),
            node_id: identity.node_id,
            name: self.name.clone(),
            client_url: self.client_url.clone(),
            peer_address: self.peer_address.clone(),
            zone: self.zone.clone(),
            feature_level_max: crate::meta::FEATURE_LEVEL_MAX,
        }
    }

    /// Makes the identity known to all parts of the node.
    pub fn become_member(&self, identity: &Identity) {
        let node = NodeId(identity.node_id);
        self.transport.local().set(LocalNode { cluster_id: identity.cluster_id.as_str().into(), node });
        if let Some(info) = self.info.get() {
            let _ = info
                .membership
                .set(ApiMembership { node, cluster_id: identity.cluster_id.clone() });
        }
    }

    /// Creates the replica of the meta group that the identity names, unless the log has it.
    pub fn found_meta(&self, identity: &Identity) {
        let replica = ReplicaId(identity.meta_replica_id);
        if identity.meta_replica_id == 0 || !self.known.lock().insert(replica) {
            return;
        }
        let first = identity.bootstrap.is_some();
        let voters = [(replica, NodeId(identity.node_id))];
        let voters = if first { &voters[..] } else { &[] };
        let reducers = ReducerTable::default();
        let new = self.home.found(GroupId::META, replica, voters, first, &reducers, &self.raft.replicas);
        self.create(new);
    }

    fn create(&self, new: Option<NewGroup>) {
        if let Some(new) = new {
            (self.input)(Input::Create(Box::new(new)));
        }
    }

    /// Creates the cluster, once. The first command is proposed until it is applied, also after a
    /// crash in between.
    async fn bootstrap(self: Arc<Self>, request: v1::BootstrapRequest) -> Result<v1::BootstrapResponse, ApiError> {
        let mut identity = self.identity.lock().await;
        if identity.cluster_id.is_empty() {
            let next = Identity {
                cluster_id: request.cluster_id.clone(),
                node_id: FIRST,
                meta_replica_id: FIRST,
                bootstrap: Some(MetaGenesis {
                    partitions: request.partitions,
                    replication_factor: request.replication_factor,
                    initial_members: request.initial_members,
                    default_reducer: request.default_reducer as u32,
                    category_reducers: request
                        .category_reducers
                        .iter()
                        .map(|(c, r)| (c.clone(), *r as u32))
                        .collect(),
                }),
                token: identity.token.clone(),
            };
            self.save_identity(&next)?;
            *identity = next;
            self.become_member(&identity);
            self.found_meta(&identity);
        }
        if identity.cluster_id != request.cluster_id {
            return Err(ApiError::AlreadyBootstrapped { cluster_id: identity.cluster_id.clone() });
        }
        let node_id = identity.node_id;
        self.finish_bootstrap(&mut identity).await?;
        Ok(v1::BootstrapResponse { cluster_id: request.cluster_id, node_id })
    }

    fn save_identity(&self, identity: &Identity) -> Result<(), ApiError> {
        identity::write(&self.data_dir, identity).map_err(|e| ApiError::internal(e))
    }

    async fn finish_bootstrap(&self, identity: &mut Identity) -> Result<(), ApiError> {
        let Some(genesis) = identity.bootstrap.clone() else { return Ok(()) };
        let init = MetaInit {
            cluster_id: identity.cluster_id.clone(),
            partitions: genesis.partitions,
            replication_factor: genesis.replication_factor,
            initial_members: genesis.initial_members,
            feature_level: crate::meta::FEATURE_LEVEL_MAX,
            default_reducer: genesis.default_reducer,
            category_reducers: genesis.category_reducers,
            first: Some(self.as_join(identity)),
        };
        let command = MetaCommand { if_epoch: 0, command: Some(meta_command::Command::Init(init)) };
        for _ in 0..200 {
            if self.meta.borrow().cluster_id == identity.cluster_id {
                let done = Identity { bootstrap: None, ..identity.clone() };
                self.save_identity(&done)?;
                *identity = done;
                return Ok(());
            }
            match self.propose_meta(command.clone()).await {
                Ok(MetaOutcome::Refused(reason)) => {
                    // Applied before a crash, or after an unknown outcome: the state tells.
                    tracing::debug!(reason, "the cluster's first command was refused");
                }
                Ok(_) => continue,
                Err(ProposeError::Closed(reason)) => {
                    return Err(ApiError::internal(format_args!("the meta group is closed: {reason}")));
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(ApiError::internal("the meta group took no command within 20 s"))
    }

    /// Goes on with a bootstrap that a crash interrupted.
    pub async fn resume_bootstrap(self: Arc<Self>) {
        let mut identity = self.identity.lock().await;
        if let Err(e) = self.finish_bootstrap(&mut identity).await {
            tracing::error!(error = ?e, "the bootstrap could not be finished");
        }
    }

    /// One command of the meta group, and what it came to.
    pub async fn propose_meta(&self, command: MetaCommand) -> Result<MetaOutcome, ProposeError> {
        let bytes = command.encode_to_vec().into();
        let outcomes = self
            .raft
            .propose(GroupId::META, vec![bytes], 0)
            .await
            .unwrap_or(Err(ProposeError::Unknown))?;
        match outcomes.into_iter().next() {
            Some(CommandOutcome::Meta(outcome)) => Ok(outcome),
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Takes the identity that the cluster gave to this node.
    pub async fn take_identity(&self, answer: JoinAnswer) -> Result<(), ApiError> {
        let mut identity = self.identity.lock().await;
        if !identity.cluster_id.is_empty() {
            return Ok(());
        }
        let next = Identity {
            cluster_id: answer.cluster_id,
            node_id: answer.node_id,
            meta_replica_id: answer.meta_replica_id,
            bootstrap: None,
            token: identity.token.clone(),
        };
        self.save_identity(&next)?;
        tracing::info!(cluster = next.cluster_id, node = next.node_id, "joined");
        *identity = next;
        self.become_member(&identity);
        self.found_meta(&identity);
        Ok(())
    }

    /// Follows the meta group's state: addresses, and the replicas that this node must have.
    pub async fn follow(self: Arc<Self>) {
        let mut meta = self.meta.clone();
        loop {
            let state = meta.borrow_and_update().clone();
            self.transport.address_book().learn_members(&state);
            self.found_wanted(&state).await;
            if meta.changed().await.is_err() {
                return;
            }
        }
    }

    async fn found_wanted(&self, state: &Arc<MetaState>) {
        let Some(local) = self.transport.local().get() else { return };
        let known = self.known.lock().clone();
        let reducers = reducers_of(state);
        for wanted in controller::wanted_replicas(state, local.node, &known) {
            let (home, replicas, table) = (self.home.clone(), self.raft.replicas.clone(), reducers.clone());
            let replica = wanted.replica;
            self.known.lock().insert(replica);
            // Makes files: not on the runtime's threads.
            let made = tokio::task::spawn_blocking(move || {
                let group = GroupId::of_partition(wanted.partition);
                home.found(group, replica, &wanted.voters, wanted.first_placed, &table, &replicas)
            })
            .await;
            match made {
                Ok(new) => self.create(new),
                Err(e) => tracing::error!(error = %e, %replica, "a replica could not be made"),
            }
        }
    }

    fn meta_leader(&self) -> Option<NodeId> {
        self.raft.replica(GroupId::META)?.status.read().leader
    }

    /// Whether this node leads the meta group.
    pub fn leads_meta(&self) -> bool {
        self.raft.replica(GroupId::META).is_some_and(|v| v.status.read().role == Role::Leader)
    }
}

/// The reducers that a cluster's partitions begin with.
fn reducers_of(state: &MetaState) -> ReducerTable {
    let active = |reducer: u32| reducer_table::Active { reducer, generation: 1 };
    ReducerTable {
        default: Some(active(state.default_reducer)),
        categories: state.category_reducers.iter().map(|(c, r)| (c.clone(), active(*r))).collect(),
    }
}

#[tonic::async_trait]
impl ControlHandler for Cluster {
    async fn hello(&self, _: Hello) -> HelloAnswer {
        let local = self.transport.local().get();
        let mut nodes = self.transport.address_book().to_proto();
        if let Some(local) = &local {
            nodes.retain(|n| n.node_id != local.node.0);
            nodes.push(NodeAddress {
                node_id: local.node.0,
                peer_address: self.peer_address.clone(),
                client_url: self.client_url.clone(),
            });
        }
        HelloAnswer {
            cluster_id: local.as_ref().map(|l| l.cluster_id.to_string()).unwrap_or_default(),
            node_id: local.map_or(0, |l| l.node.0),
            nodes,
            meta_leader_node_id: self.meta_leader().map_or(0, |n| n.0),
        }
    }

    async fn join(&self, join: Join) -> Result<JoinAnswer, Refusal> {
        let join = MetaJoin::decode(join.meta_join)
            .map_err(|e| refusal("INVALID", format!("the join cannot be read: {e}")))?;
        let command = MetaCommand { if_epoch: 0, command: Some(meta_command::Command::Join(join)) };
        match self.propose_meta(command).await {
            Ok(MetaOutcome::Joined { cluster_id, node_id, meta_replica_id }) => {
                Ok(JoinAnswer { cluster_id, node_id, meta_replica_id })
            }
            Ok(MetaOutcome::Refused(reason)) => Err(refusal("REFUSED", reason)),
            Ok(_) => Err(refusal("UNKNOWN", "the meta group gave an answer of another kind")),
            Err(e) => Err(refusal("NOT_LEADER", e)),
        }
    }
}

/// What the services ask of the node.
pub struct Hooks(pub Arc<Cluster>);

impl NodeHooks for Hooks {
    fn bootstrap(
        &self,
        request: v1::BootstrapRequest,
    ) -> BoxFuture<'static, Result<v1::BootstrapResponse, ApiError>> {
        Box::pin(self.0.clone().bootstrap(request))
    }

    fn reachable(&self, node: NodeId) -> bool {
        self.0.transport.is_reachable(node)
    }

    fn meta_voters(&self) -> Vec<NodeId> {
        Vec::new()
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = (self.0.extra_counters)();
        let peer = self.0.transport.counters().values();
        all.extend(peer.into_iter().map(|(name, n)| (format!("peer_{name}"), n)));
        all
    }
}
