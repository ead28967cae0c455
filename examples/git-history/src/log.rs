//! Reads what `git log --raw -z` says: commits, and what each of them changed. Pure, and fed one
//! NUL-terminated field at a time, so that a history of any length needs no memory.
use std::fmt;

/// The format to ask `git log` for. Fields are counted, never searched for, so that no name, no
/// subject and no path can be mistaken for something else.
pub const FORMAT: &str = "tformat:%x00commit %H%x00%an%x00%ae%x00%aI%x00%s%x00";

/// One commit of the first-parent history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Hexadecimal object id (SHA-1 or SHA-256).
    pub id: String,
    pub author_name: String,
    pub author_email: String,
    /// When it was written, RFC 3339 with the author's offset.
    pub time: String,
    pub subject: String,
}

/// What happened to a path. Paths are bytes: git does not promise UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    /// Content, mode, or type (a file became a link).
    Modified,
    Deleted,
    /// `Change::path` is the new path; the old one is gone.
    Renamed {
        from: Vec<u8>,
    },
    /// `Change::path` is new; the old one stays.
    Copied {
        from: Vec<u8>,
    },
}

/// One path as a commit left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Mode and object id after the commit; before it where the path was deleted.
    pub mode: String,
    pub blob: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Commit(Commit),
    /// Belongs to the last commit.
    Change(Change),
}

/// The output is not what the `git log` of this crate prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field} of git's log is {found}, expected {expected}: is this git 2.31 or newer?")]
pub struct LogError {
    /// Counted from 1.
    pub field: u64,
    pub found: String,
    pub expected: &'static str,
}

enum State {
    /// Between records.
    Start,
    /// Within a commit's header: the fields read so far.
    Header(Vec<String>),
    /// The old path of a rename or copy comes next.
    From(Meta),
    /// The path comes next.
    Path(Meta, Option<Vec<u8>>),
}

struct Meta {
    letter: u8,
    mode: String,
    blob: String,
}

/// A state machine over fields.
pub struct Parser {
    state: State,
    field: u64,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Start, field: 0 }
    }
}

impl Parser {
    /// Takes the next field, without its NUL, and returns what it completes.
    pub fn field(&mut self, bytes: &[u8]) -> Result<Option<Item>, LogError> {
        self.field += 1;
        match std::mem::replace(&mut self.state, State::Start) {
            State::Start => self.start(bytes),
            State::Header(mut fields) => {
                fields.push(String::from_utf8_lossy(bytes).into_owned());
                match <[String; 5]>::try_from(fields) {
                    Ok([id, author_name, author_email, time, subject]) => {
                        Ok(Some(Item::Commit(Commit {
                            id,
                            author_name,
                            author_email,
                            time,
                            subject,
                        })))
                    }
                    Err(fields) => {
                        self.state = State::Header(fields);
                        Ok(None)
                    }
                }
            }
            State::From(meta) => {
                self.path(bytes)?;
                self.state = State::Path(meta, Some(bytes.to_vec()));
                Ok(None)
            }
            State::Path(meta, from) => {
                self.path(bytes)?;
                let kind = match (meta.letter, from) {
                    (b'A', _) => Kind::Added,
                    (b'D', _) => Kind::Deleted,
                    (b'R', Some(from)) => Kind::Renamed { from },
                    (b'C', Some(from)) => Kind::Copied { from },
                    _ => Kind::Modified,
                };
                Ok(Some(Item::Change(Change {
                    kind,
                    path: bytes.to_vec(),
                    mode: meta.mode,
                    blob: meta.blob,
                })))
            }
        }
    }

    /// Says whether the output ended where it may end.
    pub fn finish(self) -> Result<(), LogError> {
        match self.state {
            State::Start => Ok(()),
            _ => Err(LogError {
                field: self.field + 1,
                found: "the end".into(),
                expected: "the rest of a record",
            }),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Result<Option<Item>, LogError> {
        // How many newlines and empty fields stand between records differs between versions.
        let start = bytes.iter().take_while(|b| **b == b'\n').count();
        let bytes = &bytes[start..];
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Some(id) = bytes.strip_prefix(b"commit ") {
            let id = self.object_id(id)?;
            self.state = State::Header(vec![id]);
            return Ok(None);
        }
        let Some(raw) = bytes.strip_prefix(b":") else {
            return Err(self.error(bytes, "a commit or a change"));
        };
        let parts: Vec<&[u8]> = raw.split(|b| *b == b' ').collect();
        let [old_mode, new_mode, old_blob, new_blob, status] = parts[..] else {
            return Err(self.error(bytes, "`:mode mode id id status`"));
        };
        let letter = status.first().copied().unwrap_or_default();
        let (mode, blob) = match letter {
            b'D' => (old_mode, old_blob),
            b'A' | b'M' | b'T' | b'R' | b'C' => (new_mode, new_blob),
            _ => return Err(self.error(bytes, "a status out of A, C, D, M, R, T")),
        };
        let meta = Meta { letter, mode: self.mode(mode)?, blob: self.object_id(blob)? };
        self.state = match letter {
            b'R' | b'C' => State::From(meta),
            _ => State::Path(meta, None),
        };
        Ok(None)
    }

    fn mode(&self, bytes: &[u8]) -> Result<String, LogError> {
        match std::str::from_utf8(bytes) {
            Ok(s) if s.len() == 6 && s.bytes().all(|b| (b'0'..=b'7').contains(&b)) => Ok(s.into()),
            _ => Err(self.error(bytes, "a mode of six octal digits")),
        }
    }

    fn object_id(&self, bytes: &[u8]) -> Result<String, LogError> {
        match std::str::from_utf8(bytes) {
            Ok(s) if matches!(s.len(), 40 | 64) && s.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(s.into())
            }
            _ => Err(self.error(bytes, "an object id of 40 or 64 hexadecimal digits")),
        }
    }

    fn path(&self, bytes: &[u8]) -> Result<(), LogError> {
        if bytes.is_empty() {
            return Err(self.error(bytes, "a path"));
        }
        Ok(())
    }

    fn error(&self, found: &[u8], expected: &'static str) -> LogError {
        LogError { field: self.field, found: Shown(found).to_string(), expected }
    }
}

/// Bytes as a person reads them, cut at 100.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = &self.0[..self.0.len().min(100)];
        write!(f, "\"{}\"", cut.escape_ascii())
    }
}

#[cfg(test)]
mod tests;
