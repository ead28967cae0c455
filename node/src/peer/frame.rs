//! Bytes on the peer port, as pure functions: a handshake each way, then frames.
//!
//! Whatever arrives, decoding it gives a value or a [`FrameError`], and never allocates more than
//! the bytes that are there. All integers are little endian; checksums are CRC-32C.
//!
//! ```text
//! handshake  magic 4 · version 2 · kind 1 · len 1 · from 8 · to 8 · nonce 8 · cluster id (len) · timing 8 · crc 4
//! answer     magic 4 · version 2 · verdict 1 · 0 · node 8 · nonce 8 · timing 8 · crc 4
//! timing     tick_ms 4 · election_ticks 4
//! frame      len 4 · crc of len and payload 4 · payload (len)
//! payload    0 · (group 4 · from 8 · to 8 · len 4 · bytes)*      raft messages
//!            1 · wall clock in Unix ms 8                         a pulse, each second
//!            a ControlRequest or ControlResponse                 on control and transfer connections
//! ```
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::raft::message::PeerMessage;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// 2: handshake and answer carry the timing.
pub const VERSION: u16 = 2;
pub const HANDSHAKE_HEAD_BYTES: usize = 32;
pub const ANSWER_BYTES: usize = 36;
/// Magic and version.
pub const ANSWER_START_BYTES: usize = 6;
const TIMING_BYTES: usize = 8;
pub const FRAME_HEAD_BYTES: usize = 8;
pub const MESSAGE_HEAD_BYTES: usize = 24;
pub const CLUSTER_ID_BYTES_MAX: usize = 128;
/// Bound on a frame of raft messages.
pub const RAFT_FRAME_BYTES_MAX: usize = 32 << 20;
/// Messages beyond this go into a frame of their own.
const RAFT_FRAME_BYTES: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"RFLD";
const TAG_MESSAGES: u8 = 0;
const TAG_PULSE: u8 = 1;

/// Bytes that are not what they should be: the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("not a Ringfold peer: the magic bytes are missing")]
    Magic,
    #[error(
        "the peer speaks protocol version {0}, this node version {VERSION}: upgrade the older one"
    )]
    Version(u16),
    #[error("unknown {what} {value}")]
    Unknown { what: &'static str, value: u8 },
    #[error("{what} of {bytes} bytes, at most {max} are allowed")]
    TooLarge { what: &'static str, bytes: usize, max: usize },
    #[error("the checksum of a {0} is wrong: bytes were changed on the way")]
    Checksum(&'static str),
    #[error("the {0} ends too early or too late")]
    Length(&'static str),
    #[error("the cluster id is not UTF-8")]
    ClusterId,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Votes = 1,
    Entries = 2,
    Control = 3,
    Transfer = 4,
}

/// What all nodes of a cluster must have in common: a leader's lease ends before any other node can
/// be elected, by the election timeout that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub tick_ms: u32,
    pub election_ticks: u32,
}

impl Timing {
    fn put(self, b: &mut Vec<u8>) {
        b.put_u32_le(self.tick_ms);
        b.put_u32_le(self.election_ticks);
    }

    fn get(b: &mut &[u8]) -> Timing {
        Timing { tick_ms: b.get_u32_le(), election_ticks: b.get_u32_le() }
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tick_ms {} and election_ticks {}", self.tick_ms, self.election_ticks)
    }
}

/// The first bytes on a connection, from the node that opened it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    pub kind: Kind,
    /// Empty: not in a cluster yet.
    pub cluster_id: Arc<str>,
    /// 0: no node id yet.
    pub from: NodeId,
    /// 0: whoever listens there.
    pub to: NodeId,
    /// The answer repeats it.
    pub nonce: u64,
    pub timing: Timing,
}

/// What the node that listens says to a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    Accepted = 0,
    WrongVersion = 1,
    WrongCluster = 2,
    WrongNode = 3,
    /// One of the two is in no cluster yet: only control connections are for it.
    NotJoined = 4,
    Busy = 5,
    Malformed = 6,
    /// The settings that all nodes must have in common are others.
    WrongTiming = 7,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeAnswer {
    pub version: u16,
    pub verdict: Verdict,
    /// Who answers; 0: no node id yet.
    pub node: NodeId,
    pub nonce: u64,
    pub timing: Timing,
}

/// Payload of a frame on a connection for raft messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftPayload {
    Messages,
    Pulse { wall_ms: u64 },
}

