use super::super::LocalNode;
use super::super::connection::GreetError;
use super::super::control::{NoTransfers, refusal};
use super::super::frame::{ANSWER_BYTES, HandshakeAnswer, VERSION, Verdict, put_messages};
use super::*;
use crate::ids::{GroupId, ReplicaId};
use crate::test_certificates::{authority, certificate};
use bytes::BytesMut;
use parking_lot::Mutex;
use ringfold_proto::internal::{FetchManifest, NodeAddress, Refusal};
use ringfold_tls::Role;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

const CLUSTER: &str = "c-1";

/// Answers Hello with what it knows, and Join never.
struct Answers(AddressBook, LocalNodeCell);

#[tonic::async_trait]
impl ControlHandler for Answers {
    async fn hello(&self, hello: Hello) -> HelloAnswer {
        self.0.learn_direct(NodeId(hello.node_id), &hello.peer_address, &hello.client_url);
        let local = self.1.get();
        HelloAnswer {
            cluster_id: local.as_ref().map(|l| l.cluster_id.to_string()).unwrap_or_default(),
            node_id: local.map_or(0, |l| l.node.0),
            nodes: self.0.to_proto(),
            ..Default::default()
        }
    }

    async fn join(&self, _: Join) -> Result<JoinAnswer, Refusal> {
        Err(refusal("NOT_LEADER", "another node leads the meta group"))
    }
}

struct Peer {
    transport: Transport,
    address: String,
    received: Arc<Mutex<Vec<(NodeId, PeerMessage)>>>,
}

async fn peer_with(local: Option<(&str, u64)>, settings: TransportSettings) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peer_on(listener, local, settings)
}

fn peer_on(listener: TcpListener, local: Option<(&str, u64)>, settings: TransportSettings) -> Peer {
    let local = local.map(|(c, n)| LocalNode { cluster_id: c.into(), node: NodeId(n) });
    let (cell, book) = (LocalNodeCell::new(local), AddressBook::default());
    let transport = Transport::new(settings, cell.clone(), book.clone(), Handle::current());
    let address = listener.local_addr().unwrap().to_string();
    let received: Arc<Mutex<Vec<(NodeId, PeerMessage)>>> = Arc::default();
    let sink = received.clone();
    let handlers = Handlers {
        messages: Arc::new(move |from, messages| {
            sink.lock().extend(messages.into_iter().map(|m| (from, m)));
        }),
        control: Arc::new(Answers(book, cell)),
        transfers: Arc::new(NoTransfers),
    };
    transport.listen(listener, handlers);
    Peer { transport, address, received }
}

async fn peer(node: u64) -> Peer {
    peer_with(Some((CLUSTER, node)), TransportSettings::default()).await
}

impl Peer {
    fn knows(&self, node: u64, other: &Peer) {
        self.transport.address_book().learn_direct(NodeId(node), &other.address, "u");
    }

    fn send(&self, to: u64, channel: Channel, messages: impl IntoIterator<Item = PeerMessage>) {
        self.transport.send(messages.into_iter().map(|m| (NodeId(to), channel, m)).collect());
    }

    fn counter(&self, name: &str) -> u64 {
        let values = self.transport.counters().values();
        values.iter().find(|(n, _)| *n == name).unwrap().1
    }

