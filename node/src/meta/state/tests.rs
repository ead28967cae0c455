use super::*;
use proptest::prelude::*;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{MetaAdmitReplica, MetaCreateReplica, MetaForgetReplica, MetaPause};
use std::collections::{BTreeMap, BTreeSet};

pub fn command(command: Command) -> MetaCommand {
    MetaCommand { if_epoch: 0, command: Some(command) }
}

pub fn init_command(partitions: u32, replication_factor: u32, initial: u32) -> MetaCommand {
    command(Command::Init(MetaInit {
        cluster_id: "c".into(),
        partitions,
        replication_factor,
        initial_members: initial,
        feature_level: 1,
        first: Some(join_as("token-1", 0)),
        ..MetaInit::default()
    }))
}

pub fn join_as(token: &str, node_id: u64) -> MetaJoin {
    MetaJoin {
        token: token.into(),
        node_id,
        name: format!("name of {token}"),
        peer_address: format!("{token}:2601"),
        feature_level_max: 1,
        ..MetaJoin::default()
    }
}

pub fn apply(state: &mut MetaState, c: Command) -> MetaOutcome {
    apply_command(state, command(c)).unwrap()
}

fn placement(partitions: &[&[u64]]) -> Command {
    let nodes = |ids: &&[u64]| Nodes { node_ids: ids.to_vec() };
    Command::Place(MetaPlace { partitions: partitions.iter().map(nodes).collect() })
}

fn three_members(partitions: u32) -> MetaState {
    let mut state = MetaState::default();
    apply_command(&mut state, init_command(partitions, 3, 3)).unwrap();
    for token in ["token-2", "token-3"] {
        apply(&mut state, Command::Join(join_as(token, 0)));
    }
    for node_id in 1..=3 {
        apply(&mut state, Command::ActivateMember(MetaActivateMember { node_id }));
    }
    state
}

fn any_command() -> impl Strategy<Value = MetaCommand> {
    let node = 0..6u64;
    // Mostly placements that fit a state with three active members and two partitions.
    let nodes = prop_oneof![
        8 => Just(vec![2, 1, 3]),
        1 => prop::collection::vec(1..5u64, 2..4),
    ]
    .prop_map(|node_ids| Nodes { node_ids });
    let c = prop_oneof![
        1 => (0..5u32, 0..5u32, 0..4u32).prop_map(|(p, r, i)| Command::Init(MetaInit {
            cluster_id: "c".into(), partitions: p, replication_factor: r, initial_members: i,
            feature_level: 1, first: Some(join_as("token-1", 0)), ..MetaInit::default()
        })),
        4 => (1..6u32, prop_oneof![3 => Just(0u64), 1 => node.clone()], 0..3u32, 0..2u32)
            .prop_map(|(t, id, address, level)| Command::Join(MetaJoin {
                peer_address: format!("address {address}"),
                feature_level_max: level,
                ..join_as(&format!("token-{t}"), id)
            })),
        1 => node.clone().prop_map(|node_id| Command::Follow(MetaFollow { node_id })),
        4 => node.prop_map(|node_id| Command::ActivateMember(MetaActivateMember { node_id })),
        3 => prop_oneof![1 => prop::collection::vec(nodes.clone(), 1), 5 => prop::collection::vec(nodes, 2)]
            .prop_map(|partitions| Command::Place(MetaPlace { partitions })),
        2 => prop::collection::vec(prop_oneof![
                3 => Just(Nodes { node_ids: vec![1, 2, 3] }),
                2 => Just(Nodes { node_ids: vec![2, 3, 4] }),
            ], 2).prop_map(|partitions| Command::Retarget(MetaRetarget { partitions })),
        6 => (0..3u32, 0..6u64).prop_map(|(partition, node_id)|
            Command::CreateReplica(MetaCreateReplica { partition, node_id })),
        3 => (0..3u32, 0..20u64).prop_map(|(partition, replica_id)|
            Command::AdmitReplica(MetaAdmitReplica { partition, replica_id })),
        6 => (0..3u32, 0..20u64, any::<bool>()).prop_map(|(partition, replica_id, confirmed)|
            Command::ForgetReplica(MetaForgetReplica { partition, replica_id, confirmed })),
        2 => (0..6u64).prop_map(|node_id| Command::DrainMember(MetaDrainMember { node_id })),
        1 => (0..6u64).prop_map(|node_id| Command::UndrainMember(MetaUndrainMember { node_id })),
        1 => (0..6u64).prop_map(|node_id| Command::RemoveMember(MetaRemoveMember { node_id })),
        1 => any::<bool>().prop_map(|paused| Command::Pause(MetaPause { paused })),
    ];
    (0..2u64, c).prop_map(|(if_epoch, c)| MetaCommand { if_epoch, command: Some(c) })
}

