//! The planner on the leader of the meta group (`meta/rebalance`), with its requests as events: late,
//! lost, doubled. One that was deposed goes on for a while with what it knew.
use super::invariants::Held;
use super::records::Records;
use super::world::{Event, World};
use rand::Rng;
use ringfold_node::ids::{GroupId, NodeId};
use ringfold_node::meta::rebalance::STEPS_MAX;
use ringfold_node::meta::rebalance::contacts::Contacts;
use ringfold_node::meta::rebalance::facts::Observation;
use ringfold_node::meta::rebalance::intent::Intent;
use ringfold_node::meta::rebalance::report::replica_report;
use ringfold_node::meta::rebalance::steps::{Request, Todo};
use ringfold_node::meta::state::is_removed;
use ringfold_node::partition::apply::MetaOutcome;
use ringfold_proto::internal::{self, MetaCommand, ReportAnswer};
use ringfold_topology::plan::{Limits, Plan, plan};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Ticks are a tenth of the product's: so are all its times.
const QUICKER: u64 = 10;
const BUSY_NS: u64 = 10_000_000;
const IDLE_NS: u64 = 50_000_000;
const REPORTS_NS: u64 = 150_000_000;
const TODO_NS: u64 = 1_500_000_000;
/// In the product's time.
const LOST_AFTER: Duration = Duration::from_secs(4);
/// The proposal of new targets, beside the numbers of steps.
const RETARGET: u64 = 0;

/// Where a planner's event happens is said beside it.
#[derive(Debug, Clone)]
pub enum PlanEvent {
    /// The next round of a planner.
    Round {
        planner: usize,
    },
    Ask {
        n: usize,
        planner: usize,
        round: u64,
    },
    Report {
        planner: usize,
        round: u64,
        from: NodeId,
        answer: Box<ReportAnswer>,
    },
    /// Reports that are not there are not waited for.
    Due {
        planner: usize,
        round: u64,
    },
    /// A request of a step reaches a node.
    Step {
        n: usize,
        ask: Ask,
        step: internal::Step,
    },
    Answered {
        ask: Ask,
        result: Result<(), String>,
    },
    Expired {
        planner: usize,
        id: u64,
    },
    Commit {
        planner: usize,
        id: u64,
        request: usize,
    },
    Learn {
        n: usize,
        version: usize,
    },
}

/// Which request of which planner's step.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub planner: usize,
    pub id: u64,
    pub request: usize,
}

pub struct Planner {
    pub node: usize,
    life: u64,
    contacts: Contacts,
    observation: Observation,
    /// Version of the records that it is of.
    version: usize,
    intent: Intent,
    at_rest: bool,
    round: u64,
    asked: usize,
    answers: Option<Vec<(NodeId, ReportAnswer)>>,
    ids: u64,
    steps: BTreeMap<u64, UnderWay>,
    /// Steps that have ended since the last round.
    ended: Vec<u64>,
    /// It leads no more, and hears so then.
    pub deposed_ns: Option<u64>,
    over: bool,
}

struct UnderWay {
    partition: Option<u32>,
    requests: VecDeque<Request>,
    request: usize,
}

fn limits() -> Limits {
    Limits::default()
}

impl World {
    fn planner(&mut self, planner: usize) -> Option<&mut Planner> {
        self.records.as_mut()?.planners.get_mut(planner).filter(|p| !p.over)
    }

    fn plan_at(&mut self, ns: u64, planner: usize, what: PlanEvent) {
        let Some(p) = self.planner(planner) else { return };
        let at = Some((p.node, Some(p.life)));
        self.after(ns, Event::Plan { at, what });
    }

    /// Until when a planner on this node that was deposed does not know it.
    pub fn believes_until_ns(&self, n: usize) -> Option<u64> {
        let planners = &self.records.as_ref()?.planners;
        planners.iter().filter(|p| p.node == n && !p.over).filter_map(|p| p.deposed_ns).max()
    }

    /// The meta group elects another leader when its own is gone for a while.
    pub fn watch_planner(&mut self) -> Held {
        let Some(records) = &self.records else { return Ok(()) };
        let lives = records
            .planners
            .last()
            .is_some_and(|p| self.nodes[p.node].is_awake() && self.nodes[p.node].life == p.life);
        if !lives && self.rng.random_bool(0.15) {
            self.elect()?;
        }
        Ok(())
    }

