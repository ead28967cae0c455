//! `<data>/GOSSIP`: the generation that this node last gossiped as. It must rise with each start:
//! others drop what comes from an older one.
use crate::disk::write_atomically;
use std::path::Path;

const FILE: &str = "GOSSIP";
const FORMAT: u8 = 1;

/// A generation above all before it, remembered. The clock stands in where the file is missing or
/// could not be written, and the file where the clock has gone back.
pub fn next(data_dir: &Path, now_unix_ms: u64) -> u64 {
    let path = data_dir.join(FILE);
    let last = std::fs::read(&path).ok().and_then(|bytes| decode(&bytes)).unwrap_or(0);
    let generation = last.saturating_add(1).max(now_unix_ms);
    if let Err(error) = write_atomically(&path, &encode(generation)) {
        tracing::warn!(%error, path = %path.display(), "the gossip generation was not remembered");
    }
    generation
}

fn encode(generation: u64) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend(generation.to_le_bytes());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    let (&format, generation) = content.split_first()?;
    (format == FORMAT && crc32c::crc32c(content) == u32::from_le_bytes(*sum))
        .then(|| generation.try_into().ok().map(u64::from_le_bytes))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_whatever_the_clock_and_the_file_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next(dir.path(), 1_000), 1_000);
        assert_eq!(next(dir.path(), 400), 1_001, "the clock went back");
        assert_eq!(next(dir.path(), 5_000), 5_000);
        std::fs::write(dir.path().join(FILE), b"damaged").unwrap();
        assert_eq!(next(dir.path(), 5_001), 5_001);
        // A folder in its place: it can be neither read nor written.
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert_eq!(next(dir.path(), 5_002), 5_002);
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let whole = encode(7);
        assert_eq!(decode(&whole), Some(7));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(decode(&bytes), None);
            assert_eq!(decode(&whole[..at]), None);
        }
    }
}
