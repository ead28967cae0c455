//! The members as gossip sees them, with real nodes: each change once, and nothing by strangers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use ringfold_node::gossip::datagram::{Keys, Party, Sealer};
use ringfold_node::ids::NodeId;
use ringfold_proto::v1::membership_changes_response::News;
use ringfold_proto::v1::{
    Liveness, MembershipChangeKind, MembershipChangesRequest, MembershipChangesResponse,
    MembershipListResponse,
};
use ringfold_tests::cluster::{GOSSIP_KEY, LocalCluster, Settings, eventually};
use tonic::Streaming;

const CHANGE_MAX: Duration = Duration::from_secs(60);
/// Longer than a change takes that should not be.
const QUIET: Duration = Duration::from_secs(15);

/// One that follows the members at one node.
struct Follower {
    name: String,
    news: Streaming<MembershipChangesResponse>,
    sequence: u64,
}

impl Follower {
    async fn begin(cluster: &LocalCluster, i: usize) -> (Self, MembershipListResponse) {
        let node = &cluster.nodes[i];
        let asked = node.admin().membership_changes(MembershipChangesRequest {}).await;
        let mut news = asked.unwrap().into_inner();
        let first = news.message().await.unwrap().unwrap();
        assert!(!first.lagged);
        let Some(News::List(list)) = first.news else { panic!("a list is first: {first:?}") };
        (Self { name: node.name.clone(), news, sequence: list.sequence }, list)
    }

    /// Kind, and the member's name.
    async fn next(&mut self) -> (MembershipChangeKind, String) {
        let news = tokio::time::timeout(CHANGE_MAX, self.news.message()).await;
        let news = news.unwrap_or_else(|_| panic!("{}: no change in {CHANGE_MAX:?}", self.name));
        let Some(News::Change(change)) = news.unwrap().unwrap().news else { panic!("no change") };
        self.sequence += 1;
        assert_eq!(change.sequence, self.sequence);
        let member = change.member.as_ref().unwrap().member.as_ref().unwrap();
        (change.kind(), member.name.clone())
    }

    async fn assert_quiet(&mut self) {
        if let Ok(news) = tokio::time::timeout(QUIET, self.news.message()).await {
            panic!("{}: nothing has changed, and it tells {news:?}", self.name);
        }
    }
}

