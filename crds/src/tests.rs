use std::collections::BTreeSet;

use kube::core::cel::{Validator, apply_defaults};
use serde_json::{Value, json};

use crate::{
    EventStoreCluster,
    cases::{BAD_NAMES, Case, GOOD_NAMES, cases},
    generate::{self, COMMAND, definition},
};

fn schema() -> Value {
    let crd = serde_json::to_value(definition().unwrap()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// As the API server fills them in: also inside of what was filled in, which `apply_defaults` leaves.
fn with_defaults(schema: &Value, value: &Value) -> Value {
    let mut value = value.clone();
    loop {
        let filled = apply_defaults(schema, &value);
        if filled == value {
            return filled;
        }
        value = filled;
    }
}

fn resource(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster", "metadata": {"name": name}, "spec": spec})
}

/// Messages of the rules that refuse `new`, in place of `old` where there is one.
pub(crate) fn refusals(new: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema();
    let new = with_defaults(&schema, new);
    let old = old.map(|o| with_defaults(&schema, o));
    match Validator::new().validate(&schema, &new, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|e| e.message.clone()).collect(),
    }
}

#[test]
fn each_rule_refuses_what_breaks_it_and_nothing_else() {
    for Case { message, old, bad, good } in cases() {
        let old = old.map(|spec| resource("demo", &spec));
        let refused = refusals(&resource("demo", &bad), old.as_ref());
        assert_eq!(refused.len(), 1, "{bad} broke: {refused:?}");
        assert!(refused[0].starts_with(message), "{bad} broke: {refused:?}");
        let refused = refusals(&resource("demo", &good), old.as_ref());
        assert!(refused.is_empty(), "{good} broke: {refused:?}");
    }
}

#[test]
fn a_name_becomes_part_of_host_names() {
    for bad in BAD_NAMES {
        let refused = refusals(&resource(bad, &json!({})), None);
        assert!(
            refused.len() == 1 && refused[0].starts_with("metadata.name must be"),
            "{bad}: {refused:?}"
        );
    }
    for good in GOOD_NAMES {
        assert_eq!(refusals(&resource(good, &json!({})), None), Vec::<String>::new(), "{good}");
    }
}

fn rules(schema: &Value, found: &mut Vec<Value>) {
    if let Value::Object(map) = schema {
        found.extend(
            map.get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    match schema {
        Value::Object(map) => map.values().for_each(|v| rules(v, found)),
        Value::Array(items) => items.iter().for_each(|v| rules(v, found)),
        _ => {}
    }
}

#[test]
fn each_rule_has_a_message_of_one_line_and_a_case() {
    let mut found = Vec::new();
    rules(&schema(), &mut found);
    let cases: BTreeSet<_> = cases().iter().map(|c| c.message).collect();
    for rule in &found {
        let message = rule["message"].as_str().expect("a rule without a message");
        assert!(!message.contains('\n') && message.len() <= 512, "{message}");
        let tested = cases.iter().any(|c| message.starts_with(c))
            || message.starts_with("metadata.name must be");
        assert!(tested, "no case breaks the rule: {message}");
    }
    assert_eq!(found.len(), cases.len() + 1, "{found:#?}");
}

#[test]
fn an_empty_spec_is_a_cluster_of_three_and_all_defaults_hold() {
    let stored = with_defaults(&schema(), &json!({"metadata": {"name": "demo"}}));
    let spec = &stored["spec"];
    assert_eq!(spec["replicas"], 3);
    assert_eq!(spec["partitions"], 64);
    assert_eq!(spec["replicationFactor"], 3);
    assert_eq!(spec["storage"]["size"], "10Gi");
    assert_eq!(spec["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(
        spec["zones"],
        json!({"mode": "Preferred", "topologyKey": "topology.kubernetes.io/zone"})
    );
    assert_eq!(spec["pdb"]["enabled"], true);
    assert_eq!(spec["service"]["type"], "ClusterIP");
    assert_eq!(spec["deletionPolicy"], "Retain");
    assert_eq!(stored["status"]["observedGeneration"], -1, "no wait passes early");
    assert_eq!(stored["status"].get("conditions"), None);
    let full = resource("demo", spec);
    assert_eq!(refusals(&full, None), Vec::<String>::new());
    // What the server fills in and what the type fills in are the same.
    let typed: EventStoreCluster = serde_json::from_value(resource("demo", &json!({}))).unwrap();
    let again: EventStoreCluster = serde_json::from_value(full).unwrap();
    assert_eq!(typed.spec, again.spec);
}

/// `kubectl explain` has a text for every field; a bound for every list, map and text that rules read.
#[test]
fn every_field_is_described() {
    fn walk(path: &str, schema: &Value) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(
                field["description"].as_str().is_some_and(|d| d.len() > 5),
                "{path} says nothing"
            );
            walk(&path, field);
            walk(&path, &field["items"]);
        }
    }
    walk("spec", &schema()["properties"]["spec"]);
    walk("status", &schema()["properties"]["status"]);
}

/// The API server calls formats that it does not know by a warning, and refuses what is not structural.
#[test]
fn the_schema_is_structural_and_its_formats_are_kubernetes_own() {
    fn walk(value: &Value) {
        match value {
            Value::Object(map) => {
                for key in ["$ref", "definitions", "oneOf", "nullable"] {
                    assert!(!map.contains_key(key), "{key} in {value}");
                }
                if let Some(format) = map.get("format").and_then(Value::as_str) {
                    assert!(
                        ["int32", "int64", "date-time", "double"].contains(&format),
                        "{format}"
                    );
                }
                map.values().for_each(walk);
            }
            Value::Array(items) => items.iter().for_each(walk),
            _ => {}
        }
    }
    walk(&schema());
}

#[test]
fn the_columns_are_what_a_person_looks_for() {
    let crd = definition().unwrap();
    let version = &crd.spec.versions[0];
    let columns: Vec<_> =
        version.additional_printer_columns.iter().flatten().map(|c| c.name.as_str()).collect();
    let expected = ["Ready", "Desired", "Replicas", "Version", "Moving", "Under", "Reason", "Age"];
    assert_eq!(columns, expected);
    let scale = version.subresources.as_ref().and_then(|s| s.scale.as_ref()).unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.replicas");
    assert_eq!(scale.status_replicas_path, ".status.replicas");
    assert_eq!(scale.label_selector_path.as_deref(), Some(".status.selector"));
    assert_eq!(crd.spec.names.short_names, Some(vec!["esc".to_owned()]));
}

/// An object that is applied client-side carries itself in an annotation, which is bounded.
#[test]
fn the_definition_is_below_256_kib() {
    let bytes = serde_json::to_vec(&definition().unwrap()).unwrap().len();
    assert!(bytes < 256 << 10, "{bytes} bytes");
}

#[test]
fn the_files_that_are_checked_in_are_those_that_the_types_give() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, made) in generate::files().unwrap() {
        let there = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(there == made, "{path} is out of date: run `{COMMAND}`");
    }
}

#[test]
fn the_yaml_reads_back_as_the_definition() {
    let yaml = generate::yaml().unwrap();
    let back: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(back, serde_json::to_value(definition().unwrap()).unwrap());
}
