//! A chart's JSON schema from its type.
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

/// Draft 7, which every Helm reads, in one piece, with `defaults` where they belong.
///
/// # Errors
/// When the schema is not JSON: a fault of this crate.
pub fn of<T: JsonSchema>(defaults: &Value) -> Result<Value, serde_json::Error> {
    let settings = SchemaSettings::draft07().with(|s| s.inline_subschemas = true).for_deserialize();
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = serde_json::to_value(schema)?;
    plain(&mut schema);
    set_defaults(&mut schema, defaults);
    Ok(schema)
}

/// Without what only the Kubernetes API reads, and texts of one line.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.retain(|name, _| !name.starts_with("x-kubernetes-") && name != "format");
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

/// Types that Kubernetes documents: their fields are not ours to explain, and a newer Kubernetes may
/// know more of them.
pub fn is_foreign(name: &str) -> bool {
    const FOREIGN: [&str; 8] = [
        "affinity",
        "clients",
        "imagePullSecrets",
        "metricsFrom",
        "nodeSelector",
        "resources",
        "tolerations",
        "topologySpreadConstraints",
    ];
    FOREIGN.contains(&name)
}

fn set_defaults(schema: &mut Value, defaults: &Value) {
    let Some(properties) = schema["properties"].as_object_mut() else { return };
    for (name, field) in properties {
        let default = &defaults[name.as_str()];
        let said = field["description"].clone();
        if let Some(field) = field.as_object_mut() {
            field.remove("default");
        }
        if is_foreign(name) {
            without_texts(field);
            field["description"] = said;
        } else if field["properties"].is_object() {
            set_defaults(field, default);
            if name != "global" {
                field["additionalProperties"] = json!(false);
            }
            continue;
        }
        field["default"] = match default {
            // What serde leaves out is empty, or nothing.
            Value::Null if is(field, "array") => json!([]),
            Value::Null if is(field, "object") => json!({}),
            default => default.clone(),
        };
    }
}

/// Whether a field may only be of that type.
fn is(field: &Value, kind: &str) -> bool {
    field["type"] == kind
}

fn without_texts(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            // A property may have that name as well.
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.remove("default");
            map.values_mut().for_each(without_texts);
        }
        Value::Array(items) => items.iter_mut().for_each(without_texts),
        _ => {}
    }
}
