//! Positions: 42 bits of milliseconds since 2020-01-01 UTC, 11 bits of counter, 10 bits of
//! partition. Below 2^63.
use crate::clock::EPOCH_UNIX_MS;

pub const PARTITION_BITS: u32 = 10;
pub const COUNTER_BITS: u32 = 11;
pub const PARTITION_MASK: u64 = (1 << PARTITION_BITS) - 1;
/// From one event of a partition to the next one.
pub const STEP: u64 = 1 << PARTITION_BITS;
pub const MAX: u64 = (1 << 63) - 1;

/// The stamp of a time: the least position of that millisecond, without a partition.
pub fn stamp(unix_ms: u64) -> u64 {
    let ms = unix_ms.saturating_sub(EPOCH_UNIX_MS);
    ms.saturating_mul(1 << (COUNTER_BITS + PARTITION_BITS)).min(MAX & !PARTITION_MASK)
}

/// The time in a position or a stamp, Unix milliseconds.
pub fn unix_ms(position: u64) -> u64 {
    (position >> (COUNTER_BITS + PARTITION_BITS)) + EPOCH_UNIX_MS
}

pub fn partition(position: u64) -> u32 {
    (position & PARTITION_MASK) as u32
}

/// The least position of a partition above `floor` and not below `stamp`; `None` when positions
/// are used up.
pub fn next(stamp: u64, floor: u64, partition: u32) -> Option<u64> {
    let partition = u64::from(partition) & PARTITION_MASK;
    let above = ((floor >> PARTITION_BITS) + 1) << PARTITION_BITS;
    let next = (stamp & !PARTITION_MASK).max(above) | partition;
    (next <= MAX).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_position_holds_its_time_and_partition() {
        let t = EPOCH_UNIX_MS + 123_456_789;
        let p = next(stamp(t), 0, 1_023).unwrap();
        assert_eq!((unix_ms(p), partition(p)), (t, 1_023));
        assert_eq!(stamp(0), 0);
        assert!(stamp(u64::MAX) <= MAX);
        assert_eq!(next(0, MAX, 0), None);
    }

    proptest! {
        #[test]
        fn positions_rise_whatever_stamps_say(stamps in prop::collection::vec(0..=MAX >> 1, 1..50), p in 0u32..1024) {
            let mut last = 0;
            for s in stamps {
                let n = next(s, last, p).unwrap();
                prop_assert!(n > last && n >= s & !PARTITION_MASK);
                prop_assert_eq!(partition(n), p);
                // One step is enough where the stamp does not ask for more.
                if last != 0 && s <= last {
                    prop_assert_eq!(n, last + STEP);
                }
                last = n;
            }
        }
    }
}
