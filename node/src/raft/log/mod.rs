//! The shared log of a node: entries, hard states and records of all its replicas, written one batch
//! a round with one sync. Two versions with one contract: raft-engine, and memory for simulations.
pub mod engine;
pub mod memory;

use crate::ids::{GroupId, ReplicaId};
use crate::raft::membership::Membership;
use prost_raft::Message as _;
use raft::eraftpb::Entry;
use ringfold_proto::internal;

/// The log cannot be used: the process must end, or its replicas be closed at start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("the log at {path} cannot be {action}: {reason}")]
    Io { path: String, action: &'static str, reason: String },
    #[error("the log holds a record that cannot be read: {0}. It may be from a newer version")]
    Record(String),
    #[error("the log has no entry {index} of {replica}")]
    Missing { replica: ReplicaId, index: u64 },
}

/// What a replica is, durable: written and synced before it takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRecord {
    pub group: GroupId,
    pub replica: ReplicaId,
    /// The live database is `<data>/partitions/<replica>.<directory>`.
    pub directory: u32,
    pub membership: Membership,
    /// Index of the entry that made the membership; 0: genesis.
    pub membership_index: u64,
    /// The entry before the first one kept.
    pub truncated_index: u64,
    pub truncated_term: u64,
    pub destroyed: bool,
    pub first_placed: bool,
}

const RECORD_FORMAT: u8 = 1;

impl ReplicaRecord {
    pub fn encode(&self) -> Vec<u8> {
        use prost::Message as _;
        let m = internal::ReplicaRecord {
            group: self.group.0,
            replica_id: self.replica.0,
            directory: self.directory,
            membership: Some(self.membership.to_proto()),
            membership_index: self.membership_index,
            truncated_index: self.truncated_index,
            truncated_term: self.truncated_term,
            destroyed: self.destroyed,
            first_placed: self.first_placed,
        };
        let mut out = Vec::with_capacity(1 + m.encoded_len());
        out.push(RECORD_FORMAT);
        m.encode_raw(&mut out);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<ReplicaRecord, LogError> {
        use prost::Message as _;
        match bytes.split_first() {
            Some((&RECORD_FORMAT, rest)) => {
                let m = internal::ReplicaRecord::decode(rest)
                    .map_err(|e| LogError::Record(e.to_string()))?;
                Ok(ReplicaRecord {
                    group: GroupId(m.group),
                    replica: ReplicaId(m.replica_id),
                    directory: m.directory,
                    membership: Membership::from_proto(&m.membership.unwrap_or_default()),
                    membership_index: m.membership_index,
                    truncated_index: m.truncated_index,
                    truncated_term: m.truncated_term,
                    destroyed: m.destroyed,
                    first_placed: m.first_placed,
                })
            }
            Some((f, _)) => Err(LogError::Record(format!("format {f}, expected {RECORD_FORMAT}"))),
            None => Err(LogError::Record("it is empty".into())),
        }
    }

    /// Name of the live directory below `<data>/partitions`.
    pub fn directory_name(&self) -> String {
        format!("{}.{}", self.replica.0, self.directory)
    }
}

/// Term and vote, and the commit index as of the write: kept no further than membership changes need
/// it, so a restart takes what is applied where that is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vote {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

impl Vote {
    const FORMAT: u8 = 1;

    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(25);
        out.push(Self::FORMAT);
        for v in [self.term, self.vote, self.commit] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Vote, LogError> {
        let word = |i: usize| {
            bytes
                .get(1 + i * 8..9 + i * 8)
                .and_then(|b| b.try_into().ok())
                .map(u64::from_le_bytes)
                .ok_or_else(|| LogError::Record("a hard state is too short".into()))
        };
        if bytes.first() != Some(&Self::FORMAT) {
            return Err(LogError::Record(format!(
                "hard state of format {:?}, expected {}",
                bytes.first(),
                Self::FORMAT
            )));
        }
        Ok(Vote { term: word(0)?, vote: word(1)?, commit: word(2)? })
    }
}

/// One change of the log. Within a batch they take effect in order.
#[derive(Debug, Clone)]
pub enum LogOp {
    /// Encoded entries with consecutive indexes. The first one deletes all at and above it.
    Entries {
        replica: ReplicaId,
        first_index: u64,
        entries: Vec<Vec<u8>>,
    },
    Vote {
        replica: ReplicaId,
        vote: Vote,
    },
    Record(Box<ReplicaRecord>),
    /// Forgets entries below `first_kept`.
    Compact {
        replica: ReplicaId,
        first_kept: u64,
    },
    /// Forgets all entries of a replica (a checkpoint takes their place).
    Clear {
        replica: ReplicaId,
    },
}

/// What one sync makes durable, all or nothing.
#[derive(Debug, Clone, Default)]
pub struct LogBatch {
    pub ops: Vec<LogOp>,
}

/// What the log holds of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedReplica {
    pub record: ReplicaRecord,
    pub vote: Option<Vote>,
    /// First and last entry; `None` when it has none.
    pub entries: Option<(u64, u64)>,
}

/// The log of a node. `write` is called by one thread; `fetch` by others too.
pub trait RaftLog: Send + Sync {
    /// Writes a batch under the next batch number and syncs it. An error ends the process.
    fn write(&self, number: u64, batch: LogBatch) -> Result<(), LogError>;

    /// Entries `[low, high)` of a replica in order, up to `max_bytes` but at least one.
    fn fetch(
        &self,
        replica: ReplicaId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError>;

    /// All replicas that have a record.
    fn load(&self) -> Result<Vec<LoadedReplica>, LogError>;

    /// Number of the last batch that is in the log; 0: none.
    fn last_number(&self) -> u64;

    /// Gives space back; called from time to time.
    fn purge(&self) -> Result<(), LogError>;
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, LogError> {
    Entry::decode(bytes).map_err(|e| LogError::Record(format!("an entry: {e}")))
}

#[cfg(test)]
mod tests;
