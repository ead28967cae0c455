//! Connections of clients, past their TLS handshake where there is one.
use futures::Stream;
use ringfold_tls::{Protocol, Role, Tls};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes under way; further connections wait.
const HANDSHAKES_MAX: usize = 256;
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
) -> impl Stream<Item = io::Result<ClientStream>> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        tokio::select! {
            () = sender.closed() => {}
            () = accept(&listener, tls.as_ref(), &sender) => {}
        }
    });
    ReceiverStream::new(receiver)
}

type Sender = mpsc::Sender<io::Result<ClientStream>>;

async fn accept(listener: &TcpListener, tls: Option<&Tls>, sender: &Sender) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "the port for clients cannot take a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.cloned(), sender.clone());
        let handshake = async move {
            match handshake(tcp, tls.as_ref()).await {
                Ok(stream) => _ = sender.send(Ok(stream)).await,
                Err(error) => tracing::debug!(%error, "a client's connection was refused"),
            }
            drop(place);
        };
        tokio::spawn(handshake);
    }
}

async fn handshake(tcp: TcpStream, tls: Option<&Tls>) -> io::Result<ClientStream> {
    tcp.set_nodelay(true)?;
    let accepted = ringfold_tls::Stream::accepted(tcp, tls, Protocol::Http2);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted).await {
        Ok(stream) => stream.map(ClientStream),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
