//! One TCP connection to or from a peer: opening it, the handshake on both sides, reading frames.
use super::LocalNode;
use super::frame::{
    ANSWER_BYTES, ANSWER_START_BYTES, FrameError, HANDSHAKE_HEAD_BYTES, Handshake, HandshakeAnswer,
    Kind, Timing, VERSION, Verdict, take_frame,
};
use super::transport::TransportSettings;
use crate::failpoint;
use crate::ids::{GroupId, NodeId};
use bytes::{Bytes, BytesMut};
use ringfold_tls::{Protocol, Role, Stream};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A frame's bytes are asked for in pieces of this size, so that a claimed length allocates nothing.
const READ_BYTES: usize = 64 << 10;
/// A peer that acknowledges nothing for so long is gone: without this, TCP tries for a quarter of an
/// hour, at ever longer intervals, also after the network has healed.
const UNACKNOWLEDGED_MS: u32 = 3_000;

/// Why a connection to a peer did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("no connection within {ms} ms")]
    Timeout { ms: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("the answer to the handshake is not understood: {0}")]
    Answer(#[from] FrameError),
    #[error("{}", refusal(*.0, *.1))]
    Refused(Verdict, NodeId),
    #[error(
        "refused by {node}: it runs with {theirs}, this node with {ours}: they must be the same on all nodes of a cluster"
    )]
    Timing { node: NodeId, ours: Timing, theirs: Timing },
}

fn refusal(verdict: Verdict, node: NodeId) -> String {
    let why = match verdict {
        Verdict::Accepted => "it answered another handshake",
        Verdict::WrongVersion => "it speaks another version of the protocol",
        Verdict::WrongCluster => "it belongs to another cluster",
        Verdict::WrongNode => "another node lives at this address",
        Verdict::NotJoined => "it is in no cluster yet",
        Verdict::Busy => "it has too many connections",
        Verdict::Malformed => "it did not understand the handshake",
        Verdict::WrongTiming => "it runs with another tick_ms or election_ticks",
    };
    format!("refused by {node}: {why}")
}

/// Opens a connection and waits for the peer's acceptance; also names the node that answered.
pub async fn dial(
    address: &str,
    handshake: &Handshake,
    settings: &TransportSettings,
) -> Result<(Stream, NodeId), DialError> {
    let limit = settings.connect_timeout();
    let open = async {
        let tcp = TcpStream::connect(address).await?;
        tune(&tcp)?;
        let tls = settings.tls.as_ref();
        let opened = Stream::opened(tcp, host_of(address), tls, Protocol::Peer).await;
        let mut stream = opened.and_then(of_node).map_err(DialError::Tls)?;
        let mut bytes = handshake.encode()?;
        if handshake.kind == Kind::Transfer && failpoint::hit("transfer-version", GroupId(1)) {
            bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
        }
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        let mut bytes = [0; ANSWER_BYTES];
        let (start, rest) = bytes.split_at_mut(ANSWER_START_BYTES);
        stream.read_exact(start).await?;
        if let Some(start) = start.first_chunk() {
            HandshakeAnswer::check_start(start)?;
        }
        stream.read_exact(rest).await?;
        let answer = HandshakeAnswer::decode(&bytes)?;
        if answer.verdict == Verdict::WrongTiming {
            let (node, ours, theirs) = (answer.node, handshake.timing, answer.timing);
            return Err(DialError::Timing { node, ours, theirs });
        }
        if answer.verdict != Verdict::Accepted || answer.nonce != handshake.nonce {
            return Err(DialError::Refused(answer.verdict, answer.node));
        }
        Ok((stream, answer.node))
    };
    let late = DialError::Timeout { ms: limit.as_millis() as u64 };
    timeout(limit, open).await.unwrap_or(Err(late))
}

/// The host of `host:port`.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Only nodes speak to nodes.
fn of_node(stream: Stream) -> io::Result<Stream> {
    match stream.role() {
        None | Some(Role::Node) => Ok(stream),
        Some(role) => {
            let what = format!("a node's certificate is expected, and it showed one for {role:?}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
        }
    }
}

/// Buffer sizes are left alone: a fixed one ends the kernel's own growing of them.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    Ok(())
}

