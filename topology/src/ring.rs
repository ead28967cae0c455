//! The hash ring, used only to walk candidates: balance comes from the quotas.

use std::hash::{Hash, Hasher};

use hashring::HashRing;

/// Entries of each node: enough that the nodes that follow a point differ from point to point.
const COPIES: usize = 16;

/// Hashed as bytes of fixed order, so that every machine walks the same ring.
struct Key {
    kind: u8,
    id: u64,
    copy: u32,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut bytes = [0; 13];
        bytes[0] = self.kind;
        bytes[1..9].copy_from_slice(&self.id.to_be_bytes());
        bytes[9..].copy_from_slice(&self.copy.to_be_bytes());
        state.write(&bytes);
    }
}

#[derive(Clone)]
struct Entry {
    node: usize,
    id: u64,
    copy: u32,
}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Key { kind: b'n', id: self.id, copy: self.copy }.hash(state);
    }
}

pub(crate) struct Ring {
    ring: HashRing<Entry>,
    /// Indexes of nodes in the ring's order, each several times.
    order: Vec<usize>,
    /// By node and copy: where it stands in `order`.
    at: Vec<usize>,
}

impl Ring {
    /// `node_ids` ascending. Walks yield indexes into it.
    pub(crate) fn new(node_ids: &[u64]) -> Ring {
        let mut ring = HashRing::new();
        let entries = node_ids
            .iter()
            .enumerate()
            .flat_map(|(node, &id)| (0..COPIES as u32).map(move |copy| Entry { node, id, copy }));
        ring.batch_add(entries.collect());
        let mut order = Vec::with_capacity(ring.len());
        let mut at = vec![0; ring.len()];
        for e in ring.clone() {
            at[e.node * COPIES + e.copy as usize] = order.len();
            order.push(e.node);
        }
        Ring { ring, order, at }
    }

    /// All nodes from the partition's point onwards; each comes several times.
    pub(crate) fn walk(&self, partition: usize) -> impl Iterator<Item = usize> {
        let point = Key { kind: b'p', id: partition as u64, copy: 0 };
        let start = self.ring.get(&point).map_or(0, |e| self.at[e.node * COPIES + e.copy as usize]);
        let (before, after) = self.order.split_at(start);
        after.iter().chain(before).copied()
    }
}
