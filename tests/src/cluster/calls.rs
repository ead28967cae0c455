//! Channels to nodes, and calls with a bound.
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use ringfold_tls::{Protocol, Stream, Tls};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt;

pub(crate) const LOOPBACK: &str = "127.0.0.1";
const CONNECT_MAX: Duration = Duration::from_secs(1);
pub(crate) const RPC_MAX: Duration = Duration::from_secs(5);

/// A request with its deadline said to the server.
pub fn timed<T>(message: T, max: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(max);
    request
}

/// Waits for an answer a little longer than the server was told to: a paused one says nothing.
///
/// # Errors
/// The call's own, or DEADLINE_EXCEEDED.
pub async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    max: Duration,
) -> Result<T, tonic::Status> {
    match tokio::time::timeout(max + Duration::from_millis(500), call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
    }
}

/// The reason of an error's ErrorInfo, empty when it has none.
pub fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A field of an error's ErrorInfo.
pub fn detail(status: &tonic::Status, field: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(field).cloned()
}

pub fn channel(port: u16) -> Channel {
    channel_to(LOOPBACK, port, None)
}

/// With whatever certificate a test likes.
pub fn channel_to(host: &str, port: u16, tls: Option<Tls>) -> Channel {
    let endpoint = Endpoint::from_shared(url(host, port, tls.is_some())).unwrap();
    let endpoint = endpoint.connect_timeout(CONNECT_MAX);
    let Some(tls) = tls else { return endpoint.connect_lazy() };
    let host = host.to_owned();
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let opened = async {
                let tcp = TcpStream::connect((host.as_str(), port)).await?;
                Stream::opened(tcp, &host, Some(&tls), Protocol::Http2).await
            };
            tokio::time::timeout(CONNECT_MAX, opened).await?.map(TokioIo::new)
        }
    }))
}

pub(super) fn url(host: &str, port: u16, is_secure: bool) -> String {
    format!("http{}://{host}:{port}", if is_secure { "s" } else { "" })
}

pub fn store_client(channel: Channel) -> EventStoreClient<Channel> {
    EventStoreClient::new(channel)
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20)
}
