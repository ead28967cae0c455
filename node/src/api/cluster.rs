//! The `Cluster` service.
mod membership;
mod rebalance;
mod safety;
pub mod statuses;

use super::deadline::Call;
use super::errors::ApiError;
use super::incoming::Peer;
use super::node::Node;
use super::validate;
use crate::ids::{GroupId, NodeId};
use crate::meta::replicas::target_of;
use crate::raft::handle::{self, ReplicaView, TransferOutcome};
use futures::stream::BoxStream;
use ringfold_proto::internal::{MetaMember, MetaPartition};
use ringfold_proto::v1;
use ringfold_proto::v1::cluster_server::Cluster;
use ringfold_tls::Role;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use uuid::Uuid;

const PARTITIONS_MAX: u32 = 1_024;
const CATEGORIES_MAX: usize = 1_024;

pub struct Clusters {
    pub node: Arc<Node>,
    /// Whether its clients show certificates.
    pub has_tls: bool,
}

#[tonic::async_trait]
impl Cluster for Clusters {
    async fn bootstrap(
        &self,
        request: Request<v1::BootstrapRequest>,
    ) -> Result<Response<v1::BootstrapResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        let request = checked_bootstrap(request.into_inner(), &self.node.limits)?;
        let answer = call.within(false, self.node.info.hooks.bootstrap(request)).await??;
        Ok(Response::new(answer))
    }

    async fn topology(
        &self,
        _: Request<v1::TopologyRequest>,
    ) -> Result<Response<v1::TopologyResponse>, Status> {
        Ok(Response::new(self.known_topology()))
    }

    async fn node_status(
        &self,
        request: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusResponse>, Status> {
        let call = Call::of(request.metadata())?;
        Ok(Response::new(call.within(false, statuses::own(&self.node)).await??))
    }

    async fn safe_to_stop(
        &self,
        request: Request<v1::SafeToStopRequest>,
    ) -> Result<Response<v1::SafeToStopResponse>, Status> {
        let call = Call::of(request.metadata())?;
        let v1::SafeToStopRequest { node_id, if_epoch } = request.into_inner();
        let target = match node_id {
            0 => self.node.info.node_id(),
            id => NodeId(id),
        };
        self.node.partitions()?;
        // After the look: what was decided before it must still hold then.
        let reasons = call.within(false, statuses::needs(&self.node, &call, target)).await??;
        rebalance::check_epoch(&self.node.meta.borrow(), if_epoch)?;
        Ok(Response::new(v1::SafeToStopResponse { safe: reasons.is_empty(), reasons }))
    }

    async fn transfer_leaders(
        &self,
        request: Request<v1::TransferLeadersRequest>,
    ) -> Result<Response<v1::TransferLeadersResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::check_epoch(&self.node.meta.borrow(), request.into_inner().if_epoch)?;
        let before = self.led();
        let done = match call.within(false, self.node.raft.transfer_all()).await {
            Ok(done) => done.map_err(|_| ApiError::NodeStopping)?,
            // What moved by the deadline counts.
            Err(_) => {
                let remaining = self.led();
                let transferred = before.saturating_sub(remaining);
                TransferOutcome { transferred, remaining }
            }
        };
        Ok(Response::new(v1::TransferLeadersResponse {
            transferred: done.transferred,
            remaining: done.remaining,
        }))
    }

    async fn rebalance_plan(
        &self,
        request: Request<v1::RebalancePlanRequest>,
    ) -> Result<Response<v1::RebalancePlanResponse>, Status> {
        rebalance::plan(&self.node, &Call::of(request.metadata())?).await
    }

    type RebalanceWatchStream = rebalance::Answers<v1::RebalancePlanResponse>;

    async fn rebalance_watch(
        &self,
        request: Request<v1::RebalanceWatchRequest>,
    ) -> Result<Response<Self::RebalanceWatchStream>, Status> {
        rebalance::watch(&self.node, &Call::of(request.metadata())?).await
    }

    async fn rebalance_pause(
        &self,
        request: Request<v1::RebalancePauseRequest>,
    ) -> Result<Response<v1::RebalancePauseResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::pause(&self.node, &call, true, request.into_inner().if_epoch).await?;
        Ok(Response::new(v1::RebalancePauseResponse {}))
    }

    async fn rebalance_resume(
        &self,
        request: Request<v1::RebalanceResumeRequest>,
    ) -> Result<Response<v1::RebalanceResumeResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::pause(&self.node, &call, false, request.into_inner().if_epoch).await?;
        Ok(Response::new(v1::RebalanceResumeResponse {}))
    }

    type DrainStream = rebalance::Answers<v1::DrainProgress>;

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::drain(&self.node, &call, request.into_inner()).await
    }

    async fn undrain(
        &self,
        request: Request<v1::UndrainRequest>,
    ) -> Result<Response<v1::UndrainResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::undrain(&self.node, &call, request.into_inner()).await
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        permitted(self.has_tls, &request)?;
        let call = Call::of(request.metadata())?;
        rebalance::remove(&self.node, &call, request.into_inner()).await
    }

    async fn membership_list(
        &self,
        _: Request<v1::MembershipListRequest>,
    ) -> Result<Response<v1::MembershipListResponse>, Status> {
        Ok(Response::new(membership::list(&self.node, self.node.members.list())))
    }

    type MembershipChangesStream =
        BoxStream<'static, Result<v1::MembershipChangesResponse, Status>>;

    async fn membership_changes(
        &self,
        request: Request<v1::MembershipChangesRequest>,
    ) -> Result<Response<Self::MembershipChangesStream>, Status> {
        let call = Call::of(request.metadata())?;
        Ok(Response::new(membership::changes(self.node.clone(), call)?))
    }
}

