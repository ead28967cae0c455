//! What tests share on one machine: binaries, folders, ports, turns.
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::LocalCluster;

/// Below the range that the kernel takes outgoing ports from.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Multiplies the durations of long tests (`RINGFOLD_TEST_FACTOR`, default 1).
pub fn factor() -> u32 {
    std::env::var("RINGFOLD_TEST_FACTOR")
        .map_or(1, |v| v.parse().expect("RINGFOLD_TEST_FACTOR is a whole number from 1"))
}

/// A binary of the workspace: from the environment, or beside this test's folder.
///
/// # Panics
/// When it is not there, with what to do.
pub fn binary(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let path = profile_dir().join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --bins` first, or name it in {variable}",
        path.display()
    );
    path
}

/// `<target>/<profile>`: tests run from `<target>/<profile>/deps`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_path_buf()
}

/// Where clusters and other tests keep their files: a folder per test process, swept by the next.
pub fn scratch() -> &'static Path {
    static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
        let base = profile_dir().parent().unwrap().join("tmp/ringfold");
        fs::create_dir_all(&base).unwrap();
        for entry in fs::read_dir(&base).unwrap() {
            let path = entry.unwrap().path();
            let pid = path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                unmount_below(&path);
                let _ = fs::remove_dir_all(&path);
            }
        }
        let mine = base.join(std::process::id().to_string());
        fs::create_dir_all(&mine).unwrap();
        mine
    });
    &SCRATCH
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|l| l.split(' ').nth(1)) {
        if Path::new(mount).starts_with(dir) {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

/// The machine's one place for a cluster, held until it is dropped.
pub struct Turn(#[allow(dead_code)] File); // closing the file gives the lock back

impl Turn {
    pub async fn take() -> Arc<Self> {
        let path = scratch().parent().unwrap().join("lock");
        let file = File::create(path).unwrap();
        // SAFETY: flock takes a descriptor that is open for as long as `file` lives.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Arc::new(Self(file))
    }

    /// The turn of a cluster that runs already, for another beside it.
    pub fn shared(cluster: &LocalCluster) -> Arc<Self> {
        cluster.turn.clone()
    }
}

/// `n` ports that nobody listens on.
pub fn free_ports(n: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = u32::from(PORTS.end - PORTS.start);
    let mut ports = Vec::with_capacity(n);
    for _ in 0..span {
        if ports.len() == n {
            return ports;
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = (std::process::id().wrapping_mul(37).wrapping_add(next)) % span;
        let port = PORTS.start + place as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            ports.push(port);
        }
    }
    panic!("no {n} free ports in {PORTS:?}");
}
