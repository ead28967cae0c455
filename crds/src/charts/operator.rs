//! Values of the chart `ringfold-operator`. Field comments become `values.yaml`, its schema and
//! `docs/values.md`.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Global, Image, PodMonitor};
use crate::ImagePullPolicy;

/// Order of the top of `values.yaml`; what is not here follows by its name.
pub const ORDER: &[&str] = &[
    "image",
    "nodeImage",
    "imagePullPolicy",
    "imagePullSecrets",
    "crds",
    "watchNamespaces",
    "rbac",
    "serviceAccount",
    "replicas",
    "logLevel",
    "resources",
    "podDisruptionBudget",
    "networkPolicy",
    "metrics",
];

/// Values of the chart `ringfold-operator`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OperatorValues {
    /// Image of the operator.
    pub image: Image,
    /// Image of the nodes of new clusters whose resource names none. Running clusters stay on theirs.
    pub node_image: Image,
    /// When kubelets pull the operator's image.
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets of the release's namespace with which the operator's image is pulled, each as
    /// `name: …`. Those of the nodes stand in each EventStoreCluster.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The CustomResourceDefinition.
    pub crds: Crds,
    /// Namespaces whose clusters are looked after. Empty: all, with a ClusterRole. Otherwise these
    /// only, with a Role in each of them and no ClusterRole at all; they must exist.
    #[schemars(length(max = 64), inner(regex(pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")))]
    #[schemars(extend("uniqueItems" = true))]
    pub watch_namespaces: Vec<String>,
    /// Roles and bindings.
    pub rbac: Rbac,
    /// ServiceAccount of the operator.
    pub service_account: ServiceAccount,
    /// Operators. One of them acts, the others take over when it is gone.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u32,
    /// What the operator logs: error, warn, info, debug or trace, also by module.
    #[schemars(length(min = 1, max = 256))]
    pub log_level: String,
    /// Processor time and memory of each operator.
    pub resources: ResourceRequirements,
    /// Protection against evictions of all operators at once. There is none at one replica.
    pub pod_disruption_budget: Enabled,
    /// Who reaches the operator, and whom it reaches.
    pub network_policy: NetworkPolicy,
    /// Ways to the operator's metrics; they are served on the port `http` in any case.
    pub metrics: Metrics,
    /// Labels of the Kubernetes nodes on which operators may run.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of Kubernetes nodes that operators accept.
    pub tolerations: Vec<Toleration>,
    /// Affinity of the operators' pods.
    pub affinity: Affinity,
    /// Spread of the operators. Empty: over Kubernetes nodes, where it can be.
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// PriorityClass of the operators' pods.
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
    /// Further labels of the operators' pods.
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations of the operators' pods.
    pub pod_annotations: BTreeMap<String, String>,
    /// Name of the objects, in place of one that is made from the release's.
    #[schemars(regex(pattern = r"^([a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$"))]
    pub fullname_override: String,
    /// Values that a parent chart gives to all of its charts.
    pub global: Global,
    /// Not read here: a parent chart may use it as the condition of this one.
    pub enabled: bool,
}

/// The CustomResourceDefinition.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Crds {
    /// Installs the CustomResourceDefinition, and upgrades it with the release. It stays when the
    /// release is uninstalled, and every cluster with it. false: apply it by hand before.
    pub enabled: bool,
}

/// Roles and bindings.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rbac {
    /// Makes the operator's roles and their bindings. false: bind what the templates show by hand.
    pub create: bool,
    /// Adds EventStoreClusters to the ClusterRoles view, edit and admin of Kubernetes. Without effect
    /// where watchNamespaces is not empty.
    pub aggregate: bool,
}

/// ServiceAccount of the operator.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceAccount {
    /// Makes the account.
    pub create: bool,
    /// Its name. Empty: the objects' name where it is made, else `default`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Annotations of the account that is made.
    pub annotations: BTreeMap<String, String>,
}

/// Something that is made or not.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Enabled {
    /// Makes it.
    pub enabled: bool,
}

/// Who reaches the operator, and whom it reaches.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkPolicy {
    /// Makes a NetworkPolicy: in come only scrapes of metrics, out go only DNS, calls of the
    /// Kubernetes API and calls of the nodes.
    pub enabled: bool,
    /// Ports of the Kubernetes API, as pods reach it behind its Service.
    #[schemars(length(min = 1, max = 8), inner(range(min = 1, max = 65535)))]
    pub api_server_ports: Vec<u16>,
    /// Pods of any namespace that may scrape metrics. Empty: everyone.
    #[schemars(length(max = 16))]
    pub metrics_from: Vec<LabelSelector>,
}

/// Ways to the operator's metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// A Service in front of the operators' metrics.
    pub service: MetricsService,
    /// A PodMonitor for the Prometheus operator, whose CustomResourceDefinition must exist.
    pub pod_monitor: PodMonitor,
}

/// A Service in front of the operators' metrics.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsService {
    /// Makes it.
    pub enabled: bool,
    /// Annotations of the Service.
    pub annotations: BTreeMap<String, String>,
}

impl Default for OperatorValues {
    fn default() -> Self {
        let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
        OperatorValues {
            image: Image::of("ringfold-operator"),
            node_image: Image::of("ringfold-node"),
            image_pull_policy: ImagePullPolicy::IfNotPresent,
            image_pull_secrets: Vec::new(),
            crds: Crds::default(),
            watch_namespaces: Vec::new(),
            rbac: Rbac::default(),
            service_account: ServiceAccount::default(),
            replicas: 2,
            log_level: "info".into(),
            resources: ResourceRequirements {
                requests: Some([quantity("cpu", "50m"), quantity("memory", "64Mi")].into()),
                limits: Some([quantity("memory", "256Mi")].into()),
                claims: None,
            },
            pod_disruption_budget: Enabled::default(),
            network_policy: NetworkPolicy::default(),
            metrics: Metrics::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            affinity: Affinity::default(),
            topology_spread_constraints: Vec::new(),
            priority_class_name: String::new(),
            pod_labels: BTreeMap::new(),
            pod_annotations: BTreeMap::new(),
            fullname_override: String::new(),
            global: Global::default(),
            enabled: true,
        }
    }
}

impl Default for Crds {
    fn default() -> Self {
        Crds { enabled: true }
    }
}

impl Default for Rbac {
    fn default() -> Self {
        Rbac { create: true, aggregate: true }
    }
}

impl Default for ServiceAccount {
    fn default() -> Self {
        ServiceAccount { create: true, name: String::new(), annotations: BTreeMap::new() }
    }
}

impl Default for Enabled {
    fn default() -> Self {
        Enabled { enabled: true }
    }
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        let api_server_ports = vec![443, 6443];
        NetworkPolicy { enabled: true, api_server_ports, metrics_from: Vec::new() }
    }
}
