//! What users of three nodes see while a fourth one joins and takes its share.
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;
use ringfold_client::{Client, Consistency};

use crate::{
    all::{Goal, Row},
    cluster::{self, Dev, Process},
    load::{self, AppendArgs, ImportArgs, LookupArgs},
    measure::{LoadArgs, Report},
};

/// For the new node to come to rest.
const SCALED_WITHIN: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, clap::Args)]
pub struct ScaleArgs {
    /// First port of the nodes
    #[arg(long, default_value_t = 27_600, value_parser = clap::value_parser!(u16).range(1_025..=65_000))]
    pub port: u16,
    #[arg(long, default_value_t = 64)]
    pub partitions: u32,
    /// MiB of events before the node joins
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub mib: u32,
    /// Seconds of each measurement; the node should not have come to rest before they are over
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Lookups and appends in flight, each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub in_flight: u32,
    /// Folder of the nodes' data, on the disk that is to be measured
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// The `ringfold` binary [default: beside this one]
    #[arg(long)]
    pub ringfold: Option<PathBuf>,
}

/// Loads three nodes, measures, and measures again from the moment that a fourth is asked for, at
/// the default limit on a node's rate. `say` gets a line about each step.
///
/// # Errors
/// A process does not start, a call fails, or the new node does not come to rest in ten minutes.
pub async fn run(args: &ScaleArgs, say: &dyn Fn(&str)) -> anyhow::Result<Vec<Row>> {
    let ringfold = cluster::ringfold(args.ringfold.as_deref())?;
    let dir = cluster::scratch(&args.dir)?;
    let mut dev = Dev::start(&ringfold, args.port, args.partitions, &dir.path().join("nodes"))?;
    dev.ready(&mut []).await?;
    let client = dev.target.connect(1_000).await?;
    fill(&client, args.mib).await?;
    let lookups = LookupArgs {
        streams: 10_000,
        bytes: 300,
        consistency: Consistency::Linearizable,
        no_setup: true,
    };
    load::setup_lookup(&client, &lookups).await?;
    cluster::rest().await;

    let measure = async || {
        let load = LoadArgs::new(args.in_flight, args.seconds, &[]);
        let appends = AppendArgs { streams: 1_000, bytes: 256 };
        let both = tokio::join!(
            load::append(&client, &load, &appends),
            load::lookup(&client, &load, &lookups)
        );
        let (append, lookup) = (both.0, both.1?);
        for report in [&append, &lookup] {
            say(&report.to_string());
            if report.errors > 0 {
                bail!("{} of {} failed: {:?}", report.errors, report.load, report.first_error);
            }
        }
        anyhow::Ok((append, lookup))
    };
    say("three nodes\n");
    let steady = measure().await?;
    say("a fourth node joins\n");
    let start = Instant::now();
    let mut command = Command::new(&ringfold);
    command.args(["--endpoints", &dev.target.endpoints.join(","), "dev", "scale", "4"]);
    let mut scale = Process::start("ringfold dev scale", &mut command)?;
    let moving = measure().await?;
    if scale.try_wait()?.is_some() {
        say(
            "the node came to rest before the measurement was over: more --mib or fewer --seconds\n",
        );
    }
    loop {
        match scale.try_wait()? {
            Some(status) if status.success() => break,
            Some(status) => bail!("ringfold dev scale ended: {status}"),
            None if start.elapsed() > SCALED_WITHIN => {
                bail!("the fourth node is not at rest after {SCALED_WITHIN:?}")
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    say(&format!("at rest with four nodes after {:.1} s\n", start.elapsed().as_secs_f64()));
    Ok([(steady.0, moving.0), (steady.1, moving.1)].iter().flat_map(rows).collect())
}

async fn fill(client: &Client, mib: u32) -> anyhow::Result<()> {
    let args = ImportArgs {
        events: mib << 10,
        streams: 10_000,
        events_per_append: 16,
        bytes: 1_000,
        in_flight: 200,
        run: 1,
    };
    let report = load::import(client, &[], &args).await;
    match report.first_error {
        Some(error) => bail!("{} appends of the data failed, the first: {error}", report.errors),
        None => Ok(()),
    }
}

fn rows((steady, moving): &(Report, Report)) -> [Row; 2] {
    let row = |what: &str, unit, measured, base, goal| Row {
        what: format!("{}{what} while a fourth node joins", steady.load),
        measured,
        against: "three nodes".into(),
        base,
        unit,
        goal,
    };
    let rate = (moving.calls_per_s, steady.calls_per_s);
    [
        row("", "calls/s", rate.0, rate.1, Goal::AtLeast(0.8)),
        row(", p99", "us", moving.p99_us as f64, steady.p99_us as f64, Goal::AtMost(2.0)),
    ]
}
