//! Whether a node may stop. Pure.
use crate::ids::NodeId;
use ringfold_proto::internal::MetaState;
use ringfold_proto::v1::{NodeStatusResponse, ReplicaState, ReplicaStatus};
use std::collections::BTreeMap;

/// A replica whose log is so many entries behind what is committed does not count as healthy.
const LAG_MAX_ENTRIES: u64 = 1_000;

/// Why the cluster needs the node `target`, a line each; empty: it may stop. `statuses`: of the
/// other nodes that answered.
pub fn reasons(
    target: NodeId,
    meta: &MetaState,
    meta_voters: &[NodeId],
    statuses: &BTreeMap<NodeId, NodeStatusResponse>,
) -> Vec<String> {
    if !meta.members.iter().any(|m| m.node_id == target.0) {
        return vec![format!("{target} is no member of this cluster")];
    }
    let mut reasons = Vec::new();
    if meta_voters.contains(&target) {
        reasons.extend(group_reason("the meta group", target, None, meta_voters, statuses));
    }
    for (p, placed) in meta.placement.iter().enumerate() {
        let nodes: Vec<_> = placed.replicas.iter().map(|r| NodeId(r.node_id)).collect();
        if nodes.contains(&target) {
            let name = format!("partition {p}");
            reasons.extend(group_reason(&name, target, Some(p as u32), &nodes, statuses));
        }
    }
    reasons
}

fn group_reason(
    name: &str,
    target: NodeId,
    partition: Option<u32>,
    nodes: &[NodeId],
    statuses: &BTreeMap<NodeId, NodeStatusResponse>,
) -> Option<String> {
    let replica =
        |node: &NodeId| statuses.get(node)?.replicas.iter().find(|r| r.partition == partition);
    let committed = nodes.iter().filter_map(replica).map(|r| r.commit_index).max().unwrap_or(0);
    let mut faults = Vec::new();
    for node in nodes.iter().filter(|n| **n != target) {
        let Some(status) = statuses.get(node) else {
            faults.push(format!("{node} does not answer"));
            continue;
        };
        if status.stopping {
            faults.push(format!("{node} stops as well"));
        } else if let Some(fault) = fault(replica(node), committed) {
            faults.push(format!("{node}'s {fault}"));
        }
    }
    let others = nodes.iter().filter(|n| **n != target).count();
    let healthy = others - faults.len();
    let needed = nodes.len() / 2 + 1;
    if healthy >= needed {
        return None;
    }
    let because = match faults.is_empty() {
        true => String::new(),
        false => format!(": {}", faults.join(", ")),
    };
    Some(format!(
        "{name} keeps {healthy} healthy of {} replicas without {target}, {needed} needed{because}",
        nodes.len()
    ))
}

fn fault(replica: Option<&ReplicaStatus>, committed: u64) -> Option<&'static str> {
    let Some(r) = replica else {
        return Some("replica is missing");
    };
    match ReplicaState::try_from(r.state) {
        Ok(ReplicaState::Leader | ReplicaState::Follower) => {
            (r.last_index + LAG_MAX_ENTRIES < committed).then_some("replica is far behind")
        }
        Ok(ReplicaState::Candidate) => Some("replica has no leader"),
        Ok(ReplicaState::Learner) => Some("replica is a learner"),
        Ok(ReplicaState::Closed) => Some("replica is closed"),
        Ok(ReplicaState::Unspecified) | Err(_) => Some("replica is in an unknown state"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_proto::internal::{MetaMember, MetaPartition, MetaReplica};

    fn meta(nodes: u64) -> MetaState {
        let members = (1..=nodes).map(|n| MetaMember { node_id: n, ..Default::default() });
        let replicas =
            (1..=nodes).map(|n| MetaReplica { node_id: n, replica_id: n, ..Default::default() });
        MetaState {
            members: members.collect(),
            placement: vec![MetaPartition { replicas: replicas.collect(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn status(state: ReplicaState, last: u64, commit: u64) -> NodeStatusResponse {
        let replica = |partition| ReplicaStatus {
            partition,
            state: state as i32,
            last_index: last,
            commit_index: commit,
            ..Default::default()
        };
        NodeStatusResponse { replicas: vec![replica(None), replica(Some(0))], ..Default::default() }
    }

    fn ask(nodes: u64, others: &[(u64, NodeStatusResponse)]) -> Vec<String> {
        let statuses = others.iter().map(|(n, s)| (NodeId(*n), s.clone())).collect();
        reasons(NodeId(1), &meta(nodes), &[], &statuses)
    }

    #[test]
    fn two_healthy_of_three_let_the_third_stop() {
        let others =
            [(2, status(ReplicaState::Leader, 10, 10)), (3, status(ReplicaState::Follower, 10, 9))];
        assert_eq!(ask(3, &others), Vec::<String>::new());
    }

    #[test]
    fn a_node_is_needed_while_another_is_down_closed_behind_or_missing() {
        let well = (2, status(ReplicaState::Leader, 5_000, 5_000));
        for (other, why) in [
            (None, "node 3 does not answer"),
            (Some(status(ReplicaState::Closed, 5_000, 5_000)), "node 3's replica is closed"),
            (Some(status(ReplicaState::Learner, 5_000, 5_000)), "node 3's replica is a learner"),
            (Some(status(ReplicaState::Follower, 3_000, 3_000)), "node 3's replica is far behind"),
            (Some(NodeStatusResponse::default()), "node 3's replica is missing"),
            (
                Some(NodeStatusResponse {
                    stopping: true,
                    ..status(ReplicaState::Follower, 5_000, 5_000)
                }),
                "node 3 stops as well",
            ),
        ] {
            let mut others = vec![well.clone()];
            others.extend(other.map(|s| (3, s)));
            let expected = format!(
                "partition 0 keeps 1 healthy of 3 replicas without node 1, 2 needed: {why}"
            );
            assert_eq!(ask(3, &others), [expected]);
        }
    }

    #[test]
    fn a_single_replica_never_may_and_a_stranger_is_named() {
        assert_eq!(
            ask(1, &[]),
            ["partition 0 keeps 0 healthy of 1 replicas without node 1, 1 needed"]
        );
        let unknown = reasons(NodeId(9), &meta(3), &[], &BTreeMap::new());
        assert_eq!(unknown, ["node 9 is no member of this cluster"]);
    }

    #[test]
    fn the_meta_group_counts_too() {
        let statuses = BTreeMap::from([(NodeId(2), status(ReplicaState::Leader, 1, 1))]);
        let voters = [NodeId(1), NodeId(2), NodeId(3)];
        let reasons = reasons(NodeId(1), &meta(3), &voters, &statuses);
        assert_eq!(reasons.len(), 2);
        assert!(reasons[0].starts_with("the meta group keeps 1 healthy of 3"), "{reasons:?}");
    }
}
