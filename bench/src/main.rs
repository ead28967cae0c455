//! `ringfold-bench`: see `ringfold-bench --help` and docs/performance.md.
use std::{fmt::Display, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
#[cfg(feature = "layers")]
use ringfold_bench::layers;
use ringfold_bench::{
    all, echo,
    load::{self, AppendArgs, ImportArgs, LookupArgs, TargetArgs},
    measure::{LoadArgs, Report},
    scale, sync,
};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load for a Ringfold cluster, and the same load against what a user would pick instead
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Human)]
    output: Output,
    #[command(subcommand)]
    command: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Output {
    Human,
    /// One object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Looks states up
    Lookup {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: LookupArgs,
    },
    /// Appends one event a call
    Append {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: AppendArgs,
    },
    /// Appends one event at a time through AppendStream
    AppendStream {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: AppendArgs,
    },
    /// Appends many events over many streams, as fast as they are taken
    Import {
        #[command(flatten)]
        target: TargetArgs,
        /// Processes whose processor time is counted with the load (the servers)
        #[arg(long, value_delimiter = ',')]
        pids: Vec<u32>,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// Serves lookups from a map, over bare gRPC
    EchoServer {
        #[arg(long, default_value = "127.0.0.1:2599")]
        listen: SocketAddr,
        #[command(flatten)]
        args: echo::EchoArgs,
    },
    /// Looks up in an echo server
    Echo {
        #[arg(long, default_value = "http://127.0.0.1:2599")]
        endpoint: String,
        /// Connections
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
        channels: u32,
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: echo::EchoArgs,
    },
    /// Writes the batches of an import into three bare RocksDBs
    #[cfg(feature = "rocks")]
    Rocks {
        /// An empty folder
        #[arg(long)]
        dir: PathBuf,
        #[command(flatten)]
        args: ImportArgs,
    },
    /// Appends through three nodes' drivers alone: logs in memory, nothing applied
    #[cfg(feature = "layers")]
    Driver {
        #[command(flatten)]
        args: layers::driver::DriverArgs,
    },
    /// Applies entries of appends to real databases, as one node does
    #[cfg(feature = "layers")]
    Apply {
        /// An empty folder
        #[arg(long)]
        dir: PathBuf,
        #[command(flatten)]
        args: layers::apply::ApplyArgs,
    },
    /// Moves a checkpoint from node to node, and copies the same files through a socket
    #[cfg(feature = "layers")]
    Transfer {
        /// Folder on the disk that is to be measured
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        #[command(flatten)]
        args: layers::transfer::TransferArgs,
    },
    /// Syncs small writes to the disk, one after the other
    Sync {
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Starts three nodes and their peers, and compares everything
    All(all::AllArgs),
    /// Starts three nodes, and measures before and while a fourth joins
    Scale(scale::ScaleArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(e) => {
            anstream::eprintln!("error: cannot start the runtime: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code,
        Err(e) => {
            anstream::eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// A load with errors exits with 1, so that a script notices.
fn print(output: Output, report: &Report) -> anyhow::Result<ExitCode> {
    show(output, report)?;
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(output: Output, report: &(impl Display + Serialize)) -> anyhow::Result<()> {
    match output {
        Output::Human => anstream::print!("{report}"),
        Output::Json => anstream::println!("{}", serde_json::to_string(report)?),
    }
    Ok(())
}

fn say(line: &str) {
    anstream::eprint!("{line}");
}

fn print_rows(output: Output, rows: &[all::Row]) -> anyhow::Result<()> {
    match output {
        Output::Human => anstream::println!("{}", all::table(rows)),
        Output::Json => {
            for row in rows {
                anstream::println!("{}", serde_json::to_string(row)?);
            }
        }
    }
    Ok(())
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = match args.command {
        Run::Lookup { target, load, args } => {
            let client = target.connect(1_000).await?;
            load::lookup(&client, &load, &args).await?
        }
        Run::Append { target, load, args } => {
            load::append(&target.connect(1).await?, &load, &args).await
        }
        Run::AppendStream { target, load, args } => {
            load::append_stream(&target.connect(load.in_flight).await?, &load, &args).await
        }
        Run::Import { target, pids, args } => {
            load::import(&target.connect(args.in_flight).await?, &pids, &args).await
        }
        Run::EchoServer { listen, args } => {
            echo::serve(listen, &args).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Run::Echo { endpoint, channels, load, args } => {
            echo::load(&endpoint, channels, &load, &args).await?
        }
        #[cfg(feature = "rocks")]
        Run::Rocks { dir, args } => ringfold_bench::rocks::run(&dir, &args).await?,
        #[cfg(feature = "layers")]
        Run::Driver { args } => layers::driver::run(&args).await?,
        #[cfg(feature = "layers")]
        Run::Apply { dir, args } => layers::apply::run(&dir, &args).await?,
        #[cfg(feature = "layers")]
        Run::Transfer { dir, args: transfer } => {
            show(args.output, &layers::transfer::run(&dir, &transfer).await?)?;
            return Ok(ExitCode::SUCCESS);
        }
        Run::Sync { dir, seconds } => sync::run(&dir, seconds).await?,
        Run::All(all) => {
            print_rows(args.output, &all::run(&all, &say).await?)?;
            return Ok(ExitCode::SUCCESS);
        }
        Run::Scale(scale) => {
            print_rows(args.output, &scale::run(&scale, &say).await?)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    print(args.output, &report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_lookup_is_read_with_all_its_flags() {
        let args = Args::try_parse_from([
            "ringfold-bench",
            "lookup",
            "--endpoints",
            "http://a:1,http://b:2",
            "--in-flight",
            "8",
            "--seconds",
            "0.5",
            "--streams",
            "20",
            "--consistency",
            "lease",
            "--pids",
            "1,2",
            "-o",
            "json",
        ])
        .unwrap();
        assert_eq!(args.output, Output::Json);
        let Run::Lookup { target, load, args } = args.command else {
            panic!("not a lookup");
        };
        assert_eq!(target.endpoints, ["http://a:1", "http://b:2"]);
        assert_eq!((load.in_flight, load.seconds), (8, 0.5));
        assert_eq!(load.pids, [1, 2]);
        assert_eq!((args.streams, args.bytes), (20, 300));
        assert_eq!(args.consistency.to_string(), "lease");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let parse = |args: &[&str]| {
            Args::try_parse_from([&["ringfold-bench"], args].concat()).unwrap_err().to_string()
        };
        assert!(parse(&["lookup", "--consistency", "eventual"]).contains("stale"));
        assert!(parse(&["append", "--in-flight", "0"]).contains("in-flight"));
        assert!(parse(&["append", "--bytes", "3"]).contains("bytes"));
        assert!(parse(&["append", "--seconds=-1"]).contains("seconds"));
    }
}
