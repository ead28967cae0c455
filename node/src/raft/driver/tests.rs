//! How proposals become entries. What drivers do among each other is in `tests/tests/simulation.rs`.
use super::*;
use crate::clock::EPOCH_UNIX_MS;
use crate::partition::apply::{Genesis, PartitionMachine};
use crate::partition::store::MemoryDisk;
use crate::raft::apply::ApplyNotice;
use crate::raft::handle::{Applied, ReadError, ReplicaView, Request};
use crate::raft::log::memory::MemoryLog;
use crate::raft::log::{LogBatch, LogOp};
use crate::raft::membership::Membership;
use bytes::Bytes;
use prost_raft::Message as _;
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeSet;

const GROUP: GroupId = GroupId(1);

/// A driver with one replica.
struct Node {
    driver: Driver,
    log: Arc<MemoryLog>,
    number: u64,
    view: Arc<ReplicaView>,
    ms: u64,
}

impl Node {
    /// Node and replica have the same number; the first voter campaigns at once.
    fn start(settings: DriverSettings, voters: &[u64]) -> (Node, Round) {
        let me = settings.node.0;
        let log = Arc::new(MemoryLog::default());
        let store = MemoryDisk::default().open("x".as_ref(), true).unwrap();
        let machine = PartitionMachine::with_store(store, &Genesis::new(0, 2, []), true).unwrap();
        let reader = crate::raft::apply::StateMachine::reader(&machine);
        let view = Arc::new(ReplicaView::new(GROUP, ReplicaId(me), reader, Applied::default()));
        let voters: Vec<_> = voters.iter().map(|v| (ReplicaId(*v), NodeId(*v))).collect();
        let record = ReplicaRecord {
            group: GROUP,
            replica: ReplicaId(me),
            directory: 1,
            membership: Membership::genesis(&voters),
            membership_index: 0,
            truncated_index: 0,
            truncated_term: 0,
            destroyed: false,
            first_placed: voters[0].0.0 == me,
        };
        let driver = Driver::new(settings, log.clone(), Now::default());
        let mut node = Node { driver, log, number: 0, view: view.clone(), ms: 1 };
        let (machine, fresh) = (Box::new(machine), true);
        let new = NewGroup { record, vote: None, last_index: 0, fresh, machine, view };
        let round = node.step(vec![Input::Create(Box::new(new))]);
        (node, round)
    }

    /// Alone in its group.
    fn alone(settings: DriverSettings) -> Node {
        let (mut node, round) = Node::start(settings, &[1]);
        node.sync(round);
        assert_eq!(node.driver.role(GROUP), Some(Role::Leader));
        node
    }

    fn step(&mut self, mut inputs: Vec<Input>) -> Round {
        let now = Now { boot_ns: self.ms * 1_000_000, wall_ms: EPOCH_UNIX_MS + self.ms };
        self.driver.step(now, &mut inputs)
    }

    /// The round's writes and all that follows from them are synced. Entries that are applied then.
    fn sync(&mut self, mut round: Round) -> Vec<(u64, usize)> {
        let mut applied = Vec::new();
        loop {
            for task in std::mem::take(&mut round.apply) {
                if let ApplyTask::Entries { entries, .. } = task {
                    applied.extend(entries.iter().map(|e| (e.index, e.replies.len())));
                }
            }
            if round.write.is_empty() {
                applied.retain(|(_, replies)| *replies > 0);
                return applied;
            }
            round = self.sync_once(round);
        }
    }

    /// The round after the sync of this one's writes.
    fn sync_once(&mut self, round: Round) -> Round {
        self.number += 1;
        self.log.write(self.number, LogBatch { ops: round.write.ops }).unwrap();
        self.step(vec![Input::Persisted(round.write.persisted)])
    }

    fn propose(&mut self, bytes: usize) -> Input {
        let (reply, _) = oneshot::channel();
        let commands = vec![Bytes::from(vec![0; bytes])];
        Input::Request(Request::Propose { group: GROUP, commands, after_position: 0, reply })
    }

