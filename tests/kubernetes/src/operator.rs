//! An operator that looks after a test's namespace only.
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;

use crate::{
    Space,
    tools::{eventually, image, kubectl_with},
};

const MANIFEST: &str = include_str!("../manifests/operator.yaml");

pub struct Operator<'a> {
    pub space: &'a Space,
}

impl<'a> Operator<'a> {
    /// Two replicas, with rights in the namespace and no others. Returns once both are ready.
    pub async fn install(space: &'a Space) -> Operator<'a> {
        let manifest = MANIFEST
            .replace("OPERATOR_IMAGE", &image("operator"))
            .replace("NODE_IMAGE", &image("node"))
            .replace("NAMESPACE", &space.name);
        kubectl_with(&["apply", "-n", &space.name, "-f", "-"], &manifest);
        eventually("the operator is ready", Duration::from_secs(60), async || {
            let deployment = space.api::<Deployment>().get("ringfold-operator").await;
            let status = deployment.map_err(|e| e.to_string())?.status.unwrap_or_default();
            (status.ready_replicas == Some(2)).then_some(()).ok_or_else(|| format!("{status:?}"))
        })
        .await;
        Operator { space }
    }
}
