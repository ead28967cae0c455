//! The leader's lease: how long nobody else can have been elected.
//!
//! From the moment a heartbeat round was *sent*, for three quarters of the shortest election
//! timeout, once a majority has answered that round. raft's own lease only means "leader with
//! check-quorum" and survives a pause. Times are CLOCK_BOOTTIME, which goes on while a machine
//! sleeps or a process is stopped.
use std::collections::{HashSet, VecDeque};

/// Rounds remembered; older ones are forgotten, which can only shorten a lease.
const ROUNDS_MAX: usize = 64;

#[derive(Default)]
pub struct Lease {
    rounds: VecDeque<Round>,
    /// Of all rounds ever sent: raft repeats the number of a read that waits, and a repetition must
    /// not count as a new round, whatever was forgotten since.
    highest: u64,
    until_ns: u64,
    /// No lease any more in this term: a leader transfer may have been sent in it.
    void_term: u64,
}

struct Round {
    number: u64,
    sent_ns: u64,
    answered: HashSet<u64>,
}

impl Lease {
    /// A heartbeat of this round goes out. The first send's time counts.
    pub fn sent(&mut self, number: u64, now_ns: u64) {
        if number > self.highest {
            self.highest = number;
            if self.rounds.len() == ROUNDS_MAX {
                self.rounds.pop_front();
            }
            self.rounds.push_back(Round { number, sent_ns: now_ns, answered: HashSet::new() });
        }
    }

    /// A replica answered a round; `is_quorum` says whether a set of replicas is one. True: the
    /// lease was extended.
    pub fn answered(
        &mut self,
        number: u64,
        replica: u64,
        me: u64,
        lease_ns: u64,
        is_quorum: impl Fn(&HashSet<u64>) -> bool,
    ) -> bool {
        let Ok(at) = self.rounds.binary_search_by_key(&number, |r| r.number) else { return false };
        let round = &mut self.rounds[at];
        round.answered.insert(replica);
        round.answered.insert(me);
        if !is_quorum(&round.answered) {
            return false;
        }
        self.until_ns = self.until_ns.max(round.sent_ns + lease_ns);
        self.rounds.drain(..=at);
        true
    }

    /// A group of one voter is its own majority.
    pub fn alone(&mut self, now_ns: u64, lease_ns: u64) {
        self.until_ns = now_ns + lease_ns;
    }

    /// After a membership change or the loss of leadership: rounds sent before count no more.
    pub fn reset(&mut self) {
        self.rounds.clear();
        self.until_ns = 0;
    }

    /// A leader transfer may go out: another may lead at any moment for the rest of this term, also
    /// after the transfer was given up (a delayed message elects).
    pub fn void_for_term(&mut self, term: u64) {
        self.void_term = term;
        self.reset();
    }

    /// Until when the lease holds in `term`, in CLOCK_BOOTTIME ns; 0: no lease.
    pub fn until_ns(&self, term: u64) -> u64 {
        if self.void_term == term { 0 } else { self.until_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn majority(set: &HashSet<u64>) -> bool {
        set.len() >= 2
    }

    #[test]
    fn counts_from_the_first_send_of_the_answered_round() {
        let mut l = Lease::default();
        l.sent(1, 100);
        l.sent(1, 500);
        l.sent(2, 600);
        assert!(l.answered(1, 2, 1, 1000, majority));
        assert_eq!(l.until_ns(7), 1100);
        assert!(l.answered(2, 3, 1, 1000, majority));
        assert_eq!(l.until_ns(7), 1600);
    }

    #[test]
    fn an_answer_to_a_forgotten_or_unknown_round_gives_nothing() {
        let mut l = Lease::default();
        l.sent(1, 100);
        l.reset();
        assert!(!l.answered(1, 2, 1, 1000, majority));
        assert!(!l.answered(9, 2, 1, 1000, majority));
        assert_eq!(l.until_ns(1), 0);
    }

    #[test]
    fn a_transfer_ends_it_for_the_rest_of_the_term() {
        let mut l = Lease::default();
        l.void_for_term(5);
        l.sent(1, 100);
        assert!(l.answered(1, 2, 1, 1000, majority));
        assert_eq!(l.until_ns(5), 0);
        assert_eq!(l.until_ns(6), 1100);
    }

    #[test]
    fn a_repeated_number_of_a_forgotten_round_gives_nothing() {
        let mut l = Lease::default();
        l.sent(7, 100);
        l.reset();
        l.sent(7, 900);
        assert!(!l.answered(7, 2, 1, 1000, majority));
        assert_eq!(l.until_ns(1), 0);
    }

    #[test]
    fn an_old_round_never_shortens_it() {
        let mut l = Lease::default();
        l.sent(1, 100);
        l.sent(2, 900);
        assert!(l.answered(2, 2, 1, 1000, majority));
        assert!(!l.answered(1, 2, 1, 1000, majority));
        assert_eq!(l.until_ns(1), 1900);
    }
}
