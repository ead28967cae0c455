//! Room on the disk of the data directory: the guard that refuses appends while reads go on, and
//! the ballast, room kept so that a node on a full disk can still start and delete.
mod durable;

pub(crate) use durable::{sync_folder, write_atomically};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const BALLAST: &str = "ballast";
const BALLAST_BYTES_MAX: u64 = 64 << 20;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("the disk of {path} cannot be {action}: {source}")]
pub struct DiskError {
    path: PathBuf,
    action: &'static str,
    source: std::io::Error,
}

/// Total and free bytes of the disk below a directory.
type Probe = dyn Fn(&Path) -> std::io::Result<(u64, u64)> + Send + Sync;

/// The disk below a data directory, as it was found within the last second.
pub struct Disk {
    data_dir: PathBuf,
    min_free_bytes: u64,
    probe: Box<Probe>,
    total_bytes: AtomicU64,
    free_bytes: AtomicU64,
    appends_refused: AtomicBool,
}

impl Disk {
    /// Looks at the disk before anything large is opened on it; gives the ballast back if it is
    /// full. `min_free_bytes`: the lesser of it and a tenth of the disk is kept free.
    pub fn open(data_dir: &Path, min_free_bytes: u64) -> Result<Disk, DiskError> {
        Disk::with_probe(data_dir, min_free_bytes, Box::new(measure))
    }

    fn with_probe(data_dir: &Path, min_free: u64, probe: Box<Probe>) -> Result<Disk, DiskError> {
        let disk = Disk {
            data_dir: data_dir.into(),
            min_free_bytes: min_free,
            probe,
            total_bytes: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            appends_refused: AtomicBool::new(false),
        };
        disk.measure()?;
        if disk.free_bytes() < disk.ballast_bytes() {
            disk.release_ballast()?;
            disk.measure()?;
        }
        Ok(disk)
    }

    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    pub fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Appends and incoming moves are refused: less than `limit_bytes` is free.
    pub fn appends_refused(&self) -> bool {
        self.appends_refused.load(Ordering::Relaxed)
    }

    /// What must be free.
    pub fn limit_bytes(&self) -> u64 {
        limit_bytes(self.total_bytes(), self.min_free_bytes)
    }

    /// Measures, judges, and makes the ballast again once there is room. Waits for the disk.
    pub fn sample(&self) -> Result<(), DiskError> {
        self.measure()?;
        let wanted = self.ballast_bytes();
        let room = recovery_bytes(self.limit_bytes()).saturating_add(wanted);
        if !self.appends_refused() && self.free_bytes() > room {
            self.make_ballast(wanted)?;
        }
        Ok(())
    }

    /// Samples each second until `stop`.
    pub async fn run(self: Arc<Disk>, stop: CancellationToken) {
        let mut failed = false;
        loop {
            let disk = self.clone();
            match tokio::task::spawn_blocking(move || disk.sample()).await {
                Ok(Err(e)) if !failed => {
                    tracing::warn!(error = %e, "the free space of the data directory is unknown");
                    failed = true;
                }
                Ok(Ok(())) => failed = false,
                _ => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SAMPLE_EVERY) => {}
            }
        }
    }

    fn measure(&self) -> Result<(), DiskError> {
        let (total, free) = (self.probe)(&self.data_dir).map_err(|e| self.error("measured", e))?;
        self.total_bytes.store(total, Ordering::Relaxed);
        self.free_bytes.store(free, Ordering::Relaxed);
        let was = self.appends_refused();
        let refused = appends_refused(was, free, limit_bytes(total, self.min_free_bytes));
        self.appends_refused.store(refused, Ordering::Relaxed);
        if refused && !was {
            tracing::warn!(free, limit = self.limit_bytes(), "disk nearly full: appends refused");
        } else if was && !refused {
            tracing::info!(free, limit = self.limit_bytes(), "disk has room: appends taken again");
        }
        Ok(())
    }

    fn ballast_bytes(&self) -> u64 {
        (self.total_bytes() / 100).min(BALLAST_BYTES_MAX)
    }

    fn ballast(&self) -> PathBuf {
        self.data_dir.join(BALLAST)
    }

    fn release_ballast(&self) -> Result<(), DiskError> {
        match std::fs::remove_file(self.ballast()) {
            Ok(()) => {
                tracing::warn!("the disk is full: the ballast was given back");
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.error("given its ballast back", e)),
        }
    }

    fn make_ballast(&self, bytes: u64) -> Result<(), DiskError> {
        let path = self.ballast();
        if std::fs::metadata(&path).is_ok_and(|m| m.len() >= bytes) {
            return Ok(());
        }
        let made = File::create(&path).and_then(|file| reserve(&file, bytes));
        made.map_err(|e| {
            // Half a ballast would pass for a whole one.
            let _ = std::fs::remove_file(&path);
            self.error("given a ballast", e)
        })
    }

    fn error(&self, action: &'static str, source: std::io::Error) -> DiskError {
        DiskError { path: self.data_dir.clone(), action, source }
    }
}

