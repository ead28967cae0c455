//! Decisions that rest on an older look at the cluster change nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use ringfold_proto::v1::{
    DrainRequest, MemberState, RebalancePauseRequest, RebalanceResumeRequest, RemoveMemberRequest,
    SafeToStopRequest, TransferLeadersRequest, UndrainRequest,
};
use ringfold_tests::cluster::{LocalCluster, Settings, eventually, timed};
use tonic_types::StatusExt;

const CALL_MAX: Duration = Duration::from_secs(10);
const SETTLED_MAX: Duration = Duration::from_secs(60);

fn is_stale(status: &tonic::Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == "STALE_EPOCH")
}

fn assert_stale<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, expected: u64) {
    let status = answer.unwrap_err();
    assert!(is_stale(&status), "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["expected"], expected.to_string());
    assert_ne!(info.metadata["actual"], expected.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_decided_on_an_older_epoch_is_refused_unless_it_is_so_already() {
    let settings = Settings { nodes: 4, replication_factor: 3, ..Settings::default() };
    let cluster = LocalCluster::start(settings).await;
    cluster.wait_members(4).await;
    let node_id = cluster.node_id(3).await;
    // Any node takes the call: it goes on to the meta group's leader.
    let node = &cluster.nodes[0];
    let epoch = || async { node.topology().await.unwrap().epoch };
    let drain = async |if_epoch| {
        let request = timed(DrainRequest { node_id, if_epoch }, CALL_MAX);
        let mut progress = node.admin().drain(request).await?.into_inner();
        progress.message().await
    };
    let pause = async |if_epoch| {
        node.admin().rebalance_pause(timed(RebalancePauseRequest { if_epoch }, CALL_MAX)).await
    };
    let resume = async |if_epoch| {
        node.admin().rebalance_resume(timed(RebalanceResumeRequest { if_epoch }, CALL_MAX)).await
    };
    let undrain = async |if_epoch| {
        node.admin().undrain(timed(UndrainRequest { node_id, if_epoch }, CALL_MAX)).await
    };
    let state = || async {
        let topology = node.topology().await.unwrap();
        topology.members.iter().find(|m| m.node_id == node_id).unwrap().state()
    };

    let before = epoch().await;
    assert_stale(drain(before + 7).await, before + 7);
    assert_stale(pause(before + 1).await, before + 1);
    assert_eq!(state().await, MemberState::Active);
    pause(before).await.unwrap();
    // The answer to the first one may have been lost.
    pause(before + 1).await.unwrap();
    assert_stale(resume(before + 1).await, before + 1);
    resume(before).await.unwrap();

    drain(before).await.unwrap();
    drain(before).await.unwrap();
    eventually("the node sees the drain", SETTLED_MAX, || async {
        match epoch().await {
            now if now > before => Ok(()),
            now => Err(format!("epoch {now}")),
        }
    })
    .await;
    assert_eq!(state().await, MemberState::Draining);
    assert_stale(undrain(before).await, before);
    let remove = RemoveMemberRequest { node_id, if_epoch: before };
    let removed = node.admin().remove_member(timed(remove, CALL_MAX)).await.unwrap_err();
    // Whichever is said first, it is not removed.
    assert!(is_stale(&removed) || removed.message().contains("votes"), "{removed:?}");
    let safe = SafeToStopRequest { node_id, if_epoch: before };
    assert_stale(node.admin().safe_to_stop(timed(safe, CALL_MAX)).await, before);
    let transfer = TransferLeadersRequest { if_epoch: before };
    assert_stale(node.admin().transfer_leaders(timed(transfer, CALL_MAX)).await, before);
    assert_eq!(state().await, MemberState::Draining);

    // Whoever looks again may: the cluster itself raises the epoch meanwhile.
    let undrained = eventually("it is undrained", SETTLED_MAX, || async {
        let now = epoch().await;
        undrain(now).await.map(|_| now).map_err(|s| s.to_string())
    })
    .await;
    undrain(undrained).await.unwrap();
    eventually("the node is active again", SETTLED_MAX, || async {
        match state().await {
            MemberState::Active => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
