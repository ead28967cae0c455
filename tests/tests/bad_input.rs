//! What is wrong is refused by name, before it does anything; nothing is lost and nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ringfold_proto::v1::{
    AppendRequest, AppendStreamRequest, BootstrapRequest, ListStreamsRequest, LookupRequest,
    NewEvent, ReadRequest, append_stream_response,
};
use ringfold_tests::cluster::{LocalCluster, Settings, detail, reason, timed, within};
use ringfold_tests::history::{Event, Expected};
use ringfold_tests::load::{Store, append_request};
use tonic::{Code, Status};

const CALL_MAX: Duration = Duration::from_secs(10);
const STREAM: &str = "customer-bad";
const MIB: usize = 1 << 20;

fn event(id: u128) -> NewEvent {
    ringfold_tests::load::new_event(&Event { id, data: Bytes::from_static(b"{}") })
}

fn append_of(events: Vec<NewEvent>) -> AppendRequest {
    AppendRequest { stream: STREAM.into(), events, ..AppendRequest::default() }
}

fn with(change: impl FnOnce(&mut NewEvent)) -> AppendRequest {
    let mut e = event(1);
    change(&mut e);
    append_of(vec![e])
}

fn named(stream: &str) -> AppendRequest {
    AppendRequest { stream: stream.into(), ..append_of(vec![event(1)]) }
}

/// JSON of exactly so many bytes.
fn json_of(bytes: usize) -> Bytes {
    format!("\"{}\"", "x".repeat(bytes - 2)).into()
}

async fn append(store: &Store, request: AppendRequest) -> Result<u64, Status> {
    let call = timed(request, CALL_MAX);
    within(store.clone().append(call), CALL_MAX).await.map(|a| a.last_revision)
}

fn assert_refused(what: &str, status: &Status, code: Code, wanted: &str, fields: &[&str]) {
    assert_eq!((status.code(), reason(status).as_str()), (code, wanted), "{what}: {status}");
    for field in fields {
        assert!(
            detail(status, field).is_some_and(|v| !v.is_empty()),
            "{what}: its error names no {field}: {status:?}"
        );
    }
    assert!(!status.message().is_empty(), "{what}: no message");
    assert!(detail(status, "retry").is_some(), "{what}: nothing on retries");
}

