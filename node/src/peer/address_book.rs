//! Where each node is reached.
//!
//! Three sources, in the order of trust: the node itself (`learn_direct`), a change that the meta
//! group recorded (`learn_members`), and what a third node says (`learn_hint`), which counts only
//! while the known address does not work. So a cluster whose nodes all got new addresses finds
//! itself before it has a leader that could record them.
use crate::ids::NodeId;
use ringfold_proto::internal::{MetaState, NodeAddress};
use ringfold_proto::v1::MemberState;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Nodes known beyond this are not learned from hints.
const HINTED_NODES_MAX: usize = 4_096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// `host:port` of the peer port.
    pub peer_address: Arc<str>,
    /// What clients and forwarded calls use.
    pub client_url: Arc<str>,
    /// Rises with each change of `peer_address`: who is connected connects again.
    pub generation: u64,
}

#[derive(Debug, Clone, Default)]
struct Book {
    nodes: BTreeMap<NodeId, PeerAddress>,
    /// Peer address and client URL that the meta group last recorded.
    recorded: BTreeMap<NodeId, (String, String)>,
    generation: u64,
}

/// Cheap to clone; all clones are the same book.
#[derive(Clone, Default)]
pub struct AddressBook(Arc<watch::Sender<Book>>);

/// Wakes when an address has changed.
pub struct Changes(watch::Receiver<Book>);

impl Changes {
    /// Cancel-safe. Never ready once the book is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl AddressBook {
    pub fn get(&self, node: NodeId) -> Option<PeerAddress> {
        self.0.borrow().nodes.get(&node).cloned()
    }

    pub fn nodes(&self) -> BTreeMap<NodeId, PeerAddress> {
        self.0.borrow().nodes.clone()
    }

    /// As `HelloAnswer` carries them.
    pub fn to_proto(&self) -> Vec<NodeAddress> {
        let book = self.0.borrow();
        let address = |(id, a): (&NodeId, &PeerAddress)| NodeAddress {
            node_id: id.0,
            peer_address: a.peer_address.to_string(),
            client_url: a.client_url.to_string(),
        };
        book.nodes.iter().map(address).collect()
    }

    pub fn subscribe(&self) -> Changes {
        Changes(self.0.subscribe())
    }

    /// The node itself says where it is.
    pub fn learn_direct(&self, node: NodeId, peer_address: &str, client_url: &str) {
        self.0.send_if_modified(|b| b.set(node, peer_address, client_url));
    }

    /// Another node says where it is. `is_reachable`: whether we hear from it where we think it is.
    pub fn learn_hint(&self, hint: &NodeAddress, is_reachable: bool) {
        let node = NodeId(hint.node_id);
        self.0.send_if_modified(|b| {
            let counts = match b.nodes.contains_key(&node) {
                true => !is_reachable,
                false => b.nodes.len() < HINTED_NODES_MAX,
            };
            counts && b.set(node, &hint.peer_address, &hint.client_url)
        });
    }

    /// Takes over what the meta group recorded anew, and forgets nodes that it removed.
    pub fn learn_members(&self, state: &MetaState) {
        self.0.send_if_modified(|b| {
            let mut changed = false;
            for m in &state.members {
                let node = NodeId(m.node_id);
                if m.state == MemberState::Removed as u32 {
                    b.recorded.remove(&node);
                    changed |= b.nodes.remove(&node).is_some();
                    continue;
                }
                let recorded = (m.peer_address.clone(), m.client_url.clone());
                if b.recorded.get(&node) != Some(&recorded) {
                    changed |= b.set(node, &m.peer_address, &m.client_url);
                    b.recorded.insert(node, recorded);
                }
            }
            changed
        });
    }
}

impl Book {
    fn set(&mut self, node: NodeId, peer_address: &str, client_url: &str) -> bool {
        let known = self.nodes.get(&node);
        let moved = known.is_none_or(|k| &*k.peer_address != peer_address);
        let renamed = known.is_none_or(|k| &*k.client_url != client_url);
        if node == NodeId(0) || peer_address.is_empty() || !(moved || renamed) {
            return false;
        }
        let generation = match known {
            Some(k) if !moved => k.generation,
            _ => {
                self.generation += 1;
                self.generation
            }
        };
        let address = PeerAddress {
            peer_address: peer_address.into(),
            client_url: client_url.into(),
            generation,
        };
        self.nodes.insert(node, address);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_proto::internal::MetaMember;

    fn member(id: u64, address: &str) -> MetaMember {
        MetaMember {
            node_id: id,
            peer_address: address.into(),
            client_url: format!("http://{address}"),
            state: MemberState::Active as u32,
            ..Default::default()
        }
    }

    fn state(members: Vec<MetaMember>) -> MetaState {
        MetaState { members, ..Default::default() }
    }

    fn hint(id: u64, address: &str) -> NodeAddress {
        NodeAddress { node_id: id, peer_address: address.into(), client_url: "u".into() }
    }

    fn address(book: &AddressBook, id: u64) -> Option<(String, u64)> {
        book.get(NodeId(id)).map(|a| (a.peer_address.to_string(), a.generation))
    }

    #[test]
    fn a_node_that_says_where_it_is_outweighs_an_old_record() {
        let book = AddressBook::default();
        book.learn_members(&state(vec![member(1, "old:1")]));
        book.learn_direct(NodeId(1), "new:1", "u");
        book.learn_members(&state(vec![member(1, "old:1"), member(2, "b:1")]));
        assert_eq!(address(&book, 1), Some(("new:1".into(), 2)));
        book.learn_members(&state(vec![member(1, "newer:1")]));
        assert_eq!(address(&book, 1), Some(("newer:1".into(), 4)));
    }

    #[test]
    fn a_hint_counts_for_unknown_and_unreachable_nodes_only() {
        let book = AddressBook::default();
        book.learn_hint(&hint(1, "a:1"), false);
        book.learn_hint(&hint(1, "b:1"), true);
        assert_eq!(address(&book, 1), Some(("a:1".into(), 1)));
        book.learn_hint(&hint(1, "b:1"), false);
        assert_eq!(address(&book, 1), Some(("b:1".into(), 2)));
    }

    #[test]
    fn a_new_client_url_alone_does_not_reconnect() {
        let book = AddressBook::default();
        book.learn_direct(NodeId(1), "a:1", "u");
        book.learn_direct(NodeId(1), "a:1", "v");
        let a = book.get(NodeId(1)).unwrap();
        assert_eq!((&*a.client_url, a.generation), ("v", 1));
    }

    #[test]
    fn removed_nodes_and_empty_addresses_are_not_kept() {
        let book = AddressBook::default();
        book.learn_members(&state(vec![member(1, "a:1"), member(2, "")]));
        let removed = MetaMember { state: MemberState::Removed as u32, ..member(1, "a:1") };
        book.learn_members(&state(vec![removed]));
        book.learn_direct(NodeId(0), "z:1", "u");
        assert!(book.nodes().is_empty());
    }

    #[tokio::test]
    async fn who_listens_hears_of_changes_only() {
        let book = AddressBook::default();
        let mut changes = book.subscribe();
        book.learn_direct(NodeId(1), "a:1", "u");
        changes.changed().await;
        book.learn_direct(NodeId(1), "a:1", "u");
        let again = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(again, changes.changed()).await.is_err());
    }
}
