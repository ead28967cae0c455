//! What an operator and bad luck do to a cluster whose replicas the planner moves.
use super::faults::Strike;
use super::invariants::{Broken, Held, Kind};
use super::records::command;
use super::world::World;
use rand::Rng;
use rand::seq::SliceRandom;
use ringfold_node::raft::log::RaftLog;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{
    MetaDrainMember, MetaPause, MetaRemoveMember, MetaRetarget, MetaUndrainMember,
};

/// Nodes at one time, and over a run.
const NODES_MAX: usize = 7;
const SLOTS_MAX: usize = 12;
const REPLICAS: usize = 3;

impl World {
    pub fn strike_members(&mut self, strike: Strike) -> Held {
        match strike {
            Strike::Scale => self.scale(),
            Strike::Retarget => self.retarget_by_hand(),
            Strike::Depose => self.elect(),
            Strike::Outage => {
                let n = self.rng.random_range(0..self.nodes.len());
                match self.nodes[n].running.is_some() {
                    true => self.crash_for(n, true, 1_500_000_000),
                    false => Ok(()),
                }
            }
            _ => self.lose_member(),
        }
    }

    fn living(&self) -> usize {
        self.nodes.iter().filter(|n| !n.gone).count()
    }

    fn scale(&mut self) -> Held {
        let mut members = self.members();
        members.shuffle(&mut self.rng);
        let is_there = |n: &usize| !self.nodes[*n].gone;
        let active: Vec<usize> = members.iter().filter(|m| m.1).map(|m| m.0).collect();
        let able = active.iter().filter(|n| is_there(n)).count();
        let draining: Vec<usize> = members.iter().filter(|m| !m.1).map(|m| m.0).collect();
        match self.rng.random_range(0..6) {
            0 | 1 if self.living() < NODES_MAX && self.nodes.len() < SLOTS_MAX => self.grow(),
            2 | 3 => {
                // Those whose disks are gone first, as an operator would.
                let gone = active.iter().copied().find(|n| !is_there(n));
                match gone.or(active.first().copied()) {
                    Some(n) if able > REPLICAS || !is_there(&n) => self.drain(n),
                    _ => Ok(()),
                }
            }
            4 => match draining.first().filter(|n| is_there(n)) {
                Some(n) => {
                    self.note(|| format!("node {} is not drained any more", n + 1));
                    let node_id = *n as u64 + 1;
                    self.by_hand(Command::UndrainMember(MetaUndrainMember { node_id }))
                }
                None => Ok(()),
            },
            5 if self.rng.random_bool(0.2) => {
                self.by_hand(Command::Pause(MetaPause { paused: true }))
            }
            _ => {
                self.by_hand(Command::Pause(MetaPause { paused: false }))?;
                match draining.first() {
                    Some(n) => self.remove_member(*n),
                    None => Ok(()),
                }
            }
        }
    }

    fn by_hand(&mut self, c: Command) -> Held {
        self.commit(command(c)).map(|_| ())
    }

    fn drain(&mut self, n: usize) -> Held {
        self.note(|| format!("node {} is drained", n + 1));
        let node_id = n as u64 + 1;
        self.by_hand(Command::DrainMember(MetaDrainMember { node_id }))
    }

    /// Refused while it has replicas. Its process ends.
    fn remove_member(&mut self, n: usize) -> Held {
        let node_id = n as u64 + 1;
        self.by_hand(Command::RemoveMember(MetaRemoveMember { node_id }))?;
        if self.members().iter().any(|m| m.0 == n) {
            return Ok(());
        }
        self.note(|| format!("node {} is removed", n + 1));
        let node = &mut self.nodes[n];
        node.gone = true;
        node.crash(true).map_err(|detail| Broken { kind: Kind::Closed, detail })
    }

    /// Another target for some partition, whatever the planner thinks of it.
    fn retarget_by_hand(&mut self) -> Held {
        let Some(records) = &self.records else { return Ok(()) };
        let mut rows: Vec<Vec<u64>> =
            records.latest().placement.iter().map(|p| p.target_node_ids.clone()).collect();
        let mut active: Vec<u64> =
            self.members().iter().filter(|m| m.1).map(|m| m.0 as u64 + 1).collect();
        active.shuffle(&mut self.rng);
        active.truncate(REPLICAS);
        let p = self.rng.random_range(0..rows.len());
        rows[p] = active;
        self.note(|| format!("the target of partition {p} is {:?}", rows[p]));
        let partitions = rows.into_iter().map(|node_ids| Nodes { node_ids }).collect();
        self.by_hand(Command::Retarget(MetaRetarget { partitions }))
    }

    /// A node's disk is lost: it never comes back, another takes its place.
    fn lose_member(&mut self) -> Held {
        let n = self.rng.random_range(0..self.nodes.len());
        if self.nodes[n].gone || self.nodes.len() >= SLOTS_MAX {
            return Ok(());
        }
        let loaded = self.nodes[n].log.log.load().map_err(|e| e.to_string());
        let loaded = loaded.map_err(|detail| Broken { kind: Kind::Closed, detail })?;
        let replicas: Vec<_> = loaded.iter().map(|l| l.record.replica).collect();
        if !self.check.may_lose(&replicas) {
            return Ok(());
        }
        self.note(|| format!("node {} loses its disk and is gone", n + 1));
        let node = &mut self.nodes[n];
        node.crash(true).map_err(|detail| Broken { kind: Kind::Closed, detail })?;
        node.lose_disk();
        node.gone = true;
        for replica in replicas {
            self.check.disk_lost(replica);
        }
        self.grow()
    }

    /// Nothing holds the planner back any more.
    pub fn end_scaling(&mut self) -> Held {
        if self.records.is_some() {
            self.by_hand(Command::Pause(MetaPause { paused: false }))?;
        }
        Ok(())
    }
}
