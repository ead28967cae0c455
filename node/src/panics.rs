//! What a panic ends: the group, the read or the opening that it was caught in, or else the process.
//! A task or a thread that is gone without a word would leave a node half alive, which peers and
//! clients take for a whole one.
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A part of the node panicked where nothing could be closed in its stead (docs/settings.md).
pub const EXIT_PANIC: i32 = 6;

thread_local! {
    static CAUGHT_HERE: Cell<u32> = const { Cell::new(0) };
}

/// Runs `f`, and gives its panic to the caller, who closes what it was about.
///
/// # Errors
/// What `f` panicked with.
pub fn catch<T>(f: impl FnOnce() -> T) -> std::thread::Result<T> {
    CAUGHT_HERE.set(CAUGHT_HERE.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    CAUGHT_HERE.set(CAUGHT_HERE.get() - 1);
    outcome
}

/// From now on a panic outside of [`catch`] ends the process, in whichever thread or task. What was
/// acknowledged is in the synced logs.
pub fn end_process_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        // Gossip helps and never decides: it starts anew by itself when its library gives up.
        let gossips = info.location().is_some_and(|l| l.file().contains("/chitchat-"));
        if CAUGHT_HERE.get() > 0 || gossips {
            return;
        }
        let thread = std::thread::current();
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            at,
            thread = thread.name().unwrap_or(""),
            "a part of the node panicked (see above): the process ends rather than go on without it"
        );
        std::process::exit(EXIT_PANIC);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Output};

    const CHILD: &str = "RINGFOLD_TEST_PANICS_CHILD";

    /// Runs this test binary again, with only the test `child_process` in it.
    fn child(what: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "panics::tests::child_process", "--nocapture"])
            .env(CHILD, what)
            .output()
            .unwrap()
    }

    /// What the others start: does nothing by itself.
    #[test]
    fn child_process() {
        let Ok(what) = std::env::var(CHILD) else { return };
        tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
        end_process_on_panic();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            match &*what {
                "task" => drop(tokio::spawn(async { panic!("planted") })),
                "blocking" => drop(tokio::task::spawn_blocking(|| panic!("planted"))),
                "thread" => drop(std::thread::spawn(|| panic!("planted"))),
                "caught" => {
                    assert!(catch(|| panic!("planted")).is_err());
                    std::process::exit(0);
                }
                _ => {
                    let _ = catch(|| ());
                    let _ = catch(|| panic!("planted"));
                    tokio::task::spawn_blocking(|| panic!("planted behind one that was caught"));
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        });
        std::process::exit(0);
    }

    #[test]
    fn a_panic_in_a_task_or_a_thread_ends_the_process_and_says_so() {
        for what in ["task", "blocking", "thread", "behind"] {
            let out = child(what);
            let told = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(EXIT_PANIC), "{what}: {told}");
            assert!(told.contains("the process ends rather than go on without it"), "{told}");
            assert!(told.contains("panics.rs"), "{told}");
        }
    }

    #[test]
    fn a_panic_that_is_caught_ends_nothing_more() {
        let out = child("caught");
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