proptest! {
    /// Whatever comes in whatever order, what the cluster relies on holds.
    #[test]
    fn ids_are_handed_out_once_and_epochs_rise(
        bootstrapped in prop::bool::weighted(0.8),
        commands in prop::collection::vec(any_command(), 1..60),
    ) {
        let mut state = MetaState::default();
        if bootstrapped {
            apply_command(&mut state, init_command(2, 3, 3)).unwrap();
        }
        // Who was ever given an id.
        let mut node_of_token = BTreeMap::new();
        let mut owner_of_replica = BTreeMap::new();
        for c in commands {
            let before = state.clone();
            let outcome = apply_command(&mut state, c.clone()).unwrap();
            match &outcome {
                MetaOutcome::Refused(reason) => {
                    prop_assert_eq!(&before, &state);
                    prop_assert!(!reason.is_empty());
                }
                MetaOutcome::Placed { epoch } => {
                    prop_assert_eq!((before.epoch + 1, *epoch), (state.epoch, state.epoch));
                }
                // A member that begins or ends to leave makes plans void.
                _ => {
                    let states = |s: &MetaState| -> Vec<(u64, bool)> {
                        let leaving = |m: &MetaMember| is_draining(m) || is_removed(m);
                        s.members.iter().map(|m| (m.node_id, leaving(m))).collect()
                    };
                    let same = states(&before) == states(&state)
                        || before.members.len() != state.members.len();
                    let removed = |s: &MetaState| s.members.iter().filter(|m| is_removed(m)).count();
                    let changed = !same || removed(&before) != removed(&state);
                    prop_assert_eq!(before.epoch + u64::from(changed && before.epoch > 0), state.epoch);
                }
            }
            if let (MetaOutcome::Joined { node_id, .. }, Some(Command::Join(j))) = (&outcome, &c.command) {
                let m = state.members.iter().find(|m| m.node_id == *node_id).unwrap();
                prop_assert_eq!((&m.token, &m.peer_address), (&j.token, &j.peer_address));
            }
            for m in &state.members {
                let id = *node_of_token.entry(m.token.clone()).or_insert(m.node_id);
                prop_assert_eq!(id, m.node_id);
                let owner = (None, m.node_id);
                prop_assert_eq!(*owner_of_replica.entry(m.meta_replica_id).or_insert(owner), owner);
            }
            for (p, partition) in state.placement.iter().enumerate() {
                prop_assert!(partition.replicas.len() <= 5);
                prop_assert_eq!(partition.target_node_ids.len(), 3);
                prop_assert_eq!(partition.genesis.len(), 3, "every replica starts from it");
                let nodes: BTreeSet<u64> = partition.replicas.iter().map(|r| r.node_id).collect();
                prop_assert_eq!(nodes.len(), partition.replicas.len(), "two on one node");
                for r in &partition.replicas {
                    let owner = (Some(p), r.node_id);
                    prop_assert_eq!(*owner_of_replica.entry(r.replica_id).or_insert(owner), owner);
                    prop_assert!(state.members.iter().any(|m| m.node_id == r.node_id && !is_removed(m)));
                }
                // What may be in its group goes only when the group has said that it is not.
                let was = before.placement.get(p).map(|b| b.replicas.as_slice()).unwrap_or_default();
                let gone = |r: &&MetaReplica| partition.replicas.iter().all(|now| now.replica_id != r.replica_id);
                for r in was.iter().filter(gone) {
                    let confirmed = matches!(&c.command, Some(Command::ForgetReplica(f)) if f.confirmed);
                    prop_assert!(!r.admitted || confirmed);
                }
            }
            let mut nodes: Vec<u64> = state.members.iter().map(|m| m.node_id).collect();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), state.members.len());
            prop_assert!(nodes.iter().all(|n| *n < state.next_node_id));
            prop_assert!(owner_of_replica.keys().all(|r| *r < state.next_replica_id.max(1)));
        }
    }
}

