//! What checkpoint transfers need of this node's replicas.
use crate::ids::{GroupId, ReplicaId};
use crate::partition::store::{AppliedMark, read_mark};
use crate::peer::transfer::{Checkpoint, LocalReplica, Received, TransferHost};
use crate::raft::driver::{Incoming, Input};
use crate::raft::handle::{RaftHandle, Role};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;

pub struct ReplicaTransfers {
    pub raft: RaftHandle,
    pub input: Arc<dyn Fn(Input) + Send + Sync>,
}

#[tonic::async_trait]
impl TransferHost for ReplicaTransfers {
    fn checkpoint(&self, group: GroupId, path: &Path) -> Result<Checkpoint, String> {
        let view = self.raft.replica(group).ok_or("no replica of the group is here")?;
        let mark = view.reader.checkpoint(path).map_err(|e| e.to_string())?;
        // After the checkpoint: the record must have the membership of the entry that the database
        // has last taken one from. It may be ahead of a database that replays the log after a start:
        // that takes over the last change only, not those before it.
        let (reply, facts) = oneshot::channel();
        (self.input)(Input::Facts { group, reply });
        let facts =
            facts.blocking_recv().ok().flatten().ok_or("the replica was closed meanwhile")?;
        let inside = mark.membership.as_ref().map_or(0, |(index, _)| *index);
        if inside != facts.membership_index {
            return Err(format!(
                "the database has the membership of entry {inside}, its record that of {}: \
                 it applies the entries between them first",
                facts.membership_index
            ));
        }
        Ok(Checkpoint {
            from: view.replica,
            mark,
            membership: facts.membership.to_proto(),
            membership_index: facts.membership_index,
        })
    }

    fn first_index(&self, group: GroupId) -> u64 {
        self.raft.replica(group).map_or(u64::MAX, |v| v.status.read().first_index)
    }

    fn hold_log(&self, group: GroupId, to: ReplicaId, index: Option<u64>) {
        (self.input)(Input::TransferFloor { group, to, index });
    }

    fn replica(&self, group: GroupId) -> Option<LocalReplica> {
        let view = self.raft.replica(group)?;
        if view.status.read().role == Role::Closed {
            return None;
        }
        Some(LocalReplica {
            replica: view.replica,
            directory: view.directory.load(Ordering::Acquire),
            applied_index: view.applied.borrow().index,
        })
    }

    fn read_mark(&self, path: &Path) -> Result<AppliedMark, String> {
        read_mark(path).map_err(|e| e.to_string())
    }

    async fn install(&self, received: Received) -> bool {
        let (reply, taken) = oneshot::channel();
        (self.input)(Input::Incoming(Box::new(Incoming {
            group: received.group,
            replica: received.replica,
            directory: received.directory,
            index: received.index,
            term: received.term,
            membership: received.membership,
            membership_index: received.membership_index,
            reply,
        })));
        taken.await.unwrap_or(false)
    }
}
