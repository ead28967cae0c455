//! Moves partitions: the leader of the meta group compares intent with fact, again and again, and
//! takes small steps, each of which can be lost, doubled or refused without harm.
//!
//! ```text
//! reports of all nodes ─> contacts ─> Observation ─> retarget? ─> propose the new intent
//!                                          └────────> plan ─> steps ─> meta group, groups' leaders
//! ```
//! Nothing is remembered between rounds but who was heard when: whoever leads next goes on.
pub mod asking;
pub mod contacts;
pub mod facts;
pub mod fence;
pub mod intent;
pub mod report;
pub mod steps;
mod view;

use super::state::is_removed;
use crate::ids::NodeId;
use crate::partition::apply::MetaOutcome;
use crate::raft::handle::ProposeError;
use contacts::{Contacts, OwnTime};
use facts::Observation;
use intent::Intent;
use parking_lot::Mutex;
use ringfold_proto::internal::{MetaCommand, MetaState, ReportAnswer, Step};
use ringfold_proto::v1;
use ringfold_topology::plan::{Limits, Plan, Reason, StepKind};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks at the cluster at rest.
const IDLE: Duration = Duration::from_millis(500);
/// While something moves.
const BUSY: Duration = Duration::from_millis(100);
/// At least, also where a step has ended meanwhile; and as long as the look itself took.
const LEAST: Duration = Duration::from_millis(20);
/// How often the time in which this process runs is read.
const READ_TIME: Duration = Duration::from_millis(200);
/// A leadership that could not be moved is left alone for so many times as long as that took: writes
/// wait while one tries.
const STAYS: u32 = 10;
/// Steps under way at once; each has an end of its own.
pub const STEPS_MAX: usize = 32;

#[derive(Debug, Clone)]
pub struct RebalanceSettings {
    /// A node that has not answered for so long is repaired elsewhere.
    pub repair_after_ms: u64,
    pub limits: Limits,
}

/// The node and the cluster as the rebalancer reaches them.
#[tonic::async_trait]
pub trait Host: Send + Sync + 'static {
    /// This node leads the meta group.
    fn leads(&self) -> bool;
    /// The term in which this node leads the meta group, confirmed by a read index: the records are
    /// as new as any then. `None`: it does not lead, or nobody confirms it in time.
    async fn confirmed_term(&self) -> Option<u64>;
    fn state(&self) -> Arc<MetaState>;
    /// Answers of those that answer within a second or two.
    async fn reports(&self, nodes: &BTreeSet<NodeId>) -> Vec<(NodeId, ReportAnswer)>;
    async fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, ProposeError>;
    /// Has a node take a step of a group that it leads.
    async fn step(&self, node: NodeId, step: Step) -> Result<(), String>;
}

/// What the leader knows and plans; empty on other nodes.
pub struct Rebalance {
    settings: RebalanceSettings,
    plan: watch::Sender<Arc<v1::RebalancePlanResponse>>,
    known: Mutex<Known>,
    time: Mutex<OwnTime>,
    /// Rounds that have ended, and the one that somebody waits for.
    rounds: watch::Sender<u64>,
    wanted_round: AtomicU64,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Known {
    contacts: Contacts,
    observation: Observation,
}

impl Rebalance {
    pub fn new(settings: RebalanceSettings) -> Rebalance {
        Rebalance {
            settings,
            plan: watch::Sender::default(),
            known: Mutex::default(),
            time: Mutex::new(OwnTime::new(Instant::now())),
            rounds: watch::Sender::default(),
            wanted_round: AtomicU64::new(0),
            wake: Arc::default(),
        }
    }

    /// Waits for a look at the cluster that begins after now.
    pub async fn refreshed(&self) {
        let mut rounds = self.rounds.subscribe();
        // The one that goes on has begun before.
        let wanted = *rounds.borrow() + 2;
        self.wanted_round.fetch_max(wanted, Ordering::AcqRel);
        self.wake.notify_one();
        let _ = rounds.wait_for(|r| *r >= wanted).await;
    }

    pub fn plan(&self) -> watch::Receiver<Arc<v1::RebalancePlanResponse>> {
        self.plan.subscribe()
    }

