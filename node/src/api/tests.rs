//! The services over real connections, two nodes, with the product's apply below and a driver that
//! commits at once: node 1 leads the even partitions, node 2 the odd ones.
use super::errors::{ApiError, DOMAIN};
use super::events::Events;
use super::node::{Disk, Membership, Node, NodeHooks, NodeInfo};
use super::read_pool::ReadPool;
use super::validate::{Limits, partition_of};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::partition::apply::{Genesis, PartitionMachine};
use crate::partition::store::MemoryDisk;
use crate::partition::{position, store::SharedStore};
use crate::raft::apply::StateMachine;
use crate::raft::handle::{
    Applied, ProposeError, RaftHandle, ReadError, ReplicaView, Request, Role, Status as RaftStatus,
    TransferOutcome,
};
use crate::readiness::Readiness;
use crate::router::{LEADER_NODE_ID, LEADER_URL, Router};
use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use ringfold_proto::internal::{Entry, MetaMember, MetaPartition, MetaReplica, MetaState};
use ringfold_proto::v1;
use ringfold_proto::v1::append_stream_response::Result as Answer;
use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_proto::v1::event_store_server::EventStore;
use ringfold_proto::v1::expected_revision::Expected;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request as Call, Status};
use tonic_types::StatusExt;

const PARTITIONS: u32 = 4;

/// A partition that both nodes see.
struct Partition {
    machine: Mutex<PartitionMachine>,
    /// By node.
    views: [Arc<ReplicaView>; 2],
}

fn leader(partition: u32) -> usize {
    (partition % 2) as usize
}

impl Partition {
    fn new(partition: u32, disk: &MemoryDisk) -> Partition {
        let store: SharedStore = disk.open(Path::new(&format!("/{partition}")), true).unwrap();
        let genesis = Genesis::new(partition, v1::Reducer::MergePatch as u32, []);
        let machine = PartitionMachine::with_store(store, &genesis, true).unwrap();
        let view = |node: usize| {
            let leads = leader(partition) == node;
            Arc::new(ReplicaView {
                group: GroupId::of_partition(partition),
                replica: ReplicaId(u64::from(partition) * 2 + node as u64 + 1),
                reader: machine.reader(),
                applied: watch::Sender::new(Applied::default()),
                entry_in_flight: false.into(),
                read_in_flight: false.into(),
                unflushed_bytes: AtomicU64::new(0),
                lease_until_ns: AtomicU64::new(0),
                directory: 1.into(),
                status: RwLock::new(RaftStatus {
                    role: if leads { Role::Leader } else { Role::Follower },
                    leader: Some(NodeId(leader(partition) as u64 + 1)),
                    term: 1,
                    ..Default::default()
                }),
            })
        };
        Partition { views: [view(0), view(1)], machine: Mutex::new(machine) }
    }

    fn propose(&self, commands: Vec<Bytes>) -> Vec<crate::partition::apply::CommandOutcome> {
        let entry = Entry {
            stamp: position::stamp(crate::clock::wall_ms()),
            max_state_bytes: 1 << 20,
            snapshot_every: 100,
            commands: vec![],
        };
        let mut data = BytesMut::from(&[1u8][..]);
        entry.encode(&mut data).unwrap();
        for command in commands {
            encode_key(15, WireType::LengthDelimited, &mut data);
            encode_varint(command.len() as u64, &mut data);
            data.put(command);
        }
        let mut machine = self.machine.lock();
        let (index, ..) = machine.applied();
        let outcomes = machine.apply(index + 1, 1, data.freeze()).unwrap();
        let (index, _, position) = machine.applied();
        for view in &self.views {
            view.applied.send_replace(Applied { index, position });
            view.status.write().last_index = index;
        }
        outcomes
    }
}

#[derive(Default)]
struct Hooks;

