//! The apply side: state machines run committed entries in order and answer the proposals.
use crate::ids::{GroupId, ReplicaId};
use crate::partition::Reader;
use crate::partition::apply::CommandOutcome;
use crate::raft::handle::{Applied, ProposeError, ProposeResult, ReplicaView};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a group replicates. Pure but for its own database: the same entries give the same content.
pub trait StateMachine: Send {
    /// Index and term of the last entry applied, and the position of the last event.
    fn applied(&self) -> (u64, u64, u64);

    /// Applies the entry behind the last one. An error closes the group.
    fn apply(&mut self, index: u64, term: u64, data: Bytes) -> Result<Vec<CommandOutcome>, String>;

    /// An entry without commands: raft's own, or a membership change, whose encoded
    /// `ringfold.internal.v1.Membership` is kept with its index.
    fn skip(&mut self, index: u64, term: u64, membership: Option<&[u8]>) -> Result<(), String>;

    /// Bytes written since the last flush, about.
    fn unflushed_bytes(&self) -> u64;

    /// Readers of the database that this machine writes.
    fn reader(&self) -> Reader;
}

/// Proposals of this node within one entry: how many commands each has, and who waits.
pub type Replies = Vec<(u32, oneshot::Sender<ProposeResult>)>;

/// A committed entry.
pub struct Committed {
    pub index: u64,
    pub term: u64,
    /// `None`: nothing to do but to count it.
    pub data: Option<Bytes>,
    /// Encoded, where the entry is a membership change.
    pub membership: Option<Vec<u8>>,
    pub replies: Replies,
}

/// Work for the thread that owns a group's state machine; in order for each group.
pub enum ApplyTask {
    Open {
        group: GroupId,
        machine: Box<dyn StateMachine>,
        view: Arc<ReplicaView>,
    },
    Entries {
        group: GroupId,
        replica: ReplicaId,
        entries: Vec<Committed>,
    },
    /// The record names this directory now: go on with the checkpoint in it.
    Install {
        group: GroupId,
        replica: ReplicaId,
        directory: u32,
        index: u64,
    },
    /// Closes the database, if it is open.
    Close {
        group: GroupId,
        replica: ReplicaId,
        /// Told when it is closed.
        done: Option<oneshot::Sender<()>>,
    },
}

impl ApplyTask {
    pub fn group(&self) -> GroupId {
        match self {
            ApplyTask::Open { group, .. }
            | ApplyTask::Entries { group, .. }
            | ApplyTask::Install { group, .. }
            | ApplyTask::Close { group, .. } => *group,
        }
    }

    pub fn replica(&self) -> ReplicaId {
        match self {
            ApplyTask::Open { view, .. } => view.replica,
            ApplyTask::Entries { replica, .. }
            | ApplyTask::Install { replica, .. }
            | ApplyTask::Close { replica, .. } => *replica,
        }
    }
}

/// What the driver hears back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyNotice {
    Applied {
        group: GroupId,
        replica: ReplicaId,
        index: u64,
    },
    /// The group cannot go on: it is closed.
    Failed {
        group: GroupId,
        replica: ReplicaId,
        reason: Arc<str>,
    },
}

/// Opens the database of an installed checkpoint.
pub type Reopen =
    Arc<dyn Fn(GroupId, ReplicaId, u32) -> Result<Box<dyn StateMachine>, String> + Send + Sync>;

struct Machine {
    machine: Box<dyn StateMachine>,
    view: Arc<ReplicaView>,
}

/// The groups of one apply thread.
pub struct Applier {
    groups: HashMap<GroupId, Machine>,
    reopen: Reopen,
}

impl Applier {
    pub fn new(reopen: Reopen) -> Applier {
        Applier { groups: HashMap::new(), reopen }
    }

