//! Everything between nodes, on the peer port: raft messages, control requests, checkpoints.
pub mod address_book;
mod connection;
pub mod control;
pub mod frame;
mod lane;
mod listener;
pub mod transfer;
pub mod transport;

use crate::ids::NodeId;
use std::sync::Arc;
use tokio::sync::watch;

/// Who this node is in its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    pub cluster_id: Arc<str>,
    pub node: NodeId,
}

/// This node's identity: unknown until it has joined a cluster, then never another. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalNodeCell(Arc<watch::Sender<Option<LocalNode>>>);

impl LocalNodeCell {
    pub fn new(known: Option<LocalNode>) -> LocalNodeCell {
        LocalNodeCell(Arc::new(watch::Sender::new(known)))
    }

    pub fn get(&self) -> Option<LocalNode> {
        self.0.borrow().clone()
    }

    /// False: it was set before, to another identity, and stays that.
    pub fn set(&self, local: LocalNode) -> bool {
        let mut same = true;
        self.0.send_if_modified(|known| match known {
            Some(k) => {
                same = *k == local;
                false
            }
            None => {
                *known = Some(local);
                true
            }
        });
        same
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<LocalNode>> {
        self.0.subscribe()
    }
}
