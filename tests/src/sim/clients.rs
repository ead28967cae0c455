//! Clients outside the cluster: each does one thing after the other, sends it again where it is not
//! known what came of it, and writes down what it saw.
use super::world::{Event, World};
use crate::history::{
    self, Append, AppendOutcome, Consistency, Expected, Lookup, LookupOutcome, Read, SeenEvent,
    SeenState, Span,
};
use crate::load::append_request;
use crate::model;
use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use ringfold_node::api::validate::encode_append;
use ringfold_node::ids::{GroupId, NodeId};
use ringfold_node::partition::Reader;
use ringfold_node::partition::apply::{CommandOutcome, Refusal};
use ringfold_node::raft::driver::Input;
use ringfold_node::raft::handle::{
    ProposeError, ProposeResult, ReadError, ReplicaView, Request, Role,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

#[derive(Default)]
pub struct Client {
    /// Of the attempt that is under way: answers to older ones are ignored.
    token: u64,
    doing: Option<Doing>,
    /// Where the leader of a group was last seen.
    leaders: BTreeMap<GroupId, usize>,
    last_position: u64,
}

enum Doing {
    /// Appends of one stream that go together, each failing when the one before it did. `stored`:
    /// they were acknowledged, and are sent again on purpose.
    Append {
        appends: Vec<Append>,
        stored: bool,
    },
    Lookup(Lookup),
    Read(Read),
}

/// What reaches a node.
#[derive(Debug, Clone)]
pub struct Call {
    pub client: u32,
    pub token: u64,
    pub group: GroupId,
    ask: Ask,
}

#[derive(Debug, Clone)]
enum Ask {
    Append { commands: Vec<Bytes>, after_position: u64 },
    Read { stream: Arc<str>, consistency: Consistency, min_position: u64, what: What },
}

#[derive(Debug, Clone)]
enum What {
    State,
    Events { from: Option<u64>, backwards: bool, max_count: u64 },
}

/// A call that a node works on.
pub struct Waiting {
    call: Call,
    /// The replica that was there when the call came, as in the product: should another take its
    /// place meanwhile, what is read of this one is an error.
    view: Arc<ReplicaView>,
    stage: Stage,
}

enum Stage {
    Proposed(oneshot::Receiver<ProposeResult>),
    /// Until the position is applied.
    Position,
    Confirm(oneshot::Receiver<Result<(), ReadError>>),
    /// Under a lease: it is checked again behind the read.
    LeaseRead,
    LeaseDone(Answer),
    Read,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Outcomes(Vec<CommandOutcome>),
    NotLeader(Option<NodeId>),
    NotProposed(ProposeError),
    Unknown(String),
    State(Option<SeenState>),
    Events(Vec<SeenEvent>),
}

impl World {
    pub fn stream(&mut self) -> (Arc<str>, GroupId) {
        let i = self.rng.random_range(0..self.faults.streams);
        let category = if i % 3 == 1 { model::LAST_CATEGORY } else { "merge" };
        (format!("{category}-{i}").into(), GroupId::of_partition(i % self.faults.partitions))
    }

    /// The client's next step: something new, or the same again.
    pub fn client_acts(&mut self, c: u32) {
        if self.clients[c as usize].doing.is_none() {
            if self.clients_rest() {
                return;
            }
            let doing = self.choose(c);
            self.clients[c as usize].doing = Some(doing);
        }
        self.attempt(c);
    }

    pub fn clients_are_idle(&self) -> bool {
        self.clients.iter().all(|c| c.doing.is_none())
    }

    fn choose(&mut self, c: u32) -> Doing {
        let (stream, _) = self.stream();
        let span = Span { start_ns: 0, end_ns: 0 };
        let known = self.clients[c as usize].last_position;
        let length = self.lengths.get(&stream).copied();
        let rng = &mut self.rng;
        if rng.random_bool(0.5) {
            let after_position = if rng.random_bool(0.3) { known } else { 0 };
            let count = if rng.random_bool(0.2) { rng.random_range(2..=3) } else { 1 };
            let appends = (0..count).map(|_| Append {
                client: c,
                stream: stream.clone(),
                events: (0..rng.random_range(1..=4))
                    .map(|_| history::Event {
                        id: rng.random(),
                        data: data(rng, self.faults.event_bytes),
                    })
                    .collect(),
                expected: match (rng.random_range(0..7), length) {
                    (0, _) => Expected::NoStream,
                    (1, _) => Expected::StreamExists,
                    (2 | 3, Some(last)) => Expected::Exact(last),
                    (4, Some(last)) => Expected::Exact(last + 1),
                    _ => Expected::Any,
                },
                after_position,
                pipeline: None,
                span,
                outcome: AppendOutcome::Unknown { why: String::new() },
            });
            return Doing::Append { appends: appends.collect(), stored: false };
        }
        let consistency = match rng.random_range(0..5) {
            0 | 1 => Consistency::Linearizable,
            2 | 3 => Consistency::Lease,
            _ => Consistency::Stale,
        };
        // A position to wait for must be of the partition.
        let partition = self.partition_of(&stream);
        let min_position = match known & 1_023 == u64::from(partition) {
            true if self.rng.random_bool(0.3) => known,
            _ => 0,
        };
        let rng = &mut self.rng;
        if rng.random_bool(0.7) {
            let outcome = LookupOutcome::None;
            return Doing::Lookup(Lookup {
                client: c,
                stream,
                consistency,
                min_position,
                span,
                outcome,
            });
        }
        Doing::Read(Read {
            client: c,
            stream,
            consistency,
            min_position,
            from_revision: rng.random_bool(0.4).then(|| rng.random_range(0..=length.unwrap_or(0))),
            backwards: rng.random_bool(0.3),
            max_count: if rng.random_bool(0.4) { 3 } else { 0 },
            span,
            seen: None,
        })
    }

    /// Sends what the client does to a node.
    fn attempt(&mut self, c: u32) {
        let now_ns = self.now_ns;
        let client = &mut self.clients[c as usize];
        client.token += 1;
        let token = client.token;
        let Some(doing) = &mut client.doing else { return };
        let (stream, ask, is_stale) = match doing {
            Doing::Append { appends, .. } => {
                let is_unit = appends.len() > 1;
                let mut commands = Vec::with_capacity(appends.len());
                for (i, a) in appends.iter_mut().enumerate() {
                    a.span.start_ns = now_ns;
                    a.pipeline = is_unit.then_some((token << 8 | u64::from(c), i as u64));
                    let request =
                        append_request(&a.stream, &a.events, a.expected, a.after_position);
                    commands.push(encode_append(&request, i > 0));
                }
                let Append { stream, after_position, .. } = &appends[0];
                let ask = Ask::Append { commands, after_position: *after_position };
                (stream.clone(), ask, false)
            }
            Doing::Lookup(l) => {
                l.span.start_ns = now_ns;
                let (consistency, min_position) = (l.consistency, l.min_position);
                let (stream, what) = (l.stream.clone(), What::State);
                let stale = consistency == Consistency::Stale;
                (stream.clone(), Ask::Read { stream, consistency, min_position, what }, stale)
            }
            Doing::Read(r) => {
                r.span.start_ns = now_ns;
                let what = What::Events {
                    from: r.from_revision,
                    backwards: r.backwards,
                    max_count: r.max_count,
                };
                let (consistency, min_position) = (r.consistency, r.min_position);
                let stream = r.stream.clone();
                let stale = consistency == Consistency::Stale;
                (stream.clone(), Ask::Read { stream, consistency, min_position, what }, stale)
            }
        };
        let group = GroupId::of_partition(self.partition_of(&stream));
        let hint = self.clients[c as usize].leaders.get(&group).copied();
        let to = match hint {
            Some(n) if !is_stale && self.rng.random_bool(0.9) => n,
            _ => self.rng.random_range(0..self.nodes.len()),
        };
        let wait_ns = self.rng.random_range(80_000_000..400_000_000);
        self.after(wait_ns, Event::ClientWaited { client: c, token });
        if !self.rng.random_bool(self.faults.loss / 2.0) {
            let delay_ns = self.rng.random_range(50_000..1_000_000);
            let call = Call { client: c, token, group, ask };
            self.after(delay_ns, Event::Call { node: to, call });
        }
    }

    pub fn client_waited(&mut self, c: u32, token: u64) {
        if self.clients[c as usize].token == token {
            self.answered(c, token, usize::MAX, Answer::Unknown("no answer in time".into()));
        }
    }

    /// An answer reaches its client.
    pub fn answered(&mut self, c: u32, token: u64, from: usize, answer: Answer) {
        let now_ns = self.now_ns;
        let client = &mut self.clients[c as usize];
        if client.token != token {
            return;
        }
        client.token += 1;
        let Some(doing) = client.doing.take() else { return };
        let partition = match &doing {
            Doing::Append { appends, .. } => appends[0].stream.clone(),
            Doing::Lookup(l) => l.stream.clone(),
            Doing::Read(r) => r.stream.clone(),
        };
        let partition = self.partition_of(&partition);
        let group = GroupId::of_partition(partition);
        let client = &mut self.clients[c as usize];
        match &answer {
            Answer::NotLeader(hint) => {
                match hint.map(|n| n.0 as usize - 1) {
                    Some(n) if n != from => client.leaders.insert(group, n),
                    _ => client.leaders.remove(&group),
                };
            }
            Answer::Unknown(_) | Answer::NotProposed(_) => {
                client.leaders.remove(&group);
            }
            _ if from != usize::MAX => {
                client.leaders.insert(group, from);
            }
            _ => {}
        }
        let mut again = None;
        match doing {
            Doing::Append { mut appends, stored } => {
                let (mut all_stored, mut refused) = (true, false);
                for (a, outcome) in appends.iter_mut().zip(outcomes_of(answer, partition, stored)) {
                    a.span.end_ns = now_ns;
                    a.outcome = outcome;
                    match &a.outcome {
                        AppendOutcome::Acknowledged { last_revision, last_position, .. } => {
                            client.last_position = client.last_position.max(*last_position);
                            let length = self.lengths.entry(a.stream.clone()).or_default();
                            *length = (*length).max(*last_revision);
                        }
                        AppendOutcome::Refused { for_good, .. } => {
                            all_stored = false;
                            refused |= *for_good;
                        }
                        AppendOutcome::Unknown { .. } => all_stored = false,
                    }
                    self.history.appends.push(a.clone());
                }
                let again_chance = match (all_stored, refused) {
                    (true, _) => 0.1,
                    (_, true) => 0.0,
                    _ => 0.92,
                };
                if self.rng.random_bool(again_chance) {
                    again = Some(Doing::Append { appends, stored: stored || all_stored });
                }
            }
            Doing::Lookup(mut l) => {
                l.span.end_ns = now_ns;
                l.outcome = match answer {
                    Answer::State(Some(s)) => {
                        client.last_position = client.last_position.max(s.position);
                        LookupOutcome::State(s)
                    }
                    Answer::State(None) => LookupOutcome::None,
                    other => LookupOutcome::Failed(format!("{other:?}")),
                };
                self.history.lookups.push(l.clone());
                if matches!(l.outcome, LookupOutcome::Failed(_)) && self.rng.random_bool(0.5) {
                    again = Some(Doing::Lookup(l));
                }
            }
            Doing::Read(mut r) => {
                r.span.end_ns = now_ns;
                r.seen = match answer {
                    Answer::Events(events) => Some(events),
                    _ => None,
                };
                self.history.reads.push(r);
            }
        }
        let again_at_once = again.is_some();
        self.clients[c as usize].doing = again;
        let most_us = if again_at_once { 20_000 } else { 12_000 };
        let pause_ns = self.rng.random_range(100..most_us) * 1_000;
        self.after(pause_ns, Event::ClientActs(c));
    }

    fn answer(&mut self, n: usize, call: &Call, answer: Answer) {
        if self.rng.random_bool(self.faults.loss / 2.0) {
            return;
        }
        let delay_ns = self.rng.random_range(50_000..1_000_000);
        let (client, token) = (call.client, call.token);
        self.after(delay_ns, Event::Answer { client, token, from: n, answer });
    }

    /// A call reaches a node.
    pub fn called(&mut self, n: usize, call: Call) {
        let Some(running) = &self.nodes[n].running else {
            return self.answer(n, &call, Answer::Unknown("connection refused".into()));
        };
        let Some(view) = running.views.get(&call.group).cloned() else {
            return self.answer(n, &call, Answer::NotLeader(None));
        };
        let stage = match &call.ask {
            Ask::Append { commands, after_position } => {
                let (reply, receiver) = oneshot::channel();
                let request = Request::Propose {
                    group: call.group,
                    commands: commands.clone(),
                    after_position: *after_position,
                    reply,
                };
                self.input(n, Input::Request(request));
                Stage::Proposed(receiver)
            }
            Ask::Read { .. } => Stage::Position,
        };
        self.wait(n, Waiting { call, view, stage });
        self.poll_calls(n);
    }

    fn wait(&mut self, n: usize, waiting: Waiting) {
        if let Some(running) = &mut self.nodes[n].running {
            running.calls.push(waiting);
        }
    }

    /// Goes on with what waited for the driver or for apply.
    pub fn poll_calls(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        for w in std::mem::take(&mut running.calls) {
            self.go_on_call(n, w);
        }
    }

    fn go_on_call(&mut self, n: usize, mut w: Waiting) {
        match &mut w.stage {
            Stage::Proposed(receiver) => match receiver.try_recv() {
                Err(TryRecvError::Empty) => self.wait(n, w),
                result => {
                    let answer = match result {
                        Ok(Ok(outcomes)) => Answer::Outcomes(outcomes),
                        Ok(Err(ProposeError::NotLeader { leader })) => Answer::NotLeader(leader),
                        Ok(Err(ProposeError::NoReplica)) => Answer::NotLeader(None),
                        Ok(Err(e @ (ProposeError::Busy | ProposeError::ClockBehind { .. }))) => {
                            Answer::NotProposed(e)
                        }
                        Ok(Err(e)) => Answer::Unknown(e.to_string()),
                        Err(_) => Answer::Unknown("the node stopped".into()),
                    };
                    self.answer(n, &w.call, answer);
                }
            },
            Stage::Confirm(receiver) => match receiver.try_recv() {
                Err(TryRecvError::Empty) => self.wait(n, w),
                Ok(Ok(())) => self.read_later(n, Waiting { stage: Stage::Read, ..w }),
                Ok(Err(ReadError::NotLeader { leader })) => {
                    self.answer(n, &w.call, Answer::NotLeader(leader));
                }
                other => self.answer(n, &w.call, Answer::Unknown(format!("{other:?}"))),
            },
            Stage::Position => self.begin_read(n, w),
            Stage::LeaseRead | Stage::LeaseDone(_) | Stage::Read => self.read_later(n, w),
        }
    }

    fn begin_read(&mut self, n: usize, w: Waiting) {
        let Ask::Read { consistency, min_position, .. } = w.call.ask else { return };
        if w.view.applied.borrow().position < min_position {
            return self.wait(n, w);
        }
        match consistency {
            Consistency::Stale if w.view.status.read().role == Role::Closed => {}
            Consistency::Stale => self.read_later(n, Waiting { stage: Stage::Read, ..w }),
            Consistency::Lease if self.lease_is_valid(n, &w.view) => {
                self.read_later(n, Waiting { stage: Stage::LeaseRead, ..w });
            }
            _ => self.confirm(n, w),
        }
    }

    fn lease_is_valid(&self, n: usize, view: &ReplicaView) -> bool {
        self.nodes[n].clock.boot_ns(self.now_ns) < view.lease_until_ns.load(Ordering::Acquire)
    }

    fn confirm(&mut self, n: usize, w: Waiting) {
        let (reply, receiver) = oneshot::channel();
        let request = Request::ReadIndex { group: w.call.group, reply };
        self.input(n, Input::Request(request));
        self.wait(n, Waiting { stage: Stage::Confirm(receiver), ..w });
    }

    fn read_later(&mut self, n: usize, waiting: Waiting) {
        let delay_ns = self.faults.read_ns(&mut self.rng);
        let life = self.nodes[n].life;
        self.after(delay_ns, Event::Read { node: n, life, waiting: Box::new(waiting) });
    }

    /// The read itself, on a read thread.
    pub fn reads(&mut self, n: usize, w: Waiting) {
        let Ask::Read { stream, what, .. } = &w.call.ask else { return };
        let read = || look(&w.view.reader, stream, what);
        match w.stage {
            Stage::Read => {
                let answer = read();
                self.answer(n, &w.call, answer);
            }
            Stage::LeaseRead => {
                let answer = read();
                self.read_later(n, Waiting { stage: Stage::LeaseDone(answer), ..w });
            }
            Stage::LeaseDone(answer) if self.lease_is_valid(n, &w.view) => {
                self.report.lease_reads += 1;
                self.answer(n, &w.call, answer);
            }
            Stage::LeaseDone(_) => self.confirm(n, w),
            Stage::Proposed(_) | Stage::Position | Stage::Confirm(_) => {}
        }
    }
}

fn look(reader: &Reader, stream: &str, what: &What) -> Answer {
    let found = match what {
        What::State => reader.stream(stream).map(|found| {
            Answer::State(found.map(|r| SeenState {
                revision: r.revision,
                position: r.position,
                data: r.state,
            }))
        }),
        What::Events { from, backwards, max_count } => {
            let count = if *max_count == 0 { usize::MAX } else { *max_count as usize };
            reader
                .events(stream, *from, *backwards, count, usize::MAX)
                .map(|page| Answer::Events(seen(page.events)))
        }
    };
    found.unwrap_or_else(|e| Answer::Unknown(e.to_string()))
}

pub fn seen(events: Vec<(u64, ringfold_proto::internal::EventRecord)>) -> Vec<SeenEvent> {
    events
        .into_iter()
        .map(|(revision, e)| SeenEvent {
            revision,
            position: e.position,
            id: u128::from_be_bytes(e.id[..].try_into().unwrap_or_default()),
            data: e.data,
        })
        .collect()
}

/// What an answer proves of each append. Of appends that are stored already the node's own refusals
/// prove nothing.
fn outcomes_of(
    answer: Answer,
    partition: u32,
    stored: bool,
) -> Box<dyn Iterator<Item = AppendOutcome>> {
    let refused = |reason| AppendOutcome::Refused { reason, actual: None, for_good: false };
    let one = match answer {
        Answer::Outcomes(outcomes) => {
            return Box::new(outcomes.into_iter().map(move |o| outcome_of(o, partition)));
        }
        Answer::NotLeader(_) if !stored => refused("NOT_LEADER".into()),
        Answer::NotProposed(e) if !stored => refused(e.to_string()),
        Answer::Unknown(why) => AppendOutcome::Unknown { why },
        other => AppendOutcome::Unknown { why: format!("{other:?}") },
    };
    Box::new(std::iter::repeat(one))
}

fn outcome_of(outcome: CommandOutcome, partition: u32) -> AppendOutcome {
    match outcome {
        CommandOutcome::Appended(a) => AppendOutcome::Acknowledged {
            first_revision: a.first_revision,
            last_revision: a.last_revision,
            first_position: a.first_position,
            last_position: a.last_position,
            partition,
        },
        CommandOutcome::Refused(refusal) => AppendOutcome::Refused {
            reason: match refusal {
                Refusal::WrongExpectedRevision { .. } => "WRONG_EXPECTED_REVISION".into(),
                _ => refusal.to_string(),
            },
            actual: match refusal {
                Refusal::WrongExpectedRevision { actual } => Some(actual),
                _ => None,
            },
            for_good: true,
        },
        other => AppendOutcome::Unknown { why: format!("{other:?}") },
    }
}

fn data(rng: &mut StdRng, bytes: usize) -> Bytes {
    if bytes > 0 && rng.random_bool(0.5) {
        return format!("{{\"f\":\"{}\"}}", "x".repeat(bytes)).into();
    }
    model::random_data(rng)
}
