//! What a cluster says of itself, and waiting for it.
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ringfold_proto::v1::{
    Member, MemberState, NodeStatusResponse, RebalancePlanRequest, RebalancePlanResponse,
};

use super::calls::{RPC_MAX, timed, within};
use super::{LocalCluster, Node};

/// How long a cluster may take until every partition has a leader.
pub const READY_MAX: Duration = Duration::from_secs(60);

/// Repeats `check` until it gives a value.
///
/// # Panics
/// When it does not within `max`, with what was waited for and the last reason.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    max: Duration,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + max;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => {
                panic!("{what}: not within {max:?}: {why}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl LocalCluster {
    /// Waits until every partition has a leader, which each running node with a replica knows. Nodes
    /// that have ended by themselves must have been removed.
    pub async fn wait_ready(&self) {
        eventually("every partition has a leader", READY_MAX, || async {
            let mut led = BTreeSet::new();
            for node in self.running() {
                let topology = node.topology().await.map_err(|s| format!("{}: {s}", node.name))?;
                let active = topology
                    .members
                    .iter()
                    .filter(|m| m.state == MemberState::Active as i32)
                    .count();
                if topology.epoch == 0
                    || active < self.settings.nodes.min(self.running().count())
                    || topology.node_id == 0
                {
                    return Err(format!(
                        "{}: epoch {}, {active} members active",
                        node.name, topology.epoch
                    ));
                }
                if let Some(fallen) = self.fallen(&topology.members) {
                    return Err(format!("{} has ended by itself", fallen.name));
                }
                for p in &topology.partition_map {
                    let is_here = p.replicas.iter().any(|r| r.node_id == topology.node_id);
                    match p.leader_node_id {
                        0 if is_here => {
                            return Err(format!(
                                "{}: no leader of partition {}",
                                node.name, p.partition
                            ));
                        }
                        0 => {}
                        _ => _ = led.insert(p.partition),
                    }
                }
            }
            if led.len() < self.settings.partitions as usize {
                return Err(format!("{} partitions led", led.len()));
            }
            Ok(())
        })
        .await;
    }

    /// A node that has ended by itself, although it was not removed.
    fn fallen(&self, members: &[Member]) -> Option<&Node> {
        let removed = |m: &&Member| m.state == MemberState::Removed as i32;
        let is_removed = |n: &Node| members.iter().filter(removed).any(|m| m.name == n.name);
        self.nodes.iter().find(|n| n.has_ended() && !is_removed(n))
    }

    /// Which node leads the meta group, by its place in `nodes`.
    pub async fn meta_leader(&self) -> usize {
        eventually("the meta group has a leader", READY_MAX, || async {
            for node in self.running() {
                let Ok(t) = node.topology().await else { continue };
                let leads = |m: &&Member| m.node_id == t.meta_leader_node_id;
                if let Some(m) = t.members.iter().find(leads)
                    && let Some(i) = self.nodes.iter().position(|n| n.name == m.name)
                {
                    return Ok(i);
                }
            }
            Err("none known".to_string())
        })
        .await
    }

    /// The plan of moves, from whoever leads the meta group.
    pub async fn plan(&self) -> Result<RebalancePlanResponse, String> {
        self.plan_of(self.running().next().ok_or("no node runs")?).await
    }

    /// The same, asked through this node.
    pub async fn plan_of(&self, node: &Node) -> Result<RebalancePlanResponse, String> {
        let request = timed(RebalancePlanRequest {}, RPC_MAX);
        let answer = within(node.admin().rebalance_plan(request), RPC_MAX).await;
        answer.map_err(|s| s.to_string())
    }

    /// Waits until so many members are active, none drains, and nothing is left to move.
    pub async fn wait_at_rest(&self, members: usize, max: Duration) {
        eventually("the cluster is at rest", max, || async {
            let node = self.running().next().ok_or("no node runs")?;
            let topology = node.topology().await.map_err(|s| s.to_string())?;
            let active = |m: &&Member| m.state == MemberState::Active as i32;
            let active: Vec<u64> =
                topology.members.iter().filter(active).map(|m| m.node_id).collect();
            if active.len() != members {
                return Err(format!("active members: {active:?}"));
            }
            for p in &topology.partition_map {
                if p.replicas.iter().any(|r| !active.contains(&r.node_id)) {
                    return Err(format!(
                        "partition {} is on others: {:?}",
                        p.partition, p.replicas
                    ));
                }
            }
            let plan = self.plan().await?;
            if plan.at_rest { Ok(()) } else { Err(format!("{plan:?}")) }
        })
        .await;
    }

    /// Which node leads a partition, by its place in `nodes`.
    pub async fn leader_of(&self, partition: u32) -> usize {
        eventually("a leader", READY_MAX, || async {
            for node in self.running() {
                let Ok(topology) = node.topology().await else {
                    continue;
                };
                let leader = topology
                    .partition_map
                    .iter()
                    .find(|p| p.partition == partition)
                    .map_or(0, |p| p.leader_node_id);
                let name =
                    topology.members.iter().find(|m| m.node_id == leader).map(|m| m.name.clone());
                if let Some(i) = name.and_then(|n| self.nodes.iter().position(|x| x.name == n))
                    && self.is_running(i)
                {
                    return Ok(i);
                }
            }
            Err(format!("none known of partition {partition}"))
        })
        .await
    }

    pub async fn status(&self, i: usize) -> NodeStatusResponse {
        let node = &self.nodes[i];
        eventually("node status", READY_MAX, || async {
            node.status().await.map_err(|s| s.to_string())
        })
        .await
    }

    /// Once all replicas have applied as much, their chains over the events are equal.
    pub async fn assert_replicas_agree(&self) {
        for partition in 0..self.settings.partitions {
            eventually("replicas at one index", READY_MAX, || async move {
                let mut marks = Vec::new();
                for node in self.running() {
                    let status = node.status().await.map_err(|s| s.to_string())?;
                    let replicas = status.replicas.into_iter();
                    marks.extend(
                        replicas
                            .filter(|r| r.partition == Some(partition))
                            .map(|r| (r.applied_index, r.position, r.chain, node.name.clone())),
                    );
                }
                if marks.windows(2).any(|p| p[0].0 != p[1].0) {
                    return Err(format!("partition {partition}: {marks:?}"));
                }
                assert!(
                    marks.windows(2).all(|p| (p[0].1, &p[0].2) == (p[1].1, &p[1].2)),
                    "replicas of partition {partition} differ at one index: {marks:?}"
                );
                Ok(())
            })
            .await;
        }
    }

    /// Checkpoints that nodes have installed: small data may move by the log alone.
    pub fn checkpoints_installed(&self) -> usize {
        let installed = |n: &Node| n.log().matches("checkpoint installed").count();
        self.nodes.iter().map(installed).sum()
    }

    /// No node has panicked: a caught panic is in its log too.
    pub fn assert_no_panic(&self) {
        for node in &self.nodes {
            let log = node.log();
            let panicked: Vec<&str> = log.lines().filter(|l| l.contains("panicked at")).collect();
            assert!(panicked.is_empty(), "{}: {panicked:#?}", node.name);
        }
    }
}
