//! The log in raft-engine: made for many groups' logs in one set of files with group commit.
use super::{LoadedReplica, LogBatch, LogError, LogOp, RaftLog, ReplicaRecord, Vote, decode_entry};
use crate::disk::sync_folder;
use crate::ids::ReplicaId;
use raft::eraftpb::Entry;
use raft_engine::{
    Command, Config, Engine, LogBatch as EngineBatch, MessageExt, ReadableSize, RecoveryMode,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Region that holds what belongs to the log itself; replica ids begin at 1.
const LOG_REGION: u64 = 0;
const KEY_NUMBER: &[u8] = b"n";
const KEY_VOTE: &[u8] = b"v";
const KEY_RECORD: &[u8] = b"r";

/// Sizes of the log's files, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    pub file_bytes: u64,
    /// Beyond this the oldest files are rewritten.
    pub purge_bytes: u64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        EngineSettings { file_bytes: 64 << 20, purge_bytes: 512 << 20 }
    }
}

pub struct EngineLog {
    engine: Engine,
    path: PathBuf,
}

/// raft-engine writes entries through rust-protobuf 2, and the prost types of `raft` implement that
/// trait only in part (they panic), so entries go in as bytes behind a type of our own.
#[derive(Clone, PartialEq, Debug, Default)]
struct Raw {
    index: u64,
    bytes: Vec<u8>,
}

impl protobuf_raft_engine::Clear for Raw {
    fn clear(&mut self) {
        self.bytes.clear();
    }
}

impl protobuf_raft_engine::Message for Raw {
    fn compute_size(&self) -> u32 {
        // Entries are bounded far below 4 GiB by the limits on an append.
        self.bytes.len() as u32
    }

    fn get_cached_size(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn write_to_with_cached_sizes(
        &self,
        os: &mut protobuf_raft_engine::CodedOutputStream<'_>,
    ) -> protobuf_raft_engine::ProtobufResult<()> {
        os.write_raw_bytes(&self.bytes)
    }

    fn merge_from(
        &mut self,
        is: &mut protobuf_raft_engine::CodedInputStream<'_>,
    ) -> protobuf_raft_engine::ProtobufResult<()> {
        let n = is.bytes_until_limit();
        // raft-engine parses from a slice that holds this entry alone.
        if let Ok(n) = u32::try_from(n)
            && n > 0
        {
            is.read_raw_bytes_into(n, &mut self.bytes)?;
        } else {
            while !is.eof()? {
                self.bytes.push(is.read_raw_byte()?);
            }
        }
        // raft-engine compares it with what it looked for.
        self.index = decode_entry(&self.bytes).map(|e| e.index).unwrap_or(0);
        Ok(())
    }

    fn is_initialized(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    #[allow(clippy::unimplemented)] // Only text formats and reflection ask for it; raft-engine does neither.
    fn descriptor(&self) -> &'static protobuf_raft_engine::reflect::MessageDescriptor {
        unimplemented!("raft-engine never asks for a descriptor")
    }

    fn get_unknown_fields(&self) -> &protobuf_raft_engine::UnknownFields {
        static NONE: std::sync::LazyLock<protobuf_raft_engine::UnknownFields> =
            std::sync::LazyLock::new(protobuf_raft_engine::UnknownFields::new);
        &NONE
    }

    #[allow(clippy::unimplemented)] // As above.
    fn mut_unknown_fields(&mut self) -> &mut protobuf_raft_engine::UnknownFields {
        unimplemented!("raft-engine never keeps unknown fields")
    }

    fn new() -> Self {
        Self::default()
    }

    #[allow(clippy::unimplemented)] // As above.
    fn default_instance() -> &'static Self {
        unimplemented!("raft-engine never asks for a default instance")
    }
}

struct Ext;

impl MessageExt for Ext {
    type Entry = Raw;

    fn index(e: &Raw) -> u64 {
        e.index
    }
}

impl EngineLog {
    /// Opens or creates the log. Damage at its end is cut off: the caller compares `last_number`
    /// with WATERMARK. Damage elsewhere is an error.
    pub fn open(path: &Path, settings: EngineSettings) -> Result<EngineLog, LogError> {
        let io = |reason: String| LogError::Io {
            path: path.display().to_string(),
            action: "opened",
            reason,
        };
        let dir = path.to_str().ok_or_else(|| io("the path is not UTF-8".into()))?.to_owned();
        let cfg = Config {
            dir,
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 2,
            // Entries are compressed by nobody: most are small, and clients may have done it.
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(settings.file_bytes),
            purge_threshold: ReadableSize(settings.purge_bytes),
            ..Default::default()
        };
        // raft-engine panics on some kinds of damage.
        let opened = crate::panics::catch(|| Engine::open(cfg));
        let engine = match opened {
            Ok(Ok(engine)) => engine,
            Ok(Err(e)) => return Err(io(e.to_string())),
            Err(_) => return Err(io("it is damaged (raft-engine panicked, see above)".into())),
        };
        sync_files(path).map_err(|e| io(e.to_string()))?;
        Ok(EngineLog { engine, path: path.to_owned() })
    }

