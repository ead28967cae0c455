use serde_json::json;

use super::*;
use crate::{
    decide::decide,
    validate::validate,
    world::{Claim, Identity, Member, Pod, Report, StatefulSet},
};

fn cluster(spec: serde_json::Value) -> Cluster {
    let resource = json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u", "generation": 4}, "spec": spec,
    });
    validate(&serde_json::from_value(resource).unwrap()).unwrap()
}

/// Three nodes at rest.
fn at_rest() -> World {
    let pod = |o: u32| Pod {
        uid: format!("pod-{o}"),
        resource_version: "1".into(),
        revision: "new".into(),
        ready: true,
        running: true,
        unready_unix_ms: 0,
        deleted_unix_ms: None,
        trouble: None,
    };
    let claim = |o: u32| Claim {
        uid: format!("claim-{o}"),
        node_id: Some(u64::from(o) + 1),
        terminating: false,
        size_bytes: 10 << 30,
        replace: false,
    };
    let member = |o: u32| Member {
        name: pod_name("demo", o),
        zone: "a".into(),
        state: MemberState::Active,
        reachable: true,
        replicas: 64,
        leaders: 21,
    };
    let report = |o: u32| Report {
        node: Some((u64::from(o) + 1, "id".into())),
        version: "0.1.0".into(),
        lost_reason: None,
        waiting: Vec::new(),
        authorities: None,
    };
    World {
        identity: Some(Identity {
            cluster_id: "id".into(),
            resource_version: "1".into(),
            bootstrap_claim_uid: Some("claim-0".into()),
        }),
        stateful_set: Some(StatefulSet {
            uid: "set".into(),
            resource_version: "1".into(),
            replicas: 3,
            revision: Some("new".into()),
            image: "image".into(),
            storage_size: "10Gi".into(),
            terminating: false,
        }),
        pods: (0..3).map(|o| (o, pod(o))).collect(),
        claims: (0..3).map(|o| (o, claim(o))).collect(),
        reports: (0..3).map(|o| (o, report(o))).collect(),
        view: Some(View {
            cluster_id: "id".into(),
            epoch: 1,
            partitions: 64,
            at_rest: true,
            members: (0..3).map(|o| (u64::from(o) + 1, member(o))).collect(),
            ..View::default()
        }),
        authority_unreadable: None,
        now_unix_ms: 1,
    }
}

fn told(cluster: &Cluster, world: &World) -> EventStoreClusterStatus {
    let decision = decide(cluster, world);
    let before = EventStoreClusterStatus::default();
    status(cluster, world, &decision, &Outcome::default(), &before, Timestamp::UNIX_EPOCH)
}

fn is(status: &EventStoreClusterStatus, type_: &str) -> (bool, String) {
    let condition = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
    (condition.status == "True", condition.reason.clone())
}

#[test]
fn at_rest_it_is_ready_and_the_same_look_gives_the_same_status() {
    let (cluster, world) = (cluster(json!({})), at_rest());
    let first = told(&cluster, &world);
    assert_eq!(is(&first, condition::READY), (true, "AsAsked".into()));
    for abnormal in
        [condition::RECONCILING, condition::STALLED, condition::DEGRADED, condition::REBALANCING]
    {
        assert!(!is(&first, abnormal).0, "{abnormal}");
    }
    assert!(first.conditions.iter().all(|c| c.observed_generation == Some(4)));
    let types: Vec<_> = first.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(types, condition::ALL);
    let later = Timestamp::from_second(1_000).unwrap();
    let decision = decide(&cluster, &world);
    let again = status(&cluster, &world, &decision, &Outcome::default(), &first, later);
    assert_eq!(first, again, "an idle operator has nothing to write");
}

#[test]
fn it_stays_ready_while_data_moves_and_a_node_leaves() {
    let mut world = at_rest();
    world.stateful_set.as_mut().unwrap().replicas = 4;
    let mut pod = world.pods[&2].clone();
    pod.uid = "pod-3".into();
    world.pods.insert(3, pod);
    let claim = Claim { uid: "claim-3".into(), node_id: Some(4), ..world.claims[&2].clone() };
    world.claims.insert(3, claim);
    let view = world.view.as_mut().unwrap();
    let member =
        Member { name: "demo-3".into(), state: MemberState::Draining, ..view.members[&1].clone() };
    view.members.insert(4, member);
    view.moves = 12;
    let told = told(&cluster(json!({})), &world);
    assert_eq!(is(&told, condition::READY), (true, "AsAsked".into()));
    assert_eq!(is(&told, condition::REBALANCING), (true, "Moving".into()));
    assert_eq!(is(&told, condition::RECONCILING), (true, "ScaleIn".into()));
    assert_eq!(told.operation.unwrap().pod.as_deref(), Some("demo-3"));
    assert_eq!(told.partitions.unwrap().moving, 12);
}

