//! A small cluster that executes steps: what the meta group records, what each group's membership
//! is, and which replicas are where. Steps get lost, come twice, or late.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use super::invariants;
use crate::{LOAD_FACTOR, Member, PlacementInput, place};

/// Reproducible choices.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    pub fn percent(&mut self, p: usize) -> bool {
        self.below(100) < p
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// So many more observations until it has everything.
    Lacks(u64),
    Complete,
    Closed,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    AddLearner(u64),
    RemoveLearner(u64),
    Swap(Option<u64>, Option<u64>),
    LeaveJoint,
}

#[derive(Clone, Debug, Default)]
pub struct Group {
    /// The meta group's records: replica -> joined.
    pub records: BTreeMap<u64, bool>,
    pub membership: BTreeMap<u64, Role>,
    pub data: BTreeMap<u64, Data>,
    pub leader: Option<u64>,
    pub version: u64,
    pub(super) pending: Option<Change>,
}

#[derive(Clone, Debug)]
pub struct Sim {
    pub members: Vec<PlanMember>,
    pub replication_factor: u32,
    pub target: Vec<Vec<u64>>,
    pub groups: Vec<Group>,
    /// By replica, for ever.
    pub node_of: BTreeMap<u64, u64>,
    pub limits: Limits,
    pub is_paused: bool,
    pub creates: usize,
    /// Nodes that never come back.
    pub gone: BTreeSet<u64>,
    /// In percent: a step is lost, comes twice, or late.
    pub faults: usize,
    pub rng: Rng,
    /// (rounds to wait, version, step)
    late: Vec<(usize, u64, Step)>,
    pub(super) late_learners: Vec<(usize, u64, u32, u64)>,
}

pub const BYTES: u64 = 1000;

pub fn member(node_id: u64, zone: &str, weight: u32) -> PlanMember {
    PlanMember {
        node_id,
        zone: zone.to_owned(),
        weight,
        state: MemberState::Active,
        reach: Reach::Up,
        free_bytes: None,
        may_lead: true,
    }
}

impl Sim {
    pub fn new(
        members: Vec<PlanMember>,
        partitions: u32,
        replication_factor: u32,
        seed: u64,
    ) -> Sim {
        let nodes: Vec<Member> = members
            .iter()
            .map(|m| Member { node_id: m.node_id, zone: m.zone.clone(), weight: m.weight })
            .collect();
        let target = place(&PlacementInput {
            members: &nodes,
            partitions,
            replication_factor,
            load_factor: LOAD_FACTOR,
            current: None,
        })
        .unwrap()
        .placement
        .partitions;
        let mut sim = Sim {
            members,
            replication_factor,
            target: target.clone(),
            groups: Vec::new(),
            node_of: BTreeMap::new(),
            limits: Limits::default(),
            is_paused: false,
            creates: 0,
            gone: BTreeSet::new(),
            faults: 0,
            rng: Rng(seed),
            late: Vec::new(),
            late_learners: Vec::new(),
        };
        for row in &target {
            let mut group = Group::default();
            for &node in row {
                let id = sim.new_id(node);
                group.records.insert(id, true);
                group.membership.insert(id, Role::Voter);
                group.data.insert(id, Data::Complete);
                group.leader = group.leader.or(Some(id));
            }
            sim.groups.push(group);
        }
        sim
    }

    pub(super) fn new_id(&mut self, node: u64) -> u64 {
        let id = self.node_of.len() as u64 + 1;
        assert!(self.node_of.insert(id, node).is_none(), "a replica id is used once");
        id
    }

    pub fn member(&mut self, node_id: u64) -> &mut PlanMember {
        self.members.iter_mut().find(|m| m.node_id == node_id).unwrap()
    }

    pub fn is_up(&self, replica: u64) -> bool {
        let node = self.node_of[&replica];
        self.members.iter().any(|m| m.node_id == node && m.reach == Reach::Up)
    }

