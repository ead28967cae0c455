//! Bytes per second that all transfers of a node share.
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What was not used within this is lost: so long may a burst be.
const BURST: Duration = Duration::from_millis(100);

pub struct Rate {
    bytes_per_s: u64,
    next: Mutex<Instant>,
}

impl Rate {
    /// 0: no limit.
    pub fn new(bytes_per_s: u64) -> Rate {
        Rate { bytes_per_s, next: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass; in the order of the calls.
    pub async fn pass(&self, bytes: usize) {
        if self.bytes_per_s > 0 {
            let at = self.reserve(Instant::now(), bytes);
            sleep_until(at).await;
        }
    }

    /// When `bytes` may pass that come at `now`.
    fn reserve(&self, now: Instant, bytes: usize) -> Instant {
        let mut next = self.next.lock();
        let at = (*next).max(now.checked_sub(BURST).unwrap_or(*next));
        *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_rate_with_a_small_burst_after_a_pause() {
        let rate = Rate::new(1000);
        let start = Instant::now();
        let after_ms = |now_ms: u64| {
            let at = rate.reserve(start + Duration::from_millis(now_ms), 500);
            at.saturating_duration_since(start).as_millis() as u64
        };
        let first = after_ms(1000);
        assert_eq!(first, 900, "at once, and a tenth of a second in advance");
        let second = after_ms(1000);
        let third = after_ms(1000);
        assert_eq!((second, third), (1400, 1900));
        assert_eq!(after_ms(60_000), 59_900);
    }
}
