use super::*;
use crate::meta::state::apply_command;
use crate::meta::state::tests::{apply, command, init_command as init, join_as};
use crate::raft::membership::Membership;
use parking_lot::Mutex;
use proptest::prelude::*;
use ringfold_proto::internal::{MetaDrainMember, MetaRemoveMember};

fn round_robin(state: &MetaState) -> Result<Vec<Vec<NodeId>>, String> {
    let nodes: Vec<u64> =
        state.members.iter().filter(|m| is_active(m)).map(|m| m.node_id).collect();
    let rf = state.replication_factor as usize;
    Ok((0..state.partitions as usize)
        .map(|p| (0..rf).map(|i| NodeId(nodes[(p + i) % nodes.len()])).collect())
        .collect())
}

/// A meta group in one value: what is proposed or changed happens at once.
#[derive(Clone)]
struct Model {
    state: MetaState,
    facts: MetaFacts,
    /// Replicas that do not answer.
    silent: Vec<u64>,
}

impl Model {
    fn new() -> Model {
        let (replica, node) = first_voter();
        let group = GroupFacts {
            is_leader: true,
            membership: Membership::genesis(&[(replica, node)]),
            commit_index: 1,
            ..GroupFacts::default()
        };
        let facts = MetaFacts { group, own: replica, ..MetaFacts::default() };
        Model { state: MetaState::default(), facts, silent: Vec::new() }
    }

    fn with_members(members: u64) -> Model {
        let mut model = Model::new();
        apply_command(&mut model.state, init(8, 3, 3)).unwrap();
        for n in 2..=members {
            apply(&mut model.state, Command::Join(join_as(&format!("token-{n}"), 0)));
        }
        model
    }

    fn decide(&self) -> Vec<MetaAction> {
        decide(&self.state, &self.facts, Some(&init(8, 3, 3)), &round_robin)
    }

    fn execute(&mut self, action: &MetaAction) -> MetaOutcome {
        self.facts.group.commit_index += 1;
        let mut outcome = MetaOutcome::Done;
        match action {
            MetaAction::Propose(c) => {
                outcome = apply_command(&mut self.state, c.clone()).unwrap();
                assert!(!matches!(outcome, MetaOutcome::Refused(_)), "{action:?}: {outcome:?}");
            }
            MetaAction::Change(change) => {
                let m = &mut self.facts.group.membership;
                match change {
                    MembershipChange::AddLearner(r, n) => {
                        assert!(!m.contains(*r));
                        m.learners.push(r.0);
                        m.nodes.insert(*r, *n);
                    }
                    MembershipChange::Promote(r) => {
                        let at = m.learners.iter().position(|l| *l == r.0).unwrap();
                        m.voters.push(m.learners.remove(at));
                        let voters = m.voters.len();
                        let live = m.voters.iter().filter(|v| !self.silent.contains(v)).count();
                        assert!(live > voters / 2, "the change itself cannot be committed");
                    }
                    MembershipChange::Demote(r) => {
                        let at = m.voters.iter().position(|v| *v == r.0).unwrap();
                        m.learners.push(m.voters.remove(at));
                        assert!(!m.voters.is_empty());
                    }
                    MembershipChange::Remove(r) => {
                        let at = m.learners.iter().position(|l| *l == r.0);
                        m.learners.remove(at.expect("a voter is a learner before it goes"));
                    }
                    other => panic!("{other:?} is not for the meta group"),
                }
            }
            MetaAction::Transfer(to) => {
                assert!(self.facts.group.membership.voters.contains(&to.0));
                self.facts.own = *to;
            }
            MetaAction::CannotPlace(reason) => panic!("{reason}"),
        }
        let m = &self.facts.group.membership;
        for r in m.voters.iter().chain(&m.learners) {
            if !self.silent.contains(r) {
                self.facts.group.matched.insert(*r, self.facts.group.commit_index);
            }
        }
        outcome
    }

    /// Steps until nothing is due.
    fn settle(&mut self) {
        for _ in 0..200 {
            let actions = self.decide();
            if actions.is_empty() {
                return;
            }
            let changes = actions.iter().filter(|a| matches!(a, MetaAction::Change(_))).count();
            assert!(changes <= 1, "{actions:?}");
            for a in actions {
                self.execute(&a);
            }
        }
        panic!("never settles: {:?}", self.decide());
    }
}

#[test]
fn a_cluster_begins_with_its_first_node() {
    let mut model = Model::new();
    model.settle();
    let s = &model.state;
    assert_eq!((s.cluster_id.as_str(), s.members.len(), s.epoch), ("c", 1, 0));
    assert!(is_active(&s.members[0]));
    assert_eq!(model.facts.group.membership.voters, [1]);
}

