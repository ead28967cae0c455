//! Writes to the Kubernetes API.
use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod, Secret, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    build::{self, Objects},
    certificates::secrets::{Secrets, is_ours},
    drift::covers,
    names,
    plane::{Kubernetes, KubernetesError, Sizing},
    validate::Cluster,
    world::NodeId,
};

/// The Kubernetes API, for one cluster in one reconcile.
pub struct Live<'a> {
    pub client: &'a Client,
    pub cluster: &'a Cluster,
    /// Of the nodes.
    pub image: &'a str,
    /// Hash of the authorities that each pod's node trusts; `None` of one that did not say.
    pub trusted: &'a [Option<String>],
    /// Of certificates, as they were read before the nodes were asked.
    pub secrets: &'a Secrets,
}

pub(super) fn failed(error: kube::Error) -> KubernetesError {
    match &error {
        kube::Error::Api(status) if [404, 409].contains(&status.code) => {
            KubernetesError::Changed(status.message.clone())
        }
        _ => KubernetesError::Failed(error.to_string()),
    }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn only(uid: &str, resource_version: Option<&str>) -> Option<Preconditions> {
    Some(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: resource_version.map(str::to_owned),
    })
}

/// Of an object as it is built: its maps are sorted.
fn hash(built: &Value) -> String {
    blake3::hash(built.to_string().as_bytes()).to_hex()[..16].to_owned()
}

/// An object of the cluster's namespace.
pub(super) trait Owned:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
{
}
impl<K> Owned for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
{
}

/// # Errors
/// When somebody else has made the object.
pub(super) fn check_ours<K: Owned>(object: &K) -> Result<(), KubernetesError> {
    if is_ours(object.labels()) {
        return Ok(());
    }
    Err(KubernetesError::Failed(format!(
        "the {} {} exists and is not the operator's: delete it, or name the cluster otherwise",
        K::kind(&()),
        object.name_any()
    )))
}

impl Live<'_> {
    fn api<K: Owned>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.cluster.namespace)
    }

    /// The object of that name, which is the operator's or is not there.
    pub(super) async fn ours<K: Owned>(&self, name: &str) -> Result<Option<K>, KubernetesError> {
        let found = self.api::<K>().get_opt(name).await.map_err(failed)?;
        let Some(object) = found else { return Ok(None) };
        check_ours(&object)?;
        Ok(Some(object))
    }

    /// Server-side apply, where something differs.
    async fn ensure<K: Owned>(&self, desired: &K) -> Result<(), KubernetesError> {
        let json = |object: &K| -> Result<Value, KubernetesError> {
            serde_json::to_value(object).map_err(|e| KubernetesError::Failed(e.to_string()))
        };
        let name = desired.name_any();
        let mut built = json(desired)?;
        // They bind a write to what was observed, and are nothing to write for.
        if let Some(metadata) = built["metadata"].as_object_mut() {
            metadata.remove("uid");
            metadata.remove("resourceVersion");
        }
        let hash = hash(&built);
        built["metadata"]["annotations"][names::BUILT] = hash.clone().into();
        if let Some(observed) = self.ours::<K>(&name).await?
            && covers(&json(&observed)?, &built)
        {
            return Ok(());
        }
        let mut desired = desired.clone();
        desired.annotations_mut().insert(names::BUILT.into(), hash);
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        self.api::<K>().patch(&name, &params, &Patch::Apply(&desired)).await.map_err(failed)?;
        tracing::info!(kind = %K::kind(&()), name, "applied");
        Ok(())
    }

    async fn ensure_or_delete<K: Owned>(
        &self,
        name: &str,
        desired: &Option<K>,
    ) -> Result<(), KubernetesError> {
        let Some(desired) = desired else {
            // One that is somebody else's stays.
            let Ok(Some(there)) = self.ours::<K>(name).await else { return Ok(()) };
            return self.delete::<K>(name, &there.uid().unwrap_or_default(), None, None).await;
        };
        self.ensure(desired).await
    }

    async fn delete<K: Owned>(
        &self,
        name: &str,
        uid: &str,
        resource_version: Option<&str>,
        grace_seconds: Option<u32>,
    ) -> Result<(), KubernetesError> {
        let params = DeleteParams {
            preconditions: only(uid, resource_version),
            grace_period_seconds: grace_seconds,
            ..DeleteParams::default()
        };
        tracing::info!(kind = %K::kind(&()), name, uid, "deleting");
        match self.api::<K>().delete(name, &params).await {
            Err(e) if is(&e, 404) => Ok(()),
            done => done.map(|_| ()).map_err(failed),
        }
    }

    /// A Secret that exists keeps what it says.
    async fn create_secret(&self, secret: &Secret) -> Result<(), KubernetesError> {
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        match self.api::<Secret>().create(&params, secret).await {
            Err(e) if is(&e, 409) => Ok(()),
            done => done.map(|_| ()).map_err(failed),
        }
    }

    async fn ensure_gossip_key(&self) -> Result<(), KubernetesError> {
        let name = names::gossip(&self.cluster.name);
        if self.api::<Secret>().get_metadata_opt(&name).await.map_err(failed)?.is_some() {
            return Ok(());
        }
        let key: String =
            rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        self.create_secret(&build::gossip(self.cluster, &key)).await
    }

    /// Changes metadata or spec of the object with that UID.
    async fn merge<K: Owned>(
        &self,
        name: &str,
        uid: &str,
        resource_version: Option<&str>,
        mut patch: Value,
    ) -> Result<(), KubernetesError> {
        patch["metadata"]["uid"] = uid.into();
        if let Some(version) = resource_version {
            patch["metadata"]["resourceVersion"] = version.into();
        }
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let done = self.api::<K>().patch(name, &params, &Patch::Merge(patch)).await;
        done.map(|_| ()).map_err(failed)
    }
}

