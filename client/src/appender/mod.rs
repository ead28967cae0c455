//! Pipelined appends: the lanes of [`core`] as `AppendStream` calls.
mod core;

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use parking_lot::Mutex;
use ringfold_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use self::core::{Action, Core, LaneId, NodeKey, Push};
use crate::{
    Appended, Client, ClientError, Expected, NewEvent,
    client::{event_store, no_answer},
    error::ServerError,
    nodes::Node,
};

/// How often deadlines are looked at and waiting streams sent again.
const TICK: Duration = Duration::from_millis(20);
/// The map is read again at least so often while appends are in flight: a forwarded append does not
/// say who leads.
const REFRESH: Duration = Duration::from_secs(5);
/// What the cluster takes in one append.
const APPEND_BYTES_MAX: usize = 4 << 20;
const APPEND_EVENTS_MAX: usize = 1_024;
/// Answers taken in under one lock.
const ANSWERS_MAX: usize = 256;

/// Appends without waiting for each answer, in order within each stream.
///
/// An append that fails in passing (a leader change, a broken connection) is sent again with the
/// same event ids and all that was pushed behind it, in order, within its deadline. After one that
/// failed for good, those pushed behind it to the same stream fail with `EARLIER_APPEND_FAILED`,
/// until [`Appender::resume`].
///
/// Clones share all of this. When the last one is dropped, what is in flight still ends.
///
/// ```no_run
/// # async fn example(client: ringfold_client::Client) -> Result<(), ringfold_client::ClientError> {
/// use ringfold_client::{Expected, NewEvent};
///
/// let appender = client.appender();
/// let mut pending = Vec::new();
/// for i in 0..1_000 {
///     let event = NewEvent::new("Counted", format!("{{\"n\":{i}}}"));
///     pending.push(appender.push(&format!("counter-{}", i % 10), vec![event], Expected::Any).await);
/// }
/// for answer in pending {
///     answer.await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Appender {
    handle: Arc<Handle>,
}

/// Dropped with the last [`Appender`].
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.room.close();
    }
}

struct Shared {
    client: Client,
    /// Permits of appends in flight; closed when the appender is dropped.
    room: Arc<Semaphore>,
    room_bytes: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    core: Core<Reply>,
    nodes: Vec<Arc<Node>>,
    lanes: HashMap<LaneId, mpsc::Sender<v1::AppendStreamRequest>>,
}

struct Reply {
    answer: oneshot::Sender<Result<Appended, ClientError>>,
    _room: OwnedSemaphorePermit,
    _room_bytes: OwnedSemaphorePermit,
}

/// The answer of one append that was pushed. Dropping it does not take the append back.
///
/// # Errors
/// As [`Client::append`]; and [`ClientError::Refused`] with `EARLIER_APPEND_FAILED`: not stored.
#[must_use = "whether the append succeeded is said here"]
pub struct Pending {
    answer: Result<oneshot::Receiver<Result<Appended, ClientError>>, Option<ClientError>>,
}

impl Pending {
    fn refused(e: ServerError) -> Pending {
        Pending { answer: Err(Some(ClientError::Refused(e))) }
    }
}

impl Future for Pending {
    type Output = Result<Appended, ClientError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.answer {
            Ok(answer) => answer
                .poll_unpin(cx)
                // The runtime ended with the append in flight.
                .map(|a| a.unwrap_or_else(|_| Err(lost()))),
            Err(e) => Poll::Ready(Err(e.take().unwrap_or(ClientError::Closed))),
        }
    }
}

fn lost() -> ClientError {
    ClientError::Unknown {
        tries: 1,
        last: ServerError::local(Code::Cancelled, "the runtime of the appender ended"),
    }
}

impl Appender {
    pub(crate) fn new(client: Client) -> Appender {
        let config = client.config();
        let shared = Arc::new(Shared {
            room: Arc::new(Semaphore::new(config.in_flight_max)),
            room_bytes: Arc::new(Semaphore::new(room_bytes(config.in_flight_bytes_max) as usize)),
            state: Mutex::new(State {
                core: Core::new(config.retry),
                nodes: Vec::new(),
                lanes: HashMap::new(),
            }),
            client,
        });
        tokio::spawn(tick(shared.clone()));
        Appender { handle: Arc::new(Handle { shared }) }
    }

