//! `ringfold status`: each node asked itself, what is wrong with it, and whether gossip hears of it;
//! what is to move.
use crate::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::output::{Format, Out, Record};
use crate::rebalance::{plan_line, summary};
use crate::topology::member_state;
use futures::StreamExt;
use ringfold_client::{
    Liveness, Member, MemberState, MembershipEntry, NodeStatus, ReplicaState, Topology,
};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::SystemTime;

const IN_FLIGHT: usize = 16;

/// A node. What only the node itself knows is null where it does not answer.
#[derive(Serialize)]
struct NodeRecord {
    kind: &'static str,
    node_id: u64,
    name: String,
    state: &'static str,
    endpoint: String,
    answers: bool,
    /// "live" or "lost" by gossip, as the node that was asked sees it; null where it does not gossip.
    gossip: Option<&'static str>,
    gossip_since_unix_ms: Option<u64>,
    cpu_percent: Option<u32>,
    version: Option<String>,
    uptime_ms: Option<u64>,
    leaders: Option<u64>,
    replicas: Option<u64>,
    closed: Option<u64>,
    disk_free_bytes: Option<u64>,
    disk_total_bytes: Option<u64>,
    appends_refused: Option<bool>,
    ready: Option<bool>,
    waiting: Vec<String>,
    problems: Vec<String>,
    /// Partitions that it leads.
    #[serde(skip)]
    led: Vec<u32>,
}

impl Record for NodeRecord {
    const HEADERS: &'static [&'static str] = &[
        "NODE", "NAME", "STATE", "GOSSIP", "ENDPOINT", "VERSION", "UP", "LEADS", "REPLICAS",
        "FREE", "PROBLEMS",
    ];
    fn row(&self) -> Vec<String> {
        let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
        vec![
            self.node_id.to_string(),
            self.name.clone(),
            self.state.into(),
            match (self.gossip, self.gossip_since_unix_ms) {
                (Some(gossip), Some(since)) => format!("{gossip} {}", since_now(since)),
                _ => "-".into(),
            },
            self.endpoint.clone(),
            self.version.clone().unwrap_or("-".into()),
            self.uptime_ms.map_or("-".into(), duration),
            number(self.leaders),
            number(self.replicas),
            match (self.disk_free_bytes, self.disk_total_bytes) {
                (Some(free), Some(total)) => format!("{} of {}", gib(free), gib(total)),
                _ => "-".into(),
            },
            self.problems.join("; "),
        ]
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{}h", s / 86_400, s / 3_600 % 24),
    }
}

/// By this machine's clock, which may differ from the node's.
fn since_now(unix_ms: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    duration((now.as_millis() as u64).saturating_sub(unix_ms))
}

fn liveness(entry: &MembershipEntry) -> Option<&'static str> {
    match entry.liveness() {
        Liveness::Unspecified => None,
        Liveness::Live => Some("live"),
        Liveness::Lost => Some("lost"),
    }
}

