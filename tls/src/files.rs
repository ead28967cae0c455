//! Certificate, key and authorities, from files.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// Names of the parts in a folder, and in Secrets of the type `kubernetes.io/tls`.
pub const CERT_NAME: &str = "tls.crt";
pub const KEY_NAME: &str = "tls.key";
pub const CA_NAME: &str = "ca.crt";

/// Where a process has its certificates from, each PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Its certificate, and those between it and the authority.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities whose certificates are accepted: more than one while they are replaced.
    pub ca: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read: {reason}")]
    Read { path: String, reason: String },
    #[error("{path} must hold {expected} in PEM: {reason}")]
    Pem { path: String, expected: &'static str, reason: String },
    #[error("the certificates do not belong together: {0}")]
    Unusable(String),
}

/// The same, read already.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
    pub ca: Vec<u8>,
}

pub(crate) struct Loaded {
    /// Of the content of all files.
    pub fingerprint: blake3::Hash,
    pub authorities: String,
    pub http2_server: Arc<ServerConfig>,
    pub peer_server: Arc<ServerConfig>,
    pub http2_client: Arc<ClientConfig>,
    pub peer_client: Arc<ClientConfig>,
}

/// Tells authorities from others: the first 16 hexadecimal digits of the BLAKE3 of their PEM.
pub fn authorities_id(pem: &[u8]) -> String {
    blake3::hash(pem).to_hex()[..16].to_owned()
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}

impl Files {
    /// Those of a folder with one certificate.
    pub fn in_folder(folder: &Path) -> Files {
        Files::named(|name| folder.join(name))
    }

    pub(crate) fn named(part: impl Fn(&str) -> PathBuf) -> Files {
        Files { cert: part(CERT_NAME), key: part(KEY_NAME), ca: part(CA_NAME) }
    }

    pub(crate) fn load(&self) -> Result<Loaded, TlsError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| TlsError::Read {
                path: path.display().to_string(),
                reason: e.to_string(),
            })
        };
        let pem = Pem { cert: read(&self.cert)?, key: read(&self.key)?, ca: read(&self.ca)? };
        pem.load(self)
    }
}

impl Pem {
    /// Of parts that are asked for by their names.
    ///
    /// # Errors
    /// That of the first part that is not there.
    pub fn of_parts<E>(part: impl Fn(&str) -> Result<Vec<u8>, E>) -> Result<Pem, E> {
        Ok(Pem { cert: part(CERT_NAME)?, key: part(KEY_NAME)?, ca: part(CA_NAME)? })
    }

    /// `from`: what errors call the parts.
    pub(crate) fn load(&self, from: &Files) -> Result<Loaded, TlsError> {
        let Pem { cert, key, ca } = self;
        let mut hasher = blake3::Hasher::new();
        for content in [cert, key, ca] {
            hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(&from.ca, ca)? {
            roots.add(authority).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&from.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| TlsError::Pem {
            path: from.key.display().to_string(),
            expected: "a private key",
            reason: e.to_string(),
        })?;
        let server = |alpn: &[u8]| server(&provider, &roots, &chain, &key, alpn).map(Arc::new);
        let client = |alpn: &[u8]| client(&provider, &roots, &chain, &key, alpn).map(Arc::new);
        Ok(Loaded {
            fingerprint: hasher.finalize(),
            authorities: authorities_id(ca),
            http2_server: server(HTTP2)?,
            peer_server: server(PEER)?,
            http2_client: client(HTTP2)?,
            peer_client: client(PEER)?,
        })
    }
}

const HTTP2: &[u8] = b"h2";
const PEER: &[u8] = b"ringfold-peer";

fn certificates(path: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |reason: String| TlsError::Pem {
        path: path.display().to_string(),
        expected: "certificates",
        reason,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let all = all.map_err(|e| error(e.to_string()))?;
    match all.is_empty() {
        true => Err(error("there is none".into())),
        false => Ok(all),
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    alpn: &[u8],
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key.clone_key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    // A session that goes on would not be checked anew.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.to_vec(), key.clone_key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