impl NodeHooks for Hooks {
    fn bootstrap(
        &self,
        request: v1::BootstrapRequest,
    ) -> BoxFuture<'static, Result<v1::BootstrapResponse, ApiError>> {
        async move {
            match request.cluster_id.as_str() {
                CLUSTER => Ok(v1::BootstrapResponse { cluster_id: request.cluster_id, node_id: 1 }),
                _ => Err(ApiError::AlreadyBootstrapped { cluster_id: CLUSTER.into() }),
            }
        }
        .boxed()
    }
    fn reachable(&self, _: NodeId) -> bool {
        true
    }
    fn meta_voters(&self) -> Vec<NodeId> {
        vec![]
    }
    fn counters(&self) -> BTreeMap<String, u64> {
        BTreeMap::from([("dropped_frames".into(), 3)])
    }
}

const CLUSTER: &str = "6f9619ff-8b86-d011-b42d-00cf4fc964ff";

struct TestNode {
    node: Arc<Node>,
    url: String,
    /// Rounds of read index so far.
    rounds: Arc<AtomicU64>,
    /// Everything is refused as by a node that just lost its leaderships.
    deposed: Arc<AtomicBool>,
    shutdown: CancellationToken,
    served: Option<tokio::task::JoinHandle<Result<(), super::ServeError>>>,
}

struct TestCluster {
    nodes: Vec<TestNode>,
    partitions: Vec<Arc<Partition>>,
    meta: watch::Sender<Arc<MetaState>>,
}

fn raft(
    me: usize,
    partitions: &[Arc<Partition>],
    rounds: Arc<AtomicU64>,
    deposed: Arc<AtomicBool>,
) -> RaftHandle {
    let views: HashMap<_, _> =
        partitions.iter().map(|p| (p.views[me].group, p.views[me].clone())).collect();
    let partitions = partitions.to_vec();
    let sender = move |request: Request, _: Option<&ReplicaView>| {
        let leads = |group: GroupId| {
            let p = group.partition().unwrap();
            (leader(p) == me && !deposed.load(Ordering::Relaxed)).then(|| &partitions[p as usize])
        };
        match request {
            Request::Propose { group, commands, reply, .. } => {
                let result = match leads(group) {
                    Some(p) => Ok(p.propose(commands)),
                    None => Err(ProposeError::NotLeader { leader: None }),
                };
                // Answers come later, as from a real one.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let _ = reply.send(result);
                });
            }
            Request::ReadIndex { group, reply } => {
                rounds.fetch_add(1, Ordering::Relaxed);
                let answer = leads(group).map(|_| ());
                let _ = reply.send(answer.ok_or(ReadError::NotLeader { leader: None }));
            }
            Request::TransferAll { reply } => {
                let _ = reply.send(TransferOutcome { transferred: 2, remaining: 0 });
            }
            Request::Transfer { .. } => {}
        }
        Ok(())
    };
    RaftHandle { replicas: Arc::new(RwLock::new(views)), sender: Arc::new(sender) }
}

/// Two nodes that serve on loopback.
async fn cluster() -> TestCluster {
    cluster_of(true).await
}

/// `members`: whether the nodes belong to a cluster already.
async fn cluster_of(members: bool) -> TestCluster {
    let disk = MemoryDisk::default();
    let partitions: Vec<_> = (0..PARTITIONS).map(|p| Arc::new(Partition::new(p, &disk))).collect();
    let (meta, _) = watch::channel(Arc::new(MetaState::default()));
    let mut nodes = Vec::new();
    for i in 0..2 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (rounds, deposed) = (Arc::default(), Arc::default());
        let membership = OnceLock::new();
        let me = Membership { node: NodeId(i as u64 + 1), cluster_id: CLUSTER.into() };
        if members {
            membership.set(me).unwrap();
        }
        let node = Arc::new(Node {
            raft: raft(i, &partitions, Arc::clone(&rounds), Arc::clone(&deposed)),
            meta: meta.subscribe(),
            info: Arc::new(NodeInfo {
                name: format!("node-{i}"),
                version: "test",
                started: Instant::now(),
                membership,
                disk: Disk::default(),
                lost: OnceLock::new(),
                leaving: AtomicBool::new(false),
                stopping: CancellationToken::new(),
                hooks: Box::new(Hooks),
            }),
            members: Arc::default(),
            limits: Limits::default(),
            reads: ReadPool::new(1).unwrap(),
            router: Router::default(),
            metrics: Arc::default(),
            readiness: Readiness::default(),
        });
        let shutdown = CancellationToken::new();
        let served =
            tokio::spawn(super::serve(listener, node.clone(), shutdown.clone().cancelled_owned()));
        nodes.push(TestNode { node, url, rounds, deposed, shutdown, served: Some(served) });
    }
    let cluster = TestCluster { nodes, partitions, meta };
    cluster.place();
    cluster
}