    /// Waits for room in flight and sends: appends of one stream take effect in the order in which
    /// their pushes end. The future that it gives is the answer's.
    pub async fn push(&self, stream: &str, events: Vec<NewEvent>, expected: Expected) -> Pending {
        let shared = &self.handle.shared;
        let bytes: usize = events.iter().map(|e| e.inner.data.len() + e.inner.metadata.len()).sum();
        // Sent, they would break the lane, and everyone's appends with it.
        if bytes > APPEND_BYTES_MAX {
            let e = too_large("APPEND_TOO_LARGE", "bytes", bytes, APPEND_BYTES_MAX);
            return Pending::refused(e);
        }
        if events.len() > APPEND_EVENTS_MAX {
            let e = too_large("INVALID_EVENT", "events", events.len(), APPEND_EVENTS_MAX);
            return Pending::refused(e);
        }
        let room_bytes_max = room_bytes(shared.client.config().in_flight_bytes_max);
        let room = shared.room.clone().acquire_owned().await;
        let room_bytes = shared
            .room_bytes
            .clone()
            .acquire_many_owned((bytes.max(1) as u32).min(room_bytes_max))
            .await;
        let (Ok(room), Ok(room_bytes)) = (room, room_bytes) else {
            return Pending { answer: Err(None) };
        };
        let (answer, pending) = oneshot::channel();
        let push = Push {
            request: shared.client.append_request(stream, events, expected),
            expected,
            deadline: Instant::now() + shared.client.config().deadline,
            reply: Reply { answer, _room: room, _room_bytes: room_bytes },
        };
        shared.step(|core, now, route| core.push(now, push, route));
        Pending { answer: Ok(pending) }
    }

    /// Takes pushes to a stream again after an append of it failed. Nothing else needs it.
    pub fn resume(&self, stream: &str) {
        self.handle.shared.state.lock().core.resume(stream);
    }

    /// Waits until all that was pushed before has its answer.
    pub async fn flush(&self) {
        let shared = &self.handle.shared;
        let all = shared.client.config().in_flight_max as u32;
        // Closed only when the last handle is gone, and this is one.
        let _ = shared.room.acquire_many(all).await;
    }
}

fn room_bytes(configured: usize) -> u32 {
    configured.clamp(1, (u32::MAX >> 4) as usize) as u32
}

fn too_large(reason: &str, unit: &str, actual: usize, limit: usize) -> ServerError {
    let metadata = [
        ("field", "events".to_owned()),
        ("limit", limit.to_string()),
        ("actual", actual.to_string()),
        ("retry", "no".to_owned()),
        ("action", "append fewer events at once".to_owned()),
    ];
    ServerError {
        reason: reason.into(),
        metadata: metadata.map(|(k, v)| (k.to_owned(), v)).into(),
        ..ServerError::local(
            Code::InvalidArgument,
            format!("the append has {actual} {unit}; the limit is {limit}"),
        )
    }
}

/// The number of a node among those that this appender has met.
fn key_of(nodes: &mut Vec<Arc<Node>>, node: Arc<Node>) -> NodeKey {
    match nodes.iter().position(|n| Arc::ptr_eq(n, &node)) {
        Some(key) => key,
        None => {
            nodes.push(node);
            nodes.len() - 1
        }
    }
}

impl Shared {
    /// One step of the core, and what it asks for, under one lock: so lanes get their appends in the
    /// order of the pushes.
    fn step<T>(
        self: &Arc<Self>,
        step: impl FnOnce(&mut Core<Reply>, Instant, &mut dyn FnMut(&str) -> NodeKey) -> T,
    ) -> T {
        let mut state = self.state.lock();
        let State { core, nodes, lanes } = &mut *state;
        let mut route = |stream: &str| key_of(nodes, self.client.steady_route(stream));
        let out = step(core, Instant::now(), &mut route);
        // A lane that takes no more is closed, and that step asks for more.
        while !core.actions.is_empty() {
            let mut broken = Vec::new();
            for action in std::mem::take(&mut core.actions) {
                match action {
                    Action::Open(lane, node) => {
                        // Each append is in at most one lane, once: never full.
                        let (tx, rx) = mpsc::channel(self.client.config().in_flight_max);
                        lanes.insert(lane, tx);
                        tokio::spawn(run_lane(self.clone(), lane, nodes[node].clone(), rx));
                    }
                    Action::Send(lane, request) => {
                        let sent = lanes.get(&lane).map(|l| l.try_send(request));
                        if !matches!(sent, Some(Ok(()))) {
                            broken.push(lane);
                        }
                    }
                    Action::Close(lane) => {
                        lanes.remove(&lane);
                    }
                    Action::Answer(reply, result) => {
                        if let Ok(appended) = &result {
                            self.client.saw_position(appended.last_position);
                        }
                        // Nobody may be waiting for it.
                        let _ = reply.answer.send(result);
                    }
                }
            }
            let mut route = |stream: &str| key_of(nodes, self.client.steady_route(stream));
            for lane in broken {
                lanes.remove(&lane);
                let e = ServerError::local(Code::Unavailable, "the connection broke");
                core.closed(Instant::now(), lane, &e, true, rand::random(), &mut route);
            }
        }
        out
    }

