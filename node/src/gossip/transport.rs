//! chitchat's transport: UDP, and nothing gets to chitchat that a node of this cluster did not seal.
//! chitchat has assertions that a forged message reaches, and no authentication of its own.
use super::datagram::{DATAGRAM_BYTES_MAX, Opener, Party, Refused, Sealer};
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;

/// After so many refused datagrams in a row the socket rests: a flood fills the kernel's buffer,
/// and does not take a core.
const REFUSED_IN_A_ROW_MAX: u32 = 64;
const REST: Duration = Duration::from_millis(1);
const REST_AFTER_ERROR: Duration = Duration::from_millis(50);

/// Counted since the start; for status and metrics.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    send_failures: AtomicU64,
    send_too_large: AtomicU64,
    received: AtomicU64,
    receive_failures: AtomicU64,
    dropped_malformed: AtomicU64,
    dropped_foreign_cluster: AtomicU64,
    dropped_own: AtomicU64,
    dropped_wrong_key: AtomicU64,
    dropped_replayed: AtomicU64,
    /// Sealed by a node of this cluster, and no message of this version.
    dropped_undecodable: AtomicU64,
    /// Starts of chitchat after the first.
    pub restarts: AtomicU64,
}

impl Counters {
    /// Names and values.
    pub fn values(&self) -> Vec<(&'static str, u64)> {
        [
            ("gossip_sent", &self.sent),
            ("gossip_send_failures", &self.send_failures),
            ("gossip_send_too_large", &self.send_too_large),
            ("gossip_received", &self.received),
            ("gossip_receive_failures", &self.receive_failures),
            ("gossip_dropped_malformed", &self.dropped_malformed),
            ("gossip_dropped_foreign_cluster", &self.dropped_foreign_cluster),
            ("gossip_dropped_own", &self.dropped_own),
            ("gossip_dropped_wrong_key", &self.dropped_wrong_key),
            ("gossip_dropped_replayed", &self.dropped_replayed),
            ("gossip_dropped_undecodable", &self.dropped_undecodable),
            ("gossip_restarts", &self.restarts),
        ]
        .map(|(name, n)| (name, n.load(Ordering::Relaxed)))
        .into()
    }

    fn refused(&self, why: Refused) -> &AtomicU64 {
        match why {
            Refused::Malformed => &self.dropped_malformed,
            Refused::ForeignCluster => &self.dropped_foreign_cluster,
            Refused::OwnSender => &self.dropped_own,
            Refused::WrongKey => &self.dropped_wrong_key,
            Refused::Replayed => &self.dropped_replayed,
        }
    }
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Seals as one generation. The opener outlives it: what was seen stays seen.
pub struct SealedTransport {
    pub socket: Arc<UdpSocket>,
    pub party: Party,
    pub generation: u64,
    pub opener: Arc<Mutex<Opener>>,
    pub counters: Arc<Counters>,
}

#[tonic::async_trait]
impl Transport for SealedTransport {
    /// The socket is bound already. To be opened once: a generation has one sealer.
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        Ok(Box::new(SealedSocket {
            is_ipv6: self.socket.local_addr()?.is_ipv6(),
            socket: self.socket.clone(),
            sealer: Sealer::new(self.party.clone(), self.generation),
            opener: self.opener.clone(),
            counters: self.counters.clone(),
            message: Vec::new(),
            datagram: Vec::new(),
            // One more: what was cut off must not look whole.
            received: vec![0; DATAGRAM_BYTES_MAX + 1].into(),
            refused_in_a_row: 0,
        }))
    }
}

struct SealedSocket {
    is_ipv6: bool,
    socket: Arc<UdpSocket>,
    sealer: Sealer,
    opener: Arc<Mutex<Opener>>,
    counters: Arc<Counters>,
    message: Vec<u8>,
    datagram: Vec<u8>,
    received: Box<[u8]>,
    refused_in_a_row: u32,
}

#[tonic::async_trait]
impl Socket for SealedSocket {
    /// Datagrams may be lost, so a failure is counted and no error: the next round tries again.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.message.clear();
        message.serialize(&mut self.message);
        if let Err(error) = self.sealer.seal(&self.message, &mut self.datagram) {
            count(&self.counters.send_too_large);
            tracing::debug!(%error, "gossip");
            return Ok(());
        }
        match self.socket.send_to(&self.datagram, mapped(to, self.is_ipv6)).await {
            Ok(_) => count(&self.counters.sent),
            Err(error) => {
                count(&self.counters.send_failures);
                tracing::debug!(%error, %to, "gossip was not sent");
            }
        }
        Ok(())
    }

    /// Cancel-safe.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            if self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX {
                self.refused_in_a_row = 0;
                tokio::time::sleep(REST).await;
            }
            let (length, from) = match self.socket.recv_from(&mut self.received).await {
                Ok(received) => received,
                Err(error) => {
                    count(&self.counters.receive_failures);
                    tracing::debug!(%error, "gossip was not received");
                    tokio::time::sleep(REST_AFTER_ERROR).await;
                    continue;
                }
            };
            match self.opened(length) {
                Ok(message) => {
                    self.refused_in_a_row = 0;
                    return Ok((from, message));
                }
                Err(()) => self.refused_in_a_row += 1,
            }
        }
    }
}

impl SealedSocket {
    /// The message in what was received. What is refused is counted, and not logged: anyone can send it.
    fn opened(&self, length: usize) -> Result<ChitchatMessage, ()> {
        let opened = self.opener.lock().open(&self.received[..length]);
        let (node, mut payload) = opened.map_err(|why| count(self.counters.refused(why)))?;
        let decoded = ChitchatMessage::deserialize(&mut payload);
        match decoded {
            Ok(message) if payload.is_empty() => {
                count(&self.counters.received);
                Ok(message)
            }
            other => {
                count(&self.counters.dropped_undecodable);
                let error = other.err().map(|e| e.to_string()).unwrap_or_default();
                tracing::warn!(%node, error, "a node sent gossip that cannot be read here");
                Err(())
            }
        }
    }
}

/// As a socket of this kind takes it.
fn mapped(address: SocketAddr, is_ipv6: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) if is_ipv6 => (v4.to_ipv6_mapped(), address.port()).into(),
        _ => address,
    }
}

#[cfg(test)]
mod tests;
