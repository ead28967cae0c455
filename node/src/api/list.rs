//! Lists of streams and of states: pages of partitions, merged in ascending byte order of names.
mod merge;

use self::merge::{Merge, Named, Next};
use super::deadline::Call;
use super::errors::ApiError;
use super::node::Node;
use super::read::{Freshness, Pages, read_here, state};
use crate::raft::handle::ReplicaView;
use crate::router::{LocalError, Operation, frame, route};
use futures::stream::{self, StreamExt, TryStreamExt};
use ringfold_proto::internal::StreamRecord;
use ringfold_proto::v1;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use tonic::Status;
use tonic::transport::Channel;

/// Bounds of one page of a response.
const PAGE_ITEMS: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;
/// What a list holds of all partitions together, about.
const BUFFER_ITEMS: usize = 8_192;
const BUFFER_BYTES: usize = 8 << 20;
/// Partitions that are asked at once.
const FETCH_CONCURRENCY: usize = 16;

/// What a checked list asks for.
#[derive(Debug, Clone)]
pub struct Query {
    pub category: String,
    pub prefix: String,
    pub after: String,
    /// 0: all.
    pub max_count: u64,
    pub freshness: Freshness,
    /// `None`: all, merged.
    pub partition: Option<u32>,
}

/// A stream in a list: what is known of it, and the messages that carry it.
pub trait Listed: Named + Sized + Send + Sync + 'static {
    type Page: Send + 'static;
    fn of(stream: String, record: StreamRecord) -> Self;
    fn bytes(&self) -> usize;
    fn page(items: Vec<Self>) -> Self::Page;
    /// The first page of another node's answer, which is empty at the end.
    fn fetch(
        client: EventStoreClient<Channel>,
        query: Query,
        call: &Call,
    ) -> impl Future<Output = Result<Vec<Self>, Status>> + Send;
}

impl Named for v1::StreamInfo {
    fn name(&self) -> &str {
        &self.stream
    }
}

impl Listed for v1::StreamInfo {
    type Page = v1::ListStreamsResponse;

    fn of(stream: String, record: StreamRecord) -> v1::StreamInfo {
        v1::StreamInfo {
            stream,
            revision: record.revision,
            position: record.position,
            recorded_at_ms: record.recorded_at_ms,
        }
    }

    fn bytes(&self) -> usize {
        self.stream.len() + 32
    }

    fn page(streams: Vec<v1::StreamInfo>) -> v1::ListStreamsResponse {
        v1::ListStreamsResponse { streams }
    }

    async fn fetch(
        mut client: EventStoreClient<Channel>,
        query: Query,
        call: &Call,
    ) -> Result<Vec<v1::StreamInfo>, Status> {
        let request = v1::ListStreamsRequest {
            category: query.category,
            prefix: query.prefix,
            after: query.after,
            max_count: query.max_count,
            consistency: query.freshness.consistency as i32,
            partition: query.partition,
        };
        let mut pages = client.list_streams(frame(request, call)).await?.into_inner();
        Ok(pages.message().await?.map(|p| p.streams).unwrap_or_default())
    }
}

impl Named for v1::State {
    fn name(&self) -> &str {
        &self.stream
    }
}

impl Listed for v1::State {
    type Page = v1::ListStatesResponse;

    fn of(stream: String, record: StreamRecord) -> v1::State {
        state(stream, record)
    }

    fn bytes(&self) -> usize {
        self.stream.len() + self.data.len() + 64
    }

    fn page(states: Vec<v1::State>) -> v1::ListStatesResponse {
        v1::ListStatesResponse { states }
    }

    async fn fetch(
        mut client: EventStoreClient<Channel>,
        query: Query,
        call: &Call,
    ) -> Result<Vec<v1::State>, Status> {
        let request = v1::ListStatesRequest {
            category: query.category,
            prefix: query.prefix,
            after: query.after,
            max_count: query.max_count,
            consistency: query.freshness.consistency as i32,
            partition: query.partition,
        };
        let mut pages = client.list_states(frame(request, call)).await?.into_inner();
        Ok(pages.message().await?.map(|p| p.states).unwrap_or_default())
    }
}

/// One page of one partition.
struct Page<I> {
    items: Vec<I>,
    /// Name to go on behind; `None`: the partition's end.
    last: Option<String>,
}

/// Reads one page of one partition, wherever its leader is.
struct ListPage<I> {
    query: Query,
    bytes: usize,
    listed: std::marker::PhantomData<fn() -> I>,
}

impl<I: Listed> Operation for ListPage<I> {
    type Output = Page<I>;

