//! The view of the members, shared: who asks gets the list, who follows gets each change once.
use super::view::{Change, Entry, Heard, Now, View};
use crate::ids::NodeId;
use parking_lot::Mutex;
use ringfold_proto::internal::MetaMember;
use std::sync::Arc;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Changes that a follower may be behind; beyond that it gets the list anew.
const CHANGES_KEPT: usize = 256;
const FOLLOWERS_MAX: usize = 1_024;

/// The members at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// Number of the last change that it has.
    pub sequence: u64,
    /// Whether this node gossips; otherwise nothing is known of anyone's liveness.
    pub gossips: bool,
    pub entries: Vec<Entry>,
}

/// A change, and its number: each is one above the one before, from 1 at the node's start.
#[derive(Debug, Clone)]
pub struct Numbered {
    pub sequence: u64,
    pub change: Arc<Change>,
}

pub struct Membership {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<Numbered>,
    followers: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    view: View,
    sequence: u64,
    gossips: bool,
}

impl Default for Membership {
    fn default() -> Membership {
        Membership {
            inner: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        }
    }
}

impl Membership {
    /// As `View::observe`; tells followers of what changed.
    pub fn observe(&self, now: Now, me: NodeId, members: &[MetaMember], heard: Option<&[Heard]>) {
        let mut inner = self.inner.lock();
        inner.gossips = heard.is_some();
        for change in inner.view.observe(now, me, members, heard) {
            tracing::info!(
                node = change.entry.member.node_id, name = change.entry.member.name,
                change = ?change.kind, "membership"
            );
            inner.sequence += 1;
            let sequence = inner.sequence;
            // Fails where nobody follows. Under the lock: a list and what comes after it fit.
            let _ = self.changes.send(Numbered { sequence, change: Arc::new(change) });
        }
    }

    pub fn list(&self) -> List {
        let inner = self.inner.lock();
        List {
            sequence: inner.sequence,
            gossips: inner.gossips,
            entries: inner.view.entries().cloned().collect(),
        }
    }

    /// `None`: there are too many followers.
    pub fn follow(self: &Arc<Self>) -> Option<Follower> {
        let place = self.followers.clone().try_acquire_owned().ok()?;
        Some(Follower {
            changes: self.changes.subscribe(),
            membership: self.clone(),
            sequence: None,
            _place: place,
        })
    }
}

/// One that follows the members.
pub struct Follower {
    membership: Arc<Membership>,
    changes: broadcast::Receiver<Numbered>,
    /// Of the last change told; `None` before the first list.
    sequence: Option<u64>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Clone)]
pub enum News {
    /// All members: first, and whenever changes were missed.
    List {
        list: List,
        lagged: bool,
    },
    Change(Numbered),
}

impl Follower {
    /// The next news; cancel-safe. Never ends by itself.
    pub async fn next(&mut self) -> News {
        let Some(mut told) = self.sequence else { return self.list(false) };
        loop {
            match self.changes.recv().await {
                Ok(n) if n.sequence <= told => {}
                Ok(n) => {
                    told = n.sequence;
                    self.sequence = Some(told);
                    return News::Change(n);
                }
                Err(RecvError::Lagged(_)) => return self.list(true),
                // The membership, which this holds, holds the sender.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn list(&mut self, lagged: bool) -> News {
        let list = self.membership.list();
        self.sequence = Some(list.sequence);
        News::List { list, lagged }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{ChangeKind, Liveness};
    use super::*;
    use futures::FutureExt;

    fn members(nodes: std::ops::Range<u64>) -> Vec<MetaMember> {
        nodes.map(|node_id| MetaMember { node_id, ..Default::default() }).collect()
    }

    fn observe(membership: &Membership, nodes: std::ops::Range<u64>) {
        let now = Now { boot_ms: 0, unix_ms: 0 };
        membership.observe(now, NodeId(1), &members(nodes), Some(&[]));
    }

    #[tokio::test]
    async fn a_follower_gets_the_list_and_then_each_change_once() {
        let membership = Arc::new(Membership::default());
        observe(&membership, 1..3);
        let mut follower = membership.follow().unwrap();
        // Between the subscription and the list: it is in the list, and not told again.
        observe(&membership, 1..4);
        let News::List { list, lagged: false } = follower.next().await else { panic!() };
        assert_eq!((list.sequence, list.entries.len()), (3, 3));
        assert!(follower.next().now_or_never().is_none());
        observe(&membership, 2..5);
        for (sequence, kind, node) in [(4, ChangeKind::Added, 4), (5, ChangeKind::Left, 1)] {
            let News::Change(n) = follower.next().await else { panic!() };
            assert_eq!((n.sequence, n.change.kind), (sequence, kind));
            assert_eq!(n.change.entry.member.node_id, node);
        }
        assert!(follower.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_follower_that_lags_gets_the_list_anew() {
        let membership = Arc::new(Membership::default());
        let mut follower = membership.follow().unwrap();
        follower.next().await;
        let last = 2 * CHANGES_KEPT as u64;
        for n in 1..=last {
            observe(&membership, 1..n + 1);
        }
        let News::List { list, lagged: true } = follower.next().await else { panic!() };
        assert_eq!((list.sequence, list.entries.len()), (last, last as usize));
        assert!(list.entries.iter().all(|e| e.liveness == Liveness::Live));
        // What still stood in the queue is not told again.
        assert!(follower.next().now_or_never().is_none());
        observe(&membership, 1..last + 2);
        let News::Change(n) = follower.next().await else { panic!() };
        assert_eq!(n.sequence, last + 1);
    }

    #[tokio::test]
    async fn followers_are_bounded() {
        let membership = Arc::new(Membership::default());
        let all: Vec<_> = (0..FOLLOWERS_MAX).map(|_| membership.follow().unwrap()).collect();
        assert!(membership.follow().is_none());
        drop(all);
        assert!(membership.follow().is_some());
    }
}
