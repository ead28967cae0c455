//! The leader's side: prepares checkpoints, offers them, and answers what receivers fetch.
use super::manifest::{FILES_MAX, check};
use super::{
    BUSY, CHECKPOINTS, CHUNK_BYTES, Inner, ManifestError, TransferError, on_disk, remove_folder,
};
use crate::failpoint;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::peer::control::{ControlError, refusal};
use crate::peer::frame::Kind;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use ringfold_proto::internal::{
    self, Chunk, FetchChunk, FetchManifest, Manifest, ManifestFile, Offer, Refusal, TransferDone,
};
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Transfers that may wait for a slot; the driver asks again for others.
const WAITING_MAX: usize = 2_048;
/// How often a busy receiver is asked again.
const OFFERS_MAX: u32 = 20;

pub(super) struct Sender {
    slots: Semaphore,
    outgoing: Mutex<HashMap<(GroupId, ReplicaId), Outgoing>>,
    /// One at a time: it reads a whole database.
    prepared: tokio::sync::Mutex<HashMap<GroupId, Arc<Prepared>>>,
    serial: AtomicU64,
    /// Failures of a replica's transfers one after the other.
    failures: Mutex<HashMap<(GroupId, ReplicaId), u32>>,
}

struct Outgoing {
    node: NodeId,
    /// None: not prepared yet.
    ready: Option<Ready>,
}

struct Ready {
    prepared: Arc<Prepared>,
    active: Instant,
    done: Option<oneshot::Sender<TransferDone>>,
}

/// A checkpoint on disk; removed when nobody uses it any more.
struct Prepared {
    directory: PathBuf,
    manifest: Manifest,
    bytes: u64,
    runtime: Handle,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        // Unlinking large files takes time. What a stop leaves over goes at the next start.
        self.runtime.spawn_blocking(move || {
            if let Err(error) = remove_folder(&directory) {
                tracing::warn!(path = %directory.display(), %error, "a checkpoint was not removed");
            }
        });
    }
}

impl Sender {
    pub fn new(outgoing_max: usize) -> Sender {
        Sender {
            slots: Semaphore::new(outgoing_max),
            outgoing: Mutex::default(),
            prepared: tokio::sync::Mutex::default(),
            serial: AtomicU64::new(0),
            failures: Mutex::default(),
        }
    }

    /// Runs `f` on what is offered to that replica on that node, and notes that its receiver lives.
    fn with_ready<T>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        from: NodeId,
        f: impl FnOnce(&mut Ready) -> T,
    ) -> Option<T> {
        let mut outgoing = self.outgoing.lock();
        let o = outgoing.get_mut(&(group, replica)).filter(|o| o.node == from)?;
        let ready = o.ready.as_mut()?;
        ready.active = Instant::now();
        Some(f(ready))
    }

    /// How long to wait after a transfer failed, in shares of the first wait: doubles up to four.
    fn failed(&self, key: (GroupId, ReplicaId)) -> u64 {
        let mut failures = self.failures.lock();
        if failures.len() >= WAITING_MAX && !failures.contains_key(&key) {
            // Of replicas that are gone, mostly: the others are asked a little sooner.
            failures.clear();
        }
        let n = failures.entry(key).or_default();
        *n = n.saturating_add(1);
        1 << (*n - 1).min(2)
    }

    pub fn done(&self, from: NodeId, done: TransferDone) {
        self.with_ready(GroupId(done.group), ReplicaId(done.replica_id), from, |ready| {
            if ready.prepared.manifest.index == done.index
                && let Some(reply) = ready.done.take()
            {
                let _ = reply.send(done);
            }
        });
    }

    pub fn manifest(&self, from: NodeId, fetch: &FetchManifest) -> Result<Manifest, Refusal> {
        let (group, replica) = (GroupId(fetch.group), ReplicaId(fetch.replica_id));
        self.with_ready(group, replica, from, |r| r.prepared.manifest.clone())
            .ok_or_else(not_offered)
    }
}

fn not_offered() -> Refusal {
    refusal("NOT_OFFERED", "no checkpoint is offered to this replica any more")
}

