//! Each input of a round, to the group that it is for.
use super::{Driver, Input, Now, PersistedItem, Round, SHED_NS, STAMP_MS_MAX};
use crate::clock::EPOCH_UNIX_MS;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::apply::{ApplyNotice, ApplyTask};
use crate::raft::group::{Group, Proposal};
use crate::raft::handle::{ProposeError, ReadError, Request};
use crate::raft::message::PeerMessage;
use prost_raft::Message as _;
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};
use std::sync::atomic::{AtomicU64, Ordering};

impl Driver {
    pub(super) fn persisted(&mut self, item: PersistedItem, round: &mut Round) {
        let id = item.group;
        if item.destroyed {
            // Writes of before its end may be synced first: they say nothing of its record.
            let ended = |(g, r, _): &mut (GroupId, ReplicaId, _)| *g == id && *r == item.replica;
            for (group, replica, done) in self.destroying.extract_if(.., ended) {
                round.apply.push(ApplyTask::Close { group, replica, done: Some(done) });
            }
        }
        if self.groups.get(&id).is_none_or(|g| g.replica != item.replica) {
            return;
        }
        self.with_group(id, round, |g, round| g.persisted(&item, round));
        self.mark(id);
    }

    pub(super) fn notice(&mut self, n: ApplyNotice, round: &mut Round) {
        match n {
            ApplyNotice::Applied { group, replica, index } => {
                if self.groups.get(&group).is_none_or(|g| g.replica != replica) {
                    return;
                }
                let cache_bytes = self.settings.cache_bytes;
                self.with_group(group, round, |g, _| {
                    g.applied(index, cache_bytes);
                    Ok(())
                });
                self.mark(group);
            }
            ApplyNotice::Failed { group, replica, reason } => {
                if self.groups.get(&group).is_some_and(|g| g.replica == replica) {
                    self.close(group, &reason, round);
                }
            }
        }
    }

