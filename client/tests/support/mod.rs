//! A cluster in this process with planned faults: it stores in memory and answers over real
//! connections. Each node has a runtime of its own, so that ending one cuts its connections.
use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
};

use futures::Stream;
use parking_lot::Mutex;
use ringfold_client::{Client, ClientConfig, Code, RetryConfig, partition_of};
use ringfold_proto::v1::{
    self,
    cluster_server::{Cluster, ClusterServer},
    event_store_server::{EventStore, EventStoreServer},
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

pub const PARTITIONS: u32 = 4;

/// What happens to the next append.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Refused before it had an effect.
    Overloaded,
    /// Stored, but the answer says that nobody knows.
    UnknownStored,
    /// Not stored, and the answer says that nobody knows.
    UnknownLost,
    /// Not stored, and no answer.
    Hang,
    /// Refused for good.
    DiskFull,
}

#[derive(Default)]
pub struct Stored {
    pub faults: VecDeque<Fault>,
    /// Node that leads each partition in truth, and as the topology says it.
    pub leaders: Vec<usize>,
    pub claimed_leaders: Vec<usize>,
    pub urls: Vec<String>,
    /// Whether a node that does not lead forwards, or says who leads.
    pub forwards: bool,
    pub streams: HashMap<String, Vec<v1::RecordedEvent>>,
    /// Ids of each append as it came in, and the node that it came to.
    pub seen: Vec<(usize, Vec<Vec<u8>>)>,
    /// A read breaks after so many pages, once.
    pub read_breaks_after: Option<usize>,
    /// Answers to each drain and each watch in turn; a reason ends the answers with an error.
    pub drains: VecDeque<Vec<Planned<v1::DrainProgress>>>,
    pub watches: VecDeque<Vec<Planned<v1::RebalancePlanResponse>>>,
    /// Members that were removed; the answer to the first such call is lost.
    /// Node, and the epoch that the call named.
    pub removed: Vec<(u64, u64)>,
}

pub type Planned<T> = Result<T, &'static str>;

fn planned<T: Send + 'static>(
    answers: Option<Vec<Planned<T>>>,
) -> Result<Response<Answers<T>>, Status> {
    let no_leader = |reason: &'static str| {
        let (code, retry) = match reason {
            "NO_LEADER" => (Code::Unavailable, "yes"),
            _ => (Code::FailedPrecondition, "no"),
        };
        status_of(error_of(code, reason, &[("retry", retry)]))
    };
    let answers = answers.unwrap_or_else(|| vec![Err("NO_LEADER")]);
    let answers = answers.into_iter().map(move |a| a.map_err(no_leader));
    Ok(Response::new(Box::pin(futures::stream::iter(answers))))
}

type Shared = Arc<Mutex<Stored>>;

