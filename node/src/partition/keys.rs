//! Keys and values of a partition's database: one column family, a tag byte before each key.
//!
//! Keys that belong to a stream begin with the hash that also chose its partition, so that a split
//! of a partition is a split of ranges.
use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

/// First byte of a key. Stable: on every disk.
pub mod tag {
    pub const APPLIED: u8 = 1;
    pub const MEMBERSHIP: u8 = 2;
    pub const GENESIS: u8 = 3;
    pub const REDUCERS: u8 = 4;
    /// The meta group's state.
    pub const META: u8 = 8;
    pub const EVENTS: u8 = 16;
    pub const STREAMS: u8 = 17;
    pub const IDS: u8 = 18;
    pub const POSITIONS: u8 = 19;
    pub const NAMES: u8 = 20;
    pub const SNAPSHOTS: u8 = 21;
    /// Kept free: `category ‖ 0x00 ‖ position`.
    pub const CATEGORIES: u8 = 22;
}

/// First byte of every value.
pub const FORMAT: u8 = 1;

pub const STREAM_NAME_BYTES_MAX: usize = 1_024;
pub const ID_BYTES: usize = 16;

/// Keys that there is only one of.
pub const APPLIED: &[u8] = &[tag::APPLIED];
pub const MEMBERSHIP: &[u8] = &[tag::MEMBERSHIP];
pub const GENESIS: &[u8] = &[tag::GENESIS];
pub const REDUCERS: &[u8] = &[tag::REDUCERS];
pub const META: &[u8] = &[tag::META];

/// Orders a partition's streams; its top bits are the partition.
pub fn stream_hash(stream: &str) -> u64 {
    xxh3_64(stream.as_bytes())
}

/// What stands before the first `-`; the whole name where there is none.
pub fn category(stream: &str) -> &str {
    stream.split_once('-').map_or(stream, |(category, _)| category)
}

fn tagged(out: &mut Vec<u8>, tag: u8, hash: u64, stream: &str) {
    out.push(tag);
    out.extend_from_slice(&hash.to_be_bytes());
    out.extend_from_slice(stream.as_bytes());
}

pub fn event(out: &mut Vec<u8>, hash: u64, stream: &str, revision: u64) {
    tagged(out, tag::EVENTS, hash, stream);
    out.push(0);
    out.extend_from_slice(&revision.to_be_bytes());
}

pub fn stream(out: &mut Vec<u8>, hash: u64, stream: &str) {
    tagged(out, tag::STREAMS, hash, stream);
}

pub fn id(out: &mut Vec<u8>, hash: u64, stream: &str, id: &[u8]) {
    tagged(out, tag::IDS, hash, stream);
    out.push(0);
    out.extend_from_slice(id);
}

pub fn snapshot(out: &mut Vec<u8>, hash: u64, stream: &str, revision: u64) {
    tagged(out, tag::SNAPSHOTS, hash, stream);
    out.push(0);
    out.extend_from_slice(&revision.to_be_bytes());
}

/// The position of the first event of a batch.
pub fn position(out: &mut Vec<u8>, first_position: u64) {
    out.push(tag::POSITIONS);
    out.extend_from_slice(&first_position.to_be_bytes());
}

pub fn name(out: &mut Vec<u8>, stream: &str) {
    out.push(tag::NAMES);
    out.extend_from_slice(stream.as_bytes());
}

/// The revision at the end of an event's or a snapshot's key.
pub fn revision_of(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|r| u64::from_be_bytes(*r))
}

/// The name in a key of `tag::NAMES`.
pub fn name_of(key: &[u8]) -> Option<&str> {
    let (&tag::NAMES, name) = key.split_first()? else {
        return None;
    };
    std::str::from_utf8(name).ok()
}

/// A key of its own.
pub fn owned(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    write(&mut key);
    key
}

/// The least key above all that begin with `prefix`, which must not be all 0xff.
pub fn end_of_prefix(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            break;
        }
    }
    prefix
}