    /// Nodes that do not answer, and those of them that are lost.
    pub fn unreachable(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let (mut down, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for m in &self.known.lock().observation.members {
            if let ringfold_topology::plan::Reach::Down { lost: is_lost } = m.reach {
                down.insert(m.node_id);
                if is_lost {
                    lost.insert(m.node_id);
                }
            }
        }
        (down, lost)
    }

    /// Why a drain of the node could not end; nothing before the first look at the cluster.
    pub fn drain_obstacles(&self, node: NodeId) -> Vec<String> {
        let known = self.known.lock();
        let input = known.observation.plan_input(self.settings.limits);
        match ringfold_topology::plan::can_drain(&input, &[node.0]) {
            Ok(()) => Vec::new(),
            Err(reasons) => reasons.iter().map(ToString::to_string).collect(),
        }
    }

    fn forget(&self) {
        *self.known.lock() = Known::default();
        self.plan.send_if_modified(|p| {
            let changed = **p != v1::RebalancePlanResponse::default();
            *p = Arc::default();
            changed
        });
    }

    /// Runs on every node until `stop`; acts only while the node leads the meta group.
    pub async fn run(self: Arc<Self>, host: Arc<dyn Host>, stop: CancellationToken) {
        let rounds = async {
            let mut running = Running::default();
            loop {
                let began = Instant::now();
                let pause = if host.leads() {
                    self.round(&host, &mut running).await
                } else {
                    running = Running::default();
                    self.forget();
                    IDLE
                };
                self.rounds.send_modify(|r| *r += 1);
                if *self.rounds.borrow() >= self.wanted_round.load(Ordering::Acquire) {
                    tokio::time::sleep(LEAST.max(began.elapsed()).min(pause)).await;
                    let _ = tokio::time::timeout(pause, self.wake.notified()).await;
                }
            }
        };
        let readings = async {
            loop {
                self.time.lock().read(Instant::now());
                tokio::time::sleep(READ_TIME).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = rounds => {}
            () = readings => {}
        }
    }

    async fn round(&self, host: &Arc<dyn Host>, running: &mut Running) -> Duration {
        let state = host.state();
        if state.cluster_id.is_empty() {
            return IDLE;
        }
        let nodes: BTreeSet<NodeId> = {
            let members = state.members.iter().filter(|m| !is_removed(m));
            members.map(|m| NodeId(m.node_id)).collect()
        };
        let answers = host.reports(&nodes).await;
        running.collect();
        // The records as of after the reports: what was recorded meanwhile is not overlooked. A
        // leader that was deposed, or does not know yet what it led into, plans nothing.
        let Some(term) = host.confirmed_term().await else { return BUSY };
        let state = host.state();
        let now = self.time.lock().read(Instant::now());
        let lost_after = Duration::from_millis(self.settings.repair_after_ms);
        let observation = {
            let mut known = self.known.lock();
            known.contacts.heard(now, &nodes, answers);
            known.contacts.look_for_missing(&state);
            let o = Observation::new(term, &state, &known.contacts, now, lost_after);
            known.observation = o.clone();
            o
        };
        if observation.epoch == 0 {
            return IDLE;
        }
        if let Some(command) = self.retarget(&observation, running) {
            match host.propose(command).await {
                Ok(MetaOutcome::Placed { epoch }) => {
                    tracing::info!(epoch, "the partitions have new targets");
                }
                other => tracing::warn!(?other, "the new targets were not taken, tried again"),
            }
            return BUSY;
        }
        let plan = ringfold_topology::plan::plan(&observation.plan_input(self.settings.limits));
        self.publish(&observation, &plan);
        let at_rest = plan.at_rest;
        running.start(host, &self.wake, &observation, plan);
        if at_rest && running.steps.is_empty() { IDLE } else { BUSY }
    }

    /// The command for a new intent, when members have changed since the last one.
    fn retarget(&self, o: &Observation, running: &mut Running) -> Option<MetaCommand> {
        match running.intent.due(o, self.settings.limits) {
            Ok(due) => {
                let due = due?;
                for line in &due.explanation {
                    tracing::info!(line, "placement");
                }
                Some(due.command)
            }
            Err(e) => {
                running.say(format!("the partitions keep their targets: {e}"));
                None
            }
        }
    }

    fn publish(&self, o: &Observation, plan: &Plan) {
        let now = Arc::new(view::response(o, plan));
        self.plan.send_if_modified(|p| {
            let changed = *p != now;
            *p = now;
            changed
        });
    }
}

struct Ended {
    partition: u32,
    kind: StepKind,
    began: Instant,
    result: Result<(), String>,
}

/// What goes on between rounds.
#[derive(Default)]
struct Running {
    steps: JoinSet<Ended>,
    partitions: HashSet<u32>,
    /// By partition: until when its leadership stays.
    stays: HashMap<u32, Instant>,
    intent: Intent,
    said: String,
}

impl Running {
    /// Takes in what has ended.
    fn collect(&mut self) {
        while let Some(ended) = self.steps.try_join_next() {
            match ended {
                Ok(Ended { partition, kind, began, result }) => {
                    self.partitions.remove(&partition);
                    if let Err(reason) = result {
                        if matches!(kind, StepKind::TransferLeader { .. }) {
                            let now = Instant::now();
                            self.stays.insert(partition, now + (now - began) * STAYS);
                        }
                        tracing::debug!(partition, reason, "step not taken, planned again");
                    }
                }
                Err(e) if e.is_cancelled() => {}
                Err(e) => {
                    tracing::error!(error = %e, "a step failed");
                    // Which one is not known: none goes on.
                    self.steps.abort_all();
                    self.partitions.clear();
                }
            }
        }
    }

    fn start(&mut self, host: &Arc<dyn Host>, wake: &Arc<Notify>, o: &Observation, plan: Plan) {
        let now = Instant::now();
        self.stays.retain(|_, until| *until > now);
        for step in plan.steps {
            if self.steps.len() >= STEPS_MAX || self.partitions.contains(&step.partition) {
                continue;
            }
            let stays = self.stays.contains_key(&step.partition);
            if stays && step.reason == Reason::Leaders {
                continue;
            }
            let Some(todo) = steps::Todo::new(o, &step) else { continue };
            tracing::debug!(partition = step.partition, kind = ?step.kind, "{}", step.explanation);
            self.partitions.insert(step.partition);
            let (host, wake, partition) = (host.clone(), wake.clone(), step.partition);
            self.steps.spawn(async move {
                let result = todo.run(&*host).await;
                // The next one is due. One that was refused waits for other facts.
                if result.is_ok() {
                    wake.notify_one();
                }
                Ended { partition, kind: step.kind, began: now, result }
            });
        }
    }

    /// The same trouble each round is said once.
    fn say(&mut self, what: String) {
        if self.said != what {
            tracing::warn!("{what}");
            self.said = what;
        }
    }
}
