//! The load and the checker together, against a store in memory that answers as nodes do: they accept
//! it while it is right, and find each fault that it is told to have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringfold_proto::v1::event_store_server::{EventStore, EventStoreServer};
use ringfold_proto::v1::expected_revision::Expected as E;
use ringfold_proto::v1::{
    AppendRequest, AppendResponse, AppendStreamRequest, AppendStreamResponse, Consistency, Error,
    ListStatesRequest, ListStatesResponse, ListStreamsRequest, ListStreamsResponse, LookupRequest,
    LookupResponse, ReadRequest, ReadResponse, RecordedEvent, State, StreamInfo,
    append_stream_response,
};
use ringfold_tests::checker::{Kind, check};
use ringfold_tests::cluster::{channel, reason, store_client};
use ringfold_tests::fold::Fold;
use ringfold_tests::history::Clock;
use ringfold_tests::load::{Load, read_final_on, start_on};
use ringfold_tests::model::reducers;
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

const LOAD: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// One of forty acknowledged appends is never stored.
    Forget,
    /// Event ids are not looked at: a retry is stored again.
    ForgetIds,
    /// The expected revision is looked at before the ids.
    RevisionBeforeIds,
    /// The expected revision is not looked at.
    IgnoreExpected,
    /// A third of the lease lookups is answered from an older log.
    OldLease,
    /// A third of all reads is answered from an older log.
    OldReads,
    /// Lookups that name a position do not wait for it.
    IgnoreMinPosition,
    /// One of forty states lacks its last event.
    WrongState,
    /// An append that is refused is stored now and then.
    StoreRefused,
    /// Pipelined appends go on after one of their stream failed.
    PipelineGoesOn,
}

#[derive(Default)]
struct Log {
    events: Vec<RecordedEvent>,
    ids: HashMap<Vec<u8>, u64>,
    /// The length a while ago.
    old_length: usize,
}

struct Memory {
    fault: Fault,
    rng: StdRng,
    clock: u64,
    streams: BTreeMap<String, Log>,
}

impl Memory {
    fn append(&mut self, request: &AppendRequest) -> Result<AppendResponse, Status> {
        // A node that stops, before or after the append took effect.
        if self.rng.random_bool(0.02) {
            return Err(Status::unavailable("lost on the way"));
        }
        let answer = self.apply(request);
        if self.rng.random_bool(0.03) {
            return Err(Status::unavailable("the answer is lost"));
        }
        answer
    }

    fn apply(&mut self, request: &AppendRequest) -> Result<AppendResponse, Status> {
        let fault = self.fault;
        let unlucky = self.rng.random_bool(1.0 / 40.0);
        let unluckier = self.rng.random_bool(0.3);
        let log = self.streams.entry(request.stream.clone()).or_default();
        let answer = |events: &[RecordedEvent]| AppendResponse {
            first_revision: events[0].revision,
            last_revision: events[events.len() - 1].revision,
            first_position: events[0].position,
            last_position: events[events.len() - 1].position,
            partition: 0,
        };
        let known = log.ids.get(&request.events[0].id.to_vec()).copied();
        let known = known.filter(|_| fault != Fault::ForgetIds);
        let stored = known.map(|r| {
            let first = r as usize;
            answer(&log.events[first..first + request.events.len()])
        });
        let length = log.events.len() as u64;
        let met = match request.expected.and_then(|e| e.expected) {
            None | Some(E::Any(_)) => true,
            Some(E::NoStream(_)) => length == 0,
            Some(E::StreamExists(_)) => length > 0,
            Some(E::Exact(n)) => length == n + 1,
        };
        let refusal = (!met).then(|| {
            let actual = length.checked_sub(1).map_or("none".into(), |r| r.to_string());
            refused("WRONG_EXPECTED_REVISION", &actual)
        });
        match (stored, refusal) {
            (Some(_), Some(refusal)) if fault == Fault::RevisionBeforeIds => return Err(refusal),
            (Some(stored), _) => return Ok(stored),
            (None, Some(refusal)) => match fault {
                Fault::IgnoreExpected => {}
                Fault::StoreRefused if unluckier => {
                    self.push(request);
                    return Err(refusal);
                }
                _ => return Err(refusal),
            },
            (None, None) => {}
        }
        let first = length as usize;
        self.push(request);
        let log = self.streams.get_mut(&request.stream).expect("just used");
        let answer = answer(&log.events[first..]);
        if fault == Fault::Forget && unlucky {
            log.events.truncate(first);
            log.ids.retain(|_, r| *r < length);
        }
        Ok(answer)
    }

