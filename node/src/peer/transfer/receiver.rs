//! The receiver's side: takes an offer, fetches, verifies, and hands over.
use super::manifest::{Checked, File, check};
use super::{
    BUSY, CHUNK_BYTES, INCOMING, Inner, LocalReplica, PARTITIONS, Received, TransferError, on_disk,
    remove_folder, sync_folder,
};
use crate::disk::limit_bytes;
use crate::failpoint;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::peer::control::{PeerClient, refusal};
use crate::peer::frame::Kind;
use bytes::Bytes;
use parking_lot::Mutex;
use ringfold_proto::internal::{FetchChunk, FetchManifest, Offer, Refusal, TransferDone};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Connections made for one transfer without a byte of progress between them.
const TRIES_MAX: u32 = 6;
/// How often one transfer may fetch a damaged file again.
const REFETCHES_MAX: u32 = 2;

#[derive(Default)]
pub(super) struct Receiver {
    incoming: Mutex<HashMap<GroupId, (NodeId, Offer)>>,
}

/// Takes the offer and starts to fetch, or says why not.
pub(super) fn offer(inner: &Arc<Inner>, from: NodeId, offer: Offer) -> Result<(), Refusal> {
    let (group, replica) = (GroupId(offer.group), ReplicaId(offer.replica_id));
    let local = inner.host.replica(group).filter(|l| l.replica == replica);
    let Some(local) = local else {
        return Err(refusal("NO_REPLICA", "this node has no such replica"));
    };
    if local.applied_index >= offer.index {
        return Err(refusal("NOT_NEEDED", "this replica is further than the checkpoint"));
    }
    // Before the room is measured: what has come of it has taken some.
    if inner.receiver.incoming.lock().get(&group).is_some_and(|i| *i == (from, offer)) {
        return Ok(());
    }
    check_room(inner, offer.bytes).map_err(|e| refusal("DISK_FULL", e))?;
    {
        let mut incoming = inner.receiver.incoming.lock();
        if incoming.get(&group).is_some_and(|i| *i == (from, offer)) {
            return Ok(());
        }
        if incoming.contains_key(&group) || incoming.len() >= inner.settings.incoming_max {
            return Err(refusal(BUSY, "as many checkpoints as allowed are being received"));
        }
        incoming.insert(group, (from, offer));
    }
    failpoint::hit("offer-taken", group);
    let inner = inner.clone();
    let runtime = inner.transport.runtime().clone();
    runtime.spawn(async move {
        let stop = inner.transport.stopped();
        tokio::select! {
            () = stop.cancelled() => {}
            () = receive(&inner, from, &offer, local) => {}
        }
        inner.receiver.incoming.lock().remove(&group);
    });
    Ok(())
}

