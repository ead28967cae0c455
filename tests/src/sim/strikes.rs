//! Faults as they strike.
use super::faults::{Planted, Strike};
use super::invariants::{Broken, Held, Kind};
use super::world::{Event, World};
use prost_raft::Message as _;
use raft::eraftpb::{Entry, EntryType};
use rand::Rng;
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::raft::driver::Input;
use ringfold_node::raft::handle::Request;
use ringfold_node::raft::log::LogOp;
use tokio::sync::oneshot;

impl World {
    pub fn strike(&mut self, strike: Strike) -> Held {
        if self.ended_ns.is_some() {
            return Ok(());
        }
        self.strike_later(strike);
        let n = self.rng.random_range(0..self.nodes.len());
        match strike {
            Strike::Crash if self.rng.random_bool(0.1) => {
                for n in 0..self.nodes.len() {
                    self.crash(n)?;
                }
            }
            Strike::Crash => self.crash(n)?,
            Strike::Pause => self.pause(n),
            Strike::Cut => {
                self.network.heal();
                self.network.cut(self.nodes.len(), &mut self.rng);
                self.note(|| "the network is cut".into());
                let ns = self.rng.random_range(30_000_000..600_000_000);
                self.after(ns, Event::Heal);
            }
            Strike::ClockJump => self.jump_clock(n),
            Strike::Transfer => self.transfer(n),
            Strike::Move => self.begin_move(),
            Strike::LoseDisk => return self.lose_disk(n),
            Strike::Scale
            | Strike::Retarget
            | Strike::Depose
            | Strike::Outage
            | Strike::LoseMember => return self.strike_members(strike),
        }
        Ok(())
    }

    fn crash(&mut self, n: usize) -> Held {
        if self.nodes[n].running.is_none() {
            return Ok(());
        }
        let survives = self.rng.random_bool(0.5);
        self.crash_for(n, survives, 400_000_000)
    }

    /// `most_ns`: until it starts again at the latest.
    pub fn crash_for(&mut self, n: usize, survives: bool, most_ns: u64) -> Held {
        let reboots = self.rng.random_bool(self.faults.power_loss);
        self.report.crashes += 1;
        self.note(|| format!("node {} crashes; batch survives: {survives}", n + 1));
        self.nodes[n].crash(survives).map_err(|detail| Broken { kind: Kind::Closed, detail })?;
        if reboots {
            let base_ns = self.rng.random_range(1_000_000..1_000_000_000);
            self.nodes[n].clock.reboot(self.now_ns, base_ns);
        }
        let ns = self.rng.random_range(2_000_000..most_ns);
        self.after(ns, Event::Restart { node: n });
        Ok(())
    }

    /// A follower crashes when a membership change is in its log and acknowledged, and the record of
    /// the change before it is not; it and one other hear nothing of the rest for a while.
    pub fn crash_behind_change(&mut self, n: usize) -> Held {
        let leads = |(group, _): (&GroupId, _)| {
            self.nodes[n].running.as_ref().and_then(|r| r.is_leader(*group)).is_some()
        };
        if self.ended_ns.is_some()
            || self.placement.iter().any(leads)
            || !self.rng.random_bool(self.faults.change_crash)
        {
            return Ok(());
        }
        let other = (n + self.rng.random_range(1..self.nodes.len())) % self.nodes.len();
        self.note(|| format!("nodes {} and {} hear nothing of the others", n + 1, other + 1));
        self.network.heal();
        self.network.deafen(&[n, other], self.nodes.len());
        let ns = self.rng.random_range(100_000_000..400_000_000);
        self.after(ns, Event::Heal);
        self.crash_for(n, false, 20_000_000)
    }

    fn pause(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.running.is_none() || node.paused {
            return;
        }
        node.paused = true;
        let life = node.life;
        self.note(|| format!("node {} is paused", n + 1));
        let most_ms = [30, 200, 600][self.rng.random_range(0..3)];
        let ns = self.rng.random_range(1_000_000..most_ms * 1_000_000);
        self.after(ns, Event::Resume { node: n, life });
    }

    /// It goes on, with all that came in meanwhile.
    pub fn resume(&mut self, n: usize, life: u64) {
        let node = &mut self.nodes[n];
        if !node.paused || node.life != life {
            return;
        }
        node.paused = false;
        if let Some(running) = &mut node.running {
            running.step_ns = u64::MAX;
        }
        let held = std::mem::take(&mut node.held);
        self.note(|| format!("node {} goes on, {} events wait", n + 1, held.len()));
        for event in held {
            let ns = self.rng.random_range(1_000..500_000);
            self.after(ns, event);
        }
        self.wake(n);
    }

    fn jump_clock(&mut self, n: usize) {
        let ms = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(-200..=200),
            1 => self.rng.random_range(-10_000..=10_000),
            _ => self.rng.random_range(-100_000_000..=1_000_000),
        };
        self.note(|| format!("the clock of node {} jumps by {ms} ms", n + 1));
        self.nodes[n].clock.jump_wall(ms);
        if ms > 500 && self.rng.random_bool(0.3) {
            self.input(n, Input::ClockAhead { ms });
        }
    }

    fn transfer(&mut self, n: usize) {
        if self.rng.random_bool(0.5) {
            let (reply, _) = oneshot::channel();
            self.note(|| format!("node {} hands all leaderships over", n + 1));
            return self.input(n, Input::Request(Request::TransferAll { reply }));
        }
        let group = GroupId::of_partition(self.rng.random_range(0..self.faults.partitions));
        let hosts = &self.placement[&group];
        let (to, _) = hosts[self.rng.random_range(0..hosts.len())];
        self.note(|| format!("{group} is handed over to {to}"));
        for n in 0..self.nodes.len() {
            let (reply, _) = oneshot::channel();
            self.input(n, Input::Request(Request::Transfer { group, to, reply }));
        }
    }

    /// A disk is lost only while every group is whole: what two of three lose is lost.
    fn lose_disk(&mut self, n: usize) -> Held {
        let is_whole = |(group, hosts): (&GroupId, &Vec<(ReplicaId, usize)>)| {
            let mut voters: Vec<u64> = hosts.iter().map(|(r, _)| r.0).collect();
            voters.sort_unstable();
            hosts.iter().all(|(_, at)| {
                let facts = self.nodes[*at].running.as_ref().and_then(|r| r.facts(*group));
                facts.is_some_and(|f| f.membership.voters == voters)
            })
        };
        if !self.moves.is_empty() || !self.placement.iter().all(is_whole) {
            return Ok(());
        }
        self.crash(n)?;
        self.note(|| format!("node {} loses its disk", n + 1));
        self.nodes[n].lose_disk();
        let twice = self.options.planted == Some(Planted::ReplicaIdUsedTwice);
        for (group, hosts) in self.placement.clone() {
            for (replica, _) in hosts.iter().filter(|(_, at)| *at == n) {
                self.check.disk_lost(*replica);
                if !twice {
                    let remove_first = self.rng.random_bool(0.5);
                    self.add_move(group, *replica, n, remove_first);
                }
            }
        }
        Ok(())
    }
}

/// Whether a membership change is among what is written.
pub fn has_change(ops: &[LogOp]) -> bool {
    ops.iter().any(|op| match op {
        LogOp::Entries { entries, .. } => entries.iter().any(|bytes| {
            Entry::decode(&bytes[..]).is_ok_and(|e| e.get_entry_type() != EntryType::EntryNormal)
        }),
        _ => false,
    })
}
