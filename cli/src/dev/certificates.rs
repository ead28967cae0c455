//! Certificates of `dev --tls`. The authority is made anew with each start, and its key is written
//! nowhere: all nodes start together.
use crate::error::CliError;
use ringfold_client::{Tls, TlsError};
use ringfold_tls::issue::{Authority, IssueError, Subject};
use ringfold_tls::{Files, Role};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Longer than anybody leaves `dev` running.
const VALID_S: u64 = 365 * 86_400;

/// Of the nodes.
pub fn node(data: &Path) -> PathBuf {
    data.join("tls/node")
}

fn admin(data: &Path) -> PathBuf {
    data.join("tls/admin")
}

#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Write(#[from] std::io::Error),
    #[error(transparent)]
    Read(#[from] TlsError),
}

/// Makes all of them: for nodes, admins (which this program is one of) and applications.
pub fn make(data: &Path) -> Result<Tls, CliError> {
    let made = |data: &Path| -> Result<Tls, MakeError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (from, to) = (now.as_secs(), now.as_secs() + VALID_S);
        let authority = Authority::new("ringfold dev", from, to)?;
        for (role, dir) in [
            (Role::Node, node(data)),
            (Role::Admin, admin(data)),
            (Role::Client, data.join("tls/client")),
        ] {
            let subject = Subject {
                name: "ringfold dev",
                hosts: &["127.0.0.1".to_owned(), "localhost".to_owned()],
                role,
                not_before_unix_s: from,
                not_after_unix_s: to,
            };
            authority.issue(&subject)?.write(&dir, &authority.issued.cert)?;
        }
        Ok(Tls::open(Files::in_folder(&admin(data)))?)
    };
    made(data).map_err(|e| CliError::other(format!("certificates cannot be made: {e}")))
}

/// Variables with which `ringfold` is an admin.
pub fn environment(data: &Path) -> [(&'static str, OsString); 3] {
    let files = Files::in_folder(&admin(data));
    [
        ("RINGFOLD_TLS_CERT", files.cert.into()),
        ("RINGFOLD_TLS_KEY", files.key.into()),
        ("RINGFOLD_TLS_CA", files.ca.into()),
    ]
}