fn record(
    member: &Member,
    status: Result<NodeStatus, String>,
    gossip: Option<&MembershipEntry>,
) -> NodeRecord {
    let mut problems = Vec::new();
    if gossip.is_some_and(|g| g.liveness() == Liveness::Lost) {
        problems.push("other nodes do not hear of it".into());
    }
    let status = status.map_err(|e| problems.push(format!("does not answer: {e}"))).ok();
    let count = |which: ReplicaState| {
        status.as_ref().map(|s| {
            // The meta group is no partition.
            let replicas = s.replicas.iter().filter(|r| r.partition.is_some());
            replicas.filter(|r| r.state() == which).count() as u64
        })
    };
    if let Some(status) = &status {
        if !status.lost_reason.is_empty() {
            problems.push(format!("its disk or log is lost: {}", status.lost_reason));
        }
        if status.appends_refused {
            problems.push("its disk is nearly full: appends are refused".into());
        }
        for replica in &status.replicas {
            if replica.state() == ReplicaState::Closed {
                let of = match replica.partition {
                    Some(partition) => format!("partition {partition}"),
                    None => "the meta group".into(),
                };
                problems.push(format!(
                    "replica {} of {of} is closed: {}",
                    replica.replica_id, replica.closed_reason
                ));
            }
        }
    }
    let led = status.iter().flat_map(|s| &s.replicas);
    let led = led.filter(|r| r.state() == ReplicaState::Leader).filter_map(|r| r.partition);
    NodeRecord {
        kind: "node",
        led: led.collect(),
        node_id: member.node_id,
        name: member.name.clone(),
        state: member_state(member),
        endpoint: member.client_url.clone(),
        answers: status.is_some(),
        gossip: gossip.and_then(liveness),
        gossip_since_unix_ms: gossip.filter(|g| liveness(g).is_some()).map(|g| g.since_unix_ms),
        cpu_percent: gossip.and_then(|g| Some(g.facts.as_ref()?.cpu_percent)),
        version: status.as_ref().map(|s| s.version.clone()),
        uptime_ms: status.as_ref().map(|s| s.uptime_ms),
        leaders: count(ReplicaState::Leader),
        replicas: (status.as_ref())
            .map(|s| s.replicas.iter().filter(|r| r.partition.is_some()).count() as u64),
        closed: count(ReplicaState::Closed),
        disk_free_bytes: status.as_ref().map(|s| s.disk_free_bytes),
        disk_total_bytes: status.as_ref().map(|s| s.disk_total_bytes),
        appends_refused: status.as_ref().map(|s| s.appends_refused),
        ready: status.as_ref().map(|s| s.ready),
        waiting: status.as_ref().map(|s| s.waiting.clone()).unwrap_or_default(),
        problems,
    }
}