fn check_room(inner: &Inner, bytes: u64) -> Result<(), TransferError> {
    let path = &inner.settings.data_dir;
    let stat =
        rustix::fs::statvfs(path).map_err(|e| TransferError::disk(path, "measured")(e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total_bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
    let limit_bytes = limit_bytes(total_bytes, inner.settings.disk_min_free_bytes);
    let needed_bytes = bytes.saturating_add(limit_bytes);
    if free_bytes < needed_bytes {
        return Err(TransferError::DiskFull { free_bytes, needed_bytes });
    }
    Ok(())
}

/// Fetches, installs and tells the sender how it went.
async fn receive(inner: &Arc<Inner>, from: NodeId, offer: &Offer, local: LocalReplica) {
    let start = Instant::now();
    let mut job = Job::new(inner, offer, local);
    let mut outcome = job.fetch_all(inner, from).await;
    if outcome.is_ok() {
        outcome = job.install(inner).await;
    }
    // What was installed has another name now.
    let directory = job.incoming.clone();
    let _ = on_disk(move || {
        remove_folder(&directory).map_err(TransferError::disk(&directory, "removed"))
    })
    .await;
    let (group, replica, from_node) = (job.group, job.replica.0, from.0);
    let (index, bytes) = (offer.index, offer.bytes);
    match &outcome {
        Ok(()) => {
            inner.counters.received.fetch_add(1, Ordering::Relaxed);
            let took_ms = start.elapsed().as_millis() as u64;
            tracing::info!(%group, replica, from_node, index, bytes, took_ms, "checkpoint installed");
        }
        Err(error) => {
            inner.counters.receive_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%group, replica, from_node, index, %error, "checkpoint not installed");
        }
    }
    let done = TransferDone {
        group: offer.group,
        replica_id: offer.replica_id,
        index: offer.index,
        installed: outcome.is_ok(),
        message: outcome.err().map(|e| e.to_string()).unwrap_or_default(),
    };
    // A sender that does not hear it gives up after a while.
    for _ in 0..3 {
        let told = match inner.transport.connect_to(from, Kind::Control).await {
            Ok(mut client) => client.transfer_done(done.clone()).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => return,
            Err(_) => sleep(Duration::from_millis(inner.settings.retry_ms)).await,
        }
    }
}

/// One checkpoint on its way in: goes on where a broken connection left it.
struct Job {
    group: GroupId,
    replica: ReplicaId,
    index: u64,
    bytes: u64,
    directory: u32,
    incoming: PathBuf,
    home: PathBuf,
    manifest: Option<Checked>,
    /// Files of the manifest that are complete.
    complete: usize,
    partial: Option<Partial>,
    /// The last complete file on its way to the disk, beside the next one's chunks. Those before it
    /// are synced.
    syncing: Option<JoinHandle<Result<(), TransferError>>>,
    refetches: u32,
}

/// The file that is being written.
struct Partial {
    path: PathBuf,
    file: std::fs::File,
    hasher: blake3::Hasher,
    offset: u64,
}

impl Job {
    fn new(inner: &Inner, offer: &Offer, local: LocalReplica) -> Job {
        let directory = local.directory.saturating_add(1);
        let name = format!("{}.{directory}", local.replica.0);
        Job {
            group: GroupId(offer.group),
            replica: local.replica,
            index: offer.index,
            bytes: offer.bytes,
            directory,
            incoming: inner.settings.data_dir.join(INCOMING).join(&name),
            home: inner.settings.data_dir.join(PARTITIONS).join(&name),
            manifest: None,
            complete: 0,
            partial: None,
            syncing: None,
            refetches: 0,
        }
    }

    /// Fetches all files; over several connections if need be.
    async fn fetch_all(&mut self, inner: &Inner, from: NodeId) -> Result<(), TransferError> {
        let folder = self.incoming.clone();
        on_disk(move || {
            remove_folder(&folder).map_err(TransferError::disk(&folder, "cleared"))?;
            std::fs::create_dir(&folder).map_err(TransferError::disk(&folder, "created"))
        })
        .await?;
        let (mut tries, mut wait_ms) = (0, inner.settings.retry_ms);
        loop {
            let before = self.progress();
            let error = match self.fetch(inner, from).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.progress() != before {
                (tries, wait_ms) = (0, inner.settings.retry_ms);
            }
            tries += 1;
            if !error.is_passing() || tries >= TRIES_MAX {
                return Err(error);
            }
            tracing::info!(group = %self.group, replica = self.replica.0, %error, "fetching a checkpoint: trying again");
            sleep(Duration::from_millis(wait_ms)).await;
            wait_ms = (wait_ms * 2).min(16 * inner.settings.retry_ms);
        }
    }

    fn progress(&self) -> (usize, u64) {
        (self.complete, self.partial.as_ref().map_or(0, |p| p.offset))
    }

    /// Fetches what is missing over one connection.
    async fn fetch(&mut self, inner: &Inner, from: NodeId) -> Result<(), TransferError> {
        let local = inner.transport.local().get().ok_or(TransferError::NotJoined)?;
        let mut client = inner.transport.connect_to(from, Kind::Transfer).await?;
        let fetch = FetchManifest { group: self.group.0, replica_id: self.replica.0 };
        let manifest = client.manifest(fetch).await?;
        let checked = check(&manifest, &local.cluster_id, self.group, self.replica, self.index)?;
        if checked.bytes > self.bytes {
            // Room was looked for on the offer's word.
            check_room(inner, checked.bytes)?;
        }
        if self.manifest.as_ref().is_none_or(|m| *m != checked) {
            self.complete = 0;
            self.partial = None;
            self.manifest = Some(checked.clone());
        }
        while let Some(file) = checked.files.get(self.complete) {
            self.fetch_file(inner, &mut client, file).await?;
        }
        Ok(())
    }

    async fn fetch_file(
        &mut self,
        inner: &Inner,
        client: &mut PeerClient,
        file: &File,
    ) -> Result<(), TransferError> {
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let path = self.incoming.join(&file.name);
                on_disk(move || Partial::create(path)).await?
            }
        };
        // One chunk is fetched while the one before it is hashed and written.
        let mut fetched: Option<Bytes> = None;
        loop {
            let offset = partial.offset + fetched.as_ref().map_or(0, |data| data.len() as u64);
            if fetched.is_none() && offset == file.bytes {
                break;
            }
            let written = async {
                match fetched.take() {
                    Some(data) => on_disk(move || partial.append(&data)).await,
                    None => Ok(partial),
                }
            };
            let next = self.next_chunk(inner, client, file, offset);
            let (next, written) = tokio::join!(next, written);
            partial = written?;
            failpoint::hit("chunk-written", self.group);
            match next {
                Ok(data) => fetched = data,
                Err(error) => {
                    self.partial = Some(partial);
                    return Err(error);
                }
            }
        }
        if *partial.hasher.finalize().as_bytes() != file.blake3 {
            self.refetches += 1;
            if self.refetches > REFETCHES_MAX {
                return Err(corrupt(file, "its checksum is another"));
            }
            tracing::warn!(group = %self.group, file = file.name, "a damaged file is fetched again");
            return Ok(());
        }
        self.synced().await?;
        let group = self.group;
        self.syncing = Some(tokio::task::spawn_blocking(move || {
            failpoint::hit("file-unsynced", group);
            partial.file.sync_all().map_err(TransferError::disk(&partial.path, "synced"))
        }));
        self.complete += 1;
        Ok(())
    }

    /// The chunk of `file` at `offset`; none at its end.
    async fn next_chunk(
        &self,
        inner: &Inner,
        client: &mut PeerClient,
        file: &File,
        offset: u64,
    ) -> Result<Option<Bytes>, TransferError> {
        let max_bytes = file.bytes.saturating_sub(offset).min(u64::from(CHUNK_BYTES)) as u32;
        if max_bytes == 0 {
            return Ok(None);
        }
        inner.rate_in.pass(max_bytes as usize).await;
        let fetch = FetchChunk {
            group: self.group.0,
            replica_id: self.replica.0,
            index: self.index,
            file: file.name.clone(),
            offset,
            max_bytes,
        };
        let data = client.chunk(fetch).await?.data;
        if data.is_empty() || data.len() > max_bytes as usize {
            return Err(corrupt(file, "a chunk is empty or larger than asked for"));
        }
        inner.counters.received_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(Some(data))
    }

    /// Waits until all complete files are synced.
    async fn synced(&mut self) -> Result<(), TransferError> {
        match self.syncing.take() {
            // Cancelled only while the runtime goes down.
            Some(last) => last.await.unwrap_or(Err(TransferError::Stopping)),
            None => Ok(()),
        }
    }

    /// Verifies the whole, gives it its place and hands it over.
    async fn install(&mut self, inner: &Inner) -> Result<(), TransferError> {
        self.synced().await?;
        let Some(manifest) = self.manifest.take() else { return Err(TransferError::NotTaken) };
        let host = inner.host.clone();
        let (incoming, checked) = (self.incoming.clone(), manifest.clone());
        on_disk(move || {
            let mark = host.read_mark(&incoming).map_err(TransferError::Mark)?;
            checked.agrees(&mark)?;
            sync_folder(&incoming)
        })
        .await?;
        let is_same = |l: LocalReplica| {
            l.replica == self.replica && l.directory.checked_add(1) == Some(self.directory)
        };
        if !inner.host.replica(self.group).is_some_and(is_same) {
            return Err(TransferError::ReplicaChanged);
        }
        failpoint::hit("install-before-rename", self.group);
        let (incoming, home) = (self.incoming.clone(), self.home.clone());
        on_disk(move || move_in(&incoming, &home)).await?;
        failpoint::hit("install-renamed", self.group);
        let received = Received {
            group: self.group,
            replica: self.replica,
            directory: self.directory,
            index: manifest.index,
            term: manifest.term,
            membership: manifest.membership,
            membership_index: manifest.membership_index,
        };
        if inner.host.install(received).await {
            failpoint::hit("install-taken", self.group);
            return Ok(());
        }
        let home = self.home.clone();
        on_disk(move || remove_folder(&home).map_err(TransferError::disk(&home, "removed")))
            .await?;
        Err(TransferError::NotTaken)
    }
}

fn corrupt(file: &File, reason: &'static str) -> TransferError {
    TransferError::Corrupt { file: file.name.clone(), reason }
}

/// Renames, durably. A folder that is there already is of a checkpoint that was not taken: the
/// replica lives in the one before.
fn move_in(incoming: &Path, home: &Path) -> Result<(), TransferError> {
    remove_folder(home).map_err(TransferError::disk(home, "cleared"))?;
    std::fs::rename(incoming, home).map_err(TransferError::disk(incoming, "renamed"))?;
    for path in [home, incoming] {
        if let Some(parent) = path.parent() {
            sync_folder(parent)?;
        }
    }
    Ok(())
}

impl Partial {
    fn create(path: PathBuf) -> Result<Partial, TransferError> {
        let file = std::fs::File::create(&path).map_err(TransferError::disk(&path, "created"))?;
        Ok(Partial { path, file, hasher: blake3::Hasher::new(), offset: 0 })
    }

    fn append(mut self, data: &Bytes) -> Result<Partial, TransferError> {
        self.file.write_all(data).map_err(TransferError::disk(&self.path, "written"))?;
        self.hasher.update(data);
        self.offset += data.len() as u64;
        Ok(self)
    }
}
