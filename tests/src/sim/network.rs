//! Frames between nodes: late, lost, doubled, out of order, damaged, and not at all between nodes
//! that are cut off.
use super::faults::Faults;
use bytes::{Bytes, BytesMut};
use rand::Rng;
use rand::rngs::StdRng;
use ringfold_node::peer::frame;
use ringfold_node::raft::driver::{Channel, PeerMessage};
use std::collections::{BTreeMap, BTreeSet};

const FRAME_BYTES_MAX: usize = 64 << 20;

#[derive(Default)]
pub struct Network {
    /// Directions that let nothing through.
    cut: BTreeSet<(usize, usize)>,
    /// Where connections keep their order: when the last frame arrives.
    last_ns: BTreeMap<(usize, usize, Channel), u64>,
}

impl Network {
    pub fn is_open(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Cuts some nodes off from the others, in one direction or in both.
    pub fn cut(&mut self, nodes: usize, rng: &mut StdRng) {
        let apart = rng.random_range(0..nodes);
        let other = (rng.random_bool(0.4)).then(|| (apart + rng.random_range(1..nodes)) % nodes);
        let (out, back) = match rng.random_range(0..4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        for b in (0..nodes).filter(|b| *b != apart && other.is_none_or(|o| o == *b)) {
            if out {
                self.cut.insert((apart, b));
            }
            if back {
                self.cut.insert((b, apart));
            }
        }
    }

    /// Some nodes hear nothing of the others, who hear them.
    pub fn deafen(&mut self, deaf: &[usize], nodes: usize) {
        let others = (0..nodes).filter(|n| !deaf.contains(n));
        self.cut.extend(others.flat_map(|from| deaf.iter().map(move |to| (from, *to))));
    }

    /// When a frame arrives: never, once, or more than once.
    pub fn arrivals(
        &mut self,
        now_ns: u64,
        way: (usize, usize, Channel),
        faults: &Faults,
        rng: &mut StdRng,
    ) -> Vec<u64> {
        if !self.is_open(way.0, way.1) || rng.random_bool(faults.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(rng.random_bool(faults.duplicate));
        let mut at = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut arrives = now_ns + faults.delay_ns(rng);
            if faults.in_order {
                let last = self.last_ns.entry(way).or_default();
                arrives = arrives.max(*last + 1);
                *last = arrives;
            }
            at.push(arrives);
        }
        at
    }
}

/// Messages as the product's frames.
pub fn encode(messages: &[PeerMessage]) -> Bytes {
    let mut out = BytesMut::new();
    frame::put_messages(&mut out, messages);
    out.freeze()
}

/// What a node reads of frames; nothing behind the first damage.
pub fn decode(bytes: &Bytes) -> Vec<PeerMessage> {
    let mut buffer = BytesMut::from(&bytes[..]);
    let mut messages = Vec::new();
    while let Ok(Some(payload)) = frame::take_frame(&mut buffer, FRAME_BYTES_MAX) {
        if frame::take_payload(payload, &mut messages).is_err() {
            break;
        }
    }
    messages
}

/// Flips one bit.
pub fn damage(bytes: &Bytes, rng: &mut StdRng) -> Bytes {
    let mut damaged = bytes.to_vec();
    let at = rng.random_range(0..damaged.len());
    damaged[at] ^= 1 << rng.random_range(0..8);
    damaged.into()
}
