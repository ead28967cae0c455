//! The whole comparison: starts what it compares, and prints ratios against the goals.
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use ringfold_client::{Client, Consistency};
use serde::Serialize;

use crate::{
    cluster::{self, Dev, Process},
    echo,
    load::{self, AppendArgs, ImportArgs, LookupArgs, TargetArgs},
    measure::{LoadArgs, Report},
};

#[derive(Clone, Debug, clap::Args)]
pub struct AllArgs {
    /// First port of the three nodes; the echo server takes the one before
    #[arg(long, default_value_t = 27_600, value_parser = clap::value_parser!(u16).range(1_025..=65_000))]
    pub port: u16,
    #[arg(long, default_value_t = 16)]
    pub partitions: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Times that each comparison is made, in turn with its peer; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Streams of the lookups
    #[arg(long, default_value_t = 10_000)]
    pub streams: u32,
    /// Streams of the lookups over many streams; 0 leaves them out
    #[arg(long, default_value_t = 1_000_000)]
    pub many_streams: u32,
    /// Events of the import; 0 leaves it out
    #[arg(long, default_value_t = 1_000_000)]
    pub import_events: u32,
    #[arg(long, default_value_t = 100_000)]
    pub import_streams: u32,
    /// MiB of the checkpoint that moves from node to node; 0 leaves it out
    #[arg(long, default_value_t = 2_048)]
    pub checkpoint_mib: u64,
    /// Folder of the nodes' and databases' data, on the disk that is to be measured
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// The `ringfold` binary [default: beside this one]
    #[arg(long)]
    pub ringfold: Option<PathBuf>,
}

/// A figure may not be lower, or not be higher.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// One ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub measured: f64,
    pub against: String,
    pub base: f64,
    pub unit: &'static str,
    pub goal: Goal,
}

impl Row {
    pub fn ratio(&self) -> f64 {
        self.measured / self.base
    }

    /// A ratio that is no number (nothing was measured) meets nothing.
    pub fn is_met(&self) -> bool {
        match self.goal {
            Goal::AtLeast(goal) => self.ratio() >= goal,
            Goal::AtMost(goal) => self.ratio() <= goal,
        }
    }
}

/// The table that `docs/performance.md` shows.
pub fn table(rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["", "measured", "against", "", "ratio", "goal", "met"]);
    for r in rows {
        let goal = match r.goal {
            Goal::AtLeast(goal) => format!(">= {goal}"),
            Goal::AtMost(goal) => format!("<= {goal}"),
        };
        table.add_row([
            r.what.clone(),
            format!("{:.0} {}", r.measured, r.unit),
            r.against.clone(),
            format!("{:.0} {}", r.base, r.unit),
            format!("{:.2}", r.ratio()),
            goal,
            if r.is_met() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table.to_string()
}

/// The middle one; of an even number, the lower of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => values[(n - 1) / 2],
    }
}

fn throughput(reports: &[Report]) -> f64 {
    median(reports.iter().map(|r| r.calls_per_s).collect())
}

fn p99(reports: &[Report]) -> f64 {
    median(reports.iter().map(|r| r.p99_us as f64).collect())
}

/// Of all sides of a call.
fn cpu_us(reports: &[Report]) -> f64 {
    let of = |r: &Report| r.client_cpu_us_per_call + r.server_cpu_us_per_call.unwrap_or(f64::NAN);
    median(reports.iter().map(of).collect())
}

fn mean(reports: &[Report]) -> f64 {
    median(reports.iter().map(|r| r.mean_us).collect())
}

struct Bench<'a> {
    args: &'a AllArgs,
    own: PathBuf,
    echo_url: String,
    echo_pid: u32,
    target: TargetArgs,
    node_pids: Vec<u32>,
    say: &'a dyn Fn(&str),
    rows: Vec<Row>,
}

