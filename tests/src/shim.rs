//! Power loss for real processes: what was not synced is gone (`shim/droplost.c` says how it is kept).
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SOURCE: &str = include_str!("../shim/droplost.c");

/// What of the writes that were not synced is there after the loss of power.
#[derive(Clone, Copy, Debug)]
pub enum Survivors {
    /// Nothing.
    None,
    /// By file and directory, either nothing or all of it: the kernel writes back when it likes.
    Random { seed: u64 },
}

/// What a loss of power took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Files whose name is gone.
    pub files_gone: usize,
    /// Files that are there with less or older content.
    pub files_older: usize,
}

/// A data directory under the shim, and its shadow.
#[derive(Clone, Debug)]
pub struct Shim {
    data: PathBuf,
    shadow: PathBuf,
    fail: PathBuf,
}

/// Builds the shim once per process.
///
/// # Panics
/// When there is no C compiler; the message says what to install.
pub fn library(scratch: &Path) -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = scratch.join(format!("droplost-{}.c", std::process::id()));
        let library = scratch.join(format!("droplost-{}.so", std::process::id()));
        fs::write(&source, SOURCE).unwrap();
        let out = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .arg(&library)
            .arg(&source)
            .arg("-ldl")
            .output()
            .expect("the shim needs a C compiler: apt-get install gcc");
        assert!(
            out.status.success(),
            "cc failed on the shim: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        library
    })
}

impl Shim {
    /// Takes all that lies in `data` now as synced. `shadow` must be on the same file system.
    pub fn new(data: &Path, shadow: &Path) -> Self {
        let shim = Self {
            data: data.to_path_buf(),
            shadow: shadow.to_path_buf(),
            fail: shadow.with_extension("fail"),
        };
        shim.settle();
        shim
    }

    /// Makes `command` run under the shim.
    pub fn preload(&self, command: &mut Command, library: &Path) {
        command
            .env("LD_PRELOAD", library)
            .env("RINGFOLD_SHIM_DIR", &self.data)
            .env("RINGFOLD_SHIM_SHADOW", &self.shadow)
            .env("RINGFOLD_SHIM_FAIL", &self.fail);
    }

    /// From now on every sync of the process fails with EIO, or does no longer.
    pub fn fail_syncs(&self, fail: bool) {
        if fail {
            fs::write(&self.fail, "").unwrap();
        } else {
            fs::remove_file(&self.fail).unwrap();
        }
    }

    /// Takes all that lies in the directory now as synced. The process must not run.
    pub fn settle(&self) {
        let _ = fs::remove_dir_all(&self.shadow);
        fs::create_dir_all(&self.shadow).unwrap();
        fs::create_dir_all(&self.data).unwrap();
        let now = Tree::of(&self.data);
        for (key, entries) in &now.directories {
            let lines: String = entries.iter().map(Entry::line).collect();
            fs::write(self.shadow.join(format!("d-{key}")), lines).unwrap();
        }
        for (key, path) in &now.files {
            copy_sparse(path, &self.shadow.join(format!("f-{key}")));
        }
    }

    /// Puts the directory into the state that a loss of power leaves. The process must not run.
    pub fn drop_unsynced(&self, survivors: Survivors) -> Loss {
        let now = Tree::of(&self.data);
        let rebuilt = self.data.with_extension("rebuilt");
        let _ = fs::remove_dir_all(&rebuilt);
        fs::create_dir(&rebuilt).unwrap();
        let mut rebuild = Rebuild {
            shim: self,
            now: &now,
            rng: match survivors {
                Survivors::None => None,
                Survivors::Random { seed } => Some(StdRng::seed_from_u64(seed)),
            },
            placed: BTreeMap::new(),
            loss: Loss::default(),
        };
        rebuild.directory(&now.root, &rebuilt);
        let mut loss = rebuild.loss;
        let names = |root: &Path| {
            let mut names = BTreeSet::new();
            walk(root, &mut |path| {
                names.insert(path.strip_prefix(root).unwrap().to_path_buf());
            });
            names
        };
        loss.files_gone = names(&self.data).difference(&names(&rebuilt)).count();
        fs::remove_dir_all(&self.data).unwrap();
        fs::rename(&rebuilt, &self.data).unwrap();
        self.settle();
        loss
    }
}

#[derive(Clone, Debug)]
struct Entry {
    is_dir: bool,
    key: String,
    name: String,
}

