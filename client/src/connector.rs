//! How connections to nodes are opened: by TCP, or otherwise, such as through a port-forward.
use std::{fmt, future::Future, io, pin::Pin, sync::Arc};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use ringfold_tls::{Protocol, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service as _;

/// A connection to one node.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

type Opened = Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>>;

/// Opens a connection to `host:port` as a node's URL names it: an IPv6 address has its brackets.
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

    /// A channel that connects with its first call.
    pub(crate) fn channel(&self, endpoint: &Endpoint, tls: Option<Tls>) -> Channel {
        let open = self.0.clone();
        let default_port = if tls.is_some() { 443 } else { 80 };
        let open = move |uri: &Uri| {
            let host = uri.host().unwrap_or_default();
            open(host.to_owned(), uri.port_u16().unwrap_or(default_port))
        };
        match tls {
            Some(tls) => secure_channel(endpoint, tls, open),
            None => endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let opening = open(&uri);
                async move { opening.await.map(TokioIo::new) }
            })),
        }
    }
}

/// A channel to one node, by TCP and with TLS where there are certificates; it connects with its first
/// call. For whoever calls the services without a [`Client`](crate::Client).
pub fn lazy_channel(endpoint: &Endpoint, tls: Option<Tls>) -> Channel {
    let Some(tls) = tls else { return endpoint.connect_lazy() };
    let http = http_connector(endpoint);
    secure_channel(endpoint, tls, move |uri| {
        let opening = http.clone().call(uri.clone());
        async move { Ok(opening.await.map_err(io::Error::other)?.into_inner()) }
    })
}

/// The same as an endpoint's own, which it does not give away.
fn http_connector(endpoint: &Endpoint) -> HttpConnector {
    let mut http = HttpConnector::new();
    // TLS is not its business.
    http.enforce_http(false);
    http.set_nodelay(endpoint.get_tcp_nodelay());
    http.set_keepalive(endpoint.get_tcp_keepalive());
    http.set_keepalive_interval(endpoint.get_tcp_keepalive_interval());
    http.set_keepalive_retries(endpoint.get_tcp_keepalive_retries());
    // Divided among a host's addresses; the endpoint bounds it all, with the handshake.
    http.set_connect_timeout(endpoint.get_connect_timeout());
    http
}

/// TLS over whatever `open` opens.
fn secure_channel<F, C>(
    endpoint: &Endpoint,
    tls: Tls,
    open: impl Fn(&Uri) -> F + Send + 'static,
) -> Channel
where
    F: Future<Output = io::Result<C>> + Send + 'static,
    C: Connection,
{
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let (tls, opening) = (tls.clone(), open(&uri));
        async move {
            let host = uri.host().unwrap_or_default();
            let (stream, _) = tls.connect(host, opening.await?, Protocol::Http2).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringfold_proto::v1::{TopologyRequest, cluster_client::ClusterClient};
    use ringfold_tls::{
        Pem, Role,
        issue::{Authority, Subject},
    };
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
    const WITHIN: Duration = Duration::from_secs(20);

    /// For loopback; server's and client's in one.
    fn certificate() -> Tls {
        let forever_s = 100 * 365 * 86_400;
        let ca = Authority::new("ours", 0, forever_s).unwrap();
        let subject = Subject {
            name: "it",
            hosts: &["localhost", "127.0.0.1", "::1"].map(str::to_owned),
            role: Role::Node,
            not_before_unix_s: 0,
            not_after_unix_s: forever_s,
        };
        let issued = ca.issue(&subject).unwrap();
        let pem =
            Pem { cert: issued.cert.into(), key: issued.key.into(), ca: ca.issued.cert.into() };
        Tls::from_pem("the test's", &pem).unwrap()
    }

    /// Whether a call to `https://host` or `http://host` comes to the listener.
    async fn comes(listener: &TcpListener, host: &str, tls: Option<&Tls>) -> io::Result<()> {
        let port = listener.local_addr()?.port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}")).unwrap();
        let channel = lazy_channel(&endpoint.connect_timeout(WITHIN), tls.cloned());
        let call = tokio::spawn(async move {
            ClusterClient::new(channel).topology(TopologyRequest {}).await.map(|_| ())
        });
        let taken = async {
            let (mut tcp, _) = listener.accept().await?;
            let mut begin = vec![0; PREFACE.len()];
            match tls {
                Some(tls) => {
                    let (mut stream, _) = tls.accept(tcp, Protocol::Http2).await?;
                    stream.read_exact(&mut begin).await?;
                }
                None => _ = tcp.read_exact(&mut begin).await?,
            }
            assert_eq!(begin, PREFACE);
            io::Result::Ok(())
        };
        let taken = tokio::time::timeout(WITHIN, taken).await?;
        call.abort();
        taken
    }

    #[tokio::test]
    async fn names_and_addresses_are_connected_to_with_and_without_tls() {
        let tls = certificate();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for host in ["127.0.0.1", "localhost"] {
            comes(&listener, host, None).await.unwrap();
            comes(&listener, host, Some(&tls)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_ipv6_address_is_connected_to_with_and_without_tls() {
        let listener = match TcpListener::bind("[::1]:0").await {
            Ok(listener) => listener,
            Err(why) => {
                eprintln!("NOT RUN: this machine has no ::1: {why}");
                return;
            }
        };
        let tls = certificate();
        comes(&listener, "[::1]", None).await.unwrap();
        comes(&listener, "[::1]", Some(&tls)).await.unwrap();
    }

    #[tokio::test]
    async fn a_connector_of_ones_own_gets_the_host_as_the_url_has_it() {
        let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
        let connector = Connector::new(move |host, port| {
            let _ = asked.send((host, port));
            std::future::ready(Err::<tokio::io::DuplexStream, _>(io::ErrorKind::NotFound.into()))
        });
        for (url, tls, is) in [
            ("http://demo-0.demo", None, ("demo-0.demo", 80)),
            ("https://demo-0.demo", Some(certificate()), ("demo-0.demo", 443)),
            ("http://[::1]:2600", None, ("[::1]", 2_600)),
        ] {
            let channel = connector.channel(&Endpoint::from_static(url), tls);
            assert!(ClusterClient::new(channel).topology(TopologyRequest {}).await.is_err());
            assert_eq!(was_asked.recv().await, Some((is.0.to_owned(), is.1)));
        }
    }
}