/// Runs everything; `say` gets a line about each measurement.
///
/// # Errors
/// A process does not start, or the cluster does not become ready within a minute.
pub async fn run(args: &AllArgs, say: &dyn Fn(&str)) -> anyhow::Result<Vec<Row>> {
    let own = cluster::own_program()?;
    let ringfold = cluster::ringfold(args.ringfold.as_deref())?;
    let dir = cluster::scratch(&args.dir)?;
    let echo_listen = format!("127.0.0.1:{}", args.port - 1);
    let mut echo = Process::start(
        "the echo server",
        Command::new(&own).args(["echo-server", "--listen", &echo_listen]),
    )?;
    let mut dev = Dev::start(&ringfold, args.port, args.partitions, &dir.path().join("nodes"))?;
    dev.ready(&mut [&mut echo]).await?;
    let mut bench = Bench {
        args,
        own,
        echo_url: format!("http://{echo_listen}"),
        echo_pid: echo.id(),
        node_pids: dev.node_pids(),
        target: dev.target.clone(),
        say,
        rows: Vec::new(),
    };
    bench.lookups().await?;
    bench.appends(dir.path()).await?;
    bench.single_append(dir.path()).await?;
    bench.import(dir.path()).await?;
    bench.many_streams().await?;
    bench.checkpoint(dir.path())?;
    Ok(bench.rows)
}

