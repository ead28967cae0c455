//! An EventStoreCluster in a test's namespace.
use std::{sync::OnceLock, time::Duration};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use ringfold_crds::EventStoreCluster;
use ringfold_crds::names::{CLIENT_PORT, certificate, host};
use ringfold_tests::{
    cluster::{channel_to, store_client},
    load::Store,
};
use ringfold_tls::{Pem, Tls};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::{
    Space,
    tools::{eventually, image, kubectl},
};

/// Images are there, so this is the time of volumes, elections and moves on two busy cores.
const SETTLE_MAX: Duration = Duration::from_secs(180);

/// How often a cluster's certificates are read anew.
const RELOAD_EVERY: Duration = Duration::from_secs(1);

/// The condition of that type, where the status has it.
pub fn condition<'a>(resource: &'a EventStoreCluster, kind: &str) -> Option<&'a Condition> {
    resource.status.as_ref()?.conditions.iter().find(|c| c.type_ == kind)
}

pub struct Cluster<'a> {
    pub space: &'a Space,
    pub name: String,
    /// Nodes speak TLS.
    is_secure: bool,
    /// As an application of the namespace has them, once there are any.
    tls: OnceLock<Tls>,
}

/// What a certificate's Secret shows to whoever is asked.
pub async fn pem(space: &Space, secret: &str) -> Result<Pem, String> {
    let found = space.api::<Secret>().get(secret).await.map_err(|e| e.to_string())?;
    let data = found.data.unwrap_or_default();
    Pem::of_parts(|key| {
        let part = data.get(key).map(|b| b.0.clone());
        part.ok_or_else(|| format!("{secret} has no {key}"))
    })
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
        let is_secure = spec["tls"]["mode"] == "Operator";
        let resource = serde_json::from_value(json!({
            "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
            "metadata": {"name": name}, "spec": spec,
        }))
        .expect("a resource");
        let api: Api<EventStoreCluster> = space.api();
        api.create(&PostParams::default(), &resource).await.expect("the resource is accepted");
        Cluster { space, name: name.to_owned(), is_secure, tls: OnceLock::new() }
    }

    /// Certificates of an application, kept as new as those of one that mounts the Secret.
    async fn certificates(&self) {
        if !self.is_secure || self.tls.get().is_some() {
            return;
        }
        let secret = certificate(&self.name, "client");
        let first = eventually("the certificates are there", SETTLE_MAX, async || {
            pem(self.space, &secret).await
        });
        let tls = Tls::from_pem(&secret, &first.await).expect("certificates");
        let (kept, space) = (tls.clone(), self.space.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RELOAD_EVERY).await;
                if let Ok(pem) = pem(&space, &secret).await {
                    let _ = kept.replace(&pem);
                }
            }
        });
        let _ = self.tls.set(tls);
    }

    /// A pod's API with other certificates, or without any.
    pub fn channel(&self, ordinal: u32, tls: Option<Tls>) -> Channel {
        let pod = format!("{}-{ordinal}", self.name);
        channel_to(&host(&self.name, &self.space.name, &pod), CLIENT_PORT, tls)
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
        let now = eventually(&what, SETTLE_MAX, async || {
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
        });
        let now = now.await;
        self.certificates().await;
        now
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
    ///
    /// # Panics
    /// Before a cluster that speaks TLS was at rest.
    pub fn stores(&self, count: u32) -> Vec<Store> {
        let tls = self.tls.get().cloned();
        assert!(tls.is_some() || !self.is_secure, "wait until it is at rest");
        (0..count).map(|i| store_client(self.channel(i, tls.clone()))).collect()
    }
}
