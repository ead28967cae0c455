//! A connection: TCP, or TLS over it.
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use crate::{Protocol, Role, Tls};

/// A connection whose handshake is done.
pub struct Stream(Inner, Option<Role>);

enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Of a connection that was accepted.
    ///
    /// # Errors
    /// As [`Tls::accept`].
    pub async fn accepted(
        tcp: TcpStream,
        tls: Option<&Tls>,
        protocol: Protocol,
    ) -> io::Result<Stream> {
        let Some(tls) = tls else { return Ok(Stream(Inner::Plain(tcp), None)) };
        let (stream, role) = tls.accept(tcp, protocol).await?;
        Ok(Stream(Inner::Tls(Box::new(stream)), Some(role)))
    }

    /// Of a connection that was opened to `host`.
    ///
    /// # Errors
    /// As [`Tls::connect`].
    pub async fn opened(
        tcp: TcpStream,
        host: &str,
        tls: Option<&Tls>,
        protocol: Protocol,
    ) -> io::Result<Stream> {
        let Some(tls) = tls else { return Ok(Stream(Inner::Plain(tcp), None)) };
        let (stream, role) = tls.connect(host, tcp, protocol).await?;
        Ok(Stream(Inner::Tls(Box::new(stream)), Some(role)))
    }

    /// What the other side's certificate is for; `None`: there is no TLS.
    pub fn role(&self) -> Option<Role> {
        self.1
    }

    /// Ready once the other side has closed a connection on which it never writes.
    pub async fn broken(&mut self) -> io::Error {
        match self.read(&mut [0; 1]).await {
            Ok(0) => io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the peer"),
            Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "the peer wrote on it"),
            Err(error) => error,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Inner::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Inner::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Inner::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Inner::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    /// HTTP/2 writes heads and payloads in one call where it may.
    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Plain(s) => s.is_write_vectored(),
            Inner::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(s) => Pin::new(s).poll_flush(cx),
            Inner::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Inner::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Inner::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
