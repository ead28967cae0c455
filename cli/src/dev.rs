//! `ringfold dev`: a cluster on this machine, each node a process of its own, for as long as this
//! program runs.
mod beside;
mod certificates;
mod changes;
mod control;
mod folder;
mod plan;
mod process;
mod scale;
mod settled;
mod signals;

use crate::Global;
use crate::error::{CliError, Exit};
use crate::output::{Format, Out, say, spinner};
use beside::Beside;
use folder::Folder;
use plan::NodePlan;
use process::{End, Nodes};
use ringfold_client::{Tls, lazy_channel};
use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::{BootstrapRequest, TopologyRequest};
use rustix::process::Signal;
use serde::Serialize;
use settled::{PlanError, Remembered, Wanted, settle};
use signals::Signals;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

const POLL: Duration = Duration::from_millis(50);
const CALL_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    subcommand: Option<Subcommand>,
    /// Number of nodes, 1 to 20 [default: 3]
    #[arg(long)]
    nodes: Option<u32>,
    /// Number of partitions, a power of two up to 1,024 [default: 16]
    #[arg(long)]
    partitions: Option<u32>,
    /// Where nodes keep data and logs; started again on it, the cluster goes on where it was.
    /// Without it: a temporary folder, removed at the end
    #[arg(long)]
    data: Option<PathBuf>,
    /// First port: node i listens on PORT + 10 i for clients, on the next one for peers, and on the
    /// one after that for gossip (UDP)
    /// [default: 2600]
    #[arg(long)]
    port: Option<u16>,
    /// Nodes speak TLS only; certificates for admins and for applications lie in <data>/tls
    #[arg(long)]
    tls: bool,
    /// When a node dies, say so and go on with the others
    #[arg(long)]
    keep_going: bool,
    /// When the command has ended well, go on until Ctrl-C
    #[arg(long, requires = "command")]
    stay: bool,
    /// How long to wait until the cluster serves, seconds
    #[arg(long, default_value_t = 120)]
    start_within_s: u64,
    /// Run this once the cluster serves, with RINGFOLD_ENDPOINTS set; end with its exit code
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Starts or drains nodes of the running `ringfold dev` that --endpoints names, until it has
    /// NODES of them and is at rest; writers go on
    Scale(scale::Args),
}

/// What `-o json` says once the cluster serves.
#[derive(Serialize)]
struct Serving<'a> {
    cluster_id: Uuid,
    partitions: u32,
    data: &'a std::path::Path,
    endpoints: Vec<String>,
    nodes: Vec<ServingNode<'a>>,
}

#[derive(Serialize)]
struct ServingNode<'a> {
    name: &'a str,
    pid: Option<u32>,
    endpoint: String,
    peer_address: String,
    data: &'a std::path::Path,
    log: &'a std::path::Path,
}

/// Runs the cluster, or scales a running one, and returns the exit code. Call it from the main thread
/// (see `process`).
pub async fn run(args: Args, global: &Global) -> Result<u8, CliError> {
    match args.subcommand {
        Some(Subcommand::Scale(args)) => scale::run(args, global).await,
        None => run_cluster(args, global.output).await,
    }
}

async fn run_cluster(args: Args, format: Format) -> Result<u8, CliError> {
    let wanted =
        Wanted { nodes: args.nodes, partitions: args.partitions, port: args.port, tls: args.tls };
    // What can be refused is refused before anything is written.
    settle(wanted, None, Uuid::nil())?;
    let binary = process::node_binary()?;
    let mut signals = Signals::new()?;
    let folder = Folder::open(args.data.as_deref())?;
    let settled = settle(wanted, folder.remembered()?, Uuid::new_v4())?;
    let plans = plan::nodes(&settled, folder.path());
    process::check_ports(&plans)?;
    folder.remember(&settled)?;
    folder.gossip_key(&format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))?;
    let tls = match settled.tls {
        true => Some(certificates::make(folder.path())?),
        false => None,
    };
    say(format_args!(
        "starting {} nodes in {}{}",
        settled.nodes(),
        folder.path().display(),
        if folder.is_temporary() { " (removed at the end)" } else { "" }
    ));
    let mut nodes = Nodes::start(&plans, &binary)?;
    let cluster = Cluster { args: &args, folder: &folder, binary, settled, plans, tls, format };
    let end = cluster.drive(&mut nodes, &mut signals).await;
    if nodes.any_left() {
        say(format_args!("stopping the nodes"));
    }
    let hurry = async {
        signals.next().await;
    };
    for complaint in nodes.stop(hurry).await {
        say(format_args!("{complaint}"));
    }
    let closed = folder.close();
    let code = end?;
    closed?;
    Ok(code)
}

