//! Clusters under an operator of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use ringfold_tests_kubernetes::{
    Cluster, Operator, Space, Work, condition, eventually, kubectl, kubernetes,
};
use serde::de::DeserializeOwned;
use serde_json::json;

#[test]
fn three_nodes_become_five_and_three_again_by_kubectl_scale_while_clients_go_on() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 16})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 5);
        work.goes_on().await;

        cluster.scale(5);
        let five = cluster.wait_at_rest(5).await;
        let members = five.status.unwrap().members;
        assert!(members.iter().all(|m| m.replicas > 0), "{members:?}");
        work.goes_on().await;

        cluster.scale(3);
        cluster.wait_at_rest(3).await;
        assert_eq!(cluster.pods().await, ["demo-0", "demo-1", "demo-2"]);
        assert_eq!(cluster.claims().await, ["data-demo-0", "data-demo-1", "data-demo-2"]);
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_scale_in_that_is_taken_back_in_mid_drain_comes_to_rest_at_five() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster =
            Cluster::create(space, "demo", json!({"partitions": 16, "replicas": 5})).await;
        cluster.wait_at_rest(5).await;
        let work = Work::start(&cluster, 3, 6);
        work.goes_on().await;
        cluster.scale(3);
        let what = "a node drains";
        eventually(what, Duration::from_secs(60), async || {
            let status = cluster.get().await.status.unwrap_or_default();
            let drains = status.operation.is_some() || status.replicas < 5;
            drains.then_some(()).ok_or_else(|| format!("{status:?}"))
        })
        .await;
        cluster.scale(5);
        cluster.wait_at_rest(5).await;
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_stateful_set_that_is_scaled_by_hand_is_set_back_and_no_volume_goes() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        let claims: Api<PersistentVolumeClaim> = space.api();
        let before = uids(&claims).await;
        kubectl(&["scale", "sts/demo", "--replicas=1", "-n", &space.name]);
        eventually("the size is set back", Duration::from_secs(60), async || {
            let set: StatefulSet = space.api().get("demo").await.map_err(|e| e.to_string())?;
            let spec = set.spec.unwrap_or_default();
            (spec.replicas == Some(3)).then_some(()).ok_or_else(|| format!("{:?}", spec.replicas))
        })
        .await;
        cluster.wait_at_rest(3).await;
        assert_eq!(uids(&claims).await, before);
    });
}

async fn uids<K>(api: &Api<K>) -> Vec<String>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut uids: Vec<_> =
        api.list(&ListParams::default()).await.unwrap().iter().filter_map(|o| o.uid()).collect();
    uids.sort();
    uids
}

#[test]
fn a_cluster_that_is_deleted_and_created_again_takes_its_volumes_up_with_the_data() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let spec = json!({"partitions": 8});
        let cluster = Cluster::create(space, "demo", spec.clone()).await;
        let id = cluster.wait_at_rest(3).await.status.unwrap().cluster_id;
        let work = Work::start(&cluster, 3, 7);
        work.goes_on().await;
        let written = work.stop().await;
        cluster.delete().await;
        assert_eq!(cluster.claims().await.len(), 3);

        let cluster = Cluster::create(space, "demo", spec).await;
        let status = cluster.wait_at_rest(3).await.status.unwrap();
        assert_eq!(status.cluster_id, id);
        written.judge(&cluster, 3).await;
    });
}

#[test]
fn with_the_deletion_policy_delete_nothing_is_left_and_nothing_hangs() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let spec = json!({"partitions": 4, "deletionPolicy": "Delete"});
        let cluster = Cluster::create(space, "demo", spec).await;
        cluster.wait_at_rest(3).await;
        cluster.delete().await;
        let secrets: Api<Secret> = space.api();
        eventually("claims and Secrets are gone", Duration::from_secs(60), async || {
            let mut left = cluster.claims().await;
            let all = secrets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            left.extend(all.iter().map(|s| s.name_any()).filter(|n| n.starts_with("demo-")));
            left.is_empty().then_some(()).ok_or_else(|| left.join(" "))
        })
        .await;
    });
}

