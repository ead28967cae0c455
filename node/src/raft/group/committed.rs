//! Committed entries on their way to apply.
use super::Group;
use super::change::{Changing, decode_change, nodes_in};
use crate::raft::apply::{ApplyTask, Committed};
use crate::raft::driver::{PersistedItem, Round};
use crate::raft::log::LogOp;
use bytes::Bytes;
use raft::eraftpb::EntryType;

impl Group {
    /// Hands committed entries to apply, up to a membership change that must be durable first.
    pub(super) fn dispatch(&mut self, round: &mut Round) -> Result<(), String> {
        let mut out = Vec::new();
        while self.changing.is_none()
            && let Some(e) = self.committed.pop_front()
        {
            let replies = self.take_replies(&e);
            let (index, term) = (e.index, e.term);
            match e.get_entry_type() {
                EntryType::EntryNormal => out.push(Committed {
                    index,
                    term,
                    data: (!e.data.is_empty()).then(|| Bytes::from(e.data)),
                    membership: None,
                    replies,
                }),
                EntryType::EntryConfChangeV2 | EntryType::EntryConfChange => {
                    let mut done = Committed { index, term, data: None, membership: None, replies };
                    if index <= self.record.membership_index {
                        // Replayed: it has been in effect since the start.
                        if index == self.record.membership_index {
                            done.membership = Some(self.encoded_membership());
                        }
                        out.push(done);
                        continue;
                    }
                    let change = decode_change(&e)?;
                    match self.record.membership.after(&change, &nodes_in(&e.context)) {
                        // The same on every replica: a pure function of the membership.
                        Err(reason) => {
                            tracing::warn!(group = %self.id, index, %reason, "membership change ignored");
                            if let Some((_, reply)) =
                                self.change_reply.take_if(|(i, _)| *i == index)
                            {
                                let _ = reply.send(Err(reason.to_string()));
                            }
                            out.push(done);
                        }
                        Ok(next) => {
                            self.record.membership = next;
                            self.record.membership_index = index;
                            self.changing = Some(Changing { index, term, change });
                            if !self.faults.membership_lost_at_restart {
                                round.write.ops.push(LogOp::Record(Box::new(self.record.clone())));
                            }
                            round.write.persisted.push(PersistedItem {
                                group: self.id,
                                replica: self.replica,
                                ready: None,
                                change: Some(index),
                                installed: None,
                                destroyed: false,
                            });
                        }
                    }
                }
            }
        }
        self.hand_over(out, round);
        Ok(())
    }

    pub(super) fn hand_over(&self, entries: Vec<Committed>, round: &mut Round) {
        if !entries.is_empty() {
            round.apply.push(ApplyTask::Entries { group: self.id, replica: self.replica, entries });
        }
    }

    pub(super) fn encoded_membership(&self) -> Vec<u8> {
        use prost::Message as _;
        self.record.membership.to_proto().encode_to_vec()
    }

    /// The database has applied everything up to `index`.
    pub fn applied(&mut self, index: u64, cache_bytes: u64) {
        let log = &self.raw.raft.raft_log;
        if index > log.applied && index <= log.committed.min(log.persisted) {
            self.raw.advance_apply_to(index);
        }
        let persisted = self.raw.raft.raft_log.persisted;
        self.raw.mut_store().evict(index.min(persisted), cache_bytes);
        while self.applying.front().is_some_and(|(i, _)| *i <= index) {
            if let Some((_, bytes)) = self.applying.pop_front() {
                self.in_flight_bytes -= bytes;
            }
        }
        while self.handed.front().is_some_and(|(i, _)| *i <= index) {
            if let Some((_, bytes)) = self.handed.pop_front() {
                self.committed_bytes -= bytes;
            }
        }
        self.answer_reads();
        self.publish_lease();
    }
}