impl Kubernetes for Live<'_> {
    /// What pods need comes before the pods; the Services come before them, so that names resolve.
    async fn apply(&self, sizing: &Sizing) -> Result<(), KubernetesError> {
        let Objects {
            service_account,
            config_map,
            nodes_service,
            client_service,
            network_policy,
            disruption_budget,
            stateful_set,
        } = build::objects(self.cluster, self.image, sizing);
        let name = &self.cluster.name;
        self.ensure_gossip_key().await?;
        self.ensure_certificates().await?;
        self.ensure_or_delete::<ServiceAccount>(name, &service_account).await?;
        self.ensure(&config_map).await?;
        self.ensure(&nodes_service).await?;
        self.ensure(&client_service).await?;
        self.ensure_or_delete::<NetworkPolicy>(name, &network_policy).await?;
        self.ensure_or_delete::<PodDisruptionBudget>(name, &disruption_budget).await?;
        if sizing.expected.is_none() && self.ours::<StatefulSet>(name).await?.is_some() {
            return Err(KubernetesError::Changed(format!("the StatefulSet {name} exists now")));
        }
        self.ensure(&stateful_set).await
    }

    async fn create_identity(&self, cluster_id: Option<&str>) -> Result<(), KubernetesError> {
        let new = uuid::Uuid::new_v4().to_string();
        let secret = build::identity(self.cluster, cluster_id.unwrap_or(&new));
        self.create_secret(&secret).await
    }

    async fn reserve_bootstrap(
        &self,
        claim_uid: &str,
        resource_version: &str,
    ) -> Result<(), KubernetesError> {
        let name = names::identity(&self.cluster.name);
        let patch = json!({"metadata": {
            "annotations": {names::BOOTSTRAP_CLAIM: claim_uid}, "resourceVersion": resource_version,
        }});
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let done = self.api::<Secret>().patch(&name, &params, &Patch::Merge(patch)).await;
        done.map(|_| ()).map_err(failed)
    }

    async fn record_node(
        &self,
        claim: &str,
        uid: &str,
        node: NodeId,
    ) -> Result<(), KubernetesError> {
        let patch = json!({"metadata": {"annotations": {names::NODE_ID: node.to_string()}}});
        self.merge::<PersistentVolumeClaim>(claim, uid, None, patch).await
    }

    async fn delete_pod(
        &self,
        pod: &str,
        uid: &str,
        resource_version: Option<&str>,
        now: bool,
    ) -> Result<(), KubernetesError> {
        self.delete::<Pod>(pod, uid, resource_version, now.then_some(0)).await
    }

    async fn delete_claim(&self, claim: &str, uid: &str) -> Result<(), KubernetesError> {
        self.delete::<PersistentVolumeClaim>(claim, uid, None, None).await
    }

    async fn resize_claim(
        &self,
        claim: &str,
        uid: &str,
        size: &str,
    ) -> Result<(), KubernetesError> {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        self.merge::<PersistentVolumeClaim>(claim, uid, None, patch).await
    }

    async fn orphan_stateful_set(&self, uid: &str) -> Result<(), KubernetesError> {
        let params = DeleteParams {
            preconditions: only(uid, None),
            propagation_policy: Some(PropagationPolicy::Orphan),
            ..DeleteParams::default()
        };
        match self.api::<StatefulSet>().delete(&self.cluster.name, &params).await {
            Err(e) if is(&e, 404) => Ok(()),
            done => done.map(|_| ()).map_err(failed),
        }
    }
}
