//! Where a call is tried next, by what is known.
#[cfg(test)]
mod tests;

use crate::ids::NodeId;
use crate::raft::handle::Role;
use ringfold_proto::internal::MetaReplica;

/// Attempts that wait for the replica here to know a leader, before others are asked in between.
const WAITS_MAX: usize = 8;

/// What is known where a call comes in.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub me: NodeId,
    /// The replica here, and the leader that it knows.
    pub local: Option<(Role, Option<NodeId>)>,
    /// Placement of the partition.
    pub replicas: &'a [MetaReplica],
    /// The leader that another node named.
    pub hint: Option<NodeId>,
    /// Attempts of this call so far.
    pub attempt: usize,
    /// Any replica may answer.
    pub stale: bool,
    /// It may be sent again when nobody knows what became of it.
    pub repeatable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Local,
    /// To the node that leads, by what is known.
    Forward(NodeId),
    /// To one that may know who leads.
    Ask(NodeId),
    /// Nobody to ask now: an election, or no placement yet.
    Wait,
}

/// Where to try next.
pub fn decide(known: &Known<'_>) -> Decision {
    // One that the records do not give to this node has left its group and is about to be destroyed;
    // it may never have heard of that. A node that has just started knows no records.
    let is_mine = |r: &MetaReplica| r.node_id == known.me.0;
    let is_recorded = known.replicas.is_empty() || known.replicas.iter().any(is_mine);
    // A learner may have nothing yet, and know nobody.
    let alive = known.local.filter(|(role, leader)| match role {
        Role::Closed => false,
        Role::Leader => true,
        Role::Learner => is_recorded && leader.is_some() && !known.stale,
        Role::Follower | Role::Candidate => is_recorded,
    });
    // Nor may one that was cut off from the others, or has left and is still recorded. What must not be
    // sent twice waits all the same: a guess that hears nothing would be its end.
    let asks_others = known.repeatable && known.attempt >= WAITS_MAX && known.attempt % 2 == 1;
    match alive {
        Some(_) if known.stale => return Decision::Local,
        Some((Role::Leader, _)) => return Decision::Local,
        Some((_, Some(leader))) if leader != known.me => return Decision::Forward(leader),
        // The replica here takes part in the election: it will know.
        Some(_) if !asks_others => return Decision::Wait,
        _ => {}
    }
    if let Some(hint) = known.hint.filter(|h| *h != known.me && !known.stale) {
        return Decision::Forward(hint);
    }
    let others = || known.replicas.iter().map(|r| NodeId(r.node_id)).filter(|n| *n != known.me);
    match others().count() {
        0 => Decision::Wait,
        // Where every second attempt asks, each of the others has its turn too.
        n => {
            let turn = if alive.is_some() { known.attempt / 2 } else { known.attempt };
            others().nth(turn % n).map_or(Decision::Wait, Decision::Ask)
        }
    }
}
