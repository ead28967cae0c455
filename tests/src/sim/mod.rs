//! A whole cluster from a seed: the product's driver, log records and apply under a scheduler that
//! loses, delays, doubles and reorders messages, crashes and pauses nodes, tears writes, and moves
//! replicas. The same seed gives the same run, event for event.
//!
//! | file | subject |
//! |---|---|
//! | `world` | virtual time, the queue of events, one run from start to judgement |
//! | `node` | one node as the product wires it: what its process and its disks hold |
//! | `checkpoints` | checkpoints for replicas that are behind |
//! | `disk` | the log and the databases of a node, and what a crash leaves of them |
//! | `network` | frames between nodes |
//! | `faults`, `strikes` | which faults a seed has; what each does |
//! | `moves` | membership changes by a script |
//! | `planner`, `steps`, `records` | moves as the product makes them: rounds of the planner, its steps on the nodes that lead, the meta group's records and the nodes that follow them |
//! | `scale` | members that come, drain, go and are lost while the planner moves replicas |
//! | `clients` | clients that record a history |
//! | `invariants` | what must hold after every step |
//! | `seeds` | many runs, side by side |
//!
//! Not in it: the meta group's own replication (its records are one reliable sequence of states), the peers' connections, raft-engine and RocksDB (their twins in memory
//! pass the same conformance tests), and the judgement of a log that lost its synced end.
mod checkpoints;
mod clients;
mod disk;
mod faults;
mod invariants;
mod moves;
mod network;
mod node;
mod planner;
mod records;
mod scale;
mod seeds;
mod steps;
mod strikes;
mod world;

pub use faults::Planted;
pub use invariants::Kind;
pub use seeds::{run_seeds, setting};
use std::cell::Cell;
use std::fmt;
use std::sync::Once;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Nodes at the start: 3 or 5. Each partition has three replicas.
    pub nodes: usize,
    /// A bug to plant, to see it found.
    pub planted: Option<Planted>,
    /// Check what leaves a node against what it has synced. Off: only what follows from a broken
    /// promise is seen.
    pub promises: bool,
    /// Membership changes close behind one another, and followers that crash, cut off together with
    /// one other, between the sync of a change and the record of the one before it.
    pub quick_changes: bool,
    /// The product's planner moves replicas between three to seven nodes, not a script.
    pub planner: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: 3, planted: None, promises: true, quick_changes: false, planner: false }
    }
}

/// A run in which everything held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Over all events with their content.
    pub hash: u64,
    pub events: u64,
    pub acknowledged: usize,
    pub lease_reads: u64,
    pub crashes: u64,
    pub checkpoints: u64,
    pub membership_changes: u64,
    pub elections: u64,
    // Of the planner:
    pub steps: u64,
    pub retargets: u64,
    pub planners_deposed: u64,
    pub epochs: u64,
    pub replicas_made: u64,
    pub destroyed: u64,
}

/// What did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub options: Options,
    pub kind: Kind,
    pub detail: String,
    /// Virtual time.
    pub at_ms: u64,
    /// The last events.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        let Failure { seed, options, kind, detail, at_ms, .. } = self;
        let nodes = options.nodes;
        let quick = if options.quick_changes { " RINGFOLD_SIM_QUICK_CHANGES=1" } else { "" };
        writeln!(f, "seed {seed}, at {at_ms} ms of virtual time: {kind:?}: {detail}")?;
        let test = if options.planner { "simulation_moves" } else { "simulation" };
        write!(
            f,
            "again: RINGFOLD_SIM_SEED={seed} RINGFOLD_SIM_NODES={nodes}{quick} cargo test -p ringfold-tests --test {test} one_seed -- --nocapture"
        )
    }
}

/// Lines kept of a run that failed; `RINGFOLD_SIM_TRACE` sets another number.
const TRACE_LINES: usize = 50;

/// Runs one seed. A run that fails is run again, with its events written down.
pub fn run(seed: u64, options: Options) -> Result<Report, Box<Failure>> {
    quiet_panics();
    IN_SIMULATION.set(true);
    let outcome = world::World::new(seed, options, 0).run().or_else(|_| {
        let lines = std::env::var("RINGFOLD_SIM_TRACE").ok().and_then(|n| n.parse().ok());
        world::World::new(seed, options, lines.unwrap_or(TRACE_LINES)).run()
    });
    IN_SIMULATION.set(false);
    outcome
}

thread_local! {
    static IN_SIMULATION: Cell<bool> = const { Cell::new(false) };
}

/// The driver catches panics of the raft library and closes the group with their message: they are
/// told as failures of the run, not as noise.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let of_raft = info.location().is_some_and(|l| l.file().contains("raft-0."));
            if !(IN_SIMULATION.get() && of_raft) {
                usual(info);
            }
        }));
    });
}
