//! The operator as a process beside the tests, killed at its failpoints and started again.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use ringfold_tests::cluster::{binary, free_ports, scratch, spawn};

use crate::{Space, tools::image};

/// Starts the operator again whenever it was killed, until it is dropped.
pub struct MortalOperator {
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl MortalOperator {
    pub fn start(space: &Space) -> MortalOperator {
        let dir = scratch().join(&space.name);
        fs::create_dir_all(&dir).expect("a folder");
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, folder, stopped) = (space.name.clone(), dir.clone(), stop.clone());
        let keeper = std::thread::spawn(move || keep(&namespace, &folder, &stopped));
        MortalOperator { dir, stop, keeper: Some(keeper) }
    }

    /// The next time that it comes by each of these, it is killed.
    pub fn arm(&self, points: &[&str]) {
        for point in points {
            fs::write(self.dir.join(point), "kill").expect("an armed failpoint");
        }
    }

    /// Which of them it came by.
    pub fn was_killed_at(&self, points: &[&'static str]) -> Vec<&'static str> {
        let hit = |p: &&&str| self.dir.join(format!("{p}.hit")).exists();
        points.iter().filter(hit).copied().collect()
    }
}

impl Drop for MortalOperator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- operator\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

fn keep(namespace: &str, dir: &Path, stop: &AtomicBool) {
    let mut life = 0;
    while !stop.load(Ordering::Relaxed) {
        life += 1;
        let mut child = launch(namespace, dir, life);
        while !stop.load(Ordering::Relaxed) && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Each life has a Lease of its own: the one before is dead, and nobody has to wait for its to run out.
fn launch(namespace: &str, dir: &Path, life: u32) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
    let mut command = Command::new(binary("ringfold-operator", "RINGFOLD_OPERATOR"));
    command
        .args(["--namespaces", namespace, "--lease-namespace", namespace])
        .args(["--lease-name", &format!("life-{life}"), "--identity", &format!("life-{life}")])
        .args(["--node-image", &image("node")])
        .args(["--http-listen", &format!("127.0.0.1:{}", free_ports(1)[0])])
        .env("RINGFOLD_FAILPOINTS", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    spawn(command).expect("the operator starts")
}
