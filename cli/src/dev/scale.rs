//! `ringfold dev scale`: the running `dev` starts and ends processes, and this tells the cluster
//! what to move, waits, and tells `dev` which nodes are no members any more. Stopped in the middle
//! and run again, it goes on from what it finds.
mod decide;

use super::control::{Ask, Dev, Running};
use super::plan::{NODES_MAX, node_name};
use crate::Global;
use crate::connect::{connect, members_of};
use crate::error::{CliError, Exit};
use crate::members::{list_reasons, names};
use crate::output::{Out, Record, say};
use crate::rebalance::progress::{Progress, or_one};
use decide::{Change, decide, first_port, left_on, not_at_rest, not_joined};
use futures::StreamExt;
use ringfold_client::{Client, ClientError, RebalancePlan, Topology};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(200);
/// A removed node ends within 20 s, or is killed.
const GONE_WITHIN: Duration = Duration::from_secs(40);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many nodes there shall be
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    nodes: u32,
    /// How long to wait until everything has moved, seconds
    #[arg(long, default_value_t = 600)]
    within_s: u64,
}

#[derive(Serialize)]
struct ScaledRecord {
    nodes: u32,
    started: Vec<String>,
    removed: Vec<String>,
    endpoints: Vec<String>,
    seconds: f64,
}

impl Record for ScaledRecord {
    const HEADERS: &'static [&'static str] = &["NODES", "STARTED", "REMOVED", "SECONDS"];
    fn row(&self) -> Vec<String> {
        let list = |names: &[String]| match names {
            [] => "-".to_string(),
            names => names.join(" "),
        };
        let seconds = format!("{:.1}", self.seconds);
        vec![self.nodes.to_string(), list(&self.started), list(&self.removed), seconds]
    }
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    let started = Instant::now();
    let client = connect(global).await?;
    let topology = members_of(&client, global).await?;
    let mut dev = Dev::connect(first_port(&topology)?)?;
    let running = dev.ask(Ask::Nodes).await?;
    if running.cluster_id.to_string() != topology.cluster_id {
        let message = format!(
            "--endpoints leads to cluster {}, and `ringfold dev` runs {}",
            topology.cluster_id, running.cluster_id
        );
        return Err(CliError::other(message).action("name the endpoints that dev has told"));
    }
    let change = decide(&numbers(&running), args.nodes, topology.replication_factor)?;
    if client.rebalance_plan().await?.paused {
        return Err(CliError::new(Exit::Refused, "nothing moves, for rebalancing is paused")
            .action("`ringfold rebalance resume` first"));
    }
    let end = started + Duration::from_secs(args.within_s);
    let mut scale = Scale { client, dev, global, end, within_s: args.within_s, progress: None };
    let done = scale.run(&change).await;
    if let Some(progress) = scale.progress.take() {
        let moved = progress.finish();
        if done.is_ok() {
            say(format_args!("{} nodes, at rest{moved}", args.nodes));
        }
    }
    let running = done?;
    let mut out = Out::new(global.output);
    out.show(&ScaledRecord {
        nodes: args.nodes,
        started: change.started_names(),
        removed: change.leave.iter().copied().map(node_name).collect(),
        endpoints: running.nodes.iter().map(|n| n.endpoint.clone()).collect(),
        seconds: started.elapsed().as_secs_f64(),
    })?;
    out.flush()?;
    Ok(0)
}

fn numbers(running: &Running) -> Vec<u32> {
    running.nodes.iter().map(|n| n.number).collect()
}

struct Scale<'a> {
    client: Client,
    dev: Dev,
    global: &'a Global,
    end: Instant,
    within_s: u64,
    progress: Option<Progress>,
}

