use super::*;
use crate::test_certificates::{authority, certificate};
use futures::StreamExt as _;
use std::time::Instant;
use tokio::net::TcpSocket;

/// A port, its address and what it takes.
async fn port(
    tls: Tls,
    handshake_timeout: Duration,
) -> (Arc<Port>, SocketAddr, ReceiverStream<io::Result<ClientStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let port = Arc::new(Port {
        tls: Some(tls),
        metrics: Arc::default(),
        handshakes: Handshakes::default(),
        handshake_timeout,
        log: LogLimit::default(),
        sender,
    });
    let accepting = port.clone();
    tokio::spawn(async move { accepting.accept(&listener).await });
    (port, address, ReceiverStream::new(receiver))
}

/// A connection from an address of this host.
async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

fn refused(port: &Port, reason: &str) -> u64 {
    let text = port.metrics.text().unwrap();
    let start = format!("ringfold_node_handshakes_refused_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&start)).map_or(0, |n| n.parse().unwrap())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn whoever_never_ends_a_handshake_keeps_no_other_address_out() {
    let ca = authority("ours");
    let long = Duration::from_secs(600);
    let (port, address, mut taken) = port(certificate(&ca, Role::Node, &ca), long).await;
    let mut silent = Vec::new();
    for _ in 0..160 {
        silent.push(connect("127.0.0.1", address).await);
    }
    until("some are refused", || refused(&port, "busy") == 160 - 16 - 128).await;
    let client = certificate(&ca, Role::Client, &ca);
    let tcp = connect("127.0.0.2", address).await;
    let opened = ringfold_tls::Stream::opened(tcp, "127.0.0.1", Some(&client), Protocol::Http2);
    let both = async { tokio::join!(opened, taken.next()) };
    let (opened, accepted) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    opened.unwrap();
    assert_eq!(accepted.unwrap().unwrap().connect_info().role, Some(Role::Client));
    assert_eq!((refused(&port, "tls"), refused(&port, "timeout")), (0, 0));
}

#[tokio::test]
async fn those_that_are_refused_are_counted_and_those_that_go_are_not() {
    let ca = authority("ours");
    let short = Duration::from_secs(1);
    let (port, address, _taken) = port(certificate(&ca, Role::Node, &ca), short).await;
    drop(connect("127.0.0.1", address).await);
    let silent = connect("127.0.0.1", address).await;
    until("the silent one is refused", || refused(&port, "timeout") == 1).await;
    drop(silent);
    assert_eq!(refused(&port, "tls"), 0, "the one that went");
    let foreign = certificate(&authority("foreign"), Role::Client, &ca);
    let tcp = connect("127.0.0.1", address).await;
    // The client may have its side of the handshake before it is refused.
    let opened =
        ringfold_tls::Stream::opened(tcp, "127.0.0.1", Some(&foreign), Protocol::Http2).await;
    until("the foreign one is refused", || refused(&port, "tls") == 1).await;
    drop(opened);
    assert_eq!(refused(&port, "busy"), 0);
}
