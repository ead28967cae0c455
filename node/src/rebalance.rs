//! What this node does for the plan of the meta group's leader: it reports what it has, takes the
//! steps of groups that it leads, and destroys replicas that are recorded no more.
use crate::api::node::Rebalancer;
use crate::cluster::Cluster;
use crate::failpoint;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::propose;
use crate::meta::rebalance::asking::Asking;
use crate::meta::rebalance::fence::{self, Act, STEP_FAILED};
use crate::meta::rebalance::report::replica_report;
use crate::meta::rebalance::{Host, Rebalance};
use crate::meta::replicas::forgotten_replicas;
use crate::partition::Reader;
use crate::partition::apply::MetaOutcome;
use crate::peer::control::{ControlError, PeerClient, refusal};
use crate::peer::frame::Kind;
use crate::raft::driver::{GroupFacts, Input};
use crate::raft::handle::{ProposeError, Role};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use ringfold_proto::internal::{
    MetaCommand, MetaState, Refusal, ReplicaReport, ReportAnswer, Step,
};
use ringfold_proto::v1;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// For the meta group to confirm that this node leads it.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// For a membership change to be applied, or a read index to be confirmed.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

impl Cluster {
    /// What this node has.
    pub async fn own_report(&self) -> ReportAnswer {
        // First: what follows knows at least as much.
        let followed = self.followed.load(Ordering::Acquire);
        let facts = self.all_facts().await;
        let views: Vec<_> = self.raft.replicas.read().values().cloned().collect();
        let sizes = {
            let readers: Vec<Reader> = views.iter().map(|v| v.reader.clone()).collect();
            // Asks the databases: not on the runtime's threads.
            let sizes = move || readers.iter().map(|r| r.store().bytes()).collect::<Vec<_>>();
            tokio::task::spawn_blocking(sizes).await.unwrap_or_default()
        };
        let mut replicas: Vec<ReplicaReport> = views
            .iter()
            .enumerate()
            .filter(|(_, v)| v.group != GroupId::META)
            .map(|(i, v)| {
                let bytes = sizes.get(i).copied().unwrap_or(0);
                replica_report(v, bytes, facts.get(&(v.group, v.replica)))
            })
            .collect();
        replicas.sort_unstable_by_key(|r| r.group);
        let mut answer =
            ReportAnswer { replicas, followed_replica_id: followed, ..Default::default() };
        if let Some(info) = self.info.get() {
            let kept = info.disk.limit_bytes.load(Ordering::Relaxed);
            let free = info.disk.free_bytes.load(Ordering::Relaxed);
            answer.disk_free_bytes = free.saturating_sub(kept);
            answer.disk_total_bytes = info.disk.total_bytes.load(Ordering::Relaxed);
            answer.appends_refused = info.disk.appends_refused.load(Ordering::Relaxed);
            answer.lost = info.lost.get().is_some();
        }
        answer
    }

    async fn all_facts(&self) -> HashMap<(GroupId, ReplicaId), GroupFacts> {
        let (reply, facts) = oneshot::channel();
        (self.input)(Input::AllFacts { reply });
        let all = facts.await.unwrap_or_default();
        all.into_iter().map(|(group, replica, facts)| ((group, replica), facts)).collect()
    }

    /// Takes one step for a group that this node leads.
    pub async fn take_step(&self, step: Step) -> Result<(), Refusal> {
        let own_epoch = self.meta.borrow().epoch;
        let seen = self.step_term.fetch_max(step.term, Ordering::AcqRel);
        let own_term = seen.max(self.meta_term());
        let (group, planned_on) = (GroupId(step.group), step.membership_index);
        let change = match fence::accept(&step, own_epoch, own_term)? {
            Act::Change(change) => change,
            Act::HandOver(to) => return self.hand_over(group, planned_on, to).await,
            Act::ConfirmWithout(replica) => {
                return self.confirm_without(group, planned_on, replica).await;
            }
        };
        let (reply, changed) = oneshot::channel();
        let planned_on = Some(planned_on);
        (self.input)(Input::ChangeMembership { group, change, planned_on, reply });
        match tokio::time::timeout(STEP_TIMEOUT, changed).await {
            Ok(Ok(result)) => result.map_err(|reason| refusal(STEP_FAILED, reason)),
            _ => Err(refusal(STEP_FAILED, "the change is not applied in time")),
        }
    }

