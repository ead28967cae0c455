//! Membership changes: what a leader checks and proposes, and what follows once one is durable.
use super::{Group, voters_of};
use crate::failpoint;
use crate::ids::{NodeId, ReplicaId};
use crate::raft::apply::Committed;
use crate::raft::driver::{MembershipChange, Now, Round};
use crate::raft::membership::CATCH_UP_LAG_MAX;
use prost_raft::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType,
    Message, MessageType,
};
use tokio::sync::oneshot;

/// Replicas that a leader remembers not to take in any more, the newest.
const RENOUNCED_MAX: usize = 16;
const OWN_REMOVAL: &str = "a leader does not remove itself: move its leadership first";

/// A membership change whose record waits for its sync.
pub(super) struct Changing {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) change: ConfChangeV2,
}

impl Group {
    pub fn change_membership(
        &mut self,
        now: Now,
        election_ns: u64,
        change: MembershipChange,
        planned_on: Option<u64>,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        let refused = self.propose_change(now, election_ns, change, planned_on);
        match refused {
            Ok(index) => self.change_reply = Some((index, reply)),
            Err(reason) => {
                let _ = reply.send(Err(reason));
            }
        }
    }

    fn propose_change(
        &mut self,
        now: Now,
        election_ns: u64,
        change: MembershipChange,
        planned_on: Option<u64>,
    ) -> Result<u64, String> {
        let raft = &self.raw.raft;
        if !self.is_leader() {
            return Err("this replica does not lead".into());
        }
        if raft.has_pending_conf() || self.changing.is_some() || self.transfer.is_some() {
            return Err("another membership change or a leader transfer is under way".into());
        }
        if !raft.commit_to_current_term() {
            return Err("the leader has committed nothing in its term yet".into());
        }
        let current = self.record.membership_index;
        if let Some(planned) = planned_on.filter(|p| *p != current && !self.faults.stale_change) {
            return Err(format!(
                "planned on the membership of entry {planned}, and the group is at that of {current}"
            ));
        }
        let mut v2 = ConfChangeV2::default();
        v2.set_transition(ConfChangeTransition::Auto);
        let mut context = Vec::new();
        match change {
            MembershipChange::AddLearner(replica, node) => {
                if self.record.membership.contains(replica) {
                    return Err(format!("{replica} is in the group"));
                }
                if self.renounced.contains(&replica.0) {
                    return Err(format!("{replica} was given up"));
                }
                v2.changes.push(single(ConfChangeType::AddLearnerNode, replica));
                context.extend_from_slice(&replica.0.to_le_bytes());
                context.extend_from_slice(&node.0.to_le_bytes());
            }
            MembershipChange::Promote(replica) => {
                self.has_caught_up(replica, now, election_ns)?;
                v2.changes.push(single(ConfChangeType::AddNode, replica));
            }
            MembershipChange::Demote(replica) => {
                self.is_not_own(replica)?;
                if !self.record.membership.is_voter(replica) {
                    return Err(format!("{replica} is no voter"));
                }
                v2.changes.push(single(ConfChangeType::AddLearnerNode, replica));
            }
            MembershipChange::Remove(replica) => {
                self.is_not_own(replica)?;
                if self.record.membership.is_voter(replica) {
                    return Err(format!("{replica} is a voter: it becomes a learner first"));
                }
                v2.changes.push(single(ConfChangeType::RemoveNode, replica));
            }
            MembershipChange::Swap { promote, remove } => {
                self.is_not_own(remove)?;
                self.has_caught_up(promote, now, election_ns)?;
                // An automatic leave would die with its leader.
                v2.set_transition(ConfChangeTransition::Explicit);
                v2.changes.push(single(ConfChangeType::AddNode, promote));
                // A learner first, and removed by a change of its own: who has that one in its log
                // knows that this one is committed, and elections need the old voter no more.
                v2.changes.push(single(ConfChangeType::AddLearnerNode, remove));
            }
            MembershipChange::LeaveJoint => {
                if !self.record.membership.voters.contains(&self.replica.0) {
                    return Err(OWN_REMOVAL.into());
                }
            }
        }
        let next = self.record.membership.after(&v2, &[]).map_err(|e| e.to_string())?;
        let current = &self.record.membership;
        let changes_voters = next.voters != current.voters || next.is_joint();
        for voters in [&next.voters, &next.voters_outgoing].into_iter().filter(|_| changes_voters) {
            let answers = |id: &&u64| self.is_heard(**id, now, election_ns);
            if !voters.is_empty() && voters.iter().filter(answers).count() <= voters.len() / 2 {
                return Err("no majority of the next membership answers now".into());
            }
        }
        let index = raft.raft_log.last_index() + 1;
        let (proposed, _) = points_of(&v2);
        let mut entry = Entry { data: v2.encode_to_vec(), context, ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = Message { from: self.replica.0, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![entry]);
        self.raw.step(message).map_err(|e| e.to_string())?;
        failpoint::hit(proposed, self.id);
        Ok(index)
    }

    fn is_not_own(&self, replica: ReplicaId) -> Result<(), String> {
        if replica == self.replica { Err(OWN_REMOVAL.into()) } else { Ok(()) }
    }

    /// Raft itself would make any learner a voter.
    fn has_caught_up(&self, replica: ReplicaId, now: Now, election_ns: u64) -> Result<(), String> {
        let raft = &self.raw.raft;
        // Of a short log one that was just added may have nothing at all.
        let p = raft.prs().get(replica.0).filter(|p| p.matched > 0);
        let p = p.filter(|_| self.is_heard(replica.0, now, election_ns));
        if p.is_none_or(|p| p.matched + CATCH_UP_LAG_MAX < raft.raft_log.committed) {
            return Err(format!("{replica} has not caught up"));
        }
        Ok(())
    }

    /// This leader takes the replica in no more: it was confirmed not to be in the group, and its
    /// record goes.
    ///
    /// # Errors
    /// It leads no more in that term, the membership has changed since, or is about to.
    pub fn renounce(
        &mut self,
        replica: ReplicaId,
        term: u64,
        membership_index: u64,
    ) -> Result<(), String> {
        let raft = &self.raw.raft;
        let is_same = self.is_leader()
            && (raft.term, self.record.membership_index) == (term, membership_index)
            && !self.record.membership.contains(replica)
            && !raft.has_pending_conf()
            && self.changing.is_none();
        if !is_same {
            return Err("the leader or the membership has changed meanwhile".into());
        }
        self.renounced.insert(replica.0);
        while self.renounced.len() > RENOUNCED_MAX {
            self.renounced.pop_first();
        }
        Ok(())
    }

    pub(super) fn change_is_durable(
        &mut self,
        index: u64,
        round: &mut Round,
    ) -> Result<(), String> {
        let Some(c) = self.changing.take_if(|c| c.index == index) else { return Ok(()) };
        let cs = self.raw.apply_conf_change(&c.change).map_err(|e| e.to_string())?;
        if !self.record.membership.matches(&cs) {
            return Err(format!(
                "raft's membership {cs:?} at entry {index} is not the recorded {:?}",
                self.record.membership
            ));
        }
        self.raw.mut_store().conf_state = cs;
        if self.is_leader() {
            failpoint::hit(points_of(&c.change).1, self.id);
        }
        if self.is_leader() && !self.record.membership.is_voter(self.replica) {
            // Elected before it had applied its removal, which an earlier leader had proposed. raft
            // would let it lead on, and panic.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
        self.voters = voters_of(&self.record.membership);
        self.lease.reset();
        self.publish_lease();
        self.hand_over(
            vec![Committed {
                index,
                term: c.term,
                data: None,
                membership: Some(self.encoded_membership()),
                replies: Vec::new(),
            }],
            round,
        );
        if let Some((_, reply)) = self.change_reply.take_if(|(i, _)| *i == index) {
            let _ = reply.send(Ok(()));
        }
        self.dispatch(round)
    }
}

/// The leader's failpoints of a membership change: it is proposed, and it is in effect here.
fn points_of(change: &ConfChangeV2) -> (&'static str, &'static str) {
    let has = |kind| change.changes.iter().any(|c| c.get_change_type() == kind);
    if has(ConfChangeType::AddNode) {
        ("swap-proposed", "swap-done")
    } else if has(ConfChangeType::RemoveNode) {
        ("removal-proposed", "removal-done")
    } else if has(ConfChangeType::AddLearnerNode) {
        ("learner-proposed", "learner-done")
    } else {
        ("leave-proposed", "leave-done")
    }
}

fn single(kind: ConfChangeType, replica: ReplicaId) -> ConfChangeSingle {
    let mut single = ConfChangeSingle { node_id: replica.0, ..Default::default() };
    single.set_change_type(kind);
    single
}

pub(super) fn decode_change(e: &Entry) -> Result<ConfChangeV2, String> {
    if e.get_entry_type() != EntryType::EntryConfChangeV2 {
        return Err("a membership change of a kind that is never proposed".into());
    }
    ConfChangeV2::decode(&e.data[..]).map_err(|e| format!("a membership change: {e}"))
}

/// Pairs of replica id and node id in a membership change's context.
pub(super) fn nodes_in(context: &[u8]) -> Vec<(ReplicaId, NodeId)> {
    context
        .chunks_exact(16)
        .filter_map(|c| {
            let (a, b) = c.split_at(8);
            Some((
                ReplicaId(u64::from_le_bytes(a.try_into().ok()?)),
                NodeId(u64::from_le_bytes(b.try_into().ok()?)),
            ))
        })
        .collect()
}
