//! What replicas of one group send each other, as the transport sees it.
use crate::ids::{GroupId, ReplicaId};
use bytes::Bytes;

/// Which connection a message takes: heartbeats and votes must not wait behind entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    Votes,
    Entries,
}

/// A raft message between replicas of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    pub group: GroupId,
    pub from: ReplicaId,
    pub to: ReplicaId,
    pub bytes: Bytes,
}
