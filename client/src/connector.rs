//! Connections that are opened otherwise than by TCP, such as through a port-forward.
use std::{fmt, future::Future, io, pin::Pin, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
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

    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        let open = self.0.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let host = uri.host().unwrap_or_default().to_owned();
            let opening = open(host, uri.port_u16().unwrap_or(80));
            async move { opening.await.map(TokioIo::new) }
        }))
    }
}
