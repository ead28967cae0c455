//! The datagram around a gossip message: what lets in only fresh ones from nodes of this cluster.
//! Pure. docs/formats.md has the layout, docs/adr/0010-gossip-datagrams.md the reasons.
use crate::ids::NodeId;
use std::collections::HashMap;
use std::fmt;

const VERSION: u8 = 1;
const TAG_BYTES: usize = 32;
/// One with the current key, one with the previous.
const TAGS_MAX: usize = 2;
/// Cluster, sender, generation, counter.
const HEADER_BYTES: usize = 16 + 8 + 8 + 8;
/// The largest datagram that UDP over IPv4 carries.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// The largest message that always fits.
pub const PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - 2 - TAGS_MAX * TAG_BYTES - HEADER_BYTES;
/// Datagrams of one sender may come out of order by so many.
pub const WINDOW: u64 = 128;
/// Senders remembered: four times as many as a cluster has members.
const SENDERS_MAX: usize = 4_096;
/// The secret's use is part of the key: the same secret elsewhere gives another key.
const KEY_CONTEXT: &str = "ringfold.dev 2026 gossip datagram v1";

/// The cluster's keys: the current one, and the previous one while it is being replaced.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub fn new(current: &str, previous: Option<&str>) -> Keys {
        let key = |secret: &str| blake3::derive_key(KEY_CONTEXT, secret.as_bytes());
        Keys([Some(current), previous].into_iter().flatten().map(key).collect())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// Who seals, in which cluster.
#[derive(Debug, Clone)]
pub struct Party {
    pub keys: Keys,
    cluster: [u8; 16],
    pub node: NodeId,
}

impl Party {
    pub fn new(keys: Keys, cluster_id: &str, node: NodeId) -> Party {
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&blake3::hash(cluster_id.as_bytes()).as_bytes()[..16]);
        Party { keys, cluster, node }
    }
}

/// Seals messages of one generation. There must be one sealer of a generation only.
#[derive(Debug)]
pub struct Sealer {
    party: Party,
    generation: u64,
    counter: u64,
}

/// A message that does not fit into a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a gossip message has {0} bytes, {PAYLOAD_BYTES_MAX} at most")]
pub struct TooLarge(pub usize);

impl Sealer {
    pub fn new(party: Party, generation: u64) -> Sealer {
        Sealer { party, generation, counter: 0 }
    }

    /// Puts the sealed message into `out`. A tag for each key, so that nodes which have only one of
    /// them take it while keys are replaced node by node.
    pub fn seal(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), TooLarge> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(TooLarge(payload.len()));
        }
        self.counter += 1;
        let keys = &self.party.keys.0;
        out.clear();
        out.extend([VERSION, keys.len() as u8]);
        let tags_at = out.len();
        out.resize(tags_at + keys.len() * TAG_BYTES, 0);
        let body_at = out.len();
        out.extend(self.party.cluster);
        out.extend(self.party.node.0.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(self.counter.to_le_bytes());
        out.extend(payload);
        let (head, body) = out.split_at_mut(body_at);
        for (key, tag) in keys.iter().zip(head[tags_at..].chunks_exact_mut(TAG_BYTES)) {
            tag.copy_from_slice(blake3::keyed_hash(key, body).as_bytes());
        }
        Ok(())
    }
}

/// Why a datagram does not get in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not a gossip datagram of this version.
    Malformed,
    ForeignCluster,
    /// Our own, sent back.
    OwnSender,
    WrongKey,
    /// Seen before, or older than the window.
    Replayed,
}

/// Opens datagrams: one for the node's life, whatever restarts around it.
#[derive(Debug)]
pub struct Opener {
    party: Party,
    senders: Senders,
}

impl Opener {
    pub fn new(party: Party) -> Opener {
        Opener { party, senders: Senders::default() }
    }

    /// The message in a datagram, once and if it is fresh. For any bytes; of what does not carry
    /// this cluster's name nothing is computed.
    pub fn open<'a>(&mut self, datagram: &'a [u8]) -> Result<(NodeId, &'a [u8]), Refused> {
        let (&[version, tags], rest) =
            datagram.split_first_chunk::<2>().ok_or(Refused::Malformed)?;
        let tags = usize::from(tags);
        if version != VERSION || tags == 0 || tags > TAGS_MAX {
            return Err(Refused::Malformed);
        }
        let (tags, body) = rest.split_at_checked(tags * TAG_BYTES).ok_or(Refused::Malformed)?;
        let (header, payload) =
            body.split_first_chunk::<HEADER_BYTES>().ok_or(Refused::Malformed)?;
        if header[..16] != self.party.cluster {
            return Err(Refused::ForeignCluster);
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (node, generation, counter) = (NodeId(number(16)), number(24), number(32));
        if node == self.party.node {
            return Err(Refused::OwnSender);
        }
        let is_sealed = self.party.keys.0.iter().any(|key| {
            let computed = blake3::keyed_hash(key, body);
            // Compares in constant time.
            tags.chunks_exact(TAG_BYTES).any(|t| {
                <[u8; TAG_BYTES]>::try_from(t).is_ok_and(|t| computed == blake3::Hash::from(t))
            })
        });
        if !is_sealed {
            return Err(Refused::WrongKey);
        }
        match self.senders.accept(node, generation, counter) {
            true => Ok((node, payload)),
            false => Err(Refused::Replayed),
        }
    }
}

/// What was seen of each sender. Only authenticated datagrams change it.
#[derive(Debug, Default)]
struct Senders {
    known: HashMap<NodeId, Seen>,
    /// Rises with each datagram taken.
    turn: u64,
}

#[derive(Debug)]
struct Seen {
    generation: u64,
    highest: u64,
    /// Bit i: `highest - i` was seen.
    window: u128,
    turn: u64,
}

impl Senders {
    /// True once for each counter of a generation, and never again for an older generation.
    fn accept(&mut self, node: NodeId, generation: u64, counter: u64) -> bool {
        if counter == 0 {
            return false;
        }
        self.turn += 1;
        let turn = self.turn;
        let fresh = Seen { generation, highest: counter, window: 1, turn };
        let Some(seen) = self.known.get_mut(&node) else {
            self.make_room();
            self.known.insert(node, fresh);
            return true;
        };
        if generation != seen.generation {
            let is_newer = generation > seen.generation;
            if is_newer {
                *seen = fresh;
            }
            return is_newer;
        }
        if counter > seen.highest {
            let by = counter - seen.highest;
            seen.window = if by < WINDOW { seen.window << by | 1 } else { 1 };
            seen.highest = counter;
        } else {
            let behind = seen.highest - counter;
            if behind >= WINDOW || seen.window >> behind & 1 == 1 {
                return false;
            }
            seen.window |= 1 << behind;
        }
        seen.turn = turn;
        true
    }

    /// Forgets who was silent longest.
    fn make_room(&mut self) {
        if self.known.len() < SENDERS_MAX {
            return;
        }
        let longest = self.known.iter().min_by_key(|(_, s)| s.turn).map(|(n, _)| *n);
        if let Some(node) = longest {
            self.known.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests;
