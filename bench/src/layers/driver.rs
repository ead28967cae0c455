//! The driver alone: three nodes' drivers in one thread, each with its log in memory, and nothing
//! that applies. Messages are encoded and decoded as between nodes.
use std::{collections::HashMap, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use ringfold_node::{
    clock,
    ids::{GroupId, NodeId},
    partition::{
        apply::{CommandOutcome, Genesis, PartitionMachine},
        store::MemoryDisk,
    },
    raft::{
        apply::{ApplyNotice, ApplyTask, StateMachine as _},
        driver::{Driver, DriverSettings, Input, NewGroup, Now, Round},
        handle::{Applied, ReplicaView, Request, Role},
        log::{LogBatch, RaftLog as _, ReplicaRecord, memory::MemoryLog},
        membership::Membership,
    },
};
use tokio::sync::oneshot;

use super::{PARTITIONS, command, encoded, replica_of};
use crate::measure::{self, LoadArgs, Phase, Report, Samples};

#[derive(Clone, Debug, clap::Args)]
pub struct DriverArgs {
    /// Appends in flight
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    #[arg(long, default_value_t = PARTITIONS, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub partitions: u32,
    /// Bytes of each event's data
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
}

struct Node {
    driver: Driver,
    log: Arc<MemoryLog>,
    log_number: u64,
    inputs: Vec<Input>,
    views: HashMap<GroupId, Arc<ReplicaView>>,
    since_flush: u64,
}

/// Entries after which the logs forget, as they do behind a flush.
const FLUSH_ENTRIES: u64 = 4_096;

fn now() -> Now {
    Now { boot_ns: clock::boottime_ns(), wall_ms: clock::wall_ms() }
}

fn all_nodes(group: GroupId) -> [(ringfold_node::ids::ReplicaId, NodeId); 3] {
    // The first-placed one campaigns: leaders are spread.
    let at = |i: u32| u64::from((group.0 + i) % 3) + 1;
    [0, 1, 2].map(|i| (replica_of(group, at(i)), NodeId(at(i))))
}

impl Node {
    fn new(id: u64, partitions: u32) -> anyhow::Result<Node> {
        let log = Arc::new(MemoryLog::default());
        let driver = Driver::new(DriverSettings::new(NodeId(id)), log.clone(), now());
        let mut node = Node {
            driver,
            log,
            log_number: 0,
            inputs: Vec::new(),
            views: HashMap::new(),
            since_flush: 0,
        };
        let disk = MemoryDisk::default();
        for partition in 0..partitions {
            let group = GroupId::of_partition(partition);
            let replica = replica_of(group, id);
            let path = format!("{}", replica.0);
            let store = disk.open(path.as_ref(), true)?;
            let genesis = Genesis::new(partition, 2, []);
            let machine = PartitionMachine::with_store(store, &genesis, true)?;
            let view = ReplicaView::new(group, replica, machine.reader(), Applied::default());
            let view = Arc::new(view);
            let voters = all_nodes(group);
            node.views.insert(group, view.clone());
            node.inputs.push(Input::Create(Box::new(NewGroup {
                record: ReplicaRecord {
                    group,
                    replica,
                    directory: 1,
                    membership: Membership::genesis(&voters),
                    membership_index: 0,
                    truncated_index: 0,
                    truncated_term: 0,
                    destroyed: false,
                    first_placed: voters[0].0 == replica,
                },
                vote: None,
                last_index: 0,
                fresh: true,
                machine: Box::new(machine),
                view,
            })));
        }
        Ok(node)
    }

    fn leads(&self, group: GroupId) -> bool {
        self.views.get(&group).is_some_and(|v| v.status.read().role == Role::Leader)
    }

    /// Writes the round's batch and answers what it committed. Returns the messages, and how many
    /// appends were answered.
    fn finish(&mut self, round: Round) -> anyhow::Result<(Vec<(NodeId, Input)>, u64)> {
        let from = self.driver_node();
        let mut out = Vec::new();
        let write = round.write;
        if !write.ops.is_empty() {
            self.log_number += 1;
            self.log.write(self.log_number, LogBatch { ops: write.ops })?;
        }
        if !write.persisted.is_empty() {
            self.inputs.push(Input::Persisted(write.persisted));
        }
        let mut to: HashMap<NodeId, Vec<_>> = HashMap::new();
        for (node, _, message) in round.messages.into_iter().chain(write.messages) {
            to.entry(node).or_default().push(message);
        }
        for (node, messages) in to {
            out.push((node, Input::Messages { from, messages }));
        }
        let (mut answered, mut notices) = (0, Vec::new());
        for task in round.apply {
            let ApplyTask::Entries { group, replica, entries } = task else { continue };
            let Some(index) = entries.last().map(|e| e.index) else { continue };
            self.since_flush += entries.len() as u64;
            if let Some(view) = self.views.get(&group) {
                view.applied.send_replace(Applied { index, position: 0 });
            }
            for (count, reply) in entries.into_iter().flat_map(|e| e.replies) {
                answered += u64::from(count);
                let _ = reply.send(Ok(vec![CommandOutcome::Done; count as usize]));
            }
            notices.push(ApplyNotice::Applied { group, replica, index });
            if self.since_flush > FLUSH_ENTRIES {
                self.since_flush = 0;
                let flushed = |v: &Arc<ReplicaView>| Input::Flushed {
                    group: v.group,
                    replica: v.replica,
                    index: v.applied.borrow().index,
                };
                self.inputs.extend(self.views.values().map(flushed));
            }
        }
        if !notices.is_empty() {
            self.inputs.push(Input::Notices(notices));
        }
        Ok((out, answered))
    }

    fn driver_node(&self) -> NodeId {
        self.driver.node()
    }
}

struct Nodes([Node; 3]);

impl Nodes {
    /// One round of each node that has something to do; how many appends were answered.
    fn turn(&mut self) -> anyhow::Result<u64> {
        let mut answered = 0;
        for at in 0..3 {
            let node = &mut self.0[at];
            if node.inputs.is_empty() && now().boot_ns < node.driver.next_tick_ns() {
                continue;
            }
            let mut inputs = std::mem::take(&mut node.inputs);
            let round = node.driver.step(now(), &mut inputs);
            let (messages, count) = node.finish(round)?;
            answered += count;
            for (to, input) in messages {
                self.0[to.0 as usize - 1].inputs.push(input);
            }
        }
        Ok(answered)
    }

    fn leader(&self, group: GroupId) -> Option<usize> {
        self.0.iter().position(|n| n.leads(group))
    }

    fn propose(&mut self, leaders: &[usize], rng: &mut SmallRng, id: u64, bytes: u32) {
        let partition = rng.random_range(0..leaders.len());
        let (reply, _) = oneshot::channel();
        self.0[leaders[partition]].inputs.push(Input::Request(Request::Propose {
            group: GroupId::of_partition(partition as u32),
            commands: vec![encoded(&command(rng.random_range(0..1_000), id, bytes))],
            after_position: 0,
            reply,
        }));
    }
}

/// Appends over three drivers until the time is over. An append's time is not measured.
///
/// # Errors
/// No leaders within ten seconds.
pub async fn run(args: &DriverArgs) -> anyhow::Result<Report> {
    let new = |id| Node::new(id, args.partitions);
    let mut nodes = Nodes([new(1)?, new(2)?, new(3)?]);
    let since = Instant::now();
    let mut leaders = Vec::new();
    while leaders.len() < args.partitions as usize {
        nodes.turn()?;
        let groups = (0..args.partitions).map(GroupId::of_partition);
        leaders = groups.filter_map(|g| nodes.leader(g)).collect();
        if since.elapsed().as_secs() > 10 {
            bail!("the drivers' groups have not all leaders after ten seconds");
        }
    }
    let mut failed = None;
    let load = LoadArgs::new(args.in_flight, args.seconds, &[]);
    let report = measure::once("driver, three nodes, log in memory", &load, async |phase| {
        let mut samples = Samples::new(&phase);
        failed = appends(&mut nodes, &leaders, args, &phase, &mut samples).err();
        samples
    })
    .await;
    match failed {
        Some(e) => Err(e).context("a log in memory failed"),
        None => Ok(report),
    }
}

fn appends(
    nodes: &mut Nodes,
    leaders: &[usize],
    args: &DriverArgs,
    phase: &Phase,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(1);
    let since = Instant::now();
    let (mut id, mut in_flight, mut idle) = (0, 0, 0);
    while since.elapsed().as_secs_f64() < args.seconds && !phase.is_ended() {
        while in_flight < u64::from(args.in_flight) {
            nodes.propose(leaders, &mut rng, id, args.bytes);
            (id, in_flight) = (id + 1, in_flight + 1);
        }
        let now = Instant::now();
        let answered = nodes.turn()?;
        in_flight -= answered;
        for _ in 0..answered {
            samples.record(now, Ok(1));
        }
        idle = if answered > 0 { 0 } else { idle + 1 };
        if idle > 1_000_000 {
            bail!("{in_flight} appends are not answered");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn three_drivers_answer_appends() {
        let args = DriverArgs { in_flight: 8, seconds: 0.2, partitions: 4, bytes: 64 };
        let report = run(&args).await.unwrap();
        assert!(report.calls > 100 && report.errors == 0, "{report}");
    }
}