/// Whether whoever asks may change the cluster. Without TLS everybody may; with it somebody of whom
/// nothing is known may not.
fn permitted<T>(has_tls: bool, request: &Request<T>) -> Result<(), ApiError> {
    let role = request.extensions().get::<Peer>().and_then(|peer| peer.role);
    match has_tls {
        true if role.is_none_or(|role| role < Role::Admin) => Err(ApiError::NotPermitted),
        _ => Ok(()),
    }
}

impl Clusters {
    /// Groups that this node leads.
    fn led(&self) -> u32 {
        let replicas = self.node.raft.replicas.read();
        let leads = |v: &&Arc<ReplicaView>| v.status.read().role == handle::Role::Leader;
        replicas.values().filter(leads).count() as u32
    }

    fn known_topology(&self) -> v1::TopologyResponse {
        let node = &self.node;
        let info = &node.info;
        let me = info.node_id();
        let meta = node.meta.borrow().clone();
        let partition = |(p, placed): (usize, &MetaPartition)| {
            let p = p as u32;
            let view = node.raft.replica(GroupId::of_partition(p));
            let (leader, term) = view.as_deref().map_or((None, 0), |v| leader_of(v, me));
            let replicas = placed.replicas.iter();
            v1::Partition {
                partition: p,
                leader_node_id: leader.or(node.router.hint(p)).map_or(0, |n| n.0),
                term,
                replicas: replicas
                    .map(|r| v1::Replica { replica_id: r.replica_id, node_id: r.node_id })
                    .collect(),
                target_node_ids: target_of(placed),
            }
        };
        let meta_view = node.raft.replica(GroupId::META);
        let meta_leader = meta_view.as_deref().and_then(|v| leader_of(v, me).0);
        v1::TopologyResponse {
            cluster_id: info.cluster_id().to_string(),
            node_id: me.0,
            epoch: meta.epoch,
            feature_level: meta.feature_level,
            partitions: meta.partitions,
            replication_factor: meta.replication_factor,
            members: meta.members.iter().map(|m| member(node, m)).collect(),
            partition_map: meta.placement.iter().enumerate().map(partition).collect(),
            meta_leader_node_id: meta_leader.map_or(0, |n| n.0),
            meta_voter_node_ids: info.hooks.meta_voters().into_iter().map(|n| n.0).collect(),
        }
    }
}

fn member(node: &Node, m: &MetaMember) -> v1::Member {
    let info = &node.info;
    v1::Member {
        node_id: m.node_id,
        name: m.name.clone(),
        client_url: m.client_url.clone(),
        peer_address: m.peer_address.clone(),
        zone: m.zone.clone(),
        state: m.state as i32,
        reachable: m.node_id == info.node_id().0 || info.hooks.reachable(NodeId(m.node_id)),
    }
}

/// The leader that a replica knows, and its term.
fn leader_of(view: &ReplicaView, me: NodeId) -> (Option<NodeId>, u64) {
    let status = view.status.read();
    let leader = if status.role == handle::Role::Leader { Some(me) } else { status.leader };
    (leader, status.term)
}

