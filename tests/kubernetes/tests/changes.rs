//! Restarts, upgrades and losses while clients go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt as _, api::DeleteParams};
use ringfold_tests_kubernetes::{
    Cluster, Operator, Work, condition, eventually, image, kubectl, kubernetes,
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
fn a_node_that_a_person_asks_to_replace_is_drained_and_comes_back_as_a_new_one() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        // One more than replicas: with three the drain is refused, and the status says so.
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8, "replicas": 4})).await;
        let whole = cluster.wait_at_rest(4).await;
        let members = whole.status.unwrap().members;
        let member = members.iter().find(|m| m.pod.as_deref() == Some("demo-1")).unwrap();
        let work = Work::start(&cluster, 3, 24);
        work.goes_on().await;
        let claims: Api<PersistentVolumeClaim> = space.api();
        let before = claims.get("data-demo-1").await.unwrap().uid();
        let mark = format!("ringfold.dev/replace={}", member.node_id);
        kubectl(&["annotate", "pvc/data-demo-1", &mark, "-n", &space.name]);
        eventually("the claim is a new one", Duration::from_secs(120), async || {
            let now = claims.get("data-demo-1").await.map_err(|e| e.to_string())?.uid();
            (now != before).then_some(()).ok_or_else(|| format!("{now:?}"))
        })
        .await;
        let now = cluster.wait_at_rest(4).await.status.unwrap().members;
        assert!(now.iter().all(|m| m.node_id != member.node_id), "{now:?}");
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
