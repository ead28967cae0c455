//! What a checkpoint's manifest may say. Pure: a manifest comes from another node and names files
//! that are written here.
use crate::ids::{GroupId, ReplicaId};
use crate::partition::store::AppliedMark;
use crate::raft::membership::Membership;
use prost::Message;
use ringfold_proto::internal::{self, Manifest};
use std::collections::HashSet;

/// With 128 bytes of name each they fit into one answer.
pub const FILES_MAX: usize = 20_000;
pub const FILE_NAME_BYTES_MAX: usize = 128;
pub const CHECKPOINT_BYTES_MAX: u64 = 16 << 40;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is of {what} {found}, {expected} expected")]
    Other { what: &'static str, found: String, expected: String },
    #[error("the manifest names {0} files, 1 to {FILES_MAX} are allowed")]
    FileCount(usize),
    #[error("the manifest names the file {0:?}: only a plain name is allowed, and once")]
    FileName(String),
    #[error("the manifest's checksum of {0} is not 32 bytes long")]
    Checksum(String),
    #[error("the manifest's files add up to more than {CHECKPOINT_BYTES_MAX} bytes")]
    TooLarge,
    #[error(
        "the membership in the manifest does not contain {0}: a checkpoint from before it was added"
    )]
    NotMember(ReplicaId),
    #[error(
        "the membership in the manifest is of index {membership_index}, beyond the checkpoint's {index}"
    )]
    MembershipAhead { membership_index: u64, index: u64 },
}

/// A manifest that may be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub index: u64,
    pub term: u64,
    pub membership: Membership,
    pub membership_index: u64,
    pub files: Vec<File>,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    pub blake3: [u8; 32],
}

/// Checks a manifest for `replica` of `group` at `index`.
pub fn check(
    m: &Manifest,
    cluster_id: &str,
    group: GroupId,
    replica: ReplicaId,
    index: u64,
) -> Result<Checked, ManifestError> {
    same("cluster", &*m.cluster_id, cluster_id)?;
    same("group", m.group, group.0)?;
    same("index", m.index, index)?;
    let membership = m.membership.as_ref().map(Membership::from_proto).unwrap_or_default();
    if !membership.contains(replica) {
        return Err(ManifestError::NotMember(replica));
    }
    if m.membership_index > m.index {
        let (membership_index, index) = (m.membership_index, m.index);
        return Err(ManifestError::MembershipAhead { membership_index, index });
    }
    if m.files.is_empty() || m.files.len() > FILES_MAX {
        return Err(ManifestError::FileCount(m.files.len()));
    }
    let (mut files, mut names, mut total) =
        (Vec::with_capacity(m.files.len()), HashSet::new(), 0u64);
    for f in &m.files {
        if !is_plain_name(&f.name) || !names.insert(&*f.name) {
            return Err(ManifestError::FileName(
                f.name.chars().take(FILE_NAME_BYTES_MAX).collect(),
            ));
        }
        let blake3 =
            f.blake3[..].try_into().map_err(|_| ManifestError::Checksum(f.name.clone()))?;
        total = total
            .checked_add(f.bytes)
            .filter(|t| *t <= CHECKPOINT_BYTES_MAX)
            .ok_or(ManifestError::TooLarge)?;
        files.push(File { name: f.name.clone(), bytes: f.bytes, blake3 });
    }
    let membership_index = m.membership_index;
    Ok(Checked { index, term: m.term, membership, membership_index, files, bytes: total })
}

impl Checked {
    /// Whether the mark inside the checkpoint says the same as its manifest.
    pub fn agrees(&self, mark: &AppliedMark) -> Result<(), ManifestError> {
        same("index", self.index, mark.index)?;
        same("term", self.term, mark.term)?;
        let Some((index, membership)) = &mark.membership else {
            // Nothing but the first membership, which is in no database.
            return Ok(());
        };
        same("membership index", self.membership_index, *index)?;
        let inside = internal::Membership::decode(&membership[..]).unwrap_or_default();
        match Membership::from_proto(&inside) == self.membership {
            true => Ok(()),
            false => Err(ManifestError::Other {
                what: "membership",
                found: format!("{:?}", self.membership),
                expected: format!("{inside:?}"),
            }),
        }
    }
}

fn same<T: PartialEq + ToString>(
    what: &'static str,
    found: T,
    expected: T,
) -> Result<(), ManifestError> {
    if found == expected {
        return Ok(());
    }
    Err(ManifestError::Other { what, found: found.to_string(), expected: expected.to_string() })
}