impl TestCluster {
    fn place(&self) {
        let members = self.nodes.iter().enumerate().map(|(i, n)| MetaMember {
            node_id: i as u64 + 1,
            client_url: n.url.clone(),
            state: v1::MemberState::Active as u32,
            ..Default::default()
        });
        let placed = self.partitions.iter().map(|p| MetaPartition {
            replicas: (0..2)
                .map(|i| MetaReplica {
                    replica_id: p.views[i].replica.0,
                    node_id: i as u64 + 1,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        });
        self.meta.send_replace(Arc::new(MetaState {
            cluster_id: CLUSTER.into(),
            partitions: PARTITIONS,
            replication_factor: 2,
            epoch: 1,
            members: members.collect(),
            placement: placed.collect(),
            ..Default::default()
        }));
    }

    async fn client(&self, node: usize) -> EventStoreClient<Channel> {
        EventStoreClient::connect(self.nodes[node].url.clone()).await.unwrap()
    }

    /// Without a transport: a client's own timer would end the call first.
    fn service(&self, node: usize) -> Events {
        Events { node: self.nodes[node].node.clone() }
    }

    async fn admin(&self, node: usize) -> ClusterClient<Channel> {
        ClusterClient::connect(self.nodes[node].url.clone()).await.unwrap()
    }
}

/// A stream whose partition node `node` leads.
fn stream_of(node: usize) -> String {
    let name = |n| format!("customer-{n}");
    (0..).map(name).find(|s| leader(partition_of(s, PARTITIONS)) == node).unwrap()
}

fn event(id: u128, data: &str) -> v1::NewEvent {
    v1::NewEvent {
        id: Bytes::copy_from_slice(&id.to_be_bytes()),
        r#type: "Changed".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..Default::default()
    }
}

fn append(stream: &str, id: u128, expected: Option<Expected>) -> v1::AppendRequest {
    v1::AppendRequest {
        stream: stream.into(),
        events: vec![event(id, &format!("{{\"n\":{id}}}"))],
        expected: expected.map(|e| v1::ExpectedRevision { expected: Some(e) }),
        after_position: 0,
    }
}

fn lookup(stream: &str, consistency: v1::Consistency) -> v1::LookupRequest {
    v1::LookupRequest {
        stream: stream.into(),
        consistency: consistency as i32,
        ..Default::default()
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!(info.domain, DOMAIN);
    info.reason
}

fn with_timeout<T>(message: T, timeout: &'static str) -> Call<T> {
    let mut call = Call::new(message);
    let timeout = tonic::metadata::MetadataValue::from_static(timeout);
    call.metadata_mut().insert("grpc-timeout", timeout);
    call
}

const ALL: [v1::Consistency; 4] = [
    v1::Consistency::Unspecified,
    v1::Consistency::Linearizable,
    v1::Consistency::Lease,
    v1::Consistency::Stale,
];

#[tokio::test]
async fn any_node_answers_and_names_the_leader_that_it_asked() {
    let cluster = cluster().await;
    for leader in 0..2 {
        let stream = stream_of(leader);
        for via in 0..2 {
            let mut client = cluster.client(via).await;
            let id = (leader * 2 + via) as u128;
            let response = client.append(append(&stream, id, None)).await.unwrap();
            let named = response.metadata().get(LEADER_NODE_ID).map(|v| v.to_str().unwrap());
            let node_id = (leader + 1).to_string();
            assert_eq!(named, (via != leader).then_some(node_id.as_str()));
            let url = response.metadata().get(LEADER_URL).map(|v| v.to_str().unwrap().to_string());
            assert_eq!(url, (via != leader).then(|| cluster.nodes[leader].url.clone()));
            assert_eq!(response.into_inner().first_revision, via as u64);
            for consistency in ALL {
                let found = client.lookup(lookup(&stream, consistency)).await.unwrap();
                let state = found.into_inner().state.unwrap();
                assert_eq!((state.revision, state.stream.as_str()), (via as u64, stream.as_str()));
                assert_eq!(state.data, format!("{{\"n\":{id}}}"));
                let missing = client.lookup(lookup("nobody-1", consistency)).await.unwrap_err();
                assert_eq!(reason(&missing), "STREAM_NOT_FOUND");
            }
        }
    }
}

#[tokio::test]
async fn errors_of_apply_reach_the_client_through_any_node() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    for via in 0..2 {
        let mut client = cluster.client(via).await;
        client.append(append(&stream, 1, None)).await.unwrap();
        let e = client.append(append(&stream, 2, Some(Expected::Exact(7)))).await.unwrap_err();
        assert_eq!(
            (reason(&e).as_str(), e.code()),
            ("WRONG_EXPECTED_REVISION", Code::FailedPrecondition)
        );
        let info = e.get_details_error_info().unwrap().metadata;
        assert_eq!((info["expected"].as_str(), info["actual"].as_str()), ("7", "0"));
        let mut other = append(&stream, 1, None);
        other.events[0].data = Bytes::from_static(b"{}");
        let e = client.append(other).await.unwrap_err();
        assert_eq!((reason(&e).as_str(), e.code()), ("EVENT_ID_CONFLICT", Code::AlreadyExists));
        let e = client.append(v1::AppendRequest::default()).await.unwrap_err();
        assert_eq!(reason(&e), "INVALID_STREAM_NAME");
        let mut large = append(&stream, 3, None);
        large.events = (0..7).map(|n| event(n, &format!("\"{}\"", "x".repeat(1 << 20)))).collect();
        assert_eq!(reason(&client.append(large).await.unwrap_err()), "EVENT_TOO_LARGE");
    }
}

async fn read(
    client: &mut EventStoreClient<Channel>,
    request: v1::ReadRequest,
) -> Result<Vec<u64>, Status> {
    let mut pages = client.read(request).await?.into_inner();
    let mut revisions = Vec::new();
    while let Some(page) = pages.message().await? {
        assert!(!page.events.is_empty() && page.events.len() <= 1_000);
        revisions.extend(page.events.iter().map(|e| e.revision));
    }
    Ok(revisions)
}

#[tokio::test]
async fn a_stream_is_read_in_pages_both_ways_through_any_node() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    for chunk in 0..3 {
        let events = (0..1_000).map(|n| event(chunk * 1_000 + n, "{}")).collect();
        let request = v1::AppendRequest { stream: stream.clone(), events, ..Default::default() };
        cluster.client(0).await.append(request).await.unwrap();
    }
    for via in 0..2 {
        let mut client = cluster.client(via).await;
        for consistency in ALL {
            let ask = |from: Option<u64>, backwards, max_count| v1::ReadRequest {
                stream: stream.clone(),
                from_revision: from,
                backwards,
                max_count,
                consistency: consistency as i32,
                min_position: 0,
            };
            let all = read(&mut client, ask(None, false, 0)).await.unwrap();
            assert_eq!(all, (0..3_000).collect::<Vec<_>>());
            let back = read(&mut client, ask(None, true, 0)).await.unwrap();
            assert_eq!(back, (0..3_000).rev().collect::<Vec<_>>());
            let some = read(&mut client, ask(Some(2_998), false, 0)).await.unwrap();
            assert_eq!(some, [2_998, 2_999]);
            let few = read(&mut client, ask(Some(1_500), false, 1_001)).await.unwrap();
            assert_eq!(few, (1_500..2_501).collect::<Vec<_>>());
            assert!(read(&mut client, ask(Some(3_000), false, 0)).await.unwrap().is_empty());
            let missing = v1::ReadRequest { stream: "nobody-1".into(), ..ask(None, false, 0) };
            assert_eq!(reason(&read(&mut client, missing).await.unwrap_err()), "STREAM_NOT_FOUND");
        }
    }
}

#[tokio::test]
async fn lists_merge_all_partitions_in_byte_order_through_any_node() {
    let cluster = cluster().await;
    let mut writer = cluster.client(0).await;
    let mut names: Vec<_> = (0..3_000).map(|n| format!("{}-{n}", ["a", "bé"][n % 2])).collect();
    let requests = names.iter().zip(0u64..);
    let requests = requests.map(|(name, n)| pipelined(n, append(name, n.into(), None), false));
    append_stream(&mut writer, requests.collect()).await;
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for via in 0..2 {
        let mut client = cluster.client(via).await;
        for consistency in ALL {
            let all =
                v1::ListStreamsRequest { consistency: consistency as i32, ..Default::default() };
            let mut pages = client.list_streams(all.clone()).await.unwrap().into_inner();
            let mut got = Vec::new();
            while let Some(page) = pages.message().await.unwrap() {
                got.extend(page.streams.into_iter().map(|s| s.stream));
            }
            assert_eq!(got, names);

            let some = v1::ListStatesRequest {
                category: "a".into(),
                prefix: "a-1".into(),
                after: "a-1000".into(),
                max_count: 5,
                consistency: consistency as i32,
                partition: None,
            };
            let mut pages = client.list_states(some).await.unwrap().into_inner();
            let page = pages.message().await.unwrap().unwrap();
            let got: Vec<_> = page.states.iter().map(|s| s.stream.as_str()).collect();
            assert_eq!(got, ["a-1002", "a-1004", "a-1006", "a-1008", "a-1010"]);
            assert!(page.states.iter().all(|s| s.data.starts_with(b"{\"n\":")));
            assert!(pages.message().await.unwrap().is_none());

            let wrong = v1::ListStreamsRequest { partition: Some(PARTITIONS), ..all };
            assert_eq!(reason(&client.list_streams(wrong).await.unwrap_err()), "INVALID_ARGUMENT");
        }
    }
}

/// Sends all at once and gathers the answers by sequence.
async fn append_stream(
    client: &mut EventStoreClient<Channel>,
    requests: Vec<v1::AppendStreamRequest>,
) -> BTreeMap<u64, Result<v1::AppendResponse, String>> {
    let count = requests.len();
    let response = client.append_stream(futures::stream::iter(requests)).await.unwrap();
    let mut answers = response.into_inner();
    let mut got = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let result = match answer.result.unwrap() {
            Answer::Ok(ok) => Ok(ok),
            Answer::Error(e) => Err(e.reason),
        };
        assert!(got.insert(answer.sequence, result).is_none());
    }
    assert_eq!(got.len(), count);
    got
}

