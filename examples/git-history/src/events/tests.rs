use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// RFC 7386, written from its pseudo-code: what a cluster folds by.
pub fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(object) = target.as_object_mut() else {
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            object.remove(key);
        } else {
            merge_patch(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

pub fn fold(events: impl IntoIterator<Item = PathEvent>) -> BTreeMap<String, Value> {
    let mut states = BTreeMap::new();
    for event in events {
        merge_patch(states.entry(event.stream).or_insert(Value::Null), &event.data);
    }
    states
}

fn commit(id: char) -> Commit {
    Commit {
        id: id.to_string().repeat(40),
        author_name: "A. Author".into(),
        author_email: "a@example.org".into(),
        time: "2026-01-02T03:04:05+01:00".into(),
        subject: "Why".into(),
    }
}

fn change(kind: Kind, path: &[u8], mode: &str) -> Change {
    Change { kind, path: path.to_vec(), mode: mode.into(), blob: "b".repeat(40) }
}

#[test]
fn a_plain_path_is_its_own_name() {
    assert_eq!(stream(b"src/main.rs"), "file-src/main.rs");
    assert_eq!(stream("docs/\"ä\" –.md".as_bytes()), "file-docs/\"ä\" –.md");
}

#[test]
fn a_path_that_cannot_be_a_name_gets_its_hash() {
    let long = vec![b'x'; 1020];
    for path in [
        &b"a\nb"[..],
        b"a\tb",
        b"\x7f",
        "c1 \u{85}".as_bytes(),
        b"\xff\xfe",
        &long,
        b"sha256:00",
        b"",
    ] {
        let name = stream(path);
        assert!(name.starts_with("file-sha256:"), "{name}");
        assert_eq!(name.len(), "file-sha256:".len() + 64);
    }
    assert_eq!(
        stream(b"a\nb"),
        // printf 'a\nb' | sha256sum
        "file-sha256:7e18f737311b2dc3b2f269dd78396b0351f14fb66efa879f768cb23181883c78"
    );
    assert_eq!(stream(&[b'x'; 1019]).len(), 1024);
}

#[test]
fn a_rename_tells_both_paths() {
    let from = b"old".to_vec();
    let events = events(&commit('1'), &change(Kind::Renamed { from }, b"new", "100755"));
    let told: Vec<_> = events.iter().map(|e| (e.stream.as_str(), e.event_type)).collect();
    assert_eq!(told, [("file-old", "Deleted"), ("file-new", "Renamed")]);
    assert_eq!(events[0].data["renamed_to"], "new");
    assert_eq!(events[1].data["renamed_from"], "old");
    assert_ne!(events[0].id, events[1].id);
}

#[test]
fn ids_are_the_same_each_time_and_differ_by_commit_and_path() {
    let id = |c, p: &[u8]| events(&commit(c), &change(Kind::Added, p, "100644"))[0].id;
    assert_eq!(id('1', b"a"), id('1', b"a"));
    assert_ne!(id('1', b"a"), id('2', b"a"));
    assert_ne!(id('1', b"a"), id('1', b"b"));
    // Once written, these must not change: a repository loaded by an older version would double.
    assert_eq!(id('1', b"a").to_string(), "4191f4e4-42cb-5dac-9707-909b428d5dd9");
}

#[test]
fn a_deleted_path_that_comes_back_lives_again() {
    let history = [
        events(&commit('1'), &change(Kind::Added, b"a", "100644")),
        events(&commit('2'), &change(Kind::Renamed { from: b"a".to_vec() }, b"b", "100644")),
        events(&commit('3'), &change(Kind::Added, b"a", "120000")),
    ];
    let states = fold(history.into_iter().flatten());
    let a = read_state(states["file-a"].to_string().as_bytes()).unwrap();
    assert_eq!(a.leaf, Some(("120000".into(), "b".repeat(40))));
    assert!(states["file-a"].get("renamed_to").is_none());
    assert!(states["file-b"].get("renamed_from").is_some());
}

#[test]
fn texts_are_cut_so_that_events_stay_small() {
    let mut c = commit('1');
    c.subject = "é".repeat(5_000_000);
    let event = &events(&c, &change(Kind::Added, b"a", "100644"))[0];
    assert!(event.data.to_string().len() < 2000);
}

#[test]
fn a_state_that_is_none_says_why() {
    for (data, why) in [
        (&b"[1"[..], "no JSON"),
        (b"{}", "neither path"),
        (br#"{"path":"a"}"#, "deleted"),
        (br#"{"path":"a","deleted":false,"mode":"1"}"#, "blob"),
        (br#"{"path_base64":"!","deleted":true}"#, "base64"),
    ] {
        let error = read_state(data).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

proptest! {
    #[test]
    fn every_path_has_a_name_of_its_own_and_comes_back_from_its_state(
        a in prop::collection::vec(1u8.., 1..1200), b in prop::collection::vec(1u8.., 1..4),
    ) {
        prop_assert_eq!(a == b, stream(&a) == stream(&b));
        prop_assert!(stream(&a).len() <= STREAM_MAX_BYTES);
        prop_assert!(!stream(&a).chars().any(char::is_control));
        let states = fold(events(&commit('1'), &change(Kind::Added, &a, "100644")));
        let state = read_state(states[&stream(&a)].to_string().as_bytes()).unwrap();
        prop_assert_eq!(state.path, a);
        prop_assert_eq!(state.leaf, Some(("100644".into(), "b".repeat(40))));
    }
}
