//! The operator is killed between any two of its steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use ringfold_tests_kubernetes::{Cluster, MortalOperator, Work, is_lab, kubernetes};
use serde_json::json;

/// It runs beside the tests, and has to reach pods.
fn left_out() -> bool {
    if !is_lab() {
        ringfold_tests_kubernetes::leave_out(
            "an operator that is killed has to be in the pods' network",
        );
    }
    !is_lab()
}

#[test]
fn killed_between_any_two_steps_of_a_scale_in_it_comes_to_rest_and_no_event_is_lost() {
    if left_out() {
        return;
    }
    kubernetes(async |space| {
        let operator = MortalOperator::start(space);
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8, "replicas": 4})).await;
        cluster.wait_at_rest(4).await;
        let work = Work::start(&cluster, 3, 11);
        work.goes_on().await;
        let points = [
            "observed",
            "applied",
            "before-Drain",
            "after-Drain",
            "before-Remove",
            "after-Remove",
            "before-DeleteClaim",
            "after-DeleteClaim",
            "status-written",
        ];
        operator.arm(&points);
        cluster.scale(3);
        cluster.wait_at_rest(3).await;
        assert_eq!(operator.was_killed_at(&points), points);
        assert_eq!(cluster.claims().await.len(), 3);
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn killed_between_any_two_steps_of_a_rolling_restart_it_restarts_each_node_and_no_event_is_lost() {
    if left_out() {
        return;
    }
    kubernetes(async |space| {
        let operator = MortalOperator::start(space);
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let before = cluster.pod_uids().await;
        let work = Work::start(&cluster, 3, 12);
        work.goes_on().await;
        let points = [
            "observed",
            "applied",
            "before-Pause",
            "after-Pause",
            "before-Restart",
            "restart-agreed",
            "restart-handed-over",
            "after-Restart",
            "status-written",
        ];
        operator.arm(&points);
        cluster.change(json!({"config": {"read_threads": "3"}})).await;
        cluster.wait_restarted(&before).await;
        cluster.wait_at_rest(3).await;
        assert_eq!(operator.was_killed_at(&points), points);
        work.goes_on().await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