struct Cluster<'a> {
    args: &'a Args,
    folder: &'a Folder,
    binary: PathBuf,
    settled: Remembered,
    plans: Vec<NodePlan>,
    /// As an admin.
    tls: Option<Tls>,
    format: Format,
}

impl Cluster<'_> {
    /// From started nodes to the end of everything but them.
    async fn drive(mut self, nodes: &mut Nodes, signals: &mut Signals) -> Result<u8, CliError> {
        let started = Instant::now();
        let died = |end: End| CliError::other(end.message);
        // Whoever asks before the cluster serves, waits.
        let (calls, mut asked) = mpsc::channel(1);
        if let Err(e) = control::listen(self.settled.port, calls.clone()) {
            say(format_args!("`ringfold dev scale` will not reach this cluster: {e}"));
        }
        loop {
            tokio::select! {
                served = self.serve() => break served?,
                end = nodes.next_end() => match end.is_removed {
                    // Its removal was the last that was heard before this began.
                    true => self.forget(end.number).await?,
                    false => return Err(died(end)),
                },
                s = signals.next() => return Ok(128 + s.as_raw() as u8),
            }
        }
        self.introduce(nodes, started.elapsed())?;
        let endpoints = self.endpoints().join(",");
        let mut beside = match &self.args.command[..] {
            [] => None,
            command => Some(Beside::start(command, &self.environment(&endpoints))?),
        };
        loop {
            let ended = async {
                match &mut beside {
                    Some(beside) => beside.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                code = ended => {
                    let code = code?;
                    if code != 0 || !self.args.stay {
                        return Ok(code);
                    }
                    beside = None;
                    say(format_args!("the command has ended well; the cluster serves until Ctrl-C"));
                }
                end = nodes.next_end() => {
                    if end.is_removed {
                        self.forget(end.number).await?;
                        continue;
                    }
                    if self.args.keep_going && nodes.any_left() {
                        say(format_args!("{}", end.message));
                        continue;
                    }
                    if let Some(beside) = &mut beside {
                        beside.stop().await;
                    }
                    let action = if self.args.keep_going {
                        "no node is left; start it again on the same --data"
                    } else {
                        "start it again on the same --data, or with --keep-going to go on without the node"
                    };
                    return Err(died(end).action(action));
                }
                call = asked.recv() => if let Some(call) = call {
                    let answer = self.answer(call.ask, nodes).await;
                    // Whoever asked may have gone; what was done stays.
                    let _ = call.reply.send(answer);
                },
                s = signals.next() => match &mut beside {
                    None => return Ok(0),
                    // The terminal has sent it to the command as well, which decides what it means.
                    Some(_) if s == Signal::INT && beside::in_foreground() => {}
                    Some(beside) if s == Signal::INT => beside.signal(Signal::INT),
                    Some(beside) => {
                        beside.stop().await;
                        return Ok(128 + s.as_raw() as u8);
                    }
                },
            }
        }
    }

    /// Variables with which `ringfold` reaches the cluster.
    fn environment(&self, endpoints: &str) -> Vec<(&'static str, OsString)> {
        let mut all = vec![("RINGFOLD_ENDPOINTS", endpoints.into())];
        if self.settled.tls {
            all.extend(certificates::environment(self.folder.path()));
        }
        all
    }

    fn endpoints(&self) -> Vec<String> {
        self.plans.iter().map(NodePlan::endpoint).collect()
    }

    /// Creates the cluster where there is none yet, and waits until every node knows a leader of
    /// every partition.
    async fn serve(&mut self) -> Result<(), CliError> {
        let spinner = spinner("waiting for the nodes");
        let within = Duration::from_secs(self.args.start_within_s);
        let end = Instant::now() + within;
        let channels = (self.plans.iter())
            .map(|plan| Ok(ClusterClient::new(channel(plan, self.tls.clone())?)))
            .collect::<Result<Vec<_>, CliError>>()?;
        let Some(first) = channels.first() else {
            return Ok(());
        };
        if !self.settled.bootstrapped {
            self.bootstrap(first.clone(), end).await?;
        }
        for (plan, mut client) in self.plans.iter().zip(channels) {
            loop {
                let topology = client.topology(TopologyRequest {}).await;
                let missing = match &topology {
                    Ok(topology) => plan::missing(topology.get_ref(), &self.settled),
                    Err(status) => Some(format!("does not answer: {}", status.message())),
                };
                let Some(missing) = missing else { break };
                let missing = format!("{} {missing}", plan.name);
                if Instant::now() >= end {
                    return Err(self.late(within, &missing, plan));
                }
                spinner.set_message(missing);
                tokio::time::sleep(POLL).await;
            }
        }
        spinner.finish_and_clear();
        Ok(())
    }

    async fn bootstrap(
        &mut self,
        mut first: ClusterClient<Channel>,
        end: Instant,
    ) -> Result<(), CliError> {
        let request = BootstrapRequest {
            cluster_id: self.settled.cluster_id.to_string(),
            partitions: self.settled.partitions,
            replication_factor: plan::replication_factor(self.settled.nodes()),
            initial_members: self.settled.nodes(),
            ..BootstrapRequest::default()
        };
        loop {
            match first.bootstrap(request.clone()).await {
                Ok(_) => break,
                Err(status) => {
                    // Until the node listens, and while it creates the cluster. Said again with the
                    // same id it does no harm.
                    let again = matches!(
                        status.code(),
                        Code::Unavailable
                            | Code::DeadlineExceeded
                            | Code::Cancelled
                            | Code::Unknown
                    );
                    if !again {
                        return Err(CliError::from(status));
                    }
                    if Instant::now() >= end {
                        let within = Duration::from_secs(self.args.start_within_s);
                        let missing = format!("node-0 does not answer: {}", status.message());
                        return Err(self.late(within, &missing, &self.plans[0]));
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        self.settled.bootstrapped = true;
        self.folder.remember(&self.settled)
    }

    fn late(&self, within: Duration, missing: &str, plan: &NodePlan) -> CliError {
        let log = process::log_tail(&plan.log_file, 0).unwrap_or_else(|e| e.to_string());
        CliError::new(
            Exit::Unavailable,
            format!(
                "the cluster does not serve after {} s: {missing}. The end of {}:\n{}",
                within.as_secs(),
                plan.log_file.display(),
                log
            ),
        )
        .action("read that log, or wait longer with --start-within-s")
    }

    fn introduce(&self, nodes: &Nodes, took: Duration) -> Result<(), CliError> {
        let endpoints = self.endpoints();
        say(format_args!(
            "{} nodes serve {} partitions after {:.1} s, at {}",
            self.settled.nodes(),
            self.settled.partitions,
            took.as_secs_f64(),
            endpoints.join(", ")
        ));
        if self.args.command.is_empty() {
            let port = self.settled.port;
            let more = if port == 2600 && !self.settled.tls {
                String::new()
            } else {
                let all = self.environment(&endpoints.join(","));
                let line = |(name, value): &(&str, OsString)| {
                    format!("\n  export {name}={}", value.to_string_lossy())
                };
                all.iter().map(line).collect()
            };
            say(format_args!(
                "try it from another terminal:{more}\n  \
                 ringfold append customer-42 --type Registered --data '{{\"name\":\"Ada\"}}'\n  \
                 ringfold lookup customer-42\n  \
                 ringfold dev scale 5\n\
                 Ctrl-C ends it; logs are {}",
                self.folder.path().join("node-<i>.log").display()
            ));
        }
        if self.format == Format::Json {
            let serving = Serving {
                cluster_id: self.settled.cluster_id,
                partitions: self.settled.partitions,
                data: self.folder.path(),
                endpoints,
                nodes: (self.plans.iter())
                    .map(|plan| ServingNode {
                        name: &plan.name,
                        pid: nodes.pid(plan.number),
                        endpoint: plan.endpoint(),
                        peer_address: plan.peer_address(),
                        data: &plan.data_dir,
                        log: &plan.log_file,
                    })
                    .collect(),
            };
            let mut out = Out::new(Format::Json);
            out.json(&serving)?;
            out.flush()?;
        }
        Ok(())
    }
}

fn channel(plan: &NodePlan, tls: Option<Tls>) -> Result<Channel, CliError> {
    let endpoint = Endpoint::from_shared(plan.endpoint())
        .map_err(|e| CliError::other(format!("{}: {e}", plan.endpoint())))?;
    Ok(lazy_channel(&endpoint.connect_timeout(CALL_WITHIN).timeout(CALL_WITHIN), tls))
}

impl From<PlanError> for CliError {
    fn from(e: PlanError) -> Self {
        CliError::new(Exit::Usage, e.to_string())
    }
}
