//! `git-history`: loads the history of a git repository as events, a stream for each path, and
//! checks the states that they fold to against git itself.
mod check;
mod events;
mod git;
mod load;
mod log;
mod tree;

use check::{Report, check};
use clap::{Parser, Subcommand};
use git::{GitError, Repository};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use load::{Loaded, load};
use ringfold_client::{Client, ClientConfig, ClientError};
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Loads the history of a git repository as events, a stream for each path, and checks the states
/// that they fold to against git itself.
///
/// Exit codes: 0 all is equal, 1 a difference or another error, 2 usage.
#[derive(Debug, Parser)]
#[command(name = "git-history", version)]
struct Cli {
    /// Client URLs of nodes, separated by commas
    #[arg(
        long,
        global = true,
        env = "RINGFOLD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2600"
    )]
    endpoints: Vec<String>,
    /// A folder of the repository; its HEAD is what is loaded and compared
    #[arg(long, global = true, default_value = ".")]
    repo: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Appends an event for each path that each commit touched, in first-parent order; run again,
    /// it stores nothing twice
    Load,
    /// Compares the states with `git ls-tree -r HEAD`, path for path, blob for blob, mode for mode
    Check,
    /// Both, and says what to try
    Run,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("append to {stream}: {error}")]
    Append { stream: String, error: Box<ClientError> },
    #[error(transparent)]
    Client(#[from] Box<ClientError>),
    #[error(
        "cannot reach {endpoints}: {error}; start a cluster with `ringfold dev`, or name a running one with --endpoints"
    )]
    Connect { endpoints: String, error: Box<ClientError> },
    #[error("an event has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the thread that reads git's output failed: {0}")]
    Reader(String),
    #[error("cannot start threads: {0}")]
    Runtime(io::Error),
    #[error("{0}")]
    Differs(String),
}

impl Fault {
    fn append(stream: &str, error: ClientError) -> Self {
        Self::Append { stream: stream.into(), error: Box::new(error) }
    }
}

impl From<ClientError> for Fault {
    fn from(e: ClientError) -> Self {
        Self::Client(Box::new(e))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().map_err(Fault::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(run(cli))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Nobody to tell it to, if stderr is closed.
            let _ = writeln!(anstream::stderr(), "git-history: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Fault> {
    // What git would refuse is said before anything is sent.
    let repository = Repository::open(&cli.repo)?;
    let config = ClientConfig::new(cli.endpoints.clone());
    let client = Client::connect(config)
        .await
        .map_err(|e| Fault::Connect { endpoints: cli.endpoints.join(","), error: Box::new(e) })?;
    if matches!(cli.command, Command::Load | Command::Run) {
        let bar = bar(repository.count_commits()?, "commits");
        let loaded = load(&client, &repository, &bar).await;
        bar.finish_and_clear();
        say(&loaded_text(&repository, &loaded?));
    }
    if matches!(cli.command, Command::Check | Command::Run) {
        let bar = bar(0, "lookups");
        let report = check(&client, &repository, &bar).await;
        bar.finish_and_clear();
        let report = report?;
        say(&report_text(&report));
        if report.differences > 0 {
            let n = report.differences;
            return Err(Fault::Differs(format!("{n} differences")));
        }
        if matches!(cli.command, Command::Run) {
            say(&try_text(&report));
        }
    }
    Ok(())
}

fn loaded_text(repository: &Repository, loaded: &Loaded) -> String {
    let short = &repository.head[..repository.head.len().min(12)];
    let Loaded { commits, events, took } = loaded;
    let per_s = *events as f64 / took.as_secs_f64().max(1e-9);
    format!("loaded {commits} commits up to {short} as {events} events, {per_s:.0} events/s")
}

fn report_text(report: &Report) -> String {
    let per_s = report.paths as f64 / report.lookups_took.as_secs_f64().max(1e-9);
    let mut text = format!(
        "looked up {} paths, {per_s:.0} linearizable lookups/s; {} states in all, {} differ from git",
        report.paths, report.states, report.differences
    );
    for told in &report.told {
        text.push_str("\n  ");
        text.push_str(told);
    }
    let untold = report.differences - report.told.len() as u64;
    if untold > 0 {
        text.push_str(&format!("\n  and {untold} more"));
    }
    text
}

fn try_text(report: &Report) -> String {
    let mut text = String::from("try:");
    for name in &report.samples {
        text.push_str(&format!("\n  ringfold lookup {}", Quoted(name)));
    }
    if let Some(name) = report.samples.first() {
        text.push_str(&format!("\n  ringfold read {}", Quoted(name)));
    }
    text.push_str("\n  ringfold list --category file --max 10");
    text
}

/// A word for a shell.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+,".contains(c);
        if self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        write!(f, "'{}'", self.0.replace('\'', r"'\''"))
    }
}

fn say(text: &str) {
    // A reader that has gone away misses nothing that counts: the exit code tells.
    let _ = writeln!(anstream::stdout(), "{text}");
}

fn bar(length: u64, what: &str) -> ProgressBar {
    // Hidden by itself where stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
    let template = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{per_sec}}  {{msg}}  {{eta}} left");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_to_try_can_be_pasted_into_a_shell() {
        let report =
            Report { samples: vec!["file-a b".into(), "file-it's".into()], ..Report::default() };
        let text = try_text(&report);
        assert!(text.contains("ringfold lookup 'file-a b'\n"), "{text}");
        assert!(text.contains(r"ringfold lookup 'file-it'\''s'"), "{text}");
        for (word, quoted) in [("file-src/main.rs", "file-src/main.rs"), ("$x", "'$x'")] {
            assert_eq!(Quoted(word).to_string(), quoted);
        }
    }

    #[test]
    fn a_report_tells_differences_and_counts_the_rest() {
        let report =
            Report { paths: 10, differences: 3, told: vec!["one".into()], ..Report::default() };
        let text = report_text(&report);
        assert!(text.ends_with("3 differ from git\n  one\n  and 2 more"), "{text}");
    }
}