    fn propose_many(&mut self, count: usize, bytes: usize) -> Vec<Input> {
        (0..count).map(|_| self.propose(bytes)).collect()
    }

    fn entry_in_flight(&self) -> bool {
        self.view.entry_in_flight.load(Ordering::Acquire)
    }
}

fn entries(round: &Round) -> usize {
    let count = |op: &LogOp| match op {
        LogOp::Entries { entries, .. } => entries.len(),
        _ => 0,
    };
    round.write.ops.iter().map(count).sum()
}

#[test]
fn what_waits_while_an_entry_is_under_way_becomes_one_entry() {
    let mut node = Node::alone(DriverSettings::new(NodeId(1)));
    assert!(!node.entry_in_flight());
    let inputs = node.propose_many(3, 100);
    let first = node.step(inputs);
    assert_eq!(entries(&first), 1);
    assert!(node.entry_in_flight());
    for _ in 0..5 {
        let inputs = node.propose_many(2, 100);
        let round = node.step(inputs);
        assert_eq!(entries(&round), 0, "a small entry overtook the sync");
    }
    // The sync of the first one makes room for the second, in the same round.
    let second = node.sync_once(first);
    assert_eq!(entries(&second), 1);
    let replies: Vec<usize> = node.sync(second).into_iter().map(|(_, r)| r).collect();
    assert_eq!(replies, [3, 10]);
    assert!(!node.entry_in_flight());
}

#[test]
fn full_entries_go_one_behind_the_other_up_to_the_window() {
    let settings = DriverSettings::new(NodeId(1));
    let full = settings.entry_joins_bytes as usize;
    let window = settings.entries_in_flight as usize;
    let mut node = Node::alone(settings);
    let mut made = 0;
    for _ in 0..window + 2 {
        let inputs = node.propose_many(1, full);
        let round = node.step(inputs);
        made += entries(&round);
    }
    assert_eq!(made, window);
}

/// Three nodes, of which the first leads. Messages that are not taken are delivered and followed up.
struct Three([Node; 3]);

type Sent = Vec<(NodeId, NodeId, PeerMessage)>;

impl Three {
    fn led_by_first() -> Three {
        let start = |me| Node::start(DriverSettings::new(NodeId(me)), &[1, 2, 3]);
        let [a, b, c] = [start(1), start(2), start(3)];
        let mut three = Three([a.0, b.0, c.0]);
        for (at, round) in [(1, b.1), (2, c.1), (0, a.1)] {
            let sent = three.settle(at, round);
            three.deliver(sent);
        }
        assert_eq!(three.0[0].driver.role(GROUP), Some(Role::Leader));
        three
    }

    /// Syncs a node's round, reports what it applied, and all that follows there; what it sends.
    fn settle(&mut self, at: usize, mut round: Round) -> Sent {
        let (node, from) = (&mut self.0[at], NodeId(at as u64 + 1));
        let mut sent = Vec::new();
        loop {
            let messages = round.messages.drain(..).chain(round.write.messages.drain(..));
            sent.extend(messages.map(|(to, _, m)| (from, to, m)));
            let mut inputs = Vec::new();
            for task in round.apply.drain(..) {
                if let ApplyTask::Entries { group, replica, entries } = task {
                    let index = entries.last().unwrap().index;
                    node.view.applied.send_replace(Applied { index, position: 0 });
                    let applied = ApplyNotice::Applied { group, replica, index };
                    inputs.push(Input::Notices(vec![applied]));
                }
            }
            if !round.write.is_empty() {
                node.number += 1;
                node.log.write(node.number, LogBatch { ops: round.write.ops }).unwrap();
                inputs.push(Input::Persisted(round.write.persisted));
            }
            if inputs.is_empty() {
                return sent;
            }
            round = node.step(inputs);
        }
    }

    fn deliver(&mut self, mut sent: Sent) {
        while !sent.is_empty() {
            let mut next = Vec::new();
            for (from, to, m) in sent {
                let at = to.0 as usize - 1;
                let round = self.0[at].step(vec![Input::Messages { from, messages: vec![m] }]);
                next.extend(self.settle(at, round));
            }
            sent = next;
        }
    }

