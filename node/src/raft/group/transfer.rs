//! Leadership on its way to another voter.
use super::Group;
use crate::ids::ReplicaId;
use crate::raft::driver::Now;
use tokio::sync::oneshot;

type TransferReply = oneshot::Sender<Result<(), String>>;

/// A leadership on its way to another voter.
pub(super) struct Transfer {
    to: u64,
    /// Given up then (CLOCK_BOOTTIME).
    deadline_ns: u64,
    /// TimeoutNow may have gone out.
    sent: bool,
    reply: Option<TransferReply>,
}

/// Entries that a transfer's target may be behind: proposals wait until it has them.
const TRANSFER_LAG_MAX: u64 = 1_000;

impl Group {
    pub(super) fn tick_transfer(&mut self, now: Now, election_ns: u64, shedding: bool) {
        match &self.transfer {
            Some(t) if now.boot_ns >= t.deadline_ns => {
                self.raw.raft.abort_leader_transfer();
                self.end_transfer(Err("the other voter has not taken over in time".into()));
                self.proposals_queued = false;
            }
            Some(_) => self.go_on_transfer(),
            None if shedding => {
                // Tried again with the next tick.
                let _ = self.begin_transfer(now, None, election_ns, None);
            }
            None => {}
        }
    }

    /// Hands leadership to `to`, and says how that ended.
    pub fn transfer(&mut self, now: Now, to: ReplicaId, election_ns: u64, reply: TransferReply) {
        if let Err((reason, Some(reply))) =
            self.begin_transfer(now, Some(to), election_ns, Some(reply))
        {
            let _ = reply.send(Err(reason));
        }
    }

    /// Hands leadership to `to`, or to the voter that has most of the log. Proposals wait meanwhile.
    ///
    /// # Errors
    /// Why it is not begun, and the reply.
    fn begin_transfer(
        &mut self,
        now: Now,
        to: Option<ReplicaId>,
        election_ns: u64,
        reply: Option<TransferReply>,
    ) -> Result<(), (String, Option<TransferReply>)> {
        if !self.is_leader() {
            return Err(("this replica does not lead".into(), reply));
        }
        if self.transfer.is_some() || self.changing.is_some() {
            let reason = "another leader transfer or a membership change is under way";
            return Err((reason.into(), reply));
        }
        let me = self.replica.0;
        let last = self.raw.raft.raft_log.last_index();
        let voters = &self.record.membership.voters;
        let best = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != me && voters.contains(id))
            .filter(|(id, _)| self.is_heard(**id, now, election_ns))
            .filter(|(_, p)| p.matched + TRANSFER_LAG_MAX >= last)
            .filter(|(id, _)| to.is_none_or(|to| to.0 == **id))
            .max_by_key(|(id, p)| (p.matched, **id))
            .map(|(id, _)| *id);
        let Some(to) = best else {
            return Err(("no such voter answers and has nearly everything".into(), reply));
        };
        let deadline_ns = now.boot_ns + election_ns;
        self.transfer = Some(Transfer { to, deadline_ns, sent: false, reply });
        self.go_on_transfer();
        Ok(())
    }

    /// Sends the transfer once all own entries are applied by the log's end and the target has them.
    pub(super) fn go_on_transfer(&mut self) {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let Some(t) = &mut self.transfer else { return };
        let has_all = raft.prs().get(t.to).is_some_and(|p| p.matched == last);
        if !t.sent && raft.raft_log.committed == last && has_all {
            t.sent = true;
            let to = t.to;
            self.lease.void_for_term(self.raw.raft.term);
            self.publish_lease();
            self.raw.transfer_leader(to);
        }
    }

    pub(super) fn end_transfer(&mut self, result: Result<(), String>) {
        if let Some(reply) = self.transfer.take().and_then(|t| t.reply) {
            let _ = reply.send(result);
        }
    }

    pub fn take_lost_leadership(&mut self) -> bool {
        std::mem::take(&mut self.lost_leadership)
    }
}
