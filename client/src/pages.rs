//! Long answers: pages of a server stream, asked for again after the last item when it breaks.
use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use futures::{Stream, StreamExt as _, stream};
use ringfold_proto::v1;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    Client, ClientError,
    client::{event_store, no_answer},
    error::ServerError,
    nodes::Node,
    retry::{Tries, backoff},
};

/// A request that is answered in pages of items.
pub(crate) trait Paged: Clone + Send + 'static {
    type Page: Send + 'static;
    type Item: Send + 'static;
    fn open(
        self,
        channel: Channel,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Page>>, Status>> + Send;
    /// The stream that it is about, if one.
    fn stream(&self) -> Option<&str>;
    fn items(page: Self::Page) -> Vec<Self::Item>;
    fn position(item: &Self::Item) -> u64;
    fn max_count(&mut self) -> &mut u64;
    /// Asks for what comes after `last`. `false`: nothing does.
    fn go_on_after(&mut self, last: &Self::Item) -> bool;
}

impl Paged for v1::ReadRequest {
    type Page = v1::ReadResponse;
    type Item = v1::RecordedEvent;
    async fn open(self, channel: Channel) -> Result<Response<Streaming<Self::Page>>, Status> {
        event_store(channel).read(Request::new(self)).await
    }
    fn stream(&self) -> Option<&str> {
        Some(&self.stream)
    }
    fn items(page: Self::Page) -> Vec<Self::Item> {
        page.events
    }
    fn position(item: &Self::Item) -> u64 {
        item.position
    }
    fn max_count(&mut self) -> &mut u64 {
        &mut self.max_count
    }
    fn go_on_after(&mut self, last: &Self::Item) -> bool {
        self.from_revision = if self.backwards {
            last.revision.checked_sub(1)
        } else {
            last.revision.checked_add(1)
        };
        self.from_revision.is_some()
    }
}

impl Paged for v1::ListStreamsRequest {
    type Page = v1::ListStreamsResponse;
    type Item = v1::StreamInfo;
    async fn open(self, channel: Channel) -> Result<Response<Streaming<Self::Page>>, Status> {
        event_store(channel).list_streams(Request::new(self)).await
    }
    fn stream(&self) -> Option<&str> {
        None
    }
    fn items(page: Self::Page) -> Vec<Self::Item> {
        page.streams
    }
    fn position(item: &Self::Item) -> u64 {
        item.position
    }
    fn max_count(&mut self) -> &mut u64 {
        &mut self.max_count
    }
    fn go_on_after(&mut self, last: &Self::Item) -> bool {
        self.after.clone_from(&last.stream);
        true
    }
}

impl Paged for v1::ListStatesRequest {
    type Page = v1::ListStatesResponse;
    type Item = v1::State;
    async fn open(self, channel: Channel) -> Result<Response<Streaming<Self::Page>>, Status> {
        event_store(channel).list_states(Request::new(self)).await
    }
    fn stream(&self) -> Option<&str> {
        None
    }
    fn items(page: Self::Page) -> Vec<Self::Item> {
        page.states
    }
    fn position(item: &Self::Item) -> u64 {
        item.position
    }
    fn max_count(&mut self) -> &mut u64 {
        &mut self.max_count
    }
    fn go_on_after(&mut self, last: &Self::Item) -> bool {
        self.after.clone_from(&last.stream);
        true
    }
}

struct Reading<R: Paged> {
    client: Client,
    request: R,
    /// The node that is read from, and its answer once there is one.
    node: Option<Arc<Node>>,
    answer: Option<Streaming<R::Page>>,
    failed: Option<Arc<Node>>,
    ended: bool,
}

/// All items of a request. `none`: of a request that asks for none (0 means all in a message).
pub(crate) fn items<R: Paged>(
    client: Client,
    request: R,
    none: bool,
) -> Pin<Box<dyn Stream<Item = Result<R::Item, ClientError>> + Send>> {
    let reading = Reading { client, request, node: None, answer: None, failed: None, ended: none };
    let pages = stream::unfold(reading, |mut reading| async move {
        if reading.ended {
            return None;
        }
        let page = reading.next_page().await;
        let items: Vec<Result<R::Item, ClientError>> = match page {
            Ok(Some(items)) => items.into_iter().map(Ok).collect(),
            Ok(None) => return None,
            Err(tries) => {
                reading.ended = true;
                vec![Err(tries.conclude_read())]
            }
        };
        Some((stream::iter(items), reading))
    });
    Box::pin(pages.flatten())
}

impl<R: Paged> Reading<R> {
    /// The next page, over all tries within the deadline. `None`: the end.
    async fn next_page(&mut self) -> Result<Option<Vec<R::Item>>, Tries> {
        let config = self.client.config().clone();
        let deadline = Instant::now() + config.deadline;
        let mut tries = Tries::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Half of the deadline leaves room to ask another node; a page may be long in the making.
            let within = left.min(config.retry.try_timeout.max(config.deadline / 2));
            let error = match tokio::time::timeout(within, self.try_next()).await {
                Ok(Ok(page)) => return Ok(page.map(|p| self.take(p))),
                Ok(Err(status)) => Some(ServerError::from(status)),
                Err(_) => None,
            };
            self.answer = None;
            self.failed = self.node.take();
            let Some(node) = &self.failed else {
                return Ok(None); // not reached: a try begins with a node
            };
            let error = error.unwrap_or_else(|| no_answer(node, within));
            let partition = self.request.stream().and_then(|s| self.client.map().partition_of(s));
            self.client.take_failure(node, partition, &error);
            if !tries.failed(error) {
                return Err(tries);
            }
            let wait = backoff(&config.retry, tries.count, rand::random());
            if Instant::now() + wait >= deadline {
                return Err(tries);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn try_next(&mut self) -> Result<Option<R::Page>, Status> {
        let answer = match &mut self.answer {
            Some(answer) => answer,
            None => {
                let failed = self.failed.as_ref();
                let (_, node) = self.client.route(self.request.stream(), failed);
                let channel = self.node.insert(node).channel();
                let answer = self.request.clone().open(channel).await?;
                self.answer.insert(answer.into_inner())
            }
        };
        answer.message().await
    }

    /// Takes a page in, so that a next try asks for what follows it.
    fn take(&mut self, page: R::Page) -> Vec<R::Item> {
        self.failed = None;
        let items = R::items(page);
        let Some(last) = items.last() else {
            return items;
        };
        let position = items.iter().map(R::position).max().unwrap_or(0);
        self.client.saw_position(position);
        let goes_on = self.request.go_on_after(last);
        let max_count = self.request.max_count();
        let counted = *max_count > 0;
        *max_count = max_count.saturating_sub(items.len() as u64);
        self.ended = !goes_on || (counted && *max_count == 0);
        items
    }
}
