use super::super::datagram::Keys;
use super::*;
use crate::ids::NodeId;
use std::collections::BTreeMap;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const WITHIN: Duration = Duration::from_secs(20);

struct End {
    socket: Box<dyn Socket>,
    address: SocketAddr,
    counters: Arc<Counters>,
}

async fn end(node: u64) -> End {
    let party = Party::new(Keys::new(KEY, None), "c", NodeId(node));
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    let counters: Arc<Counters> = Arc::default();
    let opener = Arc::new(Mutex::new(Opener::new(party.clone())));
    let transport =
        SealedTransport { socket, party, generation: 1, opener, counters: counters.clone() };
    End { socket: transport.open(address).await.unwrap(), address, counters }
}

async fn received(end: &mut End) -> (SocketAddr, ChitchatMessage) {
    tokio::time::timeout(WITHIN, end.socket.recv()).await.unwrap().unwrap()
}

fn counted(end: &End) -> BTreeMap<&'static str, u64> {
    end.counters.values().into_iter().filter(|(_, n)| *n > 0).collect()
}

#[tokio::test]
async fn messages_pass_between_garbage_and_replays() {
    let (mut a, mut b) = (end(1).await, end(2).await);
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // As many as the kernel's buffer surely holds; of version 1, too.
    for n in 0..80usize {
        stranger.send_to(&vec![n as u8 % 2; n * 3], b.address).await.unwrap();
    }
    // Recorded on its way to someone else, sent twice.
    let tap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    a.socket.send(tap.local_addr().unwrap(), ChitchatMessage::BadCluster).await.unwrap();
    let mut recorded = [0; 1024];
    let length = tap.recv(&mut recorded).await.unwrap();
    for _ in 0..2 {
        tap.send_to(&recorded[..length], b.address).await.unwrap();
    }
    assert_eq!(received(&mut b).await.1, ChitchatMessage::BadCluster);
    a.socket.send(b.address, ChitchatMessage::BadCluster).await.unwrap();
    assert_eq!(received(&mut b).await, (a.address, ChitchatMessage::BadCluster));
    let counted = counted(&b);
    assert_eq!(counted["gossip_received"], 2);
    assert_eq!(counted["gossip_dropped_replayed"], 1);
    assert!(counted["gossip_dropped_malformed"] + counted["gossip_dropped_foreign_cluster"] == 80);
}

#[tokio::test]
async fn what_a_node_sealed_and_cannot_be_read_is_dropped() {
    let (mut a, mut b) = (end(1).await, end(2).await);
    let party = Party::new(Keys::new(KEY, None), "c", NodeId(3));
    let mut sealer = Sealer::new(party, 1);
    let mut whole = Vec::new();
    ChitchatMessage::BadCluster.serialize(&mut whole);
    let longer = [&whole[..], b"x"].concat();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut datagram = Vec::new();
    for payload in [&b""[..], b"garbage", &whole[..whole.len() - 1], &longer] {
        sealer.seal(payload, &mut datagram).unwrap();
        stranger.send_to(&datagram, b.address).await.unwrap();
    }
    a.socket.send(b.address, ChitchatMessage::BadCluster).await.unwrap();
    assert_eq!(received(&mut b).await.0, a.address);
    assert_eq!(counted(&b)["gossip_dropped_undecodable"], 4);
}

#[tokio::test]
async fn a_failed_send_is_counted_and_no_error() {
    let mut a = end(1).await;
    // An IPv6 address on a socket of IPv4.
    let to = "[::1]:9".parse().unwrap();
    a.socket.send(to, ChitchatMessage::BadCluster).await.unwrap();
    assert_eq!(counted(&a)["gossip_send_failures"], 1);
}
