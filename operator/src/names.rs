//! Names of objects, labels and annotations.
pub use ringfold_crds::names::{
    CLUSTER_LABEL, NAME_LABEL, NODE_ID, REPLACE, nodes_service as nodes,
};

/// Of annotations.
pub const DOMAIN: &str = "ringfold.dev/";
/// The one field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "ringfold-operator";
/// Label of whatever the operator makes. Its value: [`FIELD_MANAGER`].
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// On the identity Secret: UID of the only claim that may be bootstrapped.
pub const BOOTSTRAP_CLAIM: &str = "ringfold.dev/bootstrap-claim";
/// On the pod template: changes with the nodes' settings, so that they restart.
pub const CONFIG_HASH: &str = "ringfold.dev/config-hash";
/// On whatever is applied: a hash of what was built. What is not built any more would not show in a
/// comparison of the rest.
pub const BUILT: &str = "ringfold.dev/built";
/// On Secrets of certificates: when they run out, unix seconds.
pub const NOT_AFTER: &str = "ringfold.dev/not-after";
/// On Secrets of certificates: the authority that issued it, and for which hosts.
pub const ISSUER: &str = "ringfold.dev/issuer";
pub const HOSTS: &str = "ringfold.dev/hosts";
/// On Secrets of certificates: when they were written, unix seconds.
pub const WRITTEN: &str = "ringfold.dev/written";
/// On the Secret of the authorities: when the next one runs out, and when nothing is valid any more of
/// the previous one, and of those whose keys are lost.
pub const NEXT_NOT_AFTER: &str = "ringfold.dev/next-not-after";
pub const PREVIOUS_UNTIL: &str = "ringfold.dev/previous-until";
pub const LOST_UNTIL: &str = "ringfold.dev/lost-until";
/// On the Secret of the authorities: a person asks for another one now, or to trust the previous no more.
pub const REPLACE_AUTHORITY: &str = "ringfold.dev/replace-authority";
pub const DROP_PREVIOUS: &str = "ringfold.dev/drop-previous-authority";
/// Key in the identity Secret.
pub const CLUSTER_ID: &str = "cluster-id";
/// Keys in the gossip Secret.
pub const GOSSIP_CURRENT: &str = "current";
pub const GOSSIP_PREVIOUS: &str = "previous";

/// Name of the Secret with the cluster's id.
pub fn identity(cluster: &str) -> String {
    format!("{cluster}-cluster")
}

/// Name of the Secret with the cluster's own authorities, which only the operator reads.
pub fn authorities(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// Name of the Secret with the gossip keys.
pub fn gossip(cluster: &str) -> String {
    format!("{cluster}-gossip")
}

/// Name of the ConfigMap with the nodes' settings.
pub fn config(cluster: &str) -> String {
    format!("{cluster}-config")
}
