//! Proposals on their way into entries, and who waits for which entry.
use super::Group;
use crate::clock::EPOCH_UNIX_MS;
use crate::ids::GroupId;
use crate::raft::apply::{Replies, refuse};
use crate::raft::driver::{DriverSettings, Now, STAMP_MS_MAX};
use crate::raft::handle::{ProposeError, ProposeResult};
use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use tokio::sync::oneshot;

/// Commands of one caller that stay together in one entry.
pub(in crate::raft) struct Proposal {
    pub commands: Vec<Bytes>,
    pub bytes: u64,
    pub after_position: u64,
    pub reply: oneshot::Sender<ProposeResult>,
}

/// An entry of this leader that is not committed yet.
pub(super) struct InFlight {
    index: u64,
    pub(super) bytes: u64,
    pub(super) replies: Replies,
}

impl Group {
    /// Queues a proposal. True: the group is to be visited by `start_proposals`.
    pub fn enqueue(&mut self, proposal: Proposal) -> bool {
        self.in_flight_bytes += proposal.bytes;
        self.waiting_bytes += proposal.bytes;
        self.proposals.push_back(proposal);
        !std::mem::replace(&mut self.proposals_queued, true)
    }

    /// Packs what waits into entries while the window has room. True: some still wait.
    pub fn start_proposals(&mut self, now: Now, settings: &DriverSettings) -> bool {
        self.proposals_queued = false;
        if !self.is_leader() {
            self.refuse_proposals();
            return false;
        }
        let mut packed: Vec<(Entry, InFlight)> = Vec::new();
        // What was committed in this round has made room, and is handed to apply later in it.
        let committed = self.raw.raft.raft_log.committed;
        let uncommitted = self.in_flight.iter().filter(|f| f.index > committed).count();
        while !self.proposals.is_empty() && self.transfer.is_none() {
            let in_flight = uncommitted + packed.len();
            // Each entry costs every replica the same again, however little is in it: behind one
            // that is under way only a full one is worth its own.
            let is_full = self.waiting_bytes >= settings.entry_joins_bytes;
            if in_flight >= settings.entries_in_flight as usize || (in_flight > 0 && !is_full) {
                break;
            }
            packed.push(self.pack(now, settings));
        }
        if !packed.is_empty() {
            let mut message = Message { from: self.replica.0, ..Default::default() };
            message.set_msg_type(MessageType::MsgPropose);
            let first = self.raw.raft.raft_log.last_index() + 1;
            let (entries, mut flights): (Vec<_>, Vec<_>) = packed.into_iter().unzip();
            message.set_entries(entries);
            match self.raw.step(message) {
                Ok(()) => {
                    for (flight, index) in flights.iter_mut().zip(first..) {
                        flight.index = index;
                    }
                    self.in_flight.extend(flights);
                }
                Err(_) => {
                    let error = ProposeError::NotLeader { leader: self.leader_node() };
                    for flight in flights {
                        self.in_flight_bytes -= flight.bytes;
                        refuse(flight.replies, &error);
                    }
                }
            }
        }
        self.proposals_queued = !self.proposals.is_empty();
        self.proposals_queued
    }