impl Bench<'_> {
    fn row(
        &mut self,
        what: &str,
        unit: &'static str,
        measured: f64,
        against: (&str, f64),
        goal: Goal,
    ) {
        self.rows.push(Row {
            what: what.to_owned(),
            measured,
            against: against.0.to_owned(),
            base: against.1,
            unit,
            goal,
        });
    }

    fn take(&self, report: Report, into: &mut Vec<Report>) {
        (self.say)(&report.to_string());
        into.push(report);
    }

    async fn echo(&self, in_flight: u32) -> anyhow::Result<Report> {
        let load = LoadArgs::new(in_flight, self.args.seconds, &[self.echo_pid]);
        let args = echo::EchoArgs { streams: 10_000, bytes: 300 };
        echo::load(&self.echo_url, 2, &load, &args).await
    }

    fn load(&self, in_flight: u32) -> LoadArgs {
        LoadArgs::new(in_flight, self.args.seconds, &self.node_pids)
    }

    fn lookup_args(&self, streams: u32, consistency: Consistency) -> LookupArgs {
        LookupArgs { streams, bytes: 300, consistency, no_setup: true }
    }

    async fn connect(&self, in_flight: u32) -> anyhow::Result<Client> {
        Ok(self.target.connect(in_flight).await?)
    }

    async fn lookups(&mut self) -> anyhow::Result<()> {
        let client = self.connect(1_000).await?;
        let levels = [Consistency::Lease, Consistency::Stale, Consistency::Linearizable];
        load::setup_lookup(&client, &self.lookup_args(self.args.streams, levels[0])).await?;
        cluster::rest().await;
        let mut echo = Vec::new();
        let mut lookups: [Vec<Report>; 3] = Default::default();
        for _ in 0..self.args.rounds {
            self.take(self.echo(64).await?, &mut echo);
            for (level, reports) in levels.into_iter().zip(&mut lookups) {
                let args = self.lookup_args(self.args.streams, level);
                let report = load::lookup(&client, &self.load(64), &args).await?;
                self.take(report, reports);
            }
        }
        for (level, reports) in levels.into_iter().zip(&lookups) {
            let at_least = match level {
                Consistency::Linearizable => 0.6,
                Consistency::Lease | Consistency::Stale => 0.8,
            };
            let what = format!("lookup, {level}, 64 in flight");
            let against = ("echo", throughput(&echo));
            let goal = Goal::AtLeast(at_least);
            self.row(&what, "calls/s", throughput(reports), against, goal);
            if level != Consistency::Linearizable {
                let against = ("echo, p99", p99(&echo));
                let goal = Goal::AtMost(1.5);
                self.row(&format!("{what}, p99"), "us", p99(reports), against, goal);
            }
        }
        Ok(())
    }

    async fn appends(&mut self, dir: &Path) -> anyhow::Result<()> {
        let client = self.connect(1_000).await?;
        let args = AppendArgs { streams: 1_000, bytes: 256 };
        let (mut echo, mut unary, mut pipelined) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            self.take(self.echo(256).await?, &mut echo);
            let report = load::append(&client, &self.load(256), &args).await;
            self.take(report, &mut unary);
            let report = load::append_stream(&client, &self.load(1_000), &args).await;
            self.take(report, &mut pipelined);
        }
        let against = ("echo at 256", throughput(&echo));
        let measured = throughput(&unary);
        let goal = Goal::AtLeast(0.5);
        self.row("append, 256 in flight", "calls/s", measured, against, goal);
        let against = ("unary appends", measured);
        let measured = throughput(&pipelined);
        let goal = Goal::AtLeast(3.0);
        self.row("AppendStream, 1,000 in flight", "appends/s", measured, against, goal);
        self.append_cpu(dir, &echo, &unary)
    }

    /// Processor time of a unary append, on all sides, against what its layers take alone.
    fn append_cpu(&mut self, dir: &Path, echo: &[Report], unary: &[Report]) -> anyhow::Result<()> {
        let (mut driver, mut apply) = (Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            let seconds = self.args.seconds.to_string();
            driver.push(self.layer(&["driver", "--seconds", &seconds])?);
            let dir = dir.join(format!("apply-{round}"));
            std::fs::create_dir(&dir)?;
            apply.push(self.layer(&["apply", "--dir", &dir.to_string_lossy()])?);
        }
        let (echo, driver, apply) = (cpu_us(echo), median(driver), median(apply));
        let against = format!("echo {echo:.1} + driver {driver:.1} + 3 x apply {apply:.1}");
        let against = (against.as_str(), echo + driver + 3.0 * apply);
        self.row("processor time of an append", "us", cpu_us(unary), against, Goal::AtMost(1.5));
        Ok(())
    }

    /// Microseconds of processor time that an append takes in one layer.
    fn layer(&self, args: &[&str]) -> anyhow::Result<f64> {
        let line = self.again(args)?;
        let us = line["client_cpu_us_per_call"].as_f64().unwrap_or(f64::NAN);
        (self.say)(&format!("{} alone\n  {us:>12.1} us of processor time per append\n", args[0]));
        Ok(us)
    }

    /// What another command of this program prints, in a process of its own.
    fn again(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = Command::new(&self.own)
            .args(["-o", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start this program again")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the measurement of {} ended: {}", args[0], output.status))
    }

    fn checkpoint(&mut self, dir: &Path) -> anyhow::Result<()> {
        if self.args.checkpoint_mib == 0 {
            return Ok(());
        }
        let (mut base, mut measured) = (Vec::new(), Vec::new());
        let (dir, mib) = (dir.to_string_lossy(), self.args.checkpoint_mib.to_string());
        for _ in 0..self.args.rounds {
            let line = self.again(&["transfer", "--dir", &dir, "--mib", &mib])?;
            let mib_per_s = |key: &str| line[key].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
            base.push(mib_per_s("copy_bytes_per_s"));
            measured.push(mib_per_s("checkpoint_bytes_per_s"));
            (self.say)(&format!(
                "checkpoint of {mib} MiB\n  {:>12.0} MiB/s, {:.0} MiB/s copied through a socket\n",
                measured[measured.len() - 1],
                base[base.len() - 1]
            ));
        }
        let against = ("a copy through a socket", median(base));
        let what = format!("checkpoint of {mib} MiB");
        self.row(&what, "MiB/s", median(measured), against, Goal::AtLeast(0.7));
        Ok(())
    }

    async fn single_append(&mut self, dir: &Path) -> anyhow::Result<()> {
        let client = self.connect(1).await?;
        let args = AppendArgs { streams: 1_000, bytes: 256 };
        let (mut echo, mut single, mut syncs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            syncs.push(self.three_syncs(dir)?);
            self.take(self.echo(1).await?, &mut echo);
            let report = load::append(&client, &self.load(1), &args).await;
            self.take(report, &mut single);
        }
        let base = median(syncs) + mean(&echo);
        let against = ("one of three syncs, and a round trip", base);
        let goal = Goal::AtMost(3.0);
        self.row("one append at a time", "us", mean(&single), against, goal);
        Ok(())
    }

    /// Mean microseconds of a sync while three processes sync.
    fn three_syncs(&self, dir: &Path) -> anyhow::Result<f64> {
        let start = || {
            Command::new(&self.own)
                .args(["-o", "json", "sync", "--seconds"])
                .arg(self.args.seconds.to_string())
                .arg("--dir")
                .arg(dir)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start this program again")
        };
        let children = [start()?, start()?, start()?];
        let mut means = Vec::new();
        for child in children {
            let output = child.wait_with_output()?;
            let line: serde_json::Value = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("the sync measurement ended: {}", output.status))?;
            means.push(line["mean_us"].as_f64().unwrap_or(f64::NAN));
        }
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        (self.say)(&format!("sync, three processes\n  {mean:>12.0} us mean\n"));
        Ok(mean)
    }

    async fn import(&mut self, dir: &Path) -> anyhow::Result<()> {
        if self.args.import_events == 0 {
            return Ok(());
        }
        let mut args = ImportArgs {
            events: self.args.import_events,
            streams: self.args.import_streams.max(1),
            events_per_append: 10,
            bytes: 64,
            in_flight: 1_000,
            run: 0,
        };
        let client = self.connect(args.in_flight).await?;
        let rate = |r: &Report| r.events_per_s.unwrap_or(f64::NAN);
        let (mut base, mut measured) = (Vec::new(), Vec::new());
        for round in 0..self.args.rounds {
            base.push(self.rocks(dir, round, &args).await?);
            args.run = u64::from(round) + 1;
            let report = load::import(&client, &self.node_pids, &args).await;
            (self.say)(&report.to_string());
            measured.push(rate(&report));
        }
        let against = ("three RocksDBs", median(base));
        let what = format!("import of {} events", args.events);
        let goal = Goal::AtLeast(0.5);
        self.row(&what, "events/s", median(measured), against, goal);
        Ok(())
    }

    #[cfg(feature = "rocks")]
    async fn rocks(&self, dir: &Path, round: u32, args: &ImportArgs) -> anyhow::Result<f64> {
        let dir = dir.join(format!("rocks-{round}"));
        std::fs::create_dir(&dir)?;
        let report = crate::rocks::run(&dir, args).await?;
        (self.say)(&report.to_string());
        std::fs::remove_dir_all(&dir)?;
        Ok(report.events_per_s.unwrap_or(f64::NAN))
    }

    #[cfg(not(feature = "rocks"))]
    async fn rocks(&self, _: &Path, _: u32, _: &ImportArgs) -> anyhow::Result<f64> {
        anyhow::bail!(
            "this program was built without the feature `rocks`, which the import is compared with"
        )
    }

    async fn many_streams(&mut self) -> anyhow::Result<()> {
        if self.args.many_streams == 0 {
            return Ok(());
        }
        let client = self.connect(1_000).await?;
        let level = Consistency::Lease;
        let few = self.lookup_args(self.args.streams, level);
        let many = self.lookup_args(self.args.many_streams, level);
        load::setup_lookup(&client, &many).await?;
        cluster::rest().await;
        let (mut base, mut measured) = (Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            let report = load::lookup(&client, &self.load(64), &few).await?;
            self.take(report, &mut base);
            let report = load::lookup(&client, &self.load(64), &many).await?;
            self.take(report, &mut measured);
        }
        let against = format!("{} streams", self.args.streams);
        let what = format!("lookup, {level}, {} streams", self.args.many_streams);
        let against = (against.as_str(), throughput(&base));
        let goal = Goal::AtLeast(0.8);
        self.row(&what, "calls/s", throughput(&measured), against, goal);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(measured: f64, base: f64, goal: Goal) -> Row {
        Row { what: "w".into(), measured, against: "a".into(), base, unit: "calls/s", goal }
    }

    #[test]
    fn a_ratio_meets_its_goal_or_not() {
        assert!(row(80.0, 100.0, Goal::AtLeast(0.8)).is_met());
        assert!(!row(79.0, 100.0, Goal::AtLeast(0.8)).is_met());
        assert!(row(150.0, 100.0, Goal::AtMost(1.5)).is_met());
        assert!(!row(151.0, 100.0, Goal::AtMost(1.5)).is_met());
        assert!(!row(0.0, 0.0, Goal::AtLeast(0.8)).is_met());
        assert!(!row(f64::NAN, 1.0, Goal::AtMost(1.5)).is_met());
    }

    #[test]
    fn the_median_is_a_measured_value() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.0);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn the_table_has_a_line_for_each_ratio() {
        let table = table(&[row(40.0, 100.0, Goal::AtLeast(0.5))]);
        let line = table.lines().last().unwrap();
        for part in ["40 calls/s", "100 calls/s", "0.40", ">= 0.5", "no"] {
            assert!(line.contains(part), "{table}");
        }
    }
}
