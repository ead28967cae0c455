//! The Helm charts' values: one type for each chart gives `values.yaml`, `values.schema.json` and the
//! tables of `docs/values.md`. The templates are written by hand, but for the
//! CustomResourceDefinition's.
mod cluster;
mod operator;
mod schema;
mod text;

use std::collections::BTreeMap;

pub use cluster::{ClusterValues, NOT_SPEC};
pub use operator::OperatorValues;
pub use schema::is_foreign;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generate::{COMMAND, yaml};

/// An image. A digest takes the place of the tag.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    /// Registry, such as registry.example.com:5000. Empty: global.imageRegistry, else the kubelets'
    /// default.
    #[schemars(length(max = 253))]
    pub registry: String,
    /// Name in the registry.
    #[schemars(length(min = 1, max = 255))]
    pub repository: String,
    /// Tag. Empty: the chart's appVersion.
    #[schemars(regex(pattern = r"^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"))]
    pub tag: String,
    /// Digest, which is taken in place of the tag.
    #[schemars(regex(pattern = r"^(sha256:[0-9a-f]{64})?$"))]
    pub digest: String,
}

impl Image {
    fn of(repository: &str) -> Image {
        Image { repository: repository.into(), ..Image::default() }
    }
}

/// A PodMonitor for the Prometheus operator, whose CustomResourceDefinition must exist.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodMonitor {
    /// Makes it.
    pub enabled: bool,
    /// Labels by which a Prometheus selects it.
    pub labels: BTreeMap<String, String>,
    /// Time between two scrapes.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m)$"))]
    pub interval: String,
}

impl Default for PodMonitor {
    fn default() -> Self {
        PodMonitor { enabled: false, labels: BTreeMap::new(), interval: "30s".into() }
    }
}

/// Values that a parent chart gives to all of its charts. Others of its own may be beside them.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Global {
    /// Registry of every image that names none itself.
    #[schemars(length(max = 253))]
    pub image_registry: String,
}

/// A chart's values as every file about them needs it.
pub struct Chart {
    /// Folder under `charts/`.
    pub name: &'static str,
    /// JSON schema, every default included.
    pub schema: Value,
    order: &'static [&'static str],
}

impl Chart {
    /// Values that come first in `values.yaml`.
    pub fn order(&self) -> &'static [&'static str] {
        self.order
    }
}

/// Both charts.
///
/// # Errors
/// When defaults are not JSON: a fault of this crate.
pub fn charts() -> Result<[Chart; 2], serde_json::Error> {
    let mut spec = serde_json::to_value(ClusterValues::default())?;
    spec["replicas"] = Value::Null;
    let mut cluster = schema::of::<ClusterValues>(&spec)?;
    let replicas = &mut cluster["properties"]["replicas"];
    replicas["type"] = serde_json::json!(["integer", "null"]);
    let said = replicas["description"].as_str().unwrap_or_default();
    replicas["description"] = format!("{said} {}", cluster::REPLICAS).into();
    let operator = schema::of::<OperatorValues>(&serde_json::to_value(OperatorValues::default())?)?;
    Ok([
        Chart { name: "ringfold-operator", schema: operator, order: operator::ORDER },
        Chart { name: "ringfold-cluster", schema: cluster, order: cluster::ORDER },
    ])
}

/// Every file of the charts that is made, with its path from the root of the checkout.
///
/// # Errors
/// Says what could not be made: a fault of this crate.
pub fn files() -> Result<Vec<(String, String)>, String> {
    let charts = charts().map_err(|e| e.to_string())?;
    let mut files = vec![
        ("charts/ringfold-operator/templates/crds.yaml".to_owned(), template(&yaml()?)?),
        ("docs/values.md".to_owned(), text::markdown(&charts)),
    ];
    for chart in &charts {
        let folder = format!("charts/{}", chart.name);
        let schema = serde_json::to_string_pretty(&chart.schema).map_err(|e| e.to_string())?;
        files.push((format!("{folder}/values.schema.json"), schema + "\n"));
        files.push((format!("{folder}/values.yaml"), text::yaml(chart)));
    }
    Ok(files)
}

/// The definition as a template: Helm upgrades it with the release, and never deletes it.
fn template(definition: &str) -> Result<String, String> {
    if definition.contains("{{") {
        return Err("the definition holds {{, which a template would take for its own".into());
    }
    let keep = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n  labels:\n    \
        {{- include \"ringfold-operator.labels\" . | nindent 4 }}\n";
    let body = definition.split_once('\n').map_or("", |(_, body)| body);
    let kept = body.replacen("metadata:\n", keep, 1);
    Ok(format!(
        "{{{{- /* Made from crds/src by `{COMMAND}`. */ -}}}}\n{{{{- if .Values.crds.enabled }}}}\n{kept}{{{{- end }}}}\n"
    ))
}

#[cfg(test)]
mod tests;
