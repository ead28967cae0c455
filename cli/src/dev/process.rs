//! Processes of `dev`: started so that they die with it, ended politely, then not.
use super::plan::{NodePlan, tail};
use crate::error::{CliError, Exit};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::Instant;

pub const STOP_WITHIN: Duration = Duration::from_secs(10);
/// A panic with its backtrace fits.
const TAIL_LINES: usize = 60;
const TAIL_BYTES: u64 = 32 << 10;
/// How a node ends that was removed from its cluster.
const REMOVED_EXIT: i32 = 5;
const BINARY: &str = "ringfold-node";
/// Names the node's binary where it does not lie beside this one.
const BINARY_VARIABLE: &str = "RINGFOLD_NODE_BIN";

/// Finds `ringfold-node`.
pub fn node_binary() -> Result<PathBuf, CliError> {
    let (path, named) = match std::env::var_os(BINARY_VARIABLE) {
        Some(path) => (PathBuf::from(path), true),
        None => {
            let own = std::env::current_exe()
                .map_err(|e| CliError::other(format!("cannot find this program's folder: {e}")))?;
            (own.with_file_name(BINARY), false)
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    let message = if named {
        format!("{BINARY_VARIABLE} is {}, which is no file", path.display())
    } else {
        format!("there is no {}", path.display())
    };
    Err(CliError::new(Exit::Other, message).action(format!(
        "build it with `make build`, or set {BINARY_VARIABLE} to the path of {BINARY}"
    )))
}

/// Refuses ports that others listen on, before anything is started.
pub fn check_ports(nodes: &[NodePlan]) -> Result<(), CliError> {
    for node in nodes {
        let listen = |port| TcpListener::bind(("127.0.0.1", port)).map(drop);
        for (port, whom, bound) in [
            (node.client_port, "clients", listen(node.client_port)),
            (node.peer_port, "peers", listen(node.peer_port)),
            (
                node.gossip_port,
                "gossip, UDP",
                UdpSocket::bind(("127.0.0.1", node.gossip_port)).map(drop),
            ),
            (node.http_port, "health and metrics", listen(node.http_port)),
        ] {
            if let Err(e) = bound {
                return Err(CliError::new(
                    Exit::Other,
                    format!("port {port} (of {}, for {whom}) cannot be used: {e}", node.name),
                )
                .action("end what listens there, or choose other ports with --port"));
            }
        }
    }
    Ok(())
}

/// Lets the kernel send `signal` to the process once ours is gone, however it goes. The kernel ties
/// this to the thread that forks: spawn from the main thread only.
pub fn dies_with_us(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let set = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // Ours may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(set);
    }
}

pub fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    if let Some(pid) = pid {
        // It is not reaped yet, so the number is still its own; it may have ended.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

struct Node {
    plan: NodePlan,
    child: Child,
    /// Length of its log when it was started.
    log_start: u64,
    ended: bool,
    /// It is no member any more and ends by itself, or is told to.
    leaving: Option<Leaving>,
}

#[derive(Clone, Copy)]
struct Leaving {
    at: Instant,
    signal: Signal,
    grace: Duration,
}

/// A node that ended, though nobody asked it to.
#[derive(Debug)]
pub struct End {
    pub number: u32,
    /// It is no member any more, and nothing is left of it.
    pub is_removed: bool,
    /// Which, how, and the end of its log.
    pub message: String,
}

/// Where tokio reads how many threads it may start.
const WORKERS_VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// The running nodes.
#[derive(Default)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Starts all of them. Call it from the main thread.
    pub fn start(plans: &[NodePlan], binary: &Path) -> Result<Self, CliError> {
        let mut nodes = Self::default();
        for plan in plans {
            nodes.spawn(plan, binary, plans.len())?;
        }
        Ok(nodes)
    }

    /// Starts one more. Call it from the main thread.
    pub fn add(&mut self, plan: &NodePlan, binary: &Path) -> Result<(), CliError> {
        let sharing = self.0.iter().filter(|n| !n.ended).count() + 1;
        self.spawn(plan, binary, sharing)
    }

    /// `sharing`: so many nodes have the machine's cores between them, itself included.
    fn spawn(&mut self, plan: &NodePlan, binary: &Path, sharing: usize) -> Result<(), CliError> {
        let failed = |what: &str, e: io::Error| {
            CliError::other(format!("cannot start {}: {what}: {e}", plan.name))
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&plan.log_file)
            .map_err(|e| failed(&plan.log_file.display().to_string(), e))?;
        let log_start = log.metadata().map(|m| m.len()).unwrap_or(0);
        let err = log.try_clone().map_err(|e| failed(&plan.log_file.display().to_string(), e))?;
        let mut command = Command::new(binary);
        command
            .args(plan.args())
            .env_remove(BINARY_VARIABLE)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(err)
            // Ctrl-C is for us: nodes are ended in order, not all at once by the terminal.
            .process_group(0)
            .kill_on_drop(true);
        if std::env::var_os(WORKERS_VARIABLE).is_none() {
            // Threads beyond the cores would only take turns.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env(WORKERS_VARIABLE, (cores / sharing).max(1).to_string());
        }
        dies_with_us(&mut command, Signal::KILL);
        let child = command.spawn().map_err(|e| failed(&binary.display().to_string(), e))?;
        self.0.push(Node { plan: plan.clone(), child, log_start, ended: false, leaving: None });
        Ok(())
    }

    pub fn pid(&self, number: u32) -> Option<u32> {
        self.0.iter().find(|n| n.plan.number == number).and_then(|n| n.child.id())
    }

    pub fn any_left(&self) -> bool {
        self.0.iter().any(|n| !n.ended)
    }

    /// Expects a removed node to end by itself, or helps it: SIGTERM after `grace`, SIGKILL after as
    /// long again. `false`: it does not run.
    pub fn expect_end(&mut self, number: u32, grace: Duration) -> bool {
        let Some(node) = self.0.iter_mut().find(|n| n.plan.number == number && !n.ended) else {
            self.0.retain(|n| n.plan.number != number);
            return false;
        };
        node.leaving.get_or_insert(Leaving {
            at: Instant::now() + grace,
            signal: Signal::TERM,
            grace,
        });
        true
    }

    /// Waits until a node ends by itself; for ever when none is left. May be dropped and called
    /// again.
    pub async fn next_end(&mut self) -> End {
        loop {
            let running = || self.0.iter().filter(|n| !n.ended);
            let due = running().filter_map(|n| n.leaving.map(|l| l.at)).min();
            if running().next().is_none() {
                return std::future::pending().await;
            }
            let waits = (self.0.iter_mut()).filter(|n| !n.ended).map(|node| {
                Box::pin(async {
                    let status = node.child.wait().await;
                    (node, status)
                })
            });
            let ended = tokio::select! {
                ((node, status), ..) = futures::future::select_all(waits) => {
                    node.ended = true;
                    Some(end(node, status))
                }
                () = sleep_until(due) => None,
            };
            if let Some(end) = ended {
                if end.is_removed {
                    self.0.retain(|n| n.plan.number != end.number);
                }
                return end;
            }
            let now = Instant::now();
            for node in self.0.iter_mut().filter(|n| !n.ended) {
                if let Some(l) = node.leaving
                    && l.at <= now
                {
                    signal(&node.child, l.signal);
                    node.leaving = Some(Leaving { at: now + l.grace, signal: Signal::KILL, ..l });
                }
            }
        }
    }

    /// Ends all that run: SIGTERM, and SIGKILL after 10 s or as soon as `hurry` is done. Returns
    /// what went wrong, a line each.
    pub async fn stop(&mut self, hurry: impl Future<Output = ()>) -> Vec<String> {
        let mut complaints = Vec::new();
        for node in self.0.iter().filter(|n| !n.ended) {
            signal(&node.child, Signal::TERM);
        }
        let all =
            futures::future::join_all((self.0.iter_mut().filter(|n| !n.ended)).map(|node| async {
                let status = node.child.wait().await;
                node.ended = true;
                (node.plan.clone(), status)
            }));
        tokio::select! {
            ended = all => {
                for (plan, status) in ended {
                    match status {
                        Ok(status) if status.success() => {}
                        Ok(status) => complaints.push(format!(
                            "{} ended with {status}; its log is {}",
                            plan.name,
                            plan.log_file.display()
                        )),
                        Err(e) => complaints.push(format!("{}: {e}", plan.name)),
                    }
                }
                return complaints;
            }
            () = tokio::time::sleep(STOP_WITHIN) => {}
            () = hurry => {}
        }
        for node in self.0.iter_mut().filter(|n| !n.ended) {
            complaints.push(format!("{} did not end and was killed", node.plan.name));
            let _ = node.child.kill().await;
            node.ended = true;
        }
        complaints
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn end(node: &Node, status: io::Result<ExitStatus>) -> End {
    let is_removed =
        node.leaving.is_some() || status.as_ref().is_ok_and(|s| s.code() == Some(REMOVED_EXIT));
    let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
    let log = &node.plan.log_file;
    let told = match log_tail(log, node.log_start) {
        Ok(lines) if lines.is_empty() => format!("its log {} is empty", log.display()),
        Ok(lines) => format!("the end of its log {}:\n{lines}", log.display()),
        Err(e) => format!("its log {} cannot be read: {e}", log.display()),
    };
    End {
        number: node.plan.number,
        is_removed,
        message: format!("{} ended unexpectedly ({status}); {told}", node.plan.name),
    }
}

/// The last lines of a log, of what was written after its first `from` bytes.
pub fn log_tail(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(tail(&bytes, TAIL_LINES))
}

#[cfg(test)]
mod tests;
