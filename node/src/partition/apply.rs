//! Applies entries: a pure function of the entry and the database.
use crate::raft::apply::StateMachine;

/// What one command of an entry came to. One refused never fails its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandOutcome {
    Appended(Appended),
    Refused(Refusal),
    /// A command without an answer of its own (`Close`, `Activate`, ...).
    Done,
    Meta(MetaOutcome),
}

/// Where an append's events are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first_revision: u64,
    pub last_revision: u64,
    pub first_position: u64,
    pub last_position: u64,
}

/// Why an append stored nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `actual`: revision of the stream's last event; `None`: there is no such stream.
    #[error("the stream is at another revision")]
    WrongExpectedRevision { actual: Option<u64> },
    /// Some of the append's ids are stored with other content, in another order, or only in part.
    #[error("event id {id} is stored already, at revision {revision}, with other content or in another append")]
    EventIdConflict { id: uuid::Uuid, revision: u64 },
    #[error("an earlier append of this stream failed")]
    EarlierAppendFailed,
    #[error("the stream is deleted for good")]
    Tombstoned,
}

/// What a command of the meta group came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaOutcome {
    Done,
    Joined { cluster_id: String, node_id: u64, meta_replica_id: u64 },
    Placed { epoch: u64 },
    /// What was wrong, as a sentence.
    Refused(String),
}

/// Applies a partition's entries to its store.
pub struct PartitionMachine;

#[allow(unused)]
impl StateMachine for PartitionMachine {
    fn applied(&self) -> (u64, u64, u64) {
        todo!()
    }
    fn apply(&mut self, index: u64, term: u64, data: bytes::Bytes) -> Result<Vec<CommandOutcome>, String> {
        todo!()
    }
    fn skip(&mut self, index: u64, term: u64, membership: Option<&[u8]>) -> Result<(), String> {
        todo!()
    }
    fn unflushed_bytes(&self) -> u64 {
        todo!()
    }
    fn reader(&self) -> super::Reader {
        todo!()
    }
}