fn pipelined(sequence: u64, append: v1::AppendRequest, resume: bool) -> v1::AppendStreamRequest {
    v1::AppendStreamRequest { sequence, append: Some(append), resume }
}

#[tokio::test]
async fn pipelined_appends_keep_each_streams_order_through_any_node() {
    let cluster = cluster().await;
    for via in 0..2u64 {
        let mut client = cluster.client(via as usize).await;
        let requests = (0..4_000u64).map(|n| {
            let stream = format!("order{via}-{}", n % 70);
            pipelined(n, append(&stream, n.into(), Some(expect(n / 70))), false)
        });
        let answers = append_stream(&mut client, requests.collect()).await;
        for (n, answer) in answers {
            assert_eq!(answer.unwrap().first_revision, n / 70);
        }
    }
}

/// Exactly the revision before the n-th event.
fn expect(n: u64) -> Expected {
    match n.checked_sub(1) {
        None => Expected::NoStream(v1::expected_revision::NoStream {}),
        Some(last) => Expected::Exact(last),
    }
}

#[tokio::test]
async fn after_a_failure_later_appends_of_a_stream_fail_until_they_resume() {
    let cluster = cluster().await;
    for via in 0..2 {
        for stream in [stream_of(0), stream_of(1)] {
            let mut client = cluster.client(via).await;
            let stream = format!("{stream}-{via}");
            let good = |n: u64, resume| pipelined(n, append(&stream, n.into(), None), resume);
            let wrong = |n: u64| pipelined(n, append(&stream, n.into(), Some(expect(9))), false);
            let invalid = |n: u64| {
                let mut bad = good(n, false);
                bad.append.as_mut().unwrap().events.clear();
                bad
            };
            let other = pipelined(9, append(&format!("other-{stream}"), 9, None), false);
            let requests = vec![
                good(0, false),
                wrong(1),
                good(2, false),
                other,
                good(3, true),
                invalid(4),
                good(5, false),
                good(6, true),
            ];
            let answers = append_stream(&mut client, requests).await;
            let text = |n: u64| match &answers[&n] {
                Ok(ok) => format!("revision {}", ok.first_revision),
                Err(reason) => reason.clone(),
            };
            let got: Vec<_> = [0, 1, 2, 3, 4, 5, 6, 9].map(text).into();
            assert_eq!(
                got,
                [
                    "revision 0",
                    "WRONG_EXPECTED_REVISION",
                    "EARLIER_APPEND_FAILED",
                    "revision 1",
                    "INVALID_EVENT",
                    "EARLIER_APPEND_FAILED",
                    "revision 2",
                    "revision 0",
                ]
            );
        }
    }
}