    /// Runs one task; the notice, if any, goes to the driver.
    pub fn run(&mut self, task: ApplyTask) -> Option<ApplyNotice> {
        match task {
            ApplyTask::Open { group, machine, view } => {
                self.groups.insert(group, Machine { machine, view });
                None
            }
            ApplyTask::Close { group, replica, done } => {
                if self.groups.get(&group).is_some_and(|m| m.view.replica == replica) {
                    self.groups.remove(&group);
                }
                if let Some(done) = done {
                    let _ = done.send(());
                }
                None
            }
            ApplyTask::Entries { group, replica, entries } => {
                let m = self.groups.get_mut(&group).filter(|m| m.view.replica == replica);
                let Some(m) = m else {
                    for e in entries {
                        refuse(e.replies, &ProposeError::Unknown);
                    }
                    return None;
                };
                match m.entries(entries) {
                    Ok(index) => Some(ApplyNotice::Applied { group, replica, index }),
                    Err(reason) => self.fail(group, replica, reason),
                }
            }
            ApplyTask::Install { group, replica, directory, index } => {
                let view = match self.groups.remove(&group) {
                    Some(m) if m.view.replica == replica => m.view,
                    _ => return None,
                };
                // The old database is closed before the new one opens: they share nothing, but
                // two open ones would double the memory.
                match (self.reopen)(group, replica, directory) {
                    Ok(machine) => {
                        let (applied, _, position) = machine.applied();
                        if applied != index {
                            let reason = format!(
                                "the installed checkpoint is at index {applied}, {index} expected"
                            );
                            self.groups.insert(group, Machine { machine, view });
                            return self.fail(group, replica, reason);
                        }
                        // No record names the old one since the install is synced.
                        view.reader.replace(&machine.reader()).discard();
                        view.applied.send_replace(Applied { index, position });
                        self.groups.insert(group, Machine { machine, view });
                        Some(ApplyNotice::Applied { group, replica, index })
                    }
                    Err(reason) => Some(ApplyNotice::Failed {
                        group,
                        replica,
                        reason: format!("the installed checkpoint cannot be opened: {reason}")
                            .into(),
                    }),
                }
            }
        }
    }

    fn fail(&mut self, group: GroupId, replica: ReplicaId, reason: String) -> Option<ApplyNotice> {
        self.groups.remove(&group);
        Some(ApplyNotice::Failed { group, replica, reason: reason.into() })
    }
}

impl Machine {
    /// Applies in order and answers; the last index applied.
    fn entries(&mut self, entries: Vec<Committed>) -> Result<u64, String> {
        let mut last = self.machine.applied().0;
        let mut answers = Vec::new();
        for e in entries {
            // Replayed behind what the database holds already.
            if e.index <= last {
                refuse(e.replies, &ProposeError::Unknown);
                continue;
            }
            let outcome = match e.data {
                Some(data) => self.machine.apply(e.index, e.term, data),
                None => {
                    self.machine.skip(e.index, e.term, e.membership.as_deref()).map(|()| Vec::new())
                }
            };
            match outcome {
                Ok(outcomes) => {
                    last = e.index;
                    if !e.replies.is_empty() {
                        answers.push((e.replies, outcomes));
                    }
                }
                Err(reason) => {
                    refuse(e.replies, &ProposeError::Unknown);
                    return Err(format!("entry {}: {reason}", e.index));
                }
            }
        }
        let (index, _, position) = self.machine.applied();
        // Readers that wait for a position see it before the client hears of its append.
        self.view.applied.send_replace(Applied { index, position });
        self.view
            .unflushed_bytes
            .store(self.machine.unflushed_bytes(), std::sync::atomic::Ordering::Relaxed);
        for (replies, outcomes) in answers {
            let mut outcomes = outcomes.into_iter();
            for (count, reply) in replies {
                let own: Vec<_> = outcomes.by_ref().take(count as usize).collect();
                let answer =
                    if own.len() == count as usize { Ok(own) } else { Err(ProposeError::Unknown) };
                let _ = reply.send(answer);
            }
        }
        Ok(last)
    }
}

/// Answers proposals that have no outcome.
pub fn refuse(replies: Replies, error: &ProposeError) {
    for (_, reply) in replies {
        let _ = reply.send(Err(error.clone()));
    }
}
