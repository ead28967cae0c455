//! The disks of one node. A batch of the log is there or not, as a whole; databases fall back to
//! their last flush in a crash; a lost disk has nothing left.
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::partition::apply::{Genesis, PartitionMachine, PlantedFaults};
use ringfold_node::partition::store::MemoryDisk;
use ringfold_node::raft::apply::StateMachine;
use ringfold_node::raft::log::memory::MemoryLog;
use ringfold_node::raft::log::{LogBatch, LogOp, RaftLog, Vote};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What is durable of one replica's log, kept beside it to be looked up cheaply.
#[derive(Debug, Clone, Default)]
pub struct Durable {
    pub last_index: u64,
    pub truncated_index: u64,
    pub vote: Vote,
    pub destroyed: bool,
}

#[derive(Default)]
pub struct LogDisk {
    pub log: Arc<MemoryLog>,
    pub durable: BTreeMap<ReplicaId, Durable>,
}

impl LogDisk {
    /// Writes a batch that is synced with it.
    pub fn write(&mut self, ops: Vec<LogOp>) -> Result<(), String> {
        for op in &ops {
            match op {
                LogOp::Entries { replica, first_index, entries } => {
                    self.durable.entry(*replica).or_default().last_index =
                        first_index + entries.len() as u64 - 1;
                }
                LogOp::Vote { replica, vote } => {
                    self.durable.entry(*replica).or_default().vote = *vote;
                }
                LogOp::Record(record) => {
                    let d = self.durable.entry(record.replica).or_default();
                    d.truncated_index = record.truncated_index;
                    d.destroyed = record.destroyed;
                }
                LogOp::Clear { replica } => {
                    self.durable.entry(*replica).or_default().last_index = 0;
                }
                LogOp::Compact { .. } => {}
            }
        }
        let number = self.log.last_number() + 1;
        self.log.write(number, LogBatch { ops }).map_err(|e| e.to_string())
    }

    /// Whether a replica of this node has the entry durably.
    pub fn has(&self, replica: ReplicaId, index: u64, term: u64) -> bool {
        let Some(d) = self.durable.get(&replica) else { return false };
        if index <= d.truncated_index {
            return true;
        }
        index <= d.last_index
            && self
                .log
                .fetch(replica, index, index + 1, 1)
                .is_ok_and(|e| e.first().is_some_and(|e| e.term == term))
    }
}

pub fn directory(replica: ReplicaId, number: u32) -> PathBuf {
    PathBuf::from(format!("{}.{number}", replica.0))
}

/// Opens the database in a directory, or makes it.
pub fn open(
    disk: &MemoryDisk,
    group: GroupId,
    replica: ReplicaId,
    number: u32,
    create: bool,
    faults: PlantedFaults,
) -> Result<Box<dyn StateMachine>, String> {
    const LAST: u32 = 1;
    const MERGE_PATCH: u32 = 2;
    let partition = group.partition().ok_or("the meta group is not simulated")?;
    let last = crate::model::LAST_CATEGORY.to_string();
    let genesis = Genesis::new(partition, MERGE_PATCH, [(&last, &LAST)]);
    let path = directory(replica, number);
    let store = disk.open(&path, create).map_err(|e| e.to_string())?;
    let mut machine =
        PartitionMachine::with_store(store, &genesis, create).map_err(|e| e.to_string())?;
    machine.plant(faults);
    Ok(Box::new(machine))
}
