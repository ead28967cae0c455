//! Names of objects, labels and annotations.

/// The one field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "ringfold-operator";
/// On a claim: the id of the node whose data its volume holds.
pub const NODE_ID: &str = "ringfold.dev/node-id";
/// On a claim: a person asks for a new node on an empty volume. Its value: the node's id.
pub const REPLACE: &str = "ringfold.dev/replace";
/// On the identity Secret: UID of the only claim that may be bootstrapped.
pub const BOOTSTRAP_CLAIM: &str = "ringfold.dev/bootstrap-claim";
/// On the pod template: changes with the nodes' settings, so that they restart.
pub const CONFIG_HASH: &str = "ringfold.dev/config-hash";
/// Key in the identity Secret.
pub const CLUSTER_ID: &str = "cluster-id";
/// Keys in the gossip Secret.
pub const GOSSIP_CURRENT: &str = "current";
pub const GOSSIP_PREVIOUS: &str = "previous";

/// Name of the Secret with the cluster's id.
pub fn identity(cluster: &str) -> String {
    format!("{cluster}-cluster")
}

/// Name of the Secret with the gossip keys.
pub fn gossip(cluster: &str) -> String {
    format!("{cluster}-gossip")
}

/// Name of the headless Service, which gives each pod its name in DNS.
pub fn nodes(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// Name of the ConfigMap with the nodes' settings.
pub fn config(cluster: &str) -> String {
    format!("{cluster}-config")
}