/// Why a connection of a peer was not taken.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    #[error("no handshake in time")]
    Timeout,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Malformed(#[from] FrameError),
    #[error("{:?}: cluster {:?}, from {}, to {}", .0, .1.cluster_id, .1.from, .1.to)]
    Refused(Verdict, Handshake),
    #[error(
        "{} runs with {}, this node with {ours}: they must be the same on all nodes of a cluster", .handshake.from, .handshake.timing
    )]
    Timing { handshake: Handshake, ours: Timing },
}

/// One that says nothing is no fault of its certificate.
fn refused(error: io::Error) -> GreetError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => GreetError::Io(error),
        _ => GreetError::Tls(error),
    }
}

/// Reads the handshake of a connection that was accepted, and answers it.
pub async fn greet(
    tcp: TcpStream,
    local: Option<&LocalNode>,
    settings: &TransportSettings,
) -> Result<(Stream, Handshake), GreetError> {
    let (timing, limit) = (settings.timing, settings.handshake_timeout());
    let read = async {
        tune(&tcp)?;
        let accepted = Stream::accepted(tcp, settings.tls.as_ref(), Protocol::Peer).await;
        let mut stream = accepted.and_then(of_node).map_err(refused)?;
        let mut head = [0; HANDSHAKE_HEAD_BYTES];
        stream.read_exact(&mut head).await?;
        let outcome = match Handshake::tail_bytes(&head) {
            Ok(tail) => {
                let mut bytes = head.to_vec();
                bytes.resize(HANDSHAKE_HEAD_BYTES + tail, 0);
                stream.read_exact(&mut bytes[HANDSHAKE_HEAD_BYTES..]).await?;
                Handshake::decode(&bytes)
            }
            Err(e) => Err(e),
        };
        let (verdict, nonce) = match &outcome {
            Ok(h) => (judge(h, local, timing), h.nonce),
            Err(FrameError::Version(_)) => (Verdict::WrongVersion, 0),
            // Not one of us: not a byte for it.
            Err(FrameError::Magic) => return Err(FrameError::Magic.into()),
            Err(_) => (Verdict::Malformed, 0),
        };
        let node = local.map_or(NodeId(0), |l| l.node);
        let answer = HandshakeAnswer { version: VERSION, verdict, node, nonce, timing };
        stream.write_all(&answer.encode()).await?;
        stream.flush().await?;
        match outcome {
            Ok(h) if verdict == Verdict::Accepted => Ok((stream, h)),
            Ok(handshake) if verdict == Verdict::WrongTiming => {
                Err(GreetError::Timing { handshake, ours: timing })
            }
            Ok(h) => Err(GreetError::Refused(verdict, h)),
            Err(e) => Err(e.into()),
        }
    };
    timeout(limit, read).await.unwrap_or(Err(GreetError::Timeout))
}

/// Whether a connection is for this node. Control connections are how nodes find each other: there
/// one that does not know yet who it is or whom it asks may say so.
pub fn judge(h: &Handshake, local: Option<&LocalNode>, timing: Timing) -> Verdict {
    match judge_identity(h, local) {
        // Another cluster's settings are no fault.
        Verdict::Accepted if h.timing != timing => Verdict::WrongTiming,
        verdict => verdict,
    }
}

