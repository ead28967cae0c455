//! From the spec that a person wrote to the one type that everything else reads. Pure.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use ringfold_crds::{
    DeletionPolicy, EventStoreCluster, ImagePullPolicy, NetworkPolicy, Service, ServiceAccount,
    TlsMode, Zones,
};

use crate::quantity;

/// A cluster whose spec holds together. Builders and decisions read this and not the resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub generation: i64,
    /// Asked for; a running cluster without it stays on its image.
    pub image: Option<String>,
    pub image_pull_policy: ImagePullPolicy,
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub replicas: u32,
    pub partitions: u32,
    pub replication_factor: u32,
    pub storage_size: String,
    pub storage_size_bytes: u64,
    pub storage_class: Option<String>,
    pub resources: ResourceRequirements,
    /// From its limit, or from its request where there is none.
    pub memory_bytes: Option<u64>,
    pub zones: Zones,
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    pub priority_class_name: Option<String>,
    /// The operator issues certificates; else all is said in the clear.
    pub tls: bool,
    pub moves_per_node: u32,
    pub move_bytes_per_s: u64,
    pub config: BTreeMap<String, String>,
    pub service_account: ServiceAccount,
    pub pdb: bool,
    pub service: Service,
    pub network_policy: NetworkPolicy,
    pub progress_deadline_ms: u64,
    pub deletion_policy: DeletionPolicy,
    pub paused: bool,
    pub hibernated: bool,
}

/// Why a spec cannot be acted on. The API server refuses most of this; what it stored before a rule
/// existed, or what a quantity really says, is found here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {problem}")]
pub struct Invalid {
    pub field: &'static str,
    pub problem: String,
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Invalid {
    Invalid { field, problem: problem.into() }
}

fn amount(field: &'static str, text: &str) -> Result<u64, Invalid> {
    quantity::bytes(text).ok_or_else(|| {
        invalid(field, format!("{text:?} is not an amount of bytes, such as 10Gi: correct it"))
    })
}

/// # Errors
/// The first field that does not hold together, and what to do.
pub fn validate(resource: &EventStoreCluster) -> Result<Cluster, Invalid> {
    let meta = &resource.metadata;
    let spec = resource.spec.clone();
    let text =
        |value: &Option<String>, field| value.clone().ok_or_else(|| invalid(field, "is missing"));
    let count = |field, value: i32, least: u32, most: u32| {
        let in_range = u32::try_from(value).ok().filter(|v| (least..=most).contains(v));
        in_range.ok_or_else(|| {
            invalid(field, format!("{value} is not from {least} to {most}: correct it"))
        })
    };
    let replicas = count("replicas", spec.replicas, 1, 99)?;
    let partitions = count("partitions", spec.partitions, 1, 512)?;
    let replication_factor = count("replicationFactor", spec.replication_factor, 1, 5)?;
    if !partitions.is_power_of_two() {
        return Err(invalid("partitions", format!("{partitions} is not a power of two")));
    }
    if !replication_factor.is_multiple_of(2) && replicas < replication_factor {
        return Err(invalid(
            "replicas",
            format!(
                "{replicas} nodes cannot hold {replication_factor} copies of each partition: raise it, or set hibernated: true to stop the cluster"
            ),
        ));
    }
    if replication_factor.is_multiple_of(2) {
        return Err(invalid("replicationFactor", format!("{replication_factor} is not 1, 3 or 5")));
    }
    let of = |amounts: &Option<BTreeMap<String, _>>| {
        amounts
            .as_ref()
            .and_then(
                |a: &BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
                    a.get("memory")
                },
            )
            .map(|q| q.0.clone())
    };
    let memory = of(&spec.resources.limits).or_else(|| of(&spec.resources.requests));
    let memory_bytes = memory.map(|m| amount("resources", &m)).transpose()?;
    let move_bytes_per_s = amount("rebalance.bytesPerSecond", &spec.rebalance.bytes_per_second)?;
    Ok(Cluster {
        name: text(&meta.name, "metadata.name")?,
        namespace: text(&meta.namespace, "metadata.namespace")?,
        uid: text(&meta.uid, "metadata.uid")?,
        generation: meta.generation.unwrap_or(0),
        image: spec.image,
        image_pull_policy: spec.image_pull_policy,
        image_pull_secrets: spec.image_pull_secrets,
        replicas,
        partitions,
        replication_factor,
        storage_size_bytes: amount("storage.size", &spec.storage.size)?,
        storage_size: spec.storage.size,
        storage_class: spec.storage.storage_class_name,
        resources: spec.resources,
        memory_bytes,
        zones: spec.zones,
        topology_spread_constraints: spec.topology_spread_constraints,
        node_selector: spec.node_selector,
        tolerations: spec.tolerations,
        priority_class_name: spec.priority_class_name,
        tls: spec.tls.mode == TlsMode::Operator,
        moves_per_node: count(
            "rebalance.maxMovesPerNode",
            spec.rebalance.max_moves_per_node,
            1,
            64,
        )?,
        move_bytes_per_s,
        config: spec.config,
        service_account: spec.service_account,
        // One node's Kubernetes node could never be drained.
        pdb: spec.pdb.enabled && replicas > 1,
        service: spec.service,
        network_policy: spec.network_policy,
        progress_deadline_ms: u64::from(count(
            "upgrade.progressDeadlineSeconds",
            spec.upgrade.progress_deadline_seconds,
            30,
            86_400,
        )?) * 1_000,
        deletion_policy: spec.deletion_policy,
        paused: spec.paused,
        hibernated: spec.hibernated,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: serde_json::Value) -> Result<Cluster, Invalid> {
        let resource = json!({
            "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
            "metadata": {"name": "demo", "namespace": "shop", "uid": "u", "generation": 4}, "spec": spec
        });
        validate(&serde_json::from_value(resource).unwrap())
    }

    #[test]
    fn an_empty_spec_gives_a_cluster_of_three() {
        let cluster = read(json!({})).unwrap();
        assert_eq!((cluster.replicas, cluster.partitions, cluster.replication_factor), (3, 64, 3));
        assert_eq!(cluster.storage_size_bytes, 10 << 30);
        assert_eq!(cluster.memory_bytes, Some(1 << 30));
        assert_eq!(cluster.progress_deadline_ms, 600_000);
        assert!(cluster.pdb);
    }

    #[test]
    fn what_was_stored_before_a_rule_existed_is_named() {
        let field = |spec| read(spec).unwrap_err().field;
        assert_eq!(field(json!({"replicas": 2})), "replicas");
        assert_eq!(field(json!({"replicas": -1})), "replicas");
        assert_eq!(field(json!({"partitions": 48})), "partitions");
        assert_eq!(field(json!({"replicationFactor": 4, "replicas": 9})), "replicationFactor");
        assert_eq!(field(json!({"storage": {"size": "much"}})), "storage.size");
        assert_eq!(field(json!({"resources": {"limits": {"memory": "a lot"}}})), "resources");
    }

    #[test]
    fn a_single_node_has_no_disruption_budget() {
        assert!(!read(json!({"replicas": 1, "replicationFactor": 1})).unwrap().pdb);
    }
}
