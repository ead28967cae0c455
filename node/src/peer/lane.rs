//! The way to one peer on one channel: a bounded queue, and a task that keeps a connection and
//! writes all that waits in one go.
use super::LocalNode;
use super::address_book::Changes;
use super::connection::dial;
use super::frame::{
    FRAME_HEAD_BYTES, Handshake, Kind, MESSAGE_HEAD_BYTES, Timing, put_messages, put_pulse,
};
use super::transport::{Shared, count};
use crate::clock;
use crate::ids::NodeId;
use crate::raft::message::{Channel, PeerMessage};
use bytes::BytesMut;
use parking_lot::Mutex;
use ringfold_tls::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

const BACKOFF_MS_MIN: u64 = 50;
const BACKOFF_MS_MAX: u64 = 1_000;
/// A connection that held so long was a good one: the next attempt comes soon.
const GOOD_CONNECTION: Duration = Duration::from_secs(2);
/// Also what a peer that we still live goes by, see `transport::HEARD_NS`.
const PULSE: Duration = Duration::from_secs(1);
/// A larger write buffer is not kept.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

pub(super) struct Lane {
    pub node: NodeId,
    pub channel: Channel,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    messages: Vec<PeerMessage>,
    bytes: usize,
}

/// Why a connection is given up.
enum End {
    Stopped,
    /// The peer has a new address, or is no member any more.
    Moved,
    Lost(io::Error),
}

impl Lane {
    pub fn new(node: NodeId, channel: Channel) -> Lane {
        Lane { node, channel, queue: Mutex::default(), wake: Notify::new() }
    }

    /// False: they would go beyond `bytes_max` and were dropped, all of them.
    pub fn push(&self, mut messages: Vec<PeerMessage>, bytes_max: usize) -> bool {
        let bytes: usize = messages.iter().map(|m| MESSAGE_HEAD_BYTES + m.bytes.len()).sum();
        {
            let mut q = self.queue.lock();
            if q.bytes > 0 && q.bytes + bytes > bytes_max {
                return false;
            }
            q.bytes += bytes;
            match q.messages.is_empty() {
                true => q.messages = messages,
                false => q.messages.append(&mut messages),
            }
        }
        self.wake.notify_one();
        true
    }

    fn take(&self) -> Vec<PeerMessage> {
        let mut q = self.queue.lock();
        q.bytes = 0;
        std::mem::take(&mut q.messages)
    }

    fn drop_waiting(&self, shared: &Shared) {
        count(&shared.counters.dropped_unconnected, self.take().len() as u64);
    }

