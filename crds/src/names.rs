//! Names that the operator and people's tools share.

/// On a claim: the id of the node whose data its volume holds.
pub const NODE_ID: &str = "ringfold.dev/node-id";
/// On a claim: a person asks for a new node on an empty volume. Its value: the node's id.
pub const REPLACE: &str = "ringfold.dev/replace";
/// Label of every object of a cluster, and its value.
pub const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "ringfold");
/// Label of every object of a cluster. Its value: the cluster's name.
pub const CLUSTER_LABEL: &str = "app.kubernetes.io/instance";
/// Port of the nodes' API.
pub const CLIENT_PORT: u16 = 2600;

/// Name of the headless Service, which gives each pod its name in DNS.
pub fn nodes_service(cluster: &str) -> String {
    format!("{cluster}-nodes")
}

/// Host name of a pod that every pod of the namespace resolves.
pub fn host(cluster: &str, namespace: &str, pod: &str) -> String {
    format!("{pod}.{}.{namespace}.svc", nodes_service(cluster))
}

/// Name of the claim of a pod's volume.
pub fn claim(pod: &str) -> String {
    format!("data-{pod}")
}
