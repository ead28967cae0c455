//! `ringfold bench`: the loads of crate `ringfold-bench` against this cluster.
use crate::Global;
use crate::error::CliError;
use crate::kubernetes;
use crate::output::{Format, Out};
use clap::Subcommand;
use ringfold_bench::{AppendArgs, LoadArgs, LookupArgs, Report, TargetArgs};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Looks up streams at random, which it makes first
    Lookup {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: LookupArgs,
        /// Connections to each node
        #[arg(long, default_value_t = 2)]
        channels: u32,
    },
    /// Appends events to streams at random
    Append {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: AppendArgs,
        /// Connections to each node
        #[arg(long, default_value_t = 2)]
        channels: u32,
        /// One AppendStream to each node instead of a call for each append
        #[arg(long)]
        pipelined: bool,
    },
}

pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    kubernetes::refuse(
        global,
        "bench",
        "run it in a pod of the cluster's network, with --endpoints",
    )?;
    let target = |channels| TargetArgs { endpoints: global.endpoints(), channels };
    let report = match args.load {
        Load::Lookup { load, args, channels } => {
            let client = target(channels).connect(load.in_flight).await?;
            (ringfold_bench::lookup(&client, &load, &args).await)
                .map_err(|e| CliError::other(format!("{e:#}")))?
        }
        Load::Append { load, args, channels, pipelined } => {
            let client = target(channels).connect(load.in_flight).await?;
            match pipelined {
                true => ringfold_bench::append_stream(&client, &load, &args).await,
                false => ringfold_bench::append(&client, &load, &args).await,
            }
        }
    };
    show(&report, global.output)
}

fn show(report: &Report, format: Format) -> Result<u8, CliError> {
    let mut out = Out::new(format);
    match format {
        Format::Json => out.json(report)?,
        Format::Table => out.text(report)?,
    }
    out.flush()?;
    match &report.first_error {
        None => Ok(0),
        Some(first) => {
            Err(CliError::other(format!("{} calls failed, the first with: {first}", report.errors)))
        }
    }
}
