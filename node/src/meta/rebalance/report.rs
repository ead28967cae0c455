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
        renounced: f.renounced.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, ReplicaId};
    use crate::meta::state::PARTITIONS_MAX;
    use crate::peer::control::ANSWER_BYTES_MAX;
    use crate::raft::membership::{GONE_KEPT, Membership};
    use prost::Message as _;
    use ringfold_proto::internal::ReportAnswer;

    #[test]
    fn the_largest_report_fits_into_an_answer() {
        // A node that leads all partitions, each in the midst of a change, with ids as long as can be.
        let id = |i: u64| u64::MAX - i;
        let members: Vec<u64> = (0..7).map(id).collect();
        let known = (0..7 + GONE_KEPT as u64).map(|i| (ReplicaId(id(i)), NodeId(id(i))));
        let facts = GroupFacts {
            is_leader: true,
            term: id(0),
            membership: Membership {
                voters: members[..5].to_vec(),
                voters_outgoing: members[..5].to_vec(),
                learners: members[5..].to_vec(),
                nodes: known.collect(),
                ..Default::default()
            },
            membership_index: id(0),
            last_index: id(0),
            commit_index: id(0),
            matched: members.iter().map(|m| (*m, id(0))).collect(),
            change_pending: true,
            renounced: (0..16).map(id).collect(),
            ..Default::default()
        };
        let replica = ReplicaReport {
            group: PARTITIONS_MAX,
            replica_id: id(0),
            closed: true,
            bytes: id(0),
            applied_index: id(0),
            leads: Some(leader_report(&facts)),
        };
        let report = ReportAnswer {
            disk_free_bytes: id(0),
            disk_total_bytes: id(0),
            replicas: vec![replica; PARTITIONS_MAX as usize],
            followed_replica_id: id(0),
            ..Default::default()
        };
        let bytes = report.encoded_len();
        assert!(bytes + 1_024 < ANSWER_BYTES_MAX, "{bytes} bytes");
    }
}
