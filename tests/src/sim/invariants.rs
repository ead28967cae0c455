//! What must hold after every step, whatever happens: the promises of replication and storage, each
//! checked where it could first be seen broken.
mod moves;

use super::disk::Durable;
use super::node::{Checkpoint, Node};
use crate::checker;
use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::partition::store::AppliedMark;
use ringfold_node::raft::apply::ApplyTask;
use ringfold_node::raft::driver::PeerMessage;
use ringfold_node::raft::handle::Role;
use ringfold_node::raft::log::{ReplicaRecord, Vote};
use ringfold_node::raft::membership::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two replicas (or two lives of one) led a group in one term.
    TwoLeaders,
    /// Two replicas handed different entries of one index to apply.
    CommittedDiffers,
    /// An entry was handed to apply that no majority has durably.
    NotOnMajority,
    /// A vote or an acknowledgement left a node before it was synced there.
    PromiseNotSynced,
    /// A replica voted for two in one term, or forgot its vote.
    VoteChanged,
    /// A replica skipped entries, or applied them again.
    ApplyGap,
    /// A replica's commit index went back, or is below what it has applied.
    CommitWentBack,
    /// Replicas differ in content at the same applied index.
    ContentDiffers,
    /// Positions do not rise with the applied index.
    PositionWentBack,
    /// Replicas differ in the membership that one entry made.
    MembershipDiffers,
    /// A membership that was in effect is not in the record after a restart.
    MembershipLost,
    /// A lease was valid while another had committed in a later term.
    LeaseBroken,
    /// A replica id got a second life.
    ReplicaIdUsedTwice,
    /// A change was made on another membership than the one that it was planned on.
    StaleStep,
    /// A leader confirmed to be without a replica that was in its group, or the records forgot one
    /// that is in its group.
    MemberForgotten,
    /// The data of a voter were deleted.
    MemberDestroyed,
    /// A membership without a majority of replicas whose disks are there.
    QuorumLost,
    /// A replica took a checkpoint whose membership lacks it.
    CheckpointLacksReceiver,
    /// The log was compacted past a checkpoint that is on its way.
    CompactedPastTransfer,
    /// A replica was closed.
    Closed,
    /// After all faults ended the cluster did not come to rest.
    NotLive,
    /// What clients saw does not fit the log.
    History(checker::Kind),
}

pub struct Broken {
    pub kind: Kind,
    pub detail: String,
}

pub type Held = Result<(), Broken>;

fn broken(kind: Kind, detail: String) -> Held {
    Err(Broken { kind, detail })
}

#[derive(Default)]
pub struct Invariants {
    /// Who led, and in which life of its node.
    leaders: BTreeMap<(GroupId, u64), (ReplicaId, u64)>,
    /// Term and hash of each entry that was handed to apply.
    committed: BTreeMap<(GroupId, u64), (u64, u64)>,
    committed_term: BTreeMap<GroupId, u64>,
    /// Of each replica in its present life: the last entry handed to apply, and the commit index.
    handed: BTreeMap<ReplicaId, u64>,
    commits: BTreeMap<ReplicaId, u64>,
    votes: BTreeMap<(ReplicaId, u64), u64>,
    marks: BTreeMap<(GroupId, u64), AppliedMark>,
    memberships: BTreeMap<(GroupId, u64), Membership>,
    /// Index of the membership change that a replica took last.
    in_effect: BTreeMap<ReplicaId, u64>,
    /// Replicas whose disk was lost: they had what they had acknowledged.
    lost: BTreeSet<ReplicaId>,
    /// Replicas that their group confirmed to be without.
    confirmed: BTreeSet<ReplicaId>,
}

impl Invariants {
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub fn membership_changes(&self) -> u64 {
        self.memberships.keys().filter(|(_, index)| *index > 0).count() as u64
    }

    /// A group begins.
    pub fn begins(&mut self, group: GroupId, membership: Membership) {
        self.memberships.insert((group, 0), membership);
    }

    /// A replica begins with nothing.
    pub fn founded(&mut self, replica: ReplicaId) {
        self.handed.insert(replica, 0);
        self.commits.insert(replica, 0);
    }

    pub fn disk_lost(&mut self, replica: ReplicaId) {
        self.lost.insert(replica);
    }

