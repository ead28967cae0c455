//! An EventStoreCluster in a test's namespace.
use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use ringfold_crds::EventStoreCluster;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_tests::{cluster::store_client, load::Store};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::{
    Space,
    tools::{eventually, image, kubectl},
};

/// Images are there, so this is the time of volumes, elections and moves on two busy cores.
const SETTLE_MAX: Duration = Duration::from_secs(180);

/// A channel that looks the name up anew whenever it connects.
pub(crate) fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned())
        .expect("a URL")
        .connect_timeout(Duration::from_secs(1))
        .connect_lazy()
}

/// A node's API, for the loads of the other whole-system tests.
pub fn store(url: &str) -> EventStoreClient<Channel> {
    store_client(channel(url))
}

/// URLs of all pods of nodes in the namespace, ready or not.
pub(crate) async fn node_urls(space: &Space) -> Vec<String> {
    let labels = ListParams::default().labels("app.kubernetes.io/name=ringfold");
    let Ok(pods) = space.api::<Pod>().list(&labels).await else { return Vec::new() };
    let addresses = pods.into_iter().filter_map(|p| p.status?.pod_ip);
    addresses.map(|ip| format!("http://{ip}:2600")).collect()
}

/// The condition of that type, where the status has it.
pub fn condition<'a>(resource: &'a EventStoreCluster, kind: &str) -> Option<&'a Condition> {
    resource.status.as_ref()?.conditions.iter().find(|c| c.type_ == kind)
}

pub struct Cluster<'a> {
    pub space: &'a Space,
    pub name: String,
}

impl<'a> Cluster<'a> {
    /// Small pods, so that several clusters have room on the test machine.
    pub async fn create(space: &'a Space, name: &str, mut spec: Value) -> Cluster<'a> {
        let small = json!({
            "image": image("node"),
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
            "storage": {"size": "1Gi"},
        });
        for (key, value) in small.as_object().expect("an object") {
            spec.as_object_mut().expect("an object").entry(key).or_insert_with(|| value.clone());
        }
        let resource = serde_json::from_value(json!({
            "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
            "metadata": {"name": name}, "spec": spec,
        }))
        .expect("a resource");
        let api: Api<EventStoreCluster> = space.api();
        api.create(&PostParams::default(), &resource).await.expect("the resource is accepted");
        Cluster { space, name: name.to_owned() }
    }

    pub async fn get(&self) -> EventStoreCluster {
        self.space.api().get(&self.name).await.expect("the resource")
    }

    /// Changes the spec as a JSON merge patch.
    pub async fn change(&self, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let api: Api<EventStoreCluster> = self.space.api();
        api.patch(&self.name, &PatchParams::default(), &patch)
            .await
            .expect("the change is accepted");
    }

    /// As a person does.
    pub fn scale(&self, replicas: u32) {
        let (resource, replicas) = (format!("esc/{}", self.name), format!("--replicas={replicas}"));
        kubectl(&["scale", &resource, &replicas, "-n", &self.space.name]);
    }

    /// Waits until the resource is Ready as its spec now is, with that many nodes, and nothing is on its
    /// way any more.
    pub async fn wait_at_rest(&self, replicas: i32) -> EventStoreCluster {
        let what = format!("{} is at rest with {replicas} nodes", self.name);
        eventually(&what, SETTLE_MAX, async || {
            let now = self.get().await;
            let is = |kind: &str, status: &str| {
                condition(&now, kind).is_some_and(|c| {
                    c.status == status && c.observed_generation == now.metadata.generation
                })
            };
            let status = now.status.clone().unwrap_or_default();
            let rests = is("Ready", "True")
                && is("Reconciling", "False")
                && is("Rebalancing", "False")
                && status.ready_replicas == replicas
                && status.replicas == replicas
                && status.members.len() == replicas as usize;
            rests.then_some(now).ok_or_else(|| serde_json::to_string(&status).unwrap_or_default())
        })
        .await
    }

    /// Names of the pods that exist, in order.
    pub async fn pods(&self) -> Vec<String> {
        let labels = ListParams::default().labels(&self.selector());
        let pods = self.space.api::<Pod>().list(&labels).await.expect("pods");
        let mut names: Vec<_> = pods.iter().map(|p| p.name_any()).collect();
        names.sort();
        names
    }

    pub async fn pod_uids(&self) -> Vec<String> {
        let labels = ListParams::default().labels(&self.selector());
        let pods = self.space.api::<Pod>().list(&labels).await.expect("pods");
        pods.iter().filter_map(|p| p.uid()).collect()
    }

    /// Waits until none of those pods is there any more.
    pub async fn wait_restarted(&self, before: &[String]) {
        eventually("each pod is another", SETTLE_MAX, async || {
            let now = self.pod_uids().await;
            let old = now.iter().filter(|uid| before.contains(uid)).count();
            (old == 0 && now.len() == before.len())
                .then_some(())
                .ok_or_else(|| format!("{old} old ones of {}", now.len()))
        })
        .await;
    }

    /// Names of the claims that exist, in order.
    pub async fn claims(&self) -> Vec<String> {
        let labels = ListParams::default().labels(&self.selector());
        let claims: Api<PersistentVolumeClaim> = self.space.api();
        let claims = claims.list(&labels).await.expect("claims");
        let mut names: Vec<_> = claims.iter().map(|p| p.name_any()).collect();
        names.sort();
        names
    }

    /// Deletes the resource, and waits until it and the pods are gone.
    pub async fn delete(&self) {
        let name = format!("esc/{}", self.name);
        kubectl(&["delete", &name, "-n", &self.space.name, "--timeout=60s"]);
        eventually("the pods are gone", SETTLE_MAX, async || {
            let pods = self.pods().await;
            pods.is_empty().then_some(()).ok_or_else(|| pods.join(" "))
        })
        .await;
    }

    fn selector(&self) -> String {
        format!("app.kubernetes.io/name=ringfold,app.kubernetes.io/instance={}", self.name)
    }

    /// The APIs of pods `0..count`, by the names that they have for each other.
    pub fn stores(&self, count: u32) -> Vec<Store> {
        let (name, namespace) = (&self.name, &self.space.name);
        (0..count)
            .map(|i| store(&format!("http://{name}-{i}.{name}-nodes.{namespace}.svc:2600")))
            .collect()
    }
}
