//! Reads of streams and of their states, with the consistency that the call names.
use super::deadline::Call;
use super::errors::ApiError;
use super::node::Node;
use super::validate::shown_content_type;
use crate::ids::GroupId;
use crate::partition::store::StoreError;
use crate::partition::{EventPage, Reader};
use crate::raft::handle::{ReadError, ReplicaView, Role};
use crate::router::{LocalError, Operation, frame};
use futures::stream::{BoxStream, StreamExt, unfold};
use ringfold_proto::internal::{EventRecord, StreamRecord};
use ringfold_proto::v1;
use ringfold_proto::v1::Consistency;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use std::sync::Arc;
use tonic::Status;
use tonic::transport::Channel;

/// Bounds of one page of a stream.
const PAGE_EVENTS: usize = 1_000;
const PAGE_BYTES: usize = 256 << 10;

/// Pages of a response.
pub type Pages<T> = BoxStream<'static, Result<T, Status>>;

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    pub consistency: Consistency,
    /// Wait until this position is applied; 0: none.
    pub min_position: u64,
}

impl Freshness {
    pub fn is_stale(&self) -> bool {
        self.consistency == Consistency::Stale
    }
}

/// A lookup that memory answers at once: a replica here with a lease, or any for a stale one.
/// `None`: it needs the long way.
pub fn lookup_at_once(
    node: &Node,
    partition: u32,
    stream: &str,
    freshness: Freshness,
) -> Result<Option<Option<StreamRecord>>, StoreError> {
    let Some(view) = node.raft.replica(GroupId::of_partition(partition)) else {
        return Ok(None);
    };
    let min_position = freshness.min_position;
    if min_position != 0 && view.applied.borrow().position < min_position {
        return Ok(None);
    }
    match freshness.consistency {
        // A learner may have nothing yet, nor has a replica that was just made.
        Consistency::Stale
            if !matches!(view.status.read().role, Role::Closed | Role::Learner)
                && view.applied.borrow().index > 0 =>
        {
            view.reader.stream_cached(stream)
        }
        Consistency::Lease if view.lease_is_valid() => {
            let found = view.reader.stream_cached(stream)?;
            // A pause between the check and the read must not give an old answer.
            Ok(found.filter(|_| view.lease_is_valid()))
        }
        _ => Ok(None),
    }
}

/// Waits until the position is applied here.
async fn wait_for_position(
    view: &ReplicaView,
    call: &Call,
    min_position: u64,
) -> Result<(), LocalError> {
    if min_position == 0 || view.applied.borrow().position >= min_position {
        return Ok(());
    }
    let mut applied = view.applied.subscribe();
    let waited = call.within(false, applied.wait_for(|a| a.position >= min_position)).await?;
    // The replica went away.
    waited.map(|_| ()).map_err(|_| LocalError::NotLeader(None))
}

/// Confirms that this replica leads and has applied all that was acknowledged before now.
async fn confirm(node: &Node, view: &ReplicaView, call: &Call) -> Result<(), LocalError> {
    match call.within(false, node.raft.read_index(view.group)).await? {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ReadError::NotLeader { leader })) => Err(LocalError::NotLeader(leader)),
        Ok(Err(ReadError::NoReplica | ReadError::Closed(_))) => Err(LocalError::NotLeader(None)),
        Ok(Err(ReadError::Busy)) => Err(LocalError::Busy(ApiError::Overloaded(
            "too many reads wait for the leader's round",
        ))),
        Err(_) => Err(LocalError::Failed(ApiError::NodeStopping)),
    }
}

/// Reads here, as fresh as asked for. A stream's record is looked for in memory first.
async fn lookup_here(
    node: &Node,
    view: &ReplicaView,
    call: &Call,
    freshness: Freshness,
    stream: &str,
) -> Result<Option<StreamRecord>, LocalError> {
    wait_for_position(view, call, freshness.min_position).await?;
    if freshness.consistency == Consistency::Lease && view.lease_is_valid() {
        let found = record(node, view, call, stream).await?;
        if view.lease_is_valid() {
            return Ok(found);
        }
    }
    if !freshness.is_stale() {
        confirm(node, view, call).await?;
    }
    Ok(record(node, view, call, stream).await?)
}

async fn record(
    node: &Node,
    view: &ReplicaView,
    call: &Call,
    stream: &str,
) -> Result<Option<StreamRecord>, ApiError> {
    if let Some(found) = view.reader.stream_cached(stream)? {
        return Ok(found);
    }
    let (reader, stream) = (view.reader.clone(), stream.to_string());
    Ok(call.within(false, node.reads.run(move || reader.stream(&stream))).await???)
}