#[tokio::test]
async fn a_lease_spares_the_round_and_without_one_there_is_a_round() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    let mut client = cluster.client(0).await;
    client.append(append(&stream, 1, None)).await.unwrap();
    let rounds = || cluster.nodes[0].rounds.load(Ordering::Relaxed);
    let view = &cluster.partitions[partition_of(&stream, PARTITIONS) as usize].views[0];
    let hour = crate::clock::boottime_ns() + 3_600_000_000_000;
    for (until, consistency, expected) in [
        (hour, v1::Consistency::Lease, 0),
        (0, v1::Consistency::Lease, 1),
        (hour, v1::Consistency::Linearizable, 1),
        (0, v1::Consistency::Stale, 0),
    ] {
        view.lease_until_ns.store(until, Ordering::Relaxed);
        let before = rounds();
        client.lookup(lookup(&stream, consistency)).await.unwrap();
        assert_eq!(rounds() - before, expected, "{consistency:?}");
    }
}

#[tokio::test]
async fn a_read_waits_for_its_position_and_no_longer_than_its_deadline() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    let mut client = cluster.client(0).await;
    let first = client.append(append(&stream, 1, None)).await.unwrap().into_inner();
    let mut request = lookup(&stream, v1::Consistency::Stale);
    request.min_position = first.last_position;
    client.lookup(request.clone()).await.unwrap();

    // Further than anything that is applied; a later append lifts the partition over it.
    request.min_position = first.last_position + position::STEP;
    let late = cluster.service(0).lookup(with_timeout(request.clone(), "50m")).await;
    assert_eq!(reason(&late.unwrap_err()), "DEADLINE_EXCEEDED");
    let waits = tokio::spawn({
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.lookup(request).await }
    });
    client.append(append(&stream, 2, None)).await.unwrap();
    let state = waits.await.unwrap().unwrap().into_inner().state.unwrap();
    assert_eq!(state.revision, 1);

    request.min_position = first.last_position ^ 1;
    assert_eq!(reason(&client.lookup(request).await.unwrap_err()), "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_deadline_of_zero_proposes_nothing() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    let mut client = cluster.client(0).await;
    let refused = cluster.service(0).append(with_timeout(append(&stream, 1, None), "0m")).await;
    assert_eq!(reason(&refused.unwrap_err()), "DEADLINE_EXCEEDED");
    let missing = client.lookup(lookup(&stream, v1::Consistency::Linearizable)).await;
    assert_eq!(reason(&missing.unwrap_err()), "STREAM_NOT_FOUND");
}

