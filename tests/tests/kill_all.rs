//! All nodes die at one moment, in the middle of a load; with the shim the power is gone as well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_tests::cluster::{LocalCluster, Settings, factor};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, judge};
use ringfold_tests::shim::Survivors;

/// Deaths in one test.
const ROUNDS: u32 = 4;
/// The load goes on for so long, at random, before each death.
const ALIVE_MS: std::ops::Range<u64> = 100..2_500;
/// Appends acknowledged after each return.
const PROGRESS: u64 = 60;
const PROGRESS_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
enum Death {
    Kill,
    PowerLoss,
    PowerLossWithSomeWrittenBack,
}

async fn die_and_return(death: Death, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let shim = !matches!(death, Death::Kill);
    let mut cluster = LocalCluster::start(Settings { shim, ..Settings::default() }).await;
    let clock = Clock::new();
    let load = Load { seed, ..Load::default() };
    let running = load::start(&cluster, clock, &load);
    running.progress(PROGRESS, PROGRESS_MAX).await;
    let mut older = 0;
    for round in 0..ROUNDS * factor() {
        let ms = rng.random_range(ALIVE_MS);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        cluster.kill_all();
        for i in 0..cluster.nodes.len() {
            let survivors = match death {
                Death::Kill => None,
                Death::PowerLoss => Some(Survivors::None),
                Death::PowerLossWithSomeWrittenBack => {
                    Some(Survivors::Random { seed: rng.random() })
                }
            };
            if let Some(survivors) = survivors {
                let loss = cluster.lose_power(i, survivors);
                eprintln!("round {round}, node {i}: {loss:?}");
                older += loss.files_older + loss.files_gone;
            }
        }
        for i in 0..cluster.nodes.len() {
            cluster.start_node(i);
        }
        running.progress(PROGRESS, PROGRESS_MAX).await;
    }
    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
    // A shim that sees nothing would prove nothing.
    assert!(!shim || older > 0, "no loss of power took anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_all_nodes_were_killed() {
    die_and_return(Death::Kill, 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_all_nodes_lost_power() {
    die_and_return(Death::PowerLoss, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_power_loss_with_some_files_written_back() {
    die_and_return(Death::PowerLossWithSomeWrittenBack, 13).await;
}