    pub(super) fn is_healthy(&self, p: usize, replica: u64) -> bool {
        let data = self.groups[p].data.get(&replica);
        self.is_up(replica) && data.is_some_and(|d| *d != Data::Closed)
    }

    /// A majority of both memberships `passes`.
    pub fn has_majority(&self, p: usize, passes: impl Fn(u64) -> bool) -> bool {
        [Role::Leaving, Role::Entering].iter().all(|other| {
            let voters: Vec<u64> = self.groups[p]
                .membership
                .iter()
                .filter(|(_, role)| **role != Role::Learner && *role != other)
                .map(|(id, _)| *id)
                .collect();
            voters.iter().filter(|id| passes(**id)).count() > voters.len() / 2
        })
    }

    /// It has a majority that is not gone for good, also without `closed` and node `gone`; and no
    /// change is under way that could alter that.
    pub fn survives(&self, p: usize, closed: Option<u64>, gone: Option<u64>) -> bool {
        let g = &self.groups[p];
        g.pending.is_none()
            && self.has_majority(p, |id| {
                let node = self.node_of[&id];
                Some(id) != closed
                    && Some(node) != gone
                    && !self.gone.contains(&node)
                    && g.data.get(&id).is_some_and(|d| *d != Data::Closed)
            })
    }

    pub fn facts(&self) -> Vec<PartitionFact> {
        (0..self.groups.len()).map(|p| self.fact(p)).collect()
    }

    pub(super) fn fact(&self, p: usize) -> PartitionFact {
        let g = &self.groups[p];
        let ids: BTreeSet<u64> = g.records.keys().chain(g.membership.keys()).copied().collect();
        let replicas = ids.into_iter().map(|id| {
            let joined = g.records.get(&id).copied().unwrap_or(true);
            let role = g.membership.get(&id).copied();
            ReplicaFact {
                replica_id: id,
                node_id: self.node_of[&id],
                role: role.unwrap_or(if joined { Role::Left } else { Role::Recorded }),
                health: match g.data.get(&id) {
                    _ if !self.is_up(id) => Health::Unknown,
                    None => Health::Unknown,
                    Some(Data::Closed) => Health::Closed,
                    Some(Data::Complete) => Health::Ready,
                    Some(Data::Lacks(missing)) => Health::Behind { matched: 0, missing: *missing },
                },
                is_recorded: g.records.contains_key(&id),
            }
        });
        PartitionFact {
            replicas: replicas.collect(),
            leader: g.leader,
            is_joint: g.membership.values().any(|r| matches!(r, Role::Entering | Role::Leaving)),
            change_pending: g.pending.is_some(),
            is_known: g.leader.is_some(),
            bytes: BYTES,
        }
    }

