//! Places between two steps where a test stops or kills this process. Only builds with debug assertions
//! have them: elsewhere [`hit`] does nothing.
//!
//! The variable `RINGFOLD_FAILPOINTS` names a folder. A test arms the point `p` by a file `p` in it;
//! the operator that comes by takes it, leaves `p.hit` with its process id, and does what the file says:
//!
//! | content of the file | what happens at the point |
//! |---|---|
//! | `kill` | SIGKILL to itself |
//! | `hold` | the look goes on once `p.hit` is removed, after 60 s at most |
//!
//! Points: `observed` (a look was taken, nothing is done yet), `applied` (the objects are as built),
//! `before-<Action>` and `after-<Action>` with the names of [`crate::decide::Action::name`],
//! `restart-agreed` and `restart-handed-over` within a restart, `status-written`.

/// Whether this build has failpoints.
pub const EXISTS: bool = cfg!(debug_assertions);

#[cfg(debug_assertions)]
pub async fn hit(name: &str) {
    use std::{path::PathBuf, sync::OnceLock};
    static DIR: OnceLock<Option<PathBuf>> = OnceLock::new();
    let dir = DIR.get_or_init(|| std::env::var_os("RINGFOLD_FAILPOINTS").map(PathBuf::from));
    if let Some(dir) = dir {
        armed::hit(dir, name).await;
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn hit(_: &str) {}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        path::Path,
        time::{Duration, Instant},
    };

    const HOLD_MAX: Duration = Duration::from_secs(60);
    const LOOK_EVERY: Duration = Duration::from_millis(20);

    pub(super) async fn hit(dir: &Path, name: &str) {
        let file = dir.join(name);
        let Ok(action) = std::fs::read_to_string(&file) else { return };
        // Who renames it has it.
        let me = std::process::id();
        let taken = dir.join(format!("{name}.taken.{me}"));
        if std::fs::rename(&file, &taken).is_err() {
            return;
        }
        let told = dir.join(format!("{name}.hit"));
        let written = std::fs::write(&taken, me.to_string());
        if let Err(error) = written.and_then(|()| std::fs::rename(&taken, &told)) {
            tracing::error!(name, %error, "the test does not hear of its failpoint");
        }
        tracing::warn!(name, action, "failpoint");
        match action.trim() {
            "kill" => die(),
            "hold" => {
                let since = Instant::now();
                while told.exists() && since.elapsed() < HOLD_MAX {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            other => tracing::error!(name, other, "a failpoint is to kill or to hold"),
        }
    }

    /// As a lost machine does: nothing is let go, nothing is written.
    fn die() -> ! {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[tokio::test]
        async fn an_armed_point_holds_once_until_the_test_lets_it_go_on() {
            let dir = tempfile::tempdir().unwrap();
            hit(dir.path(), "before-Drain").await;
            std::fs::write(dir.path().join("before-Drain"), "hold").unwrap();
            let held = tokio::spawn({
                let dir = dir.path().to_owned();
                async move { hit(&dir, "before-Drain").await }
            });
            let told = dir.path().join("before-Drain.hit");
            while !told.exists() {
                tokio::task::yield_now().await;
            }
            assert!(!held.is_finished());
            assert_eq!(std::fs::read_to_string(&told).unwrap(), std::process::id().to_string());
            std::fs::remove_file(told).unwrap();
            held.await.unwrap();
            // It fires once.
            hit(dir.path(), "before-Drain").await;
        }
    }
}