#[test]
fn a_join_with_the_same_token_gives_the_same_ids() {
    let mut state = three_members(2);
    let first = apply(&mut state, Command::Join(join_as("new", 0)));
    let ids = MetaOutcome::Joined { cluster_id: "c".into(), node_id: 4, meta_replica_id: 4 };
    assert_eq!(first, ids);
    assert_eq!(apply(&mut state, Command::Join(join_as("new", 0))), ids);
    let moved = MetaJoin { peer_address: "elsewhere:1".into(), ..join_as("new", 4) };
    assert_eq!(apply(&mut state, Command::Join(moved)), ids);
    assert_eq!(state.members[3].peer_address, "elsewhere:1");
}

#[test]
fn an_id_with_another_token_is_refused() {
    let mut state = three_members(2);
    let outcome = apply(&mut state, Command::Join(join_as("stolen", 2)));
    assert!(matches!(outcome, MetaOutcome::Refused(r) if r.contains("another data directory")));
}

#[test]
fn a_removed_member_stays_out() {
    let mut state = three_members(2);
    state.members[1].state = REMOVED;
    for join in [join_as("token-2", 2), join_as("token-2", 0)] {
        let outcome = apply(&mut state, Command::Join(join));
        assert!(matches!(outcome, MetaOutcome::Refused(r) if r.contains("removed")));
    }
}

#[test]
fn a_node_that_cannot_read_the_feature_level_is_refused() {
    let mut state = three_members(2);
    let old = MetaJoin { feature_level_max: 0, ..join_as("old", 0) };
    assert!(matches!(apply(&mut state, Command::Join(old)), MetaOutcome::Refused(_)));
}

#[test]
fn only_a_placement_that_fits_is_taken() {
    let mut state = three_members(2);
    apply(&mut state, Command::Join(join_as("joining", 0)));
    for (wrong, why) in [
        (placement(&[&[1, 2, 3]]), "1 partitions, 2 expected"),
        (placement(&[&[1, 2, 3], &[1, 2]]), "3 different ones"),
        (placement(&[&[1, 2, 3], &[1, 2, 2]]), "3 different ones"),
        (placement(&[&[1, 2, 3], &[1, 2, 4]]), "node 4, which is not active"),
        (placement(&[&[1, 2, 3], &[1, 2, 9]]), "node 9, which is not active"),
    ] {
        let MetaOutcome::Refused(r) = apply(&mut state, wrong) else { panic!("taken: {why}") };
        assert!(r.contains(why), "{r}");
    }
    let placed = apply(&mut state, placement(&[&[1, 2, 3], &[3, 1, 2]]));
    assert_eq!(placed, MetaOutcome::Placed { epoch: 1 });
    let ids: Vec<u64> =
        state.placement.iter().flat_map(|p| &p.replicas).map(|r| r.replica_id).collect();
    assert_eq!(ids, [5, 6, 7, 8, 9, 10]);
    let again = apply(&mut state, placement(&[&[1, 2, 3], &[3, 1, 2]]));
    assert!(matches!(again, MetaOutcome::Refused(_)), "a second one would orphan the first");
}

#[test]
fn a_command_planned_on_another_epoch_is_refused() {
    let mut state = three_members(1);
    apply(&mut state, placement(&[&[1, 2, 3]]));
    let mut c = command(Command::Follow(MetaFollow { node_id: 1 }));
    c.if_epoch = 7;
    assert!(matches!(apply_command(&mut state, c.clone()), Ok(MetaOutcome::Refused(_))));
    c.if_epoch = 1;
    assert_eq!(apply_command(&mut state, c), Ok(MetaOutcome::Done));
}