/// Reads on a read thread, as fresh as asked for.
pub async fn read_here<T: Send + 'static>(
    node: &Node,
    view: &ReplicaView,
    call: &Call,
    freshness: Freshness,
    read: impl Fn(&Reader) -> Result<T, StoreError> + Clone + Send + Sync + 'static,
) -> Result<T, LocalError> {
    wait_for_position(view, call, freshness.min_position).await?;
    if freshness.consistency == Consistency::Lease && view.lease_is_valid() {
        let found = read_on_thread(node, view, call, read.clone()).await?;
        if view.lease_is_valid() {
            return Ok(found);
        }
    }
    if !freshness.is_stale() {
        confirm(node, view, call).await?;
    }
    Ok(read_on_thread(node, view, call, read).await?)
}

async fn read_on_thread<T: Send + 'static>(
    node: &Node,
    view: &ReplicaView,
    call: &Call,
    read: impl Fn(&Reader) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let reader = view.reader.clone();
    Ok(call.within(false, node.reads.run(move || read(&reader))).await???)
}

/// A stream's state from its record.
pub fn state(stream: String, record: StreamRecord) -> v1::State {
    let failed = !record.error_message.is_empty();
    v1::State {
        stream,
        data: record.state,
        content_type: shown_content_type(record.content_type),
        revision: if failed { record.good_revision } else { record.revision },
        position: record.position,
        recorded_at_ms: record.recorded_at_ms,
        generation: record.generation,
        error: failed.then_some(v1::StateError {
            revision: record.error_revision,
            message: record.error_message,
        }),
    }
}

/// Answer to a lookup: a deleted stream is none.
pub fn lookup_response(
    stream: String,
    record: Option<StreamRecord>,
) -> Result<v1::LookupResponse, ApiError> {
    let record = record.filter(|r| !r.tombstone).ok_or(ApiError::StreamNotFound)?;
    Ok(v1::LookupResponse { state: Some(state(stream, record)) })
}

/// A checked lookup.
pub struct Lookup<'a> {
    pub request: &'a v1::LookupRequest,
    pub freshness: Freshness,
}

impl Operation for Lookup<'_> {
    type Output = v1::LookupResponse;

    fn stale(&self) -> bool {
        self.freshness.is_stale()
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    async fn local(
        &self,
        node: &Arc<Node>,
        view: &Arc<ReplicaView>,
        call: &Call,
    ) -> Result<v1::LookupResponse, LocalError> {
        let stream = &self.request.stream;
        let record = lookup_here(node, view, call, self.freshness, stream).await?;
        Ok(lookup_response(stream.clone(), record)?)
    }

    async fn remote(
        &self,
        mut client: EventStoreClient<Channel>,
        call: &Call,
    ) -> Result<v1::LookupResponse, Status> {
        Ok(client.lookup(frame(self.request.clone(), call)).await?.into_inner())
    }
}

/// A checked read of a stream.
pub struct ReadStream<'a> {
    pub request: &'a v1::ReadRequest,
    pub freshness: Freshness,
}

impl Operation for ReadStream<'_> {
    type Output = Pages<v1::ReadResponse>;

    fn stale(&self) -> bool {
        self.freshness.is_stale()
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    /// The first page is read as fresh as asked for; the next ones go on from there.
    async fn local(
        &self,
        node: &Arc<Node>,
        view: &Arc<ReplicaView>,
        call: &Call,
    ) -> Result<Pages<v1::ReadResponse>, LocalError> {
        let from = Cursor {
            stream: self.request.stream.as_str().into(),
            from: self.request.from_revision,
            backwards: self.request.backwards,
            left: match self.request.max_count {
                0 => u64::MAX,
                n => n,
            },
        };
        let first = {
            let from = from.clone();
            read_here(node, view, call, self.freshness, move |reader| from.first_page(reader))
                .await?
                .ok_or(ApiError::StreamNotFound)?
        };
        Ok(pages(node.clone(), view.clone(), *call, from, first))
    }

    async fn remote(
        &self,
        mut client: EventStoreClient<Channel>,
        call: &Call,
    ) -> Result<Pages<v1::ReadResponse>, Status> {
        let mut request = frame(self.request.clone(), call);
        if !call.has_deadline {
            // A long read may take longer than the default of short calls.
            request.metadata_mut().remove("grpc-timeout");
        }
        Ok(client.read(request).await?.into_inner().boxed())
    }
}

