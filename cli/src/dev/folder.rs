//! The data directory of `dev`: held by one at a time, remembered, or temporary.
use super::plan::GOSSIP_KEY_FILE;
use super::settled::Remembered;
use crate::error::{CliError, Exit};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const PREFIX: &str = "ringfold-dev-";
const LOCK: &str = "dev.lock";
const FILE: &str = "dev.json";
const SWEEP_AGE: Duration = Duration::from_secs(60);

/// A folder that this process alone uses as long as this lives.
pub struct Folder {
    path: PathBuf,
    // Before the folder: whoever sweeps may take it only once it is gone or unlocked.
    _lock: File,
    temporary: Option<TempDir>,
}

impl Folder {
    /// Opens or creates the folder, or makes a temporary one.
    pub fn open(path: Option<&Path>) -> Result<Self, CliError> {
        let failed = |path: &Path, e: io::Error| {
            CliError::other(format!("cannot use the folder {}: {e}", path.display()))
                .action("name a folder that can be written with --data")
        };
        let (path, temporary) = match path {
            Some(path) => {
                fs::create_dir_all(path).map_err(|e| failed(path, e))?;
                // Nodes get it as it is, whatever their working directory.
                (fs::canonicalize(path).map_err(|e| failed(path, e))?, None)
            }
            None => {
                sweep(&std::env::temp_dir());
                let folder = tempfile::Builder::new()
                    .prefix(PREFIX)
                    .tempdir()
                    .map_err(|e| failed(&std::env::temp_dir(), e))?;
                (folder.path().to_path_buf(), Some(folder))
            }
        };
        let lock = lock(&path.join(LOCK)).map_err(|e| match e {
            TryLockError::WouldBlock => CliError::new(
                Exit::Other,
                format!("another `ringfold dev` runs on {}", path.display()),
            )
            .action("end it, or name another --data"),
            TryLockError::Error(e) => failed(&path, e),
        })?;
        Ok(Self { path, _lock: lock, temporary })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// What the folder was begun with; None: it is new.
    pub fn remembered(&self) -> Result<Option<Remembered>, CliError> {
        let file = self.path.join(FILE);
        let failed = |e: &dyn std::fmt::Display| {
            CliError::other(format!("cannot read {}: {e}", file.display()))
                .action("mend it, or name another --data")
        };
        match fs::read(&file) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(remembered) => Ok(Some(remembered)),
                Err(e) => Err(failed(&e)),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(&e)),
        }
    }

    /// Durable before the cluster id is said to anyone.
    pub fn remember(&self, settled: &Remembered) -> Result<(), CliError> {
        let file = self.path.join(FILE);
        let write = || -> io::Result<()> {
            let mut new = tempfile::NamedTempFile::new_in(&self.path)?;
            serde_json::to_writer_pretty(&mut new, settled)?;
            new.write_all(b"\n")?;
            new.as_file().sync_all()?;
            new.persist(&file)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|e| CliError::other(format!("cannot write {}: {e}", file.display())))
    }

    /// Makes the key of the nodes' gossip, once. Only this user can read it.
    pub fn gossip_key(&self, new_key: &str) -> Result<(), CliError> {
        let file = self.path.join(GOSSIP_KEY_FILE);
        let write = || -> io::Result<()> {
            if fs::metadata(&file).is_ok_and(|m| m.len() > 0) {
                return Ok(());
            }
            // Made for this user alone, as all temporary files are.
            let mut new = tempfile::NamedTempFile::new_in(&self.path)?;
            writeln!(new, "{new_key}")?;
            new.as_file().sync_all()?;
            new.persist(&file)?;
            Ok(())
        };
        write().map_err(|e| CliError::other(format!("cannot write {}: {e}", file.display())))
    }

    /// Removes a temporary folder and says where that fails.
    pub fn close(self) -> Result<(), CliError> {
        match self.temporary {
            Some(folder) => folder.close().map_err(|e| {
                CliError::other(format!("cannot remove {}: {e}", self.path.display()))
            }),
            None => Ok(()),
        }
    }
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

/// Removes temporary folders of `dev` processes that were killed. Best effort: what cannot be
/// removed is another user's.
fn sweep(temp: &Path) {
    let Ok(entries) = fs::read_dir(temp) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = (entry.file_name().to_str()).is_some_and(|name| name.starts_with(PREFIX));
        let path = entry.path();
        // One that has just been made may not be locked yet.
        if is_ours && age(&path.join(LOCK)) >= SWEEP_AGE && lock(&path.join(LOCK)).is_ok() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Since the file was written; zero where it is not there.
fn age(path: &Path) -> Duration {
    let written = fs::metadata(path).and_then(|m| m.modified());
    (written.ok().and_then(|at| at.elapsed().ok())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::settled::{Wanted, settle};
    use std::time::SystemTime;
    use uuid::Uuid;

    #[test]
    fn one_at_a_time_uses_a_folder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("made/on/the/way");
        let first = Folder::open(Some(&path)).unwrap();
        let error = Folder::open(Some(&path)).err().unwrap();
        assert!(error.message.contains("another `ringfold dev`"), "{error:?}");
        drop(first);
        assert!(Folder::open(Some(&path)).is_ok());
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(temp.path())).unwrap();
        assert_eq!(folder.remembered().unwrap(), None);
        let settled = settle(Wanted::default(), None, Uuid::from_u128(1)).unwrap();
        folder.remember(&settled).unwrap();
        assert_eq!(folder.remembered().unwrap(), Some(settled));
        fs::write(temp.path().join(FILE), "{").unwrap();
        let error = folder.remembered().unwrap_err();
        assert!(error.message.contains("dev.json"), "{error:?}");
    }

    #[test]
    fn a_gossip_key_is_made_once_and_for_this_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(temp.path())).unwrap();
        folder.gossip_key("first").unwrap();
        folder.gossip_key("second").unwrap();
        let file = temp.path().join(GOSSIP_KEY_FILE);
        assert_eq!(fs::read_to_string(&file).unwrap(), "first\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_temporary_folder_is_removed() {
        let folder = Folder::open(None).unwrap();
        let path = folder.path().to_path_buf();
        assert!(folder.is_temporary() && path.is_dir());
        folder.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn folders_of_killed_ones_are_swept_and_others_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - SWEEP_AGE * 2;
        let make = |name: &str, written: SystemTime| {
            fs::create_dir(temp.path().join(name)).unwrap();
            let lock = File::create(temp.path().join(name).join(LOCK)).unwrap();
            lock.set_modified(written).unwrap();
        };
        make("ringfold-dev-dead", old);
        make("ringfold-dev-alive", old);
        make("ringfold-dev-new", SystemTime::now());
        make("other", old);
        let _alive = lock(&temp.path().join("ringfold-dev-alive").join(LOCK)).unwrap();
        sweep(temp.path());
        let left = |name: &str| temp.path().join(name).exists();
        assert!(!left("ringfold-dev-dead"));
        assert!(left("ringfold-dev-alive") && left("ringfold-dev-new") && left("other"));
    }
}