    fn push(&mut self, request: &AppendRequest) {
        // After the caller's position, as the request may ask.
        self.clock = self.clock.max(request.after_position >> 10) + 1;
        let log = self.streams.get_mut(&request.stream).expect("just used");
        for e in &request.events {
            let revision = log.events.len() as u64;
            log.ids.entry(e.id.to_vec()).or_insert(revision);
            log.events.push(RecordedEvent {
                id: e.id.clone(),
                r#type: e.r#type.clone(),
                data: e.data.clone(),
                stream: request.stream.clone(),
                revision,
                position: self.clock << 10,
                ..RecordedEvent::default()
            });
            self.clock += 1;
        }
    }

    /// How many events a read may see, and by its fault sees.
    fn visible(&mut self, stream: &str, consistency: i32, min_position: u64) -> usize {
        let third = self.rng.random_bool(0.33);
        let Some(log) = self.streams.get_mut(stream) else {
            return 0;
        };
        let (length, old) = (log.events.len(), log.old_length.min(log.events.len()));
        if third {
            log.old_length = length;
        }
        let waited = log.events.partition_point(|e| e.position <= min_position);
        let stale = consistency == Consistency::Stale as i32;
        let lease = consistency == Consistency::Lease as i32;
        match self.fault {
            Fault::OldLease if lease && third => old,
            Fault::OldReads if third => old,
            Fault::IgnoreMinPosition if stale => old,
            _ if stale => old.max(waited),
            _ => length,
        }
    }

    fn state(&mut self, stream: &str, length: usize) -> Option<State> {
        let wrong = self.fault == Fault::WrongState && self.rng.random_bool(1.0 / 40.0);
        let events = &self.streams.get(stream)?.events[..length];
        let last = events.last()?;
        let mut fold = Fold::new(reducers().of(stream));
        let folded = if wrong { length - 1 } else { length };
        events[..folded].iter().for_each(|e| fold.push(&e.data));
        Some(State {
            stream: stream.into(),
            data: fold.to_bytes(),
            revision: last.revision,
            position: last.position,
            ..State::default()
        })
    }
}

fn refused(name: &str, actual: &str) -> Status {
    let metadata: HashMap<String, String> = [("actual".to_string(), actual.to_string())].into();
    let details = ErrorDetails::with_error_info(name, "ringfold.dev", metadata);
    Status::with_error_details(Code::FailedPrecondition, name, details)
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Memory>>);

type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn page<T: Send + 'static>(page: T) -> Response<Pages<T>> {
    Response::new(Box::pin(tokio_stream::iter([Ok(page)])))
}

#[tonic::async_trait]
impl EventStore for Fake {
    type AppendStreamStream = Pages<AppendStreamResponse>;
    type ReadStream = Pages<ReadResponse>;
    type ListStreamsStream = Pages<ListStreamsResponse>;
    type ListStatesStream = Pages<ListStatesResponse>;

    async fn append(&self, r: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let answer = self.0.lock().unwrap().append(r.get_ref())?;
        Ok(Response::new(answer))
    }

