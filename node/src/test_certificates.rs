//! Certificates that tests make.
use ringfold_tls::issue::{Authority, Issued, Subject};
use ringfold_tls::{Role, Tls};

/// Tests run on any clock.
const NOT_AFTER_UNIX_S: u64 = 30_000_000_000;

pub fn authority(name: &str) -> Authority {
    Authority::new(name, 0, NOT_AFTER_UNIX_S).unwrap()
}

/// For 127.0.0.1, of a process that trusts `trusts`.
pub fn certificate(by: &Authority, role: Role, trusts: &Authority) -> Tls {
    let dir = tempfile::tempdir().unwrap();
    let subject = Subject {
        name: "test",
        hosts: &["127.0.0.1".to_owned()],
        role,
        not_before_unix_s: 0,
        not_after_unix_s: NOT_AFTER_UNIX_S,
    };
    by.issue(&subject).unwrap().write(dir.path(), &trusts.issued.cert).unwrap();
    Tls::open(Issued::files(dir.path())).unwrap()
}
