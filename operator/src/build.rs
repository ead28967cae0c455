//! The objects of a cluster, from its validated spec. Pure; one file for each kind.
mod config_map;
mod disruption;
mod network_policy;
mod service_account;
mod services;
mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use ringfold_crds::DeletionPolicy;

use crate::{names, plane::Sizing, validate::Cluster};

pub const CLIENT_PORT: i32 = ringfold_crds::names::CLIENT_PORT as i32;
pub const PEER_PORT: i32 = 2601;
pub const GOSSIP_PORT: i32 = 2602;
pub const HTTP_PORT: i32 = 2603;

/// Everything that is applied for a cluster. What is `None` is deleted where it exists.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    pub service_account: Option<ServiceAccount>,
    pub config_map: ConfigMap,
    pub nodes_service: Service,
    pub client_service: Service,
    pub network_policy: Option<NetworkPolicy>,
    pub disruption_budget: Option<PodDisruptionBudget>,
    pub stateful_set: StatefulSet,
}

/// `image`: of the nodes, see [`image`].
pub fn objects(cluster: &Cluster, image: &str, sizing: &Sizing) -> Objects {
    let config_map = config_map::build(cluster);
    Objects {
        service_account: service_account::build(cluster),
        nodes_service: services::nodes(cluster),
        client_service: services::client(cluster),
        network_policy: network_policy::build(cluster),
        disruption_budget: disruption::build(cluster),
        stateful_set: stateful_set::build(cluster, image, sizing, &config_map),
        config_map,
    }
}

/// The image that the spec asks for; else the one that runs; else the operator's release.
pub fn image<'a>(cluster: &'a Cluster, running: Option<&'a str>, release: &'a str) -> &'a str {
    cluster.image.as_deref().or(running.filter(|i| !i.is_empty())).unwrap_or(release)
}

/// The Secret with the cluster's id. Created once and never changed by an apply.
pub fn identity(cluster: &Cluster, cluster_id: &str) -> Secret {
    secret(cluster, names::identity(&cluster.name), [(names::CLUSTER_ID, cluster_id)])
}

/// The Secret with the key that gossip is sealed with. Created once.
pub fn gossip(cluster: &Cluster, key: &str) -> Secret {
    secret(cluster, names::gossip(&cluster.name), [(names::GOSSIP_CURRENT, key)])
}

/// Secrets outlive the resource, as the volumes do, unless it asks for their deletion.
pub fn secret<const N: usize>(cluster: &Cluster, name: String, data: [(&str, &str); N]) -> Secret {
    let mut metadata = meta(cluster, name);
    if cluster.deletion_policy == DeletionPolicy::Retain {
        metadata.owner_references = None;
    }
    let data = data.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    Secret {
        metadata,
        type_: Some("Opaque".into()),
        string_data: Some(data.collect()),
        ..Secret::default()
    }
}

/// Labels that never change: selectors rest on them.
pub fn selector_labels(cluster: &str) -> BTreeMap<String, String> {
    [names::NAME_LABEL, (names::CLUSTER_LABEL, cluster)]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

/// [`selector_labels`] as a text, for lists and for `/scale`.
pub fn selector_text(cluster: &str) -> String {
    let labels = selector_labels(cluster);
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn selector(cluster: &Cluster) -> LabelSelector {
    LabelSelector { match_labels: Some(selector_labels(&cluster.name)), ..LabelSelector::default() }
}

fn labels(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = selector_labels(&cluster.name);
    labels.insert(names::MANAGED_BY_LABEL.into(), names::FIELD_MANAGER.into());
    labels
}

fn meta(cluster: &Cluster, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(labels(cluster)),
        owner_references: Some(vec![OwnerReference {
            api_version: "ringfold.dev/v1alpha1".into(),
            kind: "EventStoreCluster".into(),
            name: cluster.name.clone(),
            uid: cluster.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

pub use ringfold_crds::names::{client_url, host};

#[cfg(test)]
mod tests;
