//! `EventStoreCluster`: what a person says.
//!
//! Field comments are what `kubectl explain` prints.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::status::EventStoreClusterStatus;

/// A Ringfold cluster: an event store whose size, version and settings are changed here while
/// applications keep writing.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "ringfold.dev",
    version = "v1alpha1",
    kind = "EventStoreCluster",
    plural = "eventstoreclusters",
    shortname = "esc",
    namespaced,
    status = "EventStoreClusterStatus",
    derive = "PartialEq",
    doc = "A Ringfold cluster: an event store whose size, version and settings are changed here while applications keep writing.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Serves every partition"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "Nodes asked for"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas", description = "Nodes that exist"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "Version that all nodes run"),
    printcolumn(name = "Moving", type_ = "integer", json_path = ".status.partitions.moving", description = "Replicas of partitions on their way"),
    printcolumn(name = "Under", type_ = "integer", json_path = ".status.partitions.underReplicated", description = "Partitions with fewer replicas than asked for"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')")
        .message("metadata.name must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter and not ending with a dash: it becomes part of host names")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.replicas >= self.replicationFactor")
        .message("replicas must not be below replicationFactor: each partition needs so many nodes. To stop the cluster and keep its data, set hibernated: true")
        .field_path(".replicas"),
    validation = Rule::new("self.replicas <= self.partitions")
        .message("replicas must not be above partitions: further nodes would have nothing to hold")
        .field_path(".replicas"),
    validation = Rule::new("!self.hibernated || self.replicas == oldSelf.replicas")
        .message("replicas cannot change while the cluster hibernates: set hibernated: false first")
        .field_path(".replicas")
)]
pub struct EventStoreClusterSpec {
    /// Image of the nodes. When it is left out, a running cluster stays on its image, also when the
    /// operator is upgraded; a new cluster gets the operator's own release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// When kubelets pull the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets of this namespace with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Number of nodes. `kubectl scale` and autoscalers change it; partitions move by themselves, and
    /// a node goes only when it holds nothing any more. Three nodes survive the loss of one.
    #[serde(default = "replicas")]
    #[schemars(range(min = 1, max = 99))]
    pub replicas: i32,
    /// Number of partitions, a power of two. It is fixed when the cluster is created, and bounds the
    /// number of nodes.
    #[serde(default = "partitions")]
    #[schemars(range(min = 1, max = 512))]
    #[x_kube(
        validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]")
            .message("partitions must be a power of two, from 1 to 512"),
        validation = Rule::new("self == oldSelf")
            .message("partitions cannot be changed: they are fixed when the cluster is created")
    )]
    pub partitions: i32,
    /// Number of nodes that hold each partition: 1, 3 or 5. With 3, one node may be lost without an
    /// interruption.
    #[serde(default = "replication_factor")]
    #[x_kube(
        validation = Rule::new("self in [1, 3, 5]").message("replicationFactor must be 1, 3 or 5"),
        validation = Rule::new("self == oldSelf")
            .message("replicationFactor cannot be changed: it is fixed when the cluster is created")
    )]
    #[schemars(range(min = 1, max = 5))]
    pub replication_factor: i32,
    /// Where the nodes keep their data.
    #[serde(default)]
    pub storage: Storage,
    /// Processor time and memory of each node. Its caches are sized from the memory limit.
    #[serde(default = "resources")]
    pub resources: ResourceRequirements,
    /// How nodes, and the replicas of a partition, are spread over failure domains.
    #[serde(default)]
    pub zones: Zones,
    /// Spread of the pods, in place of what `zones` gives. Selectors are filled in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Labels of the Kubernetes nodes on which pods may run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of Kubernetes nodes that pods accept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Encryption of what nodes and clients say to each other.
    #[serde(default)]
    pub tls: Tls,
    /// How fast and how many replicas move at once.
    #[serde(default)]
    pub rebalance: Rebalance,
    /// Further settings of the nodes, by the names of docs/settings.md. A change restarts the nodes
    /// one after another.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    // Over a constant list: the names in the map have no bound, and a rule over them would cost too much.
    #[x_kube(validation = Rule::new(
        "['data_dir', 'name', 'client_listen', 'peer_listen', 'gossip_listen', 'client_url', 'peer_address', 'gossip_advertise', 'seeds', 'zone', 'gossip_key', 'gossip_key_file', 'gossip_previous_key', 'gossip_previous_key_file', 'http_listen', 'stop_wait_ms', 'tls_cert_file', 'tls_key_file', 'tls_ca_file', 'log_format', 'moves_per_node', 'move_bytes_per_s'].all(k, !(k in self))"
    ).message("config must not hold what the operator sets itself: data_dir, name, client_listen, peer_listen, gossip_listen, client_url, peer_address, gossip_advertise, seeds, zone, gossip_key, gossip_key_file, gossip_previous_key, gossip_previous_key_file, http_listen, stop_wait_ms, tls_cert_file, tls_key_file, tls_ca_file, log_format, moves_per_node, move_bytes_per_s"))]
    pub config: BTreeMap<String, String>,
    /// ServiceAccount of the pods.
    #[serde(default)]
    pub service_account: ServiceAccount,
    /// Protection against evictions that would take more than one node at a time.
    #[serde(default)]
    pub pdb: PodDisruptionBudget,
    /// The Service that clients connect to.
    #[serde(default)]
    pub service: Service,
    /// Who may connect to the nodes.
    #[serde(default)]
    pub network_policy: NetworkPolicy,
    /// How nodes get a new image or new settings.
    #[serde(default)]
    pub upgrade: Upgrade,
    /// What happens to volumes and Secrets when this resource is deleted. With Retain a cluster of the
    /// same name that is created later takes them up again, with its data.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The operator changes nothing while this is true; the nodes go on.
    #[serde(default)]
    pub paused: bool,
    /// All nodes are stopped while this is true, and their volumes are kept.
    #[serde(default)]
    pub hibernated: bool,
}