    pub fn with_input<T>(&self, f: impl FnOnce(&PlanInput<'_>) -> T) -> T {
        let facts = self.facts();
        f(&PlanInput {
            members: &self.members,
            replication_factor: self.replication_factor,
            load_factor: LOAD_FACTOR,
            target: &self.target,
            partitions: &facts,
            limits: self.limits,
            is_paused: self.is_paused,
        })
    }

    /// The caller's part: a new target, if one is due.
    pub fn retarget(&mut self) {
        if let Ok(found) = self.with_input(retarget) {
            self.target = found.placement.partitions;
        }
    }

    /// One observation, the steps that it leads to, and some time.
    pub fn round(&mut self) -> Plan {
        if self.faults == 0 || self.rng.percent(70) {
            self.retarget();
        }
        let plan = self.with_input(|input| {
            let plan = plan(input);
            invariants::hold(input, &plan);
            plan
        });
        for step in &plan.steps {
            let version = self.groups[step.partition as usize].version;
            let [lost, late, twice] = [0; 3].map(|_| self.rng.percent(self.faults));
            if late {
                self.late.push((self.rng.below(6), version, step.clone()));
            }
            if !lost {
                self.execute(step, version);
            }
            if twice {
                self.execute(step, version);
            }
        }
        self.late_steps();
        for p in 0..self.groups.len() {
            self.elect(p);
            self.commit(p);
            self.catch_up(p);
        }
        plan
    }

    fn late_steps(&mut self) {
        for (wait, version, step) in std::mem::take(&mut self.late) {
            match wait.checked_sub(1) {
                Some(wait) => self.late.push((wait, version, step)),
                None => self.execute(&step, version),
            }
        }
        for (wait, version, p, id) in std::mem::take(&mut self.late_learners) {
            match wait.checked_sub(1) {
                Some(wait) => self.late_learners.push((wait, version, p, id)),
                None => self.propose(p as usize, version, Change::AddLearner(id)),
            }
        }
    }

    fn elect(&mut self, p: usize) {
        if !self.has_majority(p, |id| self.is_healthy(p, id)) {
            self.groups[p].leader = None;
            return;
        }
        let voters = || {
            let voter = |(_, role): &(&u64, &Role)| **role != Role::Learner;
            self.groups[p].membership.iter().filter(voter).map(|(id, _)| *id)
        };
        let leads = |l: u64| voters().any(|v| v == l) && self.is_healthy(p, l);
        if self.groups[p].leader.is_some_and(leads) && !self.rng.clone().percent(self.faults / 4) {
            return;
        }
        let mut ready: Vec<u64> = voters()
            .filter(|v| self.is_healthy(p, *v) && self.groups[p].data[v] == Data::Complete)
            .collect();
        if ready.is_empty() {
            ready = voters().filter(|v| self.is_healthy(p, *v)).collect();
        }
        let next = ready[self.rng.below(ready.len())];
        let g = &mut self.groups[p];
        g.leader = Some(next);
        g.data.insert(next, Data::Complete);
        // What was proposed may be lost with its leader.
        if self.rng.percent(50) {
            g.pending = None;
        }
    }

    fn commit(&mut self, p: usize) {
        let slow = self.rng.percent(self.faults);
        let g = &mut self.groups[p];
        if g.leader.is_none() || slow {
            return;
        }
        let Some(change) = g.pending.take() else { return };
        g.version += 1;
        match change {
            Change::AddLearner(id) => {
                g.membership.insert(id, Role::Learner);
                // A node makes what has a record, and nothing else.
                if g.records.contains_key(&id) {
                    g.data.entry(id).or_insert(Data::Lacks(3));
                }
            }
            Change::RemoveLearner(id) => drop(g.membership.remove(&id)),
            Change::LeaveJoint => {
                for role in g.membership.values_mut() {
                    *role = match *role {
                        Role::Entering => Role::Voter,
                        // A voter is a learner before it leaves.
                        Role::Leaving => Role::Learner,
                        other => other,
                    };
                }
            }
            Change::Swap(Some(new), Some(gone)) => {
                g.membership.insert(new, Role::Entering);
                g.membership.insert(gone, Role::Leaving);
            }
            Change::Swap(new, gone) => {
                g.membership.extend(gone.map(|id| (id, Role::Learner)));
                g.membership.extend(new.map(|id| (id, Role::Voter)));
            }
        }
    }

    fn catch_up(&mut self, p: usize) {
        let ids: Vec<u64> = self.groups[p].data.keys().copied().collect();
        for id in ids {
            let up = self.is_up(id);
            let g = &mut self.groups[p];
            let Some(data) = g.data.get_mut(&id) else { continue };
            match (up, *data) {
                (true, Data::Lacks(0)) => *data = Data::Complete,
                (true, Data::Lacks(n)) if g.leader.is_some() && g.records.contains_key(&id) => {
                    *data = Data::Lacks(n - 1);
                }
                (false, Data::Complete) => *data = Data::Lacks(1),
                _ => {}
            }
        }
    }
}