    fn error(&self, action: &'static str, reason: impl ToString) -> LogError {
        LogError::Io { path: self.path.display().to_string(), action, reason: reason.to_string() }
    }

    /// Bytes of the log's live files.
    pub fn used_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }
}

/// What a process wrote before it was killed may be in the kernel's memory only; whoever opened the log
/// answers for it from now on. (`Engine::sync` of raft-engine 0.4 does nothing.)
fn sync_files(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::File::open(entry.path())?.sync_all()?;
        }
    }
    // It makes a new file's name durable only after it has begun to write it.
    sync_folder(folder)
}

impl RaftLog for EngineLog {
    fn write(&self, number: u64, batch: LogBatch) -> Result<(), LogError> {
        let mut out = EngineBatch::default();
        let put = |out: &mut EngineBatch, region: u64, key: &[u8], value: Vec<u8>| {
            out.put(region, key.to_vec(), value).map_err(|e| self.error("written", e))
        };
        // What this batch says itself counts before what the engine holds.
        let mut votes: HashMap<ReplicaId, Vec<u8>> = HashMap::new();
        let mut records: HashMap<ReplicaId, Vec<u8>> = HashMap::new();
        for op in batch.ops {
            match op {
                LogOp::Entries { replica, first_index, entries } => {
                    let raw: Vec<Raw> = entries
                        .into_iter()
                        .zip(first_index..)
                        .map(|(bytes, index)| Raw { index, bytes })
                        .collect();
                    out.add_entries::<Ext>(replica.0, &raw)
                        .map_err(|e| self.error("written", e))?;
                }
                LogOp::Vote { replica, vote } => {
                    let vote = vote.encode();
                    votes.insert(replica, vote.clone());
                    put(&mut out, replica.0, KEY_VOTE, vote)?;
                }
                LogOp::Record(record) => {
                    let (replica, record) = (record.replica, record.encode());
                    records.insert(replica, record.clone());
                    put(&mut out, replica.0, KEY_RECORD, record)?;
                }
                LogOp::Compact { replica, first_kept } => {
                    out.add_command(replica.0, Command::Compact { index: first_kept });
                }
                LogOp::Clear { replica } => {
                    // `Compact` past the end would leave the region's last index wrong.
                    let keep = |own: &HashMap<_, Vec<u8>>, key: &[u8]| {
                        own.get(&replica).cloned().or_else(|| self.engine.get(replica.0, key))
                    };
                    let (vote, record) = (keep(&votes, KEY_VOTE), keep(&records, KEY_RECORD));
                    out.add_command(replica.0, Command::Clean);
                    for (key, value) in [(KEY_VOTE, vote), (KEY_RECORD, record)] {
                        if let Some(value) = value {
                            put(&mut out, replica.0, key, value)?;
                        }
                    }
                }
            }
        }
        put(&mut out, LOG_REGION, KEY_NUMBER, number.to_le_bytes().to_vec())?;
        self.engine.write(&mut out, true).map_err(|e| self.error("written", e))?;
        Ok(())
    }

    fn fetch(
        &self,
        replica: ReplicaId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        if low >= high {
            return Ok(Vec::new());
        }
        let mut raw = Vec::new();
        let mut fetch = || {
            raw.clear();
            let max = Some(max_bytes as usize);
            self.engine.fetch_entries_to::<Ext>(replica.0, low, high, max, &mut raw)
        };
        // A purge may move entries between the look into the index and the read: look again.
        fetch().or_else(|_| fetch()).map_err(|e| self.error("read", e))?;
        if raw.is_empty() {
            return Err(LogError::Missing { replica, index: low });
        }
        raw.iter()
            .zip(low..)
            .map(|(r, index)| {
                let entry = decode_entry(&r.bytes)?;
                if entry.index != index {
                    return Err(LogError::Missing { replica, index });
                }
                Ok(entry)
            })
            .collect()
    }

    fn load(&self) -> Result<Vec<LoadedReplica>, LogError> {
        let mut out = Vec::new();
        for region in self.engine.raft_groups() {
            if region == LOG_REGION {
                continue;
            }
            let Some(record) = self.engine.get(region, KEY_RECORD) else { continue };
            let vote = self.engine.get(region, KEY_VOTE).map(|v| Vote::decode(&v)).transpose()?;
            let first = self.engine.first_index(region);
            out.push(LoadedReplica {
                record: ReplicaRecord::decode(&record)?,
                vote,
                entries: first.zip(self.engine.last_index(region)),
            });
        }
        out.sort_by_key(|l| l.record.replica);
        Ok(out)
    }

    fn last_number(&self) -> u64 {
        self.engine
            .get(LOG_REGION, KEY_NUMBER)
            .and_then(|v| v.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    fn purge(&self) -> Result<(), LogError> {
        self.engine.purge_expired_files().map(drop).map_err(|e| self.error("purged", e))
    }
}
