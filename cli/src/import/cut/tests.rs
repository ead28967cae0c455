use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn read(line: u64, text: &str) -> Result<Option<InputEvent>, LineError> {
    read_line(line, text.as_bytes(), "")
}

fn cut_all(lines: &[String]) -> Vec<Vec<Cut>> {
    let mut cutter = Cutter::default();
    let mut windows = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        if let Some(event) = read(i as u64 + 1, line).unwrap() {
            windows.extend(cutter.push(event));
        }
    }
    windows.extend(cutter.finish());
    windows
}

#[test]
fn a_line_needs_only_stream_and_type() {
    let event = read(1, r#"{"stream":"a-1","type":"T"}"#).unwrap().unwrap();
    assert_eq!(event.stream, "a-1");
    let expected = NewEvent::new("T", "{}").id(event.event.get_id());
    assert_eq!(event.event, expected);
    assert!(read(1, "  \r").unwrap().is_none());
}

#[test]
fn a_line_may_say_everything() {
    let id = Uuid::from_u128(9);
    let text = format!(
        r#"{{"stream":"a-1","type":"T","id":"{id}","schema_version":3,"content_type":"text/plain",
            "data_base64":"aGk=","metadata":{{"by": 1.50}}}}"#
    )
    .replace('\n', " ");
    let event = read(1, &text).unwrap().unwrap().event;
    let expected = NewEvent::new("T", "hi")
        .id(id)
        .schema_version(3)
        .content_type("text/plain")
        // As it was written, to the last digit.
        .metadata(r#"{"by": 1.50}"#);
    assert_eq!(event, expected);
}

#[test]
fn what_read_shows_can_be_imported() {
    let shown = r#"{"stream":"a-1","revision":1,"position":5,"recorded_at_ms":7,"type":"T","id":"00000000-0000-0000-0000-000000000001","schema_version":0,"content_type":"application/json","data":{}}"#;
    let event = read(1, shown).unwrap().unwrap();
    assert_eq!(event.event.get_id(), Uuid::from_u128(1));
}

#[test]
fn a_bad_line_is_named_with_its_fault() {
    for (text, fault) in [
        ("{", "EOF"),
        (r#"{"type":"T"}"#, "stream"),
        (r#"{"stream":"a"}"#, "type"),
        (r#"{"stream":"a","type":"T","typ":1}"#, "typ"),
        (r#"{"stream":"a","type":"T","id":"x"}"#, "UUID"),
        (r#"{"stream":"a","type":"T","data":{},"data_base64":""}"#, "both"),
        (r#"{"stream":"a","type":"T","data_base64":"!"}"#, "base64"),
    ] {
        let error = read(17, text).unwrap_err();
        assert_eq!(error.line, 17);
        assert!(error.fault.contains(fault), "{error}");
    }
    let error = read_line(2, b"{\"stream\":\"\xff\"", "").unwrap_err();
    assert!(error.to_string().starts_with("line 2: "), "{error}");
}

#[test]
fn derived_ids_depend_on_line_number_and_source() {
    let text = br#"{"stream":"a","type":"T"}"#;
    let id = |line, source| {
        let event = read_line(line, text, source).unwrap().unwrap();
        event.event.get_id()
    };
    assert_eq!(id(1, ""), id(1, ""));
    assert_ne!(id(1, ""), id(2, ""));
    assert_ne!(id(1, ""), id(1, "other"));
    // Once written, these must not change: an input imported by an older version would double.
    assert_eq!(id(1, "").to_string(), "382625e4-9b01-5f2d-b1f8-e31f5177ccfa");
    // How the line ends does not matter.
    let event = read_line(1, b"{\"stream\":\"a\",\"type\":\"T\"}\r\n", "");
    assert_eq!(event.unwrap().unwrap().event.get_id(), id(1, ""));
}

#[test]
fn the_events_of_a_stream_within_a_window_are_one_append() {
    let lines: Vec<_> =
        ["a", "b", "a", "b", "a"].map(|s| format!(r#"{{"stream":"{s}","type":"T"}}"#)).into();
    let windows = cut_all(&lines);
    let told: Vec<_> = windows[0].iter().map(|c| (c.stream.as_str(), c.lines.clone())).collect();
    assert_eq!(told, [("a", vec![1, 3, 5]), ("b", vec![2, 4])]);
}

#[test]
fn an_id_that_comes_again_begins_an_append() {
    let line = r#"{"stream":"a","type":"T","id":"00000000-0000-0000-0000-000000000001"}"#;
    let windows = cut_all(&[line.to_string(), line.to_string()]);
    let told: Vec<_> = windows[0].iter().map(|c| c.lines.clone()).collect();
    assert_eq!(told, [[1], [2]]);
}

#[test]
fn appends_and_windows_are_bounded() {
    let line = r#"{"stream":"a","type":"T"}"#.to_string();
    let windows = cut_all(&vec![line; WINDOW_LINES + 1]);
    assert_eq!(windows.len(), 2);
    assert!(windows[0].iter().all(|c| c.events.len() <= APPEND_EVENTS_MAX));
    let large = format!(r#"{{"stream":"a","type":"T","data":"{}"}}"#, "x".repeat(600_000));
    let windows = cut_all(&vec![large; 15]);
    assert_eq!(windows.len(), 2);
    assert!(windows.iter().flatten().all(|c| c.events.len() == 1));
}

proptest! {
    #[test]
    fn every_event_is_cut_once_in_the_order_of_its_stream(
        streams in prop::collection::vec(0u8..5, 0..60),
        ids in prop::collection::vec(prop::option::of(0u128..8), 60),
    ) {
        let lines: Vec<_> = (streams.iter().zip(&ids)).map(|(stream, id)| {
            let id = id.map_or(String::new(), |id| format!(r#","id":"{}""#, Uuid::from_u128(id)));
            format!(r#"{{"stream":"s-{stream}","type":"T"{id}}}"#)
        }).collect();
        let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (i, stream) in streams.iter().enumerate() {
            expected.entry(format!("s-{stream}")).or_default().push(i as u64 + 1);
        }
        let mut got: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for cut in cut_all(&lines).into_iter().flatten() {
            prop_assert_eq!(cut.events.len(), cut.lines.len());
            let unique: HashSet<_> = cut.events.iter().map(NewEvent::get_id).collect();
            prop_assert_eq!(unique.len(), cut.events.len());
            got.entry(cut.stream).or_default().extend(cut.lines);
        }
        prop_assert_eq!(got, expected);
    }

    #[test]
    fn any_line_gives_an_event_or_an_error(text in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = read_line(1, &text, "");
    }
}
