//! Clusters under an operator of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use ringfold_tests::{
    checker::{self, Reducers},
    history::Clock,
    load::{self, Load, Running},
};
use ringfold_tests_kubernetes::{Cluster, Operator, is_lab, kubernetes};
use serde_json::json;

const PROGRESS_MAX: Duration = Duration::from_secs(60);

/// Writers and readers in the pods' network; only the lab's tests are in it.
fn start(cluster: &Cluster<'_>, clock: Clock, load: &Load, pods: u32) -> Option<Running> {
    is_lab().then(|| load::start_on(cluster.stores(pods), clock, load))
}

async fn judge(
    cluster: &Cluster<'_>,
    clock: Clock,
    load: &Load,
    running: Option<Running>,
    pods: u32,
) {
    let Some(running) = running else { return };
    let mut history = running.stop().await;
    assert!(history.acknowledged() > 0);
    let stores = cluster.stores(pods);
    let log = load::read_final_on(stores, clock, &load.names(), &mut history).await;
    checker::assert_holds(&history, &log, &Reducers { last: [].into() });
}

async fn progress(running: &Option<Running>) {
    if let Some(running) = running {
        running.progress(100, PROGRESS_MAX).await;
    }
}

#[test]
fn three_nodes_become_five_and_three_again_by_kubectl_scale_while_clients_go_on() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 16})).await;
        cluster.wait_at_rest(3).await;
        let (clock, load) = (Clock::new(), Load { seed: 5, ..Load::default() });
        let running = start(&cluster, clock, &load, 3);
        progress(&running).await;

        cluster.scale(5);
        let five = cluster.wait_at_rest(5).await;
        let members = five.status.unwrap().members;
        assert!(members.iter().all(|m| m.replicas > 0), "{members:?}");
        progress(&running).await;

        cluster.scale(3);
        cluster.wait_at_rest(3).await;
        assert_eq!(cluster.pods().await, ["demo-0", "demo-1", "demo-2"]);
        assert_eq!(cluster.claims().await, ["data-demo-0", "data-demo-1", "data-demo-2"]);
        progress(&running).await;
        judge(&cluster, clock, &load, running, 3).await;
    });
}
