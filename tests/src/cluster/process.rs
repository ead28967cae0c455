//! Processes of nodes and others: started so that they end with the test, signalled, waited for.
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use super::LocalCluster;
use crate::shim::{Loss, Survivors};

/// How long a node may take to stop after SIGTERM: 10 s, and some for a busy machine.
pub const STOP_MAX: Duration = Duration::from_secs(20);
/// Exit code of a node that was removed.
pub(crate) const REMOVED_EXIT: i32 = 5;

/// Starts a child that gets SIGKILL when this process ends, however it ends.
///
/// The kernel sends it when the *thread* that started the child ends, so one thread, which lives as
/// long as the process, starts them all.
///
/// # Errors
/// Those of `Command::spawn`.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<std::sync::Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        std::sync::Mutex::new(sender)
    });
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe, as code between fork and exec must be.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // It died before the wish was heard.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("the test has ended"));
            }
            Ok(())
        });
    }
    let (answer, answered) = mpsc::channel();
    SPAWNER.lock().unwrap().send((command, answer)).unwrap();
    answered.recv().unwrap()
}

pub fn signal(child: &Child, signal: i32) {
    // SAFETY: the child is ours and not waited for yet, so the pid is still its own.
    let done = unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(done, 0, "kill: {}", io::Error::last_os_error());
}

/// Waits for a child's end.
pub async fn wait_exit(child: &mut Child, max: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + max;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a child has ended; its status stays there to be read.
pub fn has_ended(child: &Child) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(Pid::from_child(child)), look) {
        Ok(status) => status.is_some(),
        // It was read already.
        Err(Errno::CHILD) => true,
        Err(error) => panic!("waitid: {error}"),
    }
}

impl LocalCluster {
    pub fn start_node(&mut self, i: usize) {
        assert!(self.nodes[i].child.is_none(), "node {i} runs already");
        let mut command = self.command(i);
        let log = File::options().create(true).append(true).open(&self.nodes[i].log_path).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = spawn(command).expect("ringfold-node starts");
        self.nodes[i].child = Some(child);
    }

    /// SIGTERM, and nothing more: [`Self::ended`] says when it has ended.
    pub fn tell_to_stop(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGTERM);
    }

    /// Waits until a node has ended by itself; gives the exit code.
    pub async fn ended(&mut self, i: usize, within: Duration) -> Option<i32> {
        let child = self.nodes[i].child.as_mut().expect("it runs");
        let status = wait_exit(child, within).await?;
        self.nodes[i].child = None;
        Some(status.code().unwrap_or(-1))
    }

    /// SIGTERM; gives the exit code.
    pub async fn stop(&mut self, i: usize) -> i32 {
        let mut child = self.nodes[i].child.take().expect("it runs");
        signal(&child, libc::SIGTERM);
        match wait_exit(&mut child, STOP_MAX).await {
            Some(status) => status.code().unwrap_or(-1),
            None => {
                signal(&child, libc::SIGKILL);
                let _ = child.wait();
                panic!("node {i} did not stop within {STOP_MAX:?} of SIGTERM");
            }
        }
    }

    pub fn kill(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("it runs");
        if let Some(status) = child.try_wait().unwrap() {
            panic!("node {i} was to be killed, and had ended by itself: {status}");
        }
        signal(&child, libc::SIGKILL);
        child.wait().unwrap();
    }

    /// As [`Self::kill`], also of one that has ended by itself.
    pub fn crash(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("it runs");
        // One that had ended is a zombie until it is waited for: no harm.
        signal(&child, libc::SIGKILL);
        child.wait().unwrap();
    }

    /// All at one moment, and then what was not synced is gone.
    pub fn kill_all(&mut self) {
        for node in self.running() {
            // One that had ended by itself is a zombie until it is waited for: no harm.
            signal(node.child.as_ref().unwrap(), libc::SIGKILL);
        }
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                child.wait().unwrap();
            }
        }
    }

    /// With `Settings::shim`, of a stopped node.
    pub fn lose_power(&self, i: usize, survivors: Survivors) -> Loss {
        assert!(self.nodes[i].child.is_none(), "node {i} still runs");
        self.nodes[i].shim().drop_unsynced(survivors)
    }

    pub fn pause(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGSTOP);
    }

    pub fn resume(&self, i: usize) {
        signal(self.nodes[i].child.as_ref().expect("it runs"), libc::SIGCONT);
    }

    /// Waits for a node that ends by itself; gives the exit code.
    pub async fn wait_exit(&mut self, i: usize, max: Duration) -> i32 {
        let mut child = self.nodes[i].child.take().expect("it runs");
        match wait_exit(&mut child, max).await {
            Some(status) => status.code().unwrap_or(-1),
            None => {
                self.nodes[i].child = Some(child);
                panic!("node {i} did not end within {max:?}");
            }
        }
    }

    /// The exit code of a node that was started and has ended by itself; of one killed: -1.
    pub fn exited(&mut self, i: usize) -> Option<i32> {
        let child = self.nodes[i].child.as_mut().expect("it was started");
        let status = child.try_wait().unwrap()?;
        self.nodes[i].child = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Whether a node that was started has ended by itself.
    pub fn has_exited(&mut self, i: usize) -> bool {
        self.exited(i).is_some()
    }
}