    pub fn elect(&mut self) -> Held {
        let able: Vec<usize> =
            self.members().into_iter().map(|m| m.0).filter(|n| self.nodes[*n].is_awake()).collect();
        if able.is_empty() {
            return Ok(());
        }
        let node = able[self.rng.random_range(0..able.len())];
        let hears_ns = self.now_ns + self.rng.random_range(0..400_000_000);
        let Some(records) = &mut self.records else { return Ok(()) };
        if let Some(last) = records.planners.last_mut() {
            last.deposed_ns = Some(hears_ns);
            self.report.planners_deposed += 1;
        }
        // What the last leader proposed is committed before its successor's own term, or never.
        for (_, command) in std::mem::take(&mut records.proposed) {
            if self.rng.random_bool(0.5) {
                self.commit(command)?;
            }
        }
        let life = self.nodes[node].life;
        let Some(records) = &mut self.records else { return Ok(()) };
        records.planners.push(Planner {
            node,
            life,
            contacts: Contacts::default(),
            observation: Observation::default(),
            version: 0,
            intent: Intent::default(),
            at_rest: false,
            round: 0,
            asked: 0,
            answers: None,
            ids: 0,
            steps: BTreeMap::new(),
            ended: Vec::new(),
            deposed_ns: None,
            over: false,
        });
        let planner = records.planners.len() - 1;
        self.note(|| format!("node {} leads the meta group", node + 1));
        self.plan_at(1_000, planner, PlanEvent::Round { planner });
        Ok(())
    }

    pub fn plan_event(&mut self, what: PlanEvent) -> Held {
        match what {
            PlanEvent::Round { planner } => self.begin_round(planner),
            PlanEvent::Ask { n, planner, round } => self.asked(n, planner, round),
            PlanEvent::Report { planner, round, from, answer } => {
                let Some(p) = self.planner(planner).filter(|p| p.round == round) else {
                    return Ok(());
                };
                let Some(answers) = &mut p.answers else { return Ok(()) };
                if answers.iter().all(|(n, _)| *n != from) {
                    answers.push((from, *answer));
                }
                if answers.len() == p.asked {
                    self.end_round(planner);
                }
            }
            PlanEvent::Due { planner, round } => {
                if self.planner(planner).is_some_and(|p| p.round == round) {
                    self.end_round(planner);
                }
            }
            PlanEvent::Step { n, ask, step } => self.step_reaches(n, ask, &step),
            PlanEvent::Answered { ask, result } => self.step_answered(ask, result),
            PlanEvent::Expired { planner, id } => self.step_ends(planner, id),
            PlanEvent::Commit { planner, id, request } => {
                return self.proposal_commits(planner, id, request);
            }
            PlanEvent::Learn { n, version } => return self.learn(n, version),
        }
        Ok(())
    }

    fn begin_round(&mut self, planner: usize) {
        let now_ns = self.now_ns;
        let Some(p) = self.planner(planner) else { return };
        if p.deposed_ns.is_some_and(|at| at <= now_ns) {
            p.over = true;
            let node = p.node;
            self.note(|| format!("node {} hears that it leads the meta group no more", node + 1));
            return;
        }
        p.round += 1;
        p.answers = Some(Vec::new());
        let (node, round) = (p.node, p.round);
        let nodes = self.members_seen(node);
        if let Some(p) = self.planner(planner) {
            p.asked = nodes.len();
        }
        for id in nodes {
            let n = id.0 as usize - 1;
            if let Some(ns) = self.arrives(node, n) {
                let what = PlanEvent::Ask { n, planner, round };
                self.after(ns, Event::Plan { at: Some((n, None)), what });
            }
        }
        self.plan_at(REPORTS_NS, planner, PlanEvent::Due { planner, round });
    }

    fn members_seen(&self, n: usize) -> BTreeSet<NodeId> {
        let Some(records) = &self.records else { return BTreeSet::new() };
        let state = records.version(self.nodes[n].seen);
        state.members.iter().filter(|m| !is_removed(m)).map(|m| NodeId(m.node_id)).collect()
    }

    /// How long a request or its answer takes; `None`: it is lost.
    pub fn arrives(&mut self, from: usize, to: usize) -> Option<u64> {
        if from == to {
            return Some(self.rng.random_range(1_000..50_000));
        }
        let is_lost = self.rng.random_bool(self.faults.loss);
        if is_lost || !self.network.is_open(from, to) || !self.network.is_open(to, from) {
            return None;
        }
        Some(self.faults.delay_ns(&mut self.rng))
    }

