use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn messages() -> impl Strategy<Value = Vec<PeerMessage>> {
    let message = (any::<u32>(), any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..200)).prop_map(
        |(group, from, to, bytes)| PeerMessage {
            group: GroupId(group),
            from: ReplicaId(from),
            to: ReplicaId(to),
            bytes: bytes.into(),
        },
    );
    vec(message, 0..30)
}

const TIMING: Timing = Timing { tick_ms: 100, election_ticks: 10 };

fn handshake() -> impl Strategy<Value = Handshake> {
    let kind = prop_oneof![
        Just(Kind::Votes),
        Just(Kind::Entries),
        Just(Kind::Control),
        Just(Kind::Transfer)
    ];
    (kind, "[a-z0-9-]{0,60}", any::<u64>(), any::<u64>(), any::<u64>(), any::<[u32; 2]>()).prop_map(
        |(kind, cluster_id, from, to, nonce, [tick_ms, election_ticks])| Handshake {
            kind,
            cluster_id: cluster_id.into(),
            from: NodeId(from),
            to: NodeId(to),
            nonce,
            timing: Timing { tick_ms, election_ticks },
        },
    )
}

/// Every frame of a stream that comes in pieces, until the end or an error.
fn read_all(bytes: &[u8], piece: usize, max: usize) -> (Vec<PeerMessage>, Option<FrameError>) {
    let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        loop {
            match take_frame(&mut buffer, max) {
                Ok(None) => break,
                Ok(Some(payload)) => {
                    if let Err(e) = take_payload(payload, &mut out) {
                        return (out, Some(e));
                    }
                }
                Err(e) => return (out, Some(e)),
            }
        }
    }
    (out, None)
}

