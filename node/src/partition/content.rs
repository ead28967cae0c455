//! The checksum of an event's content: computed where an append comes in, compared when an id is
//! appended again, verified at every read.
use bytes::Bytes;
use ringfold_proto::internal::{Event, EventRecord};

pub const CONTENT_HASH_BYTES: usize = 16;

/// First 16 bytes of the BLAKE3 of type, content type, data, metadata and schema version. The
/// BLAKE3 input: the four lengths and the schema version (u32, little endian), then the fields.
pub fn content_hash(
    event_type: &str,
    schema_version: u32,
    content_type: &str,
    data: &[u8],
    metadata: &[u8],
) -> Bytes {
    let mut hasher = blake3::Hasher::new();
    let fields = [event_type.as_bytes(), content_type.as_bytes(), data, metadata];
    // Lengths first: one call for the small parts.
    let mut lengths = [0; 20];
    for (to, field) in lengths.chunks_exact_mut(4).zip(fields) {
        to.copy_from_slice(&(field.len() as u32).to_le_bytes());
    }
    lengths[16..].copy_from_slice(&schema_version.to_le_bytes());
    hasher.update(&lengths);
    for field in fields {
        hasher.update(field);
    }
    Bytes::copy_from_slice(&hasher.finalize().as_bytes()[..CONTENT_HASH_BYTES])
}

/// The hash that an event must have.
pub fn hash_of_event(e: &Event) -> Bytes {
    content_hash(&e.r#type, e.schema_version, &e.content_type, &e.data, &e.metadata)
}

/// The hash that a stored event must have.
pub fn hash_of_record(e: &EventRecord) -> Bytes {
    content_hash(&e.r#type, e.schema_version, &e.content_type, &e.data, &e.metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_every_border_between_fields_counts() {
        let all = [
            content_hash("a", 1, "b", b"c", b"d"),
            content_hash("x", 1, "b", b"c", b"d"),
            content_hash("a", 2, "b", b"c", b"d"),
            content_hash("a", 1, "x", b"c", b"d"),
            content_hash("a", 1, "b", b"x", b"d"),
            content_hash("a", 1, "b", b"c", b"x"),
            content_hash("ab", 1, "", b"c", b"d"),
            content_hash("a", 1, "bc", b"", b"d"),
            content_hash("a", 1, "b", b"cd", b""),
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.len(), CONTENT_HASH_BYTES);
            assert!(all[..i].iter().all(|b| a != b), "{i}");
        }
    }

    /// The hash is on every disk: it must never change.
    #[test]
    fn the_hash_is_the_one_of_the_format() {
        let mut naive = Vec::new();
        for f in [&b"Type"[..], b"application/json", b"{}", b"m"] {
            naive.extend_from_slice(&(f.len() as u32).to_le_bytes());
        }
        naive.extend_from_slice(&7u32.to_le_bytes());
        naive.extend_from_slice(b"Typeapplication/json{}m");
        assert_eq!(
            content_hash("Type", 7, "application/json", b"{}", b"m")[..],
            blake3::hash(&naive).as_bytes()[..16]
        );
    }
}
