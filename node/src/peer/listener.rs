//! Connections that peers open: the handshake, then raft messages or requests.
use super::connection::{FrameReader, GreetError, ReadFrameError, greet};
use super::control;
use super::frame::{Handshake, Kind, RAFT_FRAME_BYTES_MAX, RaftPayload, take_payload};
use super::transport::{Handlers, PEERS_MAX, Shared, count};
use crate::ids::NodeId;
use crate::log_limit::LogLimit;
use crate::raft::message::PeerMessage;
use bytes::Bytes;
use parking_lot::Mutex;
use ringfold_tls::Stream;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A peer sends a pulse each second: one that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);

/// Raft connections by who opened them: a newer one takes the place of an older, which is a dead
/// one that nobody has noticed yet. So there are never more than two for each peer.
#[derive(Default)]
struct Raft {
    connections: Mutex<HashMap<(NodeId, Kind), (u64, CancellationToken)>>,
    serial: AtomicU64,
}

pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener, handlers: Handlers) {
    let places = Arc::new(Semaphore::new(shared.settings.connections_max));
    let raft = Arc::new(Raft::default());
    let log = Arc::new(LogLimit::default());
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    let one = Connection {
                        shared: shared.clone(),
                        handlers: handlers.clone(),
                        raft: raft.clone(),
                        log: log.clone(),
                        address,
                    };
                    tokio::spawn(async move {
                        tokio::select! {
                            () = one.shared.stop.cancelled() => {}
                            () = one.run(stream, place) => {}
                        }
                    });
                }
                Err(_) => {
                    count(&shared.counters.refused_busy, 1);
                    if log.allows() {
                        tracing::warn!(%address, "too many connections on the peer port: refused one");
                    }
                }
            },
            Err(error) => {
                if log.allows() {
                    tracing::warn!(%error, "the peer port cannot take a connection");
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    handlers: Handlers,
    raft: Arc<Raft>,
    log: Arc<LogLimit>,
    address: SocketAddr,
}

impl Connection {
    async fn run(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let local = self.shared.local.get();
        let (stream, handshake) = match greet(stream, local.as_ref(), &self.shared.settings).await {
            Ok(greeted) => greeted,
            Err(error) => {
                // One that says nothing at all is a health check or a port scan.
                if !matches!(error, GreetError::Io(_)) {
                    count(&self.shared.counters.refused_handshakes, 1);
                    if self.log.allows() {
                        tracing::warn!(address = %self.address, %error, "refused a connection");
                    }
                }
                return;
            }
        };
        count(&self.shared.counters.accepted, 1);
        match handshake.kind {
            Kind::Votes | Kind::Entries => {
                drop(place);
                self.take_messages(stream, &handshake).await;
            }
            Kind::Control | Kind::Transfer => {
                let served =
                    control::serve(stream, handshake.from, &self.handlers, &self.shared.counters);
                self.ended(&handshake, served.await);
            }
        }
    }

    async fn take_messages(&self, stream: Stream, handshake: &Handshake) {
        let key = (handshake.from, handshake.kind);
        let serial = self.raft.serial.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        {
            let mut connections = self.raft.connections.lock();
            if connections.len() >= 2 * PEERS_MAX && !connections.contains_key(&key) {
                count(&self.shared.counters.refused_busy, 1);
                return;
            }
            if let Some((_, older)) = connections.insert(key, (serial, replaced.clone())) {
                older.cancel();
            }
        }
        let ended = tokio::select! {
            () = replaced.cancelled() => None,
            ended = self.messages(stream, handshake.from) => Some(ended),
        };
        {
            let mut connections = self.raft.connections.lock();
            if connections.get(&key).is_some_and(|(s, _)| *s == serial) {
                connections.remove(&key);
            }
        }
        if let Some(error) = ended {
            self.ended(handshake, error);
        }
    }

    /// Hands on the messages of one connection until it ends.
    async fn messages(&self, stream: Stream, from: NodeId) -> ReadFrameError {
        let heard = self.shared.heard(from);
        let budget_bytes = self.shared.settings.receive_bytes.min(Semaphore::MAX_PERMITS);
        let budget = Arc::new(Semaphore::new(budget_bytes));
        let mut reader = FrameReader::new(stream, RAFT_FRAME_BYTES_MAX);
        let mut messages = Vec::new();
        loop {
            let mut next = match timeout(SILENCE, reader.next()).await {
                Ok(Ok(payload)) => Some(payload),
                Ok(Err(error)) => return error,
                Err(_) => return std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
            };
            // All that is here already goes on in one call.
            while let Some(payload) = next {
                count(&self.shared.counters.received_bytes, payload.len() as u64);
                let size = payload.len().min(budget_bytes) as u32;
                let permit = match budget.clone().try_acquire_many_owned(size) {
                    Ok(permit) => permit,
                    Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                        // What is held here must not keep itself waiting.
                        self.hand_on(from, &mut messages);
                        match budget.clone().acquire_many_owned(size).await {
                            Ok(permit) => permit,
                            Err(_) => return ReadFrameError::Closed,
                        }
                    }
                };
                let held = Bytes::from_owner(Held { bytes: payload, _permit: permit });
                match take_payload(held, &mut messages) {
                    Ok(RaftPayload::Messages) => {}
                    Ok(RaftPayload::Pulse { wall_ms }) => heard.pulse(wall_ms),
                    Err(error) => return error.into(),
                }
                next = match reader.waiting() {
                    Ok(next) => next,
                    Err(error) => return error.into(),
                };
            }
            heard.now();
            self.hand_on(from, &mut messages);
        }
    }

    fn hand_on(&self, from: NodeId, messages: &mut Vec<PeerMessage>) {
        if !messages.is_empty() {
            count(&self.shared.counters.received_messages, messages.len() as u64);
            (self.handlers.messages)(from, std::mem::take(messages));
        }
    }

    fn ended(&self, handshake: &Handshake, error: ReadFrameError) {
        let (from, kind, address) = (handshake.from.0, handshake.kind, self.address);
        match error {
            ReadFrameError::Frame(error) => {
                count(&self.shared.counters.refused_frames, 1);
                if self.log.allows() {
                    tracing::warn!(from, ?kind, %address, %error, "closed a peer's connection");
                }
            }
            ReadFrameError::Closed | ReadFrameError::Io(_) => {
                tracing::debug!(from, ?kind, %address, %error, "a peer's connection ended");
            }
        }
    }
}

/// A frame whose room in the budget is free again when the last message of it is dropped.
struct Held {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
