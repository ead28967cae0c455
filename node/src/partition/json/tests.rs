use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The pseudo-code of RFC 7386, section 2, over another type of values.
pub(crate) fn naive_merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut result = match target {
        Value::Object(o) => o,
        _ => serde_json::Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            result.remove(name);
        } else {
            let old = result.remove(name).unwrap_or(Value::Null);
            result.insert(name.clone(), naive_merge_patch(old, value));
        }
    }
    Value::Object(result)
}

pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        2 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => "[ab\"\\\\\u{0}-\u{1f}\u{e9}\u{1f600}]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            4 => prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn of(value: &Value) -> Json {
    Json::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn the_examples_of_rfc_7386_hold() {
    let examples = [
        (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
        (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
        (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
        (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
        (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
        (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
        (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
        (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
        (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
        (r#"{"a":"foo"}"#, r#"null"#, r#"null"#),
        (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
        (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
        (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
    ];
    for (target, patch, result) in examples {
        let mut value = Json::parse(target.as_bytes()).unwrap();
        value.merge(Json::parse(patch.as_bytes()).unwrap());
        assert_eq!(value.to_bytes().unwrap(), result.as_bytes(), "{target} + {patch}");
    }
}

proptest! {
    #[test]
    fn merging_is_what_the_rfc_says(target in any_json(), patch in any_json()) {
        let mut value = of(&target);
        value.merge(of(&patch));
        prop_assert_eq!(value, of(&naive_merge_patch(target, &patch)));
    }

    #[test]
    fn a_value_printed_and_read_again_is_the_same_and_keys_are_sorted(value in any_json()) {
        let value = of(&value);
        let bytes = value.to_bytes().unwrap();
        prop_assert_eq!(value.bytes().unwrap(), bytes.len());
        let again = Json::parse(&bytes).unwrap();
        prop_assert_eq!(&again, &value);
        prop_assert_eq!(again.to_bytes().unwrap(), bytes);
    }

    #[test]
    fn any_number_survives_printing_exactly(bits in any::<u64>()) {
        let number = f64::from_bits(bits);
        prop_assume!(number.is_finite());
        let text = format!("{number:e}");
        let Json::Float(read) = Json::parse(text.as_bytes()).unwrap() else { return Ok(()) };
        prop_assert_eq!(read.to_bits(), bits);
    }
}

#[test]
fn keys_that_serde_json_takes_for_itself_are_keys_here() {
    for text in
        [r#"{"$serde_json::private::RawValue":"[1,2"}"#, r#"{"$serde_json::private::Number":"5"}"#]
    {
        assert_eq!(Json::parse(text.as_bytes()).unwrap().to_bytes().unwrap(), text.as_bytes());
    }
}

#[test]
fn of_a_key_that_stands_twice_the_last_counts() {
    let value = Json::parse(br#"{"b":1,"a":2,"b":3}"#).unwrap();
    assert_eq!(value, of(&json!({"a": 2, "b": 3})));
    assert_eq!(value.to_bytes().unwrap(), br#"{"a":2,"b":3}"#);
}

#[test]
fn what_is_no_json_or_nested_without_end_is_an_error() {
    for bad in ["", "{", "{}x", "nul", "1e400", "\"\u{1}\"", &"[".repeat(100_000)] {
        assert!(Json::parse(bad.as_bytes()).is_err(), "{bad:.20}");
    }
    assert!(Json::parse(b"\"\xff\"").is_err());
}