fn measure(path: &Path) -> std::io::Result<(u64, u64)> {
    let s = statvfs(path)?;
    Ok((s.f_blocks.saturating_mul(s.f_frsize), s.f_bavail.saturating_mul(s.f_frsize)))
}

/// Takes room for a file that is empty.
fn reserve(mut file: &File, bytes: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = vec![0; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let n = left.min(zeros.len() as u64);
                file.write_all(&zeros[..n as usize])?;
                left -= n;
            }
            file.sync_all()
        }
        other => Ok(other?),
    }
}

/// What must be free on a disk of that size: the lesser of a tenth and what is set.
pub fn limit_bytes(total_bytes: u64, min_free_bytes: u64) -> u64 {
    (total_bytes / 10).min(min_free_bytes)
}

/// A tenth above the limit, so that the answer does not flicker.
fn recovery_bytes(limit_bytes: u64) -> u64 {
    limit_bytes.saturating_add(limit_bytes / 10)
}

fn appends_refused(refused: bool, free_bytes: u64, limit_bytes: u64) -> bool {
    if refused { free_bytes < recovery_bytes(limit_bytes) } else { free_bytes < limit_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_lesser_limit_counts() {
        const GIB: u64 = 1 << 30;
        assert_eq!(limit_bytes(100 * GIB, GIB), GIB);
        assert_eq!(limit_bytes(5 * GIB, GIB), GIB / 2);
        assert_eq!(limit_bytes(5 * GIB, 0), 0);
    }

    proptest! {
        #[test]
        fn between_the_two_limits_nothing_changes(
            free in prop::collection::vec(0..200u64, 1..50), limit in 0..100u64,
        ) {
            let mut refused = false;
            for free in free {
                let before = refused;
                refused = appends_refused(refused, free, limit);
                if free < limit {
                    prop_assert!(refused);
                } else if free >= recovery_bytes(limit) {
                    prop_assert!(!refused);
                } else {
                    prop_assert_eq!(refused, before);
                }
            }
        }
    }

    const MIB: u64 = 1 << 20;

    /// A disk of 100 MiB, whose free bytes the test sets.
    fn disk(dir: &Path, min_free: u64, free: &Arc<AtomicU64>) -> Disk {
        let free = free.clone();
        let probe = move |_: &Path| Ok((100 * MIB, free.load(Ordering::Relaxed)));
        Disk::with_probe(dir, min_free, Box::new(probe)).unwrap()
    }

    #[test]
    fn a_disk_with_room_carries_a_ballast() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(50 * MIB));
        disk(dir.path(), 10 * MIB, &free).sample().unwrap();
        let ballast = std::fs::metadata(dir.path().join(BALLAST)).unwrap();
        assert_eq!(ballast.len(), MIB);
        assert!(ballast.blocks() * 512 >= MIB, "room is taken, not only promised");
    }

    #[test]
    fn a_full_disk_gets_its_ballast_back_at_start_and_keeps_it_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = dir.path().join(BALLAST);
        std::fs::write(&ballast, b"room").unwrap();
        let free = Arc::new(AtomicU64::new(MIB));
        drop(disk(dir.path(), 10 * MIB, &free));
        assert!(ballast.exists(), "nearly full is not full");
        free.store(MIB - 1, Ordering::Relaxed);
        let disk = disk(dir.path(), 10 * MIB, &free);
        assert!(!ballast.exists());
        assert!(disk.appends_refused());
        for (free_bytes, refused, has_ballast) in [
            (10 * MIB, true, false),
            (11 * MIB, false, false),
            (12 * MIB + 1, false, true),
            (10 * MIB, false, true),
            (10 * MIB - 1, true, true),
        ] {
            free.store(free_bytes, Ordering::Relaxed);
            disk.sample().unwrap();
            assert_eq!((disk.appends_refused(), ballast.exists()), (refused, has_ballast));
            assert_eq!((disk.free_bytes(), disk.limit_bytes()), (free_bytes, 10 * MIB));
        }
    }

    #[tokio::test]
    async fn a_real_disk_is_sampled_until_told_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::open(dir.path(), 0).unwrap());
        assert!(disk.free_bytes() <= disk.total_bytes() && disk.total_bytes() > 0);
        assert!(!disk.appends_refused());
        let stop = CancellationToken::new();
        let running = tokio::spawn(disk.run(stop.clone()));
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
        assert!(dir.path().join(BALLAST).exists());
    }
}
