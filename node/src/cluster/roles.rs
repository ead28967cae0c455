//! What this node is to others: to the controller, to its peers, and to its own services.
use super::Cluster;
use crate::api::errors::ApiError;
use crate::api::node::{NodeHooks, Rebalancer};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::controller::{MetaFacts, MetaGroup};
use crate::meta::join::{self, AskError, ControlClient};
use crate::meta::propose;
use crate::meta::state::was_removed;
use crate::partition::apply::MetaOutcome;
use crate::peer::control::{ControlError, ControlHandler};
use crate::raft::driver::{Input, MembershipChange};
use crate::raft::handle::ProposeError;
use crate::rebalance::PlanHooks;
use futures::future::BoxFuture;
use ringfold_proto::internal::{
    Hello, HelloAnswer, Join, JoinAnswer, MetaCommand, NodeAddress, Refusal, ReportAnswer, Step,
};
use ringfold_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

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
