//! The order of pipelined appends, as a pure step over time, answers and lanes.
//!
//! A *lane* is one `AppendStream` call to one node. All appends of a stream that are in flight are in
//! one lane, in order. After a failure that may pass, nothing more of that stream is sent until the
//! lane has answered (or lost) all that is in flight of it; then everything unanswered is sent again,
//! in order, with `resume`, wherever its leader is by then. After a failure for good, what was pushed
//! behind it fails too, until the caller resumes the stream.
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use ringfold_proto::v1;
use tonic::Code;

use crate::{
    Appended, ClientError, Expected, RetryConfig,
    error::{Retry, ServerError},
    retry::{Tries, backoff},
};

/// Streams that failed and were not resumed, at most.
const FAILED_STREAMS_MAX: usize = 1 << 16;

pub(crate) type LaneId = u64;
/// A node, as the caller numbers them.
pub(crate) type NodeKey = usize;

/// What the caller is to do, in order.
pub(crate) enum Action<R> {
    Open(LaneId, NodeKey),
    Send(LaneId, v1::AppendStreamRequest),
    /// It has lost its use: no answer for too long.
    Close(LaneId),
    Answer(R, Result<Appended, ClientError>),
}

pub(crate) struct Push<R> {
    pub(crate) request: v1::AppendRequest,
    pub(crate) expected: Expected,
    pub(crate) deadline: Instant,
    pub(crate) reply: R,
}

struct Item<R> {
    stream: Arc<str>,
    push: Push<R>,
    /// Set while it is in flight.
    lane: Option<LaneId>,
    tries: Tries,
    /// An earlier append of its stream failed for good: it is not sent (again).
    doomed: bool,
}

/// Unless `failing`, the first `in_flight` of the queue are in flight and the others wait.
#[derive(Default)]
struct StreamQueue {
    /// Unanswered appends, in order.
    queue: VecDeque<u64>,
    in_flight: usize,
    lane: LaneId,
    /// A failure that may pass: nothing is sent until all that is in flight came back.
    failing: bool,
    not_before: Option<Instant>,
    /// Failed for good: pushes are refused until the caller resumes.
    failed: bool,
}

struct Lane {
    node: NodeKey,
    in_flight: usize,
    /// Since when it owes an answer.
    owes_since: Instant,
}

pub(crate) struct Core<R> {
    retry: RetryConfig,
    next_sequence: u64,
    next_lane: LaneId,
    items: BTreeMap<u64, Item<R>>,
    streams: HashMap<Arc<str>, StreamQueue>,
    /// Streams that have something to send later.
    waiting: HashSet<Arc<str>>,
    failed: usize,
    lanes: HashMap<LaneId, Lane>,
    lane_of_node: HashMap<NodeKey, LaneId>,
    pub(crate) actions: Vec<Action<R>>,
}

fn earlier_failed() -> ServerError {
    ServerError {
        reason: "EARLIER_APPEND_FAILED".into(),
        metadata: [
            ("retry".to_owned(), "no".to_owned()),
            ("action".to_owned(), "resume the stream, then append again in order".to_owned()),
        ]
        .into(),
        ..ServerError::local(
            Code::FailedPrecondition,
            "an append pushed earlier to this stream failed",
        )
    }
}

