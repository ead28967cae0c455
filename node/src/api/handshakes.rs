//! Whose turn it is to do a TLS handshake: those who never end theirs take no other address's turn.
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Handshakes under way.
const UNDER_WAY_MAX: usize = 256;
/// Of them, of one address. One takes some milliseconds of work and two round trips: so many serve
/// hundreds of clients a second, also where all of them come through one NAT.
const OF_ADDRESS_MAX: usize = 16;
/// Connections of one address that wait for their turn: all clients behind a NAT connect anew at once
/// when a node has restarted.
const WAITING_OF_ADDRESS_MAX: usize = 128;

pub struct Handshakes {
    places: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, Address>>,
}

struct Address {
    places: Arc<Semaphore>,
    connections: usize,
}

impl Default for Handshakes {
    fn default() -> Handshakes {
        let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Handshakes { places, addresses: Mutex::default() }
    }
}

impl Handshakes {
    /// A connection comes in. `None`: too many of its address are here.
    pub fn enter(&self, address: IpAddr) -> Option<Entered<'_>> {
        let address = counted_as(address);
        let mut addresses = self.addresses.lock();
        let of_address = addresses.entry(address).or_insert_with(|| Address {
            places: Arc::new(Semaphore::new(OF_ADDRESS_MAX)),
            connections: 0,
        });
        if of_address.connections >= OF_ADDRESS_MAX + WAITING_OF_ADDRESS_MAX {
            return None;
        }
        of_address.connections += 1;
        Some(Entered { all: self, address, places: of_address.places.clone() })
    }
}

/// A connection whose handshake is not done. It leaves when this is dropped.
pub struct Entered<'a> {
    all: &'a Handshakes,
    address: IpAddr,
    places: Arc<Semaphore>,
}

/// Lasts until it is dropped.
pub struct Turn {
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl Entered<'_> {
    /// Waits for its turn.
    pub async fn turn(&self) -> Turn {
        // First its address's: who waits for that one must not hold one of all. Never closed.
        let of_address = self.places.clone().acquire_owned().await.ok();
        let of_all = self.all.places.clone().acquire_owned().await.ok();
        Turn { _places: [of_address, of_all] }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut addresses = self.all.addresses.lock();
        if let Some(of_address) = addresses.get_mut(&self.address) {
            of_address.connections -= 1;
            if of_address.connections == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// The same for all that one host can come from: an IPv4 address is one whether it is mapped or not,
/// and of IPv6 a host has a /64 to choose from.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn one_host_is_one_address() {
        let same =
            |a: &str, b: &str| counted_as(a.parse().unwrap()) == counted_as(b.parse().unwrap());
        assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
        assert!(same("2001:db8:0:1::5", "2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
        assert!(!same("2001:db8:0:1::5", "2001:db8:0:2::5"));
    }

    #[test]
    fn an_address_has_so_many_turns_some_wait_for_one_and_the_rest_is_refused() {
        let handshakes = Handshakes::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut entered: Vec<_> =
            std::iter::from_fn(|| handshakes.enter(one)).take(1_000).collect();
        assert_eq!(entered.len(), OF_ADDRESS_MAX + WAITING_OF_ADDRESS_MAX);
        let mut turns: Vec<_> = entered.iter().map_while(|e| e.turn().now_or_never()).collect();
        assert_eq!(turns.len(), OF_ADDRESS_MAX);
        // The others are not held up.
        let of_other = handshakes.enter(other).unwrap();
        assert!(of_other.turn().now_or_never().is_some());
        // One ends: the next has its turn, and there is room to wait.
        turns.pop();
        entered.pop();
        let next = entered[OF_ADDRESS_MAX].turn().now_or_never();
        assert!(next.is_some());
        assert!(entered[OF_ADDRESS_MAX + 1].turn().now_or_never().is_none());
        entered.push(handshakes.enter(one).unwrap());
        assert!(handshakes.enter(one).is_none());
        drop((entered, of_other));
        assert!(handshakes.addresses.lock().is_empty());
    }

    #[test]
    fn all_addresses_together_have_so_many_turns() {
        let handshakes = Handshakes::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let entered: Vec<_> =
            (0..2 * UNDER_WAY_MAX as u32).map(|n| handshakes.enter(address(n)).unwrap()).collect();
        let turns: Vec<_> = entered.iter().map_while(|e| e.turn().now_or_never()).collect();
        assert_eq!(turns.len(), UNDER_WAY_MAX);
    }
}
