//! The merge patch (RFC 7386) between two JSON documents. Pure.
use serde_json::{Map, Value};

/// What has to be said to make `after` of `before`; `None`: nothing. Lists are replaced as a whole, and
/// what is gone is said as null, at whatever depth: a patch that leaves it out would leave it there.
pub fn merge(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(b), Value::Object(a)) = (before, after) else {
        return (before != after).then(|| after.clone());
    };
    let mut patch = Map::new();
    for name in b.keys().filter(|name| !a.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, after) in a {
        let said = match b.get(name) {
            Some(before) => merge(before, after),
            None => Some(after.clone()),
        };
        patch.extend(said.map(|s| (name.clone(), s)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(mut to: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        if !to.is_object() {
            to = json!({});
        }
        for (name, value) in patch {
            let there = to.as_object_mut().unwrap();
            match value {
                Value::Null => _ = there.remove(name),
                value => {
                    let before = there.get(name).cloned().unwrap_or(Value::Null);
                    there.insert(name.clone(), applied(before, value));
                }
            }
        }
        to
    }

    #[test]
    fn a_patch_makes_the_one_of_the_other_and_says_no_more_than_it_must() {
        let before =
            json!({"a": 1, "gone": {"x": 1}, "deep": {"stays": 1, "pod": "c-4", "list": [1]}});
        let after = json!({"a": 1, "new": {"y": 2}, "deep": {"stays": 1, "list": [1, 2]}});
        let patch = merge(&before, &after).unwrap();
        assert_eq!(
            patch,
            json!({"gone": null, "new": {"y": 2}, "deep": {"pod": null, "list": [1, 2]}})
        );
        assert_eq!(applied(before.clone(), &patch), after);
        assert_eq!(merge(&after, &after), None);
        assert_eq!(applied(json!({}), &merge(&json!({}), &after).unwrap()), after);
        assert_eq!(merge(&json!({"a": {"b": 1}}), &json!({"a": 1})), Some(json!({"a": 1})));
    }
}