    pub(super) fn message(&mut self, now: Now, from: NodeId, m: PeerMessage, round: &mut Round) {
        let count = |c: &AtomicU64| {
            c.fetch_add(1, Ordering::Relaxed);
        };
        let Some(g) = self.groups.get_mut(&m.group) else {
            return count(&self.counters.unknown_group);
        };
        if g.replica != m.to {
            return count(&self.counters.foreign_replica);
        }
        let Ok(message) = Message::decode(&m.bytes[..]) else {
            return count(&self.counters.undecodable);
        };
        if message.from != m.from.0 || message.to != m.to.0 {
            return count(&self.counters.foreign_replica);
        }
        match message.get_msg_type() {
            // Forwarding is the router's work, and checkpoints have a way of their own.
            MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgTransferLeader
            | MessageType::MsgSnapshot => return count(&self.counters.refused_kind),
            MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgTimeoutNow
                if g.holds_votes(now) =>
            {
                return count(&self.counters.vote_held);
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if message.context != CAMPAIGN_TRANSFER
                    && g.keeps_to_leader(now, self.settings.promise_ns()) =>
            {
                return count(&self.counters.vote_held);
            }
            MessageType::MsgTimeoutNow if g.is_installing() => {
                return count(&self.counters.vote_held);
            }
            // An acknowledgement names the last entry by counting from the message's index.
            MessageType::MsgAppend
                if message.entries.first().is_some_and(|e| e.index != message.index + 1) =>
            {
                return count(&self.counters.undecodable);
            }
            MessageType::MsgAppend if g.is_behind() => {
                return count(&self.counters.apply_behind);
            }
            _ => {}
        }
        g.learn_node(m.from, from);
        let lease_ns = self.settings.lease_ns();
        self.with_group(m.group, round, |g, _| {
            g.step_message(now, message, lease_ns);
            Ok(())
        });
        self.mark(m.group);
    }

    pub(super) fn input(&mut self, now: Now, input: Input, round: &mut Round) {
        match input {
            Input::Persisted(_) | Input::Notices(_) | Input::Messages { .. } => {}
            Input::Request(r) => self.request(now, r, round),
            Input::Create(new) => self.create(*new, round),
            Input::Incoming(incoming) => {
                let id = incoming.group;
                match self.groups.get(&id) {
                    Some(g) if g.replica == incoming.replica => {
                        self.with_group(id, round, |g, _| {
                            g.step_incoming(*incoming);
                            Ok(())
                        });
                        self.mark(id);
                    }
                    _ => {
                        let _ = incoming.reply.send(false);
                    }
                }
            }
            Input::Flushed { group, replica, index } => {
                let kept = self.settings.kept_log_bytes;
                if self.groups.get(&group).is_some_and(|g| g.replica == replica) {
                    self.with_group(group, round, |g, round| {
                        g.flushed(index, kept, &mut round.write);
                        Ok(())
                    });
                }
            }
            Input::ChangeMembership { group, change, planned_on, reply } => {
                if self.groups.contains_key(&group) {
                    let election_ns = self.settings.election_ns();
                    self.with_group(group, round, |g, _| {
                        g.change_membership(now, election_ns, change, planned_on, reply);
                        Ok(())
                    });
                    self.mark(group);
                } else {
                    let _ = reply.send(Err(format!("no replica of {group} is on this node")));
                }
            }
            Input::Renounce { group, replica, term, membership_index, reply } => {
                let _ = reply.send(match self.groups.get_mut(&group) {
                    Some(g) => g.renounce(replica, term, membership_index),
                    None => Err(format!("no replica of {group} is on this node")),
                });
            }
            Input::Facts { group, reply } => {
                let _ = reply.send(self.facts(group));
            }
            Input::AllFacts { reply } => {
                let (now, election_ns) = (self.now, self.settings.election_ns());
                let facts = |g: &Group| g.facts(now, election_ns);
                let all = self.groups.iter().map(|(id, g)| (*id, g.replica, facts(g)));
                let _ = reply.send(all.collect());
            }
            Input::Destroy { group, replica, reply } => self.destroy(group, replica, reply, round),
            Input::TransferFloor { group, to, index } => {
                if let Some(g) = self.groups.get_mut(&group) {
                    g.transfer_floor(now, to, index);
                }
            }
            Input::ClockAhead { ms } => {
                tracing::warn!(
                    ahead_ms = ms,
                    "this node's clock is ahead of its peers': handing leaderships over"
                );
                self.shedding_until_ns = now.boot_ns + 1_000_000_000;
                self.handed_over.clear();
            }
        }
    }

    fn request(&mut self, now: Now, request: Request, round: &mut Round) {
        match request {
            Request::Propose { group, commands, after_position, reply } => {
                let total = match self.in_flight_bytes {
                    Some(total) => total,
                    None => self.groups.values().map(|g| g.in_flight_bytes()).sum(),
                };
                self.in_flight_bytes = Some(total);
                let Some(g) = self.groups.get_mut(&group) else {
                    let _ = reply.send(Err(ProposeError::NoReplica));
                    return;
                };
                let bytes: u64 = commands.iter().map(|c| c.len() as u64 + 8).sum();
                // A clock far beyond what positions can hold must not use them up.
                let now_ms = now.wall_ms.saturating_sub(EPOCH_UNIX_MS).min(STAMP_MS_MAX);
                let ahead_ms = (after_position >> 21).saturating_sub(now_ms);
                if !g.is_leader() {
                    let _ = reply.send(Err(ProposeError::NotLeader { leader: g.leader_node() }));
                } else if ahead_ms > 500 {
                    let _ = reply.send(Err(ProposeError::ClockBehind { ahead_ms }));
                } else if g.in_flight_bytes() + bytes > self.settings.partition_inflight_bytes
                    || total + bytes > self.settings.node_inflight_bytes
                {
                    let _ = reply.send(Err(ProposeError::Busy));
                } else {
                    self.in_flight_bytes = Some(total + bytes);
                    if g.enqueue(Proposal { commands, bytes, after_position, reply }) {
                        self.with_proposals.push(group);
                    }
                }
            }
            Request::ReadIndex { group, reply } => match self.groups.get_mut(&group) {
                None => {
                    let _ = reply.send(Err(ReadError::NoReplica));
                }
                Some(g) => {
                    if g.enqueue_read(reply) {
                        self.with_reads.push(group);
                    }
                }
            },
            Request::TransferAll { reply } => {
                self.shedding_until_ns = now.boot_ns + SHED_NS;
                self.shedding_replies.push(reply);
                self.shed = 0;
                self.handed_over.clear();
            }
            Request::Transfer { group, to, reply } => {
                if !self.groups.contains_key(&group) {
                    let _ = reply.send(Err(format!("no replica of {group} is on this node")));
                    return;
                }
                let election_ns = self.settings.election_ns();
                self.with_group(group, round, |g, _| {
                    g.transfer(now, to, election_ns, reply);
                    Ok(())
                });
                self.mark(group);
            }
        }
    }
}