    /// One entry of the proposals in front (docs/formats.md): a format byte, the leader's stamp and
    /// limits, then the commands as they were encoded.
    fn pack(&mut self, now: Now, settings: &DriverSettings) -> (Entry, InFlight) {
        let mut count = 0;
        let mut bytes = 0;
        for p in &self.proposals {
            if count > 0 && bytes + p.bytes > settings.entry_bytes as u64 {
                break;
            }
            count += 1;
            bytes += p.bytes;
        }
        let mut data = Vec::with_capacity(bytes as usize + 32);
        data.push(crate::raft::ENTRY_FORMAT);
        let after = self.proposals.iter().take(count).map(|p| p.after_position).max().unwrap_or(0);
        let tag = if self.id == GroupId::META {
            META_COMMANDS_TAG
        } else {
            let now_ms = now.wall_ms.saturating_sub(EPOCH_UNIX_MS).min(STAMP_MS_MAX);
            let now_stamp = now_ms << 21;
            let stamp = now_stamp.max(((after >> 10) + 1) << 10).max(self.last_stamp);
            self.last_stamp = stamp;
            for (tag, value) in [
                (STAMP_TAG, stamp),
                (MAX_STATE_TAG, u64::from(settings.max_state_bytes)),
                (SNAPSHOT_EVERY_TAG, u64::from(settings.snapshot_every)),
            ] {
                data.push(tag);
                put_varint(&mut data, value);
            }
            COMMANDS_TAG
        };
        let mut replies = Vec::with_capacity(count);
        self.waiting_bytes -= bytes;
        for p in self.proposals.drain(..count) {
            for c in &p.commands {
                data.push(tag);
                put_varint(&mut data, c.len() as u64);
                data.extend_from_slice(c);
            }
            replies.push((p.commands.len() as u32, p.reply));
        }
        (Entry { data, ..Default::default() }, InFlight { index: 0, bytes, replies })
    }

    pub(super) fn refuse_proposals(&mut self) {
        let error = ProposeError::NotLeader { leader: self.leader_node() };
        self.waiting_bytes = 0;
        for p in self.proposals.drain(..) {
            self.in_flight_bytes -= p.bytes;
            let _ = p.reply.send(Err(error.clone()));
        }
    }

    /// The callers of a committed entry, if it is theirs.
    pub(super) fn take_replies(&mut self, e: &Entry) -> Replies {
        while self.in_flight.front().is_some_and(|f| f.index <= e.index) {
            let Some(f) = self.in_flight.pop_front() else { break };
            self.applying.push_back((e.index, f.bytes));
            // In-flight entries are dropped when leadership is lost, so an index is of this term.
            if f.index == e.index {
                return f.replies;
            }
            refuse(f.replies, &ProposeError::Unknown);
        }
        Vec::new()
    }
}

// Tags of internal.Entry and internal.MetaEntry (proto/ringfold/internal/v1); a test holds them
// equal to what the generated types write.
const STAMP_TAG: u8 = 1 << 3;
const MAX_STATE_TAG: u8 = 2 << 3;
const SNAPSHOT_EVERY_TAG: u8 = 3 << 3;
const COMMANDS_TAG: u8 = 15 << 3 | 2;
const META_COMMANDS_TAG: u8 = 1 << 3 | 2;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use ringfold_proto::internal;

    #[test]
    fn packed_tags_are_those_of_the_generated_types() {
        let command = internal::Command {
            command: Some(internal::command::Command::Close(internal::Close { position: 5 })),
        };
        let e = internal::Entry {
            stamp: 300,
            max_state_bytes: 7,
            snapshot_every: 9,
            commands: vec![command.clone(), command.clone()],
        };
        let mut ours = Vec::new();
        for (tag, value) in [(STAMP_TAG, 300), (MAX_STATE_TAG, 7), (SNAPSHOT_EVERY_TAG, 9)] {
            ours.push(tag);
            put_varint(&mut ours, value);
        }
        for _ in 0..2 {
            let c = command.encode_to_vec();
            ours.push(COMMANDS_TAG);
            put_varint(&mut ours, c.len() as u64);
            ours.extend_from_slice(&c);
        }
        assert_eq!(ours, e.encode_to_vec());
        let meta = internal::MetaEntry {
            commands: vec![internal::MetaCommand { if_epoch: 4, command: None }],
        };
        let c = meta.commands[0].encode_to_vec();
        let mut ours = vec![META_COMMANDS_TAG];
        put_varint(&mut ours, c.len() as u64);
        ours.extend_from_slice(&c);
        assert_eq!(ours, meta.encode_to_vec());
    }
}
