//! How many transfers may still begin, and where there is room for what they bring.

use std::collections::BTreeMap;

use super::view::{Nodes, View};
use super::{Limits, Reason};

pub(super) struct Slots<'a> {
    limits: &'a Limits,
    nodes: &'a Nodes<'a>,
    by_node: BTreeMap<u64, u32>,
    moves: u32,
    repairs: u32,
    /// By node: what is about to arrive.
    bytes: BTreeMap<u64, u64>,
}

impl<'a> Slots<'a> {
    /// What is under way has its slots already.
    pub(super) fn new(limits: &'a Limits, nodes: &'a Nodes<'a>, views: &[View<'_>]) -> Slots<'a> {
        let mut slots = Slots {
            limits,
            nodes,
            by_node: BTreeMap::new(),
            moves: 0,
            repairs: 0,
            bytes: BTreeMap::new(),
        };
        for v in views {
            for r in v.replicas().filter(|r| v.is_incoming(r)) {
                slots.add(v, r.node_id, nodes.has_room(r.node_id, v.fact.bytes));
            }
        }
        slots
    }

    /// One whose node seems to have no room does not go on, or is on its way and has taken that room:
    /// its bytes and the node's slot count, but others may go on elsewhere. It is offered its checkpoint
    /// again and again all the same.
    fn add(&mut self, v: &View<'_>, to: u64, has_room: bool) {
        *self.by_node.entry(to).or_default() += 1;
        *self.bytes.entry(to).or_default() += v.fact.bytes;
        if !has_room {
            return;
        }
        if let Some(from) = v.source() {
            *self.by_node.entry(from.node_id).or_default() += 1;
        }
        if v.reason() == Reason::Repair {
            self.repairs += 1;
        } else {
            self.moves += 1;
        }
    }

    /// Takes what a transfer to node `to` needs, or says what is missing.
    pub(super) fn take(&mut self, v: &View<'_>, to: u64) -> Result<(), String> {
        let limits = self.limits;
        let Some(from) = v.source() else {
            return Err("no voter has everything that a copy could be made from".to_owned());
        };
        let free = self.nodes.get(to).and_then(|m| m.free_bytes);
        let arriving = self.bytes.get(&to).copied().unwrap_or_default();
        if let Some(free) = free
            && free < arriving.saturating_add(v.fact.bytes)
        {
            return Err(format!(
                "node {to} has room for {free} bytes, and {} more are needed with the {arriving} that are on their way: free some, or add nodes",
                v.fact.bytes
            ));
        }
        let (used, most, what) = match v.reason() {
            Reason::Repair => (self.repairs, limits.repairs_total, "repairs"),
            _ => (self.moves, limits.moves_total, "moves"),
        };
        if used >= most {
            return Err(format!("{used} {what} are under way, at most {most} at once"));
        }
        for n in [to, from.node_id] {
            let used = self.by_node.get(&n).copied().unwrap_or_default();
            if used >= limits.moves_per_node {
                return Err(format!(
                    "node {n} has {used} transfers under way, at most {} at once",
                    limits.moves_per_node
                ));
            }
        }
        self.add(v, to, true);
        Ok(())
    }
}
