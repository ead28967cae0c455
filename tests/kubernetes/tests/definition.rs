//! The definition of the resources on the real API server. No operator runs in these namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, PostParams},
};
use ringfold_crds::cases::{BAD_NAMES, Case, GOOD_NAMES, cases};
use ringfold_tests_kubernetes::{Space, kubectl, kubectl_fails, kubectl_with, kubernetes};
use serde_json::{Value, json};

const DEFINITION: &str = include_str!("../../../crds/eventstoreclusters.yaml");

fn resources(space: &Space) -> Api<DynamicObject> {
    let kind = ApiResource::erase::<ringfold_crds::EventStoreCluster>(&());
    Api::namespaced_with(space.client.clone(), &space.name, &kind)
}

fn resource(name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
        "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

/// Messages of what the API server finds wrong; `None`: it accepted.
fn refusals(answer: Result<DynamicObject, kube::Error>) -> Option<Vec<String>> {
    match answer {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if status.code == 422 => {
            let details = status.details.as_ref().expect("details");
            Some(details.causes.iter().map(|c| c.message.clone()).collect())
        }
        Err(other) => panic!("neither accepted nor found invalid: {other}"),
    }
}

/// In a group of its own, beside the one that other tests use.
#[test]
fn the_definition_applies_client_and_server_side_and_a_second_time_changes_nothing() {
    kubernetes(async |space| {
        let group = format!("{}.test", &space.name[space.name.len() - 6..]);
        let definition = DEFINITION.replace("ringfold.dev", &format!("a{group}"));
        let crd = format!("crd/eventstoreclusters.a{group}");
        let version =
            || kubectl(&["get", &crd, "-o", "jsonpath={.metadata.resourceVersion}/{.spec}"]);
        for how in [&["--server-side=false"][..], &["--server-side"]] {
            let with = |verb: &'static str| [&[verb, "-f", "-"], how].concat();
            kubectl_with(&with("apply"), &definition);
            kubectl(&["wait", "--for=condition=Established", &crd, "--timeout=30s"]);
            let before = version();
            // Exits with 1 where something differs.
            assert_eq!(kubectl_with(&with("diff"), &definition), "", "{how:?}");
            kubectl_with(&with("apply"), &definition);
            assert_eq!(version(), before, "a second apply {how:?} changed the definition");
            kubectl(&["delete", &crd, "--wait"]);
        }
    });
}

#[test]
fn each_rule_is_enforced_with_its_message_and_the_nearest_good_spec_is_accepted() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        for (i, Case { message, old, bad, good }) in cases().into_iter().enumerate() {
            let name = format!("case-{i}");
            let put = async |spec: &Value| match &old {
                None => api.create(&params, &resource(&name, spec)).await,
                Some(_) => {
                    let mut there = api.get(&name).await.unwrap();
                    there.data["spec"] = spec.clone();
                    api.replace(&name, &params, &there).await
                }
            };
            if let Some(old) = &old {
                api.create(&params, &resource(&name, old)).await.unwrap();
            }
            let refused = refusals(put(&bad).await).unwrap_or_else(|| panic!("{bad} is accepted"));
            assert_eq!(refused.len(), 1, "{bad}: {refused:?}");
            assert!(refused[0].contains(message), "{bad}: {refused:?}");
            assert_eq!(refusals(put(&good).await), None, "{good}");
        }
    });
}

#[test]
fn names_that_cannot_be_part_of_host_names_are_refused() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        for name in BAD_NAMES {
            let refused = refusals(api.create(&params, &resource(name, &json!({}))).await);
            let refused = refused.unwrap_or_else(|| panic!("{name} is accepted"));
            // Some are no names of any object.
            let said = |m: &String| m.contains("metadata.name must be") || m.contains("RFC 1123");
            assert!(!refused.is_empty() && refused.iter().all(said), "{name}: {refused:?}");
        }
        for name in GOOD_NAMES {
            assert_eq!(refusals(api.create(&params, &resource(name, &json!({}))).await), None);
        }
    });
}

