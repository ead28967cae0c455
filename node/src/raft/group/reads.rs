//! Linearizable reads: rounds of raft's read index, each for all reads that wait.
use super::Group;
use crate::raft::driver::Now;
use crate::raft::handle::ReadError;
use tokio::sync::oneshot;

pub(super) type ReadReply = oneshot::Sender<Result<(), ReadError>>;
/// Reads of one group that may wait.
const READS_WAITING_MAX: usize = 16_384;
/// A read-index round that took so long may never be answered.
const READ_ROUND_LOST_NS: u64 = 50_000_000;

impl Group {
    /// Queues a read. True: the group is to be visited by `start_reads`.
    pub fn enqueue_read(&mut self, reply: ReadReply) -> bool {
        if !self.is_leader() {
            let _ = reply.send(Err(ReadError::NotLeader { leader: self.leader_node() }));
            return false;
        }
        if self.reads.len() >= READS_WAITING_MAX {
            let _ = reply.send(Err(ReadError::Busy));
            return false;
        }
        self.reads.push(reply);
        self.reads.len() == 1
    }

    /// Asks one round for all reads that wait. True: they wait for the term's first commit, or for
    /// the round before.
    pub fn start_reads(&mut self, now: Now, number: u64) -> bool {
        if self.reads.is_empty() {
            return false;
        }
        if !self.is_leader() {
            self.refuse_reads();
            return false;
        }
        if !self.raw.raft.commit_to_current_term() {
            return true;
        }
        // What comes in while a round is under way makes the next one: under load fewer rounds serve
        // the same reads. One whose messages may be lost does not hold the others up.
        let is_answered = self.reads_asked.is_empty() || !self.raw.raft.read_states.is_empty();
        if !is_answered && now.boot_ns < self.reads_asked_ns + READ_ROUND_LOST_NS {
            return true;
        }
        self.reads_asked_ns = now.boot_ns;
        self.raw.read_index(number.to_be_bytes().to_vec());
        self.reads_asked.push_back((number, std::mem::take(&mut self.reads)));
        false
    }

    /// Answers the reads that were not confirmed; confirmed ones only wait for apply.
    pub(super) fn refuse_reads(&mut self) {
        let error = ReadError::NotLeader { leader: self.leader_node() };
        let asked = self.reads_asked.drain(..).flat_map(|(_, replies)| replies);
        for reply in asked.chain(self.reads.drain(..)) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    pub(super) fn answer_reads(&mut self) {
        let applied = self.view.applied.borrow().index;
        while self.reads_confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            if let Some((_, replies)) = self.reads_confirmed.pop_front() {
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }
}
