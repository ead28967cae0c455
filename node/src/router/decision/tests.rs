use super::*;

const ME: NodeId = NodeId(1);

fn known(
    local: Option<(Role, Option<u64>)>,
    nodes: &[u64],
) -> (Option<(Role, Option<NodeId>)>, Vec<MetaReplica>) {
    let replicas = nodes
        .iter()
        .map(|n| MetaReplica { node_id: *n, replica_id: 10 + n, ..Default::default() })
        .collect();
    (local.map(|(role, leader)| (role, leader.map(NodeId))), replicas)
}

fn choose(
    local: Option<(Role, Option<u64>)>,
    nodes: &[u64],
    hint: u64,
    attempt: usize,
    stale: bool,
) -> Decision {
    let (local, replicas) = known(local, nodes);
    let hint = (hint != 0).then_some(NodeId(hint));
    decide(&Known { me: ME, local, replicas: &replicas, hint, attempt, stale, repeatable: true })
}

#[test]
fn a_call_goes_to_the_leader() {
    let all = [1, 2, 3];
    assert_eq!(choose(Some((Role::Leader, Some(1))), &all, 0, 0, false), Decision::Local);
    for role in [Role::Follower, Role::Learner, Role::Candidate] {
        assert_eq!(choose(Some((role, Some(3))), &all, 0, 0, false), Decision::Forward(NodeId(3)));
        // A hint of an earlier call does not count where a replica is here.
        if role != Role::Learner {
            assert_eq!(choose(Some((role, None)), &all, 2, 0, false), Decision::Wait);
        }
        // It led before, and has not heard of the next one.
        assert_eq!(choose(Some((role, Some(1))), &all, 0, 0, false), Decision::Wait);
    }
}

#[test]
fn a_stale_read_is_answered_by_any_replica_that_is_open() {
    let all = [1, 2, 3];
    for role in [Role::Follower, Role::Candidate, Role::Leader] {
        assert_eq!(choose(Some((role, None)), &all, 0, 0, true), Decision::Local);
    }
    let closed = Some((Role::Closed, None));
    assert_eq!(choose(closed, &all, 0, 0, true), Decision::Ask(NodeId(2)));
    assert_eq!(choose(closed, &all, 0, 1, true), Decision::Ask(NodeId(3)));
    assert_eq!(choose(closed, &all, 3, 0, true), Decision::Ask(NodeId(2)), "any will do");
}

/// It may have nothing yet.
#[test]
fn a_learner_answers_nothing_and_one_that_knows_no_leader_asks_the_others() {
    let all = [1, 2, 3];
    assert_eq!(
        choose(Some((Role::Learner, None)), &all, 3, 0, false),
        Decision::Forward(NodeId(3))
    );
    for leader in [None, Some(3)] {
        let stale = choose(Some((Role::Learner, leader)), &all, 0, 0, true);
        assert_eq!(stale, Decision::Ask(NodeId(2)));
    }
}

#[test]
fn without_a_replica_here_the_hint_counts_and_then_each_replica_in_turn() {
    for local in [None, Some((Role::Closed, Some(1)))] {
        assert_eq!(choose(local, &[2, 3, 4], 4, 0, false), Decision::Forward(NodeId(4)));
        for (attempt, node) in [(0, 2), (1, 3), (2, 4), (3, 2)] {
            assert_eq!(choose(local, &[2, 3, 4], 0, attempt, false), Decision::Ask(NodeId(node)));
        }
    }
    assert_eq!(choose(None, &[], 0, 0, false), Decision::Wait, "not placed yet");
    assert_eq!(choose(Some((Role::Closed, None)), &[1], 0, 0, false), Decision::Wait);
}

#[test]
fn a_replica_that_is_about_to_be_destroyed_is_not_waited_for() {
    for role in [Role::Follower, Role::Candidate, Role::Learner] {
        for leader in [None, Some(1), Some(9)] {
            assert_eq!(
                choose(Some((role, leader)), &[2, 3], 0, 0, false),
                Decision::Ask(NodeId(2))
            );
            assert_eq!(
                choose(Some((role, leader)), &[2, 3], 3, 1, false),
                Decision::Forward(NodeId(3))
            );
            assert_eq!(choose(Some((role, leader)), &[2, 3], 0, 1, true), Decision::Ask(NodeId(3)));
        }
    }
    // Its records may be older than what it leads.
    assert_eq!(choose(Some((Role::Leader, Some(1))), &[2, 3], 0, 0, false), Decision::Local);
    // Before the first records are there it is taken for what it is.
    assert_eq!(
        choose(Some((Role::Follower, Some(9))), &[], 0, 0, false),
        Decision::Forward(NodeId(9))
    );
}

#[test]
fn a_replica_that_knows_no_leader_for_long_is_not_the_only_one_that_is_asked() {
    let at = |attempt| choose(Some((Role::Follower, None)), &[1, 2, 3], 0, attempt, false);
    assert!((0..WAITS_MAX).all(|attempt| at(attempt) == Decision::Wait));
    let later: Vec<_> = (WAITS_MAX..WAITS_MAX + 4).map(at).collect();
    for d in [Decision::Wait, Decision::Ask(NodeId(2)), Decision::Ask(NodeId(3))] {
        assert!(later.contains(&d), "{later:?}");
    }
    // What must not be sent twice is not spent on a guess.
    let (local, replicas) = known(Some((Role::Follower, None)), &[1, 2, 3]);
    for attempt in 0..2 * WAITS_MAX {
        let append = Known {
            me: ME,
            local,
            replicas: &replicas,
            hint: None,
            attempt,
            stale: false,
            repeatable: false,
        };
        assert_eq!(decide(&append), Decision::Wait);
    }
}
