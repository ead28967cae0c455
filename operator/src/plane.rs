//! The two sides that a decision acts on, as narrow as it needs them. Implemented for the real ones,
//! and by the simulation.
use std::future::Future;

use crate::world::{Epoch, NodeId};

/// Why the data plane did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// It answered, and says why not. Nothing was changed.
    #[error("the cluster refuses: {message} ({reason})")]
    Refused { reason: String, message: String },
    /// What the decision rested on has changed: look again. Nothing was changed.
    #[error("the cluster has changed meanwhile: {0}")]
    Changed(String),
    /// No answer: it may or may not have been done.
    #[error("the cluster does not answer: {0}")]
    Unavailable(String),
}

/// The nodes' administration. Each call can be said again: done already, it changes nothing. Each but
/// the bootstrap names the epoch that was decided on, and fails with `Changed` at another one: an
/// operator that was deposed, or that acts on an old look, changes nothing any more.
pub trait DataPlane: Sync {
    /// Creates the cluster, with that pod's node as its first member.
    fn bootstrap(
        &self,
        pod: &str,
        cluster_id: &str,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Moves everything off a node; answers once that has begun.
    fn drain(
        &self,
        node: NodeId,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    fn undrain(
        &self,
        node: NodeId,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Takes a drained node out for good.
    fn remove(
        &self,
        node: NodeId,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
    /// Why the cluster needs the node now; empty: it may stop.
    fn needs(
        &self,
        node: NodeId,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<Vec<String>, PlaneError>> + Send;
    /// Has that pod's node hand over its leaderships: how many remain.
    fn transfer_leaders(
        &self,
        pod: &str,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<u32, PlaneError>> + Send;
    /// Has balancing and draining wait, or go on.
    fn pause(
        &self,
        paused: bool,
        if_epoch: Epoch,
    ) -> impl Future<Output = Result<(), PlaneError>> + Send;
}

/// Why the Kubernetes API did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubernetesError {
    /// What the decision rested on has changed: look again.
    #[error("it has changed meanwhile: {0}")]
    Changed(String),
    #[error("the Kubernetes API: {0}")]
    Failed(String),
}

/// The StatefulSet as the decision wants it. Nothing else changes its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizing {
    pub replicas: u32,
    /// Size in the volume claim template, which cannot change while the StatefulSet exists.
    pub storage_size: String,
    /// UID and resourceVersion of the one that was observed; the write fails when it has changed.
    pub expected: Option<(String, String)>,
}

/// Writes to the Kubernetes API. Each names the object that was observed by its UID, and fails with
/// `Changed` where another has taken its place. What is gone already counts as deleted.
pub trait Kubernetes: Sync {
    /// Brings all objects of the cluster to what is built from the spec; writes only what differs.
    fn apply(&self, sizing: &Sizing) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    /// Creates the Secret with the cluster's id, and never changes one that exists.
    fn create_identity(
        &self,
        cluster_id: Option<&str>,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    /// Writes down the claim that may be bootstrapped, once.
    fn reserve_bootstrap(
        &self,
        claim_uid: &str,
        resource_version: &str,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    /// Writes the node whose data it holds on the claim.
    fn record_node(
        &self,
        claim: &str,
        uid: &str,
        node: NodeId,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    /// `resource_version`: only if nothing at all has changed. `now`: without waiting for its kubelet.
    fn delete_pod(
        &self,
        pod: &str,
        uid: &str,
        resource_version: Option<&str>,
        now: bool,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    fn delete_claim(
        &self,
        claim: &str,
        uid: &str,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    fn resize_claim(
        &self,
        claim: &str,
        uid: &str,
        size: &str,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
    /// Deletes the StatefulSet and leaves its pods, so that it can be made anew around them.
    fn orphan_stateful_set(
        &self,
        uid: &str,
    ) -> impl Future<Output = Result<(), KubernetesError>> + Send;
}