fn error_of(code: Code, reason: &str, fields: &[(&str, &str)]) -> v1::Error {
    v1::Error {
        code: code as i32,
        reason: reason.into(),
        message: "planned".into(),
        metadata: fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

fn status_of(e: v1::Error) -> Status {
    let details = ErrorDetails::with_error_info(
        e.reason,
        "ringfold.dev",
        e.metadata.into_iter().collect::<HashMap<_, _>>(),
    );
    Status::with_error_details(Code::from_i32(e.code), e.message, details)
}

impl Stored {
    /// `None`: no answer, ever.
    fn append(
        &mut self,
        node: usize,
        r: v1::AppendRequest,
    ) -> Option<Result<v1::AppendResponse, v1::Error>> {
        let ids: Vec<Vec<u8>> = r.events.iter().map(|e| e.id.to_vec()).collect();
        self.seen.push((node, ids.clone()));
        let partition = partition_of(&r.stream, PARTITIONS);
        let leader = self.leaders[partition as usize];
        if leader != node && !self.forwards {
            let fields = [("retry", "yes"), ("leader_url", self.urls[leader].as_str())];
            return Some(Err(error_of(Code::Unavailable, "NOT_LEADER", &fields)));
        }
        let fault = self.faults.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Hang => return None,
            Fault::Overloaded => {
                let fields = [("retry", "yes")];
                return Some(Err(error_of(Code::ResourceExhausted, "OVERLOADED", &fields)));
            }
            Fault::DiskFull => {
                let fields = [("retry", "no"), ("free_bytes", "1")];
                return Some(Err(error_of(Code::ResourceExhausted, "DISK_FULL", &fields)));
            }
            Fault::UnknownLost => return Some(Err(unknown())),
            Fault::None | Fault::UnknownStored => {}
        }
        let stream = self.streams.entry(r.stream.clone()).or_default();
        let known = stream.iter().position(|e| e.id[..] == ids[0][..]);
        let first = match known {
            Some(at) => at as u64,
            None => {
                let first = stream.len() as u64;
                for (event, revision) in r.events.into_iter().zip(first..) {
                    stream.push(v1::RecordedEvent {
                        id: event.id,
                        r#type: event.r#type,
                        data: event.data,
                        stream: r.stream.clone(),
                        revision,
                        position: revision + 1,
                        ..Default::default()
                    });
                }
                first
            }
        };
        if fault == Fault::UnknownStored {
            return Some(Err(unknown()));
        }
        let last = first + ids.len() as u64 - 1;
        Some(Ok(v1::AppendResponse {
            first_revision: first,
            last_revision: last,
            first_position: first + 1,
            last_position: last + 1,
            partition,
        }))
    }

    fn forwarded_to(&self, node: usize, stream: &str) -> Option<String> {
        let leader = self.leaders[partition_of(stream, PARTITIONS) as usize];
        (leader != node).then(|| self.urls[leader].clone())
    }
}

fn unknown() -> v1::Error {
    error_of(Code::Unavailable, "OUTCOME_UNKNOWN", &[("retry", "same_ids")])
}

struct Service {
    node: usize,
    shared: Shared,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn name_leader(metadata: &mut MetadataMap, url: Option<String>) {
    if let Some(url) = url {
        metadata.insert("ringfold-leader-url", url.parse().unwrap());
    }
}

#[tonic::async_trait]
impl EventStore for Service {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let r = request.into_inner();
        let forwarded = self.shared.lock().forwarded_to(self.node, &r.stream);
        let answer = self.shared.lock().append(self.node, r);
        match answer {
            None => std::future::pending().await,
            Some(Err(e)) => Err(status_of(e)),
            Some(Ok(ok)) => {
                let mut response = Response::new(ok);
                name_leader(response.metadata_mut(), forwarded);
                Ok(response)
            }
        }
    }

    type AppendStreamStream = Answers<v1::AppendStreamResponse>;
    async fn append_stream(
        &self,
        request: Request<Streaming<v1::AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        use v1::append_stream_response::Result as Answer;
        let state =
            (request.into_inner(), HashSet::<String>::new(), self.shared.clone(), self.node);
        let answers =
            futures::stream::unfold(state, |(mut requests, mut failed, shared, node)| async move {
                loop {
                    let r = match requests.message().await {
                        Ok(Some(r)) => r,
                        Ok(None) | Err(_) => return None,
                    };
                    let append = r.append.unwrap();
                    let stream = append.stream.clone();
                    if r.resume {
                        failed.remove(&stream);
                    }
                    let result = if failed.contains(&stream) {
                        let fields = [("retry", "no")];
                        let reason = "EARLIER_APPEND_FAILED";
                        Some(Err(error_of(Code::FailedPrecondition, reason, &fields)))
                    } else {
                        shared.lock().append(node, append)
                    };
                    let result = match result {
                        None => {
                            failed.insert(stream);
                            continue;
                        }
                        Some(Ok(ok)) => Answer::Ok(ok),
                        Some(Err(e)) => {
                            failed.insert(stream);
                            Answer::Error(e)
                        }
                    };
                    let answer =
                        v1::AppendStreamResponse { sequence: r.sequence, result: Some(result) };
                    return Some((Ok(answer), (requests, failed, shared, node)));
                }
            });
        Ok(Response::new(Box::pin(answers)))
    }

    type ReadStream = Answers<v1::ReadResponse>;
    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let r = request.into_inner();
        let mut shared = self.shared.lock();
        let Some(stream) = shared.streams.get(&r.stream) else {
            let fields = [("retry", "no")];
            return Err(status_of(error_of(Code::NotFound, "STREAM_NOT_FOUND", &fields)));
        };
        let mut events: Vec<_> = stream.clone();
        if r.backwards {
            events.reverse();
            events.retain(|e| r.from_revision.is_none_or(|from| e.revision <= from));
        } else {
            events.retain(|e| r.from_revision.is_none_or(|from| e.revision >= from));
        }
        if r.max_count > 0 {
            events.truncate(r.max_count as usize);
        }
        let mut pages: Vec<Result<v1::ReadResponse, Status>> =
            events.chunks(10).map(|c| Ok(v1::ReadResponse { events: c.to_vec() })).collect();
        if let Some(n) = shared.read_breaks_after.take() {
            pages.truncate(n);
            pages.push(Err(Status::unknown("connection reset")));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let r = request.into_inner();
        let shared = self.shared.lock();
        let Some(last) = shared.streams.get(&r.stream).and_then(|s| s.last()) else {
            let fields = [("retry", "no")];
            return Err(status_of(error_of(Code::NotFound, "STREAM_NOT_FOUND", &fields)));
        };
        let state = v1::State {
            stream: r.stream,
            data: last.data.clone(),
            revision: last.revision,
            position: last.position,
            ..Default::default()
        };
        Ok(Response::new(v1::LookupResponse { state: Some(state) }))
    }

    type ListStreamsStream = Answers<v1::ListStreamsResponse>;
    async fn list_streams(
        &self,
        request: Request<v1::ListStreamsRequest>,
    ) -> Result<Response<Self::ListStreamsStream>, Status> {
        let r = request.into_inner();
        let mut shared = self.shared.lock();
        let mut names: Vec<String> =
            shared.streams.keys().filter(|n| **n > r.after).cloned().collect();
        names.sort();
        if r.max_count > 0 {
            names.truncate(r.max_count as usize);
        }
        let mut pages: Vec<Result<v1::ListStreamsResponse, Status>> = names
            .chunks(3)
            .map(|c| {
                let info = |n: &String| v1::StreamInfo { stream: n.clone(), ..Default::default() };
                Ok(v1::ListStreamsResponse { streams: c.iter().map(info).collect() })
            })
            .collect();
        if let Some(n) = shared.read_breaks_after.take() {
            pages.truncate(n);
            pages.push(Err(Status::unavailable("connection reset")));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    type ListStatesStream = Answers<v1::ListStatesResponse>;
    async fn list_states(
        &self,
        _: Request<v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn bootstrap(
        &self,
        _: Request<v1::BootstrapRequest>,
    ) -> Result<Response<v1::BootstrapResponse>, Status> {
        let fields = [("retry", "no")];
        let e = error_of(Code::FailedPrecondition, "ALREADY_BOOTSTRAPPED", &fields);
        Err(status_of(e))
    }

    async fn topology(
        &self,
        _: Request<v1::TopologyRequest>,
    ) -> Result<Response<v1::TopologyResponse>, Status> {
        let shared = self.shared.lock();
        let members = shared.urls.iter().zip(1..).map(|(url, node_id)| v1::Member {
            node_id,
            client_url: url.clone(),
            ..Default::default()
        });
        let partitions = (0..PARTITIONS).map(|partition| v1::Partition {
            partition,
            leader_node_id: shared.claimed_leaders[partition as usize] as u64 + 1,
            term: 1,
            ..Default::default()
        });
        Ok(Response::new(v1::TopologyResponse {
            cluster_id: "fake".into(),
            node_id: self.node as u64 + 1,
            epoch: 1,
            partitions: PARTITIONS,
            members: members.collect(),
            partition_map: partitions.collect(),
            ..Default::default()
        }))
    }

    async fn node_status(
        &self,
        _: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusResponse>, Status> {
        Ok(Response::new(v1::NodeStatusResponse {
            node_id: self.node as u64 + 1,
            ..Default::default()
        }))
    }

    async fn safe_to_stop(
        &self,
        _: Request<v1::SafeToStopRequest>,
    ) -> Result<Response<v1::SafeToStopResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn transfer_leaders(
        &self,
        _: Request<v1::TransferLeadersRequest>,
    ) -> Result<Response<v1::TransferLeadersResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn rebalance_plan(
        &self,
        _: Request<v1::RebalancePlanRequest>,
    ) -> Result<Response<v1::RebalancePlanResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    type RebalanceWatchStream = Answers<v1::RebalancePlanResponse>;
    async fn rebalance_watch(
        &self,
        _: Request<v1::RebalanceWatchRequest>,
    ) -> Result<Response<Self::RebalanceWatchStream>, Status> {
        planned(self.shared.lock().watches.pop_front())
    }

    async fn rebalance_pause(
        &self,
        _: Request<v1::RebalancePauseRequest>,
    ) -> Result<Response<v1::RebalancePauseResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn rebalance_resume(
        &self,
        _: Request<v1::RebalanceResumeRequest>,
    ) -> Result<Response<v1::RebalanceResumeResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    type DrainStream = Answers<v1::DrainProgress>;
    async fn drain(
        &self,
        _: Request<v1::DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        planned(self.shared.lock().drains.pop_front())
    }

    async fn undrain(
        &self,
        _: Request<v1::UndrainRequest>,
    ) -> Result<Response<v1::UndrainResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        let mut shared = self.shared.lock();
        let v1::RemoveMemberRequest { node_id, if_epoch } = request.into_inner();
        shared.removed.push((node_id, if_epoch));
        match shared.removed.len() {
            1 => Err(Status::unknown("connection reset")),
            _ => Ok(Response::new(Default::default())),
        }
    }

    async fn membership_list(
        &self,
        _: Request<v1::MembershipListRequest>,
    ) -> Result<Response<v1::MembershipListResponse>, Status> {
        Err(Status::unimplemented("fake"))
    }

    type MembershipChangesStream =
        futures::stream::Empty<Result<v1::MembershipChangesResponse, Status>>;
    async fn membership_changes(
        &self,
        _: Request<v1::MembershipChangesRequest>,
    ) -> Result<Response<Self::MembershipChangesStream>, Status> {
        Err(Status::unimplemented("fake"))
    }
}

pub struct FakeCluster {
    pub shared: Shared,
    nodes: Vec<Option<tokio::runtime::Runtime>>,
}

impl FakeCluster {
    /// All partitions are led by node 0.
    pub fn start(nodes: usize) -> FakeCluster {
        let shared: Shared = Arc::default();
        let mut runtimes = Vec::new();
        for node in 0..nodes {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            shared.lock().urls.push(url);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let service = || Service { node, shared: shared.clone() };
            let (events, cluster) = (service(), service());
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                tonic::transport::Server::builder()
                    .add_service(EventStoreServer::new(events))
                    .add_service(ClusterServer::new(cluster))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
            runtimes.push(Some(runtime));
        }
        {
            let mut s = shared.lock();
            s.leaders = vec![0; PARTITIONS as usize];
            s.claimed_leaders = vec![0; PARTITIONS as usize];
        }
        FakeCluster { shared, nodes: runtimes }
    }

    pub fn url(&self, node: usize) -> String {
        self.shared.lock().urls[node].clone()
    }

    /// Cuts all connections of a node and lets nobody in.
    pub fn kill(&mut self, node: usize) {
        if let Some(runtime) = self.nodes[node].take() {
            runtime.shutdown_background();
        }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig {
            retry: RetryConfig {
                try_timeout: std::time::Duration::from_millis(500),
                backoff_min: std::time::Duration::from_millis(5),
                backoff_max: std::time::Duration::from_millis(50),
            },
            ..ClientConfig::new([self.url(0)])
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().faults.extend(faults);
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
    }
}
