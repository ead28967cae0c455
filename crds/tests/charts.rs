//! The Helm charts as the real Helm renders them. Without Helm the tests say so and pass, unless
//! RINGFOLD_REQUIRE_HELM is set.
// Helpers of tests stand outside of functions that are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "charts/cluster.rs"]
mod cluster;
#[path = "charts/docs.rs"]
mod docs;
#[path = "charts/helm.rs"]
mod helm;
#[path = "charts/manifests.rs"]
mod manifests;
#[path = "charts/operator.rs"]
mod operator;
#[path = "charts/rbac.rs"]
mod rbac;
