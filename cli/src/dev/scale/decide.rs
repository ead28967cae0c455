//! What a change of the number of nodes means, and when it is done. Pure.
use crate::dev::plan::{PORTS_STEP, node_name};
use crate::error::{CliError, Exit};
use crate::rebalance::summary;
use ringfold_client::{Member, MemberState, RebalancePlan, Topology};

/// Numbers of nodes that stay and leave, rising, and how many are to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub keep: Vec<u32>,
    pub leave: Vec<u32>,
    pub start: u32,
}

/// `numbers` of the nodes that there are, rising.
pub fn decide(numbers: &[u32], wanted: u32, replication_factor: u32) -> Result<Change, CliError> {
    if wanted < replication_factor {
        return Err(CliError::new(
            Exit::Refused,
            format!(
                "each partition has {replication_factor} replicas, each on a node of its own: {wanted} are too few nodes, and nothing was changed"
            ),
        )
        .action(format!("scale to {replication_factor} or more")));
    }
    let (keep, leave) = numbers.split_at(numbers.len().min(wanted as usize));
    let start = wanted.saturating_sub(numbers.len() as u32);
    Ok(Change { keep: keep.to_vec(), leave: leave.to_vec(), start })
}

impl Change {
    fn started(&self) -> impl Iterator<Item = u32> {
        let next = self.keep.last().map_or(0, |n| n + 1);
        next..next + self.start
    }

    pub fn started_names(&self) -> Vec<String> {
        self.started().map(node_name).collect()
    }

    /// All that there are before.
    pub fn there(&self) -> Vec<u32> {
        self.keep.iter().chain(&self.leave).copied().collect()
    }

    /// All that there are afterwards.
    pub fn stay(&self) -> Vec<u32> {
        self.keep.iter().copied().chain(self.started()).collect()
    }

    /// Ids of nodes that drain and are to stay.
    pub fn undrained(&self, topology: &Topology) -> Vec<u64> {
        let members = self.keep.iter().filter_map(|n| member(topology, *n));
        members.filter(|m| m.state() == MemberState::Draining).map(|m| m.node_id).collect()
    }
}

/// The node with this number, unless it was removed: a number may be used again.
pub fn member(topology: &Topology, number: u32) -> Option<&Member> {
    let name = node_name(number);
    members(topology).find(|m| m.name == name)
}

pub fn is_active(member: &Member) -> bool {
    member.state() == MemberState::Active
}

fn members(topology: &Topology) -> impl Iterator<Item = &Member> {
    topology.members.iter().filter(|m| m.state() != MemberState::Removed)
}

/// The first port of the `dev` that runs the cluster, by which it is found.
pub fn first_port(topology: &Topology) -> Result<u16, CliError> {
    let mut ports = members(topology).map(|m| {
        let number = m.name.strip_prefix("node-")?.parse::<u32>().ok()?;
        let (_, port) = m.client_url.split_once("://127.0.0.1:")?;
        let port = port.trim_end_matches('/').parse::<u32>().ok()?;
        u16::try_from(port.checked_sub(number.checked_mul(PORTS_STEP)?)?).ok()
    });
    let first = ports.next().flatten();
    first.filter(|first| ports.all(|p| p == Some(*first))).ok_or_else(|| {
        CliError::usage("--endpoints leads to a cluster that no `ringfold dev` of this machine runs")
            .action("`ringfold drain` and `ringfold remove` shrink any cluster; a node that is started with its seeds joins it")
    })
}

/// Who cannot be drained yet, for it is no member.
pub fn not_joined(topology: &Topology, numbers: &[u32]) -> Option<String> {
    let has_joined = |m: &Member| matches!(m.state(), MemberState::Active | MemberState::Draining);
    let missing = numbers.iter().find(|n| !member(topology, **n).is_some_and(has_joined))?;
    Some(format!("{} has not joined yet", node_name(*missing)))
}

/// Numbers and ids of nodes, of those that are members.
pub fn ids(topology: &Topology, numbers: &[u32]) -> Vec<(u32, u64)> {
    numbers.iter().filter_map(|n| member(topology, *n).map(|m| (*n, m.node_id))).collect()
}

/// What the leaving nodes still have.
pub fn left_on(topology: &Topology, leave: &[(u32, u64)]) -> Option<String> {
    if topology.members.is_empty() {
        return Some("the node that answers does not know the members yet".into());
    }
    for (number, id) in leave {
        let held = topology.partition_map.iter().filter(|p| {
            p.target_node_ids.contains(id) || p.replicas.iter().any(|r| r.node_id == *id)
        });
        match held.count() {
            0 if topology.meta_voter_node_ids.contains(id) => {
                return Some(format!("{} votes in the meta group", node_name(*number)));
            }
            0 => {}
            1 => return Some(format!("{} has 1 partition", node_name(*number))),
            n => return Some(format!("{} has {n} partitions", node_name(*number))),
        }
    }
    None
}