/// Waits until a node has heard from all, and who leads what.
async fn all_heard(cluster: &LocalCluster, i: usize) -> MembershipListResponse {
    eventually("all are heard", CHANGE_MAX, || async move {
        let list = cluster.nodes[i].membership().await.map_err(|s| s.to_string())?;
        let heard = list.members.iter().filter(|e| e.liveness() == Liveness::Live);
        let facts: Vec<_> = heard.filter_map(|e| e.facts.as_ref()).collect();
        let led: u32 = facts.iter().map(|f| f.leaders).sum();
        match facts.len() == cluster.nodes.len() && led == cluster.partitions() {
            true => Ok(list),
            false => Err(format!("{list:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_lost_once_and_rejoins_once() {
    let settings = Settings { partitions: 16, ..Settings::default() };
    let mut cluster = LocalCluster::start(settings).await;
    let list = all_heard(&cluster, 0).await;
    assert!(list.gossips);
    assert_eq!(list.cluster_id, cluster.cluster_id);
    for (node, entry) in cluster.nodes.iter().zip(&list.members) {
        let (member, facts) = (entry.member.as_ref().unwrap(), entry.facts.as_ref().unwrap());
        // Nodes join in any order.
        let node = cluster.nodes.iter().find(|n| n.name == member.name).unwrap_or(node);
        assert_eq!((&facts.name, &facts.client_url), (&member.name, &node.url()));
        assert_eq!(facts.peer_address, format!("127.0.0.1:{}", node.peer_port));
        assert_eq!(facts.replicas, 16);
        assert!(facts.disk_total_bytes >= facts.disk_free_bytes && facts.disk_free_bytes > 0);
        assert!(!facts.version.is_empty());
    }
    let mut followers = Vec::new();
    for i in 0..2 {
        all_heard(&cluster, i).await;
        followers.push(Follower::begin(&cluster, i).await.0);
    }
    for _ in 0..2 {
        cluster.kill(2);
        for f in &mut followers {
            assert_eq!(f.next().await, (MembershipChangeKind::Lost, "node2".into()));
        }
        let list = cluster.nodes[0].membership().await.unwrap();
        let lost = list.members.iter().filter(|e| e.liveness() == Liveness::Lost).count();
        assert_eq!((list.members.len(), lost), (3, 1), "a lost node is a member");
        cluster.start_node(2);
        for f in &mut followers {
            assert_eq!(f.next().await, (MembershipChangeKind::Rejoined, "node2".into()));
        }
    }
    let (first, second) = followers.split_at_mut(1);
    tokio::join!(first[0].assert_quiet(), second[0].assert_quiet());
    cluster.wait_ready().await;
    all_heard(&cluster, 2).await;
    cluster.assert_no_panic();
}

fn gossip_address(cluster: &LocalCluster, i: usize) -> SocketAddr {
    ([127, 0, 0, 1], cluster.nodes[i].peer_port).into()
}

/// One who has the key and is no member.
fn stranger(cluster: &LocalCluster) -> Sealer {
    let party = Party::new(Keys::new(GOSSIP_KEY, None), &cluster.cluster_id, NodeId(1 << 40));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    Sealer::new(party, now)
}

/// chitchat's messages begin with its magic number, version 0, and their kind.
const SYN: [u8; 4] = [0x53, 0xb0, 0, 0];
const ACK: [u8; 4] = [0x53, 0xb0, 0, 2];

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// A greeting; `digest`: number of nodes, and what is said of each.
fn syn(cluster: &LocalCluster, digest: &[u8]) -> Vec<u8> {
    [&SYN, digest, &text(&cluster.cluster_id)].concat()
}

/// What a node answers to a greeting that is well sealed: as good as recorded on its way to others.
fn record(cluster: &LocalCluster, i: usize, n: usize) -> Vec<Vec<u8>> {
    let mut sealer = stranger(cluster);
    let syn = syn(cluster, &[0, 0]);
    let tap = UdpSocket::bind("127.0.0.1:0").unwrap();
    tap.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut datagram = Vec::new();
    let mut answer = vec![0; 1 << 16];
    (0..n)
        .map(|_| {
            sealer.seal(&syn, &mut datagram).unwrap();
            tap.send_to(&datagram, gossip_address(cluster, i)).unwrap();
            let length = tap.recv(&mut answer).expect("a node answers a greeting");
            answer[..length].to_vec()
        })
        .collect()
}

/// Of bytes that mean nothing, and of recorded datagrams again and again.
fn flood(targets: &[SocketAddr], recorded: &[Vec<u8>], lasts: Duration, seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < lasts {
        for _ in 0..20 {
            for target in targets {
                let garbage = match rng.random_range(0..4) {
                    0 => recorded[rng.random_range(0..recorded.len())].clone(),
                    // Well begun, then changed or cut short.
                    1 => {
                        let mut copy = recorded[rng.random_range(0..recorded.len())].clone();
                        let at = rng.random_range(0..copy.len());
                        copy[at] ^= 1 << rng.random_range(0..8);
                        copy
                    }
                    2 => {
                        let copy = &recorded[rng.random_range(0..recorded.len())];
                        copy[..rng.random_range(0..copy.len())].to_vec()
                    }
                    _ => {
                        let mut bytes = vec![0; rng.random_range(0..1_500)];
                        rng.fill_bytes(&mut bytes);
                        bytes
                    }
                };
                sent += u64::from(socket.send_to(&garbage, target).is_ok());
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    sent
}

async fn dropped(cluster: &LocalCluster, i: usize, why: &str) -> u64 {
    let status = cluster.status(i).await;
    status.counters[&format!("gossip_dropped_{why}")]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_replays_at_the_gossip_port_change_nothing() {
    let settings = Settings { partitions: 16, ..Settings::default() };
    let mut cluster = LocalCluster::start(settings).await;
    all_heard(&cluster, 0).await;
    all_heard(&cluster, 1).await;
    let (mut follower, before) = Follower::begin(&cluster, 0).await;
    let recorded: Vec<_> = [1, 2].iter().flat_map(|i| record(&cluster, *i, 20)).collect();
    let targets = [gossip_address(&cluster, 0), gossip_address(&cluster, 1)];
    let flooded = {
        let recorded = recorded.clone();
        tokio::task::spawn_blocking(move || flood(&targets, &recorded, QUIET, 31))
    };
    follower.assert_quiet().await;
    let sent = flooded.await.unwrap();
    let after = all_heard(&cluster, 0).await;
    assert_eq!(after.sequence, before.sequence);
    assert_eq!(after.members.len(), 3);
    for why in ["malformed", "foreign_cluster", "wrong_key", "replayed"] {
        let n = dropped(&cluster, 0, why).await;
        assert!(n > 100, "{n} of {sent} datagrams were dropped as {why}");
    }
    assert_eq!(dropped(&cluster, 0, "undecodable").await, 0);

    // A dead node is not brought back by what it said when it lived. What the recording brought
    // others has to reach node 0 first, as it does when it was recorded on its way to them.
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.kill(2);
    assert_eq!(follower.next().await, (MembershipChangeKind::Lost, "node2".into()));
    let flooded = tokio::task::spawn_blocking(move || flood(&targets, &recorded, QUIET, 32));
    follower.assert_quiet().await;
    flooded.await.unwrap();
    cluster.start_node(2);
    assert_eq!(follower.next().await, (MembershipChangeKind::Rejoined, "node2".into()));
    cluster.wait_ready().await;
    for i in 0..3 {
        assert_eq!(cluster.status(i).await.counters["gossip_restarts"], 0);
    }
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_a_node_does_not_gossip_and_says_so() {
    let settings = Settings { nodes: 1, gossip: false, ..Settings::default() };
    let cluster = LocalCluster::start(settings).await;
    let (_, list) = Follower::begin(&cluster, 0).await;
    assert!(!list.gossips);
    assert_eq!(list.members.len(), 1);
    assert_eq!(list.members[0].liveness(), Liveness::Unspecified);
    assert!(cluster.nodes[0].log().contains("gossip is off"));
}

/// chitchat asserts what it takes for granted: only one who has the key gets so far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_makes_chitchat_panic_stops_gossip_for_a_moment_only() {
    let settings = Settings { partitions: 16, ..Settings::default() };
    let cluster = LocalCluster::start(settings).await;
    all_heard(&cluster, 0).await;
    all_heard(&cluster, 1).await;
    let (mut at_first, _) = Follower::begin(&cluster, 0).await;
    let (mut at_second, _) = Follower::begin(&cluster, 1).await;
    let number = u64::to_le_bytes;
    // Name, generation, address.
    let id = [&text("9")[..], &number(1), &[4, 127, 0, 0, 1, 9, 0]].concat();
    // Known with a heartbeat and no values...
    let digest = [&[1, 0][..], &id, &number(5), &number(0), &number(0)].concat();
    // ...it gets a value of version 10, and a highest version of 5.
    let ops = [
        &[0][..],
        &id,
        &number(0),
        &number(0),
        &[1],
        &text("key"),
        &text("value"),
        &number(10),
        &[0, 2],
        &number(5),
    ]
    .concat();
    let block = [&[2][..], &(ops.len() as u16).to_le_bytes(), &ops, &[0]].concat();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut sealer, mut datagram) = (stranger(&cluster), Vec::new());
    for message in [syn(&cluster, &digest), [&ACK[..], &block].concat()] {
        sealer.seal(&message, &mut datagram).unwrap();
        socket.send_to(&datagram, gossip_address(&cluster, 0)).unwrap();
    }
    eventually("gossip starts anew", CHANGE_MAX, || async {
        match cluster.status(0).await.counters["gossip_restarts"] {
            0 => Err("it goes on".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    tokio::join!(at_first.assert_quiet(), at_second.assert_quiet());
    let list = all_heard(&cluster, 0).await;
    assert_eq!(list.members.len(), 3, "one who is no member is not shown");
    all_heard(&cluster, 1).await;
    cluster.wait_ready().await;
}
