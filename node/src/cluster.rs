//! This node as a member: bootstrap and join, and what follows from the meta group's state.
use crate::api::errors::ApiError;
use crate::api::node::{Membership as ApiMembership, NodeHooks, NodeInfo, Rebalancer};
use crate::identity;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::controller::{self, MetaFacts, MetaGroup, init_command};
use crate::meta::join::{self, AskError, ControlClient, JoinError, Joining, join_loop};
use crate::meta::rebalance::Rebalance;
use crate::meta::replicas::wanted_replicas;
use crate::meta::state::was_removed;
use crate::meta::{FEATURE_LEVEL_MAX, propose};
use crate::partition::apply::MetaOutcome;
use crate::peer::LocalNode;
use crate::peer::control::{ControlError, ControlHandler};
use crate::peer::transport::Transport;
use crate::raft::driver::{Input, MembershipChange, NewGroup};
use crate::raft::handle::{ProposeError, RaftHandle};
use crate::rebalance::{ClusterHost, PlanHooks};
use crate::replicas::ReplicaHome;
use futures::future::BoxFuture;
use ringfold_proto::internal::{
    Hello, HelloAnswer, Identity, Join, JoinAnswer, MetaCommand, MetaGenesis, MetaJoin, MetaState,
    NodeAddress, ReducerTable, Refusal, ReportAnswer, Step, reducer_table,
};
use ringfold_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// A bootstrap must be applied within this time; said again it goes on.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(20);

