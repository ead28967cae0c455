use super::*;
use crate::api::errors::Reason;
use crate::partition::content::hash_of_event;
use proptest::prelude::*;
use prost::Message;
use ringfold_proto::internal;
use ringfold_proto::internal::command::Command;

fn event(n: u128) -> v1::NewEvent {
    v1::NewEvent {
        id: Bytes::copy_from_slice(&n.to_be_bytes()),
        r#type: "Renamed".into(),
        data: Bytes::from_static(b"{\"name\":\"a\"}"),
        ..Default::default()
    }
}

fn request(events: Vec<v1::NewEvent>) -> v1::AppendRequest {
    v1::AppendRequest { stream: "customer-42".into(), events, ..Default::default() }
}

/// Reason, named field and limit of a refusal.
fn refusal(r: &v1::AppendRequest) -> Option<(Reason, String, usize)> {
    let e = append(r, &Limits::default()).err()?;
    let reason = e.reason().unwrap();
    Some(match e {
        ApiError::InvalidStreamName { field, limit, .. } => (reason, field.into(), limit),
        ApiError::InvalidEvent { field, limit, .. }
        | ApiError::EventTooLarge { field, limit, .. }
        | ApiError::AppendTooLarge { field, limit, .. } => (reason, field.into(), limit),
        ApiError::InvalidJson { field, .. } | ApiError::InvalidArgument { field, .. } => {
            (reason, field.into(), 0)
        }
        ApiError::DuplicateEventId { id } => (reason, id.to_string(), 0),
        e => panic!("no refusal of a request: {e}"),
    })
}

