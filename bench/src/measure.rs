//! Runs a load for a while and says what it did.
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::watch;

use crate::cpu;

/// How much load, and for how long.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Calls that wait for their answer at any time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub warmup_seconds: f64,
    /// Processes whose processor time is counted with the load (the servers)
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// Ends the load once it is true or its sender is gone, where that is before `seconds` are over.
    #[arg(skip)]
    pub end: Option<watch::Receiver<bool>>,
}

impl LoadArgs {
    pub fn new(in_flight: u32, seconds: f64, pids: &[u32]) -> Self {
        LoadArgs {
            in_flight,
            seconds,
            warmup_seconds: (seconds / 5.0).min(1.0),
            pids: pids.to_vec(),
            end: None,
        }
    }

    /// Returns when the load's time is over.
    async fn over(&self) {
        let time = tokio::time::sleep(Duration::from_secs_f64(self.seconds));
        match self.end.clone() {
            None => time.await,
            Some(mut end) => tokio::select! {
                () = time => {}
                _ = end.wait_for(|over| *over) => {}
            },
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(s),
        _ => Err("seconds from 0 to 86400 are expected".into()),
    }
}

/// What a load did. Field names are those of the JSON line and stay.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub load: String,
    pub in_flight: u32,
    pub calls: u64,
    pub errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    pub seconds: f64,
    pub calls_per_s: f64,
    /// Events that the calls carried, where they carry events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_s: Option<f64>,
    pub mean_us: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub client_cpu_us_per_call: f64,
    /// Of the processes in `--pids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_call: Option<f64>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} at {} in flight", self.load, self.in_flight)?;
        let calls = self.calls_per_s;
        writeln!(f, "  {calls:>12.0} calls/s ({} in {:.1} s)", self.calls, self.seconds)?;
        if let Some(events) = self.events_per_s {
            writeln!(f, "  {events:>12.0} events/s")?;
        }
        let (p50, p99, max) = (self.p50_us, self.p99_us, self.max_us);
        writeln!(f, "  {p50:>12} us p50, {p99} us p99, {max} us longest")?;
        let cpu = self.client_cpu_us_per_call;
        writeln!(f, "  {cpu:>12.1} us of processor time per call here")?;
        if let Some(cpu) = self.server_cpu_us_per_call {
            writeln!(f, "  {cpu:>12.1} us of processor time per call in the servers")?;
        }
        if let Some(e) = &self.first_error {
            writeln!(f, "  {:>12} errors, the first: {e}", self.errors)?;
        }
        Ok(())
    }
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const ENDED: u8 = 2;

/// Says whether calls are measured now. Cheap to ask for each call.
#[derive(Clone, Default)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    pub fn is_ended(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ENDED
    }

    fn is_measuring(&self) -> bool {
        self.0.load(Ordering::Relaxed) == MEASURING
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }
}

