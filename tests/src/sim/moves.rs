//! Moves of replicas as the planner makes them: one step at a time, each looked at anew.
use super::world::World;
use rand::Rng;
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::raft::driver::{Input, MembershipChange};
use ringfold_node::raft::handle::Request;
use tokio::sync::oneshot;

/// A replica that gives way to a new one.
#[derive(Debug, Clone)]
pub struct Move {
    pub remove: ReplicaId,
    pub add: ReplicaId,
    pub to: usize,
    /// Whether the old one goes before the new one comes.
    pub remove_first: bool,
}

impl World {
    /// Starts to move a replica of some group to a node that has none of that group.
    pub fn begin_move(&mut self) {
        let group = GroupId::of_partition(self.rng.random_range(0..self.faults.partitions));
        if self.moves.contains_key(&group) {
            return;
        }
        let hosts: Vec<(ReplicaId, usize)> = self.placement[&group].clone();
        let free: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.is_free_of(*n, group)).collect();
        if free.is_empty() {
            return;
        }
        let to = free[self.rng.random_range(0..free.len())];
        let (remove, _) = hosts[self.rng.random_range(0..hosts.len())];
        // Two of three would be too few while one of the nodes is down.
        self.add_move(group, remove, to, false);
    }

    pub fn add_move(&mut self, group: GroupId, remove: ReplicaId, to: usize, remove_first: bool) {
        let add = self.next_replica();
        self.note(|| format!("move of {group}: {remove} -> {add} on node {}", to + 1));
        self.moves.insert(group, Move { remove, add, to, remove_first });
    }

    /// Whether no record of the group is on the node.
    fn is_free_of(&self, n: usize, group: GroupId) -> bool {
        let node = &self.nodes[n];
        node.running.is_some() && node.view(group).is_none()
    }

    /// One look at each move.
    pub fn go_on_moves(&mut self) {
        for (group, m) in self.moves.clone() {
            self.go_on_move(group, m);
        }
    }

    fn go_on_move(&mut self, group: GroupId, m: Move) {
        if self.is_free_of(m.to, group) && !self.nodes[m.to].paused {
            self.found(m.to, group, m.add);
            return;
        }
        let leader = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].is_awake())
            .filter_map(|n| Some((self.nodes[n].running.as_ref()?.is_leader(group)?, n)))
            .max();
        let Some((_, leader)) = leader else { return };
        let facts = self.nodes[leader].running.as_ref().and_then(|r| r.facts(group));
        let Some(facts) = facts.filter(|f| f.is_leader && !f.change_pending) else { return };
        let membership = &facts.membership;
        let (is_there, is_voter) = (membership.contains(m.add), membership.is_voter(m.add));
        let leads = self.nodes[leader].view(group).map(|v| v.replica);
        let change = if membership.contains(m.remove) && (is_voter || m.remove_first) {
            if leads == Some(m.remove) {
                let others: Vec<u64> =
                    membership.voters.iter().copied().filter(|v| *v != m.remove.0).collect();
                let to = ReplicaId(others[self.rng.random_range(0..others.len())]);
                let (reply, _) = oneshot::channel();
                self.input(leader, Input::Request(Request::Transfer { group, to, reply }));
                return;
            }
            match membership.is_voter(m.remove) {
                true => MembershipChange::Demote(m.remove),
                false => MembershipChange::Remove(m.remove),
            }
        } else if !is_there {
            MembershipChange::AddLearner(m.add, self.nodes[m.to].id)
        } else if !is_voter {
            MembershipChange::Promote(m.add)
        } else {
            self.end_move(group, &m);
            return;
        };
        self.note(|| format!("{change:?} of {group} at node {}", leader + 1));
        let (reply, _) = oneshot::channel();
        self.input(leader, Input::ChangeMembership { group, change, planned_on: None, reply });
    }

    fn end_move(&mut self, group: GroupId, m: &Move) {
        self.note(|| format!("moved {group}: {} is there, {} is gone", m.add, m.remove));
        self.moves.remove(&group);
        let Some(hosts) = self.placement.get_mut(&group) else { return };
        if let Some(host) = hosts.iter_mut().find(|(r, _)| *r == m.remove) {
            let old = host.1;
            *host = (m.add, m.to);
            if old != m.to {
                self.nodes[old].retired.insert(m.remove);
            }
        }
    }
}
