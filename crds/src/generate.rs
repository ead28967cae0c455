//! The CustomResourceDefinition that is applied, as value and as YAML.
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

pub use crate::reference::markdown as reference;
use crate::{EventStoreCluster, EventStoreClusterSpec};

/// Paths from the root of the checkout.
pub const YAML_PATH: &str = "crds/eventstoreclusters.yaml";
pub const REFERENCE_PATH: &str = "docs/api-reference.md";
/// Writes all files.
pub const COMMAND: &str = "cargo run -p ringfold-crds";

/// The definition of `EventStoreCluster`: what kube derives, and what that it has no words for.
///
/// # Errors
/// When the derived definition is not JSON of the expected shape: a fault of this crate.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut crd = serde_json::to_value(EventStoreCluster::crd())?;
    // The API server prunes a null where a field is not nullable, so `image: null` in somebody's
    // values means the same as leaving it out, and no rule has to tell the two apart.
    without_nulls(&mut crd);
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    // Nothing that waits for a condition passes before the operator's first look.
    schema["properties"]["status"]["default"] = json!({"observedGeneration": -1});
    // A spec that says nothing is a cluster of three. The API server judges a default before it fills
    // in those inside of it: what the rules over the spec read has to be there.
    let filled: EventStoreClusterSpec = serde_json::from_value(json!({}))?;
    schema["properties"]["spec"]["default"] = json!({
        "replicas": filled.replicas,
        "partitions": filled.partitions,
        "replicationFactor": filled.replication_factor,
        "hibernated": filled.hibernated,
    });
    let config = &mut schema["properties"]["spec"]["properties"]["config"];
    config["additionalProperties"]["maxLength"] = json!(1024);
    serde_json::from_value(crd)
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("nullable");
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The definition as the file that is checked in.
///
/// # Errors
/// Says what could not be written: a fault of this crate.
pub fn yaml() -> Result<String, String> {
    let crd = definition().map_err(|e| e.to_string())?;
    let value = serde_json::to_value(crd).map_err(|e| e.to_string())?;
    let body = serde_saphyr::to_string(&value).map_err(|e| e.to_string())?;
    Ok(format!("# Made from crds/src by `{COMMAND}`.\n{body}"))
}

/// Every file that is made from this crate's types, with its path from the root of the checkout.
///
/// # Errors
/// Says what could not be made: a fault of this crate.
pub fn files() -> Result<Vec<(String, String)>, String> {
    let mut files =
        vec![(YAML_PATH.to_owned(), yaml()?), (REFERENCE_PATH.to_owned(), reference()?)];
    files.extend(crate::charts::files()?);
    Ok(files)
}
