//! The `AppendStream` call: pipelined appends, without a task of its own. The stream of answers
//! reads requests, proposes units and gathers outcomes whenever it is polled.
use super::append::{AppendOne, outcome, proposed};
use super::append_queue::{AppendQueue, Item, Pushed, Run, Unit};
use super::deadline::Call;
use super::errors::ApiError;
use super::node::Node;
use super::validate;
use crate::clock::wall_ms;
use crate::ids::GroupId;
use crate::metrics::Measured;
use crate::partition::position;
use crate::raft::handle::Role;
use crate::router::{LocalError, route};
use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use ringfold_proto::v1;
use ringfold_proto::v1::append_stream_response::Result as AnswerResult;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;

/// Requests read before what they ask for is proposed.
const READ_BATCH: usize = 256;
/// Streams of one unit whose appends are forwarded at once.
const FORWARD_CONCURRENCY: usize = 16;
/// Pause when too many bytes wait at the leader: the call itself is bounded, so it waits.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

type Answer = Result<v1::AppendResponse, ApiError>;

/// Answers of one call. `R` gives the client's requests.
pub struct Appends<R> {
    node: Arc<Node>,
    partitions: u32,
    call: Call,
    /// `None`: nothing more is read.
    requests: Option<R>,
    queue: AppendQueue,
    running: FuturesUnordered<BoxFuture<'static, (Unit, Vec<Answer>)>>,
    answers: VecDeque<v1::AppendStreamResponse>,
    /// Ends when the call must: its deadline, or the node stops.
    end: BoxFuture<'static, Status>,
    /// What the call ends with once everything is answered.
    status: Option<Status>,
}

impl<R: Stream<Item = Result<v1::AppendStreamRequest, Status>> + Unpin> Appends<R> {
    pub fn new(node: Arc<Node>, partitions: u32, call: Call, requests: R) -> Appends<R> {
        let stopping = node.info.stopping.clone();
        let end = Box::pin(async move {
            let deadline = async {
                match call.has_deadline {
                    true => tokio::time::sleep_until(call.deadline).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = deadline => ApiError::DeadlineExceeded { in_flight: false }.into(),
                () = stopping.cancelled_owned() => ApiError::NodeStopping.into(),
            }
        });
        Appends {
            node,
            partitions,
            call,
            requests: Some(requests),
            queue: AppendQueue::default(),
            running: FuturesUnordered::new(),
            answers: VecDeque::new(),
            end,
            status: None,
        }
    }

    /// Reads nothing more; what was read is answered.
    fn stop(&mut self, status: Option<Status>) {
        self.requests = None;
        if self.status.is_none() {
            self.status = status;
        }
    }

    fn take(&mut self, request: v1::AppendStreamRequest) {
        let v1::AppendStreamRequest { sequence, append, resume } = request;
        let Some(append) = append else {
            self.answer(sequence, Err(ApiError::argument("append", "is absent")));
            return;
        };
        let limits = &self.node.limits;
        let pushed = match validate::append(&append, limits) {
            Ok(()) => {
                let partition = validate::partition_of(&append.stream, self.partitions);
                self.queue.push(Item { sequence, resume, partition, request: append })
            }
            Err(e) => {
                // A stream that cannot be has no order to keep.
                let is_stream = validate::stream_name(&append.stream, limits).is_ok();
                self.answer(sequence, Err(e));
                if is_stream {
                    self.queue.fail(&append.stream).map(|()| Pushed::Waits)
                } else {
                    return;
                }
            }
        };
        match pushed {
            Ok(Pushed::Waits) => {}
            Ok(Pushed::EarlierFailed) => self.answer(sequence, Err(ApiError::EarlierAppendFailed)),
            Err(_) => {
                let what = "appends to too many streams failed in this call: open another one";
                self.stop(Some(ApiError::Overloaded(what).into()));
            }
        }
    }

    fn finish(&mut self, unit: &Unit, answers: Vec<Answer>) {
        let mut answers = answers.into_iter();
        for run in &unit.runs {
            let mut failed = false;
            for (item, chained) in run.chained() {
                let missing = || Err(ApiError::internal("an append of a unit has no outcome"));
                let answer = answers.next().unwrap_or_else(missing);
                // A retry of what is stored is answered, but does not mend the chain before it.
                failed = answer.is_err() || (chained && failed);
                self.answer(item.sequence, answer);
            }
            for dropped in self.queue.finish(run, failed) {
                self.answer(dropped.sequence, Err(ApiError::EarlierAppendFailed));
            }
        }
    }

    fn answer(&mut self, sequence: u64, answer: Answer) {
        let result = Some(match answer {
            Ok(ok) => AnswerResult::Ok(ok),
            Err(e) => AnswerResult::Error(e.into()),
        });
        self.answers.push_back(v1::AppendStreamResponse { sequence, result });
    }

    /// Does what can be done now; whether anything was.
    fn work(&mut self, cx: &mut Context<'_>) -> bool {
        let mut worked = false;
        while let Poll::Ready(Some((unit, answers))) = self.running.poll_next_unpin(cx) {
            self.finish(&unit, answers);
            worked = true;
        }
        for _ in 0..READ_BATCH {
            let Some(requests) = self.requests.as_mut().filter(|_| self.queue.has_room()) else {
                break;
            };
            match requests.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(request))) => self.take(request),
                Poll::Ready(Some(Err(status))) => self.stop(Some(status)),
                Poll::Ready(None) => self.stop(None),
            }
            worked = true;
        }
        if self.requests.is_some()
            && let Poll::Ready(status) = self.end.as_mut().poll(cx)
        {
            self.stop(Some(status));
            worked = true;
        }
        let now = position::stamp(wall_ms());
        while let Some(unit) = self.queue.next_unit(now) {
            let call = self.call.step();
            self.running.push(Box::pin(run(self.node.clone(), unit, call)));
            worked = true;
        }
        worked
    }
}

