//! Which node holds which partition: pure functions, without IO, async or a clock.

mod check;
mod place;

pub use check::{Violation, check};
pub use place::{Explained, PlacementError, place};

use xxhash_rust::xxh3::xxh3_64;

/// A node's weight when its operator says nothing.
pub const NORMAL_WEIGHT: u32 = 100;
/// The default for [`PlacementInput::load_factor`].
pub const LOAD_FACTOR: f64 = 1.25;

/// A node that may hold replicas. One that drains or is removed is left out of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node_id: u64,
    /// Failure domain; empty is a zone like any other.
    pub zone: String,
    /// Relative size; [`NORMAL_WEIGHT`] is normal, 0 holds nothing.
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub struct PlacementInput<'a> {
    pub members: &'a [Member],
    pub partitions: u32,
    pub replication_factor: u32,
    pub load_factor: f64,
    pub current: Option<&'a Placement>,
}

/// Which nodes hold each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// By partition: node ids; the first is the preferred leader.
    pub partitions: Vec<Vec<u64>>,
}

/// The partition of a stream: the top bits of xxh3_64 of its name, so that a later split is a
/// range split. `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    ((u128::from(xxh3_64(stream.as_bytes())) * u128::from(partitions)) >> 64) as u32
}
