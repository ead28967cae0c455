//! A nearly full disk: appends are refused by name, reads go on, and it recovers once there is room.
//! The small disk is an ext4 in a loop-mounted file, which needs root; elsewhere these tests say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use bytes::Bytes;
use ringfold_proto::v1::LookupRequest;
use ringfold_tests::cluster::{
    LocalCluster, Settings, Turn, detail, eventually, reason, scratch, timed, within,
};
use ringfold_tests::disk::SmallDisk;
use ringfold_tests::history::{Clock, Event, Expected};
use ringfold_tests::load::{self, Load, append_request, judge};
use tonic::Code;

const DISK_BYTES: u64 = 1 << 30;
const NOTICED_MAX: Duration = Duration::from_secs(30);
const CALL_MAX: Duration = Duration::from_secs(5);
const PROGRESS_MAX: Duration = Duration::from_secs(60);

fn small_disk(name: &str) -> Option<SmallDisk> {
    match SmallDisk::new(scratch(), name, DISK_BYTES) {
        Ok(disk) => Some(disk),
        Err(why) => {
            eprintln!("NOT RUN: {why}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nearly_full_disk_refuses_appends_by_name_and_goes_on_reading() {
    let turn = Turn::take().await;
    let Some(disk) = small_disk("small") else {
        return;
    };
    let mut cluster = LocalCluster::create(
        turn,
        Settings {
            nodes: 1,
            partitions: 2,
            data_dirs: vec![(0, disk.path().join("data"))],
            ..Settings::default()
        },
    );
    cluster.start_node(0);
    cluster.bootstrap(0).await;
    cluster.wait_ready().await;
    let store = cluster.nodes[0].store();
    let append = |id: u128| {
        let mut store = store.clone();
        let event = Event { id, data: Bytes::from(format!("{{\"n\":{id}}}")) };
        let request = append_request("order-1", &[event], Expected::Any, 0);
        async move { within(store.append(timed(request, CALL_MAX)), CALL_MAX).await }
    };
    append(0).await.unwrap();

    // Under 10 % free.
    disk.fill_to(disk.total_bytes() / 20);
    let mut id = 0;
    let refused = eventually("appends are refused", NOTICED_MAX, || {
        id += 1;
        let call = append(id);
        async move {
            match call.await {
                Err(status) => Ok(status),
                Ok(_) => Err("still taken".into()),
            }
        }
    })
    .await;
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refused}"
    );
    for field in ["free_bytes", "limit_bytes", "action"] {
        assert!(detail(&refused, field).is_some(), "no {field}: {refused:?}");
    }
    assert!(cluster.status(0).await.appends_refused);
    let lookup = LookupRequest { stream: "order-1".into(), ..LookupRequest::default() };
    let state = store.clone().lookup(lookup.clone()).await.unwrap().into_inner();
    assert_eq!(state.state.unwrap().revision, u64::try_from(id).unwrap() - 1);

    // It starts and reads on such a disk, too.
    assert_eq!(cluster.stop(0).await, 0);
    cluster.start_node(0);
    cluster.wait_ready().await;
    let state = store.clone().lookup(lookup).await.unwrap().into_inner();
    assert_eq!(state.state.unwrap().revision, u64::try_from(id).unwrap() - 1);

    disk.clear();
    eventually("appends are taken again", NOTICED_MAX, || {
        let call = append(1_000);
        async move { call.await.map_err(|s| s.to_string()) }
    })
    .await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_to_the_last_byte_loses_nothing() {
    let turn = Turn::take().await;
    let Some(disk) = small_disk("full") else {
        return;
    };
    let mut cluster = LocalCluster::create(
        turn,
        Settings { data_dirs: vec![(2, disk.path().join("data"))], ..Settings::default() },
    );
    for i in 0..3 {
        cluster.start_node(i);
    }
    cluster.bootstrap(0).await;
    cluster.wait_ready().await;
    let clock = Clock::new();
    let load = Load { seed: 61, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(100, PROGRESS_MAX).await;
    // The node may end on this (its log cannot grow), or live on: the others take the appends.
    disk.fill_to(0);
    running.progress(300, PROGRESS_MAX).await;
    disk.clear();
    if !cluster.has_exited(2) {
        cluster.kill(2);
    }
    cluster.start_node(2);
    cluster.wait_ready().await;
    running.progress(100, PROGRESS_MAX).await;
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
}
