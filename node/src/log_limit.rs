//! Strangers must not fill the log.
use crate::clock;
use std::sync::atomic::{AtomicU64, Ordering};

const EVERY_NS: u64 = 1_000_000_000;

/// One line a second.
#[derive(Default)]
pub struct LogLimit {
    next_ns: AtomicU64,
}

impl LogLimit {
    pub fn allows(&self) -> bool {
        self.allows_at(clock::boottime_ns())
    }

    fn allows_at(&self, now_ns: u64) -> bool {
        let next = self.next_ns.load(Ordering::Relaxed);
        now_ns >= next
            && self
                .next_ns
                .compare_exchange(next, now_ns + EVERY_NS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_allowed() {
        let limit = LogLimit::default();
        let at = |ms: u64| limit.allows_at(ms * 1_000_000);
        assert!(at(5_000) && !at(5_000) && !at(5_999));
        assert!(at(6_000) && !at(6_001));
    }
}
