//! The client's calls.
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt as _, stream::FuturesUnordered};
use ringfold_proto::v1::{
    self, RecordedEvent, State, StreamInfo, cluster_client::ClusterClient,
    event_store_client::EventStoreClient,
};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Channel};

use crate::{
    Appended, Appender, ClientConfig, ClientError, Consistency, Expected, ListOptions,
    LookupOptions, NewEvent, ReadOptions,
    error::{Retry, ServerError},
    nodes::{Map, Node},
    pages,
    retry::{Tries, backoff},
};

/// Pages of a read carry many events of up to 1 MiB each.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The map is read again at most so often...
const REFRESH_MIN: Duration = Duration::from_millis(200);
/// ...and, while calls are made, at least so often: new members are found without a failure.
const REFRESH_MAX: Duration = Duration::from_secs(30);
const LEADER_URL: &str = "ringfold-leader-url";

/// A client of one cluster. Clones share connections and the map; use one for the whole process.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Of administrative calls; 0: any.
    if_epoch: u64,
}

struct Inner {
    /// Reads the certificates anew, for as long as there is a client.
    _certificates: tokio::task::JoinSet<()>,
    config: ClientConfig,
    map: ArcSwap<Map>,
    started: Instant,
    /// When the map was last asked for, in milliseconds from `started`, and whether it is now.
    refreshed_ms: AtomicU64,
    refreshing: AtomicBool,
    turn: AtomicUsize,
    last_position: AtomicU64,
}

