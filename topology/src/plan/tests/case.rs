//! Small clusters, written down.

use super::super::*;
use super::sim::member;
use crate::LOAD_FACTOR;

pub const BEHIND: Health = Health::Behind { matched: 0, missing: 7 };
pub const DOWN: Reach = Reach::Down { lost: false };
pub const LOST: Reach = Reach::Down { lost: true };

/// Five nodes that are up; each test has partitions with three replicas.
pub struct Case {
    pub members: Vec<PlanMember>,
    pub target: Vec<Vec<u64>>,
    pub partitions: Vec<PartitionFact>,
    pub limits: Limits,
    pub is_paused: bool,
    pub replication_factor: u32,
}

/// A partition: (node, role, health); replica ids are 10 × partition + node.
pub fn case(target: [u64; 3], replicas: &[(u64, Role, Health)]) -> Case {
    let mut case = Case {
        members: (1..=5).map(|id| member(id, "", 100)).collect(),
        target: Vec::new(),
        partitions: Vec::new(),
        limits: Limits::default(),
        is_paused: false,
        replication_factor: 3,
    };
    case.partition(target, replicas);
    case
}

impl Case {
    /// The first replica leads.
    pub fn partition(&mut self, target: [u64; 3], replicas: &[(u64, Role, Health)]) {
        let base = 10 * self.partitions.len() as u64;
        let facts = replicas.iter().map(|&(node_id, role, health)| ReplicaFact {
            replica_id: base + node_id,
            node_id,
            role,
            health,
            is_recorded: true,
        });
        self.target.push(target.to_vec());
        self.partitions.push(PartitionFact {
            replicas: facts.collect(),
            leader: replicas.first().map(|r| base + r.0),
            is_joint: replicas.iter().any(|r| matches!(r.1, Role::Entering | Role::Leaving)),
            change_pending: false,
            is_known: true,
            bytes: 100,
        });
    }

    pub fn node(&mut self, id: u64) -> &mut PlanMember {
        &mut self.members[id as usize - 1]
    }

    pub fn with_reach(mut self, id: u64, reach: Reach) -> Case {
        self.node(id).reach = reach;
        self
    }

    pub fn draining(mut self, id: u64) -> Case {
        self.node(id).state = MemberState::Draining;
        self
    }

    pub fn with<T>(&self, f: impl FnOnce(&PlanInput<'_>) -> T) -> T {
        f(&PlanInput {
            members: &self.members,
            replication_factor: self.replication_factor,
            load_factor: LOAD_FACTOR,
            target: &self.target,
            partitions: &self.partitions,
            limits: self.limits,
            is_paused: self.is_paused,
        })
    }

    pub fn plan(&self) -> Plan {
        self.with(|input| {
            let plan = plan(input);
            super::invariants::hold(input, &plan);
            plan
        })
    }

    /// The only step.
    pub fn step(&self) -> (StepKind, Reason) {
        let plan = self.plan();
        assert_eq!(plan.steps.len(), 1, "{plan:#?}");
        (plan.steps[0].kind, plan.steps[0].reason)
    }

    /// No step, and why.
    pub fn waits(&self) -> String {
        let plan = self.plan();
        assert_eq!(plan.steps, [], "{plan:#?}");
        assert!(!plan.at_rest);
        plan.waiting.into_iter().map(|w| w.explanation).collect::<Vec<_>>().join("\n")
    }
}

pub fn voters(nodes: [u64; 3]) -> [(u64, Role, Health); 3] {
    nodes.map(|n| (n, Role::Voter, Health::Ready))
}

pub fn and(nodes: [u64; 3], more: &[(u64, Role, Health)]) -> Vec<(u64, Role, Health)> {
    [&voters(nodes)[..], more].concat()
}

pub fn swap(promote: u64, remove: u64) -> StepKind {
    StepKind::Swap { promote: Some(promote), remove: Some(remove) }
}