    fn lane_closed(self: &Arc<Self>, lane: LaneId, node: &Node, e: ServerError, opened: bool) {
        // A lane that was given up ends here too, and has nothing in flight any more.
        self.client.take_failure(node, None, &e);
        self.state.lock().lanes.remove(&lane);
        self.step(|core, now, route| core.closed(now, lane, &e, opened, rand::random(), route));
    }
}

/// Runs until the appender is dropped and everything has its answer.
async fn tick(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        let (empty, stalled) = shared.step(|core, now, route| {
            let stalled = core.tick(now, rand::random(), route);
            (core.is_empty(), stalled)
        });
        if !stalled.is_empty() {
            let state = shared.state.lock();
            for node in stalled {
                state.nodes[node].avoid();
            }
            drop(state);
            shared.client.refresh_soon(Duration::ZERO);
        }
        if !empty {
            shared.client.refresh_soon(REFRESH);
        } else if shared.room.is_closed() {
            // Ends the requests of each lane, and so the lanes.
            shared.state.lock().lanes.clear();
            return;
        }
    }
}

async fn run_lane(
    shared: Arc<Shared>,
    lane: LaneId,
    node: Arc<Node>,
    requests: mpsc::Receiver<v1::AppendStreamRequest>,
) {
    let within = shared.client.config().retry.try_timeout;
    let mut calls = event_store(node.channel());
    let opening = calls.append_stream(ReceiverStream::new(requests));
    let mut answers = match tokio::time::timeout(within, opening).await {
        Ok(Ok(answers)) => answers.into_inner(),
        Ok(Err(status)) => return shared.lane_closed(lane, &node, status.into(), false),
        Err(_) => return shared.lane_closed(lane, &node, no_answer(&node, within), false),
    };
    // Only the lanes and the tick of a living appender keep it.
    let weak: Weak<Shared> = Arc::downgrade(&shared);
    drop(shared);
    let mut batch = Vec::new();
    loop {
        let mut next = answers.message().await;
        let ended = loop {
            match next {
                Ok(Some(answer)) => batch.push(answer),
                Ok(None) => {
                    let e = ServerError::local(Code::Unavailable, "the node ended the call");
                    break Some(e);
                }
                Err(status) => break Some(status.into()),
            }
            if batch.len() >= ANSWERS_MAX {
                break None;
            }
            match answers.message().now_or_never() {
                Some(more) => next = more,
                None => break None,
            }
        };
        let Some(shared) = weak.upgrade() else { return };
        take_answers(&shared, lane, &node, &mut batch);
        if let Some(e) = ended {
            return shared.lane_closed(lane, &node, e, true);
        }
    }
}

fn take_answers(
    shared: &Arc<Shared>,
    lane: LaneId,
    node: &Node,
    batch: &mut Vec<v1::AppendStreamResponse>,
) {
    use v1::append_stream_response::Result as Answer;
    if batch.is_empty() {
        return;
    }
    let answers: Vec<(u64, Result<v1::AppendResponse, ServerError>)> = batch
        .drain(..)
        .map(|answer| {
            let result = match answer.result {
                Some(Answer::Ok(ok)) => Ok(ok),
                Some(Answer::Error(e)) => Err(ServerError::from(e)),
                None => Err(ServerError::local(Code::Internal, "an answer without a result")),
            };
            (answer.sequence, result)
        })
        .collect();
    shared.step(|core, now, route| {
        for (sequence, result) in answers {
            if let Err(e) = &result
                && e.reason != "EARLIER_APPEND_FAILED"
            {
                let partition =
                    core.stream_of(sequence).and_then(|s| shared.client.map().partition_of(s));
                shared.client.take_failure(node, partition, e);
            }
            core.answered(now, lane, sequence, result, rand::random(), &mut *route);
        }
    });
}
