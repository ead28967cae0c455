//! Which node holds which partition: pure functions, without IO, async or a clock.
//!
//! [`place`] plans: quotas first (how many replicas each zone and each node gets), then which
//! partition goes where, keeping what may stay and filling the rest by walking a hash ring.
//! [`check`] recomputes every invariant of a plan without the planner's code. [`plan`] gives the
//! next steps from the groups' memberships to what is placed.

mod check;
mod fit;
mod leaders;
mod place;
pub mod plan;
mod quotas;
mod ring;
#[cfg(test)]
mod tests;

pub use check::{Violation, check};
pub use place::{Explained, PlacementError, place};

use xxhash_rust::xxh3::xxh3_64;

/// A node's weight when its operator says nothing.
pub const NORMAL_WEIGHT: u32 = 100;
/// The usual [`PlacementInput::load_factor`].
pub const LOAD_FACTOR: f64 = 1.25;
/// The most partitions that a cluster has.
pub const PARTITIONS_MAX: u32 = 1024;

/// A node that may hold replicas. One that drains or was removed is left out of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node_id: u64,
    /// Failure domain; the empty one is a zone like any other.
    pub zone: String,
    /// Relative size; [`NORMAL_WEIGHT`] is normal, 0 holds nothing.
    pub weight: u32,
}

/// What a placement is planned from. The order of the members does not matter.
#[derive(Clone, Debug)]
pub struct PlacementInput<'a> {
    pub members: &'a [Member],
    /// A power of two, at most [`PARTITIONS_MAX`].
    pub partitions: u32,
    pub replication_factor: u32,
    /// How far above its weighted share a node may ever be, from 1; usually [`LOAD_FACTOR`].
    pub load_factor: f64,
    /// What is in force: replicas and leaders stay where they are as far as the rules allow.
    pub current: Option<&'a Placement>,
}

/// Which nodes hold each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// By partition: node ids, the preferred leader first, the others ascending.
    pub partitions: Vec<Vec<u64>>,
}

/// The partition of a stream: the top bits of xxh3_64 of its name, so that a later split is a
/// range split. `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    // The upper half of the product: for a power of two just the top bits, and no shift by 64
    // where there is one partition.
    ((u128::from(xxh3_64(stream.as_bytes())) * u128::from(partitions)) >> 64) as u32
}
