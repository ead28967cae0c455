//! `EventStoreCluster`: what the operator answers.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions.
pub mod condition {
    /// Every partition is served, and the nodes are as the spec asks. Stays True while data moves.
    pub const READY: &str = "Ready";
    /// Every partition has a leader.
    pub const AVAILABLE: &str = "Available";
    /// The operator is bringing the cluster to what the spec asks.
    pub const RECONCILING: &str = "Reconciling";
    /// The operator cannot go on by itself: the message says what to do.
    pub const STALLED: &str = "Stalled";
    /// A node, a volume or replicas are missing; data is served with less protection.
    pub const DEGRADED: &str = "Degraded";
    /// Replicas of partitions are on their way.
    pub const REBALANCING: &str = "Rebalancing";
    /// The operator changes nothing, as asked.
    pub const PAUSED: &str = "Paused";

    /// All of them, as they stand in a status.
    pub const ALL: [&str; 7] =
        [READY, AVAILABLE, RECONCILING, STALLED, DEGRADED, REBALANCING, PAUSED];
}

/// What the operator last saw. Progress is written every 5 s at most.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EventStoreClusterStatus {
    /// Generation of the spec that this status is about; -1 before the first look.
    #[serde(default = "not_observed")]
    pub observed_generation: i64,
    /// Ready, Available, Reconciling, Stalled, Degraded, Rebalancing and Paused. Ready, Reconciling and
    /// Stalled are as kstatus means them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Label selector of the pods, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The cluster's id: in every node's data, and in the Secret with which the data is taken up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Version that all nodes run; absent while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Feature level of the cluster: what is written is readable by every version that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_level: Option<i32>,
    /// What the operator is doing; absent at rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// The nodes that belong to the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// Partitions, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<PartitionsStatus>,
    /// Moves that are left; absent at rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<RebalanceStatus>,
    /// Where clients connect, as host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

fn not_observed() -> i64 {
    -1
}

/// What the operator is doing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    #[serde(rename = "type")]
    /// ScaleOut, ScaleIn, Upgrade, Replace, Resize, Bootstrap or Hibernate.
    pub kind: OperationType,
    /// The step that it is at, as a sentence.
    pub step: String,
    /// The pod that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    /// Since when it has been at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// What is being done.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationType {
    Bootstrap,
    ScaleOut,
    ScaleIn,
    Upgrade,
    Replace,
    Resize,
    Hibernate,
}

/// A node that belongs to the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Id that the cluster gave it, once and for all.
    pub node_id: i64,
    /// Its pod; absent when no volume of this cluster belongs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Failure domain that it reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Version that it runs; absent when it does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Joining, Active or Draining.
    pub state: String,
    /// Partitions that it leads.
    #[serde(default)]
    pub leaders: i32,
    /// Replicas of partitions that it holds.
    #[serde(default)]
    pub replicas: i32,
}

/// Partitions, counted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PartitionsStatus {
    /// All of them.
    pub total: i32,
    /// Replicas on their way.
    pub moving: i32,
    /// Partitions with fewer replicas than the replication factor.
    pub under_replicated: i32,
    /// Partitions without a leader: they neither take appends nor answer fresh lookups.
    pub leaderless: i32,
}

/// Moves that are left.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceStatus {
    /// Repair, Drain, Balance or Leaders: the most urgent reason.
    pub reason: String,
    /// Replicas that are still to move.
    pub left: i32,
    /// Leaderships that are still to move.
    pub leaders_left: i32,
    /// Why something does not go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
}