    /// A node says what it has.
    fn asked(&mut self, n: usize, planner: usize, round: u64) {
        let Some(to) = self.planner(planner).map(|p| p.node) else { return };
        let Some(running) = &self.nodes[n].running else { return };
        let replica = |v: &std::sync::Arc<ringfold_node::raft::handle::ReplicaView>| {
            let facts = running.facts(v.group);
            replica_report(v, v.reader.store().bytes(), facts.as_ref())
        };
        let replicas = running.views.values().map(replica).collect();
        let answer = Box::new(ReportAnswer {
            disk_free_bytes: 1 << 40,
            disk_total_bytes: 1 << 41,
            followed_replica_id: running.followed,
            replicas,
            ..Default::default()
        });
        let from = self.nodes[n].id;
        if let Some(ns) = self.arrives(n, to) {
            self.plan_at(ns, planner, PlanEvent::Report { planner, round, from, answer });
        }
    }

    /// As `Rebalance::round` behind its reports.
    fn end_round(&mut self, planner: usize) {
        let Some(node) = self.planner(planner).map(|p| p.node) else { return };
        let nodes = self.members_seen(node);
        let seen = self.nodes[node].seen;
        let boot_ns = self.nodes[node].clock.boot_ns(self.now_ns);
        let Some(records) = &mut self.records else { return };
        let now = records.epoch + Duration::from_nanos(boot_ns * QUICKER);
        let state = records.version(seen);
        let Some(p) = records.planners.get_mut(planner) else { return };
        let Some(answers) = p.answers.take() else { return };
        for id in std::mem::take(&mut p.ended) {
            p.steps.remove(&id);
        }
        p.contacts.heard(now, &nodes, answers);
        p.contacts.look_for_missing(&state);
        let o = Observation::new(planner as u64 + 1, &state, &p.contacts, now, LOST_AFTER);
        (p.observation, p.version) = (o.clone(), seen);
        let due = p.intent.due(&o, limits());
        if let Ok(Some(retarget)) = due {
            p.at_rest = false;
            self.report.retargets += 1;
            self.note(|| format!("node {} wants new targets: {:?}", node + 1, retarget.command));
            let command = Request::Propose(retarget.command);
            self.start_step(planner, RETARGET, None, VecDeque::from([command]));
            self.plan_at(BUSY_NS, planner, PlanEvent::Round { planner });
            return;
        }
        let plan = plan(&o.plan_input(limits()));
        p.at_rest = plan.at_rest;
        self.start_steps(planner, &o, plan);
        let rests = self.planner(planner).is_some_and(|p| p.at_rest && p.steps.is_empty());
        let pause_ns = if rests { IDLE_NS } else { BUSY_NS };
        self.plan_at(pause_ns, planner, PlanEvent::Round { planner });
    }

    fn start_steps(&mut self, planner: usize, o: &Observation, plan: Plan) {
        for step in plan.steps {
            let Some(p) = self.planner(planner) else { return };
            let is_busy = p.steps.values().any(|s| s.partition == Some(step.partition));
            if p.steps.len() >= STEPS_MAX || is_busy {
                continue;
            }
            let Some(todo) = Todo::new(o, &step) else { continue };
            p.ids += 1;
            let (id, node) = (p.ids, p.node);
            self.note(|| {
                let (partition, kind) = (step.partition, step.kind);
                format!("node {} plans {kind:?} of {partition}: {}", node + 1, step.explanation)
            });
            self.report.steps += 1;
            self.start_step(planner, id, Some(step.partition), todo.into_requests().into());
        }
    }

    fn start_step(
        &mut self,
        planner: usize,
        id: u64,
        partition: Option<u32>,
        requests: VecDeque<Request>,
    ) {
        let Some(p) = self.planner(planner) else { return };
        p.steps.insert(id, UnderWay { partition, requests, request: 0 });
        self.plan_at(TODO_NS, planner, PlanEvent::Expired { planner, id });
        self.next_request(planner, id);
    }

    fn next_request(&mut self, planner: usize, id: u64) {
        let Some(p) = self.planner(planner) else { return };
        let node = p.node;
        let Some(under_way) = p.steps.get_mut(&id) else { return };
        under_way.request += 1;
        let request = under_way.request;
        match under_way.requests.pop_front() {
            None => self.step_ends(planner, id),
            Some(Request::Propose(command)) => self.propose(planner, id, request, command),
            Some(Request::Step(led, step)) => {
                let n = led.node.0 as usize - 1;
                let ask = Ask { planner, id, request };
                let copies = 1 + usize::from(self.rng.random_bool(self.faults.duplicate));
                for _ in 0..copies {
                    if let Some(ns) = self.arrives(node, n) {
                        let ns = ns + self.step_lateness_ns();
                        let what = PlanEvent::Step { n, ask, step };
                        self.after(ns, Event::Plan { at: Some((n, None)), what });
                    }
                }
            }
        }
    }

