//! `ringfold topology`: members, and which of them hold and lead each partition.
use crate::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::output::{Format, Out, Record, say};
use ringfold_client::{Member, MemberState, Partition, Topology};
use serde::Serialize;

/// Lines of `-o json` differ by `kind`.
#[derive(Serialize)]
struct ClusterLine<'a> {
    kind: &'static str,
    cluster_id: &'a str,
    epoch: u64,
    feature_level: u32,
    partitions: u32,
    replication_factor: u32,
    meta_leader_node_id: Option<u64>,
    meta_voter_node_ids: &'a [u64],
    answered_by_node_id: u64,
}

#[derive(Serialize)]
struct MemberLine<'a> {
    kind: &'static str,
    node_id: u64,
    name: &'a str,
    state: &'static str,
    zone: &'a str,
    endpoint: &'a str,
    peer_address: &'a str,
    reachable: bool,
}

#[derive(Serialize)]
struct PartitionLine {
    kind: &'static str,
    partition: u32,
    leader_node_id: Option<u64>,
    term: u64,
    replicas: Vec<ReplicaLine>,
}

#[derive(Serialize)]
struct ReplicaLine {
    node_id: u64,
    replica_id: u64,
}

impl Record for MemberLine<'_> {
    const HEADERS: &'static [&'static str] =
        &["NODE", "NAME", "STATE", "ZONE", "ENDPOINT", "REACHABLE"];
    fn row(&self) -> Vec<String> {
        vec![
            self.node_id.to_string(),
            self.name.into(),
            self.state.into(),
            self.zone.into(),
            self.endpoint.into(),
            if self.reachable { "yes" } else { "no" }.into(),
        ]
    }
}

impl Record for PartitionLine {
    const HEADERS: &'static [&'static str] = &["PARTITION", "LEADER", "TERM", "NODES"];
    fn row(&self) -> Vec<String> {
        let nodes: Vec<_> = self.replicas.iter().map(|r| r.node_id.to_string()).collect();
        vec![
            self.partition.to_string(),
            self.leader_node_id.map_or("-".into(), |n| n.to_string()),
            self.term.to_string(),
            nodes.join(" "),
        ]
    }
}

/// A member's state as it is shown.
pub fn member_state(member: &Member) -> &'static str {
    match member.state() {
        MemberState::Unspecified => "unknown",
        MemberState::Joining => "joining",
        MemberState::Active => "active",
        MemberState::Draining => "draining",
        MemberState::Removed => "removed",
    }
}

fn known(node_id: u64) -> Option<u64> {
    (node_id != 0).then_some(node_id)
}

fn cluster_line(t: &Topology) -> ClusterLine<'_> {
    ClusterLine {
        kind: "cluster",
        cluster_id: &t.cluster_id,
        epoch: t.epoch,
        feature_level: t.feature_level,
        partitions: t.partitions,
        replication_factor: t.replication_factor,
        meta_leader_node_id: known(t.meta_leader_node_id),
        meta_voter_node_ids: &t.meta_voter_node_ids,
        answered_by_node_id: t.node_id,
    }
}

fn member_line(member: &Member) -> MemberLine<'_> {
    MemberLine {
        kind: "member",
        node_id: member.node_id,
        name: &member.name,
        state: member_state(member),
        zone: &member.zone,
        endpoint: &member.client_url,
        peer_address: &member.peer_address,
        reachable: member.reachable,
    }
}

fn partition_line(partition: &Partition) -> PartitionLine {
    PartitionLine {
        kind: "partition",
        partition: partition.partition,
        leader_node_id: known(partition.leader_node_id),
        term: partition.term,
        replicas: (partition.replicas.iter())
            .map(|r| ReplicaLine { node_id: r.node_id, replica_id: r.replica_id })
            .collect(),
    }
}

pub async fn run(global: &Global) -> Result<u8, CliError> {
    let topology = connect(global).await?.topology().await?;
    let mut out = Out::new(global.output);
    match global.output {
        Format::Json => out.json(&cluster_line(&topology))?,
        Format::Table => say(format_args!(
            "cluster {}, epoch {}, {} partitions, {} replicas of each",
            topology.cluster_id, topology.epoch, topology.partitions, topology.replication_factor
        )),
    }
    for member in &topology.members {
        out.show(&member_line(member))?;
    }
    for partition in &topology.partition_map {
        out.show(&partition_line(partition))?;
    }
    out.flush()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_client::Replica;
    use serde_json::json;

    #[test]
    fn a_partition_without_leader_says_null() {
        let partition = Partition {
            partition: 3,
            leader_node_id: 0,
            term: 2,
            replicas: vec![Replica { replica_id: 9, node_id: 1 }],
            ..Partition::default()
        };
        let line = partition_line(&partition);
        assert_eq!(
            serde_json::to_value(&line).unwrap(),
            json!({"kind": "partition", "partition": 3, "leader_node_id": null, "term": 2,
                   "replicas": [{"node_id": 1, "replica_id": 9}]})
        );
        assert_eq!(line.row(), ["3", "-", "2", "1"]);
    }

    #[test]
    fn a_member_has_its_documented_fields() {
        let mut member = Member {
            node_id: 1,
            name: "n".into(),
            client_url: "http://h:1".into(),
            peer_address: "h:2".into(),
            zone: "z".into(),
            reachable: true,
            ..Member::default()
        };
        member.set_state(MemberState::Draining);
        assert_eq!(
            serde_json::to_value(member_line(&member)).unwrap(),
            json!({"kind": "member", "node_id": 1, "name": "n", "state": "draining", "zone": "z",
                   "endpoint": "http://h:1", "peer_address": "h:2", "reachable": true})
        );
    }
}
