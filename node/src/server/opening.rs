//! What a node starts from: its log, judged before anything is written to it, and its replicas.
use crate::disk::{sync_folder, write_atomically};
use crate::ids::ReplicaId;
use crate::raft::driver::NewGroup;
use crate::raft::handle::Replicas;
use crate::raft::log::RaftLog;
use crate::raft::log::engine::{EngineLog, EngineSettings};
use crate::replicas::ReplicaHome;
use crate::watermark::{LogState, Watermark, judge};
use ringfold_proto::internal::Identity;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// What the log of the data directory is, and what it holds.
pub struct OpenedLog {
    pub log: Option<Arc<dyn RaftLog>>,
    pub watermark: Option<Arc<Watermark>>,
    pub lost: Option<String>,
}

/// Says that the log was lost, for good: what is written behind a lost end must never be taken for it.
const LOST: &str = "LOST";

/// Opens the log and judges it before anything is written to it.
pub fn open_log(dir: &Path, identity: &Identity) -> OpenedLog {
    let path = dir.join("log");
    let existed = path.exists();
    let lost = |log, reason: String| OpenedLog { log, watermark: None, lost: Some(reason) };
    let for_good = |log, reason: String| {
        if let Err(e) = write_atomically(&dir.join(LOST), reason.as_bytes()) {
            tracing::error!(error = %e, "{LOST} could not be written");
        }
        lost(log, reason)
    };
    if let Ok(reason) = std::fs::read_to_string(dir.join(LOST)) {
        let log = existed.then(|| EngineLog::open(&path, EngineSettings::default()).ok()).flatten();
        return lost(log.map(|l| Arc::new(l) as Arc<dyn RaftLog>), reason);
    }
    let (watermark, found) = match Watermark::open(dir) {
        Ok(opened) => opened,
        Err(e) => return lost(None, e.to_string()),
    };
    if !existed && identity.node_id != 0 {
        return for_good(None, "the log is missing, but this node has been a member".into());
    }
    let log = match EngineLog::open(&path, EngineSettings::default()) {
        Ok(log) => Arc::new(log),
        Err(e) => return lost(None, e.to_string()),
    };
    match judge(log.last_number(), found, identity.node_id != 0, existed) {
        LogState::Lost { reason } => for_good(Some(log), reason),
        // Before the identity says that there is a log, its folder must be there for good.
        LogState::Fine => match sync_folder(&path).and_then(|()| sync_folder(dir)) {
            Ok(()) => {
                OpenedLog { log: Some(log), watermark: Some(Arc::new(watermark)), lost: None }
            }
            Err(e) => lost(None, format!("the log's folder cannot be synced: {e}")),
        },
    }
}

pub type Loaded = (Vec<NewGroup>, BTreeSet<ReplicaId>);

/// Opens what the log has records of. Of a lost log the replicas are shown as closed.
pub fn load_replicas(
    opened: &OpenedLog,
    home: &ReplicaHome,
    replicas: &Replicas,
) -> std::io::Result<Loaded> {
    let (mut groups, mut known) = (Vec::new(), BTreeSet::new());
    let Some(log) = &opened.log else { return Ok((groups, known)) };
    let loaded = match log.load() {
        Ok(loaded) => loaded,
        Err(e) => {
            // A record of a newer version: nothing can be run, and nothing is removed.
            return Err(std::io::Error::other(e.to_string()));
        }
    };
    if opened.lost.is_none() {
        let live = loaded.iter().filter(|l| !l.record.destroyed).map(|l| l.record.directory_name());
        home.clean(&live.collect())?;
    }
    known.extend(loaded.iter().map(|l| l.record.replica));
    let live: Vec<_> = loaded.into_iter().filter(|l| !l.record.destroyed).collect();
    match &opened.lost {
        Some(reason) => {
            for l in live {
                ReplicaHome::register_closed(l.record.group, l.record.replica, reason, replicas);
            }
        }
        None => groups = home.load_all(live, replicas),
    }
    Ok((groups, known))
}