impl Scale<'_> {
    async fn run(&mut self, change: &Change) -> Result<Running, CliError> {
        // A node that an earlier run has started may not have joined yet: it could not be drained.
        let there = change.there();
        let topology = self.until("joining", move |t, _| not_joined(t, &there)).await?;
        if change.start > 0 && topology.replication_factor == 1 {
            say(format_args!(
                "each partition keeps its one replica, for this cluster began with fewer than three nodes: more nodes hold more, and no more often"
            ));
        }
        self.begin_drains(change, &topology).await?;
        if change.start > 0 {
            self.dev.ask(Ask::Start { count: change.start }).await?;
        }
        // By id: a node that is asked later may not have heard of all.
        let leaving = decide::ids(&topology, &change.leave);
        let left = leaving.clone();
        self.until("a node that leaves", move |t, _| left_on(t, &left)).await?;
        for (number, node_id) in leaving.into_iter().rev() {
            self.remove(number, node_id).await?;
        }
        let stay = change.stay();
        self.until("the cluster", move |t, plan| not_at_rest(t, plan, &stay)).await?;
        self.dev.ask(Ask::Nodes).await
    }

    /// Has all leaving nodes drain, and none that stays; or changes nothing.
    async fn begin_drains(&mut self, change: &Change, topology: &Topology) -> Result<(), CliError> {
        // What an earlier run has begun to drain.
        let undrained = change.undrained(topology);
        for node_id in &undrained {
            self.client.undrain(*node_id).await?;
        }
        let mut begun = Vec::new();
        for &number in change.leave.iter().rev() {
            let Some(member) = decide::member(topology, number) else {
                continue;
            };
            let first = self.client.drain(member.node_id).next().await;
            if let Some(Err(e)) = first {
                let error = list_reasons(CliError::from(e), self.global.output, &names(topology));
                self.restore(&begun, &undrained).await?;
                return Err(
                    error.context(format_args!("nothing was changed: {}", node_name(number)))
                );
            }
            if decide::is_active(member) {
                begun.push(member.node_id);
            }
        }
        Ok(())
    }

    async fn restore(&self, drained: &[u64], undrained: &[u64]) -> Result<(), CliError> {
        let failed = |node_id: u64, e: ClientError| {
            CliError::from(e).context(format_args!("node {node_id} is not as it was before"))
        };
        for &node_id in drained {
            self.client.undrain(node_id).await.map_err(|e| failed(node_id, e))?;
        }
        for &node_id in undrained {
            if let Some(Err(e)) = self.client.drain(node_id).next().await {
                return Err(failed(node_id, e));
            }
        }
        Ok(())
    }

    /// Waits until nothing is missing any more, with a look at the plan each time. What it saw last.
    async fn until(
        &mut self,
        what: &str,
        missing: impl Fn(&Topology, &RebalancePlan) -> Option<String>,
    ) -> Result<Topology, CliError> {
        let mut why = "it was not looked at".to_string();
        while Instant::now() < self.end {
            match self.look().await {
                Ok((topology, plan)) => {
                    let progress =
                        self.progress.get_or_insert_with(|| Progress::new(names(&topology)));
                    // Of those that have joined meanwhile as well.
                    progress.rename(names(&topology));
                    let Some(missing) = missing(&topology, &plan) else {
                        progress.take(&plan.moves, &plan.waiting);
                        return Ok(topology);
                    };
                    progress.take(&plan.moves, or_one(&plan.waiting, &missing));
                    why = missing;
                    if plan.paused {
                        return Err(CliError::new(
                            Exit::Refused,
                            "somebody has paused rebalancing",
                        )
                        .action("`ringfold rebalance resume`, and run this again"));
                    }
                }
                Err(e @ ClientError::Unavailable { .. }) => why = e.to_string(),
                Err(e) => return Err(e.into()),
            }
            tokio::time::sleep(POLL).await;
        }
        let message = format!("{what} is not done after {} s: {why}", self.within_s);
        Err(CliError::new(Exit::Unavailable, message)
            .action("it goes on; run this again to wait longer, or see `ringfold rebalance watch`"))
    }

    async fn look(&self) -> Result<(Topology, RebalancePlan), ClientError> {
        let topology = self.client.topology().await?;
        let plan = self.client.rebalance_plan().await?;
        Ok((topology, plan))
    }

    /// Takes a drained node out of the cluster, and its process with it.
    async fn remove(&mut self, number: u32, node_id: u64) -> Result<(), CliError> {
        loop {
            match self.client.remove_member(node_id).await {
                Ok(()) => break,
                // The leader knows of a replica that the others do not know of yet.
                Err(e) if e.reason() == "MEMBER_REFUSED" && Instant::now() < self.end => {
                    tokio::time::sleep(POLL).await;
                }
                Err(e) => {
                    let what = format!("removing {}", node_name(number));
                    return Err(CliError::from(e).context(what));
                }
            }
        }
        let end = Instant::now() + GONE_WITHIN;
        let mut running = self.dev.ask(Ask::Retire { numbers: vec![number] }).await?;
        while numbers(&running).contains(&number) {
            if Instant::now() >= end {
                let message = format!("the process of {} does not end", node_name(number));
                return Err(CliError::other(message).action("see what `ringfold dev` says"));
            }
            tokio::time::sleep(POLL).await;
            running = self.dev.ask(Ask::Nodes).await?;
        }
        Ok(())
    }
}
