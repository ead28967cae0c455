//! A checkpoint from node to node over loopback, against a plain copy of the same files.
use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, anyhow, bail};
use parking_lot::Mutex;
use prost::Message as _;
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use ringfold_node::{
    ids::{GroupId, NodeId, ReplicaId},
    partition::store::AppliedMark,
    peer::{
        LocalNode, LocalNodeCell,
        address_book::AddressBook,
        control::{ControlHandler, refusal},
        transfer::{Checkpoint, LocalReplica, Received, TransferHost, TransferSettings, Transfers},
        transport::{Handlers, Transport, TransportSettings},
    },
};
use ringfold_proto::internal::{self, Hello, HelloAnswer, Join, JoinAnswer, Refusal};
use serde::Serialize;
use tokio::sync::Notify;

use crate::cluster;

/// As large as those of a node's database.
const FILE_BYTES: u64 = 32 << 20;
/// What both sides read and write at once.
const BLOCK_BYTES: usize = 1 << 20;
const GROUP: GroupId = GroupId(4);
const SENDER: ReplicaId = ReplicaId(11);
const RECEIVER: ReplicaId = ReplicaId(12);
const INDEX: u64 = 100;

#[derive(Clone, Debug, clap::Args)]
pub struct TransferArgs {
    /// MiB of the checkpoint, in files of 32
    #[arg(long, default_value_t = 2_048, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub mib: u64,
}

/// Field names are those of the JSON line and stay.
#[derive(Clone, Debug, Serialize)]
pub struct TransferReport {
    pub bytes: u64,
    pub copy_bytes_per_s: f64,
    pub checkpoint_bytes_per_s: f64,
}

impl std::fmt::Display for TransferReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        writeln!(f, "checkpoint of {:.0} MiB from node to node", mib(self.bytes as f64))?;
        writeln!(f, "  {:>12.0} MiB/s", mib(self.checkpoint_bytes_per_s))?;
        writeln!(f, "  {:>12.0} MiB/s copied through a socket", mib(self.copy_bytes_per_s))
    }
}

/// Moves the same files both ways, each from the page cache to synced files, in folders below `dir`
/// that are removed.
///
/// # Errors
/// The disk or the loopback fails, or the receiver does not take the checkpoint.
pub async fn run(dir: &Path, args: &TransferArgs) -> anyhow::Result<TransferReport> {
    let scratch = cluster::scratch(dir)?;
    let source = scratch.path().join("source");
    let bytes = args.mib << 20;
    let files = make_files(&source, bytes).context("cannot make the files")?;
    let target = scratch.path().join("copy");
    let seconds = copy(&source, &files, &target).context("the plain copy failed")?;
    let copy_bytes_per_s = bytes as f64 / seconds;
    std::fs::remove_dir_all(&target)?;
    let seconds = checkpoint(scratch.path(), source).await?;
    Ok(TransferReport { bytes, copy_bytes_per_s, checkpoint_bytes_per_s: bytes as f64 / seconds })
}

fn make_files(dir: &Path, bytes: u64) -> anyhow::Result<Vec<(String, u64)>> {
    std::fs::create_dir(dir)?;
    let mut rng = SmallRng::seed_from_u64(1);
    let mut block = vec![0; BLOCK_BYTES];
    let mut files = Vec::new();
    for start in (0..bytes).step_by(FILE_BYTES as usize) {
        let len = FILE_BYTES.min(bytes - start);
        let name = format!("{:06}.sst", files.len() + 1);
        let mut file = File::create(dir.join(&name))?;
        for _ in (0..len).step_by(BLOCK_BYTES) {
            rng.fill_bytes(&mut block);
            file.write_all(&block)?;
        }
        file.sync_all()?;
        files.push((name, len));
    }
    Ok(files)
}

/// As `dd` through a socket, and a sync of each file at the end. Seconds.
fn copy(source: &Path, files: &[(String, u64)], target: &Path) -> anyhow::Result<f64> {
    std::fs::create_dir(target)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| source.join(name)).collect();
    let start = Instant::now();
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let mut socket = TcpStream::connect(address)?;
        let mut block = vec![0; BLOCK_BYTES];
        for path in paths {
            let mut file = File::open(path)?;
            loop {
                match file.read(&mut block)? {
                    0 => break,
                    n => socket.write_all(&block[..n])?,
                }
            }
        }
        Ok(())
    });
    let (mut socket, _) = listener.accept()?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut written = Vec::new();
    for (name, bytes) in files {
        let mut file = File::create(target.join(name))?;
        let mut left = *bytes as usize;
        while left > 0 {
            let n = left.min(BLOCK_BYTES);
            socket.read_exact(&mut block[..n])?;
            file.write_all(&block[..n])?;
            left -= n;
        }
        written.push(file);
    }
    for file in written {
        file.sync_all()?;
    }
    let seconds = start.elapsed().as_secs_f64();
    sender.join().map_err(|_| anyhow!("the sending thread ended early"))??;
    Ok(seconds)
}

