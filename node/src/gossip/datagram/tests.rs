use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const NEXT_KEY: &str = "fedcba9876543210fedcba9876543210";

fn party(node: u64, cluster: &str, current: &str, previous: Option<&str>) -> Party {
    Party::new(Keys::new(current, previous), cluster, NodeId(node))
}

fn sealer(node: u64, generation: u64) -> Sealer {
    Sealer::new(party(node, "c", KEY, None), generation)
}

fn opener() -> Opener {
    Opener::new(party(9, "c", KEY, None))
}

fn sealed(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(payload, &mut out).unwrap();
    out
}

#[test]
fn a_sealed_message_gets_in_once() {
    let mut opener = opener();
    let datagram = sealed(&mut sealer(1, 5), b"hello");
    assert_eq!(opener.open(&datagram), Ok((NodeId(1), &b"hello"[..])));
    assert_eq!(opener.open(&datagram), Err(Refused::Replayed));
}

#[test]
fn another_cluster_another_key_and_our_own_are_refused() {
    let seal = |p: Party| sealed(&mut Sealer::new(p, 1), b"hello");
    for (party, why) in [
        (party(1, "d", KEY, None), Refused::ForeignCluster),
        (party(1, "c", NEXT_KEY, None), Refused::WrongKey),
        (party(9, "c", KEY, None), Refused::OwnSender),
    ] {
        assert_eq!(opener().open(&seal(party)), Err(why));
    }
}

#[test]
fn keys_are_replaced_node_by_node() {
    // Before, while some have restarted, and after: in each step any two nodes hear each other.
    let (old, both, new) = ((KEY, None), (NEXT_KEY, Some(KEY)), (NEXT_KEY, None));
    for (a, b) in [(old, old), (old, both), (both, both), (both, new), (new, new)] {
        for (from, to) in [(a, b), (b, a)] {
            let datagram = sealed(&mut Sealer::new(party(1, "c", from.0, from.1), 1), b"x");
            let mut opener = Opener::new(party(2, "c", to.0, to.1));
            assert!(opener.open(&datagram).is_ok(), "{from:?} to {to:?}");
        }
    }
    let datagram = sealed(&mut Sealer::new(party(1, "c", KEY, None), 1), b"x");
    let mut opener = Opener::new(party(2, "c", NEXT_KEY, None));
    assert_eq!(opener.open(&datagram), Err(Refused::WrongKey), "the old key is out");
}

#[test]
fn an_older_generation_never_gets_in_again() {
    let mut opener = opener();
    let (mut old, mut new) = (sealer(1, 5), sealer(1, 6));
    let late = sealed(&mut old, b"late");
    assert!(opener.open(&sealed(&mut old, b"")).is_ok());
    assert!(opener.open(&sealed(&mut new, b"")).is_ok());
    assert_eq!(opener.open(&late), Err(Refused::Replayed));
    assert_eq!(opener.open(&sealed(&mut old, b"")), Err(Refused::Replayed));
    assert!(opener.open(&sealed(&mut new, b"")).is_ok());
}

#[test]
fn a_message_that_is_too_large_is_an_error_and_the_largest_fits() {
    let mut sealer = Sealer::new(party(1, "c", NEXT_KEY, Some(KEY)), 1);
    let mut out = Vec::new();
    let large = vec![7; PAYLOAD_BYTES_MAX + 1];
    assert_eq!(sealer.seal(&large, &mut out), Err(TooLarge(large.len())));
    sealer.seal(&large[1..], &mut out).unwrap();
    assert_eq!(out.len(), DATAGRAM_BYTES_MAX);
    assert_eq!(opener().open(&out), Ok((NodeId(1), &large[1..])));
}

#[test]
fn memory_for_senders_is_bounded_and_the_silent_go_first() {
    let mut senders = Senders::default();
    for node in 0..SENDERS_MAX as u64 {
        assert!(senders.accept(NodeId(node), 1, 1));
    }
    assert!(senders.accept(NodeId(0), 1, 2));
    assert!(senders.accept(NodeId(1 << 40), 1, 1));
    assert_eq!(senders.known.len(), SENDERS_MAX);
    assert!(!senders.accept(NodeId(0), 1, 2), "node 0 is remembered, it spoke");
    assert!(!senders.known.contains_key(&NodeId(1)));
}

#[test]
fn keys_are_not_shown() {
    assert_eq!(format!("{:?}", Keys::new(KEY, Some(NEXT_KEY))), "Keys(2)");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300), well_begun in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if well_begun && bytes.len() > 2 {
            bytes[..2].copy_from_slice(&[VERSION, 1]);
        }
        prop_assert!(opener().open(&bytes).is_err());
    }

    #[test]
    fn a_changed_or_shortened_datagram_is_refused(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(), by in 1..=255u8,
    ) {
        let whole = sealed(&mut sealer(1, 1), &payload);
        let at = at.index(whole.len());
        let mut changed = whole.clone();
        changed[at] ^= by;
        prop_assert!(opener().open(&changed).is_err());
        prop_assert!(opener().open(&whole[..at]).is_err());
        let longer = [&whole[..], &[by]].concat();
        prop_assert!(opener().open(&longer).is_err());
    }

    /// Beside a model that remembers everything.
    #[test]
    fn each_datagram_gets_in_at_most_once_and_within_the_window_in_any_order(
        sent in prop::collection::vec((1..4u64, 1..3u64, 1..400u64), 1..300),
    ) {
        let mut senders = Senders::default();
        let mut seen: HashSet<(u64, u64, u64)> = HashSet::new();
        for (node, generation, counter) in sent {
            let of_node = || seen.iter().filter(|s| s.0 == node);
            let newest = of_node().map(|s| s.1).max().unwrap_or(0);
            let highest =
                of_node().filter(|s| s.1 == generation).map(|s| s.2).max().unwrap_or(0);
            let expected = generation >= newest
                && !seen.contains(&(node, generation, counter))
                && counter + WINDOW > highest;
            prop_assert_eq!(senders.accept(NodeId(node), generation, counter), expected);
            if expected {
                seen.insert((node, generation, counter));
            }
        }
    }
}
