//! Many seeds, side by side.
use super::{Failure, Options, Report, run};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

const THREADS: u64 = 2;
/// A line is printed after so many seeds.
const PROGRESS_EVERY: u64 = 500;

/// A number that a person gives in the environment.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Runs seeds on two threads until one fails; the totals, or the failure of the least seed among
/// those that had begun.
///
/// # Errors
/// What did not hold.
pub fn run_seeds(seeds: Range<u64>, options: Options) -> Result<Report, Box<Failure>> {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let total = Mutex::new((Report::default(), None::<Box<Failure>>));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, options);
                    let mut total = total.lock().unwrap();
                    match outcome {
                        Ok(r) => total.0.add(&r),
                        Err(f) => {
                            stop.store(true, Ordering::Relaxed);
                            if total.1.as_ref().is_none_or(|known| f.seed < known.seed) {
                                total.1 = Some(f);
                            }
                        }
                    }
                    let done = seed - seeds.start + 1;
                    if done.is_multiple_of(PROGRESS_EVERY) {
                        eprintln!("{done} seeds after {:.0?}: {:?}", began.elapsed(), total.0);
                    }
                }
            });
        }
    });
    match total.into_inner().unwrap() {
        (_, Some(failure)) => Err(failure),
        (report, None) => Ok(report),
    }
}

impl Report {
    /// All counts; the hash is of one run only.
    fn add(&mut self, r: &Report) {
        self.events += r.events;
        self.acknowledged += r.acknowledged;
        self.lease_reads += r.lease_reads;
        self.crashes += r.crashes;
        self.checkpoints += r.checkpoints;
        self.membership_changes += r.membership_changes;
        self.elections += r.elections;
        self.steps += r.steps;
        self.retargets += r.retargets;
        self.planners_deposed += r.planners_deposed;
        self.epochs += r.epochs;
        self.replicas_made += r.replicas_made;
        self.destroyed += r.destroyed;
    }
}