/// What is missing until exactly these nodes have everything.
pub fn not_at_rest(topology: &Topology, plan: &RebalancePlan, stay: &[u32]) -> Option<String> {
    for number in stay {
        match member(topology, *number) {
            Some(m) if is_active(m) => {}
            Some(m) => return Some(format!("{} is not active yet", m.name)),
            None => return Some(format!("{} has not joined yet", node_name(*number))),
        }
    }
    let is_known = |m: &&Member| stay.iter().any(|n| node_name(*n) == m.name);
    if let Some(other) = members(topology).find(|m| !is_known(m)) {
        return Some(format!("{} is still a member", other.name));
    }
    if plan.at_rest {
        return None;
    }
    Some(plan.waiting.first().cloned().unwrap_or_else(|| summary(plan)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_client::{Partition, Replica};

    fn topology(members: &[(u64, &str, MemberState)]) -> Topology {
        let member = |(node_id, name, state): &(u64, &str, MemberState)| {
            let number: u32 = name["node-".len()..].parse().unwrap();
            let client_url = format!("http://127.0.0.1:{}", 2600 + 10 * number);
            let name = (*name).to_string();
            Member {
                node_id: *node_id,
                name,
                client_url,
                state: *state as i32,
                ..Member::default()
            }
        };
        Topology { members: members.iter().map(member).collect(), ..Topology::default() }
    }

    use MemberState::{Active, Draining, Removed};

    #[test]
    fn the_highest_leave_and_the_next_numbers_come() {
        let change = decide(&[0, 1, 2], 5, 3).unwrap();
        assert_eq!((change.start, change.leave.len()), (2, 0));
        assert_eq!(change.started_names(), ["node-3", "node-4"]);
        assert_eq!(change.stay(), [0, 1, 2, 3, 4]);
        let change = decide(&[0, 2, 3, 7], 3, 3).unwrap();
        assert_eq!((change.start, &change.leave[..]), (0, &[7][..]));
        assert_eq!(change.stay(), [0, 2, 3]);
        let same = decide(&[0, 1, 2], 3, 3).unwrap();
        assert_eq!((same.start, same.leave.len()), (0, 0));
    }

    #[test]
    fn fewer_nodes_than_replicas_are_refused() {
        let refused = decide(&[0, 1, 2, 3], 2, 3).unwrap_err();
        assert_eq!(refused.exit, Exit::Refused);
        assert!(refused.message.contains("3 replicas"), "{refused:?}");
        assert!(decide(&[0, 1], 1, 1).is_ok());
    }

    #[test]
    fn the_first_port_is_found_from_any_members() {
        let t = topology(&[(2, "node-1", Active), (5, "node-4", Draining), (1, "node-0", Removed)]);
        assert_eq!(first_port(&t).unwrap(), 2600);
        for break_it in [
            |m: &mut Member| m.name = "a".into(),
            |m: &mut Member| m.client_url = "http://127.0.0.1:2600".into(),
            |m: &mut Member| m.client_url = "http://10.0.0.1:2640".into(),
        ] {
            let mut t = t.clone();
            break_it(&mut t.members[1]);
            assert_eq!(first_port(&t).unwrap_err().exit, Exit::Usage);
        }
        assert!(first_port(&Topology::default()).is_err());
    }

    #[test]
    fn a_node_that_has_not_joined_cannot_leave_yet() {
        let t = topology(&[
            (1, "node-0", Active),
            (2, "node-1", Draining),
            (3, "node-2", MemberState::Joining),
            (4, "node-3", Removed),
        ]);
        assert_eq!(not_joined(&t, &[0, 1]), None);
        for number in [2, 3, 4] {
            let missing = not_joined(&t, &[0, number, 1]).unwrap();
            assert_eq!(missing, format!("node-{number} has not joined yet"));
        }
    }

    #[test]
    fn a_node_has_left_when_it_holds_nothing_and_does_not_vote() {
        let mut t = topology(&[(1, "node-3", Removed), (9, "node-3", Draining)]);
        let replicas = vec![Replica { replica_id: 1, node_id: 9 }];
        t.partition_map = vec![Partition { replicas, ..Partition::default() }];
        t.meta_voter_node_ids = vec![9];
        let leave = ids(&t, &[3]);
        assert_eq!(leave, [(3, 9)]);
        assert_eq!(left_on(&t, &leave).unwrap(), "node-3 has 1 partition");
        t.partition_map[0].replicas.clear();
        t.partition_map[0].target_node_ids = vec![9];
        assert!(left_on(&t, &leave).is_some());
        t.partition_map[0].target_node_ids = vec![4];
        assert!(left_on(&t, &leave).unwrap().contains("votes"));
        t.meta_voter_node_ids = vec![1];
        assert_eq!(left_on(&t, &leave), None);
        assert!(left_on(&Topology::default(), &leave).is_some());
    }

    #[test]
    fn rest_is_when_exactly_these_are_active_and_nothing_moves() {
        let rest = RebalancePlan { at_rest: true, ..RebalancePlan::default() };
        let t = topology(&[(1, "node-0", Active), (2, "node-1", Draining), (3, "node-2", Removed)]);
        assert!(not_at_rest(&t, &rest, &[0, 1]).unwrap().contains("not active"));
        assert!(not_at_rest(&t, &rest, &[0, 2]).unwrap().contains("has not joined"));
        assert!(not_at_rest(&t, &rest, &[0]).unwrap().contains("still a member"));
        let t = topology(&[(1, "node-0", Active), (3, "node-2", Removed)]);
        assert_eq!(not_at_rest(&t, &rest, &[0]), None);
        let moving = RebalancePlan { leader_moves: 2, ..RebalancePlan::default() };
        assert_eq!(not_at_rest(&t, &moving, &[0]).unwrap(), "2 leaderships to hand over");
        let change = decide(&[0, 1], 2, 1).unwrap();
        let t = topology(&[(1, "node-0", Active), (2, "node-1", Draining)]);
        assert_eq!(change.undrained(&t), [2]);
    }
}
