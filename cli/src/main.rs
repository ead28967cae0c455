//! `ringfold`: the command line of a cluster, and `ringfold dev`, a cluster on this machine.
mod append;
mod bench;
mod bootstrap;
mod connect;
mod dev;
mod error;
mod import;
mod kubernetes;
mod list;
mod lookup;
mod members;
mod output;
mod read;
mod rebalance;
mod record;
mod status;
mod topology;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use error::{CliError, Exit};
use output::Format;
use std::io::Write;
use std::process::ExitCode;

/// Appends events, looks up the states that they fold to, and runs a cluster on this machine.
///
/// Exit codes: 0 done, 1 another error, 2 usage or refused input, 3 not found, 4 not as expected
/// (wrong revision, id conflict, a drain that cannot end), 5 unavailable (try again), 6 outcome unknown (send it again with
/// the same ids), 7 no room on a disk.
#[derive(Debug, Parser)]
#[command(name = "ringfold", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Client URLs of nodes, separated by commas; any of them leads to all [default: http://127.0.0.1:2600, as kubectl-ringfold: the cluster in Kubernetes]
    #[arg(long, global = true, env = "RINGFOLD_ENDPOINTS", value_delimiter = ',')]
    pub endpoints: Vec<String>,
    #[command(flatten)]
    pub kubernetes: kubernetes::Args,
    /// Called as a plugin of kubectl.
    #[arg(skip)]
    pub is_plugin: bool,
    /// How to show results
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Deadline of each call, milliseconds
    #[arg(long, global = true, default_value_t = 10_000)]
    pub timeout_ms: u64,
}

const ENDPOINT: &str = "http://127.0.0.1:2600";

impl Global {
    /// Client URLs that were named, or the one of this machine.
    pub fn endpoints(&self) -> Vec<String> {
        match self.endpoints.is_empty() {
            true => vec![ENDPOINT.into()],
            false => self.endpoints.clone(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a cluster on this machine, each node a process of its own, until Ctrl-C
    Dev(dev::Args),
    /// Appends one event to a stream
    Append(append::Args),
    /// Shows a stream's events
    Read(read::Args),
    /// Shows the states that streams fold to
    Lookup(lookup::Args),
    /// Shows the names of streams
    List(list::Args),
    /// Appends events from JSON lines; run again, it stores nothing twice
    #[command(after_help = import::AFTER_HELP)]
    Import(import::Args),
    /// Puts load on the cluster and measures it
    Bench(bench::Args),
    /// Creates a cluster, once, with the node at --endpoints as its first member
    Bootstrap(bootstrap::Args),
    /// Asks each node how it is; ends with 1 unless all is well
    Status,
    /// Shows members, and who holds and leads each partition
    Topology,
    /// What the cluster moves between nodes, and why
    #[command(subcommand)]
    Rebalance(rebalance::Command),
    /// Moves everything off a node, and shows the progress until that is done
    Drain(members::Args),
    /// Lets a draining node take replicas again
    Undrain(members::Args),
    /// Takes a drained node out of the cluster for good
    Remove(members::Args),
    /// In Kubernetes: has the operator give a pod a new node on an empty volume
    Replace(kubernetes::replace::Args),
}

fn main() -> ExitCode {
    // clap prints help and usage errors itself, and ends with 0 or 2.
    let program = std::env::args_os().next().unwrap_or_default();
    let is_plugin = kubernetes::is_plugin(&program);
    let mut cli = match is_plugin {
        true => parse(Cli::command().bin_name("kubectl ringfold")),
        false => Cli::parse(),
    };
    cli.global.is_plugin = is_plugin;
    let as_json = cli.global.output == Format::Json;
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if error.exit != Exit::Closed {
                // Nobody to tell it to, if stderr is closed.
                let _ = writeln!(anstream::stderr(), "{}", error.render(as_json));
            }
            ExitCode::from(error.exit as u8)
        }
    }
}

/// As `Cli::parse`, under another name.
fn parse(mut command: clap::Command) -> Cli {
    let parsed = Cli::from_arg_matches(&command.get_matches_mut());
    parsed.unwrap_or_else(|e| e.format(&mut command).exit())
}

fn run(cli: Cli) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|e| CliError::other(format!("cannot start threads: {e}")))?;
    // On the main thread, which `dev` relies on.
    let result = runtime.block_on(dispatch(cli));
    // A read of stdin may still block a thread.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: Cli) -> Result<u8, CliError> {
    let global = cli.global;
    match cli.command {
        Command::Dev(args) => dev::run(args, &global).await,
        Command::Append(args) => append::run(args, &global).await,
        Command::Read(args) => read::run(args, &global).await,
        Command::Lookup(args) => lookup::run(args, &global).await,
        Command::List(args) => list::run(args, &global).await,
        Command::Import(args) => import::run(args, &global).await,
        Command::Bench(args) => bench::run(args, &global).await,
        Command::Bootstrap(args) => bootstrap::run(args, &global).await,
        Command::Status => status::run(&global).await,
        Command::Topology => topology::run(&global).await,
        Command::Rebalance(command) => rebalance::run(command, &global).await,
        Command::Drain(args) => members::drain(args, &global).await,
        Command::Undrain(args) => members::undrain(args, &global).await,
        Command::Remove(args) => members::remove(args, &global).await,
        Command::Replace(args) => kubernetes::replace::run(args, &global).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_two_dashes_is_devs_command() {
        let cli =
            Cli::try_parse_from(["ringfold", "dev", "--nodes", "1", "--", "ls", "-l", "--nodes"])
                .unwrap();
        let Command::Dev(args) = cli.command else {
            panic!("dev expected");
        };
        assert!(format!("{args:?}").contains(r#"["ls", "-l", "--nodes"]"#));
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        for args in [
            &["lookup"][..],
            &["lookup", "a-1", "--category", "a"],
            &["lookup", "a-1", "--consistency", "eventual"],
            &["append", "a-1"],
            &["append", "a-1", "--type", "T", "--expect", "-1"],
            &["append", "a-1", "--type", "T", "--id", "7"],
            &["list", "-o", "yaml"],
            &["status", "--cluster", "demo", "--endpoints", "http://a"],
            &["replace"],
        ] {
            let all = ["ringfold"].iter().chain(args);
            let error = Cli::try_parse_from(all).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn endpoints_are_separated_by_commas() {
        let cli = Cli::try_parse_from(["ringfold", "status", "--endpoints", "http://a,http://b"]);
        assert_eq!(cli.unwrap().global.endpoints, ["http://a", "http://b"]);
    }
}
