//! What this node does for the plan of the meta group's leader: it reports what it has, takes the
//! steps of groups that it leads, and destroys replicas that are recorded no more.
use crate::api::node::Rebalancer;
use crate::cluster::Cluster;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::propose;
use crate::meta::rebalance::fence::{self, Act, STEP_FAILED};
use crate::meta::rebalance::report::replica_report;
use crate::meta::rebalance::{Host, Rebalance};
use crate::meta::replicas::forgotten_replicas;
use crate::partition::Reader;
use crate::partition::apply::MetaOutcome;
use crate::peer::control::{ControlError, PeerClient, refusal};
use crate::peer::frame::Kind;
use crate::raft::driver::{GroupFacts, Input};
use crate::raft::handle::{ProposeError, Request};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
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

/// A node that does not report within this time is not heard this round.
const REPORT_TIMEOUT: Duration = Duration::from_millis(1_500);
const REPORTS_AT_ONCE: usize = 64;
/// For a membership change to be applied, or a read index to be confirmed.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

impl Cluster {
    /// What this node has.
    pub async fn own_report(&self) -> ReportAnswer {
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
        let mut answer = ReportAnswer { replicas, ..Default::default() };
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
        let (group, planned_on) = (GroupId(step.group), step.membership_index);
        let change = match fence::accept(&step, own_epoch)? {
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
        let _ = (self.raft.sender)(Request::Transfer { group, to }, None);
        let until = tokio::time::Instant::now() + STEP_TIMEOUT;
        while self.raft.leads(group) {
            if tokio::time::Instant::now() >= until {
                return Err(refusal(STEP_FAILED, "the leadership has not moved in time"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
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
        fence::is_confirmed_without(&before, &after, replica)
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
            view.close("it has left its group");
            // Its clones keep no database open.
            view.reader.replace(&Reader::closed("the replica has left its group"));
            let (reply, destroyed) = oneshot::channel();
            (self.input)(Input::Destroy { group, replica, reply });
            if destroyed.await.is_err() {
                return;
            }
            self.raft.replicas.write().remove(&group);
            let home = self.home.clone();
            let removed = tokio::task::spawn_blocking(move || home.remove(replica)).await;
            if let Ok(Err(e)) | Err(e) = removed.map_err(std::io::Error::other) {
                // The next start removes what no record names.
                tracing::warn!(error = %e, %replica, "files of a destroyed replica stay for now");
            }
        }
    }
}

/// The node as the rebalancer reaches it, with a connection to each peer.
pub struct ClusterHost {
    cluster: Arc<Cluster>,
    peers: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Option<PeerClient>>>>>,
}

impl ClusterHost {
    pub fn new(cluster: Arc<Cluster>) -> ClusterHost {
        ClusterHost { cluster, peers: Mutex::default() }
    }

    async fn report_of(&self, node: NodeId) -> Result<ReportAnswer, ControlError> {
        let peer = self.peers.lock().entry(node).or_default().clone();
        let mut peer = peer.lock().await;
        // Taken out: a request that is given up leaves no connection with an answer to come.
        let mut client = match peer.take() {
            Some(client) => client,
            None => self.cluster.transport.connect_to(node, Kind::Control).await?,
        };
        let answer = client.report().await?;
        *peer = Some(client);
        Ok(answer)
    }
}

#[tonic::async_trait]
impl Host for ClusterHost {
    fn leads(&self) -> bool {
        self.cluster.raft.leads(GroupId::META)
    }

    fn state(&self) -> Arc<MetaState> {
        self.cluster.meta.borrow().clone()
    }

    async fn reports(&self, nodes: &BTreeSet<NodeId>) -> Vec<(NodeId, ReportAnswer)> {
        self.peers.lock().retain(|n, _| nodes.contains(n));
        let me = self.cluster.transport.local().get().map(|l| l.node);
        let ask = |node: NodeId| async move {
            if Some(node) == me {
                return Some((node, self.cluster.own_report().await));
            }
            match tokio::time::timeout(REPORT_TIMEOUT, self.report_of(node)).await {
                Ok(Ok(report)) => Some((node, report)),
                Ok(Err(e)) => {
                    tracing::debug!(%node, error = %e, "no report");
                    None
                }
                Err(_) => None,
            }
        };
        let answers = stream::iter(nodes.iter().copied().map(ask));
        answers.buffer_unordered(REPORTS_AT_ONCE).filter_map(|a| async { a }).collect().await
    }

    async fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, ProposeError> {
        propose(&self.cluster.raft, &command).await
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
