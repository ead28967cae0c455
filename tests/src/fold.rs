//! The reducers once more, written from the documents and not from the product.
use bytes::Bytes;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reducer {
    MergePatch,
    Last,
}

/// A running fold.
#[derive(Clone, Debug)]
pub enum Fold {
    MergePatch(Value),
    Last(Bytes),
}

impl Fold {
    pub fn new(reducer: Reducer) -> Self {
        match reducer {
            Reducer::MergePatch => Fold::MergePatch(Value::Null),
            Reducer::Last => Fold::Last(Bytes::new()),
        }
    }

    /// Folds one event's data in.
    ///
    /// # Panics
    /// When data for merge-patch is not JSON: the load writes none such.
    pub fn push(&mut self, data: &Bytes) {
        match self {
            Fold::MergePatch(state) => {
                let patch = serde_json::from_slice(data).expect("the load writes JSON");
                merge_patch(state, &patch);
            }
            Fold::Last(state) => *state = data.clone(),
        }
    }

    /// Whether a state that the product gave is this one: as JSON for merge-patch, as bytes for last.
    pub fn equals(&self, data: &Bytes) -> bool {
        match self {
            Fold::MergePatch(state) => {
                serde_json::from_slice::<Value>(data).is_ok_and(|v| v == *state)
            }
            Fold::Last(state) => state == data,
        }
    }

    pub fn to_bytes(&self) -> Bytes {
        match self {
            Fold::MergePatch(state) => serde_json::to_vec(state).expect("a value").into(),
            Fold::Last(state) => state.clone(),
        }
    }
}

/// RFC 7386, word for word.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge_patch(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merge_patch_does_what_the_rfc_lists() {
        // Appendix A of RFC 7386.
        let table = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (mut target, patch, result) in table {
            merge_patch(&mut target, &patch);
            assert_eq!(target, result);
        }
    }
}