    /// Asks for some reads; what the leader sends because of it.
    fn read(&mut self, count: usize) -> (Vec<oneshot::Receiver<Result<(), ReadError>>>, Sent) {
        let (replies, receivers): (Vec<_>, _) = (0..count).map(|_| oneshot::channel()).unzip();
        let ask = |reply| Input::Request(Request::ReadIndex { group: GROUP, reply });
        let round = self.0[0].step(replies.into_iter().map(ask).collect());
        (receivers, self.settle(0, round))
    }

    fn read_in_flight(&self) -> bool {
        self.0[0].view.read_in_flight.load(Ordering::Acquire)
    }
}

#[test]
fn reads_that_come_in_while_a_round_is_under_way_share_the_next_one() {
    let mut three = Three::led_by_first();
    let (first, round) = three.read(3);
    assert_eq!(round.len(), 2, "a heartbeat to each follower");
    assert!(three.read_in_flight());
    let mut others = Vec::new();
    for _ in 0..4 {
        let (receivers, sent) = three.read(2);
        assert!(sent.is_empty(), "a round of its own");
        others.extend(receivers);
    }
    three.deliver(round);
    for mut read in first.into_iter().chain(others) {
        assert_eq!(read.try_recv(), Ok(Ok(())));
    }
    assert!(!three.read_in_flight());
}

#[test]
fn a_round_that_was_lost_does_not_hold_later_reads_up() {
    let mut three = Three::led_by_first();
    let (mut first, lost) = three.read(1);
    drop(lost);
    three.0[0].ms += 51;
    let (mut second, round) = three.read(1);
    assert_eq!(round.len(), 2);
    three.deliver(round);
    assert_eq!(second[0].try_recv(), Ok(Ok(())));
    assert_eq!(first[0].try_recv(), Ok(Ok(())));
}

impl Three {
    fn tick(&mut self) -> Sent {
        let mut sent = Vec::new();
        for at in 0..3 {
            self.0[at].ms += 100;
            let round = self.0[at].step(Vec::new());
            sent.extend(self.settle(at, round));
        }
        sent
    }

    /// Proposes a change to the leader, and delivers all that follows.
    fn change(&mut self, change: MembershipChange) -> Result<(), String> {
        let (reply, mut changed) = oneshot::channel();
        let input = Input::ChangeMembership { group: GROUP, change, planned_on: None, reply };
        let round = self.0[0].step(vec![input]);
        let sent = self.settle(0, round);
        self.deliver(sent);
        changed.try_recv().unwrap()
    }

    fn transfer(&mut self, to: u64) -> (oneshot::Receiver<Result<(), String>>, Sent) {
        let (reply, moved) = oneshot::channel();
        let request = Request::Transfer { group: GROUP, to: ReplicaId(to), reply };
        let round = self.0[0].step(vec![Input::Request(request)]);
        (moved, self.settle(0, round))
    }
}

#[test]
fn a_leadership_is_handed_over_at_any_moment_and_the_reply_says_so() {
    // Some of these moments come right after a check of the quorum, which clears raft's own marks.
    for ticks in 1..=25 {
        let mut three = Three::led_by_first();
        for _ in 0..ticks {
            let sent = three.tick();
            three.deliver(sent);
        }
        let on_their_way = three.tick();
        let (mut moved, sent) = three.transfer(2);
        three.deliver(on_their_way);
        three.deliver(sent);
        assert_eq!(moved.try_recv(), Ok(Ok(())), "after {ticks} ticks");
        assert_eq!(three.0[1].driver.role(GROUP), Some(Role::Leader));
    }
}

