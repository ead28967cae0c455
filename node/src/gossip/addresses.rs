//! Where others gossip, and where they reach us: from peer addresses, which are known.
use crate::config::Settings;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::lookup_host;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Names looked up in one round, and addresses that come of it.
pub const NAMES_MAX: usize = 64;
pub const ADDRESSES_MAX: usize = 256;

/// Where the node with that peer address gossips, if its ports lie as far apart as ours.
pub fn of_peer(peer_address: &str, settings: &Settings) -> Option<String> {
    let (host, port) = peer_address.rsplit_once(':')?;
    let distance =
        i32::from(settings.gossip_listen.port()) - i32::from(settings.peer_listen.port());
    let port = u16::try_from(i32::from(port.parse::<u16>().ok()?) + distance).ok()?;
    (port != 0 && !host.is_empty()).then(|| format!("{host}:{port}"))
}

/// Addresses of hosts with ports. What cannot be looked up in time is left out.
pub async fn look_up(names: impl IntoIterator<Item = String>) -> BTreeSet<SocketAddr> {
    let lookups = names.into_iter().take(NAMES_MAX).map(|name| async move {
        match tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host(&name)).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a name for gossip has no address");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    });
    join_all(lookups).await.into_iter().flatten().take(ADDRESSES_MAX).collect()
}

/// The address that others shall gossip to. An address like 0.0.0.0 stands for the one that leads to
/// the others, or that the host's name has. `others`: where they gossip.
pub async fn advertised(
    settings: &Settings,
    host_name: &str,
    others: &BTreeSet<SocketAddr>,
) -> SocketAddr {
    let listen = settings.gossip_listen;
    if !settings.gossip_advertise.is_empty() {
        if let Some(found) = look_up([settings.gossip_advertise.clone()]).await.first() {
            return *found;
        }
        tracing::warn!(name = settings.gossip_advertise, "gossip_advertise has no address now");
    }
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let port = listen.port();
    let routed = others.iter().filter_map(route);
    // Loopback only if there is nothing else: others may be on other machines.
    let (loopback, outward): (Vec<IpAddr>, Vec<IpAddr>) = routed.partition(IpAddr::is_loopback);
    if let Some(ip) = outward.first().or(loopback.first()) {
        return (*ip, port).into();
    }
    let named = look_up([format!("{host_name}:{port}")]).await;
    let best = named.iter().find(|a| !a.ip().is_loopback()).or(named.first());
    best.copied().unwrap_or((Ipv4Addr::LOCALHOST, port).into())
}

/// Our address on the way to that one. Sends nothing.
fn route(to: &SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, Sources, load};

    fn settings(flags: &[&str]) -> Settings {
        let args: Vec<String> =
            ["--data-dir", "/d"].iter().chain(flags).map(|a| a.to_string()).collect();
        let sources = Sources {
            args: &args,
            env: &|_| None,
            read_file: &|_| Err(std::io::ErrorKind::NotFound.into()),
            host_name: "localhost",
        };
        match load(&sources).unwrap() {
            Loaded::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn gossip_ports_lie_as_far_from_peer_ports_as_here() {
        let s = settings(&[]);
        assert_eq!(of_peer("ringfold-peers.ns:2601", &s).unwrap(), "ringfold-peers.ns:2602");
        assert_eq!(of_peer("[::1]:2611", &s).unwrap(), "[::1]:2612");
        let s = settings(&["--peer-listen", "127.0.0.1:3000", "--gossip-listen", "127.0.0.1:2000"]);
        assert_eq!(of_peer("a:3010", &s).unwrap(), "a:2010");
        for wrong in ["a:999", "a:1000", "a", "a:x", ":3000"] {
            assert_eq!(of_peer(wrong, &s), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_is_advertised_can_be_reached() {
        let nobody = BTreeSet::new();
        let s = settings(&["--gossip-listen", "127.0.0.1:7"]);
        assert_eq!(advertised(&s, "localhost", &nobody).await, "127.0.0.1:7".parse().unwrap());
        let s = settings(&["--gossip-advertise", "127.0.0.9:8"]);
        assert_eq!(advertised(&s, "localhost", &nobody).await, "127.0.0.9:8".parse().unwrap());
        let s = settings(&[]);
        let others = BTreeSet::from(["127.0.0.1:2602".parse().unwrap()]);
        assert_eq!(advertised(&s, "localhost", &others).await, "127.0.0.1:2602".parse().unwrap());
        let named = advertised(&s, "localhost", &nobody).await;
        assert!(named.ip().is_loopback() && named.port() == 2602, "{named}");
    }
}