#[test]
fn values_outside_of_their_range_and_unknown_words_are_refused() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        for (field, bad) in [
            ("spec.replicas", json!({"replicas": 100})),
            ("spec.replicas", json!({"replicas": -1})),
            ("spec.zones.mode", json!({"zones": {"mode": "Sometimes"}})),
            ("spec.storage.size", json!({"storage": {"size": "1000000000000000000000Gi"}})),
            ("spec.deletionPolicy", json!({"deletionPolicy": "delete"})),
            (
                "spec.upgrade.progressDeadlineSeconds",
                json!({"upgrade": {"progressDeadlineSeconds": 1}}),
            ),
        ] {
            match api.create(&params, &resource("demo", &bad)).await {
                Err(kube::Error::Api(e)) => assert!(e.message.contains(field), "{}", e.message),
                other => panic!("{bad} is not refused: {other:?}"),
            }
        }
        // Strictly, as kubectl asks for it; elsewhere what is unknown is dropped.
        let unknown = json!({
            "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
            "metadata": {"name": "demo"}, "spec": {"replica": 3},
        });
        let said = kubectl_fails(&["create", "-n", &space.name, "-f", "-"], &unknown.to_string());
        assert!(said.contains(r#"unknown field "spec.replica""#), "{said}");
    });
}

#[test]
fn scale_below_the_replication_factor_or_above_the_partitions_is_refused_with_the_message() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        api.create(&params, &resource("demo", &json!({"partitions": 4}))).await.unwrap();
        let scale = |n| ["scale", "esc/demo", n, "-n", &space.name].map(str::to_owned);
        let fails = |n| kubectl_fails(&scale(n).each_ref().map(String::as_str), "");
        let said = fails("--replicas=2");
        assert!(said.contains("replicas must not be below replicationFactor"), "{said}");
        let said = fails("--replicas=5");
        assert!(said.contains("replicas must not be above partitions"), "{said}");
        kubectl(&scale("--replicas=4").each_ref().map(String::as_str));
        assert_eq!(api.get("demo").await.unwrap().data["spec"]["replicas"], 4);
    });
}

#[test]
fn nothing_that_waits_for_a_condition_passes_before_the_operators_first_look() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        api.create(&params, &resource("demo", &json!({}))).await.unwrap();
        let stored = api.get("demo").await.unwrap();
        let status = json!({"observedGeneration": -1, "replicas": 0, "readyReplicas": 0});
        assert_eq!(stored.data["status"], status);
        let wait = ["wait", "esc/demo", "--for=condition=Ready", "--timeout=1s", "-n", &space.name];
        assert!(kubectl_fails(&wait, "").contains("timed out"));
    });
}

/// What is the same on every line of a table.
#[test]
fn get_shows_the_columns_that_a_person_looks_for() {
    kubernetes(async |space| {
        let (api, params) = (resources(space), PostParams::default());
        api.create(&params, &resource("demo", &json!({}))).await.unwrap();
        let table = kubectl(&["get", "esc", "-n", &space.name]);
        let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
        let expected =
            ["NAME", "READY", "DESIRED", "REPLICAS", "VERSION", "MOVING", "UNDER", "REASON", "AGE"];
        assert_eq!(header, expected);
    });
}

/// Those of the charts, and one with every field.
fn samples() -> Vec<Value> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/samples");
    let mut samples: Vec<Value> = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let clusters = documents.into_iter().filter(|d| d["kind"] == "EventStoreCluster");
        samples.extend(clusters.map(|d| d["spec"].clone()));
    }
    assert!(samples.len() > 3, "{samples:?}");
    samples.push(json!({
            "image": "example/node:1", "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "pull"}], "replicas": 5, "partitions": 128,
            "replicationFactor": 5, "storage": {"size": "20Gi", "storageClassName": "fast"},
            "resources": {"limits": {"memory": "2Gi"}},
            "zones": {"mode": "Required"}, "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "a", "operator": "Exists"}], "priorityClassName": "high",
            "rebalance": {"maxMovesPerNode": 4, "bytesPerSecond": "100Mi"},
            "config": {"read_threads": "8"}, "serviceAccount": {"annotations": {"a": "b"}},
            "pdb": {"enabled": false}, "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "networkPolicy": {"clients": [{"matchLabels": {"app": "shop"}}]},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
            "upgrade": {"progressDeadlineSeconds": 300}, "deletionPolicy": "Delete",
            "paused": true, "hibernated": true,
    }));
    samples
}

