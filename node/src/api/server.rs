//! The port for clients: services, health, reflection, and the transport's bounds.
use super::catch::CatchPanics;
use super::cluster::Clusters;
use super::events::Events;
use super::incoming::incoming;
use super::node::Node;
use ringfold_proto::v1::cluster_server::ClusterServer;
use ringfold_proto::v1::event_store_server::EventStoreServer;
use ringfold_tls::Tls;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Calls in flight on one connection.
const CONCURRENT_STREAMS_MAX: u32 = 1_024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections get so long to end what is in flight once the node stops.
const GRACE: Duration = Duration::from_secs(5);
/// Health follows what no one tells of, a lost disk, within this time.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the descriptors for reflection cannot be read: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the port for clients failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves clients, with TLS only where there are certificates, until `shutdown`, then ends what is in flight, for five seconds at most.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    node: Arc<Node>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(ringfold_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let message_bytes = node.limits.message_bytes();
    let events = EventStoreServer::new(Events { node: node.clone() })
        .max_decoding_message_size(message_bytes);
    let metrics = node.metrics.clone();
    let clusters = ClusterServer::new(Clusters { node: node.clone(), has_tls: tls.is_some() });

    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let mut stopped_too = stop.subscribe();
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(tower::layer::layer_fn(CatchPanics))
        .add_service(events)
        .add_service(clusters)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming(listener, tls, metrics), async move {
            let _ = stopped.wait_for(|s| *s).await;
        });
    let mut server = pin!(server);
    let mut health = pin!(report_health(health, node));
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        () = &mut health => {}
        () = shutdown => {}
    }
    stop.send_replace(true);
    tokio::select! {
        ended = server => Ok(ended?),
        // Streams without an end, such as a watch of health, hold their connections open.
        () = async {
            let _ = stopped_too.wait_for(|s| *s).await;
            tokio::time::sleep(GRACE).await;
        } => Ok(()),
        () = health => Ok(()),
    }
}

/// Keeps the health of all services what the node's is. Never ends.
async fn report_health(reporter: HealthReporter, node: Arc<Node>) {
    const SERVICES: [&str; 3] = ["", "ringfold.v1.EventStore", "ringfold.v1.Cluster"];
    let mut meta = node.meta.clone();
    let mut before = None;
    loop {
        let serving = node.is_serving();
        if before != Some(serving) {
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in SERVICES {
                reporter.set_service_status(service, status).await;
            }
            before = Some(serving);
        }
        tokio::select! {
            // An error: the meta group's machine is gone, and the timer remains.
            Ok(()) = meta.changed() => {}
            () = node.info.stopping.cancelled(), if serving => {}
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
        }
    }
}
