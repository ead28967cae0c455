//! The part of `ringfold-node`: it serves what `dev` asks of a node.
use ringfold_proto::v1::cluster_server::{Cluster, ClusterServer};
use ringfold_proto::v1::*;
use std::path::PathBuf;
use tonic::{Request, Response, Status};

struct Played {
    /// `<initial members> <partitions> <cluster id>`, once the cluster exists.
    cluster: PathBuf,
}

#[tonic::async_trait]
impl Cluster for Played {
    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let r = request.into_inner();
        let text = format!("{} {} {}", r.initial_members, r.partitions, r.cluster_id);
        std::fs::write(&self.cluster, text)?;
        Ok(Response::new(BootstrapResponse { cluster_id: r.cluster_id, node_id: 1 }))
    }

    async fn topology(
        &self,
        _: Request<TopologyRequest>,
    ) -> Result<Response<TopologyResponse>, Status> {
        let Ok(text) = std::fs::read_to_string(&self.cluster) else {
            return Ok(Response::new(TopologyResponse::default()));
        };
        let words: Vec<_> = text.split(' ').collect();
        let mut member = Member::default();
        member.set_state(MemberState::Active);
        let partition = Partition { leader_node_id: 1, ..Partition::default() };
        Ok(Response::new(TopologyResponse {
            cluster_id: words[2].into(),
            members: vec![member; words[0].parse().unwrap()],
            partition_map: vec![partition; words[1].parse().unwrap()],
            ..TopologyResponse::default()
        }))
    }

    async fn node_status(
        &self,
        _: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn safe_to_stop(
        &self,
        _: Request<SafeToStopRequest>,
    ) -> Result<Response<SafeToStopResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn transfer_leaders(
        &self,
        _: Request<TransferLeadersRequest>,
    ) -> Result<Response<TransferLeadersResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn rebalance_plan(
        &self,
        _: Request<RebalancePlanRequest>,
    ) -> Result<Response<RebalancePlanResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    type RebalanceWatchStream = futures::stream::Empty<Result<RebalancePlanResponse, Status>>;
    async fn rebalance_watch(
        &self,
        _: Request<RebalanceWatchRequest>,
    ) -> Result<Response<Self::RebalanceWatchStream>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn rebalance_pause(
        &self,
        _: Request<RebalancePauseRequest>,
    ) -> Result<Response<RebalancePauseResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn rebalance_resume(
        &self,
        _: Request<RebalanceResumeRequest>,
    ) -> Result<Response<RebalanceResumeResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    type DrainStream = futures::stream::Empty<Result<DrainProgress, Status>>;
    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn undrain(
        &self,
        _: Request<UndrainRequest>,
    ) -> Result<Response<UndrainResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn remove_member(
        &self,
        _: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    async fn membership_list(
        &self,
        _: Request<MembershipListRequest>,
    ) -> Result<Response<MembershipListResponse>, Status> {
        Err(Status::unimplemented("played"))
    }

    type MembershipChangesStream =
        futures::stream::Empty<Result<MembershipChangesResponse, Status>>;
    async fn membership_changes(
        &self,
        _: Request<MembershipChangesRequest>,
    ) -> Result<Response<Self::MembershipChangesStream>, Status> {
        Err(Status::unimplemented("played"))
    }
}

pub fn play(args: &[String]) {
    let flag = |name: &str| {
        let at = args.iter().position(|a| a == name).unwrap();
        args[at + 1].clone()
    };
    let data = PathBuf::from(flag("--data-dir"));
    let cluster = data.parent().unwrap().join("played-cluster");
    eprintln!("played node {} begins", flag("--name"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut term =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        if std::env::var_os("PLAY_DEAF").is_some() {
            term.recv().await;
            return;
        }
        let address = flag("--client-listen").parse().unwrap();
        tonic::transport::Server::builder()
            .add_service(ClusterServer::new(Played { cluster }))
            .serve_with_shutdown(address, async {
                term.recv().await;
            })
            .await
            .unwrap();
    });
}
