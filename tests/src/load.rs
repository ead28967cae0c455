//! Writers, readers and lookups over several streams, through random nodes, that record a history.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::{self, append_stream_response, expected_revision};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::checker;
use crate::cluster::{LocalCluster, detail, reason, timed, within};
use crate::history::{
    Append, AppendOutcome, Clock, Consistency, Event, Expected, FinalLog, History, Lookup,
    LookupOutcome, Read, SeenEvent, SeenState, Span,
};
use crate::model::{self, LAST_CATEGORY, random_data};

/// One attempt; a paused node says nothing for as long.
const ATTEMPT_MAX: Duration = Duration::from_secs(4);
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
        }
    }
}

impl Load {
    /// Names over all partitions and both reducers.
    pub fn names(&self) -> Vec<Arc<str>> {
        (0..self.streams)
            .map(|i| match i % 3 {
                0 => format!("{LAST_CATEGORY}-{i}").into(),
                1 => format!("customer-{i}").into(),
                _ => format!("order-{i}").into(),
            })
            .collect()
    }
}

/// What all clients of a load share.
struct Shared {
    stores: Vec<Store>,
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
        stores,
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
        let i = self.rng.random_range(0..self.shared.stores.len());
        self.shared.stores[i].clone()
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

pub fn append_request(
    stream: &str,
    events: &[Event],
    expected: Expected,
    after_position: u64,
) -> v1::AppendRequest {
    use expected_revision::Expected as E;
    let expected = match expected {
        Expected::Any => E::Any(expected_revision::Any {}),
        Expected::NoStream => E::NoStream(expected_revision::NoStream {}),
        Expected::StreamExists => E::StreamExists(expected_revision::StreamExists {}),
        Expected::Exact(n) => E::Exact(n),
    };
    v1::AppendRequest {
        stream: stream.to_string(),
        events: events.iter().map(new_event).collect(),
        expected: Some(v1::ExpectedRevision { expected: Some(expected) }),
        after_position,
    }
}

pub fn new_event(event: &Event) -> v1::NewEvent {
    v1::NewEvent {
        id: Bytes::copy_from_slice(&event.id.to_be_bytes()),
        r#type: "Changed".into(),
        schema_version: 1,
        content_type: String::new(),
        data: event.data.clone(),
        metadata: Bytes::new(),
    }
}

fn acknowledged(ok: &v1::AppendResponse) -> AppendOutcome {
    AppendOutcome::Acknowledged {
        first_revision: ok.first_revision,
        last_revision: ok.last_revision,
        first_position: ok.first_position,
        last_position: ok.last_position,
        partition: ok.partition,
    }
}

fn failed(
    code: Code,
    reason: &str,
    metadata: impl Fn(&str) -> Option<String>,
    message: &str,
) -> AppendOutcome {
    // These say that nothing was stored; anything else leaves it open. Without a reason it is not
    // the product that speaks: HTTP/2 resets become codes too.
    let definite = !reason.is_empty()
        && matches!(
            code,
            Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::NotFound
                | Code::ResourceExhausted
        );
    if !definite {
        return AppendOutcome::Unknown { why: format!("{code:?} {reason}: {message}") };
    }
    let retry = metadata("retry").is_some_and(|r| r != "no");
    let actual = (reason == "WRONG_EXPECTED_REVISION").then(|| {
        let actual = metadata("actual").expect("WRONG_EXPECTED_REVISION names the actual revision");
        match actual.as_str() {
            "none" => None,
            revision => Some(revision.parse().expect("a revision or `none`")),
        }
    });
    // A full disk refuses whatever comes, known or not.
    let for_good = !retry && reason != "DISK_FULL";
    AppendOutcome::Refused { reason: reason.to_string(), actual, for_good }
}

pub fn outcome_of(answer: Result<v1::AppendResponse, Status>) -> AppendOutcome {
    match answer {
        Ok(ok) => acknowledged(&ok),
        Err(status) => failed(
            status.code(),
            &reason(&status),
            |field| detail(&status, field),
            status.message(),
        ),
    }
}

pub fn consistency_of(consistency: Consistency) -> i32 {
    (match consistency {
        Consistency::Linearizable => v1::Consistency::Linearizable,
        Consistency::Lease => v1::Consistency::Lease,
        Consistency::Stale => v1::Consistency::Stale,
    }) as i32
}

/// One lookup, recorded.
pub async fn lookup(
    store: &mut Store,
    clock: Clock,
    client: u32,
    stream: Arc<str>,
    consistency: Consistency,
    min_position: u64,
) -> Lookup {
    let request = v1::LookupRequest {
        stream: stream.to_string(),
        consistency: consistency_of(consistency),
        min_position,
    };
    let start_ns = clock.now_ns();
    let answer = within(store.lookup(timed(request, ATTEMPT_MAX)), ATTEMPT_MAX).await;
    let outcome = match answer {
        Ok(v1::LookupResponse { state: Some(s) }) => LookupOutcome::State(SeenState {
            revision: s.revision,
            position: s.position,
            data: s.data,
        }),
        Ok(_) => LookupOutcome::Failed("an answer without a state".into()),
        Err(s) if reason(&s) == "STREAM_NOT_FOUND" => LookupOutcome::None,
        Err(s) => LookupOutcome::Failed(format!("{:?} {}: {}", s.code(), reason(&s), s.message())),
    };
    Lookup {
        client,
        stream,
        consistency,
        min_position,
        span: Span { start_ns, end_ns: clock.now_ns() },
        outcome,
    }
}

/// One read, recorded: `request` without its span and what was seen.
pub async fn read(store: &mut Store, clock: Clock, mut request: Read) -> Read {
    let message = v1::ReadRequest {
        stream: request.stream.to_string(),
        from_revision: request.from_revision,
        backwards: request.backwards,
        max_count: request.max_count,
        consistency: consistency_of(request.consistency),
        min_position: request.min_position,
    };
    let start_ns = clock.now_ns();
    let work = async {
        let mut pages = store.read(timed(message, ATTEMPT_MAX)).await?.into_inner();
        let mut seen = Vec::new();
        while let Some(page) = pages.message().await? {
            seen.extend(page.events.into_iter().map(seen_event));
        }
        Ok::<_, Status>(seen)
    };
    request.seen = match tokio::time::timeout(ATTEMPT_MAX, work).await {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(s)) if reason(&s) == "STREAM_NOT_FOUND" => Some(Vec::new()),
        _ => None,
    };
    request.span = Span { start_ns, end_ns: clock.now_ns() };
    request
}