#[test]
fn the_second_operator_takes_over_when_the_first_is_gone() {
    kubernetes(async |space| {
        let operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        let leases: Api<Lease> = space.api();
        let holder = async || {
            let leases = leases.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let holder = leases.iter().find_map(|l| l.spec.as_ref()?.holder_identity.clone());
            holder.filter(|h| !h.is_empty()).ok_or_else(|| format!("{:?}", leases.items))
        };
        let first = holder().await.unwrap();
        let pod = first.split('_').next().unwrap();
        // Without a word to anybody.
        let killed = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        space.api::<Pod>().delete(pod, &killed).await.unwrap();
        cluster.scale(4);
        eventually("another holds the Lease", Duration::from_secs(30), async || {
            let now = holder().await?;
            (now != first).then_some(()).ok_or(now)
        })
        .await;
        cluster.wait_at_rest(4).await;
        operator.wait_ready().await;
    });
}

#[test]
fn a_paused_cluster_is_not_changed_and_goes_on_when_it_is_paused_no_more() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        cluster.change(json!({"paused": true, "replicas": 4})).await;
        eventually("it says so", Duration::from_secs(60), async || {
            let now = cluster.get().await;
            let paused = condition(&now, "Paused").is_some_and(|c| c.status == "True");
            paused.then_some(()).ok_or_else(|| format!("{:?}", now.status))
        })
        .await;
        let set: StatefulSet = space.api().get("demo").await.unwrap();
        assert_eq!(set.spec.unwrap().replicas, Some(3));
        cluster.change(json!({"paused": false})).await;
        cluster.wait_at_rest(4).await;
    });
}

#[test]
fn a_hibernating_cluster_has_no_pods_and_wakes_with_its_data() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        let work = Work::start(&cluster, 3, 8);
        work.goes_on().await;
        let written = work.stop().await;
        cluster.change(json!({"hibernated": true})).await;
        eventually("no pod is left", Duration::from_secs(180), async || {
            let pods = cluster.pods().await;
            pods.is_empty().then_some(()).ok_or_else(|| pods.join(" "))
        })
        .await;
        assert_eq!(cluster.claims().await.len(), 3);
        cluster.change(json!({"hibernated": false})).await;
        cluster.wait_at_rest(3).await;
        written.judge(&cluster, 3).await;
    });
}

/// Versions of everything in the namespace but Leases, which are renewed.
fn versions(space: &Space) -> String {
    let kinds = "esc,sts,deploy,rs,pod,pvc,svc,cm,secret,sa,pdb,netpol,role,rolebinding,ev";
    let each =
        "{range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}";
    kubectl(&["get", kinds, "-n", &space.name, "-o", &format!("jsonpath={each}")])
}

/// A minute, or RINGFOLD_IDLE_MINUTES.
#[test]
fn at_rest_nothing_is_written_but_the_lease() {
    let minutes = std::env::var("RINGFOLD_IDLE_MINUTES").map_or(1, |m| m.parse().unwrap());
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        // What the last steps had to say may still be on its way.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let before = versions(space);
        for minute in 1..=minutes {
            tokio::time::sleep(Duration::from_secs(60)).await;
            eprintln!("{minute} of {minutes} minutes at rest");
        }
        assert_eq!(versions(space), before);
    });
}

#[test]
fn an_autoscaler_reads_replicas_and_a_selector_that_finds_the_pods() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 4})).await;
        cluster.wait_at_rest(3).await;
        let path = format!(
            "/apis/ringfold.dev/v1alpha1/namespaces/{}/eventstoreclusters/demo/scale",
            space.name
        );
        let scale: serde_json::Value =
            serde_json::from_str(&kubectl(&["get", "--raw", &path])).unwrap();
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"]["replicas"], 3);
        let selector = scale["status"]["selector"].as_str().unwrap();
        let pods = kubectl(&["get", "pods", "-n", &space.name, "-l", selector, "-o", "name"]);
        assert_eq!(pods.lines().collect::<Vec<_>>(), ["pod/demo-0", "pod/demo-1", "pod/demo-2"]);
    });
}
