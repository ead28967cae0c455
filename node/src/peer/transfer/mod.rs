//! Checkpoints for replicas that fell behind the kept log.
//!
//! ```text
//! leader's node                                    node of the replica
//! want ─> slot ─> checkpoint, manifest (reused)
//!                 Offer ─────────────────────────> room? one of few? ─> taken
//!                 <───────────────────── FetchManifest, FetchChunk ...  into <data>/incoming/<replica>.<n>
//!                                                  sizes, BLAKE3, mark inside, sync, rename to
//!                                                  <data>/partitions/<replica>.<n>, install
//! log is let go <─────────────────────TransferDone
//! ```
//! The receiver pulls, so it sets the pace and goes on where a broken connection left it. Nothing
//! that arrives is opened before all of it is verified, and what is not taken is removed.
mod manifest;
mod rate;
mod receiver;
mod sender;

pub use manifest::ManifestError;

use super::control::{ControlError, TransferHandler};
use super::transport::Transport;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::partition::store::AppliedMark;
use crate::raft::membership::Membership;
use rate::Rate;
use ringfold_proto::internal::{
    self, Chunk, FetchChunk, FetchManifest, Manifest, Offer, Refusal, TransferDone,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const CHUNK_BYTES: u32 = 1 << 20;

/// What transfers need of the node that they run on.
#[tonic::async_trait]
pub trait TransferHost: Send + Sync + 'static {
    /// Hard-links the database of this node's replica of `group` into `path`, which does not exist
    /// yet. Waits for the disk.
    fn checkpoint(&self, group: GroupId, path: &Path) -> Result<Checkpoint, String>;

    /// First index that this node's log of `group` still has: from there on the receiver goes on.
    fn first_index(&self, group: GroupId) -> u64;

    /// Keep the log of `group` behind `index` for `to`; `None`: its transfer ended, well or not.
    fn hold_log(&self, group: GroupId, to: ReplicaId, index: Option<u64>);

    /// This node's replica of `group`.
    fn replica(&self, group: GroupId) -> Option<LocalReplica>;

    /// Reads the mark inside a checkpoint (`partition::store::read_mark`). Waits for the disk.
    fn read_mark(&self, path: &Path) -> Result<AppliedMark, String>;

    /// The checkpoint lies verified and synced in `<data>/partitions/<replica>.<directory>`. Answers
    /// whether the replica goes on with it; if not, that directory is removed.
    async fn install(&self, received: Received) -> bool;
}

/// What `TransferHost::checkpoint` made.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub from: ReplicaId,
    /// Read from inside.
    pub mark: AppliedMark,
    /// Of the replica's record in the log, with its index: counts where the mark has none.
    pub membership: internal::Membership,
    pub membership_index: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalReplica {
    pub replica: ReplicaId,
    /// It lives in `<data>/partitions/<replica>.<directory>`.
    pub directory: u32,
    pub applied_index: u64,
}

/// As `raft::driver::Incoming`, without the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub directory: u32,
    pub index: u64,
    pub term: u64,
    pub membership: Membership,
    pub membership_index: u64,
}

#[derive(Debug, Clone)]
pub struct TransferSettings {
    pub data_dir: PathBuf,
    /// Transfers at once, in each direction.
    pub outgoing_max: usize,
    pub incoming_max: usize,
    /// In each direction; 0: no limit.
    pub bytes_per_s: u64,
    /// A checkpoint is kept so long for another try.
    pub checkpoint_kept_ms: u64,
    /// A receiver that has neither asked for anything nor said that it is done for so long is given
    /// up.
    pub silence_ms: u64,
    /// A checkpoint is taken in only if so much room is left beside it, or a tenth of the disk if
    /// that is less: else appends would be refused.
    pub disk_min_free_bytes: u64,
    /// Between tries, at first; doubles up to sixteen times that.
    pub retry_ms: u64,
}

impl TransferSettings {
    pub fn new(data_dir: PathBuf) -> TransferSettings {
        TransferSettings {
            data_dir,
            outgoing_max: 2,
            incoming_max: 2,
            bytes_per_s: 256 << 20,
            checkpoint_kept_ms: 60_000,
            silence_ms: 120_000,
            disk_min_free_bytes: 1 << 30,
            retry_ms: 500,
        }
    }
}