fn replicas() -> i32 {
    3
}

fn partitions() -> i32 {
    64
}

fn replication_factor() -> i32 {
    3
}

fn resources() -> ResourceRequirements {
    let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", "500m"), quantity("memory", "1Gi")].into()),
        limits: Some([quantity("memory", "1Gi")].into()),
        claims: None,
    }
}

/// When kubelets pull an image.
#[derive(
    schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// Where the nodes keep their data.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)"
).message("storageClassName cannot be changed: volumes stay in the class that they were made in")
 .field_path(".storageClassName"))]
pub struct Storage {
    /// Size of each node's volume. It may grow where the storage class allows it, but not shrink.
    #[serde(default = "storage_size")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(
        validation = Rule::new("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))")
            .message("size must be a positive amount, such as 10Gi"),
        validation = Rule::new("!isQuantity(self) || !isQuantity(oldSelf) || quantity(self).compareTo(quantity(oldSelf)) >= 0")
            .message("size must not become smaller: a volume cannot shrink")
    )]
    pub size: String,
    /// StorageClass of the volumes; left out: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub storage_class_name: Option<String>,
}

fn storage_size() -> String {
    "10Gi".into()
}

impl Default for Storage {
    fn default() -> Self {
        Storage { size: storage_size(), storage_class_name: None }
    }
}

/// How nodes, and the replicas of a partition, are spread over failure domains.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Zones {
    /// Preferred: pods spread over zones where they can. Required: a pod waits rather than crowd a
    /// zone. Disabled: zones are not looked at.
    #[serde(default)]
    pub mode: ZoneMode,
    /// Label of Kubernetes nodes that names their zone.
    #[serde(default = "topology_key")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: String,
}

fn topology_key() -> String {
    "topology.kubernetes.io/zone".into()
}

impl Default for Zones {
    fn default() -> Self {
        Zones { mode: ZoneMode::default(), topology_key: topology_key() }
    }
}

/// How firmly pods are spread over zones.
#[derive(
    schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum ZoneMode {
    #[default]
    Preferred,
    Required,
    Disabled,
}

/// Encryption of what nodes and clients say to each other.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Operator: nodes speak TLS only, and the operator issues and renews their certificates, those of
    /// applications (Secret `<name>-client-tls`) and of administrators (`<name>-admin-tls`). Disabled:
    /// in the clear. It is fixed when the cluster is created.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("tls.mode cannot be changed: nodes with and without TLS do not understand each other"))]
    pub mode: TlsMode,
}

/// Who issues certificates.
#[derive(
    schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum TlsMode {
    #[default]
    Operator,
    Disabled,
}

/// How fast and how many replicas move at once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rebalance {
    /// Replicas on their way to and from one node at once.
    #[serde(default = "moves_max")]
    #[schemars(range(min = 1, max = 64))]
    pub max_moves_per_node: i32,
    /// Bytes that a node sends, and that it receives, for moves each second.
    #[serde(default = "bytes_per_second")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("isQuantity(self) && !quantity(self).isLessThan(quantity('1Mi'))")
        .message("bytesPerSecond must be an amount of at least 1Mi, such as 64Mi"))]
    pub bytes_per_second: String,
}

fn moves_max() -> i32 {
    2
}

fn bytes_per_second() -> String {
    "64Mi".into()
}

impl Default for Rebalance {
    fn default() -> Self {
        Rebalance { max_moves_per_node: moves_max(), bytes_per_second: bytes_per_second() }
    }
}

/// ServiceAccount of the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.name) || !has(self.annotations) || size(self.annotations) == 0")
    .message("serviceAccount.annotations are for the account that the operator makes: annotate the one that you name yourself"))]
pub struct ServiceAccount {
    /// An account that exists; left out: the operator makes one with the cluster's name. Nodes do not
    /// call the Kubernetes API, and get no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Annotations of the account that the operator makes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

/// Protection against evictions that would take more than one node at a time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodDisruptionBudget {
    /// Makes a PodDisruptionBudget with maxUnavailable 1. A single node has none: its Kubernetes node
    /// could never be drained.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

impl Default for PodDisruptionBudget {
    fn default() -> Self {
        PodDisruptionBudget { enabled: true }
    }
}

/// The Service that clients connect to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// ClusterIP, NodePort or LoadBalancer. Clients outside of the Kubernetes cluster reach all nodes
    /// through the one address, at the price of one hop.
    #[serde(default, rename = "type")]
    pub kind: ServiceType,
    /// Annotations of the Service, such as a load balancer's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

/// How a Service is reached.
#[derive(
    schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum ServiceType {
    #[default]
    #[serde(rename = "ClusterIP")]
    #[schemars(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    LoadBalancer,
}

/// Who may connect to the nodes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// Makes a NetworkPolicy: only nodes reach the nodes' own ports.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Pods of this namespace that may connect as clients; empty: everyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub clients: Vec<LabelSelector>,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        NetworkPolicy { enabled: true, clients: Vec::new() }
    }
}

/// How nodes get a new image or new settings.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// A node that was restarted and is not ready after so many seconds stops the upgrade: the
    /// cluster says Stalled, and no further node is touched.
    #[serde(default = "progress_deadline")]
    #[schemars(range(min = 30, max = 86_400))]
    pub progress_deadline_seconds: i32,
}

fn progress_deadline() -> i32 {
    600
}

impl Default for Upgrade {
    fn default() -> Self {
        Upgrade { progress_deadline_seconds: progress_deadline() }
    }
}

/// What happens to volumes and Secrets when the resource is deleted.
#[derive(
    schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}