    /// A request may wait for a connection, or in its node's queue, until others have gone on.
    fn step_lateness_ns(&mut self) -> u64 {
        match self.rng.random_bool(self.faults.late_step) {
            true => self.rng.random_range(0..TODO_NS),
            false => 0,
        }
    }

    fn step_ends(&mut self, planner: usize, id: u64) {
        let Some(p) = self.planner(planner) else { return };
        if p.steps.contains_key(&id) && !p.ended.contains(&id) {
            p.ended.push(id);
        }
    }

    fn step_answered(&mut self, ask: Ask, result: Result<(), String>) {
        let Some(p) = self.planner(ask.planner) else { return };
        let awaited = p.steps.get(&ask.id).is_some_and(|s| s.request == ask.request);
        if !awaited || p.ended.contains(&ask.id) {
            return;
        }
        match result {
            Ok(()) => self.next_request(ask.planner, ask.id),
            Err(reason) => {
                self.note(|| format!("a step was not taken: {reason}"));
                self.step_ends(ask.planner, ask.id);
            }
        }
    }

    /// Proposes to the meta group: only its leader can.
    fn propose(&mut self, planner: usize, id: u64, request: usize, command: MetaCommand) {
        let Some(records) = &mut self.records else { return };
        if planner + 1 == records.planners.len() {
            records.proposed.insert((planner, id), command);
            let ns = self.faults.delay_ns(&mut self.rng);
            let what = PlanEvent::Commit { planner, id, request };
            self.after(ns, Event::Plan { at: None, what });
        }
    }

    fn proposal_commits(&mut self, planner: usize, id: u64, request: usize) -> Held {
        let Some(records) = &mut self.records else { return Ok(()) };
        let Some(command) = records.proposed.remove(&(planner, id)) else { return Ok(()) };
        // The meta group was busy, or its leader went and came back.
        let result = match self.rng.random_bool(self.faults.loss) {
            true => Err("not committed".into()),
            false => match self.commit(command)? {
                MetaOutcome::Refused(reason) => Err(reason),
                _ => Ok(()),
            },
        };
        let ask = Ask { planner, id, request };
        if !self.rng.random_bool(self.faults.loss) {
            let ns = self.rng.random_range(10_000..1_000_000);
            // The leader applies it itself.
            if let Some(node) = self.planner(planner).map(|p| p.node)
                && let Some(version) = self.records.as_ref().map(Records::last)
            {
                let what = PlanEvent::Learn { n: node, version };
                self.after(ns / 2, Event::Plan { at: Some((node, None)), what });
            }
            self.plan_at(ns, planner, PlanEvent::Answered { ask, result });
        }
        Ok(())
    }

    pub fn answer_step(&mut self, n: usize, ask: Ask, result: Result<(), String>) {
        let Some(to) = self.planner(ask.planner).map(|p| p.node) else { return };
        if let Some(ns) = self.arrives(n, to) {
            self.plan_at(ns, ask.planner, PlanEvent::Answered { ask, result });
        }
    }

    pub fn planner_rests(&self, records: &Records) -> bool {
        records.planners.last().is_some_and(|p| {
            p.at_rest
                && p.version == records.last()
                && p.steps.is_empty()
                && self.nodes[p.node].life == p.life
        })
    }

    /// What the planner would still do, for a person.
    pub fn planner_unrest(&self) -> String {
        let Some(records) = &self.records else { return String::new() };
        let mut out = String::new();
        for m in &records.latest().members {
            out += &format!("\n  member {} is in state {}", m.node_id, m.state);
        }
        for (p, placed) in records.latest().placement.iter().enumerate() {
            let nodes: Vec<_> = placed.replicas.iter().map(|r| (r.replica_id, r.node_id)).collect();
            out += &format!("\n  partition {p}: {nodes:?}, target {:?}", placed.target_node_ids);
        }
        if let Some(p) = records.planners.last() {
            let plan = plan(&p.observation.plan_input(limits()));
            out +=
                &format!("\n  planner on node {}, {} steps: {plan:?}", p.node + 1, p.steps.len());
            for (n, fact) in p.observation.partitions.iter().enumerate() {
                out += &format!("\n  {}: {fact:?}", GroupId::of_partition(n as u32));
            }
        }
        out
    }
}
