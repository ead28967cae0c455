//! Two nodes on loopback; a "database" is a folder of plain files with the mark in one of them.
use super::*;
use crate::peer::control::{ControlHandler, refusal};
use crate::peer::transport::{Handlers, TransportSettings};
use crate::peer::{LocalNode, LocalNodeCell, address_book::AddressBook};
use parking_lot::Mutex;
use prost::Message;
use ringfold_proto::internal::{Hello, HelloAnswer, Join, JoinAnswer};
use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::sleep;

const CLUSTER: &str = "c-1";
const GROUP: GroupId = GroupId(4);
/// Replica 11 lives on node 1 and leads; 12 on node 2 is behind.
const LEADER: ReplicaId = ReplicaId(11);
const BEHIND: ReplicaId = ReplicaId(12);

struct NoControl;

#[tonic::async_trait]
impl ControlHandler for NoControl {
    async fn hello(&self, _: Hello) -> HelloAnswer {
        HelloAnswer::default()
    }

    async fn join(&self, _: Join) -> Result<JoinAnswer, Refusal> {
        Err(refusal("NOT_LEADER", "not here"))
    }
}

struct Files {
    replica: Mutex<LocalReplica>,
    index: Mutex<u64>,
    first_index: Mutex<u64>,
    files: Mutex<Vec<(&'static str, Vec<u8>)>>,
    members: Mutex<Vec<u64>>,
    takes: Mutex<bool>,
    log_held: Mutex<Vec<(ReplicaId, Option<u64>)>>,
    received: Mutex<Vec<Received>>,
    checkpoints: Mutex<u32>,
}

impl Files {
    fn new(replica: ReplicaId, directory: u32) -> Arc<Files> {
        let big = (0..3_500_000u32).map(|i| (i * 7 / 3) as u8).collect();
        Arc::new(Files {
            replica: Mutex::new(LocalReplica { replica, directory, applied_index: 5 }),
            index: Mutex::new(100),
            first_index: Mutex::new(90),
            files: Mutex::new(vec![
                ("000001.sst", big),
                ("CURRENT", b"x".to_vec()),
                ("EMPTY", vec![]),
            ]),
            members: Mutex::new(vec![LEADER.0, BEHIND.0]),
            takes: Mutex::new(true),
            log_held: Mutex::default(),
            received: Mutex::default(),
            checkpoints: Mutex::default(),
        })
    }

    fn membership(&self) -> internal::Membership {
        internal::Membership { voters: self.members.lock().clone(), ..Default::default() }
    }

