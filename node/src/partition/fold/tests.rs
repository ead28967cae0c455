use super::*;
use crate::partition::json::tests::{any_json, naive_merge_patch};
use proptest::prelude::*;
use serde_json::Value;

/// What a naive reader of all events makes of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct NaiveState {
    pub state: Vec<u8>,
    pub content_type: String,
    pub error: Option<u64>,
    pub good_revision: u64,
}

/// Folds from the start, without a cache or a bound that is only estimated.
pub(crate) fn naive_fold(
    reducer: Reducer,
    events: &[(String, Bytes)],
    state_bytes_max: usize,
) -> NaiveState {
    let mut s = NaiveState::default();
    let mut value = Value::Null;
    for (revision, (content_type, data)) in events.iter().enumerate() {
        let next = match reducer {
            Reducer::Last => Some((data.to_vec(), content_type.as_str())),
            Reducer::MergePatch if s.error.is_some() => None,
            Reducer::MergePatch => serde_json::from_slice(data)
                .ok()
                .filter(|_| ["", JSON, "a/b+json"].contains(&content_type.as_str()))
                .map(|patch| {
                    value = naive_merge_patch(value.take(), &patch);
                    (value.to_string().into_bytes(), JSON)
                }),
        };
        match next.filter(|(state, _)| state.len() <= state_bytes_max) {
            Some((state, content_type)) => {
                s.state = state;
                s.content_type = if content_type.is_empty() { JSON } else { content_type }.into();
                s.error = None;
                s.good_revision = revision as u64;
            }
            None => s.error = s.error.or(Some(revision as u64)),
        }
    }
    s
}

fn content_type() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => Just(String::new()),
        2 => Just(JSON.to_owned()),
        1 => Just("a/b+json".to_owned()),
        1 => Just("text/plain".to_owned()),
    ]
}

fn event() -> impl Strategy<Value = (String, Bytes)> {
    let data = prop_oneof![
        20 => any_json().prop_map(|v| v.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..10),
    ];
    (content_type(), data.prop_map(Bytes::from))
}

fn reducer() -> impl Strategy<Value = Reducer> {
    prop_oneof![Just(Reducer::Last), Just(Reducer::MergePatch)]
}

fn number(reducer: Reducer) -> u32 {
    if reducer == Reducer::Last { 1 } else { 2 }
}

fn as_naive(record: &StreamRecord) -> NaiveState {
    let failed = !record.error_message.is_empty();
    NaiveState {
        state: record.state.to_vec(),
        content_type: record.content_type.clone(),
        error: failed.then_some(record.error_revision),
        good_revision: if failed { record.good_revision } else { record.revision },
    }
}

proptest! {
    #[test]
    fn a_fold_is_the_naive_one_however_often_it_is_saved_and_loaded(
        reducer in reducer(),
        events in prop::collection::vec(event(), 1..12),
        saved in prop::collection::vec(0u8..3, 12),
        state_bytes_max in prop_oneof![Just(usize::MAX >> 1), 0usize..200],
    ) {
        let mut record = StreamRecord { reducer: number(reducer), ..Default::default() };
        let mut fold = Fold::of(&record).unwrap();
        for (i, (content_type, data)) in events.iter().enumerate() {
            let revision = i as u64;
            fold.add(&Folded { revision, content_type, data }, state_bytes_max);
            record.revision = revision;
            if saved[i] == 0 {
                continue;
            }
            fold.save(&mut record).unwrap();
            prop_assert_eq!(fold.bytes_max(), record.state.len());
            prop_assert_eq!(as_naive(&record), naive_fold(reducer, &events[..=i], state_bytes_max));
            match saved[i] {
                1 => fold = Fold::of(&record).unwrap(),
                _ => fold.detach(&mut record),
            }
        }
        fold.save(&mut record).unwrap();
        prop_assert_eq!(as_naive(&record), naive_fold(reducer, &events, state_bytes_max));
    }

    #[test]
    fn a_state_never_grows_by_more_than_its_bound(base in any_json(), patch in any_json()) {
        let mut value = Json::parse(base.to_string().as_bytes()).unwrap();
        let before = value.bytes().unwrap();
        let patch = patch.to_string();
        value.merge(Json::parse(patch.as_bytes()).unwrap());
        prop_assert!(value.bytes().unwrap() <= before + growth_max(patch.len()));
    }
}

#[test]
fn numbers_grow_within_the_bound() {
    for text in [
        "1e9",
        "-0",
        "0e1",
        "1e15",
        "1e16",
        "9e22",
        "-1e-7",
        "5e-324",
        "18446744073709551616",
        "[0e1,1e9]",
    ] {
        let value = Json::parse(text.as_bytes()).unwrap();
        assert!(value.bytes().unwrap() <= growth_max(text.len()), "{text}");
    }
}

#[test]
fn an_unknown_reducer_is_refused() {
    assert!(Reducer::from_number(0).is_err());
    assert!(Reducer::from_number(3).unwrap_err().contains("newer version"));
}

#[test]
fn content_types_that_say_json() {
    for yes in ["", "application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"]
    {
        assert!(is_json(yes), "{yes}");
    }
    for no in [
        "text/plain",
        "application/jsonx",
        "+json",
        "json",
        "application/octet-stream",
        "text/é+jso",
    ] {
        assert!(!is_json(no), "{no}");
    }
}