    /// Facts of a group that this node leads, with the membership that a step was planned on.
    async fn led(&self, group: GroupId, planned_on: u64) -> Result<GroupFacts, Refusal> {
        let (reply, facts) = oneshot::channel();
        (self.input)(Input::Facts { group, reply });
        fence::led(facts.await.ok().flatten(), planned_on)
    }

    async fn hand_over(
        &self,
        group: GroupId,
        planned_on: u64,
        to: ReplicaId,
    ) -> Result<(), Refusal> {
        self.led(group, planned_on).await?;
        failpoint::hit("leadership-before", group);
        match tokio::time::timeout(STEP_TIMEOUT, self.raft.transfer(group, to)).await {
            Ok(moved) => moved.map_err(|reason| refusal(STEP_FAILED, reason)),
            Err(_) => Err(refusal(STEP_FAILED, "the leadership has not moved in time")),
        }
    }

    async fn confirm_without(
        &self,
        group: GroupId,
        planned_on: u64,
        replica: ReplicaId,
    ) -> Result<(), Refusal> {
        let before = self.led(group, planned_on).await?;
        fence::is_without(&before, replica)?;
        match tokio::time::timeout(STEP_TIMEOUT, self.raft.read_index(group)).await {
            Ok(Ok(Ok(()))) => {}
            _ => return Err(refusal(STEP_FAILED, "the read index is not confirmed in time")),
        }
        let after = self.led(group, planned_on).await?;
        fence::is_confirmed_without(&before, &after, replica)?;
        // A late proposal of it finds the leader warned, as long as this one leads.
        let (reply, renounced) = oneshot::channel();
        let (term, membership_index) = (after.term, after.membership_index);
        (self.input)(Input::Renounce { group, replica, term, membership_index, reply });
        match renounced.await {
            Ok(result) => result.map_err(|reason| refusal(STEP_FAILED, reason)),
            Err(_) => Err(refusal(STEP_FAILED, "the replica went away")),
        }
    }

    /// The term of the last leader of the meta group that this node knows.
    fn meta_term(&self) -> u64 {
        let view = self.raft.replica(GroupId::META);
        view.map_or(0, |v| {
            let status = v.status.read();
            // Without a leader it may be that of a vote that nobody wins.
            if status.leader.is_some() { status.term } else { 0 }
        })
    }

    /// Destroys this node's replicas that the meta group has forgotten.
    pub async fn destroy_forgotten(&self, state: &MetaState) {
        let own: Vec<_> = {
            let replicas = self.raft.replicas.read();
            replicas.values().map(|v| (v.group, v.replica)).collect()
        };
        for (group, replica) in forgotten_replicas(state, own) {
            tracing::info!(%group, %replica, "the replica has left its group: destroying it");
            let Some(view) = self.raft.replica(group).filter(|v| v.replica == replica) else {
                continue;
            };
            failpoint::hit("destroy-before", group);
            view.close("it has left its group");
            // Its clones keep no database open.
            view.reader.replace(&Reader::closed("the replica has left its group"));
            let (reply, destroyed) = oneshot::channel();
            (self.input)(Input::Destroy { group, replica, reply });
            if destroyed.await.is_err() {
                return;
            }
            // A checkpoint that was being installed meanwhile has opened its database there.
            view.reader.replace(&Reader::closed("the replica has left its group"));
            self.raft.replicas.write().remove(&group);
            failpoint::hit("destroy-files-left", group);
            let home = self.home.clone();
            let removed = tokio::task::spawn_blocking(move || home.remove(replica)).await;
            if let Ok(Err(e)) | Err(e) = removed.map_err(std::io::Error::other) {
                // The next start removes what no record names.
                tracing::warn!(error = %e, %replica, "files of a destroyed replica stay for now");
            }
            failpoint::hit("destroy-done", group);
        }
    }
}

/// Failpoints before a command of a move is proposed and once it is applied.
fn meta_point(command: &MetaCommand) -> Option<((&'static str, &'static str), GroupId)> {
    use ringfold_proto::internal::meta_command::Command;
    let (points, partition) = match command.command.as_ref().filter(|_| failpoint::EXISTS)? {
        Command::CreateReplica(c) => (("meta-create-before", "meta-create-after"), c.partition),
        Command::AdmitReplica(c) => (("meta-admit-before", "meta-admit-after"), c.partition),
        Command::ForgetReplica(c) => (("meta-forget-before", "meta-forget-after"), c.partition),
        _ => return None,
    };
    Some((points, GroupId::of_partition(partition)))
}

