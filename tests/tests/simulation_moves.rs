//! Whole clusters from a seed whose replicas the product's planner moves: three to seven nodes that
//! come, drain, return, are away, and lose their disks, while everything else strikes too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests
use ringfold_tests::cluster::factor;
use ringfold_tests::sim::{Kind, Options, Planted, run, run_seeds, setting};

fn moves() -> Options {
    let nodes = setting("RINGFOLD_SIM_NODES").unwrap_or(3) as usize;
    Options { nodes, planner: true, ..Options::default() }
}

/// `RINGFOLD_SIM_SEEDS` runs another number, `RINGFOLD_SIM_FIRST` begins elsewhere.
#[test]
fn moves_of_a_thousand_seeds_hold() {
    let count = setting("RINGFOLD_SIM_SEEDS").unwrap_or(1_000 * u64::from(factor()));
    let first = setting("RINGFOLD_SIM_FIRST").unwrap_or(0);
    let began = std::time::Instant::now();
    let total = match run_seeds(first..first + count, moves()) {
        Ok(total) => total,
        Err(failure) => panic!("\n{failure}"),
    };
    eprintln!("{count} seeds of moves in {:.0?}: {total:?}", began.elapsed());
    // The faults that are meant to happen do happen.
    assert!(total.acknowledged as u64 > 50 * count, "too few appends: {total:?}");
    assert!(total.crashes > count, "too few crashes: {total:?}");
    assert!(total.checkpoints > count, "too few checkpoints: {total:?}");
    assert!(total.membership_changes > 4 * count, "too few membership changes: {total:?}");
    assert!(total.planners_deposed > count, "too few planners deposed: {total:?}");
    assert!(total.destroyed > count, "too few replicas destroyed: {total:?}");
}

#[test]
fn moves_between_five_nodes_hold() {
    let count = 50 * u64::from(factor());
    if let Err(failure) = run_seeds(0..count, Options { nodes: 5, ..moves() }) {
        panic!("\n{failure}");
    }
}

/// Does nothing without `RINGFOLD_SIM_SEED`.
#[test]
fn one_seed() {
    let Some(seed) = setting("RINGFOLD_SIM_SEED") else { return };
    match run(seed, moves()) {
        Ok(report) => eprintln!("seed {seed} holds: {report:?}"),
        Err(failure) => panic!("\n{failure}"),
    }
}

#[test]
fn the_same_seed_twice_is_identical() {
    for seed in 0..6 {
        let reports = [0, 1].map(|_| run(seed, moves()).unwrap());
        assert_eq!(reports[0], reports[1], "seed {seed}");
    }
}

/// Runs seeds with a planted bug until one fails.
fn find(planted: Planted, seeds: u64) -> Kind {
    let options = Options { planted: Some(planted), ..moves() };
    let found = run_seeds(0..seeds, options).expect_err("the planted bug was not found");
    eprintln!("{planted:?}: seed {}: {:?}: {}", found.seed, found.kind, found.detail);
    found.kind
}

#[test]
fn finds_a_replica_forgotten_before_its_group_confirmed_it() {
    let kind = find(Planted::ForgottenUnconfirmed, 4_000);
    assert!(matches!(kind, Kind::MemberForgotten | Kind::MemberDestroyed), "{kind:?}");
}

#[test]
fn finds_a_step_that_was_planned_on_another_membership() {
    assert_eq!(find(Planted::StaleStepTaken, 2_000), Kind::StaleStep);
}

#[test]
fn finds_a_replica_id_used_twice() {
    assert_eq!(find(Planted::DestroyedForgotten, 2_000), Kind::ReplicaIdUsedTwice);
}

#[test]
fn finds_a_checkpoint_taken_whose_membership_lacks_the_receiver() {
    assert_eq!(find(Planted::CheckpointWithoutReceiver, 2_000), Kind::CheckpointLacksReceiver);
}

#[test]
fn finds_a_log_compacted_past_a_running_transfer() {
    assert_eq!(find(Planted::CompactionPastTransfer, 2_000), Kind::CompactedPastTransfer);
}