#[test]
fn nothing_is_begun_by_a_node_that_was_not_told_to() {
    let model = Model::new();
    assert!(decide(&model.state, &model.facts, None, &round_robin).is_empty());
}

#[test]
fn only_the_leader_acts() {
    let mut model = Model::with_members(3);
    model.facts.group.is_leader = false;
    assert!(model.decide().is_empty());
}

#[test]
fn a_pending_change_is_waited_for() {
    let mut model = Model::with_members(3);
    model.facts.group.change_pending = true;
    assert!(!model.decide().iter().any(|a| matches!(a, MetaAction::Change(_))));
}

fn is_place(action: &MetaAction) -> bool {
    matches!(action, MetaAction::Propose(MetaCommand { command: Some(Command::Place(_)), .. }))
}

#[test]
fn members_that_do_not_answer_are_not_counted() {
    let mut model = Model::with_members(3);
    model.silent = vec![3];
    model.settle();
    assert_eq!(model.facts.group.membership.voters, [1]);
    assert_eq!(model.state.epoch, 0, "two active members cannot hold three replicas");
    model.silent.clear();
    model.facts.group.matched.insert(3, model.facts.group.commit_index);
    model.settle();
    assert_eq!(model.facts.group.membership.voters, [1, 2, 3]);
    assert_eq!(model.state.epoch, 1);
}

#[test]
fn the_group_never_stays_at_two_voters_and_places_nothing_before_it_is_three() {
    let mut model = Model::with_members(3);
    for n in 1..=3 {
        apply(&mut model.state, Command::ActivateMember(MetaActivateMember { node_id: n }));
    }
    for n in 2..=3 {
        model.execute(&MetaAction::Change(MembershipChange::AddLearner(ReplicaId(n), NodeId(n))));
    }
    model.facts.group.matched.insert(3, 1);
    assert_eq!(model.decide(), [], "replica 3 has fallen behind: a second voter would be too few");
    model.facts.group.matched.insert(3, model.facts.group.commit_index);
    let promote = [MetaAction::Change(MembershipChange::Promote(ReplicaId(2)))];
    assert_eq!(model.decide(), promote);
    model.execute(&promote[0]);
    assert!(!model.decide().iter().any(is_place));
    model.execute(&MetaAction::Change(MembershipChange::Promote(ReplicaId(3))));
    assert!(model.decide().iter().any(is_place));
}

#[test]
fn voters_spread_over_zones() {
    let mut model = Model::with_members(5);
    for (m, zone) in model.state.members.iter_mut().zip(["a", "a", "a", "b", "c"]) {
        m.zone = zone.into();
    }
    model.settle();
    assert_eq!(model.facts.group.membership.voters, [1, 4, 5]);
}

#[test]
fn a_placement_that_cannot_be_made_is_said() {
    let mut model = Model::with_members(3);
    model.settle();
    model.state.epoch = 0;
    let actions =
        decide(&model.state, &model.facts, None, &|_: &MetaState| Err("no room".to_owned()));
    assert_eq!(actions, [MetaAction::CannotPlace("no room".into())]);
}

proptest! {
    /// Nodes join and fall silent whenever they like: the group gets where it should.
    #[test]
    fn every_cluster_settles(
        joins in prop::collection::vec((0..14u64, 0..4usize), 0..20),
        silent in prop::collection::vec(2..14u64, 0..4),
    ) {
        let mut model = Model::with_members(1);
        model.silent = silent;
        for (n, steps) in joins {
            apply(&mut model.state, Command::Join(join_as(&format!("token-{n}"), 0)));
            for a in model.decide().into_iter().take(steps) {
                model.execute(&a);
            }
        }
        model.settle();
        let members = &model.state.members;
        let well: Vec<_> = members.iter().filter(|m| !model.silent.contains(&m.meta_replica_id)).collect();
        let membership = &model.facts.group.membership;
        prop_assert!(well.iter().all(|m| is_active(m)));
        prop_assert_eq!(membership.voters.len(), voters_wanted(well.len()));
        prop_assert_eq!(membership.voters.len() + membership.learners.len(), members.len());
        prop_assert_eq!(model.state.epoch, u64::from(well.len() >= 3));
    }
}

