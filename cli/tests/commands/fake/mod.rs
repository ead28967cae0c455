//! A cluster of one node and one partition, in memory: what commands say is tested against it.
//! States are the last event's data.
#[allow(dead_code)] // The git example, which uses this file too, moves nothing.
pub mod moves;

use futures::stream::{self, BoxStream, StreamExt};
use ringfold_proto::v1::cluster_server::{Cluster, ClusterServer};
use ringfold_proto::v1::event_store_server::{EventStore, EventStoreServer};
use ringfold_proto::v1::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

#[derive(Clone)]
pub struct Fake {
    pub url: String,
    streams: Arc<Mutex<BTreeMap<String, Vec<RecordedEvent>>>>,
    pub moves: moves::Moves,
}

type Answer<T> = Result<Response<T>, Status>;
type Pages<T> = BoxStream<'static, Result<T, Status>>;

pub fn refused(code: Code, reason: &str, fields: &[(&str, &str)]) -> Status {
    let mut metadata: Vec<(String, String)> =
        (fields.iter()).map(|(k, v)| (k.to_string(), v.to_string())).collect();
    metadata.push(("retry".into(), "no".into()));
    metadata.push(("action".into(), format!("the action of {reason}")));
    let mut details = ErrorDetails::new();
    details.set_error_info(
        reason,
        "ringfold.dev",
        metadata.into_iter().collect::<std::collections::HashMap<_, _>>(),
    );
    Status::with_error_details(code, format!("the message of {reason}"), details)
}

impl Fake {
    /// Serves until the runtime ends.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            streams: Arc::default(),
            moves: moves::Moves::default(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(EventStoreServer::new(fake.clone()))
            .add_service(ClusterServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        fake
    }

    pub fn count(&self) -> usize {
        self.streams.lock().unwrap().values().map(Vec::len).sum()
    }

    fn append_one(&self, request: AppendRequest) -> Result<AppendResponse, Status> {
        use expected_revision::Expected;
        if request.stream.is_empty() {
            let fields = [("field", "stream"), ("limit", "1024")];
            return Err(refused(Code::InvalidArgument, "INVALID_STREAM_NAME", &fields));
        }
        if request.events.iter().any(|e| e.r#type.is_empty()) {
            return Err(refused(Code::InvalidArgument, "INVALID_EVENT", &[("field", "type")]));
        }
        let mut streams = self.streams.lock().unwrap();
        let events = streams.entry(request.stream.clone()).or_default();
        let known: Vec<_> = (request.events.iter())
            .filter_map(|new| events.iter().find(|e| e.id == new.id))
            .collect();
        let answer = |first: u64, last: u64| AppendResponse {
            first_revision: first,
            last_revision: last,
            first_position: first + 100,
            last_position: last + 100,
            partition: 0,
        };
        if let Some(first) = known.first() {
            let equal = known.len() == request.events.len()
                && (known.iter().enumerate()).all(|(i, e)| e.revision == first.revision + i as u64)
                && known.iter().zip(&request.events).all(|(e, new)| e.data == new.data);
            if !equal {
                return Err(refused(Code::AlreadyExists, "EVENT_ID_CONFLICT", &[]));
            }
            return Ok(answer(first.revision, first.revision + known.len() as u64 - 1));
        }
        let actual = events.len().checked_sub(1).map(|r| r as u64);
        let met = match request.expected.and_then(|e| e.expected) {
            None | Some(Expected::Any(_)) => true,
            Some(Expected::NoStream(_)) => actual.is_none(),
            Some(Expected::StreamExists(_)) => actual.is_some(),
            Some(Expected::Exact(revision)) => actual == Some(revision),
        };
        if !met {
            let actual = actual.map_or("none".into(), |r| r.to_string());
            let fields = [("actual", actual.as_str())];
            return Err(refused(Code::FailedPrecondition, "WRONG_EXPECTED_REVISION", &fields));
        }
        let first = events.len() as u64;
        for new in request.events {
            let revision = events.len() as u64;
            events.push(RecordedEvent {
                id: new.id,
                r#type: new.r#type,
                schema_version: new.schema_version,
                content_type: new.content_type,
                data: new.data,
                metadata: new.metadata,
                stream: request.stream.clone(),
                revision,
                position: revision + 100,
                recorded_at_ms: 1_000,
            });
        }
        Ok(answer(first, events.len() as u64 - 1))
    }

    fn states(&self, chosen: impl Fn(&str) -> bool) -> Vec<State> {
        let streams = self.streams.lock().unwrap();
        (streams.iter())
            .filter(|(name, _)| chosen(name))
            .filter_map(|(_, events)| events.last())
            .map(|e| State {
                stream: e.stream.clone(),
                data: e.data.clone(),
                content_type: e.content_type.clone(),
                revision: e.revision,
                position: e.position,
                recorded_at_ms: e.recorded_at_ms,
                generation: 1,
                error: None,
            })
            .collect()
    }
}

fn in_category(name: &str, category: &str) -> bool {
    category.is_empty() || name.split('-').next() == Some(category)
}

#[tonic::async_trait]
impl EventStore for Fake {
    async fn append(&self, request: Request<AppendRequest>) -> Answer<AppendResponse> {
        self.append_one(request.into_inner()).map(Response::new)
    }

