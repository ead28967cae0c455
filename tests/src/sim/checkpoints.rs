//! Checkpoints on their way to replicas that are behind, in the steps of the product's transfer
//! (`peer/transfer`, `transfers.rs`).
use super::disk::directory;
use super::faults::Planted;
use super::invariants::Held;
use super::node::{Checkpoint, Floor, Install};
use super::world::{Event, Way, World};
use rand::Rng;
use ringfold_node::ids::{GroupId, NodeId, ReplicaId};
use ringfold_node::raft::driver::{Incoming, Input};
use ringfold_node::raft::handle::Role;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

impl World {
    /// A leader's driver says that a replica is behind its log.
    pub fn want(&mut self, n: usize, group: GroupId, replica: ReplicaId, node: NodeId) {
        let serial = self.rng.random();
        let life = self.nodes[n].life;
        let Some(running) = &mut self.nodes[n].running else { return };
        if running.sending.contains_key(&(group, replica)) {
            return;
        }
        running.sending.insert((group, replica), serial);
        let to = node.0 as usize - 1;
        let way = Way { group, replica, from: n, from_life: life, to, serial };
        let ns = self.rng.random_range(100_000..5_000_000);
        self.after(ns, Event::Prepare { node: n, life, way });
    }

    /// Makes a checkpoint, or takes one that is there.
    pub fn prepare(&mut self, n: usize, way: Way) -> Held {
        let life = self.nodes[n].life;
        let made = self.checkpoint(n, way);
        let Some(checkpoint) = made else {
            let ns = self.rng.random_range(20_000_000..60_000_000);
            self.after(ns, Event::Sent { node: n, life, way });
            return Ok(());
        };
        self.check.checkpoint(way.group, &checkpoint)?;
        self.note(|| {
            let index = checkpoint.mark.index;
            format!("node {} offers {} a checkpoint at {index}", n + 1, way.replica)
        });
        let index = Some(checkpoint.mark.index);
        self.input(n, Input::TransferFloor { group: way.group, to: way.replica, index });
        if let Some(running) = &mut self.nodes[n].running {
            let floor = Floor { index: checkpoint.mark.index, is_held: false };
            running.floors.insert((way.group, way.replica), floor);
        }
        // A receiver that says nothing is given up.
        self.after(250_000_000, Event::Sent { node: n, life, way });
        let ns = self.faults.delay_ns(&mut self.rng);
        let checkpoint = Box::new(checkpoint);
        self.after(ns, Event::Offer { node: way.to, way, checkpoint });
        Ok(())
    }

    fn checkpoint(&mut self, n: usize, way: Way) -> Option<Checkpoint> {
        let group = way.group;
        // A planted fault.
        let any = self.options.planted == Some(Planted::CheckpointWithoutReceiver);
        let running = self.nodes[n].running.as_mut()?;
        let view = running.views.get(&group)?.clone();
        if let Some(there) = running.prepared.get(&group) {
            let first = view.status.read().first_index;
            if (any || there.membership.contains(way.replica)) && there.mark.index + 1 >= first {
                return Some(there.clone());
            }
        }
        let path = PathBuf::from(format!("checkpoints/{}.{}", group.0, way.serial));
        let mark = view.reader.checkpoint(&path).ok()?;
        let facts = running.facts(group)?;
        if mark.membership.as_ref().map_or(0, |(index, _)| *index) != facts.membership_index {
            return None;
        }
        let (membership_index, membership) = (facts.membership_index, facts.membership);
        let made = Checkpoint { path, mark, membership, membership_index };
        if !(any || made.membership.contains(way.replica)) || membership_index > made.mark.index {
            return None;
        }
        running.prepared.insert(group, made.clone());
        Some(made)
    }

    /// The offer reaches the receiver: it begins to fetch.
    pub fn offer(&mut self, n: usize, way: Way, checkpoint: Box<Checkpoint>) {
        let life = self.nodes[n].life;
        if !self.network.is_open(way.from, n) || !self.network.is_open(n, way.from) {
            return;
        }
        let Some(running) = &mut self.nodes[n].running else { return };
        let Some(view) = running.views.get(&way.group) else { return };
        if view.replica != way.replica
            || view.status.read().role == Role::Closed
            || view.applied.borrow().index >= checkpoint.mark.index
            || !running.receiving.insert(way.group)
        {
            return;
        }
        let directory = view.directory.load(Ordering::Acquire) + 1;
        let ns = self.rng.random_range(500_000..60_000_000);
        self.after(ns, Event::Fetched { node: n, life, way, directory, checkpoint });
    }

    /// All of it is there and verified: it gets its place and goes to the driver.
    pub fn fetched(&mut self, n: usize, way: Way, number: u32, checkpoint: &Checkpoint) {
        let sender = &self.nodes[way.from];
        let is_there = sender.life == way.from_life && sender.running.is_some();
        let disk = sender.disk.clone();
        let node = &mut self.nodes[n];
        let Some(running) = &mut node.running else { return };
        let is_same = running.views.get(&way.group).is_some_and(|v| {
            v.replica == way.replica && v.directory.load(Ordering::Acquire) + 1 == number
        });
        if !is_there || !is_same || !self.network.is_open(way.from, n) {
            running.receiving.remove(&way.group);
            return;
        }
        let path = directory(way.replica, number);
        node.disk.remove(&path);
        if node.disk.copy_from(&disk, &checkpoint.path, &path).is_err() {
            running.receiving.remove(&way.group);
            return;
        }
        let (reply, taken) = oneshot::channel();
        let incoming = Incoming {
            group: way.group,
            replica: way.replica,
            directory: number,
            index: checkpoint.mark.index,
            term: checkpoint.mark.term,
            membership: checkpoint.membership.clone(),
            membership_index: checkpoint.membership_index,
            reply,
        };
        running.installs.push(Install { taken, path, way });
        self.input(n, Input::Incoming(Box::new(incoming)));
    }

    /// Hears whether the driver took checkpoints.
    pub fn poll_installs(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let Some(running) = &mut node.running else { return };
        let mut done = Vec::new();
        for mut install in std::mem::take(&mut running.installs) {
            let taken = match install.taken.try_recv() {
                Err(TryRecvError::Empty) => {
                    running.installs.push(install);
                    continue;
                }
                Ok(taken) => taken,
                Err(TryRecvError::Closed) => false,
            };
            running.receiving.remove(&install.way.group);
            if !taken {
                node.disk.remove(&install.path);
            }
            done.push((install.way, taken));
        }
        for (way, taken) in done {
            self.report.checkpoints += u64::from(taken);
            self.note(|| {
                format!("node {} took the checkpoint for {}: {taken}", n + 1, way.replica)
            });
            let ns = self.faults.delay_ns(&mut self.rng);
            self.after(ns, Event::Sent { node: way.from, life: way.from_life, way });
        }
    }

    /// The transfer ended, well or not.
    pub fn sent(&mut self, n: usize, way: Way) {
        let Some(running) = &mut self.nodes[n].running else { return };
        let key = (way.group, way.replica);
        if running.sending.get(&key) == Some(&way.serial) {
            running.sending.remove(&key);
            running.floors.remove(&key);
            self.input(n, Input::TransferFloor { group: way.group, to: way.replica, index: None });
        }
    }
}