    fn stale(&self) -> bool {
        self.query.freshness.is_stale()
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    async fn local(
        &self,
        node: &Arc<Node>,
        view: &Arc<ReplicaView>,
        call: &Call,
    ) -> Result<Page<I>, LocalError> {
        let (q, bytes) = (Arc::new(self.query.clone()), self.bytes);
        let found = read_here(node, view, call, self.query.freshness, move |reader| {
            reader.streams(&q.category, &q.prefix, &q.after, q.max_count as usize, bytes)
        })
        .await?;
        let last = found.last().map(|(name, _)| name.clone());
        let alive = found.into_iter().filter(|(_, record)| !record.tombstone);
        Ok(Page { items: alive.map(|(name, record)| I::of(name, record)).collect(), last })
    }

    async fn remote(
        &self,
        client: EventStoreClient<Channel>,
        call: &Call,
    ) -> Result<Page<I>, Status> {
        let items = I::fetch(client, self.query.clone(), call).await?;
        let last = items.last().map(|i| i.name().to_string());
        Ok(Page { items, last })
    }
}

/// A list in progress.
struct List<I> {
    node: Arc<Node>,
    call: Call,
    query: Query,
    /// Of each source: its partition, and the name to go on behind.
    sources: Vec<(u32, String)>,
    merge: Merge<I>,
    /// Items still to give.
    left: u64,
}

/// The pages of a checked list; the first one of each partition is read before it returns.
pub async fn list<I: Listed>(
    node: Arc<Node>,
    call: Call,
    query: Query,
) -> Result<Pages<I::Page>, ApiError> {
    let partitions = node.partitions()?;
    let partitions = match query.partition {
        Some(p) if p >= partitions => {
            let what = format!("is {p}, but there are {partitions} partitions, from 0");
            return Err(ApiError::argument("partition", what));
        }
        Some(p) => p..p + 1,
        None => 0..partitions,
    };
    let sources: Vec<_> = partitions.map(|p| (p, query.after.clone())).collect();
    let left = if query.max_count == 0 { u64::MAX } else { query.max_count };
    let merge = Merge::new(sources.len());
    let mut list = List { node, call, query, sources, merge, left };
    let wanted = list.merge.wanted();
    list.fetch(wanted).await?;
    let pages = stream::unfold(Some(list), |list| async {
        let mut list = list?;
        match list.next_page().await {
            Ok(items) if items.is_empty() => None,
            Ok(items) => Some((Ok(I::page(items)), Some(list))),
            Err(e) => Some((Err(Status::from(e)), None)),
        }
    });
    Ok(pages.boxed())
}

impl<I: Listed> List<I> {
    /// Empty at the end.
    async fn next_page(&mut self) -> Result<Vec<I>, ApiError> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        while self.left > 0 && items.len() < PAGE_ITEMS && bytes < PAGE_BYTES {
            match self.merge.next() {
                Next::Item(item) => {
                    self.left -= 1;
                    bytes += item.bytes();
                    items.push(item);
                }
                Next::Wanted(sources) => self.fetch(sources).await?,
                Next::End => break,
            }
        }
        Ok(items)
    }

    /// Gives the merge the next pages of these sources.
    async fn fetch(&mut self, wanted: Vec<usize>) -> Result<(), ApiError> {
        if self.node.info.stopping.is_cancelled() {
            return Err(ApiError::NodeStopping);
        }
        let count = (BUFFER_ITEMS / self.sources.len()).clamp(16, PAGE_ITEMS);
        let bytes = (BUFFER_BYTES / self.sources.len()).clamp(8 << 10, PAGE_BYTES);
        let call = self.call.step();
        let asks: VecDeque<_> = wanted
            .into_iter()
            .map(|source| {
                let (partition, after) = &self.sources[source];
                let page = ListPage::<I> {
                    query: Query {
                        after: after.clone(),
                        max_count: (count as u64).min(self.left),
                        partition: Some(*partition),
                        ..self.query.clone()
                    },
                    bytes,
                    listed: std::marker::PhantomData,
                };
                let (node, partition) = (self.node.clone(), *partition);
                async move {
                    let routed = route(&node, partition, &call, &page).await?;
                    Ok::<_, ApiError>((source, routed.value))
                }
            })
            .collect();
        let mut pages = stream::iter(asks).buffer_unordered(FETCH_CONCURRENCY);
        while let Some((source, page)) = pages.try_next().await? {
            let ended = page.last.is_none();
            if let Some(last) = page.last {
                self.sources[source].1 = last;
            }
            self.merge.give(source, page.items, ended);
        }
        Ok(())
    }
}
