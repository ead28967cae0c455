//! Connections that are opened otherwise than by TCP, such as through a port-forward.
use std::{fmt, future::Future, io, pin::Pin, sync::Arc};

use hyper_util::rt::TokioIo;
use ringfold_tls::{Protocol, Tls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection to one node.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

type Opened = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Opens a connection to `host:port` as a node's URL names it.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn(String, u16) -> Opened + Send + Sync>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    pub fn new<F, C>(open: impl Fn(String, u16) -> F + Send + Sync + 'static) -> Connector
    where
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: Connection,
    {
        Connector(Arc::new(move |host, port| {
            let opening = open(host, port);
            Box::pin(async move { Ok(Box::new(opening.await?) as Box<dyn Connection>) })
        }))
    }

    /// By TCP, as without a connector.
    pub(crate) fn tcp() -> Connector {
        Connector::new(|host, port| async move {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// A channel that connects with its first call.
    pub(crate) fn channel(&self, endpoint: &Endpoint, tls: Option<Tls>) -> Channel {
        let open = self.0.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let host = uri.host().unwrap_or_default().to_owned();
            let default = if tls.is_some() { 443 } else { 80 };
            let opening = open(host.clone(), uri.port_u16().unwrap_or(default));
            let tls = tls.clone();
            async move {
                let stream = opening.await?;
                let Some(tls) = tls else { return Ok(TokioIo::new(stream)) };
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let (stream, _) = tls.connect(host, stream, Protocol::Http2).await?;
                io::Result::Ok(TokioIo::new(Box::new(stream) as Box<dyn Connection>))
            }
        }))
    }
}

/// A channel to one node, by TCP and with TLS where there are certificates; it connects with its first
/// call. For whoever calls the services without a [`Client`](crate::Client).
pub fn lazy_channel(endpoint: &Endpoint, tls: Option<Tls>) -> Channel {
    match tls {
        Some(_) => Connector::tcp().channel(endpoint, tls),
        None => endpoint.connect_lazy(),
    }
}
