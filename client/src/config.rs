//! Settings of a client.
use std::time::Duration;

use ringfold_tls::Tls;

use crate::Connector;

/// How a [`Client`](crate::Client) reaches its cluster. Start from [`ClientConfig::new`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// URLs of some nodes, `http://host:port`. One that answers is enough: it names the others.
    pub endpoints: Vec<String>,
    /// Bound of a call over all its tries; of a `read` or a list: the longest wait for one page.
    pub deadline: Duration,
    /// Bound of opening one connection.
    pub connect_timeout: Duration,
    /// HTTP/2 connections to each node. Two keep both cores of a small machine busy.
    pub channels_per_node: usize,
    /// How connections to the nodes' URLs are opened; `None`: by TCP.
    pub connector: Option<Connector>,
    /// Certificates for nodes whose URLs begin with https. A client reads their files anew as they change.
    pub tls: Option<Tls>,
    pub retry: RetryConfig,
    /// Sends the last position that this client saw along with each append, so that what it appends
    /// later is ordered later, whichever partitions it goes to.
    pub causal: bool,
    /// Appends of one [`Appender`](crate::Appender) that may wait for their answer.
    pub in_flight_max: usize,
    /// Bytes of events of one [`Appender`](crate::Appender) that may wait for their answer. An append
    /// that is larger goes alone.
    pub in_flight_bytes_max: usize,
}

/// When a try is given up and how long the next one waits.
#[derive(Clone, Copy, Debug)]
pub struct RetryConfig {
    /// A try without an answer for so long is given up, and another node is asked. Longer than an
    /// election takes, or each election costs every caller a try.
    pub try_timeout: Duration,
    /// Longest wait before the second try; it doubles with each further try.
    pub backoff_min: Duration,
    /// Bound of that wait.
    pub backoff_max: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            try_timeout: Duration::from_secs(2),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
        }
    }
}

impl ClientConfig {
    /// The defaults: a deadline of 10 s, two connections to each node, 1,024 appends and 16 MiB in
    /// flight.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        ClientConfig {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            channels_per_node: 2,
            connector: None,
            tls: None,
            retry: RetryConfig::default(),
            causal: false,
            in_flight_max: 1_024,
            in_flight_bytes_max: 16 << 20,
        }
    }
}