impl<R: Stream<Item = Result<v1::AppendStreamRequest, Status>> + Unpin> Stream for Appends<R> {
    type Item = Result<v1::AppendStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(answer) = this.answers.pop_front() {
                return Poll::Ready(Some(Ok(answer)));
            }
            if this.work(cx) {
                continue;
            }
            if this.requests.is_none() && this.queue.is_empty() {
                return Poll::Ready(this.status.take().map(Err));
            }
            return Poll::Pending;
        }
    }
}

/// Appends a unit: as one proposal if this node leads, otherwise append by append at the leader.
async fn run(node: Arc<Node>, unit: Unit, call: Call) -> (Unit, Vec<Answer>) {
    let since = Instant::now();
    let answers = match propose(&node, &unit, &call).await {
        Some(Ok(answers)) => answers,
        Some(Err(e)) => vec![Err(e); unit.appends()],
        None => {
            let runs = unit.runs.iter();
            let runs: Vec<_> = runs.map(|run| forward(&node, unit.partition, run, &call)).collect();
            stream::iter(runs).buffered(FORWARD_CONCURRENCY).concat().await
        }
    };
    node.metrics.appended(since, answers.len());
    for error in answers.iter().filter_map(|a| a.as_ref().err()) {
        node.metrics.refused(Measured::Append, error.reason().map_or("", |r| r.name()));
    }
    (unit, answers)
}

/// `None`: this node does not lead the partition, and nothing was done.
async fn propose(node: &Node, unit: &Unit, call: &Call) -> Option<Result<Vec<Answer>, ApiError>> {
    let group = GroupId::of_partition(unit.partition);
    loop {
        if node.raft.replica(group)?.status.read().role != Role::Leader {
            return None;
        }
        if let Err(e) = node.info.disk.check_appends() {
            return Some(Err(e));
        }
        let commands = unit.runs.iter().flat_map(Run::chained);
        let commands = commands
            .map(|(item, chained)| validate::encode_append(&item.request, chained))
            .collect();
        let answer = node.raft.propose(group, commands, unit.after_position());
        let outcomes = match call.within(true, answer).await {
            Ok(answer) => proposed(answer),
            Err(e) => return Some(Err(e)),
        };
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(LocalError::NotLeader(_)) => return None,
            Err(LocalError::Failed(ApiError::Overloaded(_)) | LocalError::Busy(_))
                if call.remaining() > BUSY_PAUSE =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            Err(LocalError::Failed(e) | LocalError::Busy(e)) => return Some(Err(e)),
        };
        let mut outcomes = outcomes.into_iter();
        let items = unit.runs.iter().flat_map(|run| &run.items);
        let answers = items.map(|i| outcome(outcomes.next(), &i.request, unit.partition));
        return Some(Ok(answers.collect()));
    }
}

/// The appends of a stream one after the other, wherever the leader is.
async fn forward(node: &Arc<Node>, partition: u32, run: &Run, call: &Call) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::with_capacity(run.items.len());
    for (item, chained) in run.chained() {
        let earlier_failed = chained && answers.last().is_some_and(|a| a.is_err());
        answers.push(if earlier_failed {
            Err(ApiError::EarlierAppendFailed)
        } else {
            let append = AppendOne { request: &item.request, partition };
            route(node, partition, call, &append).await.map(|routed| routed.value)
        });
    }
    answers
}