    async fn append_stream(
        &self,
        r: Request<Streaming<AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let memory = self.0.clone();
        let mut failed = HashSet::new();
        let answers = r.into_inner().map(move |request| {
            let request = request?;
            let append = request.append.unwrap_or_default();
            if request.resume {
                failed.remove(&append.stream);
            }
            let mut memory = memory.lock().unwrap();
            let answer = if failed.contains(&append.stream) {
                Err(refused("EARLIER_APPEND_FAILED", ""))
            } else {
                memory.append(&append)
            };
            if answer.is_err() && memory.fault != Fault::PipelineGoesOn {
                failed.insert(append.stream);
            }
            let result = match answer {
                Ok(ok) => append_stream_response::Result::Ok(ok),
                Err(s) => append_stream_response::Result::Error(Error {
                    code: s.code() as i32,
                    reason: reason(&s),
                    message: s.message().into(),
                    metadata: BTreeMap::new(),
                }),
            };
            Ok(AppendStreamResponse { sequence: request.sequence, result: Some(result) })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read(&self, r: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let r = r.into_inner();
        let mut memory = self.0.lock().unwrap();
        let length = memory.visible(&r.stream, r.consistency, r.min_position);
        let Some(log) = memory.streams.get(&r.stream) else {
            return Ok(page(ReadResponse::default()));
        };
        let mut events: Vec<RecordedEvent> = log.events[..length].to_vec();
        if let Some(from) = r.from_revision {
            events.retain(|e| {
                (e.revision <= from && r.backwards) || (e.revision >= from && !r.backwards)
            });
        }
        if r.backwards {
            events.reverse();
        }
        if r.max_count > 0 {
            events.truncate(r.max_count as usize);
        }
        Ok(page(ReadResponse { events }))
    }

    async fn lookup(&self, r: Request<LookupRequest>) -> Result<Response<LookupResponse>, Status> {
        let r = r.into_inner();
        let mut memory = self.0.lock().unwrap();
        let length = memory.visible(&r.stream, r.consistency, r.min_position);
        match memory.state(&r.stream, length) {
            Some(state) => Ok(Response::new(LookupResponse { state: Some(state) })),
            None => {
                let details = ErrorDetails::with_error_info(
                    "STREAM_NOT_FOUND",
                    "ringfold.dev",
                    HashMap::new(),
                );
                Err(Status::with_error_details(Code::NotFound, "none", details))
            }
        }
    }

    async fn list_streams(
        &self,
        _: Request<ListStreamsRequest>,
    ) -> Result<Response<Self::ListStreamsStream>, Status> {
        let memory = self.0.lock().unwrap();
        let streams = memory
            .streams
            .iter()
            .filter_map(|(name, log)| {
                Some(StreamInfo {
                    stream: name.clone(),
                    revision: log.events.last()?.revision,
                    ..StreamInfo::default()
                })
            })
            .collect();
        Ok(page(ListStreamsResponse { streams }))
    }

    async fn list_states(
        &self,
        _: Request<ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        let mut memory = self.0.lock().unwrap();
        let lengths: Vec<(String, usize)> =
            memory.streams.iter().map(|(name, log)| (name.clone(), log.events.len())).collect();
        let states =
            lengths.iter().filter_map(|(name, length)| memory.state(name, *length)).collect();
        Ok(page(ListStatesResponse { states }))
    }
}

/// Runs a load against the store with this fault; what the checker found.
async fn found(fault: Fault) -> Vec<Kind> {
    let memory =
        Memory { fault, rng: StdRng::seed_from_u64(3), clock: 1, streams: BTreeMap::new() };
    let fake = Fake(Arc::new(Mutex::new(memory)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tonic::transport::Server::builder()
        .add_service(EventStoreServer::new(fake.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let stores = vec![store_client(channel(port)), store_client(channel(port))];
    let clock = Clock::new();
    let load = Load { streams: 4, pause: Duration::from_millis(4), ..Load::default() };
    let running = start_on(stores.clone(), clock, &load);
    tokio::time::sleep(LOAD).await;
    let mut history = running.stop().await;
    assert!(history.acknowledged() > 200, "{}", history.summary());
    // The log is read when all faults are over.
    fake.0.lock().unwrap().fault = Fault::None;
    let log = read_final_on(stores, clock, &load.names(), &mut history).await;
    server.abort();
    let violations = check(&history, &log, &reducers());
    let mut kinds: Vec<Kind> = violations.iter().map(|v| v.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if fault == Fault::None {
        assert!(kinds.is_empty(), "{violations:#?}");
    }
    kinds
}

async fn finds(fault: Fault, any_of: &[Kind]) {
    let kinds = found(fault).await;
    assert!(kinds.iter().any(|k| any_of.contains(k)), "{fault:?}: found {kinds:?}");
}

#[tokio::test]
async fn a_store_without_a_fault_is_accepted() {
    assert_eq!(found(Fault::None).await, []);
}

#[tokio::test]
async fn a_store_that_forgets_is_found() {
    finds(Fault::Forget, &[Kind::Lost]).await;
}

#[tokio::test]
async fn a_store_that_stores_a_retry_again_is_found() {
    finds(Fault::ForgetIds, &[Kind::Doubled]).await;
}

#[tokio::test]
async fn a_store_that_refuses_a_retry_is_found() {
    finds(Fault::RevisionBeforeIds, &[Kind::RetryRefused]).await;
}

#[tokio::test]
async fn a_store_that_ignores_expected_revisions_is_found() {
    finds(Fault::IgnoreExpected, &[Kind::ExpectedNotMet]).await;
}

#[tokio::test]
async fn a_store_with_old_lease_lookups_is_found() {
    finds(Fault::OldLease, &[Kind::Stale]).await;
}

#[tokio::test]
async fn a_store_with_old_reads_is_found() {
    finds(Fault::OldReads, &[Kind::Stale]).await;
}

#[tokio::test]
async fn a_store_that_does_not_wait_for_a_position_is_found() {
    finds(Fault::IgnoreMinPosition, &[Kind::BelowMinPosition]).await;
}

#[tokio::test]
async fn a_store_with_wrong_states_is_found() {
    finds(Fault::WrongState, &[Kind::WrongState]).await;
}

#[tokio::test]
async fn a_store_that_stores_what_it_refuses_is_found() {
    finds(Fault::StoreRefused, &[Kind::RefusedYetStored]).await;
}

#[tokio::test]
async fn a_store_whose_pipelines_skip_a_failed_append_is_found() {
    finds(Fault::PipelineGoesOn, &[Kind::PipelineOrder]).await;
}