    type AppendStreamStream = Pages<AppendStreamResponse>;
    async fn append_stream(
        &self,
        request: Request<Streaming<AppendStreamRequest>>,
    ) -> Answer<Self::AppendStreamStream> {
        let fake = self.clone();
        let failed = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let answers = request.into_inner().map(move |request| {
            let request = request?;
            let append = request.append.unwrap();
            let stream = append.stream.clone();
            let mut failed = failed.lock().unwrap();
            if request.resume {
                failed.remove(&stream);
            }
            let result = if failed.contains(&stream) {
                Err(refused(Code::FailedPrecondition, "EARLIER_APPEND_FAILED", &[]))
            } else {
                fake.append_one(append)
            };
            let result = match result {
                Ok(ok) => append_stream_response::Result::Ok(ok),
                Err(status) => {
                    failed.insert(stream);
                    let info = status.get_details_error_info().unwrap();
                    append_stream_response::Result::Error(Error {
                        code: status.code() as i32,
                        reason: info.reason,
                        message: status.message().into(),
                        metadata: info.metadata.into_iter().collect(),
                    })
                }
            };
            Ok(AppendStreamResponse { sequence: request.sequence, result: Some(result) })
        });
        Ok(Response::new(answers.boxed()))
    }

    type ReadStream = Pages<ReadResponse>;
    async fn read(&self, request: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        let r = request.into_inner();
        let mut events = match self.streams.lock().unwrap().get(&r.stream) {
            Some(events) if !events.is_empty() => events.clone(),
            _ => return Err(refused(Code::NotFound, "STREAM_NOT_FOUND", &[])),
        };
        if r.backwards {
            events.reverse();
        }
        let from = r.from_revision;
        events.retain(|e| match r.backwards {
            true => from.is_none_or(|from| e.revision <= from),
            false => from.is_none_or(|from| e.revision >= from),
        });
        if r.max_count > 0 {
            events.truncate(r.max_count as usize);
        }
        Ok(Response::new(stream::iter([Ok(ReadResponse { events })]).boxed()))
    }

    async fn lookup(&self, request: Request<LookupRequest>) -> Answer<LookupResponse> {
        let stream = request.into_inner().stream;
        match self.states(|name| name == stream).pop() {
            Some(state) => Ok(Response::new(LookupResponse { state: Some(state) })),
            None => Err(refused(Code::NotFound, "STREAM_NOT_FOUND", &[])),
        }
    }

    type ListStreamsStream = Pages<ListStreamsResponse>;
    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Answer<Self::ListStreamsStream> {
        let r = request.into_inner();
        let streams = self.states(|name| {
            in_category(name, &r.category) && name.starts_with(&r.prefix) && *name > *r.after
        });
        let streams = (streams.into_iter())
            .map(|s| StreamInfo {
                stream: s.stream,
                revision: s.revision,
                position: s.position,
                recorded_at_ms: s.recorded_at_ms,
            })
            .collect();
        Ok(Response::new(stream::iter([Ok(ListStreamsResponse { streams })]).boxed()))
    }