impl Handshake {
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let len = self.cluster_id.len();
        if len > CLUSTER_ID_BYTES_MAX {
            return Err(too_large("a cluster id", len, CLUSTER_ID_BYTES_MAX));
        }
        let mut b = Vec::with_capacity(HANDSHAKE_HEAD_BYTES + len + TIMING_BYTES + 4);
        b.put_slice(&MAGIC);
        b.put_u16_le(VERSION);
        b.put_u8(self.kind as u8);
        b.put_u8(len as u8);
        b.put_u64_le(self.from.0);
        b.put_u64_le(self.to.0);
        b.put_u64_le(self.nonce);
        b.put_slice(self.cluster_id.as_bytes());
        self.timing.put(&mut b);
        b.put_u32_le(crc32c::crc32c(&b));
        Ok(b)
    }

    /// How many bytes follow the head. Refuses what is no handshake of this version.
    pub fn tail_bytes(head: &[u8; HANDSHAKE_HEAD_BYTES]) -> Result<usize, FrameError> {
        check_start(head)?;
        let len = usize::from(head[7]);
        if len > CLUSTER_ID_BYTES_MAX {
            return Err(too_large("a cluster id", len, CLUSTER_ID_BYTES_MAX));
        }
        Ok(len + TIMING_BYTES + 4)
    }

    /// `bytes`: the head and its tail, no more.
    pub fn decode(bytes: &[u8]) -> Result<Handshake, FrameError> {
        let head = bytes.first_chunk().ok_or(FrameError::Length("handshake"))?;
        if bytes.len() != HANDSHAKE_HEAD_BYTES + Handshake::tail_bytes(head)? {
            return Err(FrameError::Length("handshake"));
        }
        let mut b = checked(bytes, "handshake")?;
        b.advance(6);
        let kind = match b.get_u8() {
            1 => Kind::Votes,
            2 => Kind::Entries,
            3 => Kind::Control,
            4 => Kind::Transfer,
            value => {
                return Err(FrameError::Unknown { what: "kind of connection", value });
            }
        };
        b.advance(1);
        let (from, to, nonce) = (NodeId(b.get_u64_le()), NodeId(b.get_u64_le()), b.get_u64_le());
        let (cluster_id, mut timing) = b.split_at(b.len() - TIMING_BYTES);
        let timing = Timing::get(&mut timing);
        let cluster_id = std::str::from_utf8(cluster_id).map_err(|_| FrameError::ClusterId)?.into();
        Ok(Handshake { kind, cluster_id, from, to, nonce, timing })
    }
}

impl HandshakeAnswer {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(ANSWER_BYTES);
        b.put_slice(&MAGIC);
        b.put_u16_le(self.version);
        b.put_u8(self.verdict as u8);
        b.put_u8(0);
        b.put_u64_le(self.node.0);
        b.put_u64_le(self.nonce);
        self.timing.put(&mut b);
        b.put_u32_le(crc32c::crc32c(&b));
        b
    }

    /// Refuses what is no answer of this version; other versions' answers may be shorter.
    pub fn check_start(start: &[u8; ANSWER_START_BYTES]) -> Result<(), FrameError> {
        check_start(start)
    }

    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<HandshakeAnswer, FrameError> {
        check_start(bytes)?;
        let mut b = checked(bytes, "handshake")?;
        b.advance(4);
        let version = b.get_u16_le();
        let verdict = match b.get_u8() {
            0 => Verdict::Accepted,
            1 => Verdict::WrongVersion,
            2 => Verdict::WrongCluster,
            3 => Verdict::WrongNode,
            4 => Verdict::NotJoined,
            5 => Verdict::Busy,
            6 => Verdict::Malformed,
            7 => Verdict::WrongTiming,
            value => {
                return Err(FrameError::Unknown { what: "answer to a handshake", value });
            }
        };
        b.advance(1);
        Ok(HandshakeAnswer {
            version,
            verdict,
            node: NodeId(b.get_u64_le()),
            nonce: b.get_u64_le(),
            timing: Timing::get(&mut b),
        })
    }
}

/// Magic and version, which stand first in every version.
fn check_start(bytes: &[u8]) -> Result<(), FrameError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FrameError::Magic);
    }
    let version = bytes[4..].first_chunk().map_or(0, |v| u16::from_le_bytes(*v));
    if version != VERSION { Err(FrameError::Version(version)) } else { Ok(()) }
}

/// The bytes before the checksum that ends them.
fn checked<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], FrameError> {
    let (content, crc) = bytes.split_last_chunk().ok_or(FrameError::Length(what))?;
    if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
        return Err(FrameError::Checksum(what));
    }
    Ok(content)
}

