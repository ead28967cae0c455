//! Nodes that get an empty volume: asked for by a person, or because the volume is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::{process::Command, time::Duration};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt as _};
use ringfold_tests::cluster::binary;
use ringfold_tests_kubernetes::{Cluster, Operator, Space, Work, eventually, kubectl, kubernetes};
use serde_json::json;

const REPLACED_MAX: Duration = Duration::from_secs(180);

/// As `kubectl ringfold` is called.
fn ringfold(space: &Space, args: &[&str]) {
    let mut command = Command::new(binary("ringfold", "RINGFOLD"));
    let output = command.args(["-n", &space.name]).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ringfold {}: {said}", args.join(" "));
}

async fn claim_uid(space: &Space, name: &str) -> Option<String> {
    let claims: Api<PersistentVolumeClaim> = space.api();
    claims.get(name).await.ok()?.uid()
}

/// Node ids of the pods' members, in the order of the pods.
async fn node_ids(cluster: &Cluster<'_>) -> Vec<u64> {
    let mut members = cluster.get().await.status.unwrap().members;
    members.sort_by(|a, b| a.pod.cmp(&b.pod));
    members.iter().map(|m| m.node_id as u64).collect()
}

/// `demo-1` comes back as another node on another volume, while clients go on.
async fn replaced(space: &Space, nodes: i32, seed: u64, ask: impl Fn()) {
    let spec = json!({"partitions": 8, "replicas": nodes});
    let cluster = Cluster::create(space, "demo", spec).await;
    cluster.wait_at_rest(nodes).await;
    let before = (claim_uid(space, "data-demo-1").await, node_ids(&cluster).await);
    let work = Work::start(&cluster, 3, seed);
    work.goes_on().await;
    ask();
    eventually("another node is there on another claim", REPLACED_MAX, async || {
        let claim = claim_uid(space, "data-demo-1").await;
        let ids = node_ids(&cluster).await;
        let is_other = claim.is_some() && claim != before.0;
        let joined = ids.len() == nodes as usize && ids[1] != before.1[1];
        (is_other && joined).then_some(()).ok_or_else(|| format!("{claim:?}, nodes {ids:?}"))
    })
    .await;
    cluster.wait_at_rest(nodes).await;
    let now = node_ids(&cluster).await;
    for (i, (now, before)) in now.iter().zip(&before.1).enumerate() {
        assert_eq!(now == before, i != 1, "of demo-{i}");
    }
    work.goes_on().await;
    work.stop().await.judge(&cluster, 3).await;
}

#[test]
fn with_a_node_to_spare_kubectl_ringfold_replace_drains_before_the_volume_goes() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        replaced(space, 4, 24, || ringfold(space, &["replace", "demo-1"])).await;
    });
}

#[test]
fn of_three_nodes_with_three_replicas_one_is_replaced_in_its_place() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        replaced(space, 3, 26, || ringfold(space, &["replace", "demo-1"])).await;
    });
}

#[test]
fn a_node_whose_volume_is_lost_is_rebuilt_on_an_empty_one() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        replaced(space, 3, 27, || {
            let n = ["-n", space.name.as_str()];
            kubectl(&[&["delete", "pvc/data-demo-1", "--wait=false"], &n[..]].concat());
            kubectl(&[&["delete", "pod/demo-1", "--force", "--grace-period=0"], &n[..]].concat());
        })
        .await;
    });
}

#[test]
fn scaled_out_again_a_node_begins_on_a_clean_volume() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let spec = json!({"partitions": 8, "replicas": 4});
        let cluster = Cluster::create(space, "demo", spec).await;
        cluster.wait_at_rest(4).await;
        let before = (claim_uid(space, "data-demo-3").await, node_ids(&cluster).await[3]);
        let work = Work::start(&cluster, 3, 28);
        work.goes_on().await;
        cluster.scale(3);
        cluster.wait_at_rest(3).await;
        assert_eq!(claim_uid(space, "data-demo-3").await, None);
        cluster.scale(4);
        cluster.wait_at_rest(4).await;
        assert_ne!(claim_uid(space, "data-demo-3").await, before.0);
        assert_ne!(node_ids(&cluster).await[3], before.1, "ids are not given twice");
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
