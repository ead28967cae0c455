//! Reads what `git ls-tree -r -z` says: the tree that states must equal. Pure.
use crate::log::Shown;

/// A path's mode and object id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub path: Vec<u8>,
    pub mode: String,
    pub blob: String,
}

/// The entry is not what `git ls-tree -r -z` prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("git's tree has the entry {0}, expected `mode type id<TAB>path`")]
pub struct TreeError(String);

/// Reads one entry, without its NUL.
pub fn entry(bytes: &[u8]) -> Result<Leaf, TreeError> {
    let error = || TreeError(Shown(bytes).to_string());
    let tab = bytes.iter().position(|b| *b == b'\t').ok_or_else(error)?;
    let head = std::str::from_utf8(&bytes[..tab]).map_err(|_| error())?;
    let mut words = head.split(' ').filter(|w| !w.is_empty());
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(mode), Some(_type), Some(blob), None) if tab + 1 < bytes.len() => {
            Ok(Leaf { path: bytes[tab + 1..].to_vec(), mode: mode.into(), blob: blob.into() })
        }
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_is_read_whatever_its_path(path in prop::collection::vec(1u8.., 1..40)) {
            let mut bytes = b"160000 commit 0123456789012345678901234567890123456789\t".to_vec();
            bytes.extend_from_slice(&path);
            let leaf = entry(&bytes).unwrap();
            prop_assert_eq!(leaf.path, path);
            prop_assert_eq!(leaf.mode, "160000");
            prop_assert_eq!(leaf.blob, "0123456789012345678901234567890123456789");
        }

        #[test]
        fn any_bytes_give_an_entry_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = entry(&bytes);
        }
    }

    #[test]
    fn an_entry_without_path_is_refused() {
        assert!(entry(b"100644 blob 0123\t").is_err());
        assert!(entry(b"100644 blob 0123").is_err());
    }
}
