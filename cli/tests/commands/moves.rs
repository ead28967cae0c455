//! Commands about members and moves.
use crate::fake::Fake;
use crate::{Ended, run, run_as};
use ringfold_proto::v1::{DrainProgress, Move, MoveReason, RebalancePlanResponse};
use serde_json::json;

fn a_move(partition: u32, bytes: u64, bytes_done: u64) -> Move {
    Move {
        partition,
        from_node_id: 1,
        to_node_id: 7,
        reason: MoveReason::Balance as i32,
        bytes,
        bytes_done,
        phase: "copying".into(),
    }
}

fn moving() -> RebalancePlanResponse {
    RebalancePlanResponse {
        epoch: 3,
        moves: vec![a_move(0, 2048, 1024), Move { from_node_id: 0, ..a_move(5, 0, 0) }],
        leader_moves: 1,
        waiting: vec!["partition 5: no room on node 7".into()],
        ..RebalancePlanResponse::default()
    }
}

fn rest() -> RebalancePlanResponse {
    RebalancePlanResponse { epoch: 3, at_rest: true, ..RebalancePlanResponse::default() }
}

async fn told(fake: &Fake, args: &[&str]) -> Ended {
    run_as("table", fake, args, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_is_shown_with_its_documented_fields() {
    let fake = Fake::start().await;
    fake.moves.plan([moving()]);
    let plan = run(&fake, &["rebalance", "plan"], "").await;
    assert_eq!(plan.code, 0, "{}", plan.err);
    let line = json!({"kind": "plan", "epoch": 3, "paused": false, "at_rest": false, "moves": 2,
        "leader_moves": 1, "bytes": 2048, "bytes_done": 1024,
        "waiting": ["partition 5: no room on node 7"]});
    let first = json!({"kind": "move", "partition": 0, "from_node_id": 1, "to_node_id": 7,
        "bytes": 2048, "bytes_done": 1024, "reason": "balance", "phase": "copying"});
    let mut second = first.clone();
    second["partition"] = 5.into();
    second["from_node_id"] = json!(null);
    second["bytes"] = 0.into();
    second["bytes_done"] = 0.into();
    assert_eq!(plan.lines(), [line, first, second]);

    let shown = told(&fake, &["rebalance", "plan"]).await.out;
    let words: Vec<Vec<&str>> = shown.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(words[1][..3], ["0", "only", "node"], "{shown}");
    assert!(shown.contains("2 moves of 2.00 KiB, 1 leadership to hand over"), "{shown}");
    assert!(shown.contains("waits: partition 5: no room on node 7"), "{shown}");
    fake.moves.plan([rest()]);
    assert_eq!(told(&fake, &["rebalance", "plan"]).await.out, "at rest\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_at_rest() {
    let fake = Fake::start().await;
    let mut half = moving();
    half.moves.pop();
    fake.moves.plan([moving(), half.clone(), rest()]);
    let watch = run(&fake, &["rebalance", "watch"], "").await;
    assert_eq!(watch.code, 0, "{}", watch.err);
    let kinds: Vec<_> = watch.lines().iter().map(|l| l["kind"].clone()).collect();
    assert_eq!(kinds, ["plan", "move", "move", "plan", "move", "plan"]);
    assert_eq!(watch.lines()[5]["at_rest"], true);

    fake.moves.plan([moving(), half, rest()]);
    let watch = told(&fake, &["rebalance", "watch"]).await;
    assert!(watch.out.starts_with("at rest after 2 moves of 2.00 KiB in "), "{}", watch.out);
    assert_eq!(watch.err, "", "no bars where there is no terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_is_said_and_seen() {
    let fake = Fake::start().await;
    let pause = run(&fake, &["rebalance", "pause"], "").await;
    assert_eq!((pause.code, pause.lines()), (0, vec![json!({"paused": true})]));
    let resume = run(&fake, &["rebalance", "resume"], "").await;
    assert_eq!(resume.lines(), [json!({"paused": false})]);
    assert_eq!(fake.moves.asked(), ["pause", "resume"]);
    fake.moves.plan([RebalancePlanResponse { paused: true, ..moving() }]);
    let shown = told(&fake, &["rebalance", "plan"]).await.out;
    assert!(shown.contains("paused: `ringfold rebalance resume`"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_shown_until_it_is_done() {
    let fake = Fake::start().await;
    let left = |replicas_left| DrainProgress {
        node_id: 1,
        replicas_at_start: 4,
        replicas_left,
        done: replicas_left == 0,
        ..DrainProgress::default()
    };
    fake.moves.plan_drain([left(4), left(4), left(1), left(0)]);
    let drain = run(&fake, &["drain", "only"], "").await;
    assert_eq!(drain.code, 0, "{}", drain.err);
    let lefts: Vec<_> = drain.lines().iter().map(|l| l["replicas_left"].clone()).collect();
    assert_eq!(lefts, [4, 1, 0], "a line for each change");
    assert_eq!(
        drain.lines()[2],
        json!({"node_id": 1, "name": "only", "replicas_at_start": 4, "replicas_left": 0,
               "done": true, "waiting": []})
    );
    fake.moves.plan_drain([left(0)]);
    let drain = told(&fake, &["drain", "1"]).await;
    assert!(drain.err.contains("`ringfold remove only`"), "{}", drain.err);
    assert_eq!(fake.moves.asked(), ["drain 1", "drain 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_end_lists_the_reasons() {
    let fake = Fake::start().await;
    fake.moves.refuse_drains("node 1 cannot be drained: no room; 2 nodes would be left");
    let refused = run(&fake, &["drain", "only"], "").await;
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert_eq!(refused.error()["reason"], "DRAIN_IMPOSSIBLE");
    let refused = told(&fake, &["drain", "only"]).await;
    assert_eq!(refused.code, 4);
    let lines: Vec<_> = refused.err.lines().collect();
    assert_eq!(lines[1..3], ["  - no room", "  - 2 nodes would be left (DRAIN_IMPOSSIBLE)"]);
    assert!(lines[3].starts_with("  next: "), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_undrained_and_removed_by_id_or_name() {
    let fake = Fake::start().await;
    fake.moves.add_removed();
    let undrain = run(&fake, &["undrain", "only"], "").await;
    assert_eq!(undrain.lines(), [json!({"node_id": 1, "name": "only", "state": "active"})]);
    let remove = run(&fake, &["remove", "2"], "").await;
    assert_eq!(remove.lines(), [json!({"node_id": 2, "name": "gone", "state": "removed"})]);
    let refused = told(&fake, &["remove", "only"]).await;
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert!(refused.err.contains("next: `ringfold drain only` first"), "{}", refused.err);
    // The name of a removed one may be another's one day.
    let gone = run(&fake, &["remove", "gone"], "").await;
    assert_eq!(gone.code, 3, "{}", gone.err);
    assert!(gone.err.contains("1 (only)"), "{}", gone.err);
    assert_eq!(run(&fake, &["remove", "9"], "").await.code, 3);
    assert_eq!(fake.moves.asked(), ["undrain 1", "remove 2", "remove 1", "remove 9"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_is_to_move() {
    let fake = Fake::start().await;
    fake.moves.plan([moving()]);
    let status = run(&fake, &["status"], "").await;
    assert_eq!(status.code, 0, "moving is no fault: {}", status.err);
    let kinds: Vec<_> = status.lines().iter().map(|l| l["kind"].clone()).collect();
    assert_eq!(kinds, ["node", "plan"]);
    assert_eq!(status.lines()[1]["moves"], 2);
    let shown = told(&fake, &["status"]).await.out;
    assert!(shown.contains("moves: 2 moves of 2.00 KiB"), "{shown}");
    assert!(shown.contains("`ringfold rebalance plan` says what waits"), "{shown}");
    fake.moves.plan([rest()]);
    assert!(told(&fake, &["status"]).await.out.contains("moves: at rest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_cluster_of_dev_is_scaled_by_dev() {
    let fake = Fake::start().await;
    let scale = run(&fake, &["dev", "scale", "5"], "").await;
    assert_eq!(scale.code, 2, "{}", scale.err);
    assert!(scale.err.contains("no `ringfold dev`"), "{}", scale.err);
    for wrong in ["0", "21", "many"] {
        assert_eq!(run(&fake, &["dev", "scale", wrong], "").await.code, 2);
    }
}
