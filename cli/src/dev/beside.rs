//! The command that runs beside the nodes.
use super::process::{STOP_WITHIN, dies_with_us, signal};
use crate::error::{CliError, Exit};
use rustix::process::Signal;
use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use tokio::process::{Child, Command};

/// The command that runs beside the nodes.
pub struct Beside(Child);

impl Beside {
    /// Starts it with our input and output. Call it from the main thread.
    pub fn start(command: &[OsString], environment: &[(&str, OsString)]) -> Result<Self, CliError> {
        let Some((program, args)) = command.split_first() else {
            return Err(CliError::new(Exit::Usage, "there is no command after --"));
        };
        let mut child = Command::new(program);
        child
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true);
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

    #[tokio::test]
    async fn a_commands_exit_code_is_kept() {
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let command = ["sh".into(), "-c".into(), script.into()];
            let mut beside =
                Beside::start(&command, &[("RINGFOLD_ENDPOINTS", "http://e".into())]).unwrap();
            assert_eq!(beside.wait().await.unwrap(), code);
        }
        let command = ["sh".into(), "-c".into(), "test $RINGFOLD_ENDPOINTS = a,b".into()];
        let mut beside = Beside::start(&command, &[("RINGFOLD_ENDPOINTS", "a,b".into())]).unwrap();
        assert_eq!(beside.wait().await.unwrap(), 0);
    }
}
