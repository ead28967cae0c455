//! Each load against a cluster in this process: it runs, and counts what it did.
#![allow(clippy::unwrap_used, dead_code)] // helpers of tests count as outside of tests
#[path = "../../client/tests/support/mod.rs"]
mod support;

use ringfold_bench::{AppendArgs, ImportArgs, LoadArgs, LookupArgs, TargetArgs, load};
use ringfold_client::{Client, Consistency};
use support::{FakeCluster, Fault};

async fn connect(cluster: &FakeCluster) -> Client {
    let target = TargetArgs { endpoints: vec![cluster.url(0)], channels: 2 };
    target.connect(32).await.unwrap()
}

fn short(in_flight: u32) -> LoadArgs {
    LoadArgs::new(in_flight, 0.3, &[std::process::id()])
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_make_their_streams_once_and_find_them() {
    let cluster = FakeCluster::start(1);
    let client = connect(&cluster).await;
    let args =
        LookupArgs { streams: 50, bytes: 300, consistency: Consistency::Lease, no_setup: false };
    for _ in 0..2 {
        let report = load::lookup(&client, &short(4), &args).await.unwrap();
        assert!(report.calls > 0 && report.errors == 0, "{report}");
        assert!(report.server_cpu_us_per_call.is_some());
    }
    let shared = cluster.shared.lock();
    assert_eq!(shared.streams.len(), 50);
    assert!(shared.streams.values().all(|s| s.len() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_that_finds_nothing_is_an_error() {
    let cluster = FakeCluster::start(1);
    let args = LookupArgs {
        streams: 5,
        bytes: 300,
        consistency: Consistency::Linearizable,
        no_setup: true,
    };
    let client = connect(&cluster).await;
    let report = load::lookup(&client, &short(1), &args).await.unwrap();
    assert!(report.calls == 0 && report.errors > 0, "{report}");
    assert!(report.first_error.unwrap().contains("is missing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_are_counted_one_by_one_and_pipelined() {
    let cluster = FakeCluster::start(1);
    let client = connect(&cluster).await;
    let args = AppendArgs { streams: 10, bytes: 256 };
    let unary = load::append(&client, &short(4), &args).await;
    assert!(unary.calls > 0 && unary.errors == 0, "{unary}");
    // A failure for good is counted, and its stream goes on.
    cluster.plan([Fault::None, Fault::DiskFull]);
    let mut args_load = short(32);
    args_load.warmup_seconds = 0.0;
    let pipelined = load::append_stream(&client, &args_load, &args).await;
    assert!(pipelined.calls > 100, "{pipelined}");
    let shared = cluster.shared.lock();
    let stored: usize = shared.streams.values().map(Vec::len).sum();
    assert!(stored as u64 >= unary.calls + pipelined.calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_appends_each_event_once_however_often_it_runs() {
    let cluster = FakeCluster::start(1);
    let client = connect(&cluster).await;
    let args = ImportArgs {
        events: 1_005,
        streams: 20,
        events_per_append: 10,
        bytes: 64,
        in_flight: 32,
        run: 1,
    };
    for _ in 0..2 {
        let report = load::import(&client, &[], &args).await;
        assert_eq!((report.calls, report.errors), (101, 0), "{report}");
        let events = report.events_per_s.unwrap() * report.seconds;
        assert_eq!(events.round(), 1_005.0);
    }
    let shared = cluster.shared.lock();
    let stored: usize = shared.streams.values().map(Vec::len).sum();
    assert_eq!(stored, 1_005);
}