    /// Connects, again and again, until the transport stops or the node has no address any more.
    pub async fn run(self: Arc<Lane>, shared: Arc<Shared>) {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = self.keep_connected(&shared) => {}
        }
        shared.remove_lane(&self);
        self.drop_waiting(&shared);
    }

    async fn keep_connected(&self, shared: &Shared) {
        let mut changes = shared.book.subscribe();
        let mut backoff_ms = BACKOFF_MS_MIN;
        let mut failing = false;
        while let (Some(local), Some(address)) = (shared.local.get(), shared.book.get(self.node)) {
            let handshake = self.handshake(local, shared.settings.timing);
            match dial(&address.peer_address, &handshake, &shared.settings).await {
                Ok((stream, _)) => {
                    count(&shared.counters.connects, 1);
                    tracing::info!(
                        peer = self.node.0,
                        channel = ?self.channel,
                        address = &*address.peer_address,
                        "connected to a peer"
                    );
                    let start = Instant::now();
                    let end = self.pump(stream, shared, &mut changes, address.generation).await;
                    failing = false;
                    if start.elapsed() >= GOOD_CONNECTION {
                        backoff_ms = BACKOFF_MS_MIN;
                    }
                    match end {
                        End::Stopped => return,
                        End::Moved => continue,
                        End::Lost(error) => {
                            let (peer, channel) = (self.node.0, self.channel);
                            tracing::info!(peer, ?channel, %error, "connection to a peer lost");
                        }
                    }
                }
                Err(error) => {
                    count(&shared.counters.connect_failures, 1);
                    // Said once for each time that the peer goes away.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            peer = self.node.0,
                            channel = ?self.channel,
                            address = &*address.peer_address,
                            %error,
                            "a peer cannot be reached: trying again until it can"
                        );
                    }
                    // What waited for this attempt is old by the next one.
                    self.drop_waiting(shared);
                }
            }
            let wait = Duration::from_millis(rand::random_range(backoff_ms / 2..=backoff_ms));
            backoff_ms = (backoff_ms * 2).min(BACKOFF_MS_MAX);
            tokio::select! {
                () = sleep(wait) => {}
                () = changes.changed() => backoff_ms = BACKOFF_MS_MIN,
            }
        }
    }

    fn handshake(&self, local: LocalNode, timing: Timing) -> Handshake {
        Handshake {
            kind: match self.channel {
                Channel::Votes => Kind::Votes,
                Channel::Entries => Kind::Entries,
            },
            cluster_id: local.cluster_id,
            from: local.node,
            to: self.node,
            nonce: rand::random(),
            timing,
        }
    }

    /// Writes what waits, and a pulse each second, until the connection ends.
    async fn pump(
        &self,
        mut stream: Stream,
        shared: &Shared,
        changes: &mut Changes,
        generation: u64,
    ) -> End {
        let moved =
            || shared.book.get(self.node).is_none_or(|address| address.generation != generation);
        let mut buffer = BytesMut::new();
        let next_pulse = sleep_until(Instant::now());
        tokio::pin!(next_pulse);
        loop {
            let messages = self.take();
            if !messages.is_empty() {
                let left_out = put_messages(&mut buffer, &messages);
                if left_out > 0 {
                    count(&shared.counters.dropped_too_large, left_out);
                    tracing::error!(
                        peer = self.node.0,
                        left_out,
                        "raft messages that no frame can hold were dropped"
                    );
                }
                count(&shared.counters.sent_messages, messages.len() as u64 - left_out);
            }
            if next_pulse.is_elapsed() || next_pulse.deadline() <= Instant::now() {
                put_pulse(&mut buffer, clock::wall_ms());
                next_pulse.as_mut().reset(Instant::now() + PULSE);
            }
            if buffer.is_empty() {
                tokio::select! {
                    biased;
                    () = self.wake.notified() => {}
                    error = stream.broken() => return End::Lost(error),
                    () = changes.changed() => if moved() { return End::Moved },
                    () = &mut next_pulse => {}
                    () = shared.stop.cancelled() => return End::Stopped,
                }
                continue;
            }
            debug_assert!(buffer.len() >= FRAME_HEAD_BYTES);
            let written = {
                let write = async {
                    stream.write_all(&buffer).await?;
                    // TLS keeps the end of it otherwise.
                    stream.flush().await
                };
                tokio::pin!(write);
                loop {
                    tokio::select! {
                        biased;
                        outcome = &mut write => break outcome,
                        () = changes.changed() => if moved() { return End::Moved },
                    }
                }
            };
            if let Err(error) = written {
                count(&shared.counters.dropped_unconnected, messages.len() as u64);
                return End::Lost(error);
            }
            count(&shared.counters.sent_bytes, buffer.len() as u64);
            buffer.clear();
            if buffer.capacity() > KEPT_BUFFER_BYTES {
                buffer = BytesMut::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{GroupId, ReplicaId};

    fn messages(count: usize, bytes: usize) -> Vec<PeerMessage> {
        let one = PeerMessage {
            group: GroupId(1),
            from: ReplicaId(1),
            to: ReplicaId(2),
            bytes: vec![0; bytes].into(),
        };
        vec![one; count]
    }

    #[test]
    fn what_goes_beyond_the_bound_is_dropped_whole() {
        let lane = Lane::new(NodeId(1), Channel::Entries);
        assert!(lane.push(messages(2, 100), 300));
        assert!(!lane.push(messages(1, 100), 300));
        assert!(lane.push(messages(1, 10), 300));
        assert_eq!(lane.take().len(), 3);
        // An empty queue takes one frame however large it is, or it could never be sent.
        assert!(lane.push(messages(1, 1000), 300));
        assert!(!lane.push(messages(1, 0), 300));
        assert_eq!(lane.take().len(), 1);
        assert!(lane.push(messages(1, 0), 300));
    }
}