impl<R> Core<R> {
    pub(crate) fn new(retry: RetryConfig) -> Self {
        Core {
            retry,
            next_sequence: 1,
            next_lane: 1,
            items: BTreeMap::new(),
            streams: HashMap::new(),
            waiting: HashSet::new(),
            failed: 0,
            lanes: HashMap::new(),
            lane_of_node: HashMap::new(),
            actions: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(crate) fn stream_of(&self, sequence: u64) -> Option<&str> {
        self.items.get(&sequence).map(|i| &*i.stream)
    }

    pub(crate) fn push(&mut self, now: Instant, push: Push<R>, route: impl FnMut(&str) -> NodeKey) {
        let known = self.streams.get_key_value(push.request.stream.as_str());
        if known.is_some_and(|(_, s)| s.failed) {
            let refused = Err(ClientError::Refused(earlier_failed()));
            self.actions.push(Action::Answer(push.reply, refused));
            return;
        }
        if self.failed >= FAILED_STREAMS_MAX {
            let refused = Err(ClientError::Invalid(format!(
                "{FAILED_STREAMS_MAX} streams failed and were not resumed: resume them, or make a new appender"
            )));
            self.actions.push(Action::Answer(push.reply, refused));
            return;
        }
        let name = match known {
            Some((name, _)) => name.clone(),
            None => Arc::from(push.request.stream.as_str()),
        };
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.items.insert(
            sequence,
            Item { stream: name.clone(), push, lane: None, tries: Tries::default(), doomed: false },
        );
        let stream = self.streams.entry(name.clone()).or_default();
        stream.queue.push_back(sequence);
        self.pump(now, &name, route);
    }

    /// Takes pushes to a stream again after one failed.
    pub(crate) fn resume(&mut self, name: &str) {
        let Some(stream) = self.streams.get_mut(name).filter(|s| s.failed) else {
            return;
        };
        stream.failed = false;
        // What is in flight comes back first: what is sent next lifts the failure at the server, and
        // must not do so ahead of an append that is still to be sent again.
        stream.failing = stream.in_flight > 0 || stream.failing;
        self.failed -= 1;
        if stream.queue.is_empty() {
            self.streams.remove(name);
        }
    }

    /// Sends what may be sent of one stream.
    fn pump(&mut self, now: Instant, name: &Arc<str>, mut route: impl FnMut(&str) -> NodeKey) {
        let Some(stream) = self.streams.get_mut(name) else {
            self.waiting.remove(name);
            return;
        };
        if stream.queue.len() == stream.in_flight && !stream.failing {
            if !self.waiting.is_empty() {
                self.waiting.remove(name);
            }
            return;
        }
        if stream.failing {
            if stream.in_flight > 0 || stream.not_before.is_some_and(|t| now < t) {
                self.waiting.insert(name.clone());
                return;
            }
            stream.failing = false;
            stream.not_before = None;
        }
        let node = route(name);
        let lane = self.lane_of_node.get(&node).copied();
        if stream.in_flight > 0 && lane != Some(stream.lane) {
            // Its leader has changed: what is in flight comes first.
            self.waiting.insert(name.clone());
            return;
        }
        let lane = lane.unwrap_or_else(|| {
            let lane = self.next_lane;
            self.next_lane += 1;
            self.lanes.insert(lane, Lane { node, in_flight: 0, owes_since: now });
            self.lane_of_node.insert(node, lane);
            self.actions.push(Action::Open(lane, node));
            lane
        });
        stream.lane = lane;
        for &sequence in stream.queue.range(stream.in_flight..) {
            let Some(item) = self.items.get_mut(&sequence) else {
                continue; // not reached: queued appends have their item
            };
            item.lane = Some(lane);
            // With nothing before it in flight there is nothing that it could overtake.
            let resume = stream.in_flight == 0;
            stream.in_flight += 1;
            if let Some(lane) = self.lanes.get_mut(&lane) {
                if lane.in_flight == 0 {
                    lane.owes_since = now;
                }
                lane.in_flight += 1;
            }
            self.actions.push(Action::Send(
                lane,
                v1::AppendStreamRequest {
                    sequence,
                    append: Some(item.push.request.clone()),
                    resume,
                },
            ));
        }
        if !self.waiting.is_empty() {
            self.waiting.remove(name);
        }
    }

    /// Takes the answer of one append in. Those of a lane that was given up are too late.
    pub(crate) fn answered(
        &mut self,
        now: Instant,
        lane: LaneId,
        sequence: u64,
        result: Result<v1::AppendResponse, ServerError>,
        random: f64,
        route: impl FnMut(&str) -> NodeKey,
    ) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        if item.lane != Some(lane) {
            return;
        }
        let name = item.stream.clone();
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.owes_since = now;
        }
        self.landed(sequence);
        match result {
            Ok(answer) => self.finish(sequence, Ok(answer.into())),
            Err(e) => self.failed(now, sequence, e, random),
        }
        self.pump(now, &name, route);
    }

