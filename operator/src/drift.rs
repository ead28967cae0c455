//! Whether an object is as it was built. The API server fills in what was left out, so the built one
//! has to be contained in the observed one. An operator at rest writes nothing.
use serde_json::Value;

use crate::quantity;

/// `desired` is contained in `observed`. Lists are as long and in the same order; empty is absent.
pub fn covers(observed: &Value, desired: &Value) -> bool {
    match (observed, desired) {
        (_, Value::Null) => true,
        (Value::Object(o), Value::Object(d)) => d.iter().all(|(name, desired)| match o.get(name) {
            Some(observed) => covers(observed, desired),
            None => is_empty(desired),
        }),
        (Value::Array(o), Value::Array(d)) => {
            o.len() == d.len() && o.iter().zip(d).all(|(o, d)| covers(o, d))
        }
        (Value::String(o), Value::String(d)) => quantity::same(o, d),
        (o, d) => o == d,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_fills_in_is_no_drift_and_what_a_hand_changes_is() {
        let built =
            json!({"spec": {"replicas": 3, "ports": [{"port": 1}], "empty": {}, "size": "1024Mi"}});
        let stored = json!({"spec": {
            "replicas": 3, "ports": [{"port": 1, "protocol": "TCP"}], "size": "1Gi", "more": true
        }});
        assert!(covers(&stored, &built));
        for (path, value) in [("replicas", json!(4)), ("ports", json!([])), ("size", json!("2Gi"))]
        {
            let mut changed = stored.clone();
            changed["spec"][path] = value;
            assert!(!covers(&changed, &built), "{path}");
        }
        let mut gone = stored;
        gone["spec"].as_object_mut().unwrap().remove("replicas");
        assert!(!covers(&gone, &built));
    }
}
