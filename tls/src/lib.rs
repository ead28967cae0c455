//! TLS between nodes, and between nodes and clients: both sides show a certificate of the cluster's own
//! authority. Certificates come from files that are read again when their content changes; connections
//! that are open go on with what they began with.
//!
//! What a certificate is for stands in it, as a URI among its names: see [`Role`].
mod files;
#[cfg(feature = "issue")]
pub mod issue;
mod role;
mod stream;
#[cfg(test)]
mod tests;

pub use files::{CA_NAME, CERT_NAME, Files, KEY_NAME, Pem, TlsError, authorities_id};
pub use role::Role;
pub use stream::Stream;

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Files are looked at so often.
pub const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// What is spoken over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Http2,
    /// Frames between nodes.
    Peer,
}

/// The certificates of this process, as they are now. Clones are the same one.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: Files,
    /// Not of files but of what was read already.
    is_given: bool,
    now: ArcSwap<files::Loaded>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.0.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them cannot be read, or they do not belong together.
    pub fn open(files: Files) -> Result<Tls, TlsError> {
        let now = ArcSwap::from_pointee(files.load()?);
        Ok(Tls(Arc::new(Shared { files, is_given: false, now })))
    }

    /// Of what was read already. `name`: what errors call it.
    ///
    /// # Errors
    /// When the parts do not belong together.
    pub fn from_pem(name: &str, pem: &Pem) -> Result<Tls, TlsError> {
        let files = Files::named(|part| format!("{part} of {name}").into());
        let now = ArcSwap::from_pointee(pem.load(&files)?);
        Ok(Tls(Arc::new(Shared { files, is_given: true, now })))
    }

    /// Takes others in place of those before; true: they are others.
    ///
    /// # Errors
    /// As [`Tls::from_pem`]; what was there before stays.
    pub fn replace(&self, pem: &Pem) -> Result<bool, TlsError> {
        self.take(pem.load(&self.0.files)?)
    }

    /// Reads the files again; true: they say something new, which holds for new connections.
    ///
    /// # Errors
    /// As [`Tls::open`]; what was read before stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        self.take(self.0.files.load()?)
    }

    fn take(&self, loaded: files::Loaded) -> Result<bool, TlsError> {
        let changed = loaded.fingerprint != self.0.now.load().fingerprint;
        if changed {
            self.0.now.store(Arc::new(loaded));
        }
        Ok(changed)
    }

    /// Reloads as the files change. Ends at once where there are none, and else never.
    pub async fn watch(self) {
        if self.0.is_given {
            return;
        }
        let mut failed = false;
        loop {
            tokio::time::sleep(RELOAD_EVERY).await;
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(changed)) => {
                    if changed {
                        tracing::info!(cert = %self.0.files.cert.display(), "certificates read anew");
                    }
                    failed = false;
                }
                // Files that are just being written are whole with the next look.
                Ok(Err(error)) if !std::mem::replace(&mut failed, true) => {
                    tracing::warn!(%error, "certificates cannot be read anew: those from before stay");
                }
                _ => {}
            }
        }
    }

    /// Hash of the authorities that are trusted now, for whoever replaces them step by step.
    pub fn authorities(&self) -> String {
        self.0.now.load().authorities.clone()
    }

    /// The handshake of a connection that was accepted, and what its certificate is for.
    ///
    /// # Errors
    /// When it shows no certificate, or none of the cluster's that is valid now.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        protocol: Protocol,
    ) -> io::Result<(TlsStream<S>, Role)> {
        let config = match protocol {
            Protocol::Http2 => self.0.now.load().http2_server.clone(),
            Protocol::Peer => self.0.now.load().peer_server.clone(),
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let role = Role::of(stream.get_ref().1.peer_certificates().and_then(|c| c.first()));
        Ok((stream.into(), role))
    }

    /// The handshake of a connection to `host`, which has to stand in the other's certificate. An IPv6
    /// address may be in brackets, as URLs have it.
    ///
    /// # Errors
    /// When its certificate is not the cluster's, not valid now, or another host's; or it does not
    /// accept this one.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
        protocol: Protocol,
    ) -> io::Result<(TlsStream<S>, Role)> {
        let config = match protocol {
            Protocol::Http2 => self.0.now.load().http2_client.clone(),
            Protocol::Peer => self.0.now.load().peer_client.clone(),
        };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let role = Role::of(stream.get_ref().1.peer_certificates().and_then(|c| c.first()));
        Ok((stream.into(), role))
    }
}