/// What is wrong with the cluster as a whole. The node that answered may not know who leads a
/// partition that it has no replica of: `led` are those that nodes lead by their own account.
fn cluster_problems(topology: &Topology, led: &BTreeSet<u32>) -> Vec<String> {
    let mut problems = Vec::new();
    if topology.epoch == 0 {
        problems.push("partitions are not placed yet".into());
    }
    if topology.meta_leader_node_id == 0 {
        problems.push("the meta group has no known leader".into());
    }
    let leaderless: Vec<_> = (topology.partition_map.iter())
        .filter(|p| p.leader_node_id == 0 && !led.contains(&p.partition))
        .map(|p| p.partition.to_string())
        .collect();
    if !leaderless.is_empty() {
        problems.push(format!("partitions without leader: {}", leaderless.join(" ")));
    }
    problems
}

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let topology = client.topology().await?;
    // Nodes of an older version do not know the call: what they would say is left out.
    let heard = client.membership().await.unwrap_or_default();
    let heard =
        |node| heard.members.iter().find(|e| e.member.as_ref().is_some_and(|m| m.node_id == node));
    let members = (topology.members.iter()).filter(|m| m.state() != MemberState::Removed);
    let records: Vec<NodeRecord> = futures::stream::iter(members)
        .map(|member| {
            let (client, gossip) = (client.clone(), heard(member.node_id));
            async move {
                let status = client.node_status(&member.client_url).await;
                record(member, status.map_err(|e| e.to_string()), gossip)
            }
        })
        .buffered(IN_FLIGHT)
        .collect()
        .await;
    let mut out = Out::new(global.output);
    let led = records.iter().flat_map(|r| r.led.iter().copied()).collect();
    let mut problems = cluster_problems(&topology, &led);
    for record in &records {
        out.show(record)?;
        let named = |p: &String| format!("{}: {p}", record.name);
        problems.extend(record.problems.iter().map(named));
    }
    // Before the partitions are placed there is nothing to plan.
    if topology.epoch > 0 {
        match client.rebalance_plan().await {
            Ok(plan) if global.output == Format::Json => out.json(&plan_line(&plan))?,
            Ok(plan) => {
                out.flush()?;
                out.text(&format_args!("moves: {}\n", summary(&plan)))?;
                if !plan.waiting.is_empty() {
                    let line = "`ringfold rebalance plan` says what waits, and for what";
                    out.text(&format_args!("{line}\n"))?;
                }
            }
            Err(e) => problems.push(format!("what is to move is not known: {e}")),
        }
    }
    out.flush()?;
    if problems.is_empty() {
        return Ok(0);
    }
    Err(CliError::other(format!("not all is well: {}", problems.join("; ")))
        .action("read the logs of the nodes named"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_client::{Partition, ReplicaStatus};

    fn replica(partition: Option<u32>, state: ReplicaState) -> ReplicaStatus {
        let mut replica = ReplicaStatus {
            partition,
            replica_id: 7,
            closed_reason: "why".into(),
            ..ReplicaStatus::default()
        };
        replica.set_state(state);
        replica
    }

    #[test]
    fn a_node_counts_its_replicas_without_the_meta_group() {
        let status = NodeStatus {
            replicas: vec![
                replica(None, ReplicaState::Leader),
                replica(Some(0), ReplicaState::Leader),
                replica(Some(1), ReplicaState::Follower),
                replica(Some(2), ReplicaState::Closed),
            ],
            ..NodeStatus::default()
        };
        let record = record(&Member::default(), Ok(status), None);
        assert_eq!(record.leaders, Some(1));
        assert_eq!(record.replicas, Some(3));
        assert_eq!(record.closed, Some(1));
        assert_eq!(record.led, [0]);
        assert_eq!(record.problems, ["replica 7 of partition 2 is closed: why"]);
    }

    #[test]
    fn a_node_that_does_not_answer_is_a_problem() {
        let record = record(&Member::default(), Err("refused".into()), None);
        assert!(!record.answers);
        assert_eq!(record.gossip, None);
        assert_eq!(record.problems, ["does not answer: refused"]);
        assert_eq!(record.row().len(), NodeRecord::HEADERS.len());
    }

    #[test]
    fn what_gossip_knows_is_shown() {
        let mut entry = MembershipEntry { since_unix_ms: 7, ..MembershipEntry::default() };
        entry.set_liveness(Liveness::Live);
        let live = record(&Member::default(), Ok(NodeStatus::default()), Some(&entry));
        assert_eq!((live.gossip, live.gossip_since_unix_ms), (Some("live"), Some(7)));
        assert!(live.problems.is_empty());
        assert!(live.row()[3].starts_with("live "));
        entry.set_liveness(Liveness::Lost);
        let lost = record(&Member::default(), Ok(NodeStatus::default()), Some(&entry));
        assert_eq!(lost.problems, ["other nodes do not hear of it"]);
        entry.set_liveness(Liveness::Unspecified);
        let off = record(&Member::default(), Ok(NodeStatus::default()), Some(&entry));
        assert_eq!((off.gossip, off.gossip_since_unix_ms), (None, None));
        assert_eq!(off.row()[3], "-");
    }

    #[test]
    fn a_cluster_without_leaders_is_told() {
        let mut topology = Topology {
            epoch: 1,
            meta_leader_node_id: 1,
            partition_map: vec![Partition::default()],
            ..Topology::default()
        };
        let nobody = BTreeSet::new();
        assert_eq!(cluster_problems(&topology, &nobody), ["partitions without leader: 0"]);
        assert!(cluster_problems(&topology, &BTreeSet::from([0])).is_empty());
        topology.partition_map[0].leader_node_id = 1;
        assert!(cluster_problems(&topology, &nobody).is_empty());
    }

    #[test]
    fn uptimes_are_short() {
        let all = [999, 61_000, 3_660_000, 90_000_000].map(duration);
        assert_eq!(all, ["0s", "1m1s", "1h1m", "1d1h"]);
    }
}
