//! Ringfold's Kubernetes resources.
//!
//! The types are the source of everything else: the CustomResourceDefinition with its validation
//! rules ([`generate::yaml`], checked in as `eventstoreclusters.yaml`) and the API reference
//! (`docs/api-reference.md`). So are the types of the Helm charts' values ([`charts`]).
//! `cargo run -p ringfold-crds` writes all of it again.

#[cfg(any(test, feature = "cases"))]
pub mod cases;
pub mod charts;
mod cluster;
pub mod generate;
pub mod names;
mod reference;
mod status;

pub use cluster::{
    DeletionPolicy, EventStoreCluster, EventStoreClusterSpec, ImagePullPolicy, NetworkPolicy,
    PodDisruptionBudget, Rebalance, Service, ServiceAccount, ServiceType, Storage, Tls, TlsMode,
    Upgrade, ZoneMode, Zones,
};
pub use status::{
    EventStoreClusterStatus, MemberStatus, Operation, OperationType, PartitionsStatus,
    RebalanceStatus, condition,
};

/// API group of all resources.
pub const GROUP: &str = "ringfold.dev";

#[cfg(test)]
mod tests;
