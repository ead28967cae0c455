//! Whether the node may be counted on: every replica that it holds has caught up once since its start.
//!
//! From then on it stays so: replicas that come later are on their way through the cluster's own plan,
//! which counts them only once they have caught up. A node without replicas is ready as soon as it
//! knows the cluster's placement, for it forwards what it is asked. One that is to be bootstrapped or
//! to join is not ready: it can answer no call of an application, and nothing that brings it into a
//! cluster waits for its readiness (the nodes' names resolve before, and pods start side by side). A
//! replica that is closed keeps a node that starts from being ready: its partition has one copy less,
//! so another node must not be stopped; where there is no other copy, nothing would be won by that.
#[cfg(test)]
mod tests;

use crate::api::cluster::statuses;
use crate::api::node::Node;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::handle::{ReplicaView, Role};
use parking_lot::Mutex;
use ringfold_proto::v1::{NodeStatusResponse, ReplicaState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Replicas that are named; of the others only the number is told.
const NAMED_MAX: usize = 8;

/// What has been reached, for probes.
#[derive(Debug, Default)]
pub struct Readiness {
    reached: AtomicBool,
    waits_for: Mutex<Vec<String>>,
}

impl Readiness {
    pub fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// A line each; before the first look nothing is known.
    pub fn waits_for(&self) -> Vec<String> {
        let known = self.waits_for.lock().clone();
        match known.is_empty() {
            true => vec!["its replicas are to catch up".into()],
            false => known,
        }
    }
}

/// A replica of this node, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    group: GroupId,
    replica: ReplicaId,
    role: Role,
    term: u64,
    leader: Option<NodeId>,
    applied_index: u64,
    /// It leads, and has applied all that was acknowledged before.
    settled: bool,
}

impl Held {
    fn of(view: &ReplicaView) -> Held {
        let settled = view.is_settled();
        let status = view.status.read();
        Held {
            group: view.group,
            replica: view.replica,
            role: status.role,
            term: status.term,
            leader: status.leader,
            applied_index: view.applied.borrow().index,
            settled: settled && status.role == Role::Leader,
        }
    }

    /// What it waits for; `None`: it has caught up with a leader that has settled in this term or a
    /// later one.
    fn lacks(&self, statuses: &BTreeMap<NodeId, NodeStatusResponse>) -> Option<String> {
        let name = match self.group.partition() {
            Some(partition) => format!("partition {partition}"),
            None => "the meta group".into(),
        };
        if self.role == Role::Closed {
            return Some(format!("its replica of {name} is closed, and is to be rebuilt"));
        }
        if self.settled {
            return None;
        }
        let partition = self.group.partition();
        let replicas = statuses.values().flat_map(|s| &s.replicas);
        let leader = replicas
            .filter(|r| r.partition == partition && r.state == ReplicaState::Leader as i32)
            .filter(|r| r.settled && r.term >= self.term)
            .max_by_key(|r| r.term);
        match leader {
            None => Some(format!("{name} has no leader that answers")),
            Some(l) if self.applied_index < l.commit_index => Some(format!(
                "its replica of {name} is {} entries behind",
                l.commit_index - self.applied_index
            )),
            Some(_) => None,
        }
    }
}

/// Looks until the node is ready, for the first time and for good.
pub async fn watch(node: Arc<Node>) {
    let mut caught_up = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Whoever it belongs to, and what that has: else there is nothing to hold yet.
        if node.info.membership.get().is_none() || node.meta.borrow().placement.is_empty() {
            continue;
        }
        let behind = look(&node, &mut caught_up).await;
        if behind.is_empty() {
            node.readiness.reached.store(true, Ordering::Release);
            tracing::info!(replicas = caught_up.len(), "ready: every replica has caught up");
            return;
        }
        *node.readiness.waits_for.lock() = behind;
    }
}

/// What has not caught up yet.
async fn look(node: &Node, caught_up: &mut BTreeSet<ReplicaId>) -> Vec<String> {
    let held = |node: &Node| -> Vec<Held> {
        let mut held: Vec<_> = node.raft.replicas.read().values().map(|v| Held::of(v)).collect();
        held.sort_unstable_by_key(|h| h.group);
        held
    };
    let me = node.info.node_id();
    let leaders: BTreeSet<_> = held(node)
        .into_iter()
        .filter(|h| !caught_up.contains(&h.replica) && !h.settled)
        .filter_map(|h| h.leader.filter(|l| *l != me))
        .collect();
    let statuses = statuses::of(node, leaders, LOOK_TIMEOUT).await;
    // Once more: what they said is of before.
    let alone = node.meta.borrow().replication_factor == 1;
    behind(&held(node), &statuses, alone, caught_up)
}

/// Adds those that have caught up. Pure.
fn behind(
    held: &[Held],
    statuses: &BTreeMap<NodeId, NodeStatusResponse>,
    alone: bool,
    caught_up: &mut BTreeSet<ReplicaId>,
) -> Vec<String> {
    let mut behind = Vec::new();
    for h in held.iter().filter(|h| !(alone && h.role == Role::Closed)) {
        if caught_up.contains(&h.replica) {
            continue;
        }
        match h.lacks(statuses) {
            None => _ = caught_up.insert(h.replica),
            Some(what) => behind.push(what),
        }
    }
    if behind.len() > NAMED_MAX {
        let more = behind.len() - NAMED_MAX;
        behind.truncate(NAMED_MAX);
        behind.push(format!("and {more} more replicas"));
    }
    behind
}
