//! Checkpoints: taken in place of the log, wanted by those behind it, and how far the log may go.
use super::{Group, voters_of};
use crate::ids::ReplicaId;
use crate::raft::driver::{Incoming, Now, Round, Write};
use crate::raft::log::LogOp;
use raft::eraftpb::{Message, MessageType, Snapshot};
use std::sync::atomic::Ordering;

impl Group {
    /// Offers a verified checkpoint to raft; it takes it if it is ahead and names this replica.
    pub fn step_incoming(&mut self, incoming: Incoming) {
        let leader = self.raw.raft.leader_id;
        let useful = incoming.index > self.raw.raft.raft_log.committed
            && (incoming.membership.contains(self.replica)
                || self.faults.checkpoint_without_receiver)
            && self.incoming.is_none()
            && self.installing.is_none()
            && self.changing.is_none()
            && self.committed.is_empty()
            && leader != 0
            && !self.is_leader();
        if !useful {
            let _ = incoming.reply.send(false);
            return;
        }
        let mut snapshot = Snapshot::default();
        let m = snapshot.mut_metadata();
        m.index = incoming.index;
        m.term = incoming.term;
        let mut conf_state = incoming.membership.conf_state();
        if self.faults.checkpoint_without_receiver && !incoming.membership.contains(self.replica) {
            // raft refuses as well.
            conf_state.learners.push(self.replica.0);
        }
        m.set_conf_state(conf_state);
        let mut message = Message {
            from: leader,
            to: self.replica.0,
            term: self.raw.raft.term,
            ..Default::default()
        };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        let _ = self.raw.step(message);
        if self.raw.snap().is_some_and(|s| s.get_metadata().index == incoming.index) {
            self.incoming = Some(incoming);
        } else {
            let _ = incoming.reply.send(false);
        }
    }

    /// Takes a checkpoint into the log: what it replaces goes, the record names its directory.
    pub(super) fn install(&mut self, snapshot: Snapshot, round: &mut Round) -> Result<u64, String> {
        let meta = snapshot.get_metadata();
        let incoming = self.incoming.take_if(|i| i.index == meta.index).ok_or_else(|| {
            format!("raft installs a checkpoint at {} that was not offered", meta.index)
        })?;
        self.raw.mut_store().install(meta.index, meta.term, incoming.membership.conf_state());
        self.record.directory = incoming.directory;
        // Before anybody hears that it was taken: the next checkpoint gets a directory of its own.
        self.view.directory.store(incoming.directory, Ordering::Release);
        self.voters = voters_of(&incoming.membership);
        self.record.membership = incoming.membership;
        self.record.membership_index = incoming.membership_index;
        self.record.truncated_index = meta.index;
        self.record.truncated_term = meta.term;
        self.flushed = self.flushed.max(meta.index);
        round.write.ops.push(LogOp::Clear { replica: self.replica });
        round.write.ops.push(LogOp::Record(Box::new(self.record.clone())));
        self.installing = Some((meta.index, incoming.directory));
        let _ = incoming.reply.send(true);
        Ok(meta.index)
    }

    /// Replicas that are behind the kept log.
    pub fn take_wanted(&mut self) -> Vec<ReplicaId> {
        let wanted = std::mem::take(&mut *self.raw.store().wanted.borrow_mut());
        if !self.is_leader() {
            return Vec::new();
        }
        wanted.into_iter().map(ReplicaId).collect()
    }

    pub fn kept_log_bytes(&self) -> u64 {
        self.raw.store().kept_bytes()
    }

    pub fn transfer_floor(&mut self, now: Now, to: ReplicaId, index: Option<u64>) {
        const FORGET_NS: u64 = 600_000_000_000;
        match index {
            Some(index) => {
                self.floors.insert(to.0, (index, now.boot_ns + FORGET_NS));
            }
            None => {
                self.floors.remove(&to.0);
            }
        }
    }

    /// Entries below what is durable in the database can go, but not past a running transfer, and
    /// some are kept for followers that are a little behind.
    pub fn flushed(&mut self, index: u64, kept_bytes: u64, write: &mut Write) {
        self.flushed = self.flushed.max(index);
        let floor = self.floors.values().map(|(i, _)| *i).min().unwrap_or(u64::MAX);
        // A transfer that would pin more than this starts again from a new checkpoint.
        let gives_up =
            self.raw.store().kept_bytes() > 4 * kept_bytes || self.faults.compaction_past_transfer;
        let floor = if gives_up { u64::MAX } else { floor };
        let upto = self.flushed.min(floor).min(self.raw.raft.raft_log.applied);
        if let Some(to) = self.raw.store().compactable(upto, kept_bytes) {
            self.raw.mut_store().compact(to);
            let (index, term) = self.raw.store().truncated();
            self.record.truncated_index = index;
            self.record.truncated_term = term;
            write.ops.push(LogOp::Record(Box::new(self.record.clone())));
            write.ops.push(LogOp::Compact { replica: self.replica, first_kept: index + 1 });
        }
        self.publish();
    }
}
