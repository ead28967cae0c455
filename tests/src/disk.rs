//! Small disks, and damage to the files of a stopped node.
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shim::copy_sparse;

/// An ext4 file system in a file, mounted by a loop device. Needs root.
pub struct SmallDisk {
    mount: PathBuf,
}

impl SmallDisk {
    /// # Errors
    /// Says what is missing: root, or mkfs.ext4.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Result<Self, String> {
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("mounting a small disk needs root".into());
        }
        let image = dir.join(format!("{name}.img"));
        let mount = dir.join(name);
        fs::create_dir_all(&mount).map_err(|e| e.to_string())?;
        File::create(&image).and_then(|f| f.set_len(bytes)).map_err(|e| e.to_string())?;
        // No blocks reserved for root: the node runs as root here and would have them.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
        Ok(Self { mount })
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    pub fn free_bytes(&self) -> u64 {
        statvfs(&self.mount).1
    }

    pub fn total_bytes(&self) -> u64 {
        statvfs(&self.mount).0
    }

    /// Takes room away until `free_bytes` are left.
    pub fn fill_to(&self, free_bytes: u64) {
        let file = File::create(self.filler()).unwrap();
        // Others write meanwhile, and the file needs blocks for its own records: less, then.
        let mut take = self.free_bytes().saturating_sub(free_bytes);
        while take > 0 {
            // SAFETY: the descriptor is open for as long as `file` lives.
            if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, take as i64) } == 0 {
                return;
            }
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "fallocate: {error}");
            take = take.saturating_sub(64 << 10);
        }
    }

    /// Gives the room back.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

fn statvfs(path: &Path) -> (u64, u64) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: statvfs is plain data, and the call fills it in.
    let stat = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(path.as_ptr(), &mut stat), 0);
        stat
    };
    (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)
}

/// The log file that was written last: the newest of raft-engine's append files with anything in it.
pub fn newest_log_file(data_dir: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(data_dir.join("log"))
        .expect("<data>/log")
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "raftlog"))
        .filter(|p| used_bytes(p) > 64) // more than a header
        .collect();
    files.sort();
    files.pop().expect("a log file with entries")
}

/// Up to the last byte that is not zero: files are allocated ahead.
pub fn used_bytes(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let mut end = file.metadata().unwrap().len();
    let mut buffer = vec![0; 1 << 16];
    while end > 0 {
        let n = end.min(buffer.len() as u64);
        file.read_exact_at(&mut buffer[..n as usize], end - n).unwrap();
        if let Some(last) = buffer[..n as usize].iter().rposition(|b| *b != 0) {
            return end - n + last as u64 + 1;
        }
        end -= n;
    }
    0
}

/// Cuts the last `bytes` that were used off the file.
pub fn cut_end(path: &Path, bytes: u64) {
    let used = used_bytes(path);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(used.saturating_sub(bytes)).unwrap();
}

/// Flips one bit at this place of what is used: 0.5 is the middle.
pub fn flip_bit(path: &Path, place: f64) {
    let at = (used_bytes(path) as f64 * place) as u64;
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            copy_sparse(&path, &target);
        }
    }
}
