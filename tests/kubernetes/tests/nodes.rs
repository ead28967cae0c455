//! Kubernetes nodes that are lost or emptied: one test at a time, for all tests share them. Cargo runs
//! this file's tests when those of the others have ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::{sync::Mutex, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::{Api, api::PostParams};
use ringfold_tests_kubernetes::{
    Cluster, HungApiServer, Operator, Space, Work, eventually, is_lab, kubectl, kubernetes,
    leave_out, power,
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
        return leave_out("nobody takes the power of a node of KUBECONFIG's cluster");
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

/// Bytes of memory that the pod whose name begins so uses, as its kubelet counts them.
fn memory_bytes(space: &Space, prefix: &str) -> u64 {
    let pods = kubectl(&["get", "pods", "-n", &space.name, "-o", "wide", "--no-headers"]);
    let used = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let node = words.iter().find(|w| w.starts_with("node"))?;
        let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
        let summary: serde_json::Value =
            serde_json::from_str(&kubectl(&["get", "--raw", &path])).ok()?;
        let pods = summary["pods"].as_array()?;
        let pod = pods.iter().find(|p| p["podRef"]["name"] == words[0])?;
        pod["memory"]["workingSetBytes"].as_u64()
    };
    let of_operator = pods.lines().filter(|l| l.starts_with(prefix));
    of_operator.map(|line| used(line).unwrap_or_else(|| panic!("memory of {line}"))).max().unwrap()
}

#[test]
fn without_an_api_server_for_a_minute_clients_go_on_and_the_operator_recovers() {
    if !is_lab() {
        return leave_out("nobody stops the API server of KUBECONFIG's cluster");
    }
    alone(async |space| {
        let operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 11);
        work.goes_on().await;
        let pods = cluster.pod_uids().await;
        let hung = HungApiServer::begin();
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            work.goes_on().await;
        }
        drop(hung);
        operator.wait_ready().await;
        cluster.wait_at_rest(3).await;
        assert_eq!(cluster.pod_uids().await, pods);
        cluster.scale(4);
        cluster.wait_at_rest(4).await;
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn beside_ten_thousand_foreign_secrets_the_operators_memory_stays_as_it_is() {
    alone(async |space| {
        let operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        let before = memory_bytes(space, "ringfold-operator");
        let secrets: Api<Secret> = space.api();
        let create = |i: u32| {
            let secrets = secrets.clone();
            async move {
                let secret: Secret = serde_json::from_value(json!({
                    "metadata": {"name": format!("foreign-{i}")},
                    "stringData": {"filling": "x".repeat(1_000)},
                }))
                .unwrap();
                secrets.create(&PostParams::default(), &secret).await.unwrap();
            }
        };
        futures::stream::iter(0..10_000).map(create).buffer_unordered(32).collect::<()>().await;
        // A look at everything anew, and one after a restart.
        cluster.scale(4);
        cluster.wait_at_rest(4).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let after = memory_bytes(space, "ringfold-operator");
        operator.wait_ready().await;
        assert!(after < before + (8 << 20), "{before} bytes before, {after} after");
    });
}
