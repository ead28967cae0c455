//! raft's Ready: what it leaves to send, to write and to apply, and what follows once it is synced.
use super::Group;
use crate::ids::{NodeId, ReplicaId};
use crate::raft::apply::ApplyTask;
use crate::raft::driver::{Channel, Now, PeerMessage, PersistedItem, PlantedFaults, Round};
use crate::raft::log::{LogOp, Vote};
use prost_raft::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};

impl Group {
    /// Takes raft's Ready. True: there is another.
    pub fn ready(
        &mut self,
        now: Now,
        number: u64,
        faults: PlantedFaults,
        round: &mut Round,
    ) -> Result<bool, String> {
        if self.transfer.is_some() {
            self.go_on_transfer();
        }
        if !self.raw.has_ready() {
            self.publish();
            return Ok(false);
        }
        let mut rd = self.raw.ready();
        self.note_role(now);
        for m in rd.take_messages() {
            self.send(now, number, m, &mut round.messages);
        }
        let mut persist = rd.must_sync();
        let mut installed = None;
        if !rd.snapshot().is_empty() {
            installed = Some(self.install(rd.snapshot().clone(), round)?);
            persist = true;
        }
        if let Some(hs) = rd.hs() {
            self.raw.mut_store().hard_state = hs.clone();
        }
        let entries = rd.take_entries();
        let changes_membership = !faults.change_without_commit
            && entries.iter().any(|e| e.get_entry_type() != EntryType::EntryNormal);
        if !entries.is_empty() {
            persist = true;
            let op = LogOp::Entries {
                replica: self.replica,
                first_index: entries[0].index,
                entries: entries.iter().map(|e| e.encode_to_vec()).collect(),
            };
            let bytes = entries.iter().map(|e| e.data.len() as u64).sum();
            self.unsynced.push_back((rd.number(), bytes));
            if !self.raw.mut_store().append(entries) {
                return Err("raft wrote entries that leave a gap in the log".into());
            }
            round.write.ops.push(op);
        }
        let hs = &self.raw.store().hard_state;
        // The commit index is not worth a write of its own: a restart takes the applied one. But
        // whoever has a membership change in its log must know, also after a restart, that the one
        // before it was committed: else it would campaign with a membership that the others have
        // left by two changes, and its majority and theirs need not meet.
        if (hs.term, hs.vote) != self.saved_vote || changes_membership {
            self.saved_vote = (hs.term, hs.vote);
            let vote = Vote { term: hs.term, vote: hs.vote, commit: hs.commit };
            round.write.ops.push(LogOp::Vote { replica: self.replica, vote });
            persist = true;
        }
        // Also a Ready that writes nothing waits behind those whose sync is under way.
        let later = (persist || self.writes > 0) && !faults.ack_before_sync;
        let messages = rd.take_persisted_messages();
        for m in messages {
            let out = if later { &mut round.write.messages } else { &mut round.messages };
            self.send(now, number, m, out);
        }
        for state in rd.take_read_states() {
            let Ok(context) = <[u8; 8]>::try_from(&state.request_ctx[..]) else { continue };
            let asked = u64::from_be_bytes(context);
            while self.reads_asked.front().is_some_and(|(n, _)| *n <= asked) {
                if let Some((_, replies)) = self.reads_asked.pop_front() {
                    self.reads_confirmed.push_back((state.index, replies));
                }
            }
        }
        let committed = rd.take_committed_entries();
        for e in &committed {
            self.committed_bytes += e.data.len() as u64;
            self.handed.push_back((e.index, e.data.len() as u64));
        }
        self.committed.extend(committed);
        let ready = rd.number();
        self.raw.advance_append_async(rd);
        if later {
            self.writes += 1;
            round.write.persisted.push(PersistedItem {
                group: self.id,
                replica: self.replica,
                ready: Some(ready),
                change: None,
                installed,
                destroyed: false,
            });
        } else {
            self.raw.on_persist_ready(ready);
        }
        self.dispatch(round)?;
        self.answer_reads();
        self.publish();
        Ok(self.raw.has_ready())
    }

    /// Sends one of raft's messages: heartbeats carry the round's number, for the lease.
    fn send(
        &mut self,
        now: Now,
        number: u64,
        mut m: Message,
        out: &mut Vec<(NodeId, Channel, PeerMessage)>,
    ) {
        let kind = m.get_msg_type();
        if kind == MessageType::MsgHeartbeat {
            if m.context.is_empty() {
                m.context = number.to_be_bytes().to_vec();
            }
            if let Ok(context) = <[u8; 8]>::try_from(&m.context[..]) {
                self.lease.sent(u64::from_be_bytes(context), now.boot_ns);
            }
        }
        // Its receiver may not be known any more: then nobody waits for the message.
        let Some(node) = self.node_of(ReplicaId(m.to)) else { return };
        let channel = match kind {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => Channel::Entries,
            _ => Channel::Votes,
        };
        out.push((
            node,
            channel,
            PeerMessage {
                group: self.id,
                from: ReplicaId(m.from),
                to: ReplicaId(m.to),
                bytes: m.encode_to_vec().into(),
            },
        ));
    }

    /// The write of a Ready is synced.
    pub fn persisted(&mut self, item: &PersistedItem, round: &mut Round) -> Result<(), String> {
        if let Some(number) = item.ready {
            self.writes = self.writes.saturating_sub(1);
            self.raw.on_persist_ready(number);
            while self.unsynced.front().is_some_and(|(n, _)| *n <= number) {
                self.unsynced.pop_front();
            }
        }
        if item.installed.is_some()
            && let Some((index, directory)) = self.installing.take()
        {
            // To raft it is applied: what lies before it cannot be read any more.
            self.raw.advance_apply_to(index);
            round.apply.push(ApplyTask::Install {
                group: self.id,
                replica: self.replica,
                directory,
                index,
            });
        }
        if let Some(index) = item.change {
            self.change_is_durable(index, round)?;
        }
        Ok(())
    }
}