#[test]
fn a_voter_that_drains_is_replaced_before_it_leaves_and_leads_no_more() {
    let mut model = Model::with_members(4);
    model.settle();
    assert_eq!(model.facts.group.membership.voters, [1, 2, 3]);
    apply(&mut model.state, Command::DrainMember(MetaDrainMember { node_id: 1 }));
    while let Some(action) = model.decide().first().cloned() {
        let voters = &model.facts.group.membership.voters;
        assert!(voters.iter().filter(|v| **v != 1).count() >= 2, "{voters:?}");
        model.execute(&action);
    }
    let m = &model.facts.group.membership;
    let mut voters = m.voters.clone();
    voters.sort_unstable();
    assert_eq!((voters, m.learners.as_slice()), (vec![2, 3, 4], [1].as_slice()));
    assert_ne!(model.facts.own, ReplicaId(1));
}

#[test]
fn a_lost_voter_is_replaced_and_a_removed_member_leaves_the_group() {
    let mut model = Model::with_members(4);
    model.settle();
    model.silent = vec![3];
    model.facts.down.insert(3);
    assert_eq!(model.decide(), [], "a node that is down for a moment is waited for");
    model.facts.lost.insert(3);
    model.settle();
    assert_eq!(model.facts.group.membership.voters, [1, 2, 4]);
    assert_eq!(model.facts.group.membership.learners, [3]);
    for p in &mut model.state.placement {
        p.replicas.retain(|r| r.node_id != 3);
        p.target_node_ids.retain(|n| *n != 3);
    }
    apply(&mut model.state, Command::DrainMember(MetaDrainMember { node_id: 3 }));
    apply(&mut model.state, Command::RemoveMember(MetaRemoveMember { node_id: 3 }));
    assert_eq!(model.decide(), [], "it may only be slow to hear of it");
    model.facts.down.clear();
    model.facts.group.silent.insert(3);
    model.settle();
    assert!(!model.facts.group.membership.contains(ReplicaId(3)));
}

#[test]
fn a_member_that_was_removed_while_it_voted_is_a_learner_before_it_goes() {
    let mut model = Model::with_members(4);
    model.settle();
    let m = model.state.members.iter_mut().find(|m| m.node_id == 3).unwrap();
    m.state = ringfold_proto::v1::MemberState::Removed as u32;
    let mut changes = Vec::new();
    while let Some(action) = model.decide().first().cloned() {
        model.execute(&action);
        changes.push(action);
    }
    let change = |c| MetaAction::Change(c);
    let [three, four] = [3, 4].map(ReplicaId);
    let order = [
        change(MembershipChange::Promote(four)),
        change(MembershipChange::Demote(three)),
        change(MembershipChange::Remove(three)),
    ];
    assert_eq!(changes, order);
}

struct Fake(Mutex<Model>, watch::Sender<Arc<MetaState>>);

#[tonic::async_trait]
impl MetaGroup for Fake {
    async fn facts(&self) -> Option<MetaFacts> {
        Some(self.0.lock().facts.clone())
    }
    async fn propose(&self, command: &MetaCommand) -> Result<MetaOutcome, ProposeError> {
        let mut model = self.0.lock();
        let outcome = model.execute(&MetaAction::Propose(command.clone()));
        self.1.send_replace(Arc::new(model.state.clone()));
        Ok(outcome)
    }
    async fn change(&self, change: MembershipChange, planned_on: u64) -> Result<(), String> {
        assert_eq!(planned_on, self.0.lock().facts.group.membership_index);
        self.0.lock().execute(&MetaAction::Change(change));
        Ok(())
    }
    async fn transfer(&self, to: ReplicaId) -> Result<(), String> {
        self.0.lock().execute(&MetaAction::Transfer(to));
        Ok(())
    }
}

#[tokio::test]
async fn the_loop_bootstraps_grows_and_stops() {
    let (publish, mut state) = watch::channel(Arc::default());
    let fake = Arc::new(Fake(Mutex::new(Model::new()), publish));
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(
        fake.clone(),
        state.clone(),
        Some(init(8, 3, 3)),
        Arc::new(round_robin),
        stop.clone(),
    ));
    let limit = Duration::from_secs(20);
    let begun = state.wait_for(|s| s.members.iter().any(is_active));
    drop(tokio::time::timeout(limit, begun).await.unwrap().unwrap());
    for n in 2..=3 {
        let join = command(Command::Join(join_as(&format!("token-{n}"), 0)));
        fake.propose(&join).await.unwrap();
    }
    drop(tokio::time::timeout(limit, state.wait_for(|s| s.epoch == 1)).await.unwrap().unwrap());
    stop.cancel();
    tokio::time::timeout(limit, running).await.unwrap().unwrap();
}