/// What one worker did.
pub struct Samples {
    phase: Phase,
    latency_us: Histogram<u64>,
    events: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Samples {
    pub fn new(phase: &Phase) -> Self {
        Samples {
            phase: phase.clone(),
            latency_us: histogram(),
            events: 0,
            errors: 0,
            first_error: None,
        }
    }

    /// A call that began at `since` ended just now, with so many events.
    pub fn record(&mut self, since: Instant, result: Result<u64, String>) {
        if !self.phase.is_measuring() {
            return;
        }
        match result {
            Ok(events) => {
                self.latency_us.saturating_record(since.elapsed().as_micros() as u64);
                self.events += events;
            }
            Err(e) => {
                self.errors += 1;
                self.first_error.get_or_insert(e);
            }
        }
    }

    pub fn has_failed(&self) -> bool {
        self.errors > 0
    }

    pub fn merge(&mut self, other: Samples) {
        self.latency_us += &other.latency_us;
        self.events += other.events;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn report(self, load: &str, in_flight: u32, spent: &Spent) -> Report {
        let calls = self.latency_us.len();
        let per_call = |d: Duration| d.as_secs_f64() * 1e6 / calls.max(1) as f64;
        let seconds = spent.elapsed.as_secs_f64().max(1e-9);
        Report {
            load: load.to_owned(),
            in_flight,
            calls,
            errors: self.errors,
            first_error: self.first_error,
            seconds,
            calls_per_s: calls as f64 / seconds,
            events_per_s: (self.events > 0).then(|| self.events as f64 / seconds),
            mean_us: self.latency_us.mean(),
            p50_us: self.latency_us.value_at_quantile(0.5),
            p99_us: self.latency_us.value_at_quantile(0.99),
            max_us: self.latency_us.max(),
            client_cpu_us_per_call: per_call(spent.client_cpu),
            server_cpu_us_per_call: spent.server_cpu.map(per_call),
        }
    }
}

/// One microsecond to ten minutes, within 0.1 %.
fn histogram() -> Histogram<u64> {
    #[allow(clippy::expect_used)] // constant bounds that the crate takes
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds are valid")
}

struct Spent {
    elapsed: Duration,
    client_cpu: Duration,
    server_cpu: Option<Duration>,
}

struct Meter {
    since: Instant,
    client_cpu: Duration,
    server_cpu: Duration,
}

impl Meter {
    fn start(pids: &[u32]) -> Meter {
        Meter {
            since: Instant::now(),
            client_cpu: cpu::used(std::process::id()),
            server_cpu: cpu::used_by_all(pids),
        }
    }

    fn spent(&self, pids: &[u32]) -> Spent {
        Spent {
            elapsed: self.since.elapsed(),
            client_cpu: cpu::used(std::process::id()).saturating_sub(self.client_cpu),
            server_cpu: (!pids.is_empty())
                .then(|| cpu::used_by_all(pids).saturating_sub(self.server_cpu)),
        }
    }
}

/// Runs workers until the time is over. Each gets the phase, stops soon after it ended, and gives its
/// samples.
pub async fn workers<Fut>(
    load: &str,
    args: &LoadArgs,
    count: u32,
    worker: impl Fn(u32, Phase) -> Fut,
) -> Report
where
    Fut: Future<Output = Samples> + Send + 'static,
{
    let phase = Phase::default();
    phase.set(WARMING_UP);
    let tasks: Vec<_> = (0..count).map(|n| tokio::spawn(worker(n, phase.clone()))).collect();
    tokio::time::sleep(Duration::from_secs_f64(args.warmup_seconds)).await;
    let meter = Meter::start(&args.pids);
    phase.set(MEASURING);
    args.over().await;
    phase.set(ENDED);
    let spent = meter.spent(&args.pids);
    let mut all = Samples::new(&phase);
    for task in tasks {
        match task.await {
            Ok(samples) => all.merge(samples),
            Err(e) => {
                all.errors += 1;
                all.first_error.get_or_insert(format!("a worker ended: {e}"));
            }
        }
    }
    all.report(load, args.in_flight, &spent)
}

/// Runs `make(n)`'s calls one after the other in each of the workers in flight. A call's result: how
/// many events it carried.
pub async fn calls<Call, Fut>(load: &str, args: &LoadArgs, make: impl Fn(u32) -> Call) -> Report
where
    Call: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = Result<u64, String>> + Send,
{
    workers(load, args, args.in_flight, |n, phase| {
        let mut call = make(n);
        async move {
            let mut samples = Samples::new(&phase);
            while !phase.is_ended() {
                let since = Instant::now();
                let result = call().await;
                let failed = result.is_err();
                samples.record(since, result);
                if failed {
                    // A cluster that refuses at once is not to be asked in a tight loop.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            samples
        }
    })
    .await
}

/// Measures one piece of work from its start to its end.
pub async fn once<Fut>(load: &str, args: &LoadArgs, work: impl FnOnce(Phase) -> Fut) -> Report
where
    Fut: Future<Output = Samples>,
{
    let phase = Phase::default();
    phase.set(MEASURING);
    let meter = Meter::start(&args.pids);
    let samples = work(phase).await;
    let spent = meter.spent(&args.pids);
    samples.report(load, args.in_flight, &spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measuring() -> Phase {
        let phase = Phase::default();
        phase.set(MEASURING);
        phase
    }

    #[test]
    fn a_report_adds_its_workers_up() {
        let phase = measuring();
        let (mut a, mut b) = (Samples::new(&phase), Samples::new(&phase));
        for us in 1..=100 {
            a.latency_us.saturating_record(us);
        }
        a.events = 200;
        b.latency_us.saturating_record(5_000);
        b.record(Instant::now(), Err("no".into()));
        b.record(Instant::now(), Err("later".into()));
        a.merge(b);
        let spent = Spent {
            elapsed: Duration::from_secs(2),
            client_cpu: Duration::from_millis(202),
            server_cpu: Some(Duration::from_millis(404)),
        };
        let r = a.report("x", 3, &spent);
        assert_eq!((r.calls, r.errors), (101, 2));
        assert_eq!(r.first_error.as_deref(), Some("no"));
        assert_eq!(r.calls_per_s, 50.5);
        assert_eq!(r.events_per_s, Some(100.0));
        assert_eq!((r.p50_us, r.p99_us), (51, 100));
        assert!(r.max_us.abs_diff(5_000) < 10);
        assert_eq!(r.client_cpu_us_per_call, 2_000.0);
        assert_eq!(r.server_cpu_us_per_call, Some(4_000.0));
    }

    #[tokio::test]
    async fn a_load_ends_when_it_is_told_to() {
        let (end, told) = watch::channel(false);
        let args =
            LoadArgs { end: Some(told), warmup_seconds: 0.0, ..LoadArgs::new(1, 3_600.0, &[]) };
        let load = calls("sleep", &args, |_| {
            || async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(1)
            }
        });
        let told = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            end.send_replace(true);
        };
        let (report, ()) = tokio::join!(load, told);
        assert!(report.calls > 0 && report.seconds < 60.0);
    }

    #[test]
    fn what_ends_before_or_after_the_measured_time_does_not_count() {
        let phase = Phase::default();
        let mut samples = Samples::new(&phase);
        samples.record(Instant::now(), Ok(1));
        phase.set(MEASURING);
        samples.record(Instant::now(), Ok(1));
        phase.set(ENDED);
        samples.record(Instant::now(), Ok(1));
        assert_eq!((samples.latency_us.len(), samples.events), (1, 1));
    }

    #[tokio::test]
    async fn calls_run_in_as_many_workers_as_are_in_flight() {
        let mut args = LoadArgs::new(3, 0.05, &[]);
        args.warmup_seconds = 0.0;
        let made = std::sync::atomic::AtomicU32::new(0);
        let report = calls("sleep", &args, |_| {
            made.fetch_add(1, Ordering::Relaxed);
            || async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(2)
            }
        })
        .await;
        assert_eq!(made.into_inner(), 3);
        assert!(report.calls > 0 && report.errors == 0);
        assert_eq!(report.events_per_s, Some(2.0 * report.calls_per_s));
    }
}