#[tokio::test]
async fn while_nobody_leads_calls_wait_and_a_forwarded_one_is_refused_at_once() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    let deposed = &cluster.nodes[0].deposed;
    deposed.store(true, Ordering::Relaxed);
    for via in 0..2 {
        let mut client = cluster.client(via).await;
        let late =
            cluster.service(via).append(with_timeout(append(&stream, 1, None), "1500m")).await;
        assert_eq!(reason(&late.unwrap_err()), "NO_LEADER");
        let mut forwarded = Call::new(lookup(&stream, v1::Consistency::Linearizable));
        forwarded.metadata_mut().insert("ringfold-forwarded", "1".parse().unwrap());
        assert_eq!(reason(&client.lookup(forwarded).await.unwrap_err()), "NOT_LEADER");
    }
    // A stale read needs none.
    let stale = cluster.client(1).await.lookup(lookup(&stream, v1::Consistency::Stale)).await;
    assert_eq!(reason(&stale.unwrap_err()), "STREAM_NOT_FOUND");

    let mut client = cluster.client(1).await;
    let waits = tokio::spawn({
        let stream = stream.clone();
        async move { client.append(append(&stream, 1, None)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    deposed.store(false, Ordering::Relaxed);
    assert_eq!(waits.await.unwrap().unwrap().into_inner().first_revision, 0);
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_appends_and_answers_reads() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    let mut client = cluster.client(1).await;
    client.append(append(&stream, 1, None)).await.unwrap();
    let disk = &cluster.nodes[0].node.info.disk;
    disk.limit_bytes.store(100, Ordering::Relaxed);
    disk.free_bytes.store(7, Ordering::Relaxed);
    disk.appends_refused.store(true, Ordering::Relaxed);
    let e = client.append(append(&stream, 2, None)).await.unwrap_err();
    assert_eq!((reason(&e).as_str(), e.code()), ("DISK_FULL", Code::ResourceExhausted));
    let info = e.get_details_error_info().unwrap().metadata;
    assert_eq!((info["free_bytes"].as_str(), info["limit_bytes"].as_str()), ("7", "100"));
    client.lookup(lookup(&stream, v1::Consistency::Linearizable)).await.unwrap();
    disk.appends_refused.store(false, Ordering::Relaxed);
    client.append(append(&stream, 2, None)).await.unwrap();
}

#[tokio::test]
async fn the_cluster_service_shows_and_judges() {
    let cluster = cluster().await;
    let stream = stream_of(0);
    cluster.client(0).await.append(append(&stream, 1, None)).await.unwrap();
    let mut admin = cluster.admin(0).await;

    let map = admin.topology(v1::TopologyRequest {}).await.unwrap().into_inner();
    assert_eq!((map.cluster_id.as_str(), map.node_id, map.partitions), (CLUSTER, 1, PARTITIONS));
    let leaders: Vec<_> = map.partition_map.iter().map(|p| p.leader_node_id).collect();
    assert_eq!(leaders, [1, 2, 1, 2]);
    assert!(map.members.iter().all(|m| m.reachable && !m.client_url.is_empty()));

    let status = admin.node_status(v1::NodeStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.replicas.len(), status.counters["dropped_frames"]), (4, 3));
    let replica = &status.replicas[partition_of(&stream, PARTITIONS) as usize];
    assert_eq!((replica.chain.len(), replica.applied_index), (32, 1));
    assert_eq!(position::partition(replica.position), replica.partition.unwrap());

    // One of two replicas is no majority.
    let safe = admin.safe_to_stop(v1::SafeToStopRequest { node_id: 2, if_epoch: 0 }).await.unwrap();
    let safe = safe.into_inner();
    assert!(!safe.safe && safe.reasons.len() == PARTITIONS as usize, "{safe:?}");

    let done =
        admin.transfer_leaders(v1::TransferLeadersRequest::default()).await.unwrap().into_inner();
    assert_eq!((done.transferred, done.remaining), (2, 0));

    let mut again = v1::BootstrapRequest { cluster_id: CLUSTER.into(), ..Default::default() };
    assert_eq!(admin.bootstrap(again.clone()).await.unwrap().into_inner().node_id, 1);
    again.cluster_id = "00000000-0000-0000-0000-000000000001".into();
    assert_eq!(reason(&admin.bootstrap(again).await.unwrap_err()), "ALREADY_BOOTSTRAPPED");
}

#[tokio::test]
async fn health_follows_the_node_and_streams_end_with_it() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let mut cluster = cluster().await;
    let url = cluster.nodes[0].url.clone();
    let mut health = HealthClient::new(Channel::from_shared(url).unwrap().connect_lazy());
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(10), watch.message()).await.unwrap();
        next.unwrap().unwrap().status()
    };
    while next().await != ServingStatus::Serving {}

    let mut client = cluster.client(0).await;
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.append_stream(receiver).await.unwrap().into_inner();
    requests.send(pipelined(1, append(&stream_of(0), 1, None), false)).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);

    cluster.nodes[0].node.info.stopping.cancel();
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(reason(&answers.message().await.unwrap_err()), "NODE_STOPPING");
    drop(watch);
    cluster.nodes[0].shutdown.cancel();
    let served = cluster.nodes[0].served.take().unwrap();
    tokio::time::timeout(Duration::from_secs(10), served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_node_without_a_cluster_says_so() {
    let cluster = cluster_of(false).await;
    cluster.meta.send_replace(Arc::default());
    let mut client = cluster.client(0).await;
    let e = client.append(append("a-1", 1, None)).await.unwrap_err();
    assert_eq!(reason(&e), "NOT_BOOTSTRAPPED");
    let e = client.list_states(v1::ListStatesRequest::default()).await.unwrap_err();
    assert_eq!(reason(&e), "NOT_BOOTSTRAPPED");
    assert!(!cluster.nodes[0].node.is_serving());
}

#[tokio::test]
async fn a_member_that_has_not_read_the_clusters_state_is_unavailable_and_not_without_a_cluster() {
    let cluster = cluster().await;
    cluster.meta.send_replace(Arc::default());
    let mut client = cluster.client(0).await;
    let mut admin = ClusterClient::connect(cluster.nodes[0].url.clone()).await.unwrap();
    for e in [
        client.append(append("a-1", 1, None)).await.unwrap_err(),
        client.list_states(v1::ListStatesRequest::default()).await.unwrap_err(),
        admin.safe_to_stop(v1::SafeToStopRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!((e.code(), &*reason(&e)), (Code::Unavailable, "NODE_STARTING"), "{e}");
    }
    assert!(!cluster.nodes[0].node.is_serving());
    cluster.place();
    client.append(append("a-1", 1, None)).await.unwrap();

    cluster.nodes[0].node.info.lost.set("the log is missing".into()).unwrap();
    cluster.meta.send_replace(Arc::default());
    let e = client.append(append("a-1", 2, None)).await.unwrap_err();
    assert_eq!(reason(&e), "REPLICA_CLOSED");
}
