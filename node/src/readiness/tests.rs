use super::*;
use ringfold_proto::v1::ReplicaStatus;

fn held(group: u32, role: Role, term: u64, applied_index: u64) -> Held {
    Held {
        group: GroupId(group),
        replica: ReplicaId(u64::from(group) + 100),
        role,
        term,
        leader: Some(NodeId(2)),
        applied_index,
        settled: false,
    }
}

fn leader(group: u32, term: u64, commit_index: u64) -> ReplicaStatus {
    ReplicaStatus {
        partition: GroupId(group).partition(),
        state: ReplicaState::Leader as i32,
        term,
        commit_index,
        settled: true,
        ..Default::default()
    }
}

fn said(replicas: Vec<ReplicaStatus>) -> BTreeMap<NodeId, NodeStatusResponse> {
    [(NodeId(2), NodeStatusResponse { replicas, ..Default::default() })].into()
}

fn waits(held: &Held, statuses: &BTreeMap<NodeId, NodeStatusResponse>) -> bool {
    !behind(std::slice::from_ref(held), statuses, false, &mut BTreeSet::new()).is_empty()
}

#[test]
fn a_follower_has_caught_up_once_it_applied_what_a_settled_leader_had_committed() {
    let follower = held(3, Role::Follower, 5, 10);
    assert!(waits(&follower, &said(vec![])), "nobody says how far the others are");
    assert!(waits(&follower, &said(vec![leader(4, 5, 1)])), "that is another partition's");
    assert!(waits(&follower, &said(vec![leader(3, 5, 11)])));
    assert!(waits(&follower, &said(vec![leader(3, 4, 10)])), "a leader of before");
    assert!(!waits(&follower, &said(vec![leader(3, 5, 10)])));
    assert!(!waits(&follower, &said(vec![leader(3, 6, 10)])));
    let both = said(vec![leader(3, 5, 10), leader(3, 6, 12)]);
    assert!(waits(&follower, &both), "the leader of the latest term counts");
    // It has not committed in its own term: it may know of less than was acknowledged.
    let mut fresh = leader(3, 5, 10);
    fresh.settled = false;
    assert!(waits(&follower, &said(vec![fresh])));
    let mut other = leader(3, 5, 10);
    other.state = ReplicaState::Follower as i32;
    assert!(waits(&follower, &said(vec![other])));
}

#[test]
fn a_leader_has_caught_up_once_it_has_settled_and_the_meta_group_counts_as_well() {
    let mut leads = held(3, Role::Leader, 5, 10);
    assert!(waits(&leads, &said(vec![])));
    leads.settled = true;
    assert!(!waits(&leads, &said(vec![])));
    let meta = held(0, Role::Learner, 5, 10);
    assert!(waits(&meta, &said(vec![leader(0, 5, 11)])));
    assert!(!waits(&meta, &said(vec![leader(0, 5, 9)])));
}

#[test]
fn what_has_caught_up_once_is_not_waited_for_again_and_a_new_replica_is() {
    let mut caught_up = BTreeSet::new();
    let first = held(3, Role::Follower, 5, 10);
    assert!(
        behind(std::slice::from_ref(&first), &said(vec![leader(3, 5, 10)]), false, &mut caught_up)
            .is_empty()
    );
    let second = held(4, Role::Learner, 5, 0);
    let later = said(vec![leader(3, 5, 90), leader(4, 5, 90)]);
    let waits_for = behind(&[first.clone(), second], &later, false, &mut caught_up);
    assert_eq!(waits_for, ["its replica of partition 3 is 90 entries behind"]);
    // The same partition, returned: another replica.
    let returned = Held { replica: ReplicaId(900), ..first };
    assert_eq!(behind(&[returned], &later, false, &mut caught_up).len(), 1);
}

#[test]
fn a_closed_replica_is_waited_for_where_others_can_rebuild_it() {
    let closed = held(3, Role::Closed, 5, 10);
    assert!(waits(&closed, &said(vec![leader(3, 5, 10)])));
    assert!(behind(&[closed], &said(vec![]), true, &mut BTreeSet::new()).is_empty());
}

#[test]
fn without_replicas_there_is_nothing_to_wait_for_and_many_are_summed_up() {
    assert!(behind(&[], &said(vec![]), false, &mut BTreeSet::new()).is_empty());
    let many: Vec<_> = (1..=20).map(|g| held(g, Role::Follower, 1, 0)).collect();
    let waits_for = behind(&many, &said(vec![]), false, &mut BTreeSet::new());
    assert_eq!((waits_for.len(), waits_for[8].as_str()), (9, "and 12 more replicas"));
}