impl Entry {
    fn line(&self) -> String {
        let kind = if self.is_dir { 'd' } else { 'f' };
        format!("{kind} {} {}\n", self.key, self.name)
    }

    fn parse(line: &str) -> Self {
        let mut parts = line.splitn(3, ' ');
        let mut next = || parts.next().expect("three parts").to_string();
        Self { is_dir: next() == "d", key: next(), name: next() }
    }
}

/// A directory as it lies on disk: by inode, as the shadow has it.
struct Tree {
    root: String,
    directories: BTreeMap<String, Vec<Entry>>,
    files: BTreeMap<String, PathBuf>,
}

impl Tree {
    fn of(root: &Path) -> Self {
        let mut tree =
            Tree { root: key_of(root), directories: BTreeMap::new(), files: BTreeMap::new() };
        tree.add(root);
        tree
    }

    fn add(&mut self, dir: &Path) {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let is_dir = path.is_dir();
            let key = key_of(&path);
            if is_dir {
                self.add(&path);
            } else {
                self.files.insert(key.clone(), path.clone());
            }
            entries.push(Entry {
                is_dir,
                key,
                name: path.file_name().unwrap().to_str().unwrap().to_string(),
            });
        }
        self.directories.insert(key_of(dir), entries);
    }
}

/// Inode and time of birth, as the shim names them.
fn key_of(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let birth =
        meta.created().expect("a file system that keeps the time of birth (ext4, xfs, btrfs)");
    let birth_ns = birth.duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("{}-{birth_ns}", meta.ino())
}

struct Rebuild<'a> {
    shim: &'a Shim,
    now: &'a Tree,
    rng: Option<StdRng>,
    /// Where each file has been put: a second name of it becomes a link.
    placed: BTreeMap<String, PathBuf>,
    loss: Loss,
}

impl Rebuild<'_> {
    fn survives(&mut self) -> bool {
        self.rng.as_mut().is_some_and(|rng| rng.random_bool(0.5))
    }

    fn directory(&mut self, key: &str, to: &Path) {
        let synced = fs::read_to_string(self.shim.shadow.join(format!("d-{key}")))
            .map(|text| text.lines().map(Entry::parse).collect::<Vec<_>>())
            .unwrap_or_default();
        let entries = match self.now.directories.get(key) {
            Some(now) if self.survives() => now.clone(),
            _ => synced,
        };
        for entry in entries {
            let path = to.join(&entry.name);
            if entry.is_dir {
                fs::create_dir(&path).unwrap();
                self.directory(&entry.key, &path);
            } else {
                self.file(&entry.key, &path);
            }
        }
    }

    fn file(&mut self, key: &str, to: &Path) {
        if let Some(placed) = self.placed.get(key) {
            fs::hard_link(placed, to).unwrap();
            return;
        }
        let synced = self.shim.shadow.join(format!("f-{key}"));
        let now = self.now.files.get(key);
        match now {
            Some(now) if self.survives() => copy_sparse(now, to),
            _ if synced.exists() => copy_sparse(&synced, to),
            _ => fs::write(to, "").unwrap(),
        }
        if now.is_some_and(|now| !same(now, to)) {
            self.loss.files_older += 1;
        }
        self.placed.insert(key.to_string(), to.to_path_buf());
    }
}

fn walk(dir: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, each);
        } else {
            each(&path);
        }
    }
}

const BLOCK: usize = 1 << 16;

/// Copies a file without its holes: logs are allocated ahead.
pub(crate) fn copy_sparse(from: &Path, to: &Path) {
    let mut input = File::open(from).unwrap();
    let mut output = File::create(to).unwrap();
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    loop {
        let n = input.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        if buffer[..n].iter().any(|b| *b != 0) {
            output.seek(SeekFrom::Start(at)).unwrap();
            output.write_all(&buffer[..n]).unwrap();
        }
        at += n as u64;
    }
    output.set_len(at).unwrap();
}

fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let len = a.metadata().unwrap().len();
    if len != b.metadata().unwrap().len() {
        return false;
    }
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    while at < len {
        let n = BLOCK.min((len - at) as usize);
        a.read_exact_at(&mut left[..n], at).unwrap();
        b.read_exact_at(&mut right[..n], at).unwrap();
        if left[..n] != right[..n] {
            return false;
        }
        at += n as u64;
    }
    true
}