fn judge_identity(h: &Handshake, local: Option<&LocalNode>) -> Verdict {
    let control = h.kind == Kind::Control;
    let Some(local) = local else {
        return if control { Verdict::Accepted } else { Verdict::NotJoined };
    };
    if h.cluster_id.is_empty() || h.from == NodeId(0) {
        if !control {
            return Verdict::NotJoined;
        }
    } else if h.from == local.node && !control {
        return Verdict::WrongNode;
    }
    if !h.cluster_id.is_empty() && h.cluster_id != local.cluster_id {
        return Verdict::WrongCluster;
    }
    if h.to != local.node && !(control && h.to == NodeId(0)) {
        return Verdict::WrongNode;
    }
    Verdict::Accepted
}

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub enum ReadFrameError {
    #[error("the peer closed the connection")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Frames off a stream. Payloads are slices of what was read.
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R, frame_bytes_max: usize) -> FrameReader<R> {
        FrameReader { stream, buffer: BytesMut::new(), frame_bytes_max }
    }

    pub fn get_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The next frame that is here already.
    pub fn waiting(&mut self) -> Result<Option<Bytes>, FrameError> {
        take_frame(&mut self.buffer, self.frame_bytes_max)
    }

    /// Waits for the next frame. Cancel-safe.
    pub async fn next(&mut self) -> Result<Bytes, ReadFrameError> {
        loop {
            if let Some(payload) = self.waiting()? {
                return Ok(payload);
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
                self.buffer.reserve(READ_BYTES);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadFrameError::Closed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(kind: Kind, cluster: &str, from: u64, to: u64) -> Handshake {
        let cluster_id = cluster.into();
        let (from, to) = (NodeId(from), NodeId(to));
        Handshake { kind, cluster_id, from, to, nonce: 1, timing: TIMING }
    }

    const TIMING: Timing = Timing { tick_ms: 100, election_ticks: 10 };

    #[test]
    fn other_settings_are_refused_on_every_connection_but_not_another_clusters() {
        let local = LocalNode { cluster_id: "c".into(), node: NodeId(2) };
        for timing in [Timing { tick_ms: 99, ..TIMING }, Timing { election_ticks: 11, ..TIMING }] {
            for kind in [Kind::Votes, Kind::Entries, Kind::Transfer, Kind::Control] {
                let h = Handshake { timing, ..handshake(kind, "c", 1, 2) };
                assert_eq!(judge(&h, Some(&local), TIMING), Verdict::WrongTiming);
                assert_eq!(judge(&h, Some(&local), timing), Verdict::Accepted);
            }
            let h = Handshake { timing, ..handshake(Kind::Control, "d", 1, 2) };
            assert_eq!(judge(&h, Some(&local), TIMING), Verdict::WrongCluster);
            // Also before either of them has joined.
            let h = Handshake { timing, ..handshake(Kind::Control, "", 0, 0) };
            assert_eq!(judge(&h, None, TIMING), Verdict::WrongTiming);
        }
    }

    #[test]
    fn only_a_peer_of_this_cluster_that_means_this_node_gets_in() {
        let local = LocalNode { cluster_id: "c".into(), node: NodeId(2) };
        let verdict = |kind, cluster, from, to| {
            judge(&handshake(kind, cluster, from, to), Some(&local), TIMING)
        };
        for kind in [Kind::Votes, Kind::Entries, Kind::Transfer] {
            assert_eq!(verdict(kind, "c", 1, 2), Verdict::Accepted);
            assert_eq!(verdict(kind, "d", 1, 2), Verdict::WrongCluster);
            assert_eq!(verdict(kind, "", 1, 2), Verdict::NotJoined);
            assert_eq!(verdict(kind, "c", 0, 2), Verdict::NotJoined);
            assert_eq!(verdict(kind, "c", 1, 3), Verdict::WrongNode);
            assert_eq!(verdict(kind, "c", 1, 0), Verdict::WrongNode);
            assert_eq!(verdict(kind, "c", 2, 2), Verdict::WrongNode);
        }
        assert_eq!(verdict(Kind::Control, "", 0, 0), Verdict::Accepted);
        assert_eq!(verdict(Kind::Control, "c", 1, 2), Verdict::Accepted);
        assert_eq!(verdict(Kind::Control, "d", 1, 0), Verdict::WrongCluster);
        assert_eq!(verdict(Kind::Control, "c", 1, 3), Verdict::WrongNode);
    }

    #[test]
    fn a_node_that_has_not_joined_takes_control_connections_only() {
        for kind in [Kind::Votes, Kind::Entries, Kind::Transfer] {
            assert_eq!(judge(&handshake(kind, "c", 1, 2), None, TIMING), Verdict::NotJoined);
        }
        assert_eq!(judge(&handshake(Kind::Control, "c", 1, 0), None, TIMING), Verdict::Accepted);
    }

    #[tokio::test]
    async fn a_large_claim_allocates_only_what_arrives() {
        let mut bytes = (30u32 << 20).to_le_bytes().to_vec();
        bytes.extend([0; 5000]);
        let mut reader = FrameReader::new(&bytes[..], 32 << 20);
        assert!(matches!(reader.next().await, Err(ReadFrameError::Closed)));
        assert!(reader.buffer.capacity() <= 2 * READ_BYTES);
    }
}
