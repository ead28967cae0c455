//! What the planner plans from, out of the meta group's records and the nodes' reports. Pure.
use super::contacts::{Contacts, Reached};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::replicas::target_of;
use crate::meta::state::{is_active, is_draining};
use crate::raft::membership::{CATCH_UP_LAG_MAX, Membership};
use ringfold_proto::internal::{LeaderReport, MetaPartition, MetaState, ReplicaReport};
use ringfold_topology::plan::{
    Health, Limits, MemberState, PartitionFact, PlanInput, PlanMember, Reach, ReplicaFact, Role,
};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// The leader of a group as it reported itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Led {
    pub node: NodeId,
    pub replica: ReplicaId,
    pub membership_index: u64,
}

/// What was observed at one time.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// In which the observer leads the meta group.
    pub term: u64,
    pub epoch: u64,
    pub replication_factor: u32,
    pub paused: bool,
    pub members: Vec<PlanMember>,
    pub target: Vec<Vec<u64>>,
    pub partitions: Vec<PartitionFact>,
    /// By partition.
    pub leaders: Vec<Option<Led>>,
    /// Replicas that were, or may yet be, proposed to their groups.
    pub admitted: BTreeSet<u64>,
}

impl Observation {
    pub fn new(
        term: u64,
        state: &MetaState,
        contacts: &Contacts,
        now: Instant,
        lost_after: Duration,
    ) -> Observation {
        let members = state.members.iter().filter(|m| is_active(m) || is_draining(m));
        let members: Vec<PlanMember> = members
            .map(|m| {
                let node = NodeId(m.node_id);
                let report = contacts.report(node, now);
                PlanMember {
                    node_id: m.node_id,
                    zone: m.zone.clone(),
                    weight: ringfold_topology::NORMAL_WEIGHT,
                    state: match is_draining(m) {
                        true => MemberState::Draining,
                        false => MemberState::Active,
                    },
                    reach: match contacts.reached(node, now, lost_after) {
                        Reached::Up => Reach::Up,
                        Reached::Down { lost } => Reach::Down { lost },
                    },
                    free_bytes: report.map(|r| r.disk_free_bytes),
                    may_lead: report.is_none_or(|r| !r.appends_refused),
                }
            })
            .collect();
        let reports = Reports::new(contacts, now);
        let mut partitions = Vec::with_capacity(state.placement.len());
        let mut leaders = Vec::with_capacity(state.placement.len());
        for (p, placed) in (0..).zip(&state.placement) {
            let (fact, led) = reports.partition(GroupId::of_partition(p), placed);
            partitions.push(fact);
            leaders.push(led);
        }
        let recorded = state.placement.iter().flat_map(|p| &p.replicas);
        Observation {
            term,
            admitted: recorded.filter(|r| r.admitted).map(|r| r.replica_id).collect(),
            epoch: state.epoch,
            replication_factor: state.replication_factor,
            paused: state.paused,
            members,
            target: state.placement.iter().map(target_of).collect(),
            partitions,
            leaders,
        }
    }

    pub fn plan_input(&self, limits: Limits) -> PlanInput<'_> {
        PlanInput {
            members: &self.members,
            replication_factor: self.replication_factor,
            load_factor: ringfold_topology::LOAD_FACTOR,
            target: &self.target,
            partitions: &self.partitions,
            limits,
            is_paused: self.paused,
        }
    }
}

/// Fresh reports by group and replica.
struct Reports<'a> {
    by_group: HashMap<GroupId, Vec<(NodeId, &'a ReplicaReport)>>,
    contacts: &'a Contacts,
}

