//! The meta group's records, here one reliable sequence of states: commands go in one after the other,
//! and nodes hear of each new state late. A node that starts again may know an older one.
use super::invariants::Held;
use super::planner::{PlanEvent, Planner};
use super::world::{Event, World};
use ringfold_node::ids::{GroupId, NodeId, ReplicaId};
use ringfold_node::meta::replicas::{forgotten_replicas, target_of, wanted_replicas};
use ringfold_node::meta::state::{apply_command, is_active, is_removed};
use ringfold_node::partition::Reader;
use ringfold_node::partition::apply::MetaOutcome;
use ringfold_node::raft::driver::Input;
use ringfold_node::raft::membership::Membership;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{
    MetaActivateMember, MetaCommand, MetaInit, MetaJoin, MetaPlace, MetaState,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub struct Records {
    /// The state after each command that changed it.
    versions: Vec<Arc<MetaState>>,
    /// The planner on each leader of the meta group, by term; the last one leads.
    pub planners: Vec<Planner>,
    /// Proposals that are neither committed nor lost: planner, request, command.
    pub proposed: BTreeMap<(usize, u64), MetaCommand>,
    /// What virtual time counts from in the product's own clock type.
    pub epoch: Instant,
}

/// A replica that is being destroyed, for the state of which version.
pub struct Leaving {
    pub group: GroupId,
    pub replica: ReplicaId,
    version: usize,
    done: oneshot::Receiver<()>,
}

impl Records {
    pub fn latest(&self) -> &Arc<MetaState> {
        &self.versions[self.last()]
    }

    pub fn last(&self) -> usize {
        self.versions.len() - 1
    }

    pub fn version(&self, version: usize) -> Arc<MetaState> {
        self.versions[version.min(self.last())].clone()
    }
}

pub fn command(command: Command) -> MetaCommand {
    MetaCommand { if_epoch: 0, command: Some(command) }
}

fn join(node: NodeId) -> MetaJoin {
    MetaJoin { token: format!("disk of {node}"), feature_level_max: 1, ..Default::default() }
}

impl World {
    /// Bootstraps the records with the nodes that are there, and places the partitions.
    pub fn begin_records(&mut self) -> Held {
        let first = NodeId(1);
        let mut state = MetaState::default();
        let init = MetaInit {
            cluster_id: "simulation".into(),
            partitions: self.faults.partitions,
            replication_factor: 3,
            initial_members: self.nodes.len() as u32,
            feature_level: 1,
            first: Some(join(first)),
            ..Default::default()
        };
        let mut apply = |c| self.check.recorded(apply_command(&mut state, command(c)));
        apply(Command::Init(init))?;
        for n in 1..self.nodes.len() as u64 {
            apply(Command::Join(join(NodeId(n + 1))))?;
        }
        for n in 0..self.nodes.len() as u64 {
            apply(Command::ActivateMember(MetaActivateMember { node_id: n + 1 }))?;
        }
        let nodes = self.nodes.len() as u32;
        let row =
            |p: u32| Nodes { node_ids: (0..3).map(|i| u64::from((p + i) % nodes) + 1).collect() };
        let partitions = (0..self.faults.partitions).map(row).collect();
        apply(Command::Place(MetaPlace { partitions }))?;
        for (p, placed) in (0..).zip(&state.placement) {
            let voters: Vec<_> = placed
                .genesis
                .iter()
                .map(|r| (ReplicaId(r.replica_id), NodeId(r.node_id)))
                .collect();
            self.check.begins(GroupId::of_partition(p), Membership::genesis(&voters));
        }
        self.records = Some(Records {
            versions: vec![Arc::new(state)],
            planners: Vec::new(),
            proposed: BTreeMap::new(),
            epoch: Instant::now(),
        });
        self.take_placement();
        Ok(())
    }

    /// What the world knows of where replicas are is what the records say.
    fn take_placement(&mut self) {
        let Some(records) = &self.records else { return };
        self.placement = (0..)
            .zip(&records.latest().placement)
            .map(|(p, placed)| {
                let host = |r: &ringfold_proto::internal::MetaReplica| {
                    (ReplicaId(r.replica_id), r.node_id as usize - 1)
                };
                (GroupId::of_partition(p), placed.replicas.iter().map(host).collect())
            })
            .collect();
    }

    /// Commits a command.
    pub fn commit(&mut self, c: MetaCommand) -> Result<MetaOutcome, super::invariants::Broken> {
        let Some(records) = &mut self.records else { return Ok(MetaOutcome::Done) };
        let before = records.latest().clone();
        let mut state = (*before).clone();
        let forgets = match &c.command {
            Some(Command::ForgetReplica(f)) => Some((f.partition, ReplicaId(f.replica_id))),
            _ => None,
        };
        let shown = format!("{:?}", c.command);
        let outcome = self.check.recorded(apply_command(&mut state, c))?;
        if state != *before {
            let version = records.versions.len();
            self.report.epochs += u64::from(state.epoch != before.epoch);
            records.versions.push(Arc::new(state));
            self.take_placement();
            if let Some((partition, replica)) = forgets {
                self.check.forgets(GroupId::of_partition(partition), replica)?;
            }
            for n in 0..self.nodes.len() {
                self.tell(n, version);
            }
        }
        self.note(|| format!("records: {outcome:?} of {shown}"));
        Ok(outcome)
    }

    /// A node hears of a version after a while.
    pub fn tell(&mut self, n: usize, version: usize) {
        let ns = self.faults.delay_ns(&mut self.rng);
        self.after(ns, Event::Plan { at: Some((n, None)), what: PlanEvent::Learn { n, version } });
    }

    pub fn learn(&mut self, n: usize, version: usize) -> Held {
        let led_on = self.records.as_ref().and_then(|r| r.planners.last()).map(|p| p.node);
        let cut_off = led_on.is_some_and(|l| !self.network.is_open(l, n))
            || self.believes_until_ns(n).is_some_and(|until| until > self.now_ns);
        if self.nodes[n].running.is_none() {
            return Ok(());
        }
        if cut_off {
            let what = PlanEvent::Learn { n, version };
            self.after(20_000_000, Event::Plan { at: Some((n, None)), what });
            return Ok(());
        }
        if version > self.nodes[n].seen {
            self.nodes[n].seen = version;
            return self.follow(n);
        }
        Ok(())
    }

    /// What `Cluster::follow` does: first what is forgotten goes, one after the other, then what is
    /// wanted comes.
    pub fn follow(&mut self, n: usize) -> Held {
        let version = self.nodes[n].seen;
        if self.nodes[n].running.as_ref().is_some_and(|r| r.leaving.is_none()) {
            self.follow_version(n, version)?;
        }
        Ok(())
    }

    fn follow_version(&mut self, n: usize, version: usize) -> Held {
        let Some(records) = &self.records else { return Ok(()) };
        let state = records.version(version);
        let (id, faults) = (self.nodes[n].id, self.apply_faults());
        let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
        let own = running.views.values().map(|v| (v.group, v.replica));
        if let Some((group, replica)) = forgotten_replicas(&state, own).first().copied() {
            let Some(view) = running.views.get(&group) else { return Ok(()) };
            view.close("it has left its group");
            view.reader.replace(&Reader::closed("the replica has left its group"));
            let (reply, done) = oneshot::channel();
            running.leaving = Some(Leaving { group, replica, version, done });
            self.note(|| format!("node {} destroys {replica} of {group}", n + 1));
            self.check.destroys(group, replica)?;
            self.input(n, Input::Destroy { group, replica, reply });
            return Ok(());
        }
        for wanted in wanted_replicas(&state, id, &running.known.clone()) {
            let (group, replica) = (GroupId::of_partition(wanted.partition), wanted.replica);
            self.check.founded_once(replica, &self.nodes)?;
            let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
            running.known.insert(replica);
            let first = wanted.first_placed;
            let made = self.nodes[n].found(group, replica, &wanted.genesis, first, faults);
            self.note(|| format!("{replica} of {group} is made on node {}: {made:?}", n + 1));
            self.check.founded(replica);
            self.report.replicas_made += 1;
            self.wake(n);
        }
        if let Some(running) = &mut self.nodes[n].running {
            running.followed = state.next_replica_id;
        }
        Ok(())
    }

    /// Removes the files of a replica that is destroyed, and goes on.
    pub fn poll_leaving(&mut self, n: usize) -> Held {
        let node = &mut self.nodes[n];
        let Some(running) = &mut node.running else { return Ok(()) };
        let is_done = |l: &mut Leaving| l.done.try_recv().is_ok();
        let Some(leaving) = running.leaving.take_if(is_done) else { return Ok(()) };
        running.views.remove(&leaving.group);
        let prefix = format!("{}.", leaving.replica.0);
        for path in node.disk.paths() {
            if path.to_string_lossy().starts_with(&prefix) {
                node.disk.remove(&path);
            }
        }
        self.report.destroyed += 1;
        self.note(|| format!("node {} has no {} any more", n + 1, leaving.replica));
        self.follow_version(n, leaving.version)?;
        self.follow(n)
    }

    /// Whether intent, records and nodes agree, and no node holds what is nobody's.
    pub fn records_rest(&self) -> bool {
        let Some(records) = &self.records else { return true };
        let state = records.latest();
        let active = |id: &u64| state.members.iter().any(|m| m.node_id == *id && is_active(m));
        let placed = state.placement.iter().all(|p| {
            let mut nodes: Vec<u64> = p.replicas.iter().map(|r| r.node_id).collect();
            let mut target = target_of(p);
            nodes.sort_unstable();
            target.sort_unstable();
            nodes == target
                && target.iter().all(|id| active(id) && !self.nodes[*id as usize - 1].gone)
        });
        let current =
            |id: u64| state.placement.iter().flat_map(|p| &p.replicas).any(|r| r.replica_id == id);
        placed
            && self.planner_rests(records)
            && self.nodes.iter().filter(|n| !n.gone).all(|n| {
                n.seen == records.last()
                    && n.running.as_ref().is_some_and(|r| r.leaving.is_none())
                    && n.disk.paths().iter().all(|path| {
                        let name = path.to_string_lossy();
                        let id = name.split('.').next().and_then(|id| id.parse().ok());
                        id.is_none_or(current)
                    })
            })
    }

    /// A new node joins.
    pub fn grow(&mut self) -> Held {
        let clock = self.new_clock();
        let id = NodeId(self.nodes.len() as u64 + 1);
        self.nodes.push(super::node::Node::new(id, clock));
        self.commit(command(Command::Join(join(id))))?;
        self.commit(command(Command::ActivateMember(MetaActivateMember { node_id: id.0 })))?;
        let n = self.nodes.len() - 1;
        self.note(|| format!("node {} joins", n + 1));
        self.start(n)
    }

    /// Members that were not removed, with whether they are active.
    pub fn members(&self) -> Vec<(usize, bool)> {
        let Some(records) = &self.records else { return Vec::new() };
        let members = records.latest().members.iter().filter(|m| !is_removed(m));
        members.map(|m| (m.node_id as usize - 1, is_active(m))).collect()
    }
}