#[test]
fn it_is_not_ready_while_nodes_are_missing_or_old() {
    let more = told(&cluster(json!({"replicas": 5})), &at_rest());
    assert_eq!(is(&more, condition::READY), (false, "NodesNotReady".into()));
    assert!(is(&more, condition::AVAILABLE).0);
    let mut world = at_rest();
    world.stateful_set.as_mut().unwrap().revision = Some("newer".into());
    assert_eq!(
        is(&told(&cluster(json!({})), &world), condition::READY),
        (false, "Upgrading".into())
    );
    world.stateful_set.as_mut().unwrap().revision = None;
    assert!(!is(&told(&cluster(json!({})), &world), condition::READY).0, "no wait passes early");
}

#[test]
fn a_pod_that_does_not_come_up_stalls_and_names_what_to_do() {
    let mut world = at_rest();
    let pod = world.pods.get_mut(&2).unwrap();
    (pod.ready, pod.running, pod.trouble) = (false, false, Some("ErrImagePull".into()));
    world.now_unix_ms = 601_000;
    let told = told(&cluster(json!({})), &world);
    assert_eq!(is(&told, condition::STALLED), (true, "PodNotReady".into()));
    assert!(!is(&told, condition::RECONCILING).0);
    let stalled = told.conditions.iter().find(|c| c.type_ == condition::STALLED).unwrap();
    assert!(
        stalled.message.contains("ErrImagePull") && stalled.message.contains("kubectl describe")
    );
}

#[test]
fn a_lost_volume_degrades_and_a_silent_cluster_is_not_available() {
    let mut world = at_rest();
    world.claims.remove(&1);
    assert_eq!(
        is(&told(&cluster(json!({})), &world), condition::DEGRADED),
        (true, "VolumeLost".into())
    );
    world.view = None;
    let silent = told(&cluster(json!({})), &world);
    assert_eq!(is(&silent, condition::AVAILABLE), (false, "NoAnswer".into()));
    assert!(!is(&silent, condition::READY).0);
}

#[test]
fn an_authority_that_cannot_be_read_degrades_and_all_else_goes_on() {
    let mut world = at_rest();
    world.authority_unreadable = Some("restore it".into());
    let more = told(&cluster(json!({"replicas": 5})), &world);
    assert_eq!(is(&more, condition::DEGRADED), (true, "AuthorityUnreadable".into()));
    let degraded = more.conditions.iter().find(|c| c.type_ == condition::DEGRADED).unwrap();
    assert_eq!(degraded.message, "restore it");
    assert!(is(&more, condition::RECONCILING).0 && !is(&more, condition::STALLED).0);
    assert!(is(&told(&cluster(json!({})), &world), condition::READY).0);
    // Nodes that never got certificates do not answer.
    world.view = None;
    let silent = told(&cluster(json!({})), &world);
    assert_eq!(is(&silent, condition::DEGRADED), (true, "AuthorityUnreadable".into()));
}

#[test]
fn progress_alone_may_wait() {
    let first = told(&cluster(json!({})), &at_rest());
    let mut moved = first.clone();
    moved.partitions.as_mut().unwrap().moving = 7;
    assert!(differ_in_progress_only(&first, &moved));
    moved.conditions[0].status = "False".into();
    assert!(!differ_in_progress_only(&first, &moved));
}

#[test]
fn a_spec_that_cannot_be_acted_on_says_which_field() {
    let invalid = Invalid { field: "replicas", problem: "2 is too few".into() };
    let before = told(&cluster(json!({})), &at_rest());
    let told = refused(5, &invalid, &before, Timestamp::UNIX_EPOCH);
    assert_eq!(is(&told, condition::STALLED), (true, "InvalidSpec".into()));
    assert_eq!((told.observed_generation, told.conditions.len()), (5, 7));
}
