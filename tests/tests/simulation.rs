//! Whole clusters from a seed, in virtual time, with the product's driver and apply.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests
use ringfold_tests::checker;
use ringfold_tests::cluster::factor;
use ringfold_tests::sim::{Failure, Kind, Options, Planted, Report, run, run_seeds, setting};

/// Nodes of a run that a person asks for.
fn nodes() -> usize {
    setting("RINGFOLD_SIM_NODES").unwrap_or(3) as usize
}

fn hold(seeds: std::ops::Range<u64>, options: Options) -> Report {
    match run_seeds(seeds, options) {
        Ok(report) => report,
        Err(failure) => panic!("\n{failure}"),
    }
}

/// `RINGFOLD_SIM_SEEDS` runs another number, `RINGFOLD_SIM_FIRST` begins elsewhere.
#[test]
fn thousands_of_seeds_hold() {
    let usual = 2_000 * u64::from(factor());
    let count = setting("RINGFOLD_SIM_SEEDS").unwrap_or(usual);
    let first = setting("RINGFOLD_SIM_FIRST").unwrap_or(0);
    let total = hold(first..first + count, Options { nodes: nodes(), ..Options::default() });
    eprintln!("{count} seeds: {total:?}");
    // The faults that are meant to happen do happen.
    assert!(total.acknowledged as u64 > 50 * count, "too few appends: {total:?}");
    assert!(total.lease_reads > count, "too few reads under a lease: {total:?}");
    assert!(total.crashes > count, "too few crashes: {total:?}");
    assert!(10 * total.checkpoints > count, "too few checkpoints: {total:?}");
    assert!(4 * total.membership_changes > count, "too few membership changes: {total:?}");
}

#[test]
fn five_nodes_hold() {
    hold(0..200 * u64::from(factor()), Options { nodes: 5, ..Options::default() });
}

fn quick_changes() -> Options {
    Options { quick_changes: true, ..Options::default() }
}

#[test]
fn membership_changes_in_quick_succession_hold() {
    let count = 300 * u64::from(factor());
    let total = hold(0..count, quick_changes());
    eprintln!("{count} seeds: {total:?}");
    assert!(total.membership_changes > 2 * count, "too few membership changes: {total:?}");
    assert!(total.crashes > count, "too few crashes: {total:?}");
}

/// Does nothing without `RINGFOLD_SIM_SEED`.
#[test]
fn one_seed() {
    let Some(seed) = setting("RINGFOLD_SIM_SEED") else { return };
    let quick_changes = setting("RINGFOLD_SIM_QUICK_CHANGES").is_some();
    match run(seed, Options { nodes: nodes(), quick_changes, ..Options::default() }) {
        Ok(report) => eprintln!("seed {seed} holds: {report:?}"),
        Err(failure) => panic!("\n{failure}"),
    }
}

#[test]
fn the_same_seed_twice_is_identical() {
    let reports: Vec<Report> = (0..12).map(|seed| run(seed, Options::default()).unwrap()).collect();
    for (seed, first) in reports.iter().enumerate() {
        assert_eq!(*first, run(seed as u64, Options::default()).unwrap(), "seed {seed}");
    }
    assert_ne!(reports[0].hash, reports[1].hash);
}

/// Runs seeds with a planted bug until one fails.
fn find(planted: Planted, promises: bool, seeds: u64) -> Box<Failure> {
    find_with(Options { planted: Some(planted), promises, ..Options::default() }, seeds)
}

fn find_with(options: Options, seeds: u64) -> Box<Failure> {
    let found = run_seeds(0..seeds, options).expect_err("the planted bug was not found");
    let planted = options.planted;
    eprintln!("{planted:?}: seed {}: {:?}: {}", found.seed, found.kind, found.detail);
    found
}

#[test]
fn finds_an_acknowledgement_before_its_sync() {
    assert_eq!(find(Planted::AcknowledgedBeforeSync, true, 20).kind, Kind::PromiseNotSynced);
}

/// The same, seen only in what follows from it.
#[test]
fn finds_what_follows_from_an_acknowledgement_before_its_sync() {
    let kind = find(Planted::AcknowledgedBeforeSync, false, 200).kind;
    let follows = matches!(
        kind,
        Kind::TwoLeaders
            | Kind::VoteChanged
            | Kind::CommittedDiffers
            | Kind::NotOnMajority
            | Kind::Closed
            | Kind::History(_)
    );
    assert!(follows, "{kind:?}");
}

#[test]
fn finds_a_replica_id_used_twice() {
    let kind = find(Planted::ReplicaIdUsedTwice, true, 50).kind;
    // It votes twice, or raft finds that it forgot what it had acknowledged.
    let follows = matches!(
        kind,
        Kind::VoteChanged | Kind::Closed | Kind::CommittedDiffers | Kind::NotOnMajority
    );
    assert!(follows, "{kind:?}");
}

#[test]
fn finds_entries_applied_out_of_order() {
    let kind = find(Planted::AppliedOutOfOrder, true, 50).kind;
    // Where it is the leader that applies so, clients may hear of it first.
    assert!(matches!(kind, Kind::ContentDiffers | Kind::History(_)), "{kind:?}");
}

#[test]
fn finds_a_lease_kept_over_a_pause() {
    assert_eq!(find(Planted::LeaseKeptOverPause, true, 50).kind, Kind::LeaseBroken);
}

#[test]
fn finds_a_revision_checked_before_ids() {
    let kind = find(Planted::RevisionCheckedBeforeIds, true, 50).kind;
    assert_eq!(kind, Kind::History(checker::Kind::RetryRefused));
}

#[test]
fn finds_a_commit_index_that_goes_back_at_restart() {
    assert_eq!(find(Planted::CommitBackAtRestart, true, 50).kind, Kind::CommitWentBack);
}

#[test]
fn finds_a_membership_lost_at_restart() {
    assert_eq!(find(Planted::MembershipLostAtRestart, true, 100).kind, Kind::MembershipLost);
}

#[test]
fn finds_a_membership_change_logged_without_the_commit_index() {
    let options = Options { planted: Some(Planted::ChangeWithoutCommit), ..quick_changes() };
    let kind = find_with(options, 20_000).kind;
    // A leader of an outdated membership, or what such a majority committed.
    let found = matches!(kind, Kind::CommittedDiffers | Kind::TwoLeaders | Kind::NotOnMajority);
    assert!(found, "{kind:?}");
}
