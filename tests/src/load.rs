//! Writers, readers and lookups over several streams, through random nodes, that record a history.
mod calls;
mod judge;

pub use calls::{append_request, consistency_of, lookup, new_event, outcome_of, read};
pub use judge::{judge, judge_answers, read_final, read_final_on};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::{self, append_stream_response};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;

use self::calls::{ATTEMPT_MAX, acknowledged, failed};
use crate::cluster::{LocalCluster, timed, within};
use crate::history::{
    Append, AppendOutcome, Clock, Consistency, Event, Expected, History, LookupOutcome, Read, Span,
};
use crate::model::{LAST_CATEGORY, random_data};

/// How long an append whose outcome is unknown is tried again after the load was told to stop.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Appends in flight on one pipeline.
const PIPELINE_WINDOW: usize = 24;

pub type Store = EventStoreClient<Channel>;

#[derive(Clone, Debug)]
pub struct Load {
    pub streams: u32,
    /// Clients that append one after the other.
    pub writers: u32,
    /// Clients that append by AppendStream.
    pub pipelines: u32,
    /// Clients that read and look up.
    pub readers: u32,
    /// Added to each event's data.
    pub pad_bytes: usize,
    /// Mean pause between a client's operations; bounds the rate.
    pub pause: Duration,
    pub seed: u64,
    /// Loads that follow each other on one cluster have streams of their own.
    pub segment: u32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            streams: 12,
            writers: 6,
            pipelines: 2,
            readers: 4,
            pad_bytes: 0,
            pause: Duration::from_millis(8),
            seed: 1,
            segment: 0,
        }
    }
}

impl Load {
    /// Names over all partitions and both reducers.
    pub fn names(&self) -> Vec<Arc<str>> {
        (0..self.streams)
            .map(|i| {
                let category = [LAST_CATEGORY, "customer", "order"][i as usize % 3];
                match self.segment {
                    0 => format!("{category}-{i}").into(),
                    segment => format!("{category}-{i}.{segment}").into(),
                }
            })
            .collect()
    }
}

/// What all clients of a load share.
struct Shared {
    stores: RwLock<Vec<Store>>,
    names: Vec<Arc<str>>,
    pad_bytes: usize,
    pause: Duration,
    clock: Clock,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    pipelines: AtomicU64,
}

pub struct Running {
    shared: Arc<Shared>,
    clients: JoinSet<History>,
}

/// Starts the clients.
pub fn start(cluster: &LocalCluster, clock: Clock, load: &Load) -> Running {
    start_on(cluster.stores(), clock, load)
}

/// The same on whatever answers as nodes do.
pub fn start_on(stores: Vec<Store>, clock: Clock, load: &Load) -> Running {
    let shared = Arc::new(Shared {
        stores: RwLock::new(stores),
        names: load.names(),
        pad_bytes: load.pad_bytes,
        pause: load.pause,
        clock,
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
        pipelines: AtomicU64::new(load.seed << 32),
    });
    let mut clients = JoinSet::new();
    let count = load.writers + load.pipelines + load.readers;
    for c in 0..count {
        let client = Client {
            number: c,
            rng: StdRng::seed_from_u64(load.seed.wrapping_mul(1_000).wrapping_add(u64::from(c))),
            shared: shared.clone(),
            heads: HashMap::new(),
            last_position: 0,
            history: History::default(),
        };
        if c < load.writers {
            clients.spawn(client.write());
        } else if c < load.writers + load.pipelines {
            clients.spawn(client.pipeline());
        } else {
            clients.spawn(client.read());
        }
    }
    Running { shared, clients }
}

impl Running {
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// From now on through these nodes: some have come, or gone for good.
    pub fn use_nodes(&self, cluster: &LocalCluster) {
        *self.shared.stores.write().unwrap() = cluster.stores();
    }

