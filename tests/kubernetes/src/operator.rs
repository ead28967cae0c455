//! An operator that looks after a test's namespace only.
use std::{path::Path, time::Duration};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

use crate::{
    Space,
    tools::{eventually, helm, image_parts},
};

pub struct Operator<'a> {
    pub space: &'a Space,
}

impl<'a> Operator<'a> {
    /// Installs the chart as `ringfold-operator`, with rights in the test's namespace and no others: its
    /// definition is there already. Returns once both replicas are ready.
    pub async fn install(space: &'a Space) -> Operator<'a> {
        let values = values(space).to_string();
        let chart = chart();
        let install = ["install", "ringfold-operator", &chart, "-n", &space.name, "--values", "-"];
        helm(&install, &values);
        let operator = Operator { space };
        operator.wait_ready().await;
        operator
    }

    /// Upgrades the release: with further arguments for Helm, and other values.
    pub fn upgrade(&self, args: &[&str], changes: Value) {
        let mut values = values(self.space);
        for (key, value) in changes.as_object().expect("an object") {
            values[key] = value.clone();
        }
        let (chart, name) = (chart(), &self.space.name);
        let upgrade = ["upgrade", "ringfold-operator", &chart, "-n", name, "--values", "-"];
        helm(&[&upgrade[..], args].concat(), &values.to_string());
    }

    /// Waits until both replicas are ready.
    pub async fn wait_ready(&self) {
        eventually("the operator is ready", Duration::from_secs(60), async || {
            let deployment = self.space.api::<Deployment>().get("ringfold-operator").await;
            let status = deployment.map_err(|e| e.to_string())?.status.unwrap_or_default();
            (status.ready_replicas == Some(2)).then_some(()).ok_or_else(|| format!("{status:?}"))
        })
        .await;
    }
}

fn chart() -> String {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/ringfold-operator");
    chart.to_string_lossy().into_owned()
}

fn values(space: &Space) -> Value {
    let image = |of: &str| {
        let (registry, name, tag) = image_parts(of);
        json!({"registry": registry, "repository": name, "tag": tag})
    };
    json!({
        "watchNamespaces": [space.name],
        "crds": {"enabled": false},
        "image": image("operator"),
        "nodeImage": image("node"),
        "resources": {"requests": {"cpu": "20m"}},
    })
}