/// Where a read of a stream goes on.
#[derive(Debug, Clone)]
struct Cursor {
    stream: Arc<str>,
    from: Option<u64>,
    backwards: bool,
    left: u64,
}

impl Cursor {
    fn page(&self, reader: &Reader) -> Result<EventPage, StoreError> {
        let count = self.left.min(PAGE_EVENTS as u64) as usize;
        reader.events(&self.stream, self.from, self.backwards, count, PAGE_BYTES)
    }

    /// `None`: there is no such stream.
    fn first_page(&self, reader: &Reader) -> Result<Option<EventPage>, StoreError> {
        let page = self.page(reader)?;
        if page.events.is_empty() && reader.stream(&self.stream)?.is_none_or(|r| r.tombstone) {
            return Ok(None);
        }
        Ok(Some(page))
    }

    /// Moves behind a page; `None`: that was the last one.
    fn after(mut self, page: &EventPage) -> Option<Cursor> {
        self.left = self.left.saturating_sub(page.events.len() as u64);
        self.from = Some(page.next.filter(|_| self.left > 0)?);
        Some(self)
    }
}

/// The pages of a read; each is read when the one before was taken.
fn pages(
    node: Arc<Node>,
    view: Arc<ReplicaView>,
    call: Call,
    from: Cursor,
    first: EventPage,
) -> Pages<v1::ReadResponse> {
    let stream = from.stream.clone();
    let next = from.after(&first);
    let first = futures::stream::iter((!first.events.is_empty()).then_some(Ok(first)));
    let rest = unfold(next, move |cursor| {
        let (node, view) = (node.clone(), view.clone());
        async move {
            let cursor = cursor?;
            match next_page(&node, &view, &call, &cursor).await {
                Ok(page) => {
                    let next = cursor.after(&page);
                    Some((Ok(page), next))
                }
                Err(e) => Some((Err(Status::from(e)), None)),
            }
        }
    });
    first.chain(rest).map(move |page| page.map(|p| response(&stream, p))).boxed()
}

async fn next_page(
    node: &Node,
    view: &ReplicaView,
    call: &Call,
    cursor: &Cursor,
) -> Result<EventPage, ApiError> {
    if node.info.stopping.is_cancelled() {
        return Err(ApiError::NodeStopping);
    }
    let cursor = cursor.clone();
    read_on_thread(node, view, &call.step(), move |reader| cursor.page(reader)).await
}

fn response(stream: &str, page: EventPage) -> v1::ReadResponse {
    let events = page.events.into_iter().map(|(revision, e)| recorded(stream, revision, e));
    v1::ReadResponse { events: events.collect() }
}

fn recorded(stream: &str, revision: u64, e: EventRecord) -> v1::RecordedEvent {
    v1::RecordedEvent {
        id: e.id,
        r#type: e.r#type,
        schema_version: e.schema_version,
        content_type: shown_content_type(e.content_type),
        data: e.data,
        metadata: e.metadata,
        stream: stream.to_string(),
        revision,
        position: e.position,
        recorded_at_ms: e.recorded_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_ends_with_the_stream_or_with_the_count() {
        let page = |count, next| EventPage {
            events: (0..count).map(|i| (i, EventRecord::default())).collect(),
            next,
        };
        let cursor = |left| Cursor { stream: "a-1".into(), from: None, backwards: false, left };
        let next = cursor(u64::MAX).after(&page(3, Some(3))).unwrap();
        assert_eq!(next.from, Some(3));
        assert!(cursor(u64::MAX).after(&page(3, None)).is_none());
        assert!(cursor(3).after(&page(3, Some(3))).is_none());
        assert_eq!(cursor(5).after(&page(3, Some(3))).unwrap().left, 2);
    }

    #[test]
    fn a_failed_fold_shows_the_last_good_state_and_its_error() {
        let record = StreamRecord {
            revision: 9,
            error_revision: 7,
            error_message: "no object".into(),
            good_revision: 6,
            state: "{}".into(),
            ..Default::default()
        };
        let state = state("a-1".into(), record);
        assert_eq!((state.revision, state.content_type.as_str()), (6, "application/json"));
        assert_eq!(state.error.unwrap().revision, 7);
    }

    #[test]
    fn a_deleted_stream_is_not_found() {
        let deleted = StreamRecord { tombstone: true, ..Default::default() };
        assert!(lookup_response("a-1".into(), Some(deleted)).is_err());
        assert!(lookup_response("a-1".into(), None).is_err());
    }
}