    async fn receives(&self, count: usize) -> Vec<(NodeId, PeerMessage)> {
        until("messages arrive", || self.received.lock().len() >= count).await;
        std::mem::take(&mut *self.received.lock())
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn message(group: u32, bytes: impl Into<bytes::Bytes>) -> PeerMessage {
    PeerMessage {
        group: GroupId(group),
        from: ReplicaId(11),
        to: ReplicaId(12),
        bytes: bytes.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_many_rounds_arrive_once_and_in_order() {
    let (a, b) = (peer(1).await, peer(2).await);
    a.knows(2, &b);
    let mut sent = Vec::new();
    for round in 0..200u32 {
        let messages: Vec<_> = (0..round % 7)
            .map(|i| message(round, vec![i as u8; (round * 37 % 5000) as usize]))
            .collect();
        sent.extend(messages.iter().map(|m| (NodeId(1), m.clone())));
        a.send(2, Channel::Entries, messages);
    }
    assert_eq!(b.receives(sent.len()).await, sent);
    assert_eq!(a.counter("sent_messages"), sent.len() as u64);
    assert_eq!(b.counter("received_messages"), sent.len() as u64);
    assert_eq!(b.counter("refused_frames"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_pass_while_entries_are_stuck() {
    let settings = TransportSettings { receive_bytes: 1000, ..Default::default() };
    let (a, b) = (peer(1).await, peer_with(Some((CLUSTER, 2)), settings).await);
    a.knows(2, &b);
    // The receiver keeps the first of these, so the bound on what it may keep stops the channel.
    a.send(2, Channel::Entries, [message(1, vec![1; 2000])]);
    until("the first arrives", || b.received.lock().len() == 1).await;
    a.send(2, Channel::Entries, [message(2, vec![2; 2000])]);
    a.send(2, Channel::Votes, [message(3, vec![3])]);
    until("the vote arrives", || b.received.lock().len() == 2).await;
    let kept = b.receives(2).await;
    assert_eq!(kept.iter().map(|(_, m)| m.group.0).collect::<Vec<_>>(), [1, 3]);
    // Let go of, it makes room.
    drop(kept);
    assert_eq!(b.receives(1).await[0].1.group, GroupId(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_at_another_address_is_found_again() {
    let (a, b) = (peer(1).await, peer(2).await);
    a.knows(2, &b);
    b.knows(1, &a);
    a.send(2, Channel::Votes, [message(1, "x")]);
    b.receives(1).await;
    until("they hear each other", || {
        a.transport.is_reachable(NodeId(2)) && b.transport.is_reachable(NodeId(1))
    })
    .await;
    b.transport.stop();
    until("b is missed", || !a.transport.is_reachable(NodeId(2))).await;
    let b = peer(2).await;
    a.knows(2, &b);
    b.knows(1, &a);
    until("a message gets through", || {
        a.send(2, Channel::Votes, [message(2, "y")]);
        !b.received.lock().is_empty()
    })
    .await;
    until("they hear each other", || {
        a.transport.is_reachable(NodeId(2)) && b.transport.is_reachable(NodeId(1))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_at_its_address_is_connected_again() {
    let (a, b) = (peer(1).await, peer(2).await);
    a.knows(2, &b);
    a.send(2, Channel::Entries, [message(1, "x")]);
    b.receives(1).await;
    let address = b.address.clone();
    b.transport.stop();
    let mut listener = None;
    while listener.is_none() {
        listener = TcpListener::bind(&address).await.ok();
        sleep(Duration::from_millis(10)).await;
    }
    let b = peer_on(listener.unwrap(), Some((CLUSTER, 2)), TransportSettings::default());
    until("a message gets through", || {
        a.send(2, Channel::Entries, [message(2, "y")]);
        !b.received.lock().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_to_a_dead_address_drops_and_counts() {
    let a = peer(1).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    a.transport.address_book().learn_direct(NodeId(2), &dead.to_string(), "u");
    a.send(2, Channel::Entries, [message(1, "x")]);
    a.send(3, Channel::Entries, [message(1, "x")]);
    until("dropped", || a.counter("dropped_unconnected") == 1).await;
    assert_eq!(a.counter("dropped_no_address"), 1);
    assert!(a.counter("connect_failures") >= 1);
    assert!(!a.transport.is_reachable(NodeId(2)));
    assert!(a.transport.is_reachable(NodeId(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_drops_and_counts() {
    let settings = TransportSettings { entries_queue_bytes: 1000, ..Default::default() };
    let a = peer_with(Some((CLUSTER, 1)), settings).await;
    // Takes connections and never answers: everything waits.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = deaf.local_addr().unwrap().to_string();
    a.transport.address_book().learn_direct(NodeId(2), &address, "u");
    for _ in 0..10 {
        a.send(2, Channel::Entries, [message(1, vec![0; 300])]);
    }
    assert_eq!(a.counter("dropped_queue_full"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_and_another_node_are_refused() {
    let (a, b) = (peer(1).await, peer_with(Some(("c-2", 2)), TransportSettings::default()).await);
    a.knows(2, &b);
    a.knows(3, &b);
    a.send(2, Channel::Votes, [message(1, "x")]);
    a.send(3, Channel::Votes, [message(1, "x")]);
    until("both are refused", || b.counter("refused_handshakes") >= 2).await;
    assert!(b.received.lock().is_empty());
    let error = a.transport.connect(&b.address, NodeId(0), Kind::Control).await.err().unwrap();
    assert!(error.to_string().contains("another cluster"), "{error}");
    let (a, b) = (peer(1).await, peer(2).await);
    let error = a.transport.connect(&b.address, NodeId(7), Kind::Control).await.err().unwrap();
    assert!(error.to_string().contains("another node"), "{error}");
}

/// Leases rest on election timeouts that all nodes share.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_another_election_timeout_is_refused_and_both_sides_name_both_values() {
    let timing = Timing { tick_ms: 200, election_ticks: 7 };
    let (a, b) = (peer(1).await, peer(2).await);
    let other = TransportSettings { timing, ..Default::default() };
    let c = peer_with(Some((CLUSTER, 3)), other).await;
    a.knows(2, &b);
    a.knows(3, &c);
    c.knows(1, &a);
    for to in [2, 3] {
        a.send(to, Channel::Votes, [message(1, "x")]);
    }
    c.send(1, Channel::Entries, [message(1, "x")]);
    b.receives(1).await;
    until("both refuse", || {
        a.counter("refused_handshakes") > 0 && c.counter("refused_handshakes") > 0
    })
    .await;
    assert!(a.received.lock().is_empty() && c.received.lock().is_empty());

    let (ours, theirs) = ("tick_ms 100 and election_ticks 10", "tick_ms 200 and election_ticks 7");
    let error = a.transport.hello(&c.address, Hello::default()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "refused by node 3: it runs with {theirs}, this node with {ours}: \
             they must be the same on all nodes of a cluster"
        )
    );
    // What the side that refuses logs.
    let handshake = Handshake {
        kind: Kind::Votes,
        cluster_id: CLUSTER.into(),
        from: NodeId(3),
        to: NodeId(1),
        nonce: 5,
        timing,
    };
    let ours_timing = TransportSettings::default().timing;
    let said = GreetError::Timing { handshake, ours: ours_timing }.to_string();
    assert!(said.contains(ours) && said.contains(theirs) && said.contains("node 3"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_joins_a_node_has_control_connections_only() {
    let (a, b) = (peer_with(None, TransportSettings::default()).await, peer(2).await);
    b.knows(1, &a);
    a.knows(2, &b);
    a.send(2, Channel::Votes, [message(1, "x")]);
    b.send(1, Channel::Votes, [message(1, "x")]);
    until("b is refused", || a.counter("refused_handshakes") > 0).await;
    assert_eq!(a.counter("dropped_no_address"), 1);

    let hello = Hello { peer_address: a.address.clone(), ..Default::default() };
    let answer = a.transport.hello(&b.address, hello).await.unwrap();
    assert_eq!((&*answer.cluster_id, answer.node_id), (CLUSTER, 2));

    let local = LocalNode { cluster_id: CLUSTER.into(), node: NodeId(1) };
    assert!(a.transport.local().set(local.clone()));
    assert!(!a.transport.local().set(LocalNode { node: NodeId(9), ..local }));
    until("both are heard", || {
        a.transport.is_reachable(NodeId(2)) && b.transport.is_reachable(NodeId(1))
    })
    .await;
    a.send(2, Channel::Votes, [message(1, "y")]);
    assert_eq!(&b.receives(1).await[0].1.bytes[..], b"y");
    let ahead_ms = a.transport.clock_ahead_ms().unwrap();
    assert!(ahead_ms.abs() < 1000, "{ahead_ms}");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_requests_are_answered_in_order_on_one_connection() {
    let (a, b) = (peer(1).await, peer(2).await);
    let third = NodeAddress {
        node_id: 3,
        peer_address: "127.0.0.1:1".into(),
        client_url: "http://c".into(),
    };
    b.transport.address_book().learn_hint(&third, false);
    let mut client = a.transport.connect(&b.address, NodeId(0), Kind::Control).await.unwrap();
    assert_eq!(client.node, NodeId(2));
    for _ in 0..3 {
        let hello = Hello {
            cluster_id: CLUSTER.into(),
            node_id: 1,
            peer_address: a.address.clone(),
            client_url: "http://a".into(),
        };
        assert_eq!(client.hello(hello).await.unwrap().nodes.len(), 2);
        let refused = client.join(Join::default()).await.unwrap_err();
        assert!(matches!(refused, ControlError::Refused(r) if r.reason == "NOT_LEADER"));
        let refused = client.manifest(FetchManifest::default()).await.unwrap_err();
        assert!(matches!(refused, ControlError::Refused(r) if r.reason == "NO_TRANSFERS"));
    }
    a.transport.hello(&b.address, Hello::default()).await.unwrap();
    let book = a.transport.address_book().nodes();
    assert_eq!(book.into_keys().collect::<Vec<_>>(), [NodeId(3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_get_a_refusal_and_the_port_lives_on() {
    let settings = TransportSettings { handshake_timeout_ms: 200, ..Default::default() };
    let b = peer_with(Some((CLUSTER, 2)), settings).await;
    let handshake = |kind| Handshake {
        kind,
        cluster_id: CLUSTER.into(),
        from: NodeId(1),
        to: NodeId(2),
        nonce: 5,
        timing: TransportSettings::default().timing,
    };
    let mut frame = BytesMut::new();
    put_messages(&mut frame, &[message(1, vec![9; 100])]);
    let mut flipped = frame.to_vec();
    flipped[40] ^= 1;
    let attacks: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"GET / HTTP/1.1\r\nHost: ringfold.example\r\n\r\n".to_vec(), vec![]),
        (vec![0; 500], vec![]),
        (b"RFLD".to_vec(), vec![]),
        (handshake(Kind::Entries).encode().unwrap(), vec![0xff; 100]),
        (handshake(Kind::Votes).encode().unwrap(), vec![0; 100]),
        (handshake(Kind::Entries).encode().unwrap(), flipped),
        (handshake(Kind::Control).encode().unwrap(), vec![0xff; 100]),
        (handshake(Kind::Transfer).encode().unwrap(), frame.to_vec()),
    ];
    for (first, second) in &attacks {
        let mut stream = TcpStream::connect(&b.address).await.unwrap();
        stream.write_all(first).await.unwrap();
        if !second.is_empty() {
            let mut answer = [0; ANSWER_BYTES];
            stream.read_exact(&mut answer).await.unwrap();
            let answer = HandshakeAnswer::decode(&answer).unwrap();
            let expected = HandshakeAnswer {
                version: VERSION,
                verdict: Verdict::Accepted,
                node: NodeId(2),
                nonce: 5,
                timing: TransportSettings::default().timing,
            };
            assert_eq!(answer, expected);
            stream.write_all(second).await.unwrap();
        }
        // Closed by the node, with or without what it had not read.
        let mut rest = [0; 64];
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut rest));
        assert!(matches!(closed.await.unwrap(), Ok(0) | Err(_)));
    }
    until("all are counted", || {
        (b.counter("refused_handshakes"), b.counter("refused_frames")) == (3, 5)
    })
    .await;
    assert!(b.received.lock().is_empty());
    let a = peer(1).await;
    a.knows(2, &b);
    a.send(2, Channel::Entries, [message(1, "x")]);
    b.receives(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_refused() {
    let settings = TransportSettings { connections_max: 2, ..Default::default() };
    let b = peer_with(Some((CLUSTER, 2)), settings).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(TcpStream::connect(&b.address).await.unwrap());
    }
    until("three are refused", || b.counter("refused_busy") == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_of_a_peer_takes_the_place_of_the_older() {
    let b = peer(2).await;
    let handshake = Handshake {
        kind: Kind::Votes,
        cluster_id: CLUSTER.into(),
        from: NodeId(1),
        to: NodeId(2),
        nonce: 5,
        timing: TransportSettings::default().timing,
    };
    let open = || async {
        let mut stream = TcpStream::connect(&b.address).await.unwrap();
        stream.write_all(&handshake.encode().unwrap()).await.unwrap();
        stream.read_exact(&mut [0; ANSWER_BYTES]).await.unwrap();
        stream
    };
    let mut older = open().await;
    let mut newer = open().await;
    assert_eq!(older.read(&mut [0; 1]).await.unwrap(), 0);
    let mut frame = BytesMut::new();
    put_messages(&mut frame, &[message(1, "x")]);
    newer.write_all(&frame).await.unwrap();
    b.receives(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_messages_and_requests_pass_between_nodes_of_the_cluster_only() {
    let (ours, foreign) = (authority("ours"), authority("foreign"));
    let with = |node, tls| {
        let settings = TransportSettings { tls, ..Default::default() };
        peer_with(Some((CLUSTER, node)), settings)
    };
    let node = || Some(certificate(&ours, Role::Node, &ours));
    let (a, b) = (with(1, node()).await, with(2, node()).await);
    a.knows(2, &b);
    let sent: Vec<_> = (0..50).map(|i| message(i, vec![i as u8; 100_000])).collect();
    a.send(2, Channel::Entries, sent.clone());
    let expected: Vec<_> = sent.into_iter().map(|m| (NodeId(1), m)).collect();
    assert_eq!(b.receives(50).await, expected);
    let hello = a.transport.hello(&b.address, Hello::default()).await.unwrap();
    assert_eq!(hello.node_id, 2);

    for stranger in [
        None,
        Some(certificate(&foreign, Role::Node, &ours)),
        Some(certificate(&ours, Role::Client, &ours)),
        Some(certificate(&ours, Role::Admin, &ours)),
    ] {
        let c = with(3, stranger).await;
        c.knows(2, &b);
        c.send(2, Channel::Entries, [message(9, vec![9; 10])]);
        assert!(c.transport.hello(&b.address, Hello::default()).await.is_err());
        // Nor does a node take them for one of its own.
        assert!(b.transport.hello(&c.address, Hello::default()).await.is_err());
    }
    assert!(b.received.lock().is_empty());
    until("strangers are counted", || b.counter("refused_handshakes") >= 3).await;
}