    /// It is no longer in flight.
    fn landed(&mut self, sequence: u64) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        let Some(lane) = item.lane.take() else { return };
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.in_flight -= 1;
        }
        if let Some(stream) = self.streams.get_mut(&item.stream) {
            stream.in_flight -= 1;
        }
    }

    /// Takes it out and answers it.
    fn finish(&mut self, sequence: u64, result: Result<Appended, ClientError>) {
        let Some(item) = self.items.remove(&sequence) else {
            return;
        };
        if let Some(stream) = self.streams.get_mut(&item.stream) {
            if stream.queue.front() == Some(&sequence) {
                stream.queue.pop_front();
            } else {
                stream.queue.retain(|&s| s != sequence);
            }
            if stream.queue.is_empty() && !stream.failed {
                self.streams.remove(&item.stream);
            }
        }
        self.actions.push(Action::Answer(item.push.reply, result));
    }

    /// Takes the failure of an append that is not in flight any more in.
    fn failed(&mut self, now: Instant, sequence: u64, e: ServerError, random: f64) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        // This try had no effect, for one before it had none: that one says what is to be done.
        let follows = e.reason == "EARLIER_APPEND_FAILED";
        if item.doomed {
            if !follows {
                item.tries.failed(e);
            }
            self.finish_doomed(sequence);
            return;
        }
        if follows || e.retry() != Retry::No {
            if !follows {
                item.tries.failed(e);
            }
            let wait = backoff(&self.retry, item.tries.count.max(1), random);
            let name = item.stream.clone();
            if let Some(stream) = self.streams.get_mut(&name) {
                stream.failing = true;
                let until = now + wait;
                stream.not_before = Some(stream.not_before.map_or(until, |t| t.max(until)));
                self.waiting.insert(name);
            }
            return;
        }
        item.tries.failed(e);
        self.fail_for_good(sequence);
    }

    /// Answers an append with its last failure, and dooms those behind it.
    fn fail_for_good(&mut self, sequence: u64) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        let name = item.stream.clone();
        let tries = std::mem::take(&mut item.tries);
        let error = tries.conclude_append(item.push.expected);
        let mut unsent = Vec::new();
        if let Some(stream) = self.streams.get_mut(&name) {
            if !stream.failed {
                stream.failed = true;
                self.failed += 1;
            }
            for &behind in stream.queue.iter().filter(|&&s| s > sequence) {
                if let Some(item) = self.items.get_mut(&behind) {
                    item.doomed = true;
                    if item.lane.is_none() {
                        unsent.push(behind);
                    }
                }
            }
        }
        self.finish(sequence, Err(error));
        for behind in unsent {
            self.finish_doomed(behind);
        }
    }

    /// An append behind one that failed: a try of its own may have been stored all the same.
    fn finish_doomed(&mut self, sequence: u64) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        let mut tries = std::mem::take(&mut item.tries);
        let error = if tries.may_be_stored {
            tries.last.get_or_insert_with(earlier_failed);
            ClientError::Unknown {
                tries: tries.count,
                last: tries.last.unwrap_or_else(earlier_failed),
            }
        } else {
            ClientError::Refused(earlier_failed())
        };
        self.finish(sequence, Err(error));
    }

    /// Takes the end of a lane in: what is in flight there has no answer. `opened`: the node took
    /// the call, so that it may have stored what is in flight, whatever the error says.
    pub(crate) fn closed(
        &mut self,
        now: Instant,
        lane: LaneId,
        e: &ServerError,
        opened: bool,
        random: f64,
        mut route: impl FnMut(&str) -> NodeKey,
    ) {
        let Some(Lane { node, .. }) = self.lanes.remove(&lane) else {
            return;
        };
        if self.lane_of_node.get(&node) == Some(&lane) {
            self.lane_of_node.remove(&node);
        }
        let lost: Vec<u64> =
            self.items.iter().filter(|(_, i)| i.lane == Some(lane)).map(|(&s, _)| s).collect();
        let mut names = HashSet::new();
        for sequence in lost {
            if let Some(item) = self.items.get_mut(&sequence) {
                names.insert(item.stream.clone());
                item.tries.may_be_stored |= opened;
            }
            self.landed(sequence);
            self.failed(now, sequence, e.clone(), random);
        }
        for name in names {
            self.pump(now, &name, &mut route);
        }
    }

    /// Ends what is past its deadline, gives up lanes that owe an answer for too long, sends what
    /// waited. The nodes whose lanes were given up are returned.
    pub(crate) fn tick(
        &mut self,
        now: Instant,
        random: f64,
        mut route: impl FnMut(&str) -> NodeKey,
    ) -> Vec<NodeKey> {
        while let Some((&sequence, item)) = self.items.first_key_value()
            && item.push.deadline <= now
        {
            self.expire(sequence);
        }
        let try_timeout = self.retry.try_timeout;
        let stalled: Vec<(LaneId, NodeKey)> = self
            .lanes
            .iter()
            .filter(|(_, l)| l.in_flight > 0 && now >= l.owes_since + try_timeout)
            .map(|(&id, l)| (id, l.node))
            .collect();
        for &(lane, _) in &stalled {
            self.actions.push(Action::Close(lane));
            let e = stall_error(try_timeout);
            self.closed(now, lane, &e, true, random, &mut route);
        }
        let waiting: Vec<Arc<str>> = self.waiting.iter().cloned().collect();
        for name in waiting {
            self.pump(now, &name, &mut route);
        }
        stalled.into_iter().map(|(_, node)| node).collect()
    }

    fn expire(&mut self, sequence: u64) {
        let Some(item) = self.items.get_mut(&sequence) else {
            return;
        };
        let in_flight = item.lane.is_some();
        if in_flight || item.tries.last.is_none() {
            let mut e = ServerError::local(
                Code::DeadlineExceeded,
                "no answer within the append's deadline",
            );
            e.never_sent = !in_flight;
            item.tries.failed(e);
        }
        self.landed(sequence);
        if self.items.get(&sequence).is_some_and(|i| i.doomed) {
            self.finish_doomed(sequence);
        } else {
            self.fail_for_good(sequence);
        }
    }
}

fn stall_error(try_timeout: Duration) -> ServerError {
    ServerError::local(
        Code::DeadlineExceeded,
        format!("no answer within {} ms", try_timeout.as_millis()),
    )
}

#[cfg(test)]
mod tests;
