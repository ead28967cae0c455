//! Values of the chart `ringfold-cluster`: the resource's spec, and what stands around it.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Global, Image, PodMonitor};
use crate::EventStoreClusterSpec;

/// Order of the top of `values.yaml`; what is not here follows by its name.
pub const ORDER: &[&str] = &[
    "name",
    "labels",
    "annotations",
    "replicas",
    "partitions",
    "replicationFactor",
    "storage",
    "resources",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "config",
    "zones",
];
/// What of the values is not the resource's spec; the rest is.
pub const NOT_SPEC: &[&str] =
    &["name", "labels", "annotations", "metrics", "tests", "global", "enabled"];
/// Said of `replicas`, which the chart leaves out by default.
pub const REPLICAS: &str = "null leaves it out: a new cluster gets three nodes, and later \
    `kubectl scale` and autoscalers decide, whatever is upgraded here.";

/// Values of the chart `ringfold-cluster`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("additionalProperties" = false))]
pub struct ClusterValues {
    /// Name of the cluster. Empty: the release's name.
    #[schemars(regex(pattern = r"^([a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$"))]
    pub name: String,
    /// Further labels of the EventStoreCluster.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the EventStoreCluster.
    pub annotations: BTreeMap<String, String>,
    /// Ways to the nodes' metrics; each node serves its own on the port `http`.
    pub metrics: Metrics,
    /// What `helm test` runs.
    pub tests: Tests,
    /// Values that a parent chart gives to all of its charts.
    pub global: Global,
    /// Not read here: a parent chart may use it as the condition of this one.
    pub enabled: bool,
    #[serde(flatten)]
    pub spec: EventStoreClusterSpec,
}

/// Ways to the nodes' metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// A PodMonitor for the Prometheus operator, whose CustomResourceDefinition must exist.
    pub pod_monitor: PodMonitor,
}

/// What `helm test` runs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tests {
    /// Makes the pod of `helm test`: it asks every node whether all is well. Kubernetes pulls its image
    /// with the secrets of imagePullSecrets.
    pub enabled: bool,
    /// Image of the command line.
    pub image: Image,
}

impl Default for Tests {
    fn default() -> Self {
        Tests { enabled: true, image: Image::of("ringfold-cli") }
    }
}

#[allow(clippy::expect_used)] // an empty spec reads by construction: each field has a default
impl Default for ClusterValues {
    fn default() -> Self {
        ClusterValues {
            name: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            metrics: Metrics::default(),
            tests: Tests::default(),
            global: Global::default(),
            enabled: true,
            spec: serde_json::from_value(serde_json::json!({})).expect("an empty spec is valid"),
        }
    }
}
