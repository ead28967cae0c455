//! Processes that a comparison starts, and ends with itself.
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::{cpu, load::TargetArgs};

/// Between setting a load up and measuring it: databases flush and compact what came in.
const REST: Duration = Duration::from_secs(10);

/// Lets the databases rest after a load was set up.
pub async fn rest() {
    tokio::time::sleep(REST).await;
}

/// A folder below `dir` that ends with this value.
///
/// # Errors
/// Nothing can be written there.
pub fn scratch(dir: &Path) -> anyhow::Result<TempDir> {
    tempfile::Builder::new()
        .prefix("ringfold-bench-")
        .tempdir_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))
}

/// This program.
///
/// # Errors
/// The system does not say where it is.
pub fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program")
}

/// The `ringfold` that was given, or the one beside this program.
///
/// # Errors
/// The system does not say where this program is.
pub fn ringfold(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    given.map_or_else(|| Ok(own_program()?.with_file_name("ringfold")), |path| Ok(path.into()))
}

/// A process that ends with this value.
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    pub fn start(name: &'static str, command: &mut Command) -> anyhow::Result<Process> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Process { child, name })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, once it has ended.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn fail_if_ended(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended: {status}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM first: `ringfold dev` then ends its nodes.
        let pid = rustix::process::Pid::from_child(&self.child);
        let asked = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let until = Instant::now() + Duration::from_secs(20);
        while asked.is_ok() && Instant::now() < until {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three nodes of `ringfold dev`.
pub struct Dev {
    process: Process,
    port: u16,
    pub target: TargetArgs,
}

impl Dev {
    /// # Errors
    /// The program cannot be started.
    pub fn start(ringfold: &Path, port: u16, partitions: u32, data: &Path) -> anyhow::Result<Dev> {
        let process = Process::start(
            "ringfold dev",
            Command::new(ringfold)
                .args(["dev", "--nodes", "3"])
                .args(["--port", &port.to_string()])
                .args(["--partitions", &partitions.to_string()])
                .arg("--data")
                .arg(data),
        )?;
        let endpoints = (0..3).map(|n| format!("http://127.0.0.1:{}", port + 10 * n)).collect();
        // As many connections as the echo load has, about.
        let target = TargetArgs { endpoints, channels: 1 };
        Ok(Dev { process, port, target })
    }

    /// Waits until all partitions have leaders.
    ///
    /// # Errors
    /// That takes longer than a minute, or a process ended.
    pub async fn ready(&mut self, beside: &mut [&mut Process]) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        while !is_ready(&self.target).await {
            self.process.fail_if_ended()?;
            for process in beside.iter_mut() {
                process.fail_if_ended()?;
            }
            if Instant::now() > until {
                bail!("the cluster on port {} has not all leaders after a minute", self.port);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    pub fn node_pids(&self) -> Vec<u32> {
        cpu::children_named(self.process.id(), "ringfold-node")
    }
}

async fn is_ready(target: &TargetArgs) -> bool {
    let Ok(client) = target.connect(1).await else {
        return false;
    };
    let Ok(t) = client.topology().await else {
        return false;
    };
    t.epoch > 0
        && t.members.len() == 3
        && t.partition_map.len() == t.partitions as usize
        && t.partition_map.iter().all(|p| p.leader_node_id != 0)
}