impl<'a> Reports<'a> {
    fn new(contacts: &'a Contacts, now: Instant) -> Reports<'a> {
        let mut reports: HashMap<_, Vec<_>> = HashMap::new();
        for (node, report) in contacts.fresh(now).filter(|(_, r)| !r.lost) {
            for r in &report.replicas {
                reports.entry(GroupId(r.group)).or_default().push((node, r));
            }
        }
        Reports { by_group: reports, contacts }
    }

    fn partition(&self, group: GroupId, placed: &MetaPartition) -> (PartitionFact, Option<Led>) {
        let empty = Vec::new();
        let reports = self.by_group.get(&group).unwrap_or(&empty);
        // Of two that think that they lead, the later one.
        let leader = reports
            .iter()
            .filter_map(|(node, r)| Some((*node, ReplicaId(r.replica_id), r.leads.as_ref()?)))
            .max_by_key(|(_, _, l)| l.term);
        let membership = leader
            .map(|(_, _, l)| Membership::from_proto(&l.membership.clone().unwrap_or_default()));
        let health = |node: u64, replica: u64| {
            let own = reports.iter().find(|(n, r)| n.0 == node && r.replica_id == replica);
            match (own, leader) {
                (Some((_, r)), _) if r.closed => Health::Closed,
                // Not there, and its node would know.
                (None, _) if self.contacts.is_missing(NodeId(node), replica) => Health::Closed,
                (None, _) | (_, None) => Health::Unknown,
                (Some(_), Some((_, _, l))) => health_of(l, replica),
            }
        };
        let fact = |node_id: u64, replica_id: u64, admitted: bool, is_recorded: bool| {
            let role = match &membership {
                None if admitted => Role::Voter,
                None => Role::Recorded,
                Some(m) => {
                    let new = m.voters.contains(&replica_id);
                    let old =
                        if m.is_joint() { m.voters_outgoing.contains(&replica_id) } else { new };
                    let learner =
                        m.learners.contains(&replica_id) || m.learners_next.contains(&replica_id);
                    // One whose proposal was lost after its mark is proposed again. It was in the
                    // group once if its node is known there.
                    // One that its leader takes in no more has left for good.
                    let is_renounced =
                        leader.is_some_and(|(_, _, l)| l.renounced.contains(&replica_id));
                    let was_there = m.nodes.contains_key(&ReplicaId(replica_id));
                    let joined = admitted && (was_there || is_renounced);
                    Role::of(joined, new, old, learner)
                }
            };
            let health = health(node_id, replica_id);
            ReplicaFact { replica_id, node_id, role, health, is_recorded }
        };
        let mut replicas: Vec<ReplicaFact> = placed
            .replicas
            .iter()
            .map(|r| fact(r.node_id, r.replica_id, r.admitted, true))
            .collect();
        for (replica, node) in membership.iter().flat_map(|m| &m.nodes) {
            let is_member = membership.as_ref().is_some_and(|m| m.contains(*replica));
            if is_member && replicas.iter().all(|r| r.replica_id != replica.0) {
                replicas.push(fact(node.0, replica.0, true, false));
            }
        }
        let partition = PartitionFact {
            replicas,
            leader: leader.map(|(_, replica, _)| replica.0),
            is_joint: membership.as_ref().is_some_and(Membership::is_joint),
            change_pending: leader.is_some_and(|(_, _, l)| l.change_pending),
            is_known: leader.is_some(),
            bytes: reports.iter().map(|(_, r)| r.bytes).max().unwrap_or(0),
        };
        let led = leader.map(|(node, replica, l)| Led {
            node,
            replica,
            membership_index: l.membership_index,
        });
        (partition, led)
    }
}

fn health_of(leader: &LeaderReport, replica: u64) -> Health {
    let Some(matched) = leader.matched.get(&replica).copied() else { return Health::Unknown };
    let missing = leader.commit_index.saturating_sub(matched);
    match missing {
        0..=CATCH_UP_LAG_MAX if matched > 0 => Health::Ready,
        _ => Health::Behind { matched, missing },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_proto::internal::{MetaReplica, ReportAnswer};

    /// Replica n on node n; replica 1 leads a group of three that has seen no other.
    fn observe(leads: LeaderReport, recorded: &[(u64, bool)]) -> PartitionFact {
        let (now, nodes) = (Instant::now(), (1..5).map(NodeId).collect::<BTreeSet<_>>());
        let members = (1..4).map(|n| (ReplicaId(n), NodeId(n))).collect::<Vec<_>>();
        let membership = Some(Membership::genesis(&members).to_proto());
        let leads = LeaderReport { membership, matched: [(2, 9)].into(), commit_index: 9, ..leads };
        let report = |n: &NodeId| {
            let leads = (n.0 == 1).then(|| leads.clone());
            let replica =
                ReplicaReport { group: 1, replica_id: n.0, leads, ..ReplicaReport::default() };
            // Node 3 has nothing.
            let replicas = if n.0 == 3 { vec![] } else { vec![replica] };
            (*n, ReportAnswer { replicas, followed_replica_id: 100, ..Default::default() })
        };
        let replicas = recorded.iter().map(|&(replica_id, admitted)| MetaReplica {
            replica_id,
            node_id: replica_id,
            admitted,
        });
        let placed = MetaPartition { replicas: replicas.collect(), ..Default::default() };
        let state = MetaState { placement: vec![placed], ..Default::default() };
        let mut contacts = Contacts::default();
        for _ in 0..3 {
            contacts.heard(now, &nodes, nodes.iter().map(report).collect());
            contacts.look_for_missing(&state);
        }
        Observation::new(1, &state, &contacts, now, Duration::MAX).partitions.remove(0)
    }

    #[test]
    fn a_replica_that_was_admitted_and_never_came_is_still_to_come_unless_its_leader_gave_it_up() {
        let role = |renounced, admitted| {
            let leads = LeaderReport { renounced, ..Default::default() };
            observe(leads, &[(1, true), (2, true), (3, true), (4, admitted)]).replicas[3].role
        };
        assert_eq!(role(vec![], false), Role::Recorded);
        assert_eq!(role(vec![], true), Role::Recorded);
        assert_eq!(role(vec![4], true), Role::Left);
        let leads = LeaderReport::default();
        let gone = observe(leads, &[(1, true), (2, true), (4, true)]);
        let unrecorded = gone.replicas.iter().find(|r| r.replica_id == 3).unwrap();
        assert!(!unrecorded.is_recorded && unrecorded.role == Role::Voter);
    }

    #[test]
    fn a_voter_that_its_node_does_not_have_is_closed() {
        let fact = observe(LeaderReport::default(), &[(1, true), (2, true), (3, true)]);
        let health = |i: usize| fact.replicas[i].health;
        assert_eq!((health(1), health(2)), (Health::Ready, Health::Closed));
    }
}