fn too_large(what: &'static str, bytes: usize, max: usize) -> FrameError {
    FrameError::TooLarge { what, bytes, max }
}

/// Writes one frame behind what is in `out`; `payload` appends the content.
pub fn put_frame(out: &mut BytesMut, payload: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEAD_BYTES);
    payload(out);
    let len = ((out.len() - start - FRAME_HEAD_BYTES) as u32).to_le_bytes();
    let crc = frame_crc(&len, &out[start + FRAME_HEAD_BYTES..]).to_le_bytes();
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..start + 8].copy_from_slice(&crc);
}

/// Takes the next frame's payload off the front; `None`: more bytes must come first.
pub fn take_frame(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(head) = buffer.first_chunk::<FRAME_HEAD_BYTES>() else {
        return Ok(None);
    };
    let [a, b, c, d, e, f, g, h] = *head;
    let (len_bytes, crc) = ([a, b, c, d], u32::from_le_bytes([e, f, g, h]));
    let len = u32::from_le_bytes(len_bytes) as usize;
    if len > bytes_max {
        return Err(too_large("a frame", len, bytes_max));
    }
    if buffer.len() < FRAME_HEAD_BYTES + len {
        return Ok(None);
    }
    buffer.advance(FRAME_HEAD_BYTES);
    let payload = buffer.split_to(len).freeze();
    if frame_crc(&len_bytes, &payload) != crc {
        return Err(FrameError::Checksum("frame"));
    }
    Ok(Some(payload))
}

/// The length is in it, so that a run of zeros is no frame.
fn frame_crc(len: &[u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(len), payload)
}

/// Writes all `messages` behind what is in `out`: as one frame, or as more where it would grow past
/// 4 MiB. Returns how many messages were left out because no frame can hold them.
pub fn put_messages(out: &mut BytesMut, messages: &[PeerMessage]) -> u64 {
    let (mut left_out, mut rest) = (0, messages);
    while !rest.is_empty() {
        let (mut bytes, mut count) = (1, 0);
        for m in rest {
            let with = bytes + MESSAGE_HEAD_BYTES + m.bytes.len();
            if count > 0 && with > RAFT_FRAME_BYTES {
                break;
            }
            (bytes, count) = (with, count + 1);
        }
        let (now, later) = rest.split_at(count);
        rest = later;
        if bytes > RAFT_FRAME_BYTES_MAX {
            left_out += count as u64;
            continue;
        }
        out.reserve(FRAME_HEAD_BYTES + bytes);
        put_frame(out, |out| {
            out.put_u8(TAG_MESSAGES);
            for m in now {
                out.put_u32_le(m.group.0);
                out.put_u64_le(m.from.0);
                out.put_u64_le(m.to.0);
                out.put_u32_le(m.bytes.len() as u32);
                out.put_slice(&m.bytes);
            }
        });
    }
    left_out
}

/// Writes a frame that says that the sender lives, and its wall clock.
pub fn put_pulse(out: &mut BytesMut, wall_ms: u64) {
    put_frame(out, |out| {
        out.put_u8(TAG_PULSE);
        out.put_u64_le(wall_ms);
    });
}

/// Adds the messages of a payload to `messages`, as slices of it; none on an error.
pub fn take_payload(
    mut payload: Bytes,
    messages: &mut Vec<PeerMessage>,
) -> Result<RaftPayload, FrameError> {
    let before = messages.len();
    let tag = payload.try_get_u8().map_err(|_| FrameError::Length("frame"))?;
    match tag {
        TAG_PULSE if payload.len() == 8 => Ok(RaftPayload::Pulse { wall_ms: payload.get_u64_le() }),
        TAG_PULSE => Err(FrameError::Length("pulse")),
        TAG_MESSAGES => {
            while !payload.is_empty() {
                let Some(m) = take_message(&mut payload) else {
                    messages.truncate(before);
                    return Err(FrameError::Length("raft message"));
                };
                messages.push(m);
            }
            Ok(RaftPayload::Messages)
        }
        value => Err(FrameError::Unknown { what: "content of a frame", value }),
    }
}

fn take_message(payload: &mut Bytes) -> Option<PeerMessage> {
    if payload.len() < MESSAGE_HEAD_BYTES {
        return None;
    }
    let group = GroupId(payload.get_u32_le());
    let from = ReplicaId(payload.get_u64_le());
    let to = ReplicaId(payload.get_u64_le());
    let len = payload.get_u32_le() as usize;
    (len <= payload.len()).then(|| PeerMessage { group, from, to, bytes: payload.split_to(len) })
}

#[cfg(test)]
mod tests;