pub(crate) fn event_store(channel: Channel) -> EventStoreClient<Channel> {
    EventStoreClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

pub(crate) fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// One try: an error when `within` passes without an answer.
async fn attempt<Req, Res, Fut>(
    node: &Node,
    request: Req,
    within: Duration,
    send: impl FnOnce(Channel, Request<Req>) -> Fut,
) -> Result<Response<Res>, ServerError>
where
    Fut: Future<Output = Result<Response<Res>, Status>>,
{
    let mut request = Request::new(request);
    request.set_timeout(within);
    match tokio::time::timeout(within, send(node.channel(), request)).await {
        Ok(answer) => answer.map_err(ServerError::from),
        Err(_) => Err(no_answer(node, within)),
    }
}

pub(crate) fn no_answer(node: &Node, within: Duration) -> ServerError {
    ServerError::local(
        Code::DeadlineExceeded,
        format!("no answer from {} within {} ms", node.url, within.as_millis()),
    )
}

impl Client {
    /// Connects: at least one endpoint must answer, if only that it has no cluster yet.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a setting, [`ClientError::Unavailable`] when no endpoint answers
    /// within the connect timeout and one try.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::Invalid(
                "no endpoints: give at least one, such as http://127.0.0.1:2600".into(),
            ));
        }
        if config.in_flight_max == 0 || config.in_flight_max > u32::MAX as usize {
            return Err(ClientError::Invalid(
                "in_flight_max must be at least 1 and fit in 32 bits".into(),
            ));
        }
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for url in &config.endpoints {
            let node = Node::open(url, &config)?;
            if !nodes.iter().any(|n| n.url == node.url) {
                nodes.push(node);
            }
        }
        let mut certificates = tokio::task::JoinSet::new();
        if let Some(tls) = config.tls.clone() {
            certificates.spawn(tls.watch());
        }
        let client = Client {
            if_epoch: 0,
            inner: Arc::new(Inner {
                _certificates: certificates,
                map: ArcSwap::from_pointee(Map::new(nodes.clone())),
                config,
                started: Instant::now(),
                refreshed_ms: AtomicU64::new(0),
                refreshing: AtomicBool::new(false),
                turn: AtomicUsize::new(rand::random_range(0..1 << 16)),
                last_position: AtomicU64::new(0),
            }),
        };
        let within = client.inner.config.connect_timeout + client.inner.config.retry.try_timeout;
        let mut asked: FuturesUnordered<_> =
            nodes.iter().map(|node| client.ask_topology(node, within)).collect();
        let (mut answered, mut tries) = (false, Tries::default());
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(t) => {
                    answered = true;
                    client.take_topology(&t);
                    // A node that has no map yet leaves the others to say more.
                    if client.inner.map.load().is_placed() {
                        break;
                    }
                }
                Err(e) => {
                    tries.failed(e);
                }
            }
        }
        drop(asked);
        if answered { Ok(client) } else { Err(tries.conclude_read()) }
    }

    /// The same client for decisions that rest on the topology of that epoch: `drain`, `undrain`,
    /// `remove_member`, `rebalance_pause`, `rebalance_resume`, `safe_to_stop` and `transfer_leaders`
    /// are refused (`STALE_EPOCH`) once the cluster is at another one, unless what they ask for is so
    /// already.
    pub fn at_epoch(&self, epoch: u64) -> Client {
        Client { inner: self.inner.clone(), if_epoch: epoch }
    }

    pub(crate) fn if_epoch(&self) -> u64 {
        self.if_epoch
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn map(&self) -> arc_swap::Guard<Arc<Map>> {
        self.inner.map.load()
    }

    pub(crate) fn next_turn(&self) -> usize {
        self.inner.turn.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask_topology(
        &self,
        node: &Node,
        within: Duration,
    ) -> Result<v1::TopologyResponse, ServerError> {
        let send = |c, r| async move { cluster(c).topology(r).await };
        let answer = attempt(node, v1::TopologyRequest {}, within, send).await?;
        Ok(answer.into_inner())
    }

    fn take_topology(&self, t: &v1::TopologyResponse) {
        // A node outside of any cluster knows nothing about the one we talk to.
        if t.cluster_id.is_empty() {
            return;
        }
        self.inner.map.rcu(|map| map.with_topology(t, &self.inner.config));
    }

    fn elapsed_ms(&self) -> u64 {
        self.inner.started.elapsed().as_millis() as u64
    }

    /// Reads the map again in the background, unless that was done just now.
    pub(crate) fn refresh_soon(&self, at_most_every: Duration) {
        let last = self.inner.refreshed_ms.load(Ordering::Relaxed);
        if self.elapsed_ms().saturating_sub(last) < at_most_every.as_millis() as u64
            || self.inner.refreshing.swap(true, Ordering::Acquire)
        {
            return;
        }
        let client = self.clone();
        tokio::spawn(async move {
            let map = client.inner.map.load_full();
            let turn = client.next_turn();
            let within = client.inner.config.retry.try_timeout;
            let mut failed = None;
            for n in 0..map.nodes().len().min(3) {
                let node = map.pick(None, turn + n, failed.as_ref());
                match client.ask_topology(&node, within).await {
                    Ok(t) => {
                        client.take_topology(&t);
                        break;
                    }
                    Err(_) => {
                        node.avoid();
                        failed = Some(node);
                    }
                }
            }
            let now = client.elapsed_ms();
            client.inner.refreshed_ms.store(now, Ordering::Relaxed);
            client.inner.refreshing.store(false, Ordering::Release);
        });
    }

    fn take_leader(&self, partition: Option<u32>, url: &str) -> bool {
        let (Some(partition), map) = (partition, self.inner.map.load()) else {
            return false;
        };
        match map.with_leader(partition, url) {
            Some(new) => {
                // Where another change came between, the next answer says it again.
                self.inner.map.compare_and_swap(&map, Arc::new(new));
                true
            }
            None => false,
        }
    }

    fn take_answer(&self, partition: Option<u32>, metadata: &MetadataMap) {
        if let Some(url) = metadata.get(LEADER_URL).and_then(|v| v.to_str().ok())
            && !self.take_leader(partition, url)
        {
            self.refresh_soon(REFRESH_MIN);
        }
    }

    /// Learns from a failure where to go next. `true`: it named a leader that was not known.
    pub(crate) fn take_failure(
        &self,
        node: &Node,
        partition: Option<u32>,
        e: &ServerError,
    ) -> bool {
        if e.retry() == Retry::No {
            return false;
        }
        // The connection failed, or the node knows that others are the better choice.
        if matches!(
            e.reason.as_str(),
            "" | "NO_LEADER"
                | "NODE_STARTING"
                | "NODE_STOPPING"
                | "REPLICA_CLOSED"
                | "CLOCK_BEHIND"
        ) {
            node.avoid();
        }
        if let Some(url) = e.metadata.get("leader_url")
            && self.take_leader(partition, url)
        {
            return true;
        }
        self.refresh_soon(REFRESH_MIN);
        false
    }

    /// One call over all its tries.
    pub(crate) async fn call<Req, Res, Fut>(
        &self,
        stream: Option<&str>,
        request: &Req,
        send: impl Fn(Channel, Request<Req>) -> Fut,
    ) -> Result<Res, Tries>
    where
        Req: Clone,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let config = &self.inner.config;
        let deadline = Instant::now() + config.deadline;
        let mut tries = Tries::default();
        let mut failed: Option<Arc<Node>> = None;
        self.refresh_soon(REFRESH_MAX);
        loop {
            let (partition, node) = self.route(stream, failed.as_ref());
            let left = deadline.saturating_duration_since(Instant::now());
            let within = left.min(config.retry.try_timeout);
            let error = match attempt(&node, request.clone(), within, &send).await {
                Ok(answer) => {
                    self.take_answer(partition, answer.metadata());
                    return Ok(answer.into_inner());
                }
                Err(e) => e,
            };
            let redirected = self.take_failure(&node, partition, &error);
            // A leader that has too much to do is still the one to ask.
            let elsewhere = error.code != Code::ResourceExhausted;
            if !tries.failed(error) {
                return Err(tries);
            }
            // Straight on to a leader that was named, but only once: two nodes may name each other.
            let wait = if redirected && tries.count == 1 {
                Duration::ZERO
            } else {
                backoff(&config.retry, tries.count, rand::random())
            };
            if Instant::now() + wait >= deadline {
                return Err(tries);
            }
            tokio::time::sleep(wait).await;
            failed = elsewhere.then_some(node);
        }
    }

    /// Where a call about `stream` goes.
    pub(crate) fn route(
        &self,
        stream: Option<&str>,
        failed: Option<&Arc<Node>>,
    ) -> (Option<u32>, Arc<Node>) {
        let map = self.inner.map.load();
        if !map.is_placed() {
            self.refresh_soon(REFRESH_MIN);
        }
        let partition = stream.and_then(|s| map.partition_of(s));
        (partition, map.pick(partition, self.next_turn(), failed))
    }

    /// Where the appends of a stream go in a pipeline: the same node as long as nothing is known to
    /// have changed.
    pub(crate) fn steady_route(&self, stream: &str) -> Arc<Node> {
        let map = self.inner.map.load();
        if !map.is_placed() {
            self.refresh_soon(REFRESH_MIN);
        }
        map.pick(map.partition_of(stream), 0, None)
    }

    pub(crate) fn append_request(
        &self,
        stream: &str,
        events: Vec<NewEvent>,
        expected: Expected,
    ) -> v1::AppendRequest {
        v1::AppendRequest {
            stream: stream.to_owned(),
            events: events.into_iter().map(|e| e.inner).collect(),
            expected: Some(expected.into()),
            after_position: if self.inner.config.causal { self.last_position() } else { 0 },
        }
    }

    pub(crate) fn saw_position(&self, position: u64) {
        self.inner.last_position.fetch_max(position, Ordering::Relaxed);
    }

    /// Appends 1 to 1,024 events (4 MiB) to one stream, all or none, and answers when they are in
    /// the synced logs of a majority. Tried again with the same ids within the deadline.
    ///
    /// # Errors
    /// [`ClientError::Refused`] (`WRONG_EXPECTED_REVISION` with the actual one, `EVENT_ID_CONFLICT`,
    /// a limit, ...) and [`ClientError::Unavailable`]: not stored. [`ClientError::Unknown`]: it may
    /// or may not be stored; the same call again finds out.
    pub async fn append(
        &self,
        stream: &str,
        events: Vec<NewEvent>,
        expected: Expected,
    ) -> Result<Appended, ClientError> {
        let request = self.append_request(stream, events, expected);
        let send = |c, r| async move { event_store(c).append(r).await };
        let answer = self.call(Some(stream), &request, send).await;
        let appended = Appended::from(answer.map_err(|t| t.conclude_append(expected))?);
        self.saw_position(appended.last_position);
        Ok(appended)
    }

    /// Pipelined appends: see [`Appender`]. Needs a Tokio runtime.
    pub fn appender(&self) -> Appender {
        Appender::new(self.clone())
    }

    /// A stream's state; `None`: there is no such stream.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Unavailable`].
    pub async fn lookup(
        &self,
        stream: &str,
        consistency: Consistency,
    ) -> Result<Option<State>, ClientError> {
        self.lookup_with(stream, consistency.into()).await
    }

    /// A stream's state; `None`: there is no such stream.
    ///
    /// # Errors
    /// As [`Client::lookup`]; a `min_position` that is not reached within the deadline is
    /// [`ClientError::Unavailable`].
    pub async fn lookup_with(
        &self,
        stream: &str,
        options: LookupOptions,
    ) -> Result<Option<State>, ClientError> {
        let request = v1::LookupRequest {
            stream: stream.to_owned(),
            consistency: v1::Consistency::from(options.consistency).into(),
            min_position: options.min_position,
        };
        let send = |c, r| async move { event_store(c).lookup(r).await };
        match self.call(Some(stream), &request, send).await {
            Ok(answer) => {
                if let Some(state) = &answer.state {
                    self.saw_position(state.position);
                }
                Ok(answer.state)
            }
            Err(tries) => match tries.conclude_read() {
                ClientError::Refused(e) if e.reason == "STREAM_NOT_FOUND" => Ok(None),
                e => Err(e),
            },
        }
    }

    /// A stream's events, in order of revision. A broken connection is not seen: reading goes on
    /// after the last event. It ends after one error. A stream that does not exist is such an error,
    /// `STREAM_NOT_FOUND`.
    pub fn read(
        &self,
        stream: &str,
        options: ReadOptions,
    ) -> impl Stream<Item = Result<RecordedEvent, ClientError>> + Send + Unpin + use<> {
        let request = v1::ReadRequest {
            stream: stream.to_owned(),
            from_revision: options.from_revision,
            backwards: options.backwards,
            max_count: options.max_count.unwrap_or(0),
            consistency: v1::Consistency::from(options.consistency).into(),
            min_position: options.min_position,
        };
        pages::items(self.clone(), request, options.max_count == Some(0))
    }

    /// Names of streams in byte order, with their last revision. It ends after one error.
    pub fn list_streams(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<StreamInfo, ClientError>> + Send + Unpin + use<> {
        let none = options.max_count == Some(0);
        let request = v1::ListStreamsRequest {
            category: options.category.unwrap_or_default(),
            prefix: options.prefix.unwrap_or_default(),
            after: options.after.unwrap_or_default(),
            max_count: options.max_count.unwrap_or(0),
            consistency: v1::Consistency::from(options.consistency).into(),
            partition: options.partition,
        };
        pages::items(self.clone(), request, none)
    }

    /// States of streams in byte order of their names. It ends after one error.
    pub fn list_states(
        &self,
        options: ListOptions,
    ) -> impl Stream<Item = Result<State, ClientError>> + Send + Unpin + use<> {
        let none = options.max_count == Some(0);
        let request = v1::ListStatesRequest {
            category: options.category.unwrap_or_default(),
            prefix: options.prefix.unwrap_or_default(),
            after: options.after.unwrap_or_default(),
            max_count: options.max_count.unwrap_or(0),
            consistency: v1::Consistency::from(options.consistency).into(),
            partition: options.partition,
        };
        pages::items(self.clone(), request, none)
    }

    /// Members, placement and leaders, as any one node knows them.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when no node answers within the deadline.
    pub async fn topology(&self) -> Result<v1::TopologyResponse, ClientError> {
        let send = |c, r| async move { cluster(c).topology(r).await };
        let answer = self.call(None, &v1::TopologyRequest {}, send).await;
        let t = answer.map_err(Tries::conclude_read)?;
        self.take_topology(&t);
        Ok(t)
    }

    /// Members, placement and leaders, as that one node knows them. One try.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for the endpoint, [`ClientError::Unavailable`].
    pub async fn topology_of(&self, endpoint: &str) -> Result<v1::TopologyResponse, ClientError> {
        let send = |c, r| async move { cluster(c).topology(r).await };
        self.ask(endpoint, v1::TopologyRequest {}, send).await
    }

    /// That one node's replicas, disk and version. One try.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for the endpoint, [`ClientError::Unavailable`].
    pub async fn node_status(&self, endpoint: &str) -> Result<v1::NodeStatusResponse, ClientError> {
        let send = |c, r| async move { cluster(c).node_status(r).await };
        self.ask(endpoint, v1::NodeStatusRequest {}, send).await
    }

    /// The members, and whether the node that answers hears of each.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`].
    pub async fn membership(&self) -> Result<v1::MembershipListResponse, ClientError> {
        let send = |c, r| async move { cluster(c).membership_list(r).await };
        self.call(None, &v1::MembershipListRequest {}, send).await.map_err(Tries::conclude_read)
    }

    /// The members as that one node sees them. One try.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for the endpoint, [`ClientError::Unavailable`].
    pub async fn membership_of(
        &self,
        endpoint: &str,
    ) -> Result<v1::MembershipListResponse, ClientError> {
        let send = |c, r| async move { cluster(c).membership_list(r).await };
        self.ask(endpoint, v1::MembershipListRequest {}, send).await
    }

    /// The members as that one node sees them, and then each change once, until the node stops or
    /// the connection breaks: then follow again, at this node or another, and begin with its list.
    /// Where the reader was too slow, a list comes in place of changes, with `lagged` set. No
    /// deadline; one try for the beginning.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for the endpoint, [`ClientError::Unavailable`].
    pub async fn membership_changes(
        &self,
        endpoint: &str,
    ) -> Result<
        impl Stream<Item = Result<v1::MembershipChangesResponse, ClientError>> + use<>,
        ClientError,
    > {
        let conclude = |e: ServerError| {
            let mut tries = Tries::default();
            tries.failed(e);
            tries.conclude_read()
        };
        let node = self.node_at(endpoint)?;
        let mut client = cluster(node.channel());
        let asked = client.membership_changes(v1::MembershipChangesRequest {});
        let within = self.inner.config.deadline;
        match tokio::time::timeout(within, asked).await {
            Ok(Ok(answer)) => Ok(answer
                .into_inner()
                .map(move |news| news.map_err(|status| conclude(ServerError::from(status))))),
            Ok(Err(status)) => Err(conclude(ServerError::from(status))),
            Err(_) => Err(conclude(no_answer(&node, within))),
        }
    }

    /// Creates the cluster, with that node as its first member. Said again with the same cluster id
    /// it answers the same. One try.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `ALREADY_BOOTSTRAPPED` when the node belongs to another
    /// cluster, [`ClientError::Invalid`] for the endpoint, [`ClientError::Unavailable`].
    pub async fn bootstrap(
        &self,
        endpoint: &str,
        request: v1::BootstrapRequest,
    ) -> Result<v1::BootstrapResponse, ClientError> {
        let send = |c, r| async move { cluster(c).bootstrap(r).await };
        let answer = self.ask(endpoint, request, send).await?;
        self.refresh_soon(Duration::ZERO);
        Ok(answer)
    }

    /// Whether each partition keeps a majority of healthy replicas without this node.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Unavailable`].
    pub async fn safe_to_stop(&self, node_id: u64) -> Result<v1::SafeToStopResponse, ClientError> {
        let send = |c, r| async move { cluster(c).safe_to_stop(r).await };
        let request = v1::SafeToStopRequest { node_id, if_epoch: self.if_epoch };
        self.call(None, &request, send).await.map_err(Tries::conclude_read)
    }

    /// Has that one node hand all its leaderships to others; answers when done, or at the deadline
    /// with how many remain. One try.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Invalid`] for the endpoint,
    /// [`ClientError::Unavailable`].
    pub async fn transfer_leaders(
        &self,
        endpoint: &str,
    ) -> Result<v1::TransferLeadersResponse, ClientError> {
        let send = |c, r| async move { cluster(c).transfer_leaders(r).await };
        let request = v1::TransferLeadersRequest { if_epoch: self.if_epoch };
        let answer = self.ask(endpoint, request, send).await?;
        self.refresh_soon(Duration::ZERO);
        Ok(answer)
    }

    /// One node is asked, once, within the deadline.
    async fn ask<Req, Res, Fut>(
        &self,
        endpoint: &str,
        request: Req,
        send: impl FnOnce(Channel, Request<Req>) -> Fut,
    ) -> Result<Res, ClientError>
    where
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let node = self.node_at(endpoint)?;
        match attempt(&node, request, self.inner.config.deadline, send).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(e) => {
                let mut tries = Tries::default();
                tries.failed(e);
                Err(tries.conclude_read())
            }
        }
    }

    fn node_at(&self, endpoint: &str) -> Result<Arc<Node>, ClientError> {
        let url = endpoint.trim_end_matches('/');
        match self.map().nodes().iter().find(|n| n.url == url) {
            Some(node) => Ok(node.clone()),
            None => Node::open(endpoint, &self.inner.config),
        }
    }

    /// Highest position in this client's answers so far; 0: none yet.
    pub fn last_position(&self) -> u64 {
        self.inner.last_position.load(Ordering::Relaxed)
    }
}