pub(super) async fn chunk(
    inner: &Arc<Inner>,
    from: NodeId,
    fetch: FetchChunk,
) -> Result<Chunk, Refusal> {
    let (group, replica) = (GroupId(fetch.group), ReplicaId(fetch.replica_id));
    let prepared = inner
        .sender
        .with_ready(group, replica, from, |r| r.prepared.clone())
        .filter(|p| p.manifest.index == fetch.index)
        .ok_or_else(not_offered)?;
    // Only names of the manifest: no other file can be read through this.
    let file = prepared.manifest.files.iter().find(|f| f.name == fetch.file);
    let bytes = file.map(|f| f.bytes).ok_or_else(|| refusal("NO_FILE", &fetch.file))?;
    let left = bytes.saturating_sub(fetch.offset);
    let len = u64::from(fetch.max_bytes.min(CHUNK_BYTES)).min(left) as usize;
    inner.rate_out.pass(len).await;
    failpoint::hit(point_of(&prepared.manifest, &fetch, len as u64), group);
    let read = on_disk(move || {
        let path = prepared.directory.join(&fetch.file);
        let mut data = vec![0; len];
        std::fs::File::open(&path)
            .and_then(|f| f.read_exact_at(&mut data, fetch.offset))
            .map_err(TransferError::disk(&path, "read"))?;
        Ok(data)
    });
    let mut data = read.await.map_err(|error| {
        tracing::error!(%error, "a chunk of a checkpoint cannot be read");
        refusal("UNREADABLE", error)
    })?;
    if failpoint::hit("chunk-damaged", group) {
        data.iter_mut().skip(len / 2).take(1).for_each(|byte| *byte ^= 0x10);
    }
    if failpoint::hit("chunk-short", group) {
        data.truncate(len / 2);
    }
    if failpoint::hit("chunk-missing", group) {
        data.clear();
    }
    inner.counters.sent_bytes.fetch_add(len as u64, Ordering::Relaxed);
    Ok(Chunk { data: Bytes::from(data) })
}

/// The failpoint of a chunk, by its place in the whole checkpoint.
fn point_of(manifest: &Manifest, fetch: &FetchChunk, len: u64) -> &'static str {
    let is = |file: Option<&ManifestFile>| file.is_some_and(|f| f.name == fetch.file);
    if is(manifest.files.first()) && fetch.offset == 0 {
        "chunk-first"
    } else if is(manifest.files.last())
        && manifest.files.last().is_some_and(|f| f.bytes == fetch.offset + len)
    {
        "chunk-last"
    } else {
        "chunk-middle"
    }
}

pub(super) fn want(inner: &Arc<Inner>, group: GroupId, replica: ReplicaId, node: NodeId) {
    let key = (group, replica);
    {
        let mut outgoing = inner.sender.outgoing.lock();
        if outgoing.contains_key(&key) || outgoing.len() >= WAITING_MAX {
            return;
        }
        outgoing.insert(key, Outgoing { node, ready: None });
    }
    let inner = inner.clone();
    let runtime = inner.transport.runtime().clone();
    runtime.spawn(async move {
        let stop = inner.transport.stopped();
        let start = Instant::now();
        let outcome = tokio::select! {
            () = stop.cancelled() => Err(TransferError::Stopping),
            outcome = send(&inner, group, replica, node) => outcome,
        };
        match &outcome {
            Ok(bytes) => {
                inner.sender.failures.lock().remove(&key);
                inner.counters.sent.fetch_add(1, Ordering::Relaxed);
                let took_ms = start.elapsed().as_millis() as u64;
                tracing::info!(%group, replica = replica.0, node = node.0, bytes, took_ms, "checkpoint sent");
                // The log is kept until the leader has heard from the replica itself.
                sleep(Duration::from_millis(4 * inner.settings.retry_ms)).await;
            }
            Err(TransferError::Stopping) => return,
            Err(error) => {
                inner.counters.send_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%group, replica = replica.0, node = node.0, %error, "checkpoint not sent");
                // The driver asks again at once.
                let shares = inner.sender.failed(key);
                sleep(Duration::from_millis(4 * inner.settings.retry_ms * shares)).await;
            }
        }
        inner.sender.outgoing.lock().remove(&key);
        inner.host.hold_log(group, replica, None);
    });
}