    fn mark(&self) -> AppliedMark {
        AppliedMark {
            index: *self.index.lock(),
            term: 3,
            membership: Some((80, self.membership().encode_to_vec())),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl TransferHost for Files {
    fn checkpoint(&self, group: GroupId, path: &Path) -> Result<Checkpoint, String> {
        assert_eq!(group, GROUP);
        *self.checkpoints.lock() += 1;
        fs::create_dir(path).unwrap();
        for (name, bytes) in self.files.lock().iter() {
            fs::write(path.join(name), bytes).unwrap();
        }
        let mark = self.mark();
        fs::write(path.join("MARK"), format!("{}", mark.index)).unwrap();
        Ok(Checkpoint {
            from: LEADER,
            mark,
            membership: internal::Membership::default(),
            membership_index: 0,
        })
    }

    fn first_index(&self, _: GroupId) -> u64 {
        *self.first_index.lock()
    }

    fn hold_log(&self, _: GroupId, to: ReplicaId, index: Option<u64>) {
        self.log_held.lock().push((to, index));
    }

    fn replica(&self, group: GroupId) -> Option<LocalReplica> {
        (group == GROUP).then(|| *self.replica.lock())
    }

    fn read_mark(&self, path: &Path) -> Result<AppliedMark, String> {
        let index = fs::read_to_string(path.join("MARK")).map_err(|e| e.to_string())?;
        Ok(AppliedMark { index: index.parse().unwrap(), ..self.mark() })
    }

    async fn install(&self, received: Received) -> bool {
        let takes = *self.takes.lock();
        if takes {
            let mut replica = self.replica.lock();
            replica.directory = received.directory;
            replica.applied_index = received.index;
            self.received.lock().push(received);
        }
        takes
    }
}

struct Node {
    data: TempDir,
    host: Arc<Files>,
    transport: Transport,
    transfers: Transfers,
    address: String,
}

async fn node(id: u64, host: Arc<Files>, change: impl FnOnce(&mut TransferSettings)) -> Node {
    let data = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let local = LocalNode { cluster_id: CLUSTER.into(), node: NodeId(id) };
    let transport = Transport::new(
        TransportSettings::default(),
        LocalNodeCell::new(Some(local)),
        AddressBook::default(),
        Handle::current(),
    );
    let mut settings = TransferSettings {
        retry_ms: 10,
        disk_min_free_bytes: 0,
        bytes_per_s: 0,
        ..TransferSettings::new(data.path().into())
    };
    change(&mut settings);
    let transfers = Transfers::new(settings, transport.clone(), host.clone()).unwrap();
    let handlers = Handlers {
        messages: Arc::new(|_, _| {}),
        control: Arc::new(NoControl),
        transfers: Arc::new(transfers.clone()),
    };
    transport.listen(listener, handlers);
    Node { data, host, transport, transfers, address }
}

/// Node 1 with the leader, and node 2 with the replica that is behind, which know each other.
async fn two(change: impl Fn(&mut TransferSettings)) -> (Node, Node) {
    let a = node(1, Files::new(LEADER, 1), &change).await;
    let b = node(2, Files::new(BEHIND, 7), &change).await;
    a.transport.address_book().learn_direct(NodeId(2), &b.address, "u");
    b.transport.address_book().learn_direct(NodeId(1), &a.address, "u");
    (a, b)
}

impl Node {
    fn folders(&self, of: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.data.path().join(of))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Transfers sent and failed so far, once one more has ended: then the log is let go.
    async fn transfer(&self, to: u64) -> (u64, u64) {
        let ended = || self.host.log_held.lock().iter().filter(|h| h.1.is_none()).count();
        let before = ended();
        self.transfers.want(GROUP, BEHIND, NodeId(to));
        until("a transfer ends", || ended() > before).await;
        let c = self.transfers.counters();
        (c.sent.load(Relaxed), c.send_failures.load(Relaxed))
    }

    async fn receive_fails(&self) {
        let c = self.transfers.counters();
        until("the receiver fails", || c.receive_failures.load(Relaxed) > 0).await;
        until("what came is removed", || self.folders("incoming").is_empty()).await;
        assert!(self.folders("partitions").is_empty());
        assert!(self.host.received.lock().is_empty());
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_gets_the_files_and_the_log_is_held_meanwhile() {
    let (a, b) = two(|_| {}).await;
    // Wanted twice is wanted once.
    a.transfers.want(GROUP, BEHIND, NodeId(2));
    assert_eq!(a.transfer(2).await, (1, 0));
    let home = b.data.path().join("partitions/12.8");
    for (name, bytes) in a.host.files.lock().iter() {
        assert!(fs::read(home.join(name)).unwrap() == *bytes, "{name}");
    }
    let expected = Received {
        group: GROUP,
        replica: BEHIND,
        directory: 8,
        index: 100,
        term: 3,
        membership: Membership::from_proto(&a.host.membership()),
        membership_index: 80,
    };
    assert_eq!(*b.host.received.lock(), [expected]);
    // From what is applied when the checkpoint is made, then from the checkpoint on.
    let held = [(BEHIND, Some(5)), (BEHIND, Some(100)), (BEHIND, None)];
    assert_eq!(*a.host.log_held.lock(), held);
    assert!(b.folders("incoming").is_empty());
    assert_eq!(*a.host.checkpoints.lock(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_uses_the_same_checkpoint_unless_the_log_has_moved_past_it() {
    let (a, b) = two(|_| {}).await;
    assert_eq!(a.transfer(2).await, (1, 0));
    b.host.replica.lock().applied_index = 5;
    assert_eq!(a.transfer(2).await, (2, 0));
    assert_eq!(*a.host.checkpoints.lock(), 1);
    assert_eq!(b.folders("partitions"), ["12.8", "12.9"]);
    *a.host.first_index.lock() = 102;
    *a.host.index.lock() = 110;
    assert_eq!(a.transfer(2).await, (3, 0));
    assert_eq!(*a.host.checkpoints.lock(), 2);
    assert_eq!(b.host.received.lock().last().unwrap().index, 110);
    until("the older is removed", || a.folders("checkpoints").len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_checkpoint_is_removed_after_its_time_and_leftovers_at_start() {
    let (a, _b) = two(|s| s.checkpoint_kept_ms = 100).await;
    assert_eq!(a.transfer(2).await, (1, 0));
    until("it is removed", || a.folders("checkpoints").is_empty()).await;

    for name in ["incoming/12.8", "checkpoints/4.100.0"] {
        fs::create_dir_all(a.data.path().join(name)).unwrap();
        fs::write(a.data.path().join(name).join("f"), "x").unwrap();
    }
    let settings = TransferSettings::new(a.data.path().into());
    Transfers::new(settings, a.transport.clone(), a.host.clone()).unwrap();
    assert!(a.folders("checkpoints").is_empty() && a.folders("incoming").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_goes_on_where_it_was() {
    let (a, b) = two(|_| {}).await;
    // A way to node 1 that breaks after 2.5 MB of answers, at first.
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap().to_string();
    let target = a.address.clone();
    let large = Arc::new(AtomicU64::new(0));
    let seen = large.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = proxy.accept().await.unwrap();
            let mut server = TcpStream::connect(&target).await.unwrap();
            let seen = seen.clone();
            tokio::spawn(async move {
                let limit = if seen.load(Relaxed) == 0 { 2_500_000 } else { u64::MAX };
                let (mut cr, mut cw) = client.split();
                let (sr, mut sw) = server.split();
                let mut answers = sr.take(limit);
                tokio::select! {
                    _ = tokio::io::copy(&mut cr, &mut sw) => {}
                    n = tokio::io::copy(&mut answers, &mut cw) => {
                        seen.fetch_max(n.unwrap_or(0), Relaxed);
                    }
                }
            });
        }
    });
    b.transport.address_book().learn_direct(NodeId(1), &address, "u");
    assert_eq!(a.transfer(2).await, (1, 0));
    assert_eq!(large.load(Relaxed), 2_500_000);
    let total: usize = a.host.files.lock().iter().map(|f| f.1.len()).sum();
    let received = b.transfers.counters().received_bytes.load(Relaxed);
    assert_eq!(received, total as u64 + "100".len() as u64, "nothing was written twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_never_installed_and_the_next_try_makes_a_new_checkpoint() {
    let damages: [fn(&Path); 2] = [
        |file| {
            let mut bytes = fs::read(file).unwrap();
            bytes[2_000_000] ^= 1;
            fs::write(file, bytes).unwrap();
        },
        |file| fs::File::options().write(true).open(file).unwrap().set_len(1_500_000).unwrap(),
    ];
    for damage in damages {
        let (a, b) = two(|_| {}).await;
        // Made, and refused by a replica that needs none: it stays for the next try.
        b.host.replica.lock().applied_index = 200;
        assert_eq!(a.transfer(2).await, (0, 1));
        b.host.replica.lock().applied_index = 5;
        let made = a.data.path().join("checkpoints").join(&a.folders("checkpoints")[0]);
        damage(&made.join("000001.sst"));
        assert_eq!(a.transfer(2).await, (0, 2));
        b.receive_fails().await;
        assert_eq!(a.transfer(2).await, (1, 2));
        assert_eq!(*a.host.checkpoints.lock(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_differs_from_the_manifest_is_not_installed() {
    let (a, b) = two(|_| {}).await;
    // The receiver reads another membership out of the files than the manifest has.
    b.host.members.lock().push(99);
    assert_eq!(a.transfer(2).await, (0, 1));
    b.receive_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_from_before_the_replica_was_added_is_not_even_offered() {
    let (a, b) = two(|_| {}).await;
    *a.host.members.lock() = vec![LEADER.0];
    assert_eq!(a.transfer(2).await, (0, 1));
    assert_eq!(b.transfers.counters().receive_failures.load(Relaxed), 0);
    until("it is removed", || a.folders("checkpoints").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_replica_does_not_take_is_removed() {
    let (a, b) = two(|_| {}).await;
    *b.host.takes.lock() = false;
    assert_eq!(a.transfer(2).await, (0, 1));
    b.receive_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_are_refused_where_they_cannot_be_taken() {
    let (a, b) = two(|s| s.incoming_max = 0).await;
    let offer = Offer { group: GROUP.0, replica_id: BEHIND.0, index: 100, bytes: 10 };
    let reason = |offer: Offer| {
        let transfers = b.transfers.clone();
        async move { transfers.offer(NodeId(1), offer).await.unwrap_err().reason }
    };
    assert_eq!(reason(Offer { replica_id: 13, ..offer }).await, "NO_REPLICA");
    assert_eq!(reason(Offer { group: 5, ..offer }).await, "NO_REPLICA");
    assert_eq!(reason(Offer { index: 5, ..offer }).await, "NOT_NEEDED");
    assert_eq!(reason(Offer { bytes: u64::MAX, ..offer }).await, "DISK_FULL");
    assert_eq!(reason(offer).await, "BUSY");
    assert!(b.folders("incoming").is_empty());
    // A node that is not there at all.
    assert_eq!(a.transfer(3).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_falls_silent_is_given_up() {
    let (a, b) = two(|s| s.silence_ms = 200).await;
    // Refuses to read node 1's answers: it has its own, dead address of it.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    b.transport.address_book().learn_direct(NodeId(1), &dead.to_string(), "u");
    assert_eq!(a.transfer(2).await, (0, 1));
    b.receive_fails().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_started_again_in_the_middle_is_offered_the_same_again_at_once() {
    let (a, b) = two(|_| {}).await;
    // It takes the offer, and then nothing is heard of it: node 1 does not answer where it asks.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap().to_string();
    b.transport.address_book().learn_direct(NodeId(1), &address, "u");
    a.transfers.want(GROUP, BEHIND, NodeId(2));
    let asked = mute.accept().await.unwrap();
    // The same node, started again.
    let again = node(2, Files::new(BEHIND, 7), |s| s.retry_ms = 10).await;
    again.transport.address_book().learn_direct(NodeId(1), &a.address, "u");
    a.transport.address_book().learn_direct(NodeId(2), &again.address, "u");
    let sent = || a.transfers.counters().sent.load(Relaxed);
    until("the checkpoint is sent", || sent() == 1).await;
    assert_eq!(*a.host.checkpoints.lock(), 1);
    assert_eq!(again.host.received.lock().len(), 1);
    drop(asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_of_the_manifest_can_be_fetched_and_only_by_the_node_they_are_for() {
    let (a, b) = two(|s| s.silence_ms = 3_000).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    b.transport.address_book().learn_direct(NodeId(1), &dead.to_string(), "u");
    a.transfers.want(GROUP, BEHIND, NodeId(2));
    let manifest = FetchManifest { group: GROUP.0, replica_id: BEHIND.0 };
    let mut offered = None;
    let start = Instant::now();
    while offered.is_none() && start.elapsed() < Duration::from_secs(10) {
        offered = a.transfers.manifest(NodeId(2), manifest).await.ok();
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(offered.unwrap().files.len(), 4);
    fs::write(a.data.path().join("checkpoints/secret"), "x").unwrap();
    let fetch = |file: &str, offset, index| FetchChunk {
        group: GROUP.0,
        replica_id: BEHIND.0,
        index,
        file: file.into(),
        offset,
        max_bytes: u32::MAX,
    };
    let get = |from, fetch| {
        let transfers = a.transfers.clone();
        async move { transfers.chunk(NodeId(from), fetch).await.map(|c| c.data.len()) }
    };
    assert_eq!(get(2, fetch("000001.sst", 0, 100)).await, Ok(CHUNK_BYTES as usize));
    assert_eq!(get(2, fetch("000001.sst", 3_499_999, 100)).await, Ok(1));
    assert_eq!(get(2, fetch("000001.sst", u64::MAX, 100)).await, Ok(0));
    for file in ["../secret", "/etc/passwd", "", ".", "000002.sst"] {
        assert_eq!(get(2, fetch(file, 0, 100)).await.unwrap_err().reason, "NO_FILE");
    }
    assert_eq!(get(2, fetch("CURRENT", 0, 99)).await.unwrap_err().reason, "NOT_OFFERED");
    assert_eq!(get(3, fetch("CURRENT", 0, 100)).await.unwrap_err().reason, "NOT_OFFERED");
}
