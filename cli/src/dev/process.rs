//! Processes of `dev`: started so that they die with it, ended politely, then not.
use super::plan::{NodePlan, tail};
use crate::error::{CliError, Exit};
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

const STOP_WITHIN: Duration = Duration::from_secs(10);
/// A panic with its backtrace fits.
const TAIL_LINES: usize = 60;
const TAIL_BYTES: u64 = 32 << 10;
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
fn dies_with_us(command: &mut Command, signal: Signal) {
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

fn signal(child: &Child, signal: Signal) {
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
}

/// A node that ended though nobody asked it to.
#[derive(Debug)]
pub struct Death {
    /// Which, how, and the end of its log.
    pub message: String,
}

/// Where tokio reads how many threads it may start.
const WORKERS_VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// The running nodes.
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Starts all of them. Call it from the main thread.
    pub fn start(plans: &[NodePlan], binary: &Path) -> Result<Self, CliError> {
        let mut nodes = Self(Vec::new());
        // The nodes share the cores: threads beyond them would only take turns.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (cores / plans.len().max(1)).max(1);
        for plan in plans {
            let failed = |what: &str, e: io::Error| {
                CliError::other(format!("cannot start {}: {what}: {e}", plan.name))
            };
            let log = File::options()
                .create(true)
                .append(true)
                .open(&plan.log_file)
                .map_err(|e| failed(&plan.log_file.display().to_string(), e))?;
            let log_start = log.metadata().map(|m| m.len()).unwrap_or(0);
            let err =
                log.try_clone().map_err(|e| failed(&plan.log_file.display().to_string(), e))?;
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
                command.env(WORKERS_VARIABLE, workers.to_string());
            }
            dies_with_us(&mut command, Signal::KILL);
            let child = command.spawn().map_err(|e| failed(&binary.display().to_string(), e))?;
            nodes.0.push(Node { plan: plan.clone(), child, log_start, ended: false });
        }
        Ok(nodes)
    }

    pub fn pid(&self, index: usize) -> Option<u32> {
        self.0.get(index).and_then(|n| n.child.id())
    }

    pub fn any_left(&self) -> bool {
        self.0.iter().any(|n| !n.ended)
    }

    /// Waits until a node ends by itself; for ever when none is left. May be dropped and called
    /// again.
    pub async fn next_death(&mut self) -> Death {
        let waits: Vec<_> = (self.0.iter_mut())
            .filter(|n| !n.ended)
            .map(|node| {
                Box::pin(async {
                    let status = node.child.wait().await;
                    (node, status)
                })
            })
            .collect();
        if waits.is_empty() {
            return std::future::pending().await;
        }
        let ((node, status), ..) = futures::future::select_all(waits).await;
        node.ended = true;
        let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        let log = &node.plan.log_file;
        let told = match log_tail(log, node.log_start) {
            Ok(lines) if lines.is_empty() => format!("its log {} is empty", log.display()),
            Ok(lines) => format!("the end of its log {}:\n{lines}", log.display()),
            Err(e) => format!("its log {} cannot be read: {e}", log.display()),
        };
        Death { message: format!("{} ended unexpectedly ({status}); {told}", node.plan.name) }
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

/// The last lines of a log, of what was written after its first `from` bytes.
pub fn log_tail(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(tail(&bytes, TAIL_LINES))
}

/// The command that runs beside the nodes.
pub struct Beside(Child);

impl Beside {
    /// Starts it with our input and output. Call it from the main thread.
    pub fn start(command: &[OsString], endpoints: &str) -> Result<Self, CliError> {
        let Some((program, args)) = command.split_first() else {
            return Err(CliError::new(Exit::Usage, "there is no command after --"));
        };
        let mut child = Command::new(program);
        child.args(args).env("RINGFOLD_ENDPOINTS", endpoints).kill_on_drop(true);
        dies_with_us(&mut child, Signal::TERM);
        child.spawn().map(Self).map_err(|e| {
            CliError::other(format!("cannot run {}: {e}", program.to_string_lossy()))
                .action("name a program that is in PATH, after `--`")
        })
    }

    /// Its exit code, or 128 and the signal that ended it, as shells say it.
    pub async fn wait(&mut self) -> Result<u8, CliError> {
        let status = (self.0.wait().await)
            .map_err(|e| CliError::other(format!("cannot wait for the command: {e}")))?;
        Ok(exit_code(status))
    }

    pub fn signal(&self, what: Signal) {
        signal(&self.0, what);
    }

    /// SIGTERM, and SIGKILL after 10 s.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(STOP_WITHIN, self.0.wait()).await.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 1,
    }
}

/// Whether the terminal sends Ctrl-C to us and to what we run alike.
pub fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(folder: &Path) -> NodePlan {
        NodePlan {
            index: 0,
            name: "node-0".into(),
            client_port: 1,
            peer_port: 2,
            gossip_port: 3,
            gossip_key_file: folder.join("gossip.key"),
            data_dir: folder.join("d"),
            log_file: folder.join("node-0.log"),
            seeds: vec![],
        }
    }

    /// A stand-in for `ringfold-node`.
    fn script(folder: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_node_that_dies_is_told_with_the_end_of_this_runs_log() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path());
        std::fs::write(&plan.log_file, "from an earlier run\n").unwrap();
        let binary = script(folder.path(), "echo what went wrong >&2; exit 4");
        let mut nodes = Nodes::start(&[plan], &binary).unwrap();
        let death = nodes.next_death().await;
        assert!(death.message.starts_with("node-0 "), "{}", death.message);
        assert!(death.message.contains("exit status: 4"), "{}", death.message);
        assert!(death.message.contains("what went wrong"), "{}", death.message);
        assert!(!death.message.contains("earlier"), "{}", death.message);
        assert!(!nodes.any_left());
    }

    #[tokio::test]
    async fn nodes_end_when_asked_and_are_killed_when_they_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let polite = script(folder.path(), "trap 'exit 0' TERM; while :; do sleep 0.05; done");
        let mut nodes = Nodes::start(&[plan(folder.path())], &polite).unwrap();
        // Let it set its trap.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let complaints = nodes.stop(std::future::pending()).await;
        assert_eq!(complaints, Vec::<String>::new());

        let deaf = script(folder.path(), "trap '' TERM; while :; do sleep 0.05; done");
        let mut nodes = Nodes::start(&[plan(folder.path())], &deaf).unwrap();
        let pid = Pid::from_raw(nodes.pid(0).unwrap() as i32).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let complaints = nodes.stop(std::future::ready(())).await;
        assert_eq!(complaints, ["node-0 did not end and was killed"]);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[tokio::test]
    async fn a_commands_exit_code_is_kept() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let command = ["sh".into(), "-c".into(), script.into()];
            let mut beside = Beside::start(&command, "http://e").unwrap();
            assert_eq!(beside.wait().await.unwrap(), code);
        }
        let command = ["sh".into(), "-c".into(), "test $RINGFOLD_ENDPOINTS = a,b".into()];
        let mut beside = Beside::start(&command, "a,b").unwrap();
        assert_eq!(beside.wait().await.unwrap(), 0);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut plan = plan(Path::new("/d"));
        plan.client_port = taken.local_addr().unwrap().port();
        let error = check_ports(&[plan.clone()]).unwrap_err();
        assert!(error.message.contains(&plan.client_port.to_string()), "{error:?}");
        assert!(error.message.contains("node-0"), "{error:?}");
    }
}
