//! Restarts, upgrades and losses while clients go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use ringfold_tests_kubernetes::{
    Cluster, Operator, Work, condition, eventually, image, kubernetes,
};
use serde_json::json;

#[test]
fn a_changed_setting_restarts_the_nodes_one_after_another_and_no_event_is_lost() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 21);
        work.goes_on().await;
        let before = cluster.pod_uids().await;
        cluster.change(json!({"config": {"read_threads": "3"}})).await;
        cluster.wait_restarted(&before).await;
        cluster.wait_at_rest(3).await;
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_bad_image_stops_at_one_node_and_going_back_heals_by_itself() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let spec = json!({"partitions": 8, "upgrade": {"progressDeadlineSeconds": 30}});
        let cluster = Cluster::create(space, "demo", spec).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 22);
        work.goes_on().await;
        let bad = format!("{}-is-not-there", image("node"));
        cluster.change(json!({"image": bad})).await;
        let stalled = eventually("it says Stalled", Duration::from_secs(120), async || {
            let now = cluster.get().await;
            let stalled = condition(&now, "Stalled").is_some_and(|c| c.status == "True");
            stalled.then_some(now.clone()).ok_or_else(|| format!("{:?}", now.status))
        })
        .await;
        assert_eq!(stalled.status.as_ref().unwrap().ready_replicas, 2, "{:?}", stalled.status);
        work.goes_on().await;
        cluster.change(json!({"image": image("node")})).await;
        let now = cluster.wait_at_rest(3).await;
        assert!(condition(&now, "Stalled").is_some_and(|c| c.status == "False"));
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_pod_that_is_killed_comes_back_with_its_volume_and_clients_go_on() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 23);
        work.goes_on().await;
        let pods: Api<Pod> = space.api();
        for pod in ["demo-0", "demo-1", "demo-2"] {
            let killed = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let uid = pods.get(pod).await.unwrap().uid();
            pods.delete(pod, &killed).await.unwrap();
            eventually("another pod has its name", Duration::from_secs(60), async || {
                let now = pods.get(pod).await.map_err(|e| e.to_string())?.uid();
                (now != uid).then_some(()).ok_or_else(|| format!("{now:?}"))
            })
            .await;
            cluster.wait_at_rest(3).await;
            work.goes_on().await;
        }
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn an_upgrade_during_a_scale_out_and_a_scale_in_during_an_upgrade_come_to_rest() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 29);
        work.goes_on().await;
        let before = cluster.pod_uids().await;
        cluster.scale(4);
        cluster.change(json!({"config": {"read_threads": "3"}})).await;
        cluster.wait_at_rest(4).await;
        assert!(cluster.pod_uids().await.iter().all(|uid| !before.contains(uid)));
        work.goes_on().await;

        let before = cluster.pod_uids().await;
        cluster.change(json!({"config": {"read_threads": "2"}})).await;
        eventually("the first node restarts", Duration::from_secs(120), async || {
            let now = cluster.pod_uids().await;
            let same = now == before;
            (!same).then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        cluster.scale(3);
        cluster.wait_at_rest(3).await;
        assert!(cluster.pod_uids().await.iter().all(|uid| !before.contains(uid)));
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