    type ListStatesStream = Pages<ListStatesResponse>;
    async fn list_states(
        &self,
        request: Request<ListStatesRequest>,
    ) -> Answer<Self::ListStatesStream> {
        let r = request.into_inner();
        let states = self.states(|name| {
            in_category(name, &r.category) && name.starts_with(&r.prefix) && *name > *r.after
        });
        Ok(Response::new(stream::iter([Ok(ListStatesResponse { states })]).boxed()))
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn bootstrap(&self, request: Request<BootstrapRequest>) -> Answer<BootstrapResponse> {
        Ok(Response::new(BootstrapResponse {
            cluster_id: request.into_inner().cluster_id,
            node_id: 1,
        }))
    }

    async fn topology(&self, _: Request<TopologyRequest>) -> Answer<TopologyResponse> {
        Ok(Response::new(TopologyResponse {
            cluster_id: "c".into(),
            node_id: 1,
            epoch: 1,
            feature_level: 1,
            partitions: 1,
            replication_factor: 1,
            members: self.moves.members(&self.url),
            partition_map: vec![Partition {
                partition: 0,
                leader_node_id: 1,
                term: 1,
                replicas: vec![Replica { replica_id: 1, node_id: 1 }],
                target_node_ids: vec![1],
            }],
            meta_leader_node_id: 1,
            meta_voter_node_ids: vec![1],
        }))
    }

    async fn node_status(&self, _: Request<NodeStatusRequest>) -> Answer<NodeStatusResponse> {
        Ok(Response::new(NodeStatusResponse {
            node_id: 1,
            version: "0".into(),
            ..NodeStatusResponse::default()
        }))
    }

    async fn safe_to_stop(&self, _: Request<SafeToStopRequest>) -> Answer<SafeToStopResponse> {
        Err(Status::unimplemented("fake"))
    }

    async fn transfer_leaders(
        &self,
        _: Request<TransferLeadersRequest>,
    ) -> Answer<TransferLeadersResponse> {
        Err(Status::unimplemented("fake"))
    }

    async fn rebalance_plan(
        &self,
        _: Request<RebalancePlanRequest>,
    ) -> Answer<RebalancePlanResponse> {
        Ok(Response::new(self.moves.next_plan()))
    }

    type RebalanceWatchStream = Pages<RebalancePlanResponse>;
    async fn rebalance_watch(
        &self,
        _: Request<RebalanceWatchRequest>,
    ) -> Answer<Self::RebalanceWatchStream> {
        let (plans, last) = self.moves.all_plans();
        let all = stream::iter(plans).chain(stream::repeat(last));
        Ok(Response::new(all.map(Ok).boxed()))
    }

    async fn rebalance_pause(
        &self,
        _: Request<RebalancePauseRequest>,
    ) -> Answer<RebalancePauseResponse> {
        self.moves.note("pause");
        Ok(Response::new(RebalancePauseResponse {}))
    }

    async fn rebalance_resume(
        &self,
        _: Request<RebalanceResumeRequest>,
    ) -> Answer<RebalanceResumeResponse> {
        self.moves.note("resume");
        Ok(Response::new(RebalanceResumeResponse {}))
    }

    type DrainStream = Pages<DrainProgress>;
    async fn drain(&self, request: Request<DrainRequest>) -> Answer<Self::DrainStream> {
        let answers = self.moves.drain(request.into_inner().node_id);
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Answer<UndrainResponse> {
        self.moves.note(format!("undrain {}", request.into_inner().node_id));
        Ok(Response::new(UndrainResponse {}))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Answer<RemoveMemberResponse> {
        self.moves.remove(request.into_inner().node_id).map(Response::new)
    }

    async fn membership_list(
        &self,
        _: Request<MembershipListRequest>,
    ) -> Answer<MembershipListResponse> {
        Ok(Response::new(MembershipListResponse {
            cluster_id: "c".into(),
            node_id: 1,
            gossips: true,
            members: vec![MembershipEntry {
                member: Some(Member { node_id: 1, ..Member::default() }),
                liveness: Liveness::Live as i32,
                since_unix_ms: 7,
                facts: None,
            }],
            sequence: 1,
        }))
    }

    type MembershipChangesStream = stream::Empty<Result<MembershipChangesResponse, Status>>;
    async fn membership_changes(
        &self,
        _: Request<MembershipChangesRequest>,
    ) -> Answer<Self::MembershipChangesStream> {
        Err(Status::unimplemented("fake"))
    }
}