    /// A replica starts on what its disk holds; `applied`: what its database holds.
    pub fn starts(&mut self, record: &ReplicaRecord, vote: Option<Vote>, applied: u64) -> Held {
        let replica = record.replica;
        self.handed.insert(replica, applied);
        self.commits.insert(replica, applied);
        let was = self.in_effect.get(&replica).copied().unwrap_or(0);
        if record.membership_index < was {
            let is = record.membership_index;
            return broken(
                Kind::MembershipLost,
                format!("{replica} had the membership of entry {was}, its record has that of {is}"),
            );
        }
        let vote = vote.unwrap_or_default();
        let cast = self.votes.range((replica, 0)..=(replica, u64::MAX)).next_back();
        if let Some(((_, term), candidate)) = cast
            && (vote.term < *term || vote.term == *term && vote.vote != *candidate)
        {
            return broken(
                Kind::VoteChanged,
                format!("{replica} voted for {candidate} in term {term}, its log has {vote:?}"),
            );
        }
        Ok(())
    }

    /// A message leaves a node. `synced`: what its sender has durably; `None`: do not look.
    pub fn leaves(&mut self, m: &PeerMessage, synced: Option<&Durable>) -> Held {
        // Only appends are large, and they promise nothing.
        if m.bytes.len() > 512 {
            return Ok(());
        }
        let Ok(message) = Message::decode(&m.bytes[..]) else { return Ok(()) };
        let replica = m.from;
        let candidate = match message.get_msg_type() {
            MessageType::MsgRequestVote => replica.0,
            MessageType::MsgRequestVoteResponse if !message.reject => message.to,
            MessageType::MsgAppendResponse if !message.reject => {
                let index = message.index;
                // A later term that is durable came behind what was promised in this one: it was
                // synced as well, or a leader of the later term took its place in the same batch.
                // One that was destroyed in the same batch is in no group any more.
                if let Some(d) = synced.filter(|d| !d.destroyed)
                    && d.vote.term <= message.term
                    && index > d.last_index.max(d.truncated_index)
                {
                    return broken(
                        Kind::PromiseNotSynced,
                        format!("{replica} acknowledges entry {index} with only {d:?} synced"),
                    );
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        if let Some(d) = synced
            && (d.vote.term, d.vote.vote) != (message.term, candidate)
            && d.vote.term <= message.term
        {
            return broken(
                Kind::PromiseNotSynced,
                format!("{replica} votes for {candidate} in term {} with {d:?}", message.term),
            );
        }
        let before = *self.votes.entry((replica, message.term)).or_insert(candidate);
        if before != candidate {
            return broken(
                Kind::VoteChanged,
                format!("{replica} votes for {candidate} and {before} in term {}", message.term),
            );
        }
        Ok(())
    }

    /// The driver hands work to apply.
    pub fn handed(&mut self, task: &ApplyTask, nodes: &[Node]) -> Held {
        match task {
            ApplyTask::Open { .. } | ApplyTask::Close { .. } => {}
            ApplyTask::Install { replica, index, .. } => {
                self.handed.insert(*replica, *index);
            }
            ApplyTask::Entries { group, replica, entries } => {
                for e in entries {
                    let last = self.handed.entry(*replica).or_default();
                    if e.index != *last + 1 {
                        return broken(
                            Kind::ApplyGap,
                            format!("{replica} of {group} gets entry {} behind {last}", e.index),
                        );
                    }
                    *last = e.index;
                    let hash = e.data.as_ref().map_or(0, |d| xxh3_64(d));
                    let new = (e.term, hash);
                    match self.committed.insert((*group, e.index), new) {
                        Some(old) if old != new => {
                            return broken(
                                Kind::CommittedDiffers,
                                format!(
                                    "entry {} of {group}: {replica} has (term, hash) {new:?}, another had {old:?}",
                                    e.index
                                ),
                            );
                        }
                        Some(_) => {}
                        None => self.on_majority(*group, e.index, e.term, nodes)?,
                    }
                    let term = self.committed_term.entry(*group).or_default();
                    *term = e.term.max(*term);
                    if e.membership.is_some() {
                        self.in_effect.insert(*replica, e.index);
                    }
                }
            }
        }
        Ok(())
    }

    /// The memberships that may have committed an entry: the last ones.
    fn on_majority(&self, group: GroupId, index: u64, term: u64, nodes: &[Node]) -> Held {
        let mut last = self.memberships.range((group, 0)..=(group, u64::MAX)).rev().take(3);
        let has = |replica: u64| {
            let replica = ReplicaId(replica);
            self.lost.contains(&replica) || nodes.iter().any(|n| n.log.has(replica, index, term))
        };
        if last.any(|(_, m)| 2 * m.voters.iter().filter(|v| has(**v)).count() > m.voters.len()) {
            return Ok(());
        }
        broken(Kind::NotOnMajority, format!("entry {index} of term {term} of {group}"))
    }

    /// After a step of a node.
    pub fn state(&mut self, at: usize, nodes: &[Node], now_ns: u64) -> Held {
        let Some(running) = &nodes[at].running else { return Ok(()) };
        for (group, view) in &running.views {
            let replica = view.replica;
            let status = view.status.read();
            let leaves = running.leaving.as_ref().is_some_and(|l| l.replica == replica);
            if leaves {
                continue;
            }
            if status.role == Role::Closed {
                let reason = status.closed_reason.clone().unwrap_or_default();
                return broken(Kind::Closed, format!("{replica} of {group}: {reason}"));
            }
            if status.role == Role::Leader {
                let me = (replica, nodes[at].life);
                let first = *self.leaders.entry((*group, status.term)).or_insert(me);
                if first != me {
                    return broken(
                        Kind::TwoLeaders,
                        format!(
                            "(replica, life) {me:?} and {first:?} of {group} in term {}",
                            status.term
                        ),
                    );
                }
            }
            let before = self.commits.insert(replica, status.commit_index).unwrap_or(0);
            let applied = view.applied.borrow().index;
            if status.commit_index < before.max(applied) {
                return broken(
                    Kind::CommitWentBack,
                    format!(
                        "{replica} of {group}: commit index {}, was {before}; applied {applied}",
                        status.commit_index
                    ),
                );
            }
            if let Some(record) = running.driver.record(*group) {
                self.membership(record)?;
            }
        }
        for (group, term) in &self.committed_term {
            for n in nodes {
                let Some(view) = n.view(*group) else { continue };
                let until_ns = view.lease_until_ns.load(Ordering::Acquire);
                let led = view.status.read().term;
                if n.clock.boot_ns(now_ns) < until_ns && led < *term {
                    return broken(
                        Kind::LeaseBroken,
                        format!(
                            "{} has a lease of {group} in term {led}, term {term} has committed",
                            n.id
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    fn membership(&mut self, record: &ReplicaRecord) -> Held {
        let key = (record.group, record.membership_index);
        match self.memberships.get(&key) {
            None => {
                self.memberships.insert(key, record.membership.clone());
                self.has_quorum(record)?;
            }
            Some(known) if *known != record.membership => {
                return broken(
                    Kind::MembershipDiffers,
                    format!(
                        "{} of {} has {:?} of entry {}, another has {known:?}",
                        record.replica, key.0, record.membership, key.1
                    ),
                );
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// A checkpoint carries the membership of its index.
    pub fn checkpoint(&self, group: GroupId, c: &Checkpoint) -> Held {
        let last = self.memberships.range((group, 0)..=(group, c.mark.index)).next_back();
        match last {
            Some(((_, index), m)) if (*index, m) != (c.membership_index, &c.membership) => broken(
                Kind::MembershipDiffers,
                format!(
                    "a checkpoint of {group} at {} has the membership of {}, the last one is of {index}",
                    c.mark.index, c.membership_index
                ),
            ),
            _ => Ok(()),
        }
    }

    /// A database's mark after apply.
    pub fn applied(&mut self, group: GroupId, mark: AppliedMark) -> Held {
        let mark = AppliedMark { membership: None, ..mark };
        let key = (group, mark.index);
        if let Some(known) = self.marks.get(&key) {
            if *known != mark {
                return broken(Kind::ContentDiffers, format!("{group}: {mark:?} and {known:?}"));
            }
            return Ok(());
        }
        let below = self.marks.range((group, 0)..key).next_back();
        let above = self.marks.range(key..=(group, u64::MAX)).next();
        let rises = |a: &AppliedMark, b: &AppliedMark| {
            (a.last_position, a.events) <= (b.last_position, b.events)
                && (a.events == b.events) == (a.chain == b.chain)
        };
        if below.is_some_and(|(_, b)| !rises(b, &mark))
            || above.is_some_and(|(_, a)| !rises(&mark, a))
        {
            return broken(
                Kind::PositionWentBack,
                format!("{group}: {mark:?} between {below:?} and {above:?}"),
            );
        }
        self.marks.insert(key, mark);
        Ok(())
    }
}

/// A message for a person.
pub fn shown(m: &PeerMessage) -> String {
    let Ok(message) = Message::decode(&m.bytes[..]) else { return "undecodable".into() };
    let entries: Vec<(u64, u64)> = message.entries.iter().map(|e| (e.index, e.term)).collect();
    format!(
        "{} {}->{} {:?} term {} (log term {}) index {} commit {}{} entries {entries:?}",
        m.group,
        m.from.0,
        m.to.0,
        message.get_msg_type(),
        message.term,
        message.log_term,
        message.index,
        message.commit,
        if message.reject { " reject" } else { "" },
    )
}
