//! The `EventStore` service: checks requests and hands them on.
use super::append::AppendOne;
use super::append_stream::Appends;
use super::deadline::Call;
use super::errors::ApiError;
use super::list::{Query, list};
use super::node::Node;
use super::read::{Freshness, Lookup, Pages, ReadStream, lookup_at_once, lookup_response};
use super::validate;
use crate::metrics::Measured;
use crate::router::{Routed, route};
use ringfold_proto::v1;
use ringfold_proto::v1::event_store_server::EventStore;
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status, Streaming};

pub struct Events {
    pub node: Arc<Node>,
}

impl Events {
    /// Partition and freshness of a checked read of one stream.
    fn target(
        &self,
        stream: &str,
        consistency: i32,
        min_position: u64,
    ) -> Result<(u32, Freshness), ApiError> {
        validate::stream_name(stream, &self.node.limits)?;
        let consistency = validate::consistency(consistency)?;
        let partition = validate::partition_of(stream, self.node.partitions()?);
        validate::min_position(min_position, partition)?;
        Ok((partition, Freshness { consistency, min_position }))
    }

    async fn append_one(
        &self,
        request: v1::AppendRequest,
        call: &Call,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        validate::append(&request, &self.node.limits)?;
        let partition = validate::partition_of(&request.stream, self.node.partitions()?);
        let append = AppendOne { request: &request, partition };
        Ok(route(&self.node, partition, call, &append).await?.into_response(|r| r))
    }

    async fn lookup_one(
        &self,
        request: v1::LookupRequest,
        call: &Call,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let (partition, freshness) =
            self.target(&request.stream, request.consistency, request.min_position)?;
        let found = lookup_at_once(&self.node, partition, &request.stream, freshness)
            .map_err(ApiError::from)?;
        if let Some(record) = found {
            let response = lookup_response(request.stream, record)?;
            return Ok(Routed::here(response).into_response(|r| r));
        }
        let lookup = Lookup { request: &request, freshness };
        // Boxed, so that the short way above stays small.
        let long = Box::pin(route(&self.node, partition, call, &lookup));
        Ok(long.await?.into_response(|r| r))
    }

    fn list_freshness(&self, consistency: i32) -> Result<Freshness, ApiError> {
        Ok(Freshness { consistency: validate::consistency(consistency)?, min_position: 0 })
    }

    fn check_list(&self, query: &Query) -> Result<(), ApiError> {
        let limits = &self.node.limits;
        if !query.category.is_empty() {
            validate::category("category", &query.category, limits)?;
        }
        validate::optional_name("prefix", &query.prefix, limits)?;
        validate::optional_name("after", &query.after, limits)
    }
}

#[tonic::async_trait]
impl EventStore for Events {
    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        let since = Instant::now();
        let call = Call::of(request.metadata())?;
        let answer = self.append_one(request.into_inner(), &call).await;
        if !call.forwarded {
            self.node.metrics.answered(Measured::Append, since, &answer);
        }
        answer
    }

    type AppendStreamStream = Appends<Streaming<v1::AppendStreamRequest>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<v1::AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let call = Call::of(request.metadata())?;
        let partitions = self.node.partitions()?;
        Ok(Response::new(Appends::new(self.node.clone(), partitions, call, request.into_inner())))
    }

    type ReadStream = Pages<v1::ReadResponse>;

    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let call = Call::of(request.metadata())?;
        let request = request.into_inner();
        let (partition, freshness) =
            self.target(&request.stream, request.consistency, request.min_position)?;
        let read = ReadStream { request: &request, freshness };
        Ok(route(&self.node, partition, &call, &read).await?.into_response(|pages| pages))
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let since = Instant::now();
        let call = Call::of(request.metadata())?;
        let answer = self.lookup_one(request.into_inner(), &call).await;
        if !call.forwarded {
            self.node.metrics.answered(Measured::Lookup, since, &answer);
        }
        answer
    }

    type ListStreamsStream = Pages<v1::ListStreamsResponse>;

    async fn list_streams(
        &self,
        request: Request<v1::ListStreamsRequest>,
    ) -> Result<Response<Self::ListStreamsStream>, Status> {
        let call = Call::of(request.metadata())?;
        let v1::ListStreamsRequest { category, prefix, after, max_count, consistency, partition } =
            request.into_inner();
        let freshness = self.list_freshness(consistency)?;
        let query = Query { category, prefix, after, max_count, freshness, partition };
        self.check_list(&query)?;
        Ok(Response::new(list::<v1::StreamInfo>(self.node.clone(), call, query).await?))
    }

    type ListStatesStream = Pages<v1::ListStatesResponse>;

    async fn list_states(
        &self,
        request: Request<v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        let call = Call::of(request.metadata())?;
        let v1::ListStatesRequest { category, prefix, after, max_count, consistency, partition } =
            request.into_inner();
        let freshness = self.list_freshness(consistency)?;
        let query = Query { category, prefix, after, max_count, freshness, partition };
        self.check_list(&query)?;
        Ok(Response::new(list::<v1::State>(self.node.clone(), call, query).await?))
    }
}