const GREET_EVERY: Duration = Duration::from_secs(1);
const GREET_TIMEOUT: Duration = Duration::from_secs(1);

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
        let place: Arc<controller::Place> = Arc::new(|state: &MetaState| place(state));
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

    /// Creates the replica of the meta group that the identity names, unless the log has it.
    fn found_meta(&self, identity: &Identity) {
        let replica = ReplicaId(identity.meta_replica_id);
        if identity.meta_replica_id == 0 || !self.known.lock().insert(replica) {
            return;
        }
        let first = identity.bootstrap.is_some();
        // Every replica starts from the membership that the group began with, and follows its
        // changes through the log or takes a checkpoint.
        let voters = &[controller::first_voter()];
        let table = ReducerTable::default();
        self.create(self.home.found(
            GroupId::META,
            replica,
            voters,
            first,
            &table,
            &self.raft.replicas,
        ));
    }

    fn create(&self, new: Option<NewGroup>) {
        if let Some(new) = new {
            (self.input)(Input::Create(Box::new(new)));
        }
    }

    fn save(&self, identity: &Identity) -> Result<(), ApiError> {
        identity::write(&self.data_dir, identity).map_err(ApiError::internal)
    }

    async fn bootstrap(
        self: Arc<Self>,
        request: v1::BootstrapRequest,
    ) -> Result<v1::BootstrapResponse, ApiError> {
        let mut identity = self.identity.lock().await;
        if identity.cluster_id.is_empty() {
            let (replica, node) = controller::first_voter();
            let reducers = request.category_reducers.iter().map(|(c, r)| (c.clone(), *r as u32));
            let next = Identity {
                cluster_id: request.cluster_id.clone(),
                node_id: node.0,
                meta_replica_id: replica.0,
                bootstrap: Some(MetaGenesis {
                    partitions: request.partitions,
                    replication_factor: request.replication_factor,
                    initial_members: request.initial_members,
                    default_reducer: request.default_reducer as u32,
                    category_reducers: reducers.collect(),
                }),
                token: identity.token.clone(),
            };
            self.save(&next)?;
            *identity = next;
            self.become_member(&identity);
            self.start_member(&identity);
        }
        if identity.cluster_id != request.cluster_id {
            return Err(ApiError::AlreadyBootstrapped { cluster_id: identity.cluster_id.clone() });
        }
        let node_id = identity.node_id;
        self.finish_bootstrap(&mut identity).await?;
        Ok(v1::BootstrapResponse { cluster_id: request.cluster_id, node_id })
    }

    /// Waits until the cluster's first command is applied, then forgets that it was to be said.
    async fn finish_bootstrap(&self, identity: &mut Identity) -> Result<(), ApiError> {
        if identity.bootstrap.is_none() {
            return Ok(());
        }
        let mut meta = self.meta.clone();
        let applied = meta.wait_for(|m| m.cluster_id == identity.cluster_id);
        match tokio::time::timeout(BOOTSTRAP_TIMEOUT, applied).await {
            Ok(Ok(_)) => {}
            _ => {
                return Err(ApiError::internal(
                    "the meta group has not taken its first command yet",
                ));
            }
        }
        let done = Identity { bootstrap: None, ..identity.clone() };
        self.save(&done)?;
        *identity = done;
        Ok(())
    }

    /// Where other nodes may be: as known, and the seeds.
    fn peers(&self) -> Vec<String> {
        let known = self.transport.address_book().nodes().into_values();
        let mut all: Vec<String> = known.map(|a| a.peer_address.to_string()).collect();
        all.extend(self.seeds.iter().filter(|s| **s != self.me.peer_address).cloned());
        all.sort();
        all.dedup();
        all
    }

    /// At its start, and while it knows no leader of the meta group, a member tells its peers where it is and hears
    /// where they are: it may know nothing yet, or everybody may have moved. Peers that are all of
    /// another cluster say that the data directory is not of this one.
    pub async fn greet(self: Arc<Self>) -> Result<(), JoinError> {
        let mut local = self.transport.local().subscribe();
        if local.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        let mut at_start = true;
        loop {
            if let Some(local) = self.transport.local().get()
                && (std::mem::take(&mut at_start) || self.meta_leader().is_none())
            {
                let ours = local.cluster_id.to_string();
                let hello = Hello {
                    cluster_id: ours.clone(),
                    node_id: local.node.0,
                    peer_address: self.me.peer_address.clone(),
                    client_url: self.me.client_url.clone(),
                };
                let mut heard = BTreeSet::new();
                for address in self.peers() {
                    // A peer that cannot be reached is asked again with the next round.
                    let asked = self.transport.hello(&address, hello.clone());
                    let answer = match tokio::time::timeout(GREET_TIMEOUT, asked).await {
                        Ok(Ok(answer)) => Ok(Ok(answer)),
                        _ => {
                            tokio::time::timeout(GREET_TIMEOUT, self.transport.who(&address)).await
                        }
                    };
                    if let Ok(Ok(answer)) = answer
                        && !answer.cluster_id.is_empty()
                    {
                        if answer.you_are_removed && answer.cluster_id == ours {
                            let node = local.node.0;
                            return Err(JoinError::Removed(format!("node {node} was removed")));
                        }
                        heard.insert(answer.cluster_id);
                    }
                }
                if let Some(theirs) = heard.first().filter(|_| !heard.contains(&ours)) {
                    return Err(JoinError::ForeignCluster { ours, theirs: theirs.clone() });
                }
            }
            tokio::time::sleep(GREET_EVERY).await;
        }
    }

    /// Joins where the node has no cluster yet; then reports whenever the cluster knows it
    /// otherwise than it is.
    pub async fn join(self: Arc<Self>) -> Result<(), JoinError> {
        let seeds = || self.peers();
        let identity = self.identity.lock().await.clone();
        if identity.cluster_id.is_empty() {
            let joining = Joining { cluster_id: String::new(), me: self.as_join(&identity) };
            let bootstrapped = async {
                let mut local = self.transport.local().subscribe();
                let _ = local.wait_for(Option::is_some).await;
            };
            tokio::select! {
                // Told to bootstrap meanwhile.
                () = bootstrapped => {}
                answer = join_loop(&*self, &joining, seeds) => self.take_identity(answer?).await,
            }
        }
        let mut meta = self.meta.clone();
        loop {
            let identity = self.identity.lock().await.clone();
            let me = self.as_join(&identity);
            let state = meta.borrow_and_update().clone();
            if was_removed(&state, identity.node_id) {
                return Err(JoinError::Removed(format!("node {} was removed", identity.node_id)));
            }
            if !state.cluster_id.is_empty() && join::must_report(&state, &me) {
                let joining = Joining { cluster_id: identity.cluster_id, me };
                join_loop(&*self, &joining, seeds).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if meta.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Takes the identity that the cluster gave to this node.
    async fn take_identity(self: &Arc<Self>, answer: JoinAnswer) {
        let mut identity = self.identity.lock().await;
        if !identity.cluster_id.is_empty() {
            return;
        }
        let next = Identity {
            cluster_id: answer.cluster_id,
            node_id: answer.node_id,
            meta_replica_id: answer.meta_replica_id,
            bootstrap: None,
            token: identity.token.clone(),
        };
        if let Err(e) = self.save(&next) {
            tracing::error!(error = %e, "the identity could not be saved: the node has not joined");
            return;
        }
        *identity = next;
        self.become_member(&identity);
        self.start_member(&identity);
    }

    /// Follows the meta group's state: addresses, and the replicas that this node must have.
    pub async fn follow(self: Arc<Self>) {
        let mut meta = self.meta.clone();
        let mut local = self.transport.local().subscribe();
        if local.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let state = meta.borrow_and_update().clone();
            self.transport.address_book().learn_members(&state);
            // A partition that comes back is a new replica: the old one goes first.
            self.destroy_forgotten(&state).await;
            if self.found_wanted(&state).await {
                self.followed.store(state.next_replica_id, Ordering::Release);
            }
            if meta.changed().await.is_err() {
                return;
            }
        }
    }

    /// True: what the state gives to this node is there, or closed.
    async fn found_wanted(&self, state: &MetaState) -> bool {
        let Some(local) = self.transport.local().get() else { return false };
        let mut all = true;
        let known = self.known.lock().clone();
        let table = reducers_of(state);
        for wanted in wanted_replicas(state, local.node, &known) {
            let replica = wanted.replica;
            let group = GroupId::of_partition(wanted.partition);
            if let Some(other) = self.raft.replica(group).filter(|v| v.replica != replica) {
                // It would take the other one's place in everybody's eyes. Tried again with the next
                // state.
                tracing::error!(%group, %replica, running = %other.replica, "a second replica of a group is not made");
                all = false;
                continue;
            }
            self.known.lock().insert(replica);
            let (home, replicas) = (self.home.clone(), self.raft.replicas.clone());
            let table = table.clone();
            // Makes files: not on the runtime's threads.
            let made = tokio::task::spawn_blocking(move || {
                home.found(group, replica, &wanted.genesis, wanted.first_placed, &table, &replicas)
            });
            match made.await {
                Ok(new) => self.create(new),
                Err(e) => {
                    tracing::error!(error = %e, %replica, "a replica could not be made");
                    let reason = format!("it could not be made: {e}");
                    ReplicaHome::register_closed(group, replica, &reason, &self.raft.replicas);
                }
            }
        }
        all
    }

    fn meta_leader(&self) -> Option<NodeId> {
        self.raft.replica(GroupId::META)?.status.read().leader
    }
}

/// The first placement of a cluster's partitions.
fn place(state: &MetaState) -> Result<Vec<Vec<NodeId>>, String> {
    let members: Vec<_> = state
        .members
        .iter()
        .filter(|m| m.state == v1::MemberState::Active as u32)
        .map(|m| ringfold_topology::Member {
            node_id: m.node_id,
            zone: m.zone.clone(),
            weight: 100,
        })
        .collect();
    let placed = ringfold_topology::place(&ringfold_topology::PlacementInput {
        members: &members,
        partitions: state.partitions,
        replication_factor: state.replication_factor,
        load_factor: ringfold_topology::LOAD_FACTOR,
        current: None,
    })
    .map_err(|e| e.to_string())?;
    let nodes = placed.placement.partitions.into_iter();
    Ok(nodes.map(|nodes| nodes.into_iter().map(NodeId).collect()).collect())
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
impl MetaGroup for Cluster {
    async fn facts(&self) -> Option<MetaFacts> {
        let own = self.raft.replica(GroupId::META)?.replica;
        let (reply, facts) = oneshot::channel();
        (self.input)(Input::Facts { group: GroupId::META, reply });
        let (down, lost) = self.rebalance.unreachable();
        Some(MetaFacts { group: facts.await.ok()??, own, down, lost })
    }

    async fn propose(&self, command: &MetaCommand) -> Result<MetaOutcome, ProposeError> {
        propose(&self.raft, command).await
    }

    async fn change(&self, change: MembershipChange, planned_on: u64) -> Result<(), String> {
        let (reply, changed) = oneshot::channel();
        (self.input)(Input::ChangeMembership {
            group: GroupId::META,
            change,
            planned_on: Some(planned_on),
            reply,
        });
        changed.await.unwrap_or_else(|_| Err("the node stops".into()))
    }

    async fn transfer(&self, to: ReplicaId) -> Result<(), String> {
        self.raft.transfer(GroupId::META, to).await
    }
}

#[tonic::async_trait]
impl ControlHandler for Cluster {
    async fn hello(&self, hello: Hello) -> HelloAnswer {
        let local = self.transport.local().get();
        if hello.node_id != 0 && local.as_ref().is_some_and(|l| *l.cluster_id == hello.cluster_id) {
            let book = self.transport.address_book();
            book.learn_direct(NodeId(hello.node_id), &hello.peer_address, &hello.client_url);
        }
        let state = self.meta.borrow().clone();
        let me = local.as_ref().map_or(NodeId(0), |l| l.node);
        let mut answer = join::answer_hello(&state, me, self.meta_leader());
        answer.you_are_removed =
            hello.cluster_id == state.cluster_id && was_removed(&state, hello.node_id);
        if let Some(local) = local {
            answer.cluster_id = local.cluster_id.to_string();
            // Whoever joins must be able to answer this node, whatever it has applied by now.
            if answer.nodes.iter().all(|n| n.node_id != local.node.0) {
                answer.nodes.push(NodeAddress {
                    node_id: local.node.0,
                    peer_address: self.me.peer_address.clone(),
                    client_url: self.me.client_url.clone(),
                });
            }
        }
        answer
    }

    async fn join(&self, join: Join) -> Result<JoinAnswer, Refusal> {
        join::answer_join(&self.raft, &self.meta, join).await
    }

    async fn report(&self) -> Result<ReportAnswer, Refusal> {
        Ok(self.own_report().await)
    }

    async fn step(&self, step: Step) -> Result<(), Refusal> {
        self.take_step(step).await
    }
}

#[tonic::async_trait]
impl ControlClient for Cluster {
    async fn hello(&self, address: &str, hello: Hello) -> Result<HelloAnswer, AskError> {
        self.transport.hello(address, hello).await.map_err(asked)
    }

    async fn join(&self, address: &str, join: Join) -> Result<JoinAnswer, AskError> {
        self.transport.join(address, join).await.map_err(asked)
    }
}

fn asked(e: ControlError) -> AskError {
    match e {
        ControlError::Refused(refusal) => AskError::Refused(refusal),
        other => AskError::Failed(other.to_string()),
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
        let Some(view) = self.0.raft.replica(GroupId::META) else { return Vec::new() };
        view.status.read().voters.to_vec()
    }

    fn rebalancer(&self) -> Option<Arc<dyn Rebalancer>> {
        let (cluster, rebalance) = (self.0.clone(), self.0.rebalance.clone());
        Some(Arc::new(PlanHooks { cluster, rebalance }))
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = (self.0.driver_counters)();
        let peer = self.0.transport.counters().values();
        all.extend(peer.into_iter().map(|(name, n)| (format!("peer_{name}"), n)));
        all
    }
}
