//! What gRPC alone costs: a bare tonic server that answers lookups from a map, and load for it.
use std::{collections::HashMap, net::SocketAddr, pin::Pin, sync::Arc};

use anyhow::Context as _;
use futures::Stream;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use ringfold_proto::v1::{
    self,
    event_store_client::EventStoreClient,
    event_store_server::{EventStore, EventStoreServer},
};
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};

use crate::{
    load::document,
    measure::{self, LoadArgs, Report},
};

#[derive(Clone, Debug, clap::Args)]
pub struct EchoArgs {
    /// Streams in the map
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Bytes of each state
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    pub bytes: u32,
}

struct Echo {
    states: HashMap<String, v1::State>,
}

fn name(n: u32) -> String {
    format!("bench_echo-{n}")
}

type Nothing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn only_lookups<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the echo server answers lookups only"))
}

#[tonic::async_trait]
impl EventStore for Echo {
    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let state = self.states.get(&request.get_ref().stream);
        let state = state.ok_or_else(|| Status::not_found("no such stream"))?;
        Ok(Response::new(v1::LookupResponse { state: Some(state.clone()) }))
    }
    async fn append(
        &self,
        _: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        only_lookups()
    }
    type AppendStreamStream = Nothing<v1::AppendStreamResponse>;
    async fn append_stream(
        &self,
        _: Request<Streaming<v1::AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        only_lookups()
    }
    type ReadStream = Nothing<v1::ReadResponse>;
    async fn read(
        &self,
        _: Request<v1::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        only_lookups()
    }
    type ListStreamsStream = Nothing<v1::ListStreamsResponse>;
    async fn list_streams(
        &self,
        _: Request<v1::ListStreamsRequest>,
    ) -> Result<Response<Self::ListStreamsStream>, Status> {
        only_lookups()
    }
    type ListStatesStream = Nothing<v1::ListStatesResponse>;
    async fn list_states(
        &self,
        _: Request<v1::ListStatesRequest>,
    ) -> Result<Response<Self::ListStatesStream>, Status> {
        only_lookups()
    }
}

/// Serves until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(listen: SocketAddr, args: &EchoArgs) -> anyhow::Result<()> {
    let states = (0..args.streams)
        .map(|n| {
            let state = v1::State {
                stream: name(n),
                data: document(n.into(), args.bytes),
                content_type: "application/json".into(),
                revision: 1,
                position: 1 << 50,
                recorded_at_ms: 1 << 40,
                generation: 1,
                error: None,
            };
            (name(n), state)
        })
        .collect();
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_service(EventStoreServer::new(Echo { states }))
        .serve(listen)
        .await
        .with_context(|| format!("cannot serve on {listen}"))
}

/// Lookups of an echo server.
///
/// # Errors
/// It cannot be reached.
pub async fn load(
    endpoint: &str,
    channels: u32,
    load: &LoadArgs,
    args: &EchoArgs,
) -> anyhow::Result<Report> {
    let mut clients = Vec::new();
    for _ in 0..channels {
        let channel = Endpoint::from_shared(endpoint.to_owned())?
            .tcp_nodelay(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .connect()
            .await
            .with_context(|| format!("no echo server at {endpoint}"))?;
        clients.push(EventStoreClient::new(channel));
    }
    let names: Arc<[String]> = (0..args.streams).map(name).collect();
    let report = measure::calls("echo", load, |worker| {
        let client = clients[worker as usize % clients.len()].clone();
        let names = names.clone();
        let mut rng = SmallRng::seed_from_u64(worker.into());
        move || {
            let mut client = client.clone();
            let request = v1::LookupRequest {
                stream: names[rng.random_range(0..names.len())].clone(),
                ..Default::default()
            };
            async move {
                match client.lookup(request).await {
                    Ok(_) => Ok(0),
                    Err(e) => Err(e.to_string()),
                }
            }
        }
    })
    .await;
    Ok(report)
}
