//! What a driver runs with.
use crate::ids::NodeId;

#[derive(Debug, Clone)]
pub struct DriverSettings {
    pub node: NodeId,
    pub tick_ms: u64,
    pub heartbeat_ticks: usize,
    pub election_ticks: usize,
    /// Proposals are packed into entries of up to so many bytes.
    pub entry_bytes: usize,
    /// Entries of one group that may wait for their majority; more proposals are packed meanwhile.
    pub entries_in_flight: u64,
    /// While one waits, another one follows only once so many bytes wait to go into it.
    pub entry_joins_bytes: u64,
    pub partition_inflight_bytes: u64,
    pub node_inflight_bytes: u64,
    /// Bound on the log kept of one partition.
    pub kept_log_bytes: u64,
    /// A replica that has nothing is sent the whole log if that is no larger, else a checkpoint: entries
    /// have no limit of their own on their rate, and reading old ones holds up the driver.
    pub catch_up_bytes: u64,
    /// Log entries of one partition kept in memory once applied.
    pub cache_bytes: u64,
    pub max_state_bytes: u32,
    pub snapshot_every: u32,
    /// Set in a simulation: election timeouts come from it.
    pub seed: Option<u64>,
    /// Faults planted by tests that prove the simulation; none in a product.
    pub faults: PlantedFaults,
}

/// Bugs that a test plants to see them found. All off outside such tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlantedFaults {
    pub ack_before_sync: bool,
    pub lease_over_pause: bool,
    pub commit_back_at_restart: bool,
    pub membership_lost_at_restart: bool,
    /// A membership change is logged without the commit index known then.
    pub change_without_commit: bool,
    /// A membership change is taken whatever membership it was planned on.
    pub stale_change: bool,
    /// A checkpoint is taken whose membership lacks its receiver.
    pub checkpoint_without_receiver: bool,
    /// The log is compacted past the checkpoints that are on their way.
    pub compaction_past_transfer: bool,
}

impl DriverSettings {
    pub fn new(node: NodeId) -> DriverSettings {
        DriverSettings {
            node,
            tick_ms: 100,
            heartbeat_ticks: 3,
            election_ticks: 10,
            entry_bytes: 1 << 20,
            entries_in_flight: 4,
            entry_joins_bytes: 128 << 10,
            partition_inflight_bytes: 16 << 20,
            node_inflight_bytes: 256 << 20,
            kept_log_bytes: 32 << 20,
            catch_up_bytes: 2 << 20,
            cache_bytes: 512 << 10,
            max_state_bytes: 1 << 20,
            snapshot_every: 100,
            seed: None,
            faults: PlantedFaults::default(),
        }
    }

    pub fn election_ns(&self) -> u64 {
        self.election_ticks as u64 * self.tick_ms * 1_000_000
    }

    /// How long a replica that has heard its leader votes for nobody else: longer than a lease, and no
    /// longer than a candidate waits at least.
    pub fn promise_ns(&self) -> u64 {
        self.election_ns() - self.tick_ms * 1_000_000
    }

    /// Three quarters of the shortest election timeout.
    pub fn lease_ns(&self) -> u64 {
        match self.faults.lease_over_pause {
            true => self.election_ns() * 60,
            // A follower's shortest timeout is up to one and a quarter ticks less than its ticks say.
            false => {
                let ticks = (self.election_ticks as u64).saturating_sub(2);
                (self.election_ns() / 4 * 3).min(ticks * self.tick_ms * 1_000_000)
            }
        }
    }
}
