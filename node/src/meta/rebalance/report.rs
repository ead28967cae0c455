//! What a node tells the planner of its replicas. Pure.
use crate::raft::driver::GroupFacts;
use crate::raft::handle::{ReplicaView, Role};
use ringfold_proto::internal::{LeaderReport, ReplicaReport};

/// One replica. `bytes`: of its database's files, about; `facts`: its driver's, if it runs.
pub fn replica_report(view: &ReplicaView, bytes: u64, facts: Option<&GroupFacts>) -> ReplicaReport {
    ReplicaReport {
        group: view.group.0,
        replica_id: view.replica.0,
        closed: view.status.read().role == Role::Closed,
        bytes,
        applied_index: view.applied.borrow().index,
        leads: facts.filter(|f| f.is_leader).map(leader_report),
    }
}

fn leader_report(f: &GroupFacts) -> LeaderReport {
    LeaderReport {
        term: f.term,
        membership: Some(f.membership.to_proto()),
        membership_index: f.membership_index,
        last_index: f.last_index,
        commit_index: f.commit_index,
        matched: f.matched.iter().map(|(r, i)| (*r, *i)).collect(),
        change_pending: f.change_pending,
    }
}