/// What is refused: the reason, and the fields that its error must name.
fn bad_appends() -> Vec<(&'static str, AppendRequest, &'static str, &'static [&'static str])> {
    const SIZED: &[&str] = &["field", "limit", "actual"];
    const LIMITED: &[&str] = &["field", "limit"];
    const NAMED: &[&str] = &["field"];
    let name = "INVALID_STREAM_NAME";
    let invalid = "INVALID_EVENT";
    vec![
        ("an empty name", named(""), name, LIMITED),
        ("a name of 1,025 bytes", named(&"n".repeat(1_025)), name, LIMITED),
        ("a name with a control character", named("customer-\u{7}"), name, NAMED),
        ("a name with a zero", named("customer-\0"), name, NAMED),
        ("no events", append_of(vec![]), invalid, NAMED),
        ("1,025 events", append_of((0..1_025).map(event).collect()), invalid, LIMITED),
        ("no id", with(|e| e.id = Bytes::new()), invalid, NAMED),
        ("an id of 15 bytes", with(|e| e.id = Bytes::from_static(&[7; 15])), invalid, NAMED),
        ("an id of 17 bytes", with(|e| e.id = Bytes::from_static(&[7; 17])), invalid, NAMED),
        ("no type", with(|e| e.r#type = String::new()), invalid, NAMED),
        ("a type of 257 bytes", with(|e| e.r#type = "t".repeat(257)), invalid, LIMITED),
        ("a type with a control character", with(|e| e.r#type = "a\nb".into()), invalid, NAMED),
        ("no JSON", with(|e| e.data = Bytes::from_static(b"{\"a\":")), "INVALID_JSON", NAMED),
        ("empty JSON", with(|e| e.data = Bytes::new()), "INVALID_JSON", NAMED),
        ("two JSON values", with(|e| e.data = Bytes::from_static(b"{} {}")), "INVALID_JSON", NAMED),
        (
            "JSON that is not UTF-8",
            with(|e| e.data = Bytes::from_static(b"\"\xff\"")),
            "INVALID_JSON",
            NAMED,
        ),
        (
            "no JSON under its full name",
            with(|e| {
                e.content_type = "application/json".into();
                e.data = Bytes::from_static(b"nope");
            }),
            "INVALID_JSON",
            NAMED,
        ),
        (
            "JSON nested a million deep",
            with(|e| e.data = Bytes::from("[".repeat(MIB - 10))),
            "INVALID_JSON",
            NAMED,
        ),
        ("an event over 1 MiB", with(|e| e.data = json_of(MIB + 1)), "EVENT_TOO_LARGE", SIZED),
        (
            "an event over 1 MiB by its metadata",
            with(|e| e.metadata = Bytes::from(vec![1; MIB])),
            "EVENT_TOO_LARGE",
            SIZED,
        ),
        (
            "an append over 4 MiB",
            append_of((0..5).map(|i| NewEvent { data: json_of(MIB - 100), ..event(i) }).collect()),
            "APPEND_TOO_LARGE",
            SIZED,
        ),
        (
            "an id twice in one request",
            append_of(vec![event(1), event(2), event(1)]),
            "DUPLICATE_EVENT_ID",
            &["id"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_appends_are_refused_by_name_and_store_nothing() {
    let cluster = LocalCluster::start(Settings::default()).await;
    for (what, request, wanted, fields) in bad_appends() {
        for node in &cluster.nodes {
            let refused = append(&node.store(), request.clone()).await.expect_err(what);
            assert_refused(what, &refused, Code::InvalidArgument, wanted, fields);
        }
    }
    let store = cluster.nodes[0].store();
    let lookup = LookupRequest { stream: STREAM.into(), ..LookupRequest::default() };
    let none = store.clone().lookup(lookup).await.unwrap_err();
    assert_refused("nothing is stored", &none, Code::NotFound, "STREAM_NOT_FOUND", &[]);

    // The limits themselves are allowed.
    let most = [
        ("a name of 1,024 bytes", named(&"n".repeat(1_024))),
        ("1,024 events", append_of((2_000..3_024).map(event).collect())),
        (
            "a type of 256 bytes",
            with(|e| {
                e.id = Bytes::from_static(&[8; 16]);
                e.r#type = "t".repeat(256);
            }),
        ),
        (
            "bytes under another content type",
            AppendRequest {
                stream: "blob-1".into(),
                ..with(|e| {
                    e.content_type = "application/octet-stream".into();
                    e.data = Bytes::from_static(b"\xff\0");
                })
            },
        ),
        (
            "an event of 1 MiB",
            AppendRequest { stream: "last-large".into(), ..with(|e| e.data = json_of(MIB)) },
        ),
    ];
    for (what, request) in most {
        if let Err(status) = append(&store, request).await {
            panic!("{what}: {status}");
        }
    }
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_appends_in_a_pipeline_fail_alone_and_their_stream_waits_to_be_resumed() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let good = |stream: &str, id: u128| {
        let event = Event { id, data: Bytes::from_static(b"{}") };
        append_request(stream, &[event], Expected::Any, 0)
    };
    let mut bad = good("order-1", 2);
    bad.events[0].data = Bytes::from_static(b"nope");
    let requests = [
        (1, good("order-1", 1), false),
        (2, bad, false),
        (3, good("order-2", 3), false),
        (4, good("order-1", 4), false),
        (5, good("order-1", 5), true),
        (6, good("order-1", 6), false),
    ]
    .map(|(sequence, append, resume)| AppendStreamRequest {
        sequence,
        append: Some(append),
        resume,
    });
    let mut store = cluster.nodes[0].store();
    let mut answers = store.append_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let result = match answer.result.unwrap() {
            append_stream_response::Result::Ok(ok) => Ok(ok.first_revision),
            append_stream_response::Result::Error(e) => Err(e.reason),
        };
        assert!(seen.insert(answer.sequence, result).is_none(), "one answer each");
    }
    let expected: std::collections::BTreeMap<u64, Result<u64, String>> = [
        (1, Ok(0)),
        (2, Err("INVALID_JSON".into())),
        (3, Ok(0)),
        (4, Err("EARLIER_APPEND_FAILED".into())),
        (5, Ok(1)),
        (6, Ok(2)),
    ]
    .into();
    assert_eq!(seen, expected);
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_reads_and_lookups_are_refused_by_name() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let mut store = cluster.nodes[1].store();
    let answer = store.append(append_of(vec![event(1), event(2)])).await.unwrap().into_inner();

    for stream in ["", "a\u{1}", &"n".repeat(1_025)] {
        let lookup = LookupRequest { stream: stream.into(), ..LookupRequest::default() };
        let status = store.lookup(lookup).await.unwrap_err();
        assert_refused(
            "a lookup",
            &status,
            Code::InvalidArgument,
            "INVALID_STREAM_NAME",
            &["field"],
        );
        let read = ReadRequest { stream: stream.into(), ..ReadRequest::default() };
        let status = read_count(&mut store, read).await.unwrap_err();
        assert_refused("a read", &status, Code::InvalidArgument, "INVALID_STREAM_NAME", &["field"]);
    }

    let lookup = |min_position: u64, consistency: i32| LookupRequest {
        stream: STREAM.into(),
        consistency,
        min_position,
    };
    let status = store.lookup(lookup(0, 99)).await.unwrap_err();
    assert_refused(
        "an unknown consistency",
        &status,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
        &["field"],
    );
    let foreign = answer.last_position ^ 1;
    let status = store.lookup(lookup(foreign, 0)).await.unwrap_err();
    assert_refused(
        "a position of another partition",
        &status,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
        &["field"],
    );
    let status = store.lookup(lookup(u64::MAX, 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "a position over 63 bits: {status}");

    // A position that is not there yet: the call ends at its deadline.
    let future = answer.last_position + (1 << 30);
    let short = Duration::from_millis(700);
    let status = within(store.lookup(timed(lookup(future, 3), short)), CALL_MAX).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");

    // Beyond the end there is nothing, which is no error.
    for (from, backwards, count) in
        [(2, false, 0), (u64::MAX, false, 0), (u64::MAX, true, 2), (1, true, 2), (0, true, 1)]
    {
        let read = ReadRequest {
            stream: STREAM.into(),
            from_revision: Some(from),
            backwards,
            ..ReadRequest::default()
        };
        let seen = read_count(&mut store, read).await.unwrap();
        assert_eq!(seen, count, "from {from}, backwards: {backwards}");
    }
    let list = ListStreamsRequest { partition: Some(4_000), ..ListStreamsRequest::default() };
    let status = match store.list_streams(list).await {
        Ok(pages) => pages.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_refused(
        "a partition that is not there",
        &status,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
        &["field"],
    );
    cluster.assert_no_panic();
}

async fn read_count(store: &mut Store, request: ReadRequest) -> Result<usize, Status> {
    let mut pages = store.read(timed(request, CALL_MAX)).await?.into_inner();
    let mut count = 0;
    while let Some(page) = pages.message().await? {
        count += page.events.len();
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_zero_ends_at_once_and_the_next_call_works() {
    let cluster = LocalCluster::start(Settings::default()).await;
    for node in &cluster.nodes {
        let mut store = node.store();
        let status =
            within(store.append(timed(append_of(vec![event(1)]), Duration::ZERO)), CALL_MAX)
                .await
                .unwrap_err();
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
        let lookup = LookupRequest { stream: STREAM.into(), ..LookupRequest::default() };
        let status =
            within(store.lookup(timed(lookup, Duration::ZERO)), CALL_MAX).await.unwrap_err();
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
        // The same ids: whether the first attempt was stored or not, this is the first event.
        assert_eq!(append(&store, append_of(vec![event(1)])).await.unwrap(), 0);
    }
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_far_ahead_of_the_clock_is_not_followed() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let store = cluster.nodes[0].store();
    let hour_ms = 3_600_000_u64;
    let first = append(&store, append_of(vec![event(1)])).await.unwrap();
    assert_eq!(first, 0);
    let read = ReadRequest { stream: STREAM.into(), ..ReadRequest::default() };
    let mut pages = store.clone().read(read).await.unwrap().into_inner();
    let position = pages.message().await.unwrap().unwrap().events[0].position;
    for ahead in [position + (hour_ms << 21), u64::MAX] {
        let request = AppendRequest { after_position: ahead, ..append_of(vec![event(2)]) };
        let status = append(&store, request).await.unwrap_err();
        assert!(!reason(&status).is_empty(), "{status:?}");
    }
    assert_eq!(append(&store, append_of(vec![event(2)])).await.unwrap(), 1);
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_or_a_second_bootstrap_is_refused_by_name() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let bootstrap = |request: BootstrapRequest| {
        let mut admin = cluster.nodes[0].admin();
        async move { within(admin.bootstrap(timed(request, CALL_MAX)), CALL_MAX).await }
    };
    let again = BootstrapRequest {
        cluster_id: cluster.cluster_id.clone(),
        partitions: cluster.partitions(),
        replication_factor: 3,
        initial_members: 3,
        ..BootstrapRequest::default()
    };
    assert_eq!(bootstrap(again.clone()).await.unwrap().cluster_id, cluster.cluster_id);
    let other = BootstrapRequest { cluster_id: uuid::Uuid::new_v4().to_string(), ..again.clone() };
    let status = bootstrap(other).await.unwrap_err();
    assert_refused("another id", &status, Code::FailedPrecondition, "ALREADY_BOOTSTRAPPED", &[]);
    for (what, request) in [
        ("no UUID", BootstrapRequest { cluster_id: "mine".into(), ..again.clone() }),
        ("three partitions", BootstrapRequest { partitions: 3, ..again.clone() }),
        ("2,048 partitions", BootstrapRequest { partitions: 2_048, ..again.clone() }),
        ("two replicas", BootstrapRequest { replication_factor: 2, ..again.clone() }),
        ("an unknown reducer", BootstrapRequest { default_reducer: 77, ..again.clone() }),
    ] {
        let status = bootstrap(request).await.expect_err(what);
        assert_refused(what, &status, Code::InvalidArgument, "INVALID_ARGUMENT", &["field"]);
    }
    cluster.assert_no_panic();
}

/// Connections with garbage, on each port of each node.
const GARBAGE: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_on_every_port_do_no_harm() {
    let cluster = LocalCluster::start(Settings::default()).await;
    let store = cluster.nodes[0].store();
    append(&store, append_of(vec![event(1)])).await.unwrap();
    let ports: Vec<u16> = cluster.nodes.iter().flat_map(|n| [n.client_port, n.peer_port]).collect();
    let mut half_open = Vec::new();
    let mut rng = StdRng::seed_from_u64(5);
    for port in ports {
        for i in 0..GARBAGE {
            let mut bytes = vec![0; 1 << (i % 14)];
            rng.fill_bytes(&mut bytes);
            // Some begin as HTTP/2 does, some announce a huge or an empty frame.
            let mut message = match i % 5 {
                0 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                1 => u32::MAX.to_le_bytes().to_vec(),
                2 => vec![0; 16],
                3 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                _ => Vec::new(),
            };
            message.extend(bytes);
            let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else {
                panic!("port {port} no longer listens");
            };
            connection.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let _ = connection.write_all(&message);
            let _ = connection.read(&mut [0; 512]);
            if i % 10 == 0 {
                half_open.push(connection);
            }
        }
    }
    for i in 0..cluster.nodes.len() {
        let node = &cluster.nodes[i];
        assert_eq!(append(&node.store(), append_of(vec![event(1)])).await.unwrap(), 0);
        assert_eq!(
            append(&node.store(), append_of(vec![event(10 + i as u128)])).await.unwrap(),
            1 + i as u64
        );
    }
    drop(half_open);
    cluster.wait_ready().await;
    cluster.assert_replicas_agree().await;
    cluster.assert_no_panic();
}
