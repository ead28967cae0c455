//! How a node ends that was told to: it serves while the cluster needs it, hands its leaderships over,
//! and looks once more. Whoever evicts a pod does not ask the cluster before; this does.
use crate::api::cluster::statuses;
use crate::api::deadline::Call;
use crate::api::node::Node;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Leaderships are handed over for so long before the port closes, in any case.
const HAND_OVER: Duration = Duration::from_secs(3);
/// While others serve, what could not be handed over, or came back, is tried so often.
const HAND_OVERS_MAX: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the process was told.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// To end, once the cluster can do without it.
    pub asked: CancellationToken,
    /// To end whether it can or not.
    pub at_once: CancellationToken,
}

/// Whether the cluster can do without this node.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Why it cannot, a line each.
    Needed(Vec<String>),
    /// Others serve on, without it.
    Free,
    /// Nobody serves on, or waiting changes nothing.
    Alone,
}

/// Returns when the node may close its port: within `wait` and the time that leaderships take, or as
/// soon as it is told so `at_once`.
pub async fn leave(node: &Arc<Node>, wait: Duration, at_once: &CancellationToken) {
    node.info.leaving.store(true, Ordering::Relaxed);
    let end = Instant::now() + wait;
    tokio::select! {
        () = leave_in_order(node, end) => {}
        () = at_once.cancelled() => tracing::warn!("told to end at once"),
    }
}

async fn leave_in_order(node: &Node, end: Instant) {
    for _ in 0..HAND_OVERS_MAX {
        let before = while_needed(node, end).await;
        let left = hand_over(node).await;
        if before == Look::Alone || Instant::now() >= end {
            return;
        }
        // It took seconds, in which another node may have been lost, or its leaderships are back.
        if left == 0 && !matches!(look(node, end).await, Look::Needed(_)) {
            return;
        }
    }
}

/// Waits while the cluster needs the node, until `end` at most.
async fn while_needed(node: &Node, end: Instant) -> Look {
    let mut before = Vec::new();
    loop {
        let needed = match look(node, end).await {
            Look::Needed(why) => why,
            free => return free,
        };
        if Instant::now() >= end {
            tracing::warn!(?needed, "ending, though the cluster needs this node");
            return Look::Alone;
        }
        if needed != before {
            tracing::info!(?needed, "serving on: the cluster needs this node");
            before = needed;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(node: &Node, end: Instant) -> Look {
    let left = end.saturating_duration_since(Instant::now());
    let has_one_copy = node.meta.borrow().replication_factor <= 1;
    let is_lost = node.info.lost.get().is_some();
    if left.is_zero() || has_one_copy || is_lost || node.partitions().is_err() {
        return Look::Alone;
    }
    let deadline = Instant::now() + left.min(LOOK_TIMEOUT);
    let call = Call { deadline, has_deadline: true, forwarded: false };
    match call.within(false, statuses::needs_leaving(node, &call)).await {
        Ok(Ok(None)) => Look::Alone,
        Ok(Ok(Some(why))) if why.is_empty() => Look::Free,
        Ok(Ok(Some(why))) => Look::Needed(why),
        Ok(Err(e)) | Err(e) => Look::Needed(vec![e.to_string()]),
    }
}

/// How many leaderships remain.
async fn hand_over(node: &Node) -> u32 {
    match tokio::time::timeout(HAND_OVER, node.raft.transfer_all()).await {
        Ok(Ok(o)) => {
            tracing::info!(moved = o.transferred, left = o.remaining, "leaderships handed over");
            o.remaining
        }
        // The driver has ended: there is nothing left to hand over.
        Ok(Err(_)) => 0,
        Err(_) => {
            tracing::warn!("leaderships were not all handed over in time");
            1
        }
    }
}