#[test]
fn a_cluster_is_bootstrapped_once() {
    let mut state = three_members(2);
    let before = state.clone();
    assert_eq!(apply_command(&mut state, init_command(2, 3, 3)), Ok(MetaOutcome::Done));
    assert_eq!(state, before);
    let mut other = init_command(2, 3, 3);
    if let Some(Command::Init(i)) = &mut other.command {
        i.cluster_id = "other".into();
    }
    assert!(matches!(apply_command(&mut state, other), Ok(MetaOutcome::Refused(_))));
}

#[test]
fn a_member_is_drained_and_then_removed_and_turns_round_in_between() {
    let mut state = three_members(1);
    apply(&mut state, placement(&[&[1, 2, 3]]));
    apply(&mut state, Command::Join(join_as("token-4", 0)));
    apply(&mut state, Command::ActivateMember(MetaActivateMember { node_id: 4 }));
    let remove = || Command::RemoveMember(MetaRemoveMember { node_id: 3 });
    let refused = |state: &mut MetaState, why: &str| {
        let MetaOutcome::Refused(r) = apply(state, remove()) else { panic!("removed: {why}") };
        assert!(r.contains(why), "{r}");
    };
    refused(&mut state, "1 partitions: drain it first");
    apply(&mut state, Command::DrainMember(MetaDrainMember { node_id: 3 }));
    assert_eq!((is_draining(&state.members[2]), state.epoch), (true, 2));
    apply(&mut state, Command::UndrainMember(MetaUndrainMember { node_id: 3 }));
    assert_eq!((is_active(&state.members[2]), state.epoch), (true, 3));
    apply(&mut state, Command::DrainMember(MetaDrainMember { node_id: 3 }));
    let partitions = vec![Nodes { node_ids: vec![1, 2, 4] }];
    apply(&mut state, Command::Retarget(MetaRetarget { partitions }));
    refused(&mut state, "1 partitions: drain it first");
    let forget = |confirmed| {
        Command::ForgetReplica(MetaForgetReplica { partition: 0, replica_id: 6, confirmed })
    };
    let replica = state.placement[0].replicas[2];
    assert_eq!((replica.replica_id, replica.node_id), (6, 3));
    assert!(matches!(apply(&mut state, forget(false)), MetaOutcome::Refused(_)));
    assert_eq!(apply(&mut state, forget(true)), MetaOutcome::Done);
    assert_eq!(apply(&mut state, remove()), MetaOutcome::Done);
    assert_eq!(apply(&mut state, remove()), MetaOutcome::Done, "said again");
    assert!(is_removed(&state.members[2]));
    let again = apply(&mut state, Command::Join(join_as("token-3", 3)));
    assert!(matches!(again, MetaOutcome::Refused(r) if r.contains("removed")));
}

#[test]
fn an_unknown_command_stops_the_group() {
    let unknown = MetaCommand { if_epoch: 0, command: None };
    assert!(apply_command(&mut MetaState::default(), unknown).is_err());
}

#[test]
fn members_that_were_removed_long_ago_are_known_by_their_ids() {
    let mut state = three_members(2);
    let first = state.next_node_id;
    for n in 0..REMOVED_KEPT as u64 + 10 {
        apply(&mut state, Command::Join(join_as(&format!("left-{n}"), 0)));
        let node_id = first + n;
        apply(&mut state, Command::RemoveMember(MetaRemoveMember { node_id }));
    }
    assert_eq!(state.members.iter().filter(|m| is_removed(m)).count(), REMOVED_KEPT);
    assert!(was_removed(&state, first) && state.members.iter().all(|m| m.node_id != first));
    assert!(was_removed(&state, first + 20) && !was_removed(&state, state.next_node_id));
    assert!(!was_removed(&state, FIRST_ID) && !was_removed(&state, 0));
    let back = Command::Join(join_as("left-0", first));
    let refused = apply_command(&mut state, command(back)).unwrap();
    assert!(
        matches!(&refused, MetaOutcome::Refused(r) if r.contains("was removed")),
        "{refused:?}"
    );
}