fn seen_event(e: v1::RecordedEvent) -> SeenEvent {
    SeenEvent {
        revision: e.revision,
        position: e.position,
        id: u128::from_be_bytes(e.id[..].try_into().expect("an id of 16 bytes")),
        data: e.data,
    }
}

/// Reads every stream whole, and looks each up through every node with every consistency; all of it
/// goes into the history too.
///
/// # Panics
/// When a stream cannot be read within a minute, or ListStreams and ListStates do not agree with it.
pub async fn read_final(
    cluster: &LocalCluster,
    clock: Clock,
    names: &[Arc<str>],
    history: &mut History,
) -> FinalLog {
    let stores = cluster.running().map(|n| n.store()).collect();
    read_final_on(stores, clock, names, history).await
}

/// The same through these only.
///
/// # Panics
/// As [`read_final`].
pub async fn read_final_on(
    stores: Vec<Store>,
    clock: Clock,
    names: &[Arc<str>],
    history: &mut History,
) -> FinalLog {
    const READER: u32 = u32::MAX;
    let mut log = FinalLog::default();
    for stream in names {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut turn = 0;
        let events = loop {
            let request = Read {
                client: READER,
                stream: stream.clone(),
                consistency: Consistency::Linearizable,
                min_position: 0,
                from_revision: None,
                backwards: false,
                max_count: 0,
                span: Span { start_ns: 0, end_ns: 0 },
                seen: None,
            };
            let mut store = stores[turn % stores.len()].clone();
            let read = read(&mut store, clock, request).await;
            turn += 1;
            history.reads.push(read.clone());
            if let Some(seen) = read.seen {
                break seen;
            }
            assert!(Instant::now() < deadline, "{stream} cannot be read within a minute");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let last = events.last().map_or(0, |e| e.position);
        for store in &stores {
            for consistency in [Consistency::Linearizable, Consistency::Lease, Consistency::Stale] {
                // Leaders are still spread over the nodes: one may be between two.
                let lookup = loop {
                    let mut store = store.clone();
                    let lookup =
                        lookup(&mut store, clock, READER, stream.clone(), consistency, last).await;
                    let LookupOutcome::Failed(error) = &lookup.outcome else { break lookup };
                    assert!(
                        Instant::now() < deadline,
                        "a lookup of {stream} within a minute after all faults were over: {error}"
                    );
                    history.lookups.push(lookup);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                };
                history.lookups.push(lookup);
            }
        }
        if !events.is_empty() {
            log.streams.insert(stream.clone(), events);
        }
    }
    check_lists(stores, &log).await;
    log
}

/// Ends a test: every stream is read, the history is judged, replicas are compared.
pub async fn judge(cluster: &LocalCluster, clock: Clock, load: &Load, history: History) {
    judge_answers(cluster, clock, load, history).await;
    cluster.assert_no_panic();
}

/// The same, where a panic that ends a node in good order is no fault.
pub async fn judge_answers(
    cluster: &LocalCluster,
    clock: Clock,
    load: &Load,
    mut history: History,
) {
    cluster.wait_ready().await;
    let log = read_final(cluster, clock, &load.names(), &mut history).await;
    checker::assert_holds(&history, &log, &model::reducers());
    cluster.assert_replicas_agree().await;
}

async fn check_lists(stores: Vec<Store>, log: &FinalLog) {
    let heads: Vec<(String, u64)> = log
        .streams
        .iter()
        .map(|(name, events)| (name.to_string(), events.len() as u64 - 1))
        .collect();
    for (i, mut store) in stores.into_iter().enumerate() {
        let mut streams = Vec::new();
        let mut pages = store
            .list_streams(v1::ListStreamsRequest::default())
            .await
            .expect("ListStreams")
            .into_inner();
        while let Some(page) = pages.message().await.expect("ListStreams") {
            streams.extend(page.streams.into_iter().map(|s| (s.stream, s.revision)));
        }
        assert_eq!(streams, heads, "ListStreams through the {i}th");
        let mut states = Vec::new();
        let mut pages = store
            .list_states(v1::ListStatesRequest::default())
            .await
            .expect("ListStates")
            .into_inner();
        while let Some(page) = pages.message().await.expect("ListStates") {
            states.extend(page.states.into_iter().map(|s| (s.stream, s.revision)));
        }
        assert_eq!(states, heads, "ListStates through the {i}th");
    }
}
