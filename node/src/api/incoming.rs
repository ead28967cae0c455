//! Connections of clients, past their TLS handshake where there is one.
use super::handshakes::Handshakes;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;
use futures::Stream;
use ringfold_tls::{Protocol, Role, Tls};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Connections whose handshake is not done; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 1_024;
/// From a connection to the end of its handshake, also where it waits for its turn.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait for the server.
const WAITING_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// What its certificate is for; `None`: there is no TLS.
    pub role: Option<Role>,
}

pub struct ClientStream(ringfold_tls::Stream);

impl Connected for ClientStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { role: self.0.role() }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Accepts until the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Tls>,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<ClientStream>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let port = Arc::new(Port {
        tls,
        metrics,
        handshakes: Handshakes::default(),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        log: LogLimit::default(),
        sender,
    });
    tokio::spawn(async move {
        tokio::select! {
            () = port.sender.closed() => {}
            () = port.accept(&listener) => {}
        }
    });
    ReceiverStream::new(receiver)
}

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("too many connections of its address have not done their handshake")]
    Busy,
    #[error("no handshake in time")]
    Timeout,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it is closed: {0}")]
    Gone(io::Error),
}

impl Refused {
    /// As the metric names it. One that goes by itself is a health check or a port scan.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Refused::Busy => Some("busy"),
            Refused::Timeout => Some("timeout"),
            Refused::Tls(_) => Some("tls"),
            Refused::Gone(_) => None,
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Refused::Gone(error),
            _ => Refused::Tls(error),
        }
    }
}

struct Port {
    tls: Option<Tls>,
    metrics: Arc<Metrics>,
    handshakes: Handshakes,
    handshake_timeout: Duration,
    log: LogLimit,
    sender: mpsc::Sender<io::Result<ClientStream>>,
}

impl Port {
    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((tcp, address)) => {
                    let port = self.clone();
                    tokio::spawn(async move {
                        port.take(tcp, address).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    if self.log.allows() {
                        tracing::warn!(%error, "the port for clients cannot take a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn take(&self, tcp: TcpStream, address: SocketAddr) {
        let handshake = self.handshake(tcp, address);
        let done = tokio::time::timeout(self.handshake_timeout, handshake).await;
        let refused = match done.unwrap_or(Err(Refused::Timeout)) {
            Ok(stream) => {
                let _ = self.sender.send(Ok(stream)).await;
                return;
            }
            Err(refused) => refused,
        };
        let Some(reason) = refused.reason() else { return };
        self.metrics.handshake_refused(reason);
        if self.log.allows() {
            tracing::warn!(%address, error = %refused, "refused a client's connection");
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> Result<ClientStream, Refused> {
        tcp.set_nodelay(true).map_err(Refused::Gone)?;
        let accepted = ringfold_tls::Stream::accepted(tcp, self.tls.as_ref(), Protocol::Http2);
        if self.tls.is_none() {
            return Ok(ClientStream(accepted.await?));
        }
        let entered = self.handshakes.enter(address.ip()).ok_or(Refused::Busy)?;
        let _turn = entered.turn().await;
        Ok(ClientStream(accepted.await?))
    }
}

#[cfg(test)]
mod tests;