/// Appends a value: the format byte and the message.
pub fn encode_value(out: &mut Vec<u8>, message: &impl Message) {
    out.push(FORMAT);
    message.encode_raw(out);
}

/// Reads a value; its byte fields share `value`'s memory.
pub fn decode_value<M: Message + Default>(value: Bytes) -> Result<M, String> {
    match value.first() {
        Some(&FORMAT) => {
            M::decode(value.slice(1..)).map_err(|e| format!("a value is damaged: {e}"))
        }
        Some(other) => Err(format!(
            "a value has format {other}, this version reads up to {FORMAT}: run a newer version"
        )),
        None => Err("a value is damaged: it is empty".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream_name() -> impl Strategy<Value = String> {
        "[a-c\u{e9}\u{10ffff}-]{1,5}"
    }

    proptest! {
        #[test]
        fn events_sort_by_revision_and_no_stream_stands_within_another(
            a in stream_name(), b in stream_name(), i in any::<u64>(), j in any::<u64>()
        ) {
            // The same hash: the worst that names can do.
            let (x, y) = (owned(|o| event(o, 7, &a, i)), owned(|o| event(o, 7, &b, j)));
            prop_assert_eq!(revision_of(&x), Some(i));
            if a == b {
                prop_assert_eq!(x.cmp(&y), i.cmp(&j));
            } else {
                let (first, last) = (owned(|o| event(o, 7, &a, 0)), owned(|o| event(o, 7, &a, u64::MAX)));
                prop_assert!(y < first || y > last);
                prop_assert_ne!(owned(|o| stream(o, 7, &a)), owned(|o| stream(o, 7, &b)));
                prop_assert_ne!(owned(|o| id(o, 7, &a, &[1; 16])), owned(|o| id(o, 7, &b, &[1; 16])));
            }
        }

        #[test]
        fn names_sort_by_their_bytes(a in stream_name(), b in stream_name()) {
            let (x, y) = (owned(|o| name(o, &a)), owned(|o| name(o, &b)));
            prop_assert_eq!(x.cmp(&y), a.as_bytes().cmp(b.as_bytes()));
            prop_assert_eq!(name_of(&x), Some(a.as_str()));
        }

        #[test]
        fn the_end_of_a_prefix_is_right_behind_it(prefix in prop::collection::vec(any::<u8>(), 1..4), rest in prop::collection::vec(any::<u8>(), 0..4)) {
            let mut prefix = prefix;
            prefix[0] &= 0x7f;
            let end = end_of_prefix(prefix.clone());
            let mut inside = prefix.clone();
            inside.extend(rest);
            prop_assert!(inside < end);
            prop_assert!(!end.starts_with(&prefix));
        }

        #[test]
        fn values_round_trip(stream in stream_name(), revision in any::<u64>(), state in prop::collection::vec(any::<u8>(), 0..50)) {
            let record = ringfold_proto::internal::StreamRecord {
                revision, content_type: stream, state: state.into(), ..Default::default()
            };
            let value = owned(|o| encode_value(o, &record));
            prop_assert_eq!(decode_value::<ringfold_proto::internal::StreamRecord>(value.into()).unwrap(), record);
        }
    }

    #[test]
    fn a_newer_or_empty_value_is_refused() {
        type R = ringfold_proto::internal::StreamRecord;
        assert!(
            decode_value::<R>(Bytes::from_static(&[2, 8, 1])).unwrap_err().contains("format 2")
        );
        assert!(decode_value::<R>(Bytes::new()).unwrap_err().contains("empty"));
        assert!(decode_value::<R>(Bytes::from_static(&[1, 0xff])).unwrap_err().contains("damaged"));
    }

    #[test]
    fn the_category_stands_before_the_first_dash() {
        assert_eq!(category("customer-42-x"), "customer");
        assert_eq!(category("customer"), "customer");
        assert_eq!(category("-42"), "");
    }

    /// Positions and placement rest on this hash.
    #[test]
    fn the_hash_of_a_stream_never_changes() {
        assert_eq!(stream_hash(""), 0x2d06_8005_38d3_94c2);
    }
}