/// The node as the rebalancer reaches it, with a connection to each peer.
pub struct ClusterHost {
    cluster: Arc<Cluster>,
    peers: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Option<PeerClient>>>>>,
    asking: tokio::sync::Mutex<Asking<ReportAnswer>>,
}

impl ClusterHost {
    pub fn new(cluster: Arc<Cluster>) -> ClusterHost {
        ClusterHost { cluster, peers: Mutex::default(), asking: Default::default() }
    }

    /// Asks a node, over the connection that is there or a new one.
    fn report_of(
        &self,
        node: NodeId,
    ) -> impl Future<Output = Result<ReportAnswer, ControlError>> + Send + 'static {
        let peer = self.peers.lock().entry(node).or_default().clone();
        let cluster = self.cluster.clone();
        async move {
            let mut peer = peer.lock().await;
            // Taken out: a request that is given up leaves no connection with an answer to come.
            let mut client = match peer.take() {
                Some(client) => client,
                None => cluster.transport.connect_to(node, Kind::Control).await?,
            };
            let answer = client.report().await?;
            *peer = Some(client);
            Ok(answer)
        }
    }
}

#[tonic::async_trait]
impl Host for ClusterHost {
    fn leads(&self) -> bool {
        self.cluster.raft.leads(GroupId::META)
    }

    async fn confirmed_term(&self) -> Option<u64> {
        let leads = || {
            let view = self.cluster.raft.replica(GroupId::META)?;
            let status = view.status.read();
            (status.role == Role::Leader).then_some(status.term)
        };
        let term = leads()?;
        let confirmed = self.cluster.raft.read_index(GroupId::META);
        match tokio::time::timeout(CONFIRM_TIMEOUT, confirmed).await {
            Ok(Ok(Ok(()))) => leads().filter(|now| *now == term),
            _ => None,
        }
    }

    fn state(&self) -> Arc<MetaState> {
        self.cluster.meta.borrow().clone()
    }

    async fn reports(&self, nodes: &BTreeSet<NodeId>) -> Vec<(NodeId, ReportAnswer)> {
        self.peers.lock().retain(|n, _| nodes.contains(n));
        let me = self.cluster.transport.local().get().map(|l| l.node);
        let others = nodes.iter().copied().filter(|n| Some(*n) != me).collect();
        let ask = |node: NodeId| {
            let report = self.report_of(node);
            async move {
                let answer = report.await;
                answer.inspect_err(|e| tracing::debug!(%node, error = %e, "no report")).ok()
            }
        };
        let mut asking = self.asking.lock().await;
        let mut answers = asking.all(&others, ask).await;
        if let Some(me) = me.filter(|n| nodes.contains(n)) {
            answers.push((me, self.cluster.own_report().await));
        }
        answers
    }

    async fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, ProposeError> {
        let point = meta_point(&command);
        if let Some(((before, _), group)) = point {
            failpoint::hit(before, group);
        }
        let outcome = propose(&self.cluster.raft, &command).await;
        if let Some(((_, after), group)) = point {
            failpoint::hit(after, group);
        }
        outcome
    }

    async fn step(&self, node: NodeId, step: Step) -> Result<(), String> {
        if self.cluster.transport.local().get().is_some_and(|l| l.node == node) {
            return self.cluster.take_step(step).await.map_err(|r| r.message);
        }
        // A connection of its own: steps wait for their changes.
        let connected = self.cluster.transport.connect_to(node, Kind::Control).await;
        let mut client = connected.map_err(|e| e.to_string())?;
        client.step(step).await.map_err(|e| e.to_string())
    }
}

/// The services' side of the plan.
pub struct PlanHooks {
    pub cluster: Arc<Cluster>,
    pub rebalance: Arc<Rebalance>,
}

impl Rebalancer for PlanHooks {
    fn refreshed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.rebalance.refreshed())
    }

    fn plan(&self) -> watch::Receiver<Arc<v1::RebalancePlanResponse>> {
        self.rebalance.plan()
    }

    fn drain_obstacles(&self, node: NodeId) -> Vec<String> {
        self.rebalance.drain_obstacles(node)
    }

    fn propose(
        &self,
        command: MetaCommand,
    ) -> BoxFuture<'static, Result<MetaOutcome, ProposeError>> {
        let raft = self.cluster.raft.clone();
        Box::pin(async move { propose(&raft, &command).await })
    }
}
