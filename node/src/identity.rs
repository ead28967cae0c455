//! `<data>/IDENTITY`: which node of which cluster a data directory is, and the lock on the directory.
use crate::disk::write_atomically;
use prost::Message as _;
use ringfold_proto::internal::Identity;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

const FILE: &str = "IDENTITY";
const FORMAT: u8 = 1;
/// Far above what an identity takes: a larger file is not one.
const BYTES_MAX: u64 = 1 << 20;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} cannot be {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(
        "{path} is damaged: {reason}. Without it the directory cannot be told from another node's: \
         move the directory away and let the node join anew"
    )]
    Corrupt { path: PathBuf, reason: String },
    #[error(
        "{path} has format {format}, and this version reads up to {FORMAT}: start the version that \
         wrote it, or a newer one"
    )]
    NewerFormat { path: PathBuf, format: u8 },
    #[error(
        "{path} is missing, but {found} is there: this is not a new data directory. Put the file \
         back, or move the directory away and let the node join anew"
    )]
    Missing { path: PathBuf, found: PathBuf },
    #[error(
        "the data directory belongs to cluster {ours}, and the others are cluster {theirs}: name \
         this cluster's seeds, or another data_dir"
    )]
    ForeignCluster { ours: String, theirs: String },
    #[error("{path} is in use by another process{by}: stop it, or name another data_dir")]
    InUse { path: PathBuf, by: String },
}

/// Keeps other processes out of a data directory. The kernel drops it with the process.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Locks the data directory, which must exist.
pub fn lock(data_dir: &Path) -> Result<DirectoryLock, IdentityError> {
    let path = data_dir.join("LOCK");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| io(&path, "opened", e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            let by = if pid.is_empty() { String::new() } else { format!(" (pid {pid})") };
            return Err(IdentityError::InUse { path: data_dir.into(), by });
        }
        Err(e) => return Err(io(&path, "locked", e.into())),
    }
    // For people only, so it may fail (a full disk): the lock is the kernel's.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(DirectoryLock { _file: file })
}

/// The directory's identity; a new directory gets one with a fresh token and no node id yet.
pub fn load_or_create(data_dir: &Path) -> Result<Identity, IdentityError> {
    if let Some(identity) = read(data_dir)? {
        return Ok(identity);
    }
    for name in ["log", "partitions"] {
        let found = data_dir.join(name);
        if found.exists() {
            return Err(IdentityError::Missing { path: data_dir.join(FILE), found });
        }
    }
    let identity = Identity { token: uuid::Uuid::new_v4().to_string(), ..Identity::default() };
    write(data_dir, &identity)?;
    Ok(identity)
}

/// Reads the identity; `None` where there is none.
pub fn read(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = data_dir.join(FILE);
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| io(&path, "read", e))?
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(&path, "opened", e)),
    };
    decode(&bytes, &path).map(Some)
}

/// Replaces the identity; it is durable when this returns.
pub fn write(data_dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let path = data_dir.join(FILE);
    write_atomically(&path, &encode(identity)).map_err(|e| io(&path, "written", e))
}

/// Refuses to go on with nodes of another cluster.
pub fn check_cluster(identity: &Identity, theirs: &str) -> Result<(), IdentityError> {
    if identity.cluster_id.is_empty() || theirs.is_empty() || identity.cluster_id == theirs {
        return Ok(());
    }
    Err(IdentityError::ForeignCluster { ours: identity.cluster_id.clone(), theirs: theirs.into() })
}

fn io(path: &Path, action: &'static str, source: std::io::Error) -> IdentityError {
    IdentityError::Io { path: path.into(), action, source }
}

fn encode(identity: &Identity) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    identity.encode_raw(&mut bytes);
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], path: &Path) -> Result<Identity, IdentityError> {
    let corrupt = |reason: String| IdentityError::Corrupt { path: path.into(), reason };
    let Some((content, sum)) = bytes.split_last_chunk::<4>() else {
        return Err(corrupt(format!("it has {} bytes", bytes.len())));
    };
    match content.split_first() {
        Some((&FORMAT, message)) => {
            if crc32c::crc32c(content) != u32::from_le_bytes(*sum) {
                return Err(corrupt("its checksum does not fit its content".into()));
            }
            Identity::decode(message).map_err(|e| corrupt(e.to_string()))
        }
        Some((&format, _)) if format > FORMAT => {
            Err(IdentityError::NewerFormat { path: path.into(), format })
        }
        _ => Err(corrupt("it has no format byte".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringfold_proto::internal::MetaGenesis;

    fn identity(cluster: &str, node: u64, token: &str, bootstrapping: bool) -> Identity {
        Identity {
            cluster_id: cluster.into(),
            node_id: node,
            bootstrap: bootstrapping.then(|| MetaGenesis { partitions: 64, ..Default::default() }),
            meta_replica_id: node,
            token: token.into(),
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(c in ".{0,40}", n in any::<u64>(), t in ".{0,40}", b in any::<bool>()) {
            let identity = identity(&c, n, &t, b);
            prop_assert_eq!(decode(&encode(&identity), Path::new("x")).unwrap(), identity);
        }

        #[test]
        fn any_changed_byte_is_noticed(n in any::<u64>(), at in any::<prop::sample::Index>(), by in 1..=255u8) {
            let mut bytes = encode(&identity("a-cluster", n, "a-token", true));
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(decode(&bytes, Path::new("x")).is_err());
        }

        #[test]
        fn any_bytes_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(decode(&bytes, Path::new("x")).is_err());
        }
    }

    #[test]
    fn a_new_directory_gets_a_token_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path()).unwrap();
        assert!(uuid::Uuid::parse_str(&first.token).is_ok());
        assert_eq!((first.cluster_id.as_str(), first.node_id), ("", 0));
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap(), first);
        let joined = identity("c", 7, &first.token, false);
        write(dir.path(), &joined).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(joined));
    }

    #[test]
    fn a_directory_with_data_and_no_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert!(matches!(load_or_create(dir.path()), Err(IdentityError::Missing { .. })));
    }

    #[test]
    fn newer_formats_and_damage_have_errors_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        write(dir.path(), &identity("c", 1, "t", false)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] = 2;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(read(dir.path()), Err(IdentityError::NewerFormat { format: 2, .. })));
        std::fs::write(&path, [1, 2]).unwrap();
        assert!(matches!(read(dir.path()), Err(IdentityError::Corrupt { .. })));
    }

    #[test]
    fn an_unfinished_write_leaves_the_old_identity() {
        let dir = tempfile::tempdir().unwrap();
        let old = identity("c", 1, "t", false);
        write(dir.path(), &old).unwrap();
        std::fs::write(dir.path().join("IDENTITY.new"), b"half").unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(old.clone()));
        write(dir.path(), &identity("c", 2, "t", false)).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().node_id, 2);
    }

    #[test]
    fn a_directory_has_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let refused = lock(dir.path()).unwrap_err();
        assert!(matches!(refused, IdentityError::InUse { .. }));
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn another_cluster_is_refused() {
        assert!(check_cluster(&identity("a", 1, "t", false), "a").is_ok());
        assert!(check_cluster(&identity("", 0, "t", false), "b").is_ok());
        assert!(matches!(
            check_cluster(&identity("a", 1, "t", false), "b"),
            Err(IdentityError::ForeignCluster { .. })
        ));
    }
}
