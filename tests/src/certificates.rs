//! A cluster's certificates, which a test replaces as an operator would: its nodes have one folder, the
//! test's own clients another one.
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ringfold_tls::issue::{Authority, Issued, Subject};
use ringfold_tls::{Files, Role, Tls};

use crate::cluster::LOOPBACK;

const DAY_S: u64 = 86_400;

#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    /// Of the test's own clients: whoever replaces the files reloads it.
    pub admin: Tls,
}

/// One that is valid now.
pub fn authority(name: &str) -> Authority {
    Authority::new(name, now_unix_s() - DAY_S, now_unix_s() + DAY_S).unwrap()
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// For clusters on loopback.
fn issue(by: &Authority, role: Role, not_after_unix_s: u64) -> Issued {
    let subject = Subject {
        name: "test",
        hosts: &[LOOPBACK.to_owned()],
        role,
        not_before_unix_s: now_unix_s() - DAY_S,
        not_after_unix_s,
    };
    by.issue(&subject).unwrap()
}

/// A client's, of any authority.
pub fn client(dir: &Path, by: &Authority, trusts: &str, role: Role) -> Tls {
    issue(by, role, now_unix_s() + DAY_S).write(dir, trusts).unwrap();
    Tls::open(Files::in_folder(dir)).unwrap()
}

/// A client's that was valid until a minute ago.
pub fn expired(dir: &Path, by: &Authority) -> Tls {
    issue(by, Role::Client, now_unix_s() - 60).write(dir, &by.issued.cert).unwrap();
    Tls::open(Files::in_folder(dir)).unwrap()
}

impl Certificates {
    pub fn make(dir: &Path, by: &Authority) -> Certificates {
        let admin = dir.join("admin");
        let admin = client(&admin, by, &by.issued.cert, Role::Admin);
        let made = Certificates { dir: dir.to_owned(), admin };
        made.replace(by, &by.issued.cert);
        made
    }

    pub fn node_dir(&self) -> PathBuf {
        self.dir.join("node")
    }

    /// Puts new certificates in the place of those that are there.
    pub fn replace(&self, by: &Authority, trusted: &str) {
        for (role, dir) in [(Role::Node, self.node_dir()), (Role::Admin, self.dir.join("admin"))] {
            issue(by, role, now_unix_s() + DAY_S).write(&dir, trusted).unwrap();
        }
        self.admin.reload().unwrap();
    }

    /// Changes only whom all trust.
    pub fn trust(&self, trusted: &str) {
        for dir in [self.node_dir(), self.dir.join("admin")] {
            let files = Files::in_folder(&dir);
            let read = |path| std::fs::read_to_string(path).unwrap();
            let same = Issued { cert: read(&files.cert), key: read(&files.key) };
            same.write(&dir, trusted).unwrap();
        }
        self.admin.reload().unwrap();
    }

    /// Variables of a node's settings.
    pub fn env(&self) -> [(&'static str, PathBuf); 3] {
        let files = Files::in_folder(&self.node_dir());
        [
            ("RINGFOLD_NODE_TLS_CERT_FILE", files.cert),
            ("RINGFOLD_NODE_TLS_KEY_FILE", files.key),
            ("RINGFOLD_NODE_TLS_CA_FILE", files.ca),
        ]
    }
}
