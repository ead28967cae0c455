//! `kubectl ringfold replace POD`: marks the claim of a pod's volume, so that the operator gives the
//! pod a new node on an empty volume.
use super::{connect, failed};
use crate::Global;
use crate::error::{CliError, Exit};
use crate::output::{Format, Out, Record, say};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use ringfold_crds::names::{CLUSTER_LABEL, NAME_LABEL, NODE_ID, REPLACE, claim};
use serde::Serialize;
use serde_json::{Value, json};

/// The operator drains the node first where it answers, and waits as long as the cluster needs it:
/// nothing is lost that has another copy.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the pod, such as demo-2
    pod: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Replaced {
    pod: String,
    claim: String,
    cluster: String,
    node_id: u64,
    /// False: it was asked for already.
    changed: bool,
}

impl Record for Replaced {
    const HEADERS: &'static [&'static str] = &["POD", "CLAIM", "NODE"];
    fn row(&self) -> Vec<String> {
        vec![self.pod.clone(), self.claim.clone(), self.node_id.to_string()]
    }
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let (client, namespace) = connect(&global.kubernetes).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client, &namespace);
    let name = claim(&args.pod);
    let found = claims.get(&name).await;
    let found = found.map_err(|e| failed(format_args!("the claim {namespace}/{name}"), e))?;
    let replaced = asked(&args.pod, &found)?;
    if replaced.changed {
        let params = PatchParams {
            field_manager: Some("kubectl-ringfold".into()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch(&found, replaced.node_id));
        let done = claims.patch(&name, &params, &patch).await;
        done.map_err(|e| failed(format_args!("the claim {namespace}/{name}"), e))?;
    }
    let mut out = Out::new(global.output);
    out.show(&replaced)?;
    out.flush()?;
    if global.output == Format::Table {
        let cluster = &replaced.cluster;
        say(format_args!(
            "the operator replaces node {}: `kubectl -n {namespace} get esc {cluster} -w` shows how far it is",
            replaced.node_id
        ));
    }
    Ok(0)
}

/// What is asked for, or why it cannot be.
fn asked(pod: &str, found: &PersistentVolumeClaim) -> Result<Replaced, CliError> {
    let name = found.name_any();
    let (label, value) = NAME_LABEL;
    let labels = found.labels();
    let cluster =
        labels.get(CLUSTER_LABEL).filter(|_| labels.get(label).is_some_and(|v| v == value));
    let Some(cluster) = cluster else {
        return Err(CliError::new(
            Exit::Refused,
            format!("the claim {name} is not one of Ringfold's"),
        ));
    };
    let node_id: Option<u64> = found.annotations().get(NODE_ID).and_then(|id| id.parse().ok());
    let Some(node_id) = node_id else {
        let message = format!("the claim {name} does not say yet whose data its volume holds");
        return Err(CliError::new(Exit::Unavailable, message)
            .action("wait until the pod has joined; an empty volume needs no replacement"));
    };
    let is_asked = found.annotations().get(REPLACE).is_some_and(|id| *id == node_id.to_string());
    Ok(Replaced {
        pod: pod.into(),
        claim: name,
        cluster: cluster.clone(),
        node_id,
        changed: !is_asked,
    })
}

/// Bound to the claim that was looked at: another of that name holds another node's data.
fn patch(found: &PersistentVolumeClaim, node_id: u64) -> Value {
    json!({"metadata": {
        "uid": found.metadata.uid,
        "resourceVersion": found.metadata.resource_version,
        "annotations": {REPLACE: node_id.to_string()},
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(annotations: Value, app: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {
            "name": "data-demo-2", "uid": "u", "resourceVersion": "7", "annotations": annotations,
            "labels": {"app.kubernetes.io/name": app, "app.kubernetes.io/instance": "demo"},
        }}))
        .unwrap()
    }

    #[test]
    fn the_mark_names_the_node_whose_data_the_volume_holds() {
        let claim = found(json!({NODE_ID: "9"}), "ringfold");
        let replaced = asked("demo-2", &claim).unwrap();
        assert_eq!((replaced.node_id, replaced.changed), (9, true));
        assert_eq!(
            patch(&claim, 9),
            json!({"metadata": {"uid": "u", "resourceVersion": "7", "annotations": {REPLACE: "9"}}})
        );
        let again = asked("demo-2", &found(json!({NODE_ID: "9", REPLACE: "9"}), "ringfold"));
        assert!(!again.unwrap().changed);
        // A mark of the node that was there before does not count.
        let other = asked("demo-2", &found(json!({NODE_ID: "9", REPLACE: "4"}), "ringfold"));
        assert!(other.unwrap().changed);
    }

    #[test]
    fn a_volume_that_says_nothing_or_is_somebody_elses_is_left_alone() {
        assert_eq!(
            asked("demo-2", &found(json!({}), "ringfold")).unwrap_err().exit,
            Exit::Unavailable
        );
        let foreign = asked("demo-2", &found(json!({NODE_ID: "9"}), "postgres"));
        assert_eq!(foreign.unwrap_err().exit, Exit::Refused);
    }
}