/// Both nodes' transfers in this process, without a limit on their rate. Seconds from the leader's
/// wish to the verified, synced checkpoint in its place.
async fn checkpoint(dir: &Path, source: PathBuf) -> anyhow::Result<f64> {
    let installed = Arc::new(Notify::new());
    let host = |replica, directory| {
        let local = LocalReplica { replica, directory, applied_index: 5 };
        let (local, installed) = (Mutex::new(local), installed.clone());
        Arc::new(Folder { local, source: source.clone(), installed })
    };
    let sender = node(1, &dir.join("sender"), host(SENDER, 1)).await?;
    let receiver = node(2, &dir.join("receiver"), host(RECEIVER, 7)).await?;
    sender.transport.address_book().learn_direct(NodeId(2), &receiver.address, "b");
    receiver.transport.address_book().learn_direct(NodeId(1), &sender.address, "a");
    let start = Instant::now();
    sender.transfers.want(GROUP, RECEIVER, NodeId(2));
    let failed = async {
        let failures = &receiver.transfers.counters().receive_failures;
        while failures.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = installed.notified() => Ok(start.elapsed().as_secs_f64()),
        () = failed => bail!("the receiver failed: see the log"),
    }
}

struct Node {
    transport: Transport,
    transfers: Transfers,
    address: String,
}

async fn node(id: u64, data: &Path, host: Arc<Folder>) -> anyhow::Result<Node> {
    std::fs::create_dir(data)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let transport = Transport::new(
        TransportSettings::default(),
        LocalNodeCell::new(Some(LocalNode { cluster_id: "bench".into(), node: NodeId(id) })),
        AddressBook::default(),
        tokio::runtime::Handle::current(),
    );
    let settings = TransferSettings {
        bytes_per_s: 0,
        disk_min_free_bytes: 0,
        ..TransferSettings::new(data.into())
    };
    let transfers = Transfers::new(settings, transport.clone(), host)?;
    let handlers = Handlers {
        messages: Arc::new(|_, _| {}),
        control: Arc::new(NoControl),
        transfers: Arc::new(transfers.clone()),
    };
    transport.listen(listener, handlers);
    Ok(Node { transport, transfers, address })
}

struct NoControl;

#[tonic::async_trait]
impl ControlHandler for NoControl {
    async fn hello(&self, _: Hello) -> HelloAnswer {
        HelloAnswer::default()
    }

    async fn join(&self, _: Join) -> Result<JoinAnswer, Refusal> {
        Err(refusal("NOT_LEADER", "there is no cluster to join here"))
    }
}

/// A database that is a folder of files.
struct Folder {
    local: Mutex<LocalReplica>,
    source: PathBuf,
    installed: Arc<Notify>,
}

fn mark() -> AppliedMark {
    let membership =
        internal::Membership { voters: vec![SENDER.0, RECEIVER.0], ..Default::default() };
    let membership = Some((80, membership.encode_to_vec()));
    AppliedMark { index: INDEX, term: 3, membership, ..Default::default() }
}

#[tonic::async_trait]
impl TransferHost for Folder {
    fn checkpoint(&self, _: GroupId, path: &Path) -> Result<Checkpoint, String> {
        let link = || {
            std::fs::create_dir(path)?;
            for file in std::fs::read_dir(&self.source)? {
                let file = file?;
                std::fs::hard_link(file.path(), path.join(file.file_name()))?;
            }
            Ok(())
        };
        link().map_err(|e: std::io::Error| e.to_string())?;
        Ok(Checkpoint {
            from: SENDER,
            mark: mark(),
            membership: internal::Membership::default(),
            membership_index: 0,
        })
    }

    fn first_index(&self, _: GroupId) -> u64 {
        INDEX - 10
    }

    fn hold_log(&self, _: GroupId, _: ReplicaId, _: Option<u64>) {}

    fn replica(&self, group: GroupId) -> Option<LocalReplica> {
        (group == GROUP).then(|| *self.local.lock())
    }

    fn read_mark(&self, _: &Path) -> Result<AppliedMark, String> {
        Ok(mark())
    }

    async fn install(&self, received: Received) -> bool {
        let mut local = self.local.lock();
        (local.directory, local.applied_index) = (received.directory, received.index);
        self.installed.notify_one();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_small_checkpoint_arrives_both_ways_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let report = run(dir.path(), &TransferArgs { mib: 33 }).await.unwrap();
        assert_eq!(report.bytes, 33 << 20);
        assert!(report.copy_bytes_per_s > 0.0 && report.checkpoint_bytes_per_s > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