async fn send(
    inner: &Arc<Inner>,
    group: GroupId,
    replica: ReplicaId,
    node: NodeId,
) -> Result<u64, TransferError> {
    let _slot = inner.sender.slots.acquire().await.map_err(|_| TransferError::Stopping)?;
    // From before the checkpoint is made: hashing a large database takes a while.
    if let Some(local) = inner.host.replica(group) {
        inner.host.hold_log(group, replica, Some(local.applied_index));
    }
    let prepared = prepare(inner, group, replica).await?;
    let (index, bytes) = (prepared.manifest.index, prepared.bytes);
    inner.host.hold_log(group, replica, Some(index));
    let (reply, mut done) = oneshot::channel();
    if let Some(o) = inner.sender.outgoing.lock().get_mut(&(group, replica)) {
        o.ready = Some(Ready { prepared, active: Instant::now(), done: Some(reply) });
    }
    let offer = Offer { group: group.0, replica_id: replica.0, index, bytes };
    make_offer(inner, node, &offer).await?;
    let silence = Duration::from_millis(inner.settings.silence_ms);
    let quiet = Duration::from_millis(4 * inner.settings.retry_ms).min(silence / 4);
    let mut held = Instant::now();
    loop {
        match timeout(quiet, &mut done).await {
            Ok(Ok(TransferDone { installed: true, .. })) => return Ok(bytes),
            Ok(Ok(TransferDone { message, .. })) => {
                // It may be this copy that is damaged: the next try makes another.
                let mut all = inner.sender.prepared.lock().await;
                if all.get(&group).is_some_and(|p| p.manifest.index == index) {
                    all.remove(&group);
                }
                return Err(TransferError::Receiver(message));
            }
            Ok(Err(_)) => return Err(TransferError::Stopping),
            Err(_) => {
                if held.elapsed() >= silence / 4 {
                    held = Instant::now();
                    // What is held is forgotten in time, unless it is said again; what the log has
                    // dropped all the same makes this checkpoint useless.
                    inner.host.hold_log(group, replica, Some(index));
                    let first_index = inner.host.first_index(group);
                    if index + 1 < first_index {
                        inner.sender.prepared.lock().await.remove(&group);
                        return Err(TransferError::Overtaken { index, first_index });
                    }
                }
                let silent = {
                    let outgoing = inner.sender.outgoing.lock();
                    let ready = outgoing.get(&(group, replica)).and_then(|o| o.ready.as_ref());
                    ready.map_or(Duration::MAX, |r| r.active.elapsed())
                };
                if silent > silence {
                    return Err(TransferError::Silent { ms: inner.settings.silence_ms });
                }
                // It may have started again, and know of no offer: one that fetches says yes to this
                // one once more.
                if silent > quiet
                    && let Err(ControlError::Refused(r)) = offer_once(inner, node, &offer).await
                    && r.reason != BUSY
                {
                    return Err(ControlError::Refused(r).into());
                }
            }
        }
    }
}

async fn offer_once(inner: &Inner, node: NodeId, offer: &Offer) -> Result<(), ControlError> {
    inner.transport.connect_to(node, Kind::Control).await?.offer(*offer).await
}

/// Offers until the receiver takes it or says no for another reason than that it has much to do.
async fn make_offer(inner: &Inner, node: NodeId, offer: &Offer) -> Result<(), TransferError> {
    let mut wait_ms = inner.settings.retry_ms;
    for tries in 1.. {
        match offer_once(inner, node, offer).await {
            Ok(()) => break,
            Err(ControlError::Refused(r)) if r.reason == BUSY && tries < OFFERS_MAX => {}
            Err(error) => return Err(error.into()),
        }
        sleep(Duration::from_millis(wait_ms)).await;
        wait_ms = (wait_ms * 2).min(16 * inner.settings.retry_ms);
    }
    Ok(())
}

/// A checkpoint that helps the replica: one that is there already, or a new one.
async fn prepare(
    inner: &Arc<Inner>,
    group: GroupId,
    replica: ReplicaId,
) -> Result<Arc<Prepared>, TransferError> {
    let local = inner.transport.local().get().ok_or(TransferError::NotJoined)?;
    let mut all = inner.sender.prepared.lock().await;
    if let Some(there) = all.get(&group) {
        let index = there.manifest.index;
        let helps = check(&there.manifest, &local.cluster_id, group, replica, index).is_ok();
        if helps && index + 1 >= inner.host.first_index(group) {
            return Ok(there.clone());
        }
        all.remove(&group);
    }
    let parent = inner.settings.data_dir.join(CHECKPOINTS);
    let serial = inner.sender.serial.fetch_add(1, Ordering::Relaxed);
    let (host, runtime) = (inner.host.clone(), inner.transport.runtime().clone());
    let cluster_id = local.cluster_id.clone();
    let prepared = on_disk(move || {
        let making = parent.join(format!("{}.making-{serial}", group.0));
        let made = make(&*host, group, &cluster_id, &making);
        let (manifest, bytes) = made.inspect_err(|_| {
            let _ = remove_folder(&making);
        })?;
        // The serial tells two at one index apart while the older one is still being fetched.
        let directory = parent.join(format!("{}.{}.{serial}", group.0, manifest.index));
        let prepared = Prepared { directory, manifest, bytes, runtime };
        std::fs::rename(&making, &prepared.directory)
            .map_err(TransferError::disk(&making, "renamed"))?;
        Ok(Arc::new(prepared))
    })
    .await?;
    inner.counters.checkpoints_made.fetch_add(1, Ordering::Relaxed);
    let index = prepared.manifest.index;
    failpoint::hit("checkpoint-prepared", group);
    check(&prepared.manifest, &local.cluster_id, group, replica, index)?;
    all.insert(group, prepared.clone());
    tokio::spawn(forget_later(inner.clone(), group, Arc::downgrade(&prepared)));
    Ok(prepared)
}