/// Letters, digits, `_`, `-` and inner dots: no path, nothing hidden.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= FILE_NAME_BYTES_MAX
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_proto::internal::ManifestFile;

    fn manifest() -> Manifest {
        let file = |name: &str, bytes| ManifestFile {
            name: name.into(),
            bytes,
            blake3: vec![7; 32].into(),
        };
        Manifest {
            cluster_id: "c".into(),
            group: 3,
            index: 100,
            term: 5,
            membership: Some(internal::Membership {
                voters: vec![1, 2],
                learners: vec![9],
                ..Default::default()
            }),
            from_replica_id: 1,
            files: vec![file("CURRENT", 16), file("000012.sst", 1 << 20)],
            membership_index: 90,
        }
    }

    fn checked(m: &Manifest) -> Result<Checked, ManifestError> {
        check(m, "c", GroupId(3), ReplicaId(9), 100)
    }

    #[test]
    fn an_honest_manifest_passes() {
        let c = checked(&manifest()).unwrap();
        assert_eq!((c.bytes, c.files.len(), c.term), ((1 << 20) + 16, 2, 5));
    }

    #[test]
    fn file_names_stay_in_their_folder() {
        for name in [
            "",
            ".",
            "..",
            "../evil",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".hidden",
            "a\0b",
            "ä.sst",
            "a b",
            &"x".repeat(FILE_NAME_BYTES_MAX + 1),
        ] {
            let mut m = manifest();
            m.files[1].name = name.into();
            assert_eq!(
                checked(&m).unwrap_err(),
                ManifestError::FileName(name.chars().take(128).collect())
            );
        }
        let mut m = manifest();
        m.files[1].name = "CURRENT".into();
        assert_eq!(checked(&m).unwrap_err(), ManifestError::FileName("CURRENT".into()));
    }

    #[test]
    fn numbers_and_sizes_are_bounded() {
        let mut m = manifest();
        m.files.clear();
        assert_eq!(checked(&m).unwrap_err(), ManifestError::FileCount(0));
        m.files = (0..=FILES_MAX)
            .map(|i| ManifestFile { name: i.to_string(), bytes: 1, blake3: vec![7; 32].into() })
            .collect();
        assert_eq!(checked(&m).unwrap_err(), ManifestError::FileCount(FILES_MAX + 1));
        m.files.pop();
        for f in &mut m.files {
            f.name = format!("{:0>128}", f.name);
        }
        checked(&m).unwrap();
        assert!(m.encoded_len() < super::super::super::control::ANSWER_BYTES_MAX);
        let mut m = manifest();
        m.files[0].bytes = u64::MAX;
        assert_eq!(checked(&m).unwrap_err(), ManifestError::TooLarge);
        m.files[0].bytes = 1;
        m.files[0].blake3 = vec![7; 31].into();
        assert_eq!(checked(&m).unwrap_err(), ManifestError::Checksum("CURRENT".into()));
    }

    #[test]
    fn a_checkpoint_for_somebody_else_is_refused() {
        let changes: [fn(&mut Manifest); 3] =
            [|m| m.cluster_id = "d".into(), |m| m.group = 4, |m| m.index = 99];
        for change in changes {
            let mut m = manifest();
            change(&mut m);
            assert!(matches!(checked(&m), Err(ManifestError::Other { .. })));
        }
        let mut m = manifest();
        m.membership = None;
        assert_eq!(checked(&m).unwrap_err(), ManifestError::NotMember(ReplicaId(9)));
        let mut m = manifest();
        m.membership_index = 101;
        assert!(matches!(checked(&m), Err(ManifestError::MembershipAhead { .. })));
    }

    #[test]
    fn the_mark_inside_must_say_the_same() {
        let c = checked(&manifest()).unwrap();
        let mark = AppliedMark {
            index: 100,
            term: 5,
            membership: Some((90, c.membership.to_proto().encode_to_vec())),
            ..Default::default()
        };
        c.agrees(&mark).unwrap();
        c.agrees(&AppliedMark { membership: None, ..mark.clone() }).unwrap();
        let others = [
            AppliedMark { index: 99, ..mark.clone() },
            AppliedMark { term: 4, ..mark.clone() },
            AppliedMark {
                membership: Some((80, c.membership.to_proto().encode_to_vec())),
                ..mark.clone()
            },
            AppliedMark { membership: Some((90, vec![])), ..mark.clone() },
            AppliedMark { membership: Some((90, vec![0xff])), ..mark },
        ];
        for other in others {
            assert!(matches!(c.agrees(&other), Err(ManifestError::Other { .. })));
        }
    }
}