#[test]
fn every_bad_append_names_its_field_and_its_limit() {
    type Change = fn(&mut v1::AppendRequest);
    let cases: &[(Change, Reason, &str, usize)] = &[
        (|r| r.stream.clear(), Reason::InvalidStreamName, "stream", 1_024),
        (|r| r.stream = "x".repeat(1_025), Reason::InvalidStreamName, "stream", 1_024),
        (|r| r.stream = "a\n".into(), Reason::InvalidStreamName, "stream", 1_024),
        (|r| r.stream = "a\0".into(), Reason::InvalidStreamName, "stream", 1_024),
        (|r| r.stream = "ä\u{85}".into(), Reason::InvalidStreamName, "stream", 1_024),
        (|r| r.events.clear(), Reason::InvalidEvent, "events", 1_024),
        (|r| r.events = (0..1_025).map(event).collect(), Reason::InvalidEvent, "events", 1_024),
        (|r| r.events[1].id = Bytes::new(), Reason::InvalidEvent, "events[1].id", 16),
        (|r| r.events[1].id = vec![0; 17].into(), Reason::InvalidEvent, "events[1].id", 16),
        (|r| r.events[1].r#type.clear(), Reason::InvalidEvent, "events[1].type", 256),
        (|r| r.events[1].r#type = "x".repeat(257), Reason::InvalidEvent, "events[1].type", 256),
        (|r| r.events[1].r#type = "a\tb".into(), Reason::InvalidEvent, "events[1].type", 256),
        (
            |r| r.events[1].content_type = "x".repeat(257),
            Reason::InvalidEvent,
            "events[1].content_type",
            256,
        ),
        (|r| r.events[1].data = Bytes::new(), Reason::InvalidJson, "events[1].data", 0),
        (
            |r| {
                r.events[0].data = vec![b' '; (1 << 20) - 1].into();
                r.events[0].metadata = Bytes::from_static(b"12");
            },
            Reason::EventTooLarge,
            "events[0]",
            1 << 20,
        ),
        (
            |r| {
                r.events = (0..5).map(event).collect();
                for e in &mut r.events {
                    e.content_type = "text/plain".into();
                    e.data = vec![0; 1 << 20].into();
                }
            },
            Reason::AppendTooLarge,
            "events",
            4 << 20,
        ),
        (
            |r| r.events[1].id = r.events[0].id.clone(),
            Reason::DuplicateEventId,
            "00000000-0000-0000-0000-000000000001",
            0,
        ),
        (|r| r.after_position = 1 << 63, Reason::InvalidArgument, "after_position", 0),
    ];
    let good = request(vec![event(1), event(2)]);
    assert_eq!(refusal(&good), None);
    for (change, reason, field, limit) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(refusal(&bad), Some((*reason, (*field).to_string(), *limit)));
    }
}

#[test]
fn what_is_just_within_the_limits_is_taken() {
    let mut good = request((0..1_024).map(event).collect());
    good.stream = "é".repeat(512);
    good.events[0].r#type = "x".repeat(256);
    good.after_position = (1 << 63) - 1;
    assert_eq!(refusal(&good), None);
    let mut full = request((0..4).map(event).collect());
    for e in &mut full.events {
        e.content_type = "application/octet-stream".into();
        e.data = vec![0; 1 << 20].into();
    }
    assert_eq!(refusal(&full), None);
    assert!(full.encoded_len() < Limits::default().message_bytes());
}

#[test]
fn json_is_what_a_fold_can_read() {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    for good in ["{}", "null", " 1 ", "\"\\u00e9\"", "[1.5e3,{\"a\":[true,false]}]", &deep(127)] {
        assert!(check_json(good.as_bytes()).is_ok(), "{good}");
    }
    let bad = ["", "{", "{a:1}", "1 2", "[1,]", "\"\\ud800\"", "1e999", "{\"a\":1}x", &deep(128)];
    for bad in bad {
        assert!(check_json(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(check_json(b"\"\xff\"").is_err());
    assert!(check_json(b"{\"\xff\":1}").is_err());
}

#[test]
fn other_content_types_hold_any_bytes() {
    let mut r = request(vec![event(1)]);
    r.events[0].data = Bytes::from_static(b"\xff");
    for (content_type, fine) in [
        ("", false),
        ("application/json", false),
        ("Application/JSON; charset=utf-8", false),
        ("application/vnd.a+json", false),
        ("text/plain", true),
        ("application/jsonl", true),
    ] {
        r.events[0].content_type = content_type.into();
        assert_eq!(refusal(&r).is_none(), fine, "{content_type}");
    }
}

#[test]
fn a_position_must_be_of_the_partition_that_waits_for_it() {
    assert!(min_position(0, 5).is_ok());
    assert!(min_position(7 << 10 | 5, 5).is_ok());
    assert_eq!(min_position(7 << 10 | 4, 5).unwrap_err().reason(), Some(Reason::InvalidArgument));
}

#[test]
fn consistency_is_linearizable_unless_said_and_never_guessed() {
    assert_eq!(consistency(0).unwrap(), v1::Consistency::Linearizable);
    assert_eq!(consistency(3).unwrap(), v1::Consistency::Stale);
    assert_eq!(consistency(4).unwrap_err().reason(), Some(Reason::InvalidArgument));
}

/// Every client computes it: it must never change.
#[test]
fn the_partition_of_a_stream_is_fixed() {
    assert_eq!(partition_of("customer-42", 1), 0);
    let hash = stream_hash("customer-42");
    assert_eq!(hash, 0xf40925ac7f7b5e61, "fixed by the format");
    for bits in 1..=10 {
        assert_eq!(u64::from(partition_of("customer-42", 1 << bits)), hash >> (64 - bits));
    }
}

fn any_event() -> impl Strategy<Value = v1::NewEvent> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let content_type = prop_oneof![
        Just(String::new()),
        Just(JSON.to_string()),
        Just("text/plain".to_string()),
        "[a-z/+]{1,200}",
    ];
    (prop::array::uniform16(any::<u8>()), ".{0,40}", any::<u32>(), content_type, bytes(), bytes())
        .prop_map(|(id, r#type, schema_version, content_type, data, metadata)| v1::NewEvent {
            id: Bytes::copy_from_slice(&id),
            r#type,
            schema_version,
            content_type,
            data,
            metadata,
        })
}

fn any_expected() -> impl Strategy<Value = Option<v1::ExpectedRevision>> {
    use v1::expected_revision as e;
    prop_oneof![
        Just(None),
        Just(Some(v1::ExpectedRevision { expected: None })),
        any::<u64>().prop_map(|r| Some(v1::ExpectedRevision {
            expected: Some(ExpectedRevision::Exact(r))
        })),
        Just(Some(v1::ExpectedRevision {
            expected: Some(ExpectedRevision::NoStream(e::NoStream {}))
        })),
        Just(Some(v1::ExpectedRevision {
            expected: Some(ExpectedRevision::StreamExists(e::StreamExists {}))
        })),
        Just(Some(v1::ExpectedRevision { expected: Some(ExpectedRevision::Any(e::Any {})) })),
    ]
}

proptest! {
    /// The hand-written encoder writes what the generated one would.
    #[test]
    fn an_encoded_append_is_the_command(
        stream in ".{1,60}",
        events in prop::collection::vec(any_event(), 1..6),
        expected in any_expected(),
        chained in any::<bool>(),
    ) {
        let request = v1::AppendRequest { stream, events, expected, after_position: 9 };
        let (kind, exact) = super::expected(&request);
        let events = request.events.iter().map(|e| {
            let mut event = internal::Event {
                id: e.id.clone(),
                r#type: e.r#type.clone(),
                schema_version: e.schema_version,
                content_type: stored_content_type(&e.content_type).to_string(),
                data: e.data.clone(),
                metadata: e.metadata.clone(),
                content_hash: Bytes::new(),
            };
            event.content_hash = hash_of_event(&event);
            event
        });
        let naive = internal::Command {
            command: Some(Command::Append(internal::Append {
                stream: request.stream.clone(),
                events: events.collect(),
                expected: kind as i32,
                exact,
                chained,
            })),
        };
        prop_assert_eq!(encode_append(&request, chained), naive.encode_to_vec());
    }

    /// No bytes make the check panic, and what it takes a tree can be built of.
    #[test]
    fn json_that_is_taken_can_be_read(data in prop::collection::vec(
        prop_oneof![4 => prop::sample::select(b"{}[]:,\"\\ux0123456789.eE+- truefalsn".to_vec()), 1 => any::<u8>()], 0..24))
    {
        let tree = serde_json::from_slice::<serde_json::Value>(&data);
        prop_assert_eq!(check_json(&data).is_ok(), tree.is_ok());
    }
}