/// The request with its defaults, or what is wrong with it.
fn checked_bootstrap(
    mut request: v1::BootstrapRequest,
    limits: &validate::Limits,
) -> Result<v1::BootstrapRequest, ApiError> {
    let id = Uuid::try_parse(&request.cluster_id)
        .ok()
        .filter(|id| !id.is_nil())
        .ok_or_else(|| ApiError::argument("cluster_id", "is not the text of a UUID"))?;
    // One way to write it: it is compared as text.
    request.cluster_id = id.to_string();
    if request.partitions == 0 {
        request.partitions = 64;
    }
    if !request.partitions.is_power_of_two() || request.partitions > PARTITIONS_MAX {
        return Err(ApiError::argument("partitions", "is not a power of two from 1 to 1,024"));
    }
    if request.replication_factor == 0 {
        request.replication_factor = 3;
    }
    if ![1, 3, 5].contains(&request.replication_factor) {
        return Err(ApiError::argument("replication_factor", "is not 1, 3 or 5"));
    }
    if request.initial_members == 0 {
        request.initial_members = request.replication_factor;
    }
    if request.initial_members < request.replication_factor {
        return Err(ApiError::argument("initial_members", "is less than replication_factor"));
    }
    let reducer = |field: String, value: i32| match v1::Reducer::try_from(value) {
        Ok(v1::Reducer::Unspecified) => Ok(v1::Reducer::MergePatch as i32),
        Ok(known) => Ok(known as i32),
        Err(_) => Err(ApiError::argument(field, format!("{value} is no reducer known here"))),
    };
    request.default_reducer = reducer("default_reducer".into(), request.default_reducer)?;
    if request.category_reducers.len() > CATEGORIES_MAX {
        return Err(ApiError::argument("category_reducers", "has more than 1,024 categories"));
    }
    for (category, value) in &mut request.category_reducers {
        validate::category("category_reducers", category, limits)?;
        *value = reducer(format!("category_reducers[{category}]"), *value)?;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::errors::Reason;

    #[test]
    fn with_tls_only_a_certificate_of_an_admin_or_a_node_permits_and_without_tls_nothing_is_asked()
    {
        let with = |peer: Option<Option<Role>>| {
            let mut request = Request::new(());
            if let Some(role) = peer {
                request.extensions_mut().insert(Peer { role });
            }
            request
        };
        for (peer, may) in [
            (None, false),
            (Some(None), false),
            (Some(Some(Role::Client)), false),
            (Some(Some(Role::Admin)), true),
            (Some(Some(Role::Node)), true),
        ] {
            assert_eq!(permitted(true, &with(peer)).is_ok(), may, "{peer:?}");
            assert!(permitted(false, &with(peer)).is_ok());
        }
    }

    fn field(request: v1::BootstrapRequest) -> Option<String> {
        let e = checked_bootstrap(request, &validate::Limits::default()).err()?;
        match e {
            ApiError::InvalidArgument { field, .. } => Some(field.into_owned()),
            e => e.reason().map(|r: Reason| r.name().to_string()),
        }
    }

    #[test]
    fn bootstrap_fills_in_defaults_and_names_the_field_that_is_wrong() {
        let good = v1::BootstrapRequest {
            cluster_id: "6F9619FF-8B86-D011-B42D-00CF4FC964FF".into(),
            ..Default::default()
        };
        let filled = checked_bootstrap(good.clone(), &validate::Limits::default()).unwrap();
        assert_eq!(filled.cluster_id, "6f9619ff-8b86-d011-b42d-00cf4fc964ff");
        assert_eq!(
            (filled.partitions, filled.replication_factor, filled.initial_members),
            (64, 3, 3)
        );
        assert_eq!(filled.default_reducer, v1::Reducer::MergePatch as i32);

        let with = |change: fn(&mut v1::BootstrapRequest)| {
            let mut request = good.clone();
            change(&mut request);
            field(request)
        };
        assert_eq!(with(|_| ()), None);
        assert_eq!(with(|r| r.cluster_id = "c".into()).as_deref(), Some("cluster_id"));
        assert_eq!(with(|r| r.cluster_id.clear()).as_deref(), Some("cluster_id"));
        assert_eq!(with(|r| r.partitions = 48).as_deref(), Some("partitions"));
        assert_eq!(with(|r| r.partitions = 2_048).as_deref(), Some("partitions"));
        assert_eq!(with(|r| r.replication_factor = 2).as_deref(), Some("replication_factor"));
        assert_eq!(with(|r| r.initial_members = 2).as_deref(), Some("initial_members"));
        assert_eq!(with(|r| r.default_reducer = 9).as_deref(), Some("default_reducer"));
        assert_eq!(
            with(|r| _ = r.category_reducers.insert("a".into(), 9)).as_deref(),
            Some("category_reducers[a]")
        );
        assert_eq!(
            with(|r| _ = r.category_reducers.insert("a-b".into(), 1)).as_deref(),
            Some("category_reducers")
        );
    }
}