    /// Waits until `more` further appends have been acknowledged.
    ///
    /// # Panics
    /// When they are not within `max`.
    pub async fn progress(&self, more: u64, max: Duration) {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + max;
        while self.acknowledged() < goal {
            assert!(
                Instant::now() < deadline,
                "no {more} further appends within {max:?}: the cluster does not go on"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the clients. Appends whose outcome is unknown are tried again first, for a while.
    pub async fn stop(mut self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        while let Some(client) = self.clients.join_next().await {
            history.merge(client.expect("a client does not panic"));
        }
        history
    }
}

/// One client: what it does is one after the other (but for a pipeline).
struct Client {
    number: u32,
    rng: StdRng,
    shared: Arc<Shared>,
    /// Revision and position of the last event that it knows of, by stream.
    heads: HashMap<Arc<str>, (u64, u64)>,
    last_position: u64,
    history: History,
}

impl Client {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn store(&mut self) -> Store {
        let stores = self.shared.stores.read().unwrap();
        let i = self.rng.random_range(0..stores.len());
        stores[i].clone()
    }

    fn stream(&mut self) -> Arc<str> {
        let i = self.rng.random_range(0..self.shared.names.len());
        self.shared.names[i].clone()
    }

    async fn pause(&mut self) {
        let mean_us = self.shared.pause.as_micros() as u64;
        let us = self.rng.random_range(0..=2 * mean_us);
        tokio::time::sleep(Duration::from_micros(us)).await;
    }

    fn events(&mut self) -> Arc<[Event]> {
        let count = if self.rng.random_bool(0.7) { 1 } else { self.rng.random_range(2..6) };
        (0..count).map(|_| Event { id: self.rng.random(), data: self.data() }).collect()
    }

    fn data(&mut self) -> Bytes {
        let data = random_data(&mut self.rng);
        if self.shared.pad_bytes == 0 {
            return data;
        }
        // An object, before its last brace.
        let mut padded = data[..data.len() - 1].to_vec();
        padded.extend_from_slice(b",\"pad\":\"");
        padded.resize(padded.len() + self.shared.pad_bytes, b'x');
        padded.extend_from_slice(b"\"}");
        padded.into()
    }

    fn expected(&mut self, stream: &Arc<str>) -> Expected {
        match (self.rng.random_range(0..10), self.heads.get(stream)) {
            (0..4, Some((revision, _))) => Expected::Exact(*revision),
            (4, Some(_)) => Expected::StreamExists,
            (5, _) | (0..2, None) => Expected::NoStream,
            _ => Expected::Any,
        }
    }

    async fn write(mut self) -> History {
        while !self.stopped() {
            let stream = self.stream();
            let events = self.events();
            let expected = self.expected(&stream);
            let after_position = if self.rng.random_bool(0.3) { self.last_position } else { 0 };
            self.append(stream.clone(), events, expected, after_position).await;
            if self.rng.random_bool(0.4) {
                self.lookup(stream).await;
            }
            self.pause().await;
        }
        self.history
    }

    /// Tries with the same ids until the outcome is known.
    async fn append(
        &mut self,
        stream: Arc<str>,
        events: Arc<[Event]>,
        expected: Expected,
        after_position: u64,
    ) {
        let mut give_up: Option<Instant> = None;
        let mut again = false;
        loop {
            let mut store = self.store();
            let start_ns = self.shared.clock.now_ns();
            let request = append_request(&stream, &events, expected, after_position);
            let answer = within(store.append(timed(request, ATTEMPT_MAX)), ATTEMPT_MAX).await;
            let outcome = outcome_of(answer);
            self.saw(&stream, &outcome);
            let known = match outcome {
                AppendOutcome::Acknowledged { .. } => true,
                AppendOutcome::Refused { for_good, .. } => for_good,
                AppendOutcome::Unknown { .. } => false,
            };
            self.history.appends.push(Append {
                client: self.number,
                stream: stream.clone(),
                events: events.clone(),
                expected,
                after_position,
                pipeline: None,
                span: self.span_from(start_ns),
                outcome,
            });
            if known {
                // Now and then an acknowledged one is sent again: the same answer is due.
                if !again && self.rng.random_bool(0.05) {
                    again = true;
                    continue;
                }
                return;
            }
            if self.stopped() {
                let until = *give_up.get_or_insert_with(|| Instant::now() + SETTLE_MAX);
                if Instant::now() > until {
                    return;
                }
            }
            let ms = self.rng.random_range(20..150);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn span_from(&self, start_ns: u64) -> Span {
        Span { start_ns, end_ns: self.shared.clock.now_ns() }
    }

    fn saw(&mut self, stream: &Arc<str>, outcome: &AppendOutcome) {
        match outcome {
            AppendOutcome::Acknowledged { last_revision, last_position, .. } => {
                self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                self.heads.insert(stream.clone(), (*last_revision, *last_position));
                self.last_position = self.last_position.max(*last_position);
            }
            AppendOutcome::Refused { actual: Some(Some(revision)), .. } => {
                let head = self.heads.entry(stream.clone()).or_default();
                head.0 = *revision;
            }
            _ => {}
        }
    }

    /// Windows of appends on one call of AppendStream. What was not acknowledged is sent again, in
    /// order, on a new call through another node.
    async fn pipeline(mut self) -> History {
        let mut waiting: Vec<(Arc<str>, Arc<[Event]>)> = Vec::new();
        let mut give_up: Option<Instant> = None;
        loop {
            if self.stopped() {
                let until = *give_up.get_or_insert_with(|| Instant::now() + SETTLE_MAX);
                if waiting.is_empty() || Instant::now() > until {
                    return self.history;
                }
            } else {
                // Few streams, so that each has several appends in flight.
                let streams = [self.stream(), self.stream()];
                while waiting.len() < PIPELINE_WINDOW {
                    let stream = streams[self.rng.random_range(0..2usize)].clone();
                    let events = self.events();
                    waiting.push((stream, events));
                }
            }
            let outcomes = self.send_window(&waiting).await;
            let failed = outcomes.iter().any(|done| !done);
            let mut done = outcomes.into_iter();
            waiting.retain(|_| !done.next().unwrap_or(false));
            if failed {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            for _ in 0..PIPELINE_WINDOW {
                self.pause().await;
            }
        }
    }

    /// Sends all on one call; says of each whether it is acknowledged.
    async fn send_window(&mut self, window: &[(Arc<str>, Arc<[Event]>)]) -> Vec<bool> {
        let pipeline = self.shared.pipelines.fetch_add(1, Ordering::Relaxed);
        let mut store = self.store();
        let start_ns = self.shared.clock.now_ns();
        let mut begun: Vec<&Arc<str>> = Vec::new();
        let requests: Vec<v1::AppendStreamRequest> = window
            .iter()
            .enumerate()
            .map(|(i, (stream, events))| {
                let resume = !begun.contains(&stream);
                if resume {
                    begun.push(stream);
                }
                v1::AppendStreamRequest {
                    sequence: i as u64,
                    append: Some(append_request(stream, events, Expected::Any, 0)),
                    resume,
                }
            })
            .collect();
        let mut outcomes: Vec<Option<(AppendOutcome, u64)>> = vec![None; window.len()];
        let deadline = tokio::time::Instant::now() + 2 * ATTEMPT_MAX;
        let work = async {
            let answers = store.append_stream(tokio_stream::iter(requests)).await?.into_inner();
            tokio::pin!(answers);
            while let Some(answer) = answers.message().await? {
                let outcome = match answer.result {
                    Some(append_stream_response::Result::Ok(ok)) => acknowledged(&ok),
                    Some(append_stream_response::Result::Error(e)) => {
                        let metadata = |field: &str| e.metadata.get(field).cloned();
                        failed(e.code.into(), &e.reason, metadata, &e.message)
                    }
                    None => continue,
                };
                let place = usize::try_from(answer.sequence).unwrap_or(usize::MAX);
                if let Some(slot) = outcomes.get_mut(place) {
                    *slot = Some((outcome, self.shared.clock.now_ns()));
                }
            }
            Ok::<(), Status>(())
        };
        let why = match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(())) => "the stream ended".to_string(),
            Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
            Err(_) => "no answer in time".to_string(),
        };
        let mut done = Vec::with_capacity(window.len());
        for (i, ((stream, events), outcome)) in window.iter().zip(outcomes).enumerate() {
            let (outcome, end_ns) = outcome.unwrap_or_else(|| {
                let unknown = AppendOutcome::Unknown { why: why.clone() };
                (unknown, self.shared.clock.now_ns())
            });
            self.saw(stream, &outcome);
            done.push(matches!(outcome, AppendOutcome::Acknowledged { .. }));
            self.history.appends.push(Append {
                client: self.number,
                stream: stream.clone(),
                events: events.clone(),
                expected: Expected::Any,
                after_position: 0,
                pipeline: Some((pipeline, i as u64)),
                span: Span { start_ns, end_ns },
                outcome,
            });
        }
        done
    }

    async fn read(mut self) -> History {
        while !self.stopped() {
            let stream = self.stream();
            if self.rng.random_bool(0.3) {
                self.read_events(stream).await;
            } else {
                self.lookup(stream).await;
            }
            self.pause().await;
        }
        self.history
    }

    fn consistency(&mut self, stream: &Arc<str>) -> (Consistency, u64) {
        let consistency = match self.rng.random_range(0..3) {
            0 => Consistency::Linearizable,
            1 => Consistency::Lease,
            _ => Consistency::Stale,
        };
        let known = self.heads.get(stream).map_or(0, |(_, p)| *p);
        let wanted = consistency == Consistency::Stale && self.rng.random_bool(0.5);
        (consistency, if wanted { known } else { 0 })
    }

    async fn lookup(&mut self, stream: Arc<str>) {
        let (consistency, min_position) = self.consistency(&stream);
        let mut store = self.store();
        let lookup =
            lookup(&mut store, self.shared.clock, self.number, stream, consistency, min_position)
                .await;
        if let LookupOutcome::State(s) = &lookup.outcome {
            self.heads.insert(lookup.stream.clone(), (s.revision, s.position));
        }
        self.history.lookups.push(lookup);
    }

    async fn read_events(&mut self, stream: Arc<str>) {
        let (consistency, min_position) = self.consistency(&stream);
        let mut store = self.store();
        let head = self.heads.get(&stream).map_or(0, |(r, _)| *r);
        // Mostly near the end: whole streams get long.
        let from = head.saturating_sub(self.rng.random_range(0..40));
        let backwards = self.rng.random_bool(0.4);
        let (from_revision, max_count) = match (backwards, self.rng.random_range(0..3)) {
            (true, 0) => (None, 20),
            (_, 1) => (Some(from), 10),
            (true, _) => (Some(from), 30),
            (false, _) => (Some(from), 0),
        };
        let request = Read {
            client: self.number,
            stream,
            consistency,
            min_position,
            from_revision,
            backwards,
            max_count,
            span: Span { start_ns: 0, end_ns: 0 },
            seen: None,
        };
        let read = read(&mut store, self.shared.clock, request).await;
        self.history.reads.push(read);
    }
}
