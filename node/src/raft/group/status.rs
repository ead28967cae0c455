//! What a replica shows of itself, and what it knows of its group.
use super::{Group, SILENT_ELECTIONS};
use crate::raft::driver::{GroupFacts, Now};
use crate::raft::handle::Status;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

impl Group {
    pub fn facts(&self, now: Now, election_ns: u64) -> GroupFacts {
        let raft = &self.raw.raft;
        let silent_ns = SILENT_ELECTIONS * election_ns;
        // Nobody has said anything to a leader that has just been elected.
        let judges = self.is_leader() && now.boot_ns >= self.leader_since_ns + silent_ns;
        let is_silent = |id: &u64| judges && !self.is_heard(*id, now, silent_ns);
        GroupFacts {
            renounced: self.renounced.clone(),
            silent: raft.prs().iter().map(|(id, _)| *id).filter(is_silent).collect(),
            is_leader: self.is_leader(),
            term: raft.term,
            membership: self.record.membership.clone(),
            membership_index: self.record.membership_index,
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            matched: match self.is_leader() {
                true => raft.prs().iter().map(|(id, p)| (*id, p.matched)).collect(),
                false => BTreeMap::new(),
            },
            change_pending: raft.has_pending_conf() || self.changing.is_some(),
        }
    }

    /// Shows the replica's state to other threads.
    pub fn publish(&mut self) {
        self.view.entry_in_flight.store(!self.in_flight.is_empty(), Ordering::Release);
        self.view.read_in_flight.store(!self.reads_asked.is_empty(), Ordering::Release);
        let raft = &self.raw.raft;
        let now = Status {
            role: self.role(),
            term: raft.term,
            leader: self.leader_node(),
            first_index: self.raw.store().first(),
            last_index: raft.raft_log.last_index(),
            commit_index: raft.raft_log.committed,
            term_start: self.term_start,
            flushed_index: self.flushed,
            closed_reason: None,
            voters: self.voters.clone(),
        };
        if now != self.published {
            self.published = now.clone();
            *self.view.status.write() = now;
        }
    }

    pub(super) fn publish_lease(&mut self) {
        let holds = self.is_leader() && self.view.applied.borrow().index >= self.term_start;
        let until = if holds { self.lease.until_ns(self.raw.raft.term) } else { 0 };
        self.view.lease_until_ns.store(until, Ordering::Release);
    }
}
