//! The API reference, from the same schema that `kubectl explain` reads.
use std::fmt::Write as _;

use serde_json::Value;

use crate::generate::{COMMAND, definition};

/// A table for the spec and one for the status, a row for each field, and the rules.
///
/// # Errors
/// Says what could not be written: a fault of this crate.
pub fn markdown() -> Result<String, String> {
    let crd = serde_json::to_value(definition().map_err(|e| e.to_string())?)
        .map_err(|e| e.to_string())?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut out = String::from(
        "# Resources\n\n\
         ## EventStoreCluster (`ringfold.dev/v1alpha1`, short name `esc`)\n\n",
    );
    let _ = writeln!(out, "{}\n", text(&schema["description"]));
    out.push_str(
        "The same text is in `kubectl explain esc.spec`. Everything has a default: an empty spec is a \
         cluster of three nodes.\n\n",
    );
    for (title, part) in [("spec", "spec"), ("status", "status")] {
        let _ = writeln!(
            out,
            "### {title}\n\n| field | type | default | allowed | |\n|---|---|---|---|---|"
        );
        rows(&mut out, "", &schema["properties"][part]);
        out.push('\n');
    }
    out.push_str("### Rules\n\nThe API server refuses what breaks one, also through `kubectl scale`.\n\n| field | message |\n|---|---|\n");
    rules(&mut out, "", schema);
    let _ = write!(out, "\n<!-- Made from crds/src: {COMMAND} -->\n");
    Ok(out)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace(['\n', '\r'], " ").replace('|', "\\|")
}

/// Schemas of Kubernetes' own types are told by their name in its documentation, not field by field.
fn is_foreign(path: &str) -> bool {
    const FOREIGN: [&str; 7] = [
        "imagePullSecrets",
        "resources",
        "topologySpreadConstraints",
        "tolerations",
        "networkPolicy.clients",
        "nodeSelector",
        "conditions",
    ];
    FOREIGN.contains(&path)
}

fn rows(out: &mut String, path: &str, schema: &Value) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (name, field) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let nested = match field["type"].as_str() {
            Some("array") => &field["items"],
            _ => field,
        };
        let has_rows = nested["properties"].is_object() && !is_foreign(&path);
        let default = match &field["default"] {
            Value::Null => String::new(),
            // Its fields' defaults stand in their own rows.
            Value::Object(_) if has_rows => String::new(),
            default => format!("`{}`", text(&Value::String(default.to_string()))),
        };
        let _ = writeln!(
            out,
            "| `{path}` | {} | {default} | {} | {} |",
            kind(field),
            allowed(field),
            text(&field["description"])
        );
        if has_rows {
            rows(out, &path, nested);
        }
    }
}

pub(crate) fn kind(field: &Value) -> String {
    match field["type"].as_str() {
        Some("array") => format!("list of {}", kind(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => "map of strings".into(),
        Some(kind) => kind.into(),
        // A type or null, in values of charts.
        None => match field["type"][0].as_str() {
            Some(kind) => kind.into(),
            None => "any".into(),
        },
    }
}

pub(crate) fn allowed(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        let names: Vec<_> = values.iter().map(|v| format!("`{}`", text(v))).collect();
        return names.join(", ");
    }
    match (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        (Some(low), Some(high)) => format!("{low} to {high}"),
        (Some(low), None) => format!("from {low}"),
        (None, Some(high)) => format!("to {high}"),
        (None, None) => match field["maxLength"].as_u64().or(field["maxItems"].as_u64()) {
            Some(most) if field["type"] == "array" => format!("at most {most}"),
            Some(most) => format!("at most {most} characters"),
            None => String::new(),
        },
    }
}

fn rules(out: &mut String, path: &str, schema: &Value) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = match rule["fieldPath"].as_str() {
            Some(field) => format!("{path}{field}"),
            None if path.is_empty() => "metadata.name".into(),
            None => path.to_owned(),
        };
        let _ = writeln!(out, "| `{field}` | {} |", text(&rule["message"]));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        // Kubernetes' own types bring none.
        if name != "metadata" {
            rules(out, &path, field);
        }
    }
}