#[test]
fn a_leadership_that_is_not_handed_over_is_answered_with_the_reason() {
    let why = |moved: &mut oneshot::Receiver<Result<(), String>>| match moved.try_recv() {
        Ok(Err(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let mut three = Three::led_by_first();
    let (mut unknown, _) = three.transfer(9);
    assert!(why(&mut unknown).contains("no such voter"));
    let (mut lost, sent) = three.transfer(2);
    assert!(!sent.is_empty());
    drop(sent);
    let (mut second, _) = three.transfer(3);
    assert!(why(&mut second).contains("another leader transfer"));
    assert!(lost.try_recv().is_err(), "it is under way");
    for _ in 0..10 {
        // Those of the transfer are lost again and again.
        let sent = three.tick();
        three.deliver(sent.into_iter().filter(|(_, _, m)| !is_timeout_now(m)).collect());
    }
    assert!(why(&mut lost).contains("in time"));
    // Nobody answers for an election timeout.
    three.0[0].ms += 1_000;
    let (mut silent, _) = three.transfer(2);
    assert!(why(&mut silent).contains("no such voter answers"));
    let (reply, mut moved) = oneshot::channel();
    let elsewhere = Request::Transfer { group: GroupId(7), to: ReplicaId(1), reply };
    three.0[0].step(vec![Input::Request(elsewhere)]);
    assert!(why(&mut moved).contains("no replica"));
}

fn is_timeout_now(m: &PeerMessage) -> bool {
    Message::decode(&m.bytes[..]).unwrap().get_msg_type() == MessageType::MsgTimeoutNow
}

#[test]
fn a_voter_is_a_learner_before_it_leaves() {
    let mut three = Three::led_by_first();
    let gone = ReplicaId(3);
    let refused = three.change(MembershipChange::Remove(gone)).unwrap_err();
    assert!(refused.contains("becomes a learner first"), "{refused}");
    three.change(MembershipChange::Demote(gone)).unwrap();
    three.change(MembershipChange::Remove(gone)).unwrap();
    assert!(!three.0[0].driver.facts(GROUP).unwrap().membership.contains(gone));
}

#[test]
fn a_learner_forgets_a_leader_that_it_hears_no_more() {
    let mut three = Three::led_by_first();
    three.change(MembershipChange::Demote(ReplicaId(3))).unwrap();
    let leader = |three: &Three| three.0[2].view.status.read().leader;
    for _ in 0..40 {
        let sent = three.tick();
        three.deliver(sent);
        assert_eq!(leader(&three), Some(NodeId(1)));
    }
    for _ in 0..40 {
        let sent = three.tick();
        three.deliver(sent.into_iter().filter(|(_, to, _)| to.0 != 3).collect());
    }
    assert_eq!(leader(&three), None);
    for _ in 0..3 {
        let sent = three.tick();
        three.deliver(sent);
    }
    assert_eq!(leader(&three), Some(NodeId(1)));
}

#[test]
fn a_replica_that_was_given_up_is_not_taken_in_by_its_leader() {
    let mut three = Three::led_by_first();
    let gone = ReplicaId(9);
    let renounce = |three: &mut Three, term, membership_index| {
        let (reply, mut renounced) = oneshot::channel();
        let (group, replica) = (GROUP, gone);
        let input = Input::Renounce { group, replica, term, membership_index, reply };
        three.0[0].step(vec![input]);
        renounced.try_recv().unwrap()
    };
    let facts = three.0[0].driver.facts(GROUP).unwrap();
    let (term, index) = (facts.term, facts.membership_index);
    assert!(renounce(&mut three, term - 1, index).is_err());
    assert!(renounce(&mut three, term, index + 1).is_err());
    renounce(&mut three, term, index).unwrap();
    let refused = three.change(MembershipChange::AddLearner(gone, NodeId(3))).unwrap_err();
    assert!(refused.contains("given up"), "{refused}");
    three.change(MembershipChange::AddLearner(ReplicaId(10), NodeId(3))).unwrap();
}

#[test]
fn a_replica_is_destroyed_once_its_own_record_is_synced() {
    let mut node = Node::alone(DriverSettings::new(NodeId(1)));
    let inputs = node.propose_many(1, 100);
    let before = node.step(inputs);
    assert!(!before.write.persisted.is_empty());
    let (reply, mut destroyed) = oneshot::channel();
    let replica = ReplicaId(1);
    let ended = node.step(vec![Input::Destroy { group: GROUP, replica, reply }]);
    let closes = |round: &Round| {
        let is_close = |t: &ApplyTask| matches!(t, ApplyTask::Close { done: Some(_), .. });
        round.apply.iter().any(is_close)
    };
    let after_first = node.sync_once(before);
    assert!(!closes(&after_first), "the write of an entry says nothing of the record");
    let mut after_second = node.sync_once(ended);
    assert!(closes(&after_second));
    assert!(destroyed.try_recv().is_err(), "its database is closed first");
    for task in after_second.apply.drain(..) {
        if let ApplyTask::Close { done: Some(done), .. } = task {
            done.send(()).unwrap();
        }
    }
    destroyed.try_recv().unwrap();
}

#[test]
fn members_that_say_nothing_are_silent_after_a_while() {
    let mut three = Three::led_by_first();
    for tick in 0..29 {
        let sent = three.tick();
        three.deliver(sent.into_iter().filter(|(_, to, _)| to.0 != 3).collect());
        let silent = three.0[0].driver.facts(GROUP).unwrap().silent;
        assert!(silent.is_empty(), "after {tick} ticks: {silent:?}");
    }
    for _ in 0..3 {
        let sent = three.tick();
        three.deliver(sent.into_iter().filter(|(from, to, _)| from.0 != 3 && to.0 != 3).collect());
    }
    assert_eq!(three.0[0].driver.facts(GROUP).unwrap().silent, BTreeSet::from([3]));
}

/// What node 3 says to node 2.
fn from_third(kind: MessageType, term: u64, change: impl FnOnce(&mut Message)) -> Sent {
    let mut message = Message::default();
    (message.from, message.to, message.term) = (3, 2, term);
    message.set_msg_type(kind);
    (message.index, message.log_term) = (1_000, term);
    change(&mut message);
    let bytes = message.encode_to_vec().into();
    let peer = PeerMessage { group: GROUP, from: ReplicaId(3), to: ReplicaId(2), bytes };
    vec![(NodeId(3), NodeId(2), peer)]
}

fn votes(sent: &Sent) -> usize {
    let is_vote = |m: &Message| {
        let kind = m.get_msg_type();
        kind == MessageType::MsgRequestVoteResponse
            || kind == MessageType::MsgRequestPreVoteResponse
    };
    sent.iter().filter(|(_, _, m)| is_vote(&Message::decode(&m.bytes[..]).unwrap())).count()
}

#[test]
fn an_old_refusal_of_a_higher_term_does_not_make_a_follower_vote_within_the_lease() {
    let promise_ms = DriverSettings::new(NodeId(2)).promise_ns() / 1_000_000;
    assert!(promise_ms * 1_000_000 > DriverSettings::new(NodeId(2)).lease_ns());
    for (waited_ms, expected) in [(0, 0), (promise_ms - 1, 0), (promise_ms, 1)] {
        for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote] {
            let mut three = Three::led_by_first();
            let term = three.0[1].driver.facts(GROUP).unwrap().term;
            let heartbeats = three.read(1).1;
            three.deliver(heartbeats);
            three.0[1].ms += waited_ms;
            let refusal = MessageType::MsgRequestPreVoteResponse;
            let refusal = from_third(refusal, term + 1, |m| m.reject = true);
            let request = from_third(kind, term + 2, |_| ());
            let mut answers = 0;
            for (from, _, m) in refusal.into_iter().chain(request) {
                let round = three.0[1].step(vec![Input::Messages { from, messages: vec![m] }]);
                answers += votes(&three.settle(1, round));
            }
            assert_eq!(answers, expected, "{kind:?} after {waited_ms} ms");
        }
    }
}

#[test]
fn a_follower_votes_at_once_for_whom_its_leader_hands_over_to() {
    let mut three = Three::led_by_first();
    let term = three.0[1].driver.facts(GROUP).unwrap().term;
    let request = from_third(MessageType::MsgRequestVote, term + 1, |m| {
        m.context = CAMPAIGN_TRANSFER.to_vec();
    });
    let (from, _, m) = request.into_iter().next().unwrap();
    let round = three.0[1].step(vec![Input::Messages { from, messages: vec![m] }]);
    assert_eq!(votes(&three.settle(1, round)), 1);
}
