//! One look at Kubernetes and at the nodes, in that order: what joined before the pods were read is in
//! the view that is read after them. Nothing comes from a cache.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet as KubeSet,
        core::v1::{PersistentVolumeClaim, Pod as KubePod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use ringfold_tls::Role;

use super::{Plane, certificates, kubernetes::failed};
use crate::{
    build,
    certificates::secrets::{self, Secrets},
    decide::claim_name,
    names,
    plane::KubernetesError,
    quantity,
    validate::Cluster,
    world::{Claim, Identity, Ordinal, Pod, StatefulSet, World, pod_name},
};

/// The world, and the Secrets of certificates, which hold keys and are of no concern to decisions.
///
/// # Errors
/// When the Kubernetes API did not answer: nothing may be decided then. Nodes that do not answer are
/// absent from the world.
pub async fn observe(
    client: &Client,
    plane: &Plane,
    cluster: &Cluster,
) -> Result<(World, Secrets), KubernetesError> {
    let (name, namespace) = (cluster.name.as_str(), cluster.namespace.as_str());
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let sets: Api<KubeSet> = Api::namespaced(client.clone(), namespace);
    let pods: Api<KubePod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let labels = ListParams::default().labels(&build::selector_text(name));
    let secret_name = names::identity(name);
    let (secret, secrets, set, pods, claims) = tokio::try_join!(
        api.get_opt(&secret_name),
        certificates::read(&api, cluster),
        sets.get_opt(name),
        pods.list(&labels),
        claims.list(&labels),
    )
    .map_err(failed)?;
    let now_unix_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    let pods: BTreeMap<_, _> = pods
        .iter()
        .filter_map(|p| Some((ordinal(&p.name_any(), name, pod_name)?, pod(p, now_unix_ms))))
        .collect();
    let claims = claims
        .iter()
        .filter_map(|c| Some((ordinal(&c.name_any(), name, claim_name)?, claim(c))))
        .collect();
    if let Some(pem) = secrets.leaves.get(&Role::Admin).and_then(secrets::pem) {
        plane.show(&pem);
    }
    let running: Vec<_> =
        pods.iter().filter(|(_, p): &(_, &Pod)| p.running).map(|(o, _)| *o).collect();
    let (reports, view) = plane.look(&running).await;
    let world = World {
        identity: secret.as_ref().and_then(identity),
        stateful_set: set.as_ref().map(stateful_set),
        pods,
        claims,
        reports,
        view,
        authority_unreadable: secrets.held(name).err().map(|e| e.to_string()),
        now_unix_ms,
    };
    Ok((world, secrets))
}

fn ordinal(name: &str, cluster: &str, named: fn(&str, Ordinal) -> String) -> Option<Ordinal> {
    let ordinal = name.rsplit('-').next()?.parse().ok()?;
    (named(cluster, ordinal) == name).then_some(ordinal)
}

fn identity(secret: &Secret) -> Option<Identity> {
    let id = &secret.data.as_ref()?.get(names::CLUSTER_ID)?.0;
    Some(Identity {
        cluster_id: String::from_utf8(id.clone()).ok()?,
        resource_version: secret.resource_version().unwrap_or_default(),
        bootstrap_claim_uid: secret.annotations().get(names::BOOTSTRAP_CLAIM).cloned(),
    })
}

fn stateful_set(set: &KubeSet) -> StatefulSet {
    let spec = set.spec.as_ref();
    let status = set.status.as_ref();
    let seen = status.and_then(|s| s.observed_generation) >= set.metadata.generation;
    let pod = spec.and_then(|s| s.template.spec.as_ref());
    let claim = spec.and_then(|s| s.volume_claim_templates.as_ref()?.first()?.spec.as_ref());
    StatefulSet {
        uid: set.uid().unwrap_or_default(),
        resource_version: set.resource_version().unwrap_or_default(),
        replicas: spec.and_then(|s| s.replicas).and_then(|r| u32::try_from(r).ok()).unwrap_or(0),
        revision: status.filter(|_| seen).and_then(|s| s.update_revision.clone()),
        image: pod.and_then(|p| p.containers.first()?.image.clone()).unwrap_or_default(),
        storage_size: claim.and_then(requested).unwrap_or_default(),
        terminating: set.metadata.deletion_timestamp.is_some(),
    }
}

fn requested(spec: &k8s_openapi::api::core::v1::PersistentVolumeClaimSpec) -> Option<String> {
    Some(spec.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone())
}

fn unix_ms(time: &Time) -> u64 {
    u64::try_from(time.0.as_millisecond()).unwrap_or(0)
}

fn pod(pod: &KubePod, now_unix_ms: u64) -> Pod {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let since = ready.and_then(|c| c.last_transition_time.as_ref());
    let created = pod.metadata.creation_timestamp.as_ref();
    let container = status.and_then(|s| s.container_statuses.as_ref()?.first());
    let state = container.and_then(|c| c.state.as_ref());
    let waiting = state.and_then(|s| s.waiting.as_ref());
    let unscheduled = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")
        .and_then(|c| c.message.clone());
    let trouble = waiting
        .map(|w| {
            [w.reason.as_deref(), w.message.as_deref()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(": ")
        })
        .filter(|t| !t.is_empty());
    Pod {
        uid: pod.uid().unwrap_or_default(),
        resource_version: pod.resource_version().unwrap_or_default(),
        revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
        ready: ready.is_some_and(|c| c.status == "True"),
        running: state.is_some_and(|s| s.running.is_some()),
        unready_unix_ms: since.or(created).map_or(now_unix_ms, unix_ms),
        // What is stored is when it shall be gone.
        deleted_unix_ms: pod.metadata.deletion_timestamp.as_ref().map(|at| {
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            unix_ms(at).saturating_sub(u64::try_from(grace).unwrap_or(0) * 1_000)
        }),
        trouble: trouble.or(unscheduled),
    }
}

fn claim(claim: &PersistentVolumeClaim) -> Claim {
    let size = claim.spec.as_ref().and_then(requested);
    let node_id = claim.annotations().get(names::NODE_ID).and_then(|n| n.parse().ok());
    let replace = claim.annotations().get(names::REPLACE);
    Claim {
        uid: claim.uid().unwrap_or_default(),
        node_id,
        terminating: claim.metadata.deletion_timestamp.is_some(),
        size_bytes: size.and_then(|s| quantity::bytes(&s)).unwrap_or(0),
        // It names the node, so that it does not hit the one that came instead.
        replace: node_id.is_some() && replace.and_then(|n| n.parse().ok()) == node_id,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ordinals_are_those_of_this_cluster_only() {
        assert_eq!(ordinal("demo-12", "demo", pod_name), Some(12));
        assert_eq!(ordinal("data-demo-3", "demo", claim_name), Some(3));
        assert_eq!(ordinal("demo-2-3", "demo", pod_name), None);
        assert_eq!(ordinal("demo-03", "demo", pod_name), None);
    }

    #[test]
    fn a_pod_whose_image_cannot_be_pulled_does_not_run_and_says_why() {
        let read = pod(
            &serde_json::from_value(json!({
                "metadata": {"uid": "u", "labels": {"controller-revision-hash": "r"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "status": {
                    "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:10Z"}],
                    "containerStatuses": [{
                        "name": "node", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
                    }],
                },
            }))
            .unwrap(),
            0,
        );
        assert!(!read.running && !read.ready && !read.is_terminating());
        assert_eq!(read.trouble.as_deref(), Some("ErrImagePull: no such image"));
        assert_eq!(read.revision, "r");
        assert_eq!(read.unready_unix_ms % 60_000, 10_000);
    }

    #[test]
    fn a_template_that_its_controller_has_not_seen_has_no_revision() {
        let read = |observed: i64| {
            stateful_set(
                &serde_json::from_value(json!({
                    "metadata": {"uid": "u", "generation": 2},
                    "spec": {"selector": {}, "template": {}, "serviceName": "s", "replicas": 3},
                    "status": {"replicas": 3, "observedGeneration": observed, "updateRevision": "new"},
                }))
                .unwrap(),
            )
            .revision
        };
        assert_eq!(read(1), None);
        assert_eq!(read(2).as_deref(), Some("new"));
    }

    #[test]
    fn a_replacement_is_asked_of_the_node_that_it_names() {
        let read = |node: &str, replace: &str| {
            let annotations = json!({names::NODE_ID: node, names::REPLACE: replace});
            claim(
                &serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap(),
            )
        };
        assert!(read("7", "7").replace);
        assert!(!read("8", "7").replace);
    }
}