/// Why a transfer ended without an installed checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Peer(#[from] ControlError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{file} is not what the manifest says, also when fetched again: {reason}")]
    Corrupt { file: String, reason: &'static str },
    #[error("the checkpoint cannot be made: {0}")]
    Checkpoint(String),
    #[error("the mark inside the checkpoint cannot be read: {0}")]
    Mark(String),
    #[error("{path} cannot be {action}: {error}")]
    Disk { path: PathBuf, action: &'static str, error: io::Error },
    #[error(
        "the disk has {free_bytes} bytes free, {needed_bytes} are needed: free some or add more"
    )]
    DiskFull { free_bytes: u64, needed_bytes: u64 },
    #[error("the replica is another one now, or has a new directory")]
    ReplicaChanged,
    #[error("the replica did not take the checkpoint: it needs none any more, or was closed")]
    NotTaken,
    #[error("the receiver failed: {0}")]
    Receiver(String),
    #[error("the receiver has said nothing for {ms} ms")]
    Silent { ms: u64 },
    #[error("the log begins at {first_index} by now: a checkpoint at {index} is of no more use")]
    Overtaken { index: u64, first_index: u64 },
    #[error("this node is in no cluster yet")]
    NotJoined,
    #[error("the node stops")]
    Stopping,
}

impl TransferError {
    fn disk(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> TransferError {
        move |error| TransferError::Disk { path: path.into(), action, error }
    }

    /// Whether the peer or the network may do better next time.
    fn is_passing(&self) -> bool {
        match self {
            TransferError::Peer(ControlError::Refused(r)) => r.reason == BUSY,
            TransferError::Peer(ControlError::NoAddress(_) | ControlError::TooLarge { .. }) => {
                false
            }
            TransferError::Peer(_) => true,
            _ => false,
        }
    }
}

const BUSY: &str = "BUSY";

/// Counted since the start.
#[derive(Debug, Default)]
pub struct TransferCounters {
    pub sent: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub send_failures: AtomicU64,
    pub checkpoints_made: AtomicU64,
    pub received: AtomicU64,
    pub received_bytes: AtomicU64,
    pub receive_failures: AtomicU64,
}

/// All checkpoint transfers of a node, in both directions. Cheap to clone.
#[derive(Clone)]
pub struct Transfers(Arc<Inner>);

struct Inner {
    settings: TransferSettings,
    transport: Transport,
    host: Arc<dyn TransferHost>,
    rate_out: Rate,
    rate_in: Rate,
    counters: TransferCounters,
    sender: sender::Sender,
    receiver: receiver::Receiver,
}

impl Transfers {
    /// Removes what an earlier process left in `<data>/incoming` and `<data>/checkpoints`.
    pub fn new(
        settings: TransferSettings,
        transport: Transport,
        host: Arc<dyn TransferHost>,
    ) -> Result<Transfers, TransferError> {
        for folder in [INCOMING, CHECKPOINTS] {
            let path = settings.data_dir.join(folder);
            remove_folder(&path).map_err(TransferError::disk(&path, "cleared"))?;
            std::fs::create_dir_all(&path).map_err(TransferError::disk(&path, "created"))?;
        }
        let partitions = settings.data_dir.join(PARTITIONS);
        std::fs::create_dir_all(&partitions)
            .map_err(TransferError::disk(&partitions, "created"))?;
        Ok(Transfers(Arc::new(Inner {
            rate_out: Rate::new(settings.bytes_per_s),
            rate_in: Rate::new(settings.bytes_per_s),
            counters: TransferCounters::default(),
            sender: sender::Sender::new(settings.outgoing_max),
            receiver: receiver::Receiver::default(),
            settings,
            transport,
            host,
        })))
    }

    /// The replica on that node is behind the kept log of `group`, which this node leads. Never
    /// waits; again for one that is on its way: nothing happens.
    pub fn want(&self, group: GroupId, replica: ReplicaId, node: NodeId) {
        sender::want(&self.0, group, replica, node);
    }

    pub fn counters(&self) -> &TransferCounters {
        &self.0.counters
    }
}

#[tonic::async_trait]
impl TransferHandler for Transfers {
    async fn offer(&self, from: NodeId, offer: Offer) -> Result<(), Refusal> {
        receiver::offer(&self.0, from, offer)
    }

    async fn done(&self, from: NodeId, done: TransferDone) {
        self.0.sender.done(from, done);
    }

    async fn manifest(&self, from: NodeId, fetch: FetchManifest) -> Result<Manifest, Refusal> {
        self.0.sender.manifest(from, &fetch)
    }

    async fn chunk(&self, from: NodeId, fetch: FetchChunk) -> Result<Chunk, Refusal> {
        sender::chunk(&self.0, from, fetch).await
    }
}

const INCOMING: &str = "incoming";
const CHECKPOINTS: &str = "checkpoints";
const PARTITIONS: &str = "partitions";

/// Removes a folder; fine if there is none.
fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> Result<(), TransferError> {
    crate::disk::sync_folder(path).map_err(TransferError::disk(path, "synced"))
}

/// Runs what waits for the disk apart from the runtime's threads.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    // Cancelled only while the runtime goes down.
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(TransferError::Stopping))
}

#[cfg(test)]
mod tests;
