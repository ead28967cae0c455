//! Kubernetes nodes that are lost or emptied: one test at a time, for all tests share them. Cargo runs
//! this file's tests when those of the others have ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::{sync::Mutex, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use ringfold_tests_kubernetes::{
    Cluster, Operator, Space, Work, eventually, is_lab, kubectl, kubernetes, power,
};
use serde_json::json;

static TURN: Mutex<()> = Mutex::new(());

fn alone(test: impl AsyncFnOnce(&Space)) {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    kubernetes(test);
}

async fn node_of(space: &Space, pod: &str) -> String {
    space.api::<Pod>().get(pod).await.unwrap().spec.unwrap().node_name.unwrap()
}

#[test]
fn a_kubernetes_node_that_loses_power_takes_no_event_with_it_and_comes_back() {
    if !is_lab() {
        ringfold_tests_kubernetes::leave_out(
            "nobody takes the power of a node of KUBECONFIG's cluster",
        );
        return;
    }
    alone(async |space| {
        let operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 9);
        work.goes_on().await;
        let node = node_of(space, "demo-1").await;
        power(&node, false);
        // Two of three go on, whoever led.
        work.goes_on().await;
        eventually("Kubernetes sees it", Duration::from_secs(60), async || {
            let nodes: Api<Node> = Api::all(space.client.clone());
            let status = nodes.get(&node).await.map_err(|e| e.to_string())?.status;
            let conditions = status.and_then(|s| s.conditions).unwrap_or_default();
            let lost = conditions.iter().any(|c| c.type_ == "Ready" && c.status != "True");
            lost.then_some(()).ok_or_else(|| format!("{conditions:?}"))
        })
        .await;
        work.goes_on().await;
        power(&node, true);
        cluster.wait_at_rest(3).await;
        operator.wait_ready().await;
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_drain_of_a_kubernetes_node_moves_its_pod_and_the_budget_holds_the_next_one() {
    alone(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 10);
        work.goes_on().await;
        let selector = format!("--pod-selector=app.kubernetes.io/instance={}", cluster.name);
        let (first, second) = (node_of(space, "demo-0").await, node_of(space, "demo-1").await);
        let drain = |node: &str| {
            let all = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=100s"];
            kubectl(&[&["drain", node, &selector][..], &all].concat());
        };
        drain(&first);
        // Its volume is on that node, so the pod waits, and the budget lets no other go.
        let evict = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": "demo-1", "namespace": space.name},
        });
        let path = format!("/api/v1/namespaces/{}/pods/demo-1/eviction", space.name);
        let said = ringfold_tests_kubernetes::kubectl_fails(
            &["create", "--raw", &path, "-f", "-"],
            &evict.to_string(),
        );
        assert!(said.contains("disruption budget"), "{said}");
        work.goes_on().await;
        kubectl(&["uncordon", &first]);
        cluster.wait_at_rest(3).await;
        drain(&second);
        kubectl(&["uncordon", &second]);
        cluster.wait_at_rest(3).await;
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
