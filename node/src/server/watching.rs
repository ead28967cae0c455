//! What a node keeps an eye on while it runs: its clock, its disk, WATERMARK.
use crate::api::node::NodeInfo;
use crate::clock;
use crate::disk;
use crate::peer::transport::Transport;
use crate::raft::driver::Input;
use crate::raft::handle::RaftHandle;
use crate::watermark::Watermark;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Syncs WATERMARK once a second when it changed.
pub async fn sync_watermark(watermark: Arc<Watermark>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let w = watermark.clone();
        let synced = tokio::task::spawn_blocking(move || w.sync_if_due(clock::boottime_ns())).await;
        if let Ok(Err(e)) = synced {
            tracing::error!(error = %e, "WATERMARK cannot be synced");
        }
    }
}

/// Gives leaderships up while this node's clock is far ahead of its peers'.
pub async fn watch_clock(transport: Transport, input: Arc<dyn Fn(Input) + Send + Sync>) {
    const AHEAD_MS_MAX: i64 = 500;
    let mut seconds_ahead = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match transport.clock_ahead_ms() {
            Some(ms) if ms > AHEAD_MS_MAX => {
                seconds_ahead += 1;
                // One measurement right after a pause is wrong.
                if seconds_ahead >= 3 {
                    input(Input::ClockAhead { ms });
                }
            }
            _ => seconds_ahead = 0,
        }
    }
}

/// Shows the disk to the services, and hands leaderships over when it becomes nearly full: this node
/// refuses appends then.
pub async fn watch_disk(disk: Arc<disk::Disk>, info: Arc<NodeInfo>, raft: RaftHandle) {
    let mut refused = false;
    loop {
        info.disk.total_bytes.store(disk.total_bytes(), Ordering::Relaxed);
        info.disk.free_bytes.store(disk.free_bytes(), Ordering::Relaxed);
        info.disk.limit_bytes.store(disk.limit_bytes(), Ordering::Relaxed);
        let now = disk.appends_refused();
        info.disk.appends_refused.store(now, Ordering::Relaxed);
        if now && !refused {
            let _ = raft.transfer_all().await;
        }
        refused = now;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
