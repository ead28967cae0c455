//! The log in memory, for the simulation and for benchmarks of the driver alone.
use super::{LoadedReplica, LogBatch, LogError, LogOp, RaftLog, ReplicaRecord, Vote, decode_entry};
use crate::ids::ReplicaId;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, VecDeque};

#[derive(Default, Clone)]
struct Kept {
    record: Option<ReplicaRecord>,
    vote: Option<Vote>,
    first: u64,
    entries: VecDeque<Vec<u8>>,
}

#[derive(Default, Clone)]
struct Content {
    replicas: BTreeMap<ReplicaId, Kept>,
    number: u64,
}

/// Same contract as raft-engine's, synced at once. `snapshot` and `restore` let a test lose writes.
#[derive(Default)]
pub struct MemoryLog {
    content: Mutex<Content>,
}

/// A copy of a log's whole content.
#[derive(Clone, Default)]
pub struct LogImage(Content);

impl MemoryLog {
    pub fn image(&self) -> LogImage {
        LogImage(self.content.lock().clone())
    }

    pub fn from_image(image: LogImage) -> MemoryLog {
        MemoryLog { content: Mutex::new(image.0) }
    }
}

impl Content {
    fn apply(&mut self, op: LogOp) -> Result<(), LogError> {
        match op {
            LogOp::Entries { replica, first_index, entries } => {
                let kept = self.replicas.entry(replica).or_default();
                if kept.entries.is_empty() {
                    kept.first = first_index;
                }
                let end = kept.first + kept.entries.len() as u64;
                if first_index < kept.first || first_index > end {
                    return Err(LogError::Missing { replica, index: first_index.min(end) });
                }
                kept.entries.truncate((first_index - kept.first) as usize);
                kept.entries.extend(entries);
            }
            LogOp::Vote { replica, vote } => {
                self.replicas.entry(replica).or_default().vote = Some(vote);
            }
            LogOp::Record(record) => {
                let replica = record.replica;
                self.replicas.entry(replica).or_default().record = Some(*record);
            }
            LogOp::Compact { replica, first_kept } => {
                let kept = self.replicas.entry(replica).or_default();
                while kept.first < first_kept && kept.entries.pop_front().is_some() {
                    kept.first += 1;
                }
            }
            LogOp::Clear { replica } => {
                self.replicas.entry(replica).or_default().entries.clear();
            }
        }
        Ok(())
    }
}

impl RaftLog for MemoryLog {
    fn write(&self, number: u64, batch: LogBatch) -> Result<(), LogError> {
        let mut content = self.content.lock();
        for op in batch.ops {
            content.apply(op)?;
        }
        content.number = number;
        Ok(())
    }

    fn fetch(
        &self,
        replica: ReplicaId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let content = self.content.lock();
        let missing = |index| LogError::Missing { replica, index };
        let kept = content.replicas.get(&replica).ok_or(missing(low))?;
        let mut out = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let at = index.checked_sub(kept.first).ok_or(missing(index))?;
            let raw = kept.entries.get(at as usize).ok_or(missing(index))?;
            bytes += raw.len() as u64;
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            out.push(decode_entry(raw)?);
        }
        Ok(out)
    }

    fn load(&self) -> Result<Vec<LoadedReplica>, LogError> {
        let content = self.content.lock();
        Ok(content
            .replicas
            .values()
            .filter_map(|kept| {
                let last = kept.first + kept.entries.len() as u64;
                Some(LoadedReplica {
                    record: kept.record.clone()?,
                    vote: kept.vote,
                    entries: (!kept.entries.is_empty()).then(|| (kept.first, last - 1)),
                })
            })
            .collect())
    }

    fn last_number(&self) -> u64 {
        self.content.lock().number
    }

    fn purge(&self) -> Result<(), LogError> {
        Ok(())
    }
}
