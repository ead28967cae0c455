//! Over loopback, with certificates that each test makes.
use std::{fs, path::Path};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::issue::{Authority, Subject};

const YEAR_S: u64 = 365 * 86_400;
const NOW_S: u64 = 1_800_000_000;

fn authority(name: &str) -> Authority {
    // From 1970 on, as whatever it issues may have been valid long ago.
    Authority::new(name, 0, NOW_S + 1_000 * YEAR_S).unwrap()
}

/// Writes a certificate for loopback, and whom it trusts. `valid_s`: from when to when.
fn write(dir: &Path, by: &Authority, role: Role, valid_s: (u64, u64), trusts: &[&Authority]) {
    let subject = Subject {
        name: "it",
        hosts: &["localhost", "127.0.0.1", "::1"].map(str::to_owned),
        role,
        not_before_unix_s: valid_s.0,
        not_after_unix_s: valid_s.1,
    };
    let trusts: String = trusts.iter().map(|a| a.issued.cert.as_str()).collect();
    by.issue(&subject).unwrap().write(dir, &trusts).unwrap();
}

/// As the year 1970 to 2900 or so: tests run on any clock.
const VALID: (u64, u64) = (0, NOW_S + 900 * YEAR_S);

fn made(dir: &Path, by: &Authority, role: Role, trusts: &[&Authority]) -> Tls {
    write(dir, by, role, VALID, trusts);
    Tls::open(Files::in_folder(dir)).unwrap()
}

/// A connection of `client` to `server`, with a byte each way: what each takes the other for.
async fn meet(server: &Tls, client: &Tls, host: &str) -> Option<(Role, Role)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, role) = server.accept(stream, Protocol::Peer).await.ok()?;
        let byte = stream.read_u8().await.ok()?;
        stream.write_u8(byte + 1).await.ok()?;
        Some(role)
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut stream, role) = client.connect(host, stream, Protocol::Peer).await.ok()?;
        stream.write_u8(1).await.ok()?;
        (stream.read_u8().await.ok()? == 2).then_some(role)
    };
    let (a, b) = tokio::join!(accepting, connecting);
    Some((b?, a?))
}

#[tokio::test]
async fn both_sides_know_what_the_other_is() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority("ours");
    let node = made(&dir.path().join("n"), &ca, Role::Node, &[&ca]);
    for role in [Role::Client, Role::Admin, Role::Node] {
        let client = made(&dir.path().join("c"), &ca, role, &[&ca]);
        assert_eq!(meet(&node, &client, "localhost").await, Some((Role::Node, role)));
        assert_eq!(meet(&node, &client, "127.0.0.1").await, Some((Role::Node, role)));
    }
}

#[tokio::test]
async fn an_ipv6_address_is_the_same_in_brackets_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority("ours");
    let node = made(dir.path(), &ca, Role::Node, &[&ca]);
    for host in ["::1", "[::1]"] {
        assert!(meet(&node, &node, host).await.is_some(), "{host}");
    }
    for host in ["::2", "[::2]", "[::1", "::1]", "[[::1]]", "[]"] {
        assert!(meet(&node, &node, host).await.is_none(), "{host}");
    }
}

#[tokio::test]
async fn without_a_certificate_with_a_foreign_or_an_expired_one_nobody_gets_in() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, foreign) = (authority("ours"), authority("theirs"));
    let node = made(&dir.path().join("n"), &ca, Role::Node, &[&ca]);
    let stranger = made(&dir.path().join("f"), &foreign, Role::Node, &[&ca]);
    assert_eq!(meet(&node, &stranger, "localhost").await, None);
    let expired_dir = dir.path().join("e");
    write(&expired_dir, &ca, Role::Node, (YEAR_S, 2 * YEAR_S), &[&ca]);
    let expired = Tls::open(Files::in_folder(&expired_dir)).unwrap();
    assert_eq!(meet(&node, &expired, "localhost").await, None);
    assert_eq!(meet(&expired, &node, "localhost").await, None, "nor does anybody trust it");
    let client = made(&dir.path().join("c"), &ca, Role::Client, &[&ca]);
    assert_eq!(meet(&node, &client, "other.example").await, None, "another host's certificate");
    let careful = made(&dir.path().join("d"), &ca, Role::Client, &[&foreign]);
    assert_eq!(meet(&node, &careful, "localhost").await, None, "it trusts another authority");

    // No TLS at all, and TLS without a certificate.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(node.accept(stream, Protocol::Http2).await.is_err());
}

#[tokio::test]
async fn certificates_and_authorities_are_replaced_while_both_sides_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority("old"), authority("new"));
    let (n, c) = (dir.path().join("n"), dir.path().join("c"));
    let node = made(&n, &old, Role::Node, &[&old]);
    let client = made(&c, &old, Role::Client, &[&old]);
    let met = async || meet(&node, &client, "localhost").await.is_some();
    assert!(met().await && !node.reload().unwrap());
    let before = node.authorities();
    // Both authorities everywhere, then new certificates one by one, then the old authority goes.
    write(&n, &old, Role::Node, VALID, &[&old, &new]);
    assert!(node.reload().unwrap() && node.authorities() != before);
    write(&c, &old, Role::Client, VALID, &[&old, &new]);
    assert!(client.reload().unwrap() && met().await);
    write(&n, &new, Role::Node, VALID, &[&old, &new]);
    assert!(node.reload().unwrap() && met().await);
    write(&c, &new, Role::Client, VALID, &[&new]);
    assert!(client.reload().unwrap() && met().await);
    write(&n, &new, Role::Node, VALID, &[&new]);
    assert!(node.reload().unwrap() && met().await);
    // Whoever has missed it all is out.
    let late = made(&dir.path().join("l"), &old, Role::Client, &[&old, &new]);
    assert_eq!(meet(&node, &late, "localhost").await, None);
}

#[tokio::test]
async fn what_cannot_be_read_changes_nothing_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority("ours");
    let node = made(dir.path(), &ca, Role::Node, &[&ca]);
    let key = fs::read(dir.path().join(KEY_NAME)).unwrap();
    for (file, content, why) in [
        (KEY_NAME, b"".to_vec(), "a private key"),
        (KEY_NAME, authority("other").issued.key.into_bytes(), "belong together"),
        (CA_NAME, b"no certificate".to_vec(), "certificates"),
    ] {
        fs::write(dir.path().join(file), content).unwrap();
        let error = node.reload().unwrap_err().to_string();
        assert!(error.contains(why), "{file}: {error}");
        fs::write(dir.path().join(KEY_NAME), &key).unwrap();
    }
    fs::remove_file(dir.path().join(CA_NAME)).unwrap();
    assert!(matches!(node.reload(), Err(TlsError::Read { .. })));
    assert!(meet(&node, &node, "localhost").await.is_some(), "it goes on with what it had");
}
