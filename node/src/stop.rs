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

/// Returns when the node may close its port: within `wait` and the time that leaderships take, or as
/// soon as it is told so `at_once`.
pub async fn leave(node: &Arc<Node>, wait: Duration, at_once: &CancellationToken) {
    node.info.leaving.store(true, Ordering::Relaxed);
    let end = Instant::now() + wait;
    let leaves = async {
        loop {
            while_needed(node, end).await;
            let left = hand_over(node).await;
            // It took seconds, in which another node may have been lost, or its leaderships are back.
            if Instant::now() >= end || (left == 0 && needed_for(node, end).await.is_empty()) {
                return;
            }
        }
    };
    tokio::select! {
        () = leaves => {}
        () = at_once.cancelled() => tracing::warn!("told to end at once"),
    }
}

async fn while_needed(node: &Node, end: Instant) {
    let mut before = Vec::new();
    loop {
        let needed = needed_for(node, end).await;
        if needed.is_empty() {
            return;
        }
        if Instant::now() >= end {
            tracing::warn!(?needed, "ending, though the cluster needs this node");
            return;
        }
        if needed != before {
            tracing::info!(?needed, "serving on: the cluster needs this node");
            before = needed;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Why the cluster needs this node now; empty also where waiting changes nothing.
async fn needed_for(node: &Node, end: Instant) -> Vec<String> {
    let left = end.saturating_duration_since(Instant::now());
    let is_alone = node.meta.borrow().replication_factor <= 1;
    if left.is_zero() || is_alone || node.info.lost.get().is_some() || node.partitions().is_err() {
        return Vec::new();
    }
    let deadline = Instant::now() + left.min(LOOK_TIMEOUT);
    let call = Call { deadline, has_deadline: true, forwarded: false };
    match call.within(false, statuses::needs_leaving(node, &call)).await {
        Ok(Ok(needed)) => needed,
        Ok(Err(e)) | Err(e) => vec![e.to_string()],
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