proptest! {
    #[test]
    fn handshakes_come_back_as_sent(h in handshake()) {
        let bytes = h.encode().unwrap();
        prop_assert_eq!(
            Handshake::tail_bytes(bytes.first_chunk().unwrap()).unwrap() + HANDSHAKE_HEAD_BYTES,
            bytes.len()
        );
        prop_assert_eq!(Handshake::decode(&bytes).unwrap(), h);
    }

    #[test]
    fn a_changed_bit_in_a_handshake_is_refused(h in handshake(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = h.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(Handshake::decode(&bytes).is_err());
    }

    #[test]
    fn a_changed_bit_in_an_answer_is_refused(node: u64, nonce: u64, at in 0..ANSWER_BYTES, bit in 0..8) {
        let answer = HandshakeAnswer { version: VERSION, verdict: Verdict::Busy, node: NodeId(node), nonce, timing: TIMING };
        let mut bytes = answer.encode();
        prop_assert_eq!(HandshakeAnswer::decode(bytes.first_chunk().unwrap()).unwrap(), answer);
        bytes[at] ^= 1u8 << bit;
        prop_assert!(HandshakeAnswer::decode(bytes.first_chunk().unwrap()).is_err());
    }

    #[test]
    fn messages_come_back_in_order_however_they_are_cut(
        rounds in vec(messages(), 1..5), piece in 1usize..300
    ) {
        let mut bytes = BytesMut::new();
        for round in &rounds {
            prop_assert_eq!(put_messages(&mut bytes, round), 0);
            put_pulse(&mut bytes, 7);
        }
        let (got, error) = read_all(&bytes, piece, RAFT_FRAME_BYTES_MAX);
        prop_assert_eq!(error, None);
        prop_assert_eq!(got, rounds.concat());
    }

    #[test]
    fn a_changed_bit_in_a_frame_never_gives_a_changed_message(
        sent in messages(), at in any::<prop::sample::Index>(), bit in 0..8
    ) {
        let mut bytes = BytesMut::new();
        put_messages(&mut bytes, &sent);
        put_pulse(&mut bytes, 7);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        // A longer length waits for bytes that never come; all else is an error.
        let (got, _) = read_all(&bytes, 4096, RAFT_FRAME_BYTES_MAX);
        prop_assert!(got.is_empty() || got == sent);
    }

    #[test]
    fn random_bytes_are_refused_without_a_message(bytes in vec(any::<u8>(), 0..2000), piece in 1usize..500) {
        let (got, _) = read_all(&bytes, piece, 1 << 20);
        prop_assert!(got.is_empty());
        prop_assert!(Handshake::decode(&bytes).is_err());
        let mut out = Vec::new();
        let _ = take_payload(bytes.into(), &mut out);
    }

    #[test]
    fn a_cut_payload_gives_an_error_and_no_message(sent in messages(), cut in any::<prop::sample::Index>()) {
        let mut bytes = BytesMut::new();
        put_messages(&mut bytes, &sent);
        let Some(payload) = take_frame(&mut bytes, RAFT_FRAME_BYTES_MAX).unwrap() else {
            return Ok(());
        };
        let (cut, mut got) = (cut.index(payload.len()), Vec::new());
        match take_payload(payload.slice(..cut), &mut got) {
            // Cut between two messages.
            Ok(_) => prop_assert_eq!(&got[..], &sent[..got.len()]),
            Err(_) => prop_assert!(got.is_empty()),
        }
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_before_it_comes() {
    let mut buffer = BytesMut::from(&[0xff; FRAME_HEAD_BYTES][..]);
    let error = take_frame(&mut buffer, 1000).unwrap_err();
    assert_eq!(error, too_large("a frame", u32::MAX as usize, 1000));
}

#[test]
fn zeros_are_no_frame() {
    let mut buffer = BytesMut::from(&[0; 64][..]);
    assert_eq!(take_frame(&mut buffer, 1000).unwrap_err(), FrameError::Checksum("frame"));
}

#[test]
fn large_messages_are_spread_over_frames_and_an_impossible_one_is_left_out() {
    let message = |len: usize| PeerMessage {
        group: GroupId(1),
        from: ReplicaId(1),
        to: ReplicaId(2),
        bytes: Bytes::from(vec![7; len]),
    };
    let sent =
        [message(3 << 20), message(3 << 20), message(RAFT_FRAME_BYTES_MAX), message(5 << 20)];
    let mut bytes = BytesMut::new();
    assert_eq!(put_messages(&mut bytes, &sent), 1);
    let mut frames = Vec::new();
    while let Some(payload) = take_frame(&mut bytes, RAFT_FRAME_BYTES_MAX).unwrap() {
        let mut got = Vec::new();
        take_payload(payload, &mut got).unwrap();
        frames.push(got.iter().map(|m| m.bytes.len() >> 20).collect::<Vec<_>>());
    }
    assert_eq!(frames, [vec![3], vec![3], vec![5]]);
}

#[test]
fn another_version_is_named_before_anything_else_is_read() {
    let h = Handshake {
        kind: Kind::Votes,
        cluster_id: "c".into(),
        from: NodeId(1),
        to: NodeId(2),
        nonce: 3,
        timing: TIMING,
    };
    let mut bytes = h.encode().unwrap();
    bytes[4] = 9;
    assert_eq!(Handshake::tail_bytes(bytes.first_chunk().unwrap()), Err(FrameError::Version(9)));
}

#[test]
fn an_overlong_cluster_id_is_refused_on_both_sides() {
    let mut h = Handshake {
        kind: Kind::Control,
        cluster_id: "x".repeat(CLUSTER_ID_BYTES_MAX + 1).into(),
        from: NodeId(0),
        to: NodeId(0),
        nonce: 0,
        timing: TIMING,
    };
    assert!(matches!(h.encode(), Err(FrameError::TooLarge { .. })));
    h.cluster_id = "x".into();
    let mut bytes = h.encode().unwrap();
    bytes[7] = 200;
    assert!(matches!(Handshake::decode(&bytes), Err(FrameError::TooLarge { .. })));
}
