//! Places where a test stops, kills or deceives this process. Only builds with debug assertions have
//! them: elsewhere [`hit`] is empty and gone.
//!
//! The variable `RINGFOLD_FAILPOINTS` names a folder. A test arms the point `p` by a file `p` in it;
//! whichever process comes by first takes it, does what it says and leaves `p.hit`, which says which
//! process and which group it was. So one folder serves a whole cluster, and a point that was armed
//! fires once:
//!
//! | content of the file | what happens at the point |
//! |---|---|
//! | `kill` | SIGKILL to itself |
//! | `hold` | the thread waits until `p.hit` is removed, 20 s at most |
//! | `alter` | [`hit`] answers true, once: the code beside it does the damage |
//! | `alter always` | the same each time, as long as the file is there |
use crate::ids::GroupId;
#[cfg(debug_assertions)]
use armed::Armed;

/// Whether this build has failpoints.
pub const EXISTS: bool = cfg!(debug_assertions);

/// A place named `name`, passed for `group`. True: do the damage that this place knows of.
#[cfg(debug_assertions)]
pub fn hit(name: &str, group: GroupId) -> bool {
    use std::sync::OnceLock;
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var_os("RINGFOLD_FAILPOINTS").map(Armed::new));
    // The meta group's replicas come and go as well: that is not what tests wait for.
    armed.as_ref().is_some_and(|a| group != GroupId::META && a.hit(name, group))
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_: &str, _: GroupId) -> bool {
    false
}

#[cfg(debug_assertions)]
mod armed {
    use crate::ids::GroupId;
    use std::ffi::OsString;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    const HOLD_MAX: Duration = Duration::from_secs(20);

    pub(super) struct Armed {
        dir: PathBuf,
    }

    impl Armed {
        pub(super) fn new(dir: OsString) -> Armed {
            Armed { dir: dir.into() }
        }

        pub(super) fn hit(&self, name: &str, group: GroupId) -> bool {
            let file = self.dir.join(name);
            let Ok(action) = std::fs::read_to_string(&file) else { return false };
            let told = self.dir.join(format!("{name}.hit"));
            if action == "alter always" {
                if told.exists() {
                    return true;
                }
            } else {
                // Who renames it has it.
                let taken = self.dir.join(format!("{name}.taken.{}", std::process::id()));
                if std::fs::rename(&file, &taken).is_err() {
                    return false;
                }
                let _ = std::fs::remove_file(taken);
            }
            if let Err(error) = self.tell(&told, group) {
                tracing::error!(name, %error, "the test does not hear of its failpoint");
            }
            tracing::warn!(name, action, %group, "failpoint");
            match &*action {
                "kill" => die(),
                "hold" => hold(&told),
                action => return action.starts_with("alter"),
            }
            false
        }

        /// All of it or nothing is there for the test to read.
        fn tell(&self, told: &Path, group: GroupId) -> std::io::Result<()> {
            let pid = std::process::id();
            let written = told.with_extension(format!("hit.{pid}"));
            std::fs::write(&written, format!("{pid} {}", group.0))?;
            std::fs::rename(written, told)
        }
    }

    fn die() -> ! {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    fn hold(until_gone: &Path) {
        let start = Instant::now();
        while until_gone.exists() && start.elapsed() < HOLD_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_armed_point_fires_once_and_says_where() {
            let dir = tempfile::tempdir().unwrap();
            let armed = Armed::new(dir.path().into());
            let group = GroupId::of_partition(4);
            assert!(!armed.hit("p", group));
            std::fs::write(dir.path().join("p"), "alter").unwrap();
            assert!(!armed.hit("q", group));
            assert!(armed.hit("p", group));
            assert!(!armed.hit("p", group));
            let told = std::fs::read_to_string(dir.path().join("p.hit")).unwrap();
            assert_eq!(told, format!("{} 5", std::process::id()));
        }

        #[test]
        fn a_point_that_always_alters_does_so_until_it_is_disarmed() {
            let dir = tempfile::tempdir().unwrap();
            let armed = Armed::new(dir.path().into());
            std::fs::write(dir.path().join("p"), "alter always").unwrap();
            assert!(armed.hit("p", GroupId(1)) && armed.hit("p", GroupId(1)));
            std::fs::remove_file(dir.path().join("p")).unwrap();
            assert!(!armed.hit("p", GroupId(1)));
        }

        #[test]
        fn a_held_point_goes_on_when_the_test_says_so() {
            let dir = tempfile::tempdir().unwrap();
            let armed = Armed::new(dir.path().into());
            std::fs::write(dir.path().join("p"), "hold").unwrap();
            std::thread::scope(|scope| {
                let held = scope.spawn(|| armed.hit("p", GroupId(1)));
                let hit = dir.path().join("p.hit");
                while !hit.exists() {
                    std::thread::yield_now();
                }
                assert!(!held.is_finished());
                std::fs::remove_file(hit).unwrap();
                assert!(!held.join().unwrap());
            });
        }
    }
}