/// Lets a checkpoint go once no transfer has used it for some time.
async fn forget_later(inner: Arc<Inner>, group: GroupId, prepared: std::sync::Weak<Prepared>) {
    let kept = Duration::from_millis(inner.settings.checkpoint_kept_ms);
    let stop = inner.transport.stopped();
    let mut idle_since = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(kept / 4) => {}
        }
        let mut all = inner.sender.prepared.lock().await;
        let is_kept = all.get(&group).is_some_and(|p| Arc::as_ptr(p) == prepared.as_ptr());
        if !is_kept {
            return;
        }
        if prepared.strong_count() > 1 {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= kept {
            all.remove(&group);
            return;
        }
    }
}

/// Makes a checkpoint in `path` and reads all of it for the manifest.
fn make(
    host: &dyn super::TransferHost,
    group: GroupId,
    cluster_id: &str,
    path: &Path,
) -> Result<(Manifest, u64), TransferError> {
    let made = host.checkpoint(group, path).map_err(TransferError::Checkpoint)?;
    failpoint::hit("checkpoint-made", group);
    let (membership_index, membership) = match &made.mark.membership {
        Some((index, bytes)) => {
            let inside = internal::Membership::decode(&bytes[..])
                .map_err(|e| TransferError::Checkpoint(format!("membership inside: {e}")))?;
            (*index, inside)
        }
        None => (made.membership_index, made.membership),
    };
    let mut files = Vec::new();
    let listed = std::fs::read_dir(path).map_err(TransferError::disk(path, "listed"))?;
    for entry in listed {
        let file = entry.map_err(TransferError::disk(path, "listed"))?.path();
        let mut hasher = blake3::Hasher::new();
        let bytes = std::fs::File::open(&file)
            .and_then(|mut f| std::io::copy(&mut f, &mut hasher))
            .map_err(TransferError::disk(&file, "read"))?;
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let blake3 = Bytes::copy_from_slice(hasher.finalize().as_bytes());
        files.push(ManifestFile { name, bytes, blake3 });
        if files.len() > FILES_MAX {
            return Err(ManifestError::FileCount(files.len()).into());
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = files.iter().map(|f| f.bytes).sum();
    if failpoint::hit("file-cut-short", group)
        && let Some(largest) = files.iter().max_by_key(|f| f.bytes)
    {
        let file = std::fs::OpenOptions::new().write(true).open(path.join(&largest.name));
        let _ = file.and_then(|f| f.set_len(largest.bytes / 2));
    }
    let manifest = Manifest {
        cluster_id: cluster_id.into(),
        group: group.0,
        index: made.mark.index,
        term: made.mark.term + u64::from(failpoint::hit("manifest-lies", group)),
        membership: Some(membership),
        from_replica_id: made.from.0,
        files,
        membership_index,
    };
    Ok((manifest, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_each_failure_of_a_replica_up_to_a_bound() {
        let sender = Sender::new(1);
        let (a, b) = ((GroupId(1), ReplicaId(1)), (GroupId(1), ReplicaId(2)));
        assert_eq!([(); 5].map(|()| sender.failed(a)), [1, 2, 4, 4, 4]);
        assert_eq!(sender.failed(b), 1);
        for i in 0..2 * WAITING_MAX as u64 {
            sender.failed((GroupId(1), ReplicaId(10 + i)));
        }
        assert!(sender.failures.lock().len() <= WAITING_MAX);
    }
}
