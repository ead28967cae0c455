//! The clocks that the node reads. Pure parts get times as arguments.
use rustix::time::{ClockId, clock_gettime};

/// 2020-01-01T00:00:00Z in Unix milliseconds: where positions count from.
pub const EPOCH_UNIX_MS: u64 = 1_577_836_800_000;

/// CLOCK_BOOTTIME in nanoseconds: goes on while the machine sleeps, so leases cannot outlive a pause.
pub fn boottime_ns() -> u64 {
    let t = clock_gettime(ClockId::Boottime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Wall time in Unix milliseconds.
pub fn wall_ms() -> u64 {
    let t = clock_gettime(ClockId::Realtime);
    (t.tv_sec.max(0) as u64) * 1_000 + t.tv_nsec as u64 / 1_000_000
}
