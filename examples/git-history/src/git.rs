//! Asks git. Everything here blocks.
use crate::log::{FORMAT, Item, LogError, Parser, Shown};
use crate::tree::{self, Leaf, TreeError};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// No field of git's output is longer: neither a path nor a subject that a person wrote.
const FIELD_MAX_BYTES: u64 = 1 << 20;
const STDERR_MAX_BYTES: u64 = 8 << 10;

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("cannot run git ({0}): install it, for example with `apt-get install git`")]
    Start(io::Error),
    #[error("{} is no git repository that git would open: {said}", .repo.display())]
    NoRepository { repo: PathBuf, said: String },
    #[error("the repository {} has no commit yet: commit something, or name another with --repo", .0.display())]
    Empty(PathBuf),
    #[error("`git {command}` ended with {status}: {said}")]
    Failed { command: String, status: String, said: String },
    #[error("git's output could not be read: {0}")]
    Read(io::Error),
    #[error("git's output has a field of over {FIELD_MAX_BYTES} bytes, beginning with {0}")]
    TooLong(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A repository at one commit: HEAD may move on while it is read.
#[derive(Clone, Debug)]
pub struct Repository {
    path: PathBuf,
    pub head: String,
}

impl Repository {
    /// Opens the repository that `path` lies in, at its HEAD.
    pub fn open(path: &Path) -> Result<Self, GitError> {
        let opened = run(path, &["rev-parse", "--git-dir"]);
        if let Err(GitError::Failed { said, .. }) = opened {
            return Err(GitError::NoRepository { repo: path.into(), said });
        }
        opened?;
        match run(path, &["rev-parse", "--verify", "-q", "HEAD^{commit}"]) {
            Ok(head) => {
                Ok(Self { path: path.into(), head: String::from_utf8_lossy(&head).trim().into() })
            }
            Err(GitError::Failed { .. }) => Err(GitError::Empty(path.into())),
            Err(e) => Err(e),
        }
    }

    /// Commits of the first-parent history.
    pub fn count_commits(&self) -> Result<u64, GitError> {
        let out = run(&self.path, &["rev-list", "--first-parent", "--count", &self.head])?;
        let text = String::from_utf8_lossy(&out);
        text.trim().parse().map_err(|_| {
            GitError::Read(io::Error::other(format!("rev-list --count said {}", text.trim())))
        })
    }

    /// Hands over the first-parent history, oldest commit first, until `each` says false.
    /// Merges show what they changed against their first parent.
    pub fn history(&self, mut each: impl FnMut(Item) -> bool) -> Result<(), GitError> {
        let format = format!("--format={FORMAT}");
        let mut fields = Fields::start(
            &self.path,
            &[
                "-c",
                "log.showRoot=true",
                "log",
                "--first-parent",
                "-m",
                "--reverse",
                "--raw",
                "-z",
                "-M",
                "--no-abbrev",
                "--root",
                // What a configuration could change otherwise.
                "--no-color",
                "--no-relative",
                "--no-show-signature",
                "--no-ext-diff",
                "--ignore-submodules=none",
                "--encoding=UTF-8",
                &format,
                &self.head,
                "--",
            ],
        )?;
        let mut parser = Parser::default();
        while let Some(field) = fields.next()? {
            if let Some(item) = parser.field(field)?
                && !each(item)
            {
                return fields.abandon();
            }
        }
        fields.finish()?;
        Ok(parser.finish()?)
    }

    /// The tree of HEAD: every file, link and submodule.
    pub fn tree(&self) -> Result<Vec<Leaf>, GitError> {
        let mut fields =
            Fields::start(&self.path, &["ls-tree", "-r", "-z", "--full-tree", &self.head])?;
        let mut leaves = Vec::new();
        while let Some(field) = fields.next()? {
            leaves.push(tree::entry(field)?);
        }
        fields.finish()?;
        Ok(leaves)
    }
}

fn command(repo: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repo).args(args).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn run(repo: &Path, args: &[&str]) -> Result<Vec<u8>, GitError> {
    let out = command(repo, args).output().map_err(GitError::Start)?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    Err(failed(args, &out.status.to_string(), &out.stderr))
}

fn failed(args: &[&str], status: &str, stderr: &[u8]) -> GitError {
    GitError::Failed {
        command: args.join(" "),
        status: status.into(),
        said: String::from_utf8_lossy(stderr).trim().into(),
    }
}

/// NUL-terminated fields of a running git.
struct Fields {
    child: Child,
    out: BufReader<ChildStdout>,
    stderr: Option<std::thread::JoinHandle<Vec<u8>>>,
    field: Vec<u8>,
    args: String,
}

impl Fields {
    fn start(repo: &Path, args: &[&str]) -> Result<Self, GitError> {
        let mut child = command(repo, args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(GitError::Start)?;
        let (Some(out), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(GitError::Read(io::Error::other("git has no output")));
        };
        // Read beside its output, or a git that complains a lot would wait for us for ever.
        let stderr = std::thread::spawn(move || {
            let mut said = Vec::new();
            let mut stderr = stderr;
            let _ = stderr.by_ref().take(STDERR_MAX_BYTES).read_to_end(&mut said);
            let _ = io::copy(&mut stderr, &mut io::sink());
            said
        });
        Ok(Self {
            child,
            out: BufReader::with_capacity(1 << 16, out),
            stderr: Some(stderr),
            field: Vec::new(),
            args: args.join(" "),
        })
    }

    fn next(&mut self) -> Result<Option<&[u8]>, GitError> {
        self.field.clear();
        let read = (&mut self.out)
            .take(FIELD_MAX_BYTES)
            .read_until(0, &mut self.field)
            .map_err(GitError::Read)?;
        if read == 0 {
            return Ok(None);
        }
        if self.field.last() == Some(&0) {
            self.field.pop();
        } else if self.field.len() as u64 == FIELD_MAX_BYTES {
            return Err(GitError::TooLong(Shown(&self.field).to_string()));
        }
        Ok(Some(&self.field))
    }

    fn finish(mut self) -> Result<(), GitError> {
        let status = self.child.wait().map_err(GitError::Read)?;
        if status.success() {
            return Ok(());
        }
        let said = self.stderr.take().and_then(|t| t.join().ok());
        Err(failed(&[&self.args], &status.to_string(), &said.unwrap_or_default()))
    }

    fn abandon(self) -> Result<(), GitError> {
        // Drop ends it.
        Ok(())
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests;