#[test]
fn a_dry_run_on_the_server_is_what_is_stored_then_and_applying_it_again_changes_nothing() {
    kubernetes(async |space| {
        for (i, spec) in samples().iter().enumerate() {
            let name = format!("sample-{i}");
            let text = serde_json::to_string(&resource(&name, spec)).unwrap();
            let apply = ["apply", "-n", &space.name, "-f", "-", "-o", "json"];
            let dry = kubectl_with(&[&apply[..], &["--dry-run=server"]].concat(), &text);
            let dry: Value = serde_json::from_str(&dry).unwrap();
            kubectl_with(&apply, &text);
            let stored = resources(space).get(&name).await.unwrap();
            assert_eq!(stored.data["spec"], dry["spec"], "{name}");
            let version = stored.resource_version();
            kubectl_with(&apply, &text);
            let diff = ["diff", "-n", &space.name, "-f", "-"];
            assert_eq!(kubectl_with(&diff, &text), "");
            let again = resources(space).get(&name).await.unwrap();
            assert_eq!(again.resource_version(), version, "{name}");
            // What was filled in can be sent back.
            let full = resource(&format!("{name}-full"), &stored.data["spec"]);
            let full = resources(space).create(&PostParams::default(), &full).await.unwrap();
            assert_eq!(full.data["spec"], stored.data["spec"], "{name}");
        }
    });
}

/// Paths of all properties, and those without a description.
fn walk(schema: &Value, all: &Value, path: &str, seen: &mut Vec<(String, bool)>) {
    let name = |r: &Value| r.as_str()?.rsplit('/').next().map(str::to_owned);
    if let Some(name) = schema.get("$ref").and_then(name) {
        // Kubernetes documents its own.
        if name.starts_with("io.k8s.") {
            return;
        }
        return walk(&all[&name], all, path, seen);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        walk(part, all, path, seen);
    }
    for (field, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{field}");
        let is_described = property["description"].as_str().is_some_and(|d| !d.trim().is_empty());
        seen.push((path.clone(), is_described || property.get("$ref").is_some()));
        walk(property, all, &path, seen);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(inner) {
            walk(inner, all, path, seen);
        }
    }
}

#[test]
fn explain_documents_every_field() {
    kubernetes(async |_| {
        let path = "/openapi/v3/apis/ringfold.dev/v1alpha1";
        let document: Value = serde_json::from_str(&kubectl(&["get", "--raw", path])).unwrap();
        let schemas = &document["components"]["schemas"];
        let (_, root) = schemas
            .as_object()
            .unwrap()
            .iter()
            .find(|(name, _)| name.ends_with(".EventStoreCluster"))
            .unwrap();
        let mut seen = Vec::new();
        walk(root, schemas, "esc", &mut seen);
        assert!(seen.len() > 100, "{seen:?}");
        let bare: Vec<_> = seen.iter().filter(|(_, d)| !d).map(|(path, _)| path).collect();
        assert!(bare.is_empty(), "without a description: {bare:?}");
        // The same as a person sees it.
        for (path, _) in seen.iter().filter(|(path, _)| path.matches('.').count() == 2) {
            let text = kubectl(&["explain", path]);
            let (_, description) = text.split_once("DESCRIPTION:").expect("a description");
            let first = description.split_whitespace().next();
            assert!(first.is_some_and(|word| word != "<empty>"), "{text}");
        }
    });
}
