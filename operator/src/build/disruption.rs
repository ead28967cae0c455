//! Evictions take one node at a time.
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{meta, selector};
use crate::validate::Cluster;

pub fn build(cluster: &Cluster) -> Option<PodDisruptionBudget> {
    cluster.pdb.then(|| PodDisruptionBudget {
        metadata: meta(cluster, cluster.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(cluster)),
            // A pod that serves nobody does not hold up the drain of its Kubernetes node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
