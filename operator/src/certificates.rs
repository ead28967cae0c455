//! The cluster's certificates: what is to be made next. Pure, but for the keys themselves.
//!
//! An authority is replaced without a moment at which one side does not know the other: the next one
//! is trusted everywhere first; once every node says so, certificates of it are issued; the one before
//! stays trusted until whatever it issued has run out, unless a person drops it.
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ringfold_tls::{
    Role, authorities_id,
    issue::{Authority, IssueError, Issued, Subject},
};

use crate::names;

const DAY_S: u64 = 86_400;
pub const AUTHORITY_VALID_S: u64 = 3_650 * DAY_S;
/// A new authority is brought in so long before the one in use runs out.
pub const AUTHORITY_EARLY_S: u64 = 365 * DAY_S;
pub const CERTIFICATE_VALID_S: u64 = 90 * DAY_S;
/// A certificate is renewed so long before it runs out.
pub const CERTIFICATE_EARLY_S: u64 = 30 * DAY_S;

/// An authority as it is kept in its Secret.
#[derive(Clone)]
pub struct Kept {
    pub issued: Issued,
    pub not_after_unix_s: u64,
}

impl Kept {
    pub fn id(&self) -> String {
        id(&self.issued.cert)
    }
}

/// Tells one authority from another.
pub fn id(cert: &str) -> String {
    authorities_id(cert.as_bytes())
}

/// The Secret that only the operator reads.
#[derive(Clone)]
pub struct Authorities {
    pub current: Kept,
    /// Trusted, and does not issue yet.
    pub next: Option<Kept>,
    /// Trusted, and issues nothing any more: its certificate, and when nothing of it is valid any more.
    pub previous: Option<(String, u64)>,
    /// A person asks for another authority now.
    pub replace: bool,
    /// A person asks to trust the previous one no more.
    pub drop_previous: bool,
}

impl Authorities {
    /// All that are trusted, PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|n| n.issued.cert.as_str());
        let previous = self.previous.as_ref().map(|(cert, _)| cert.as_str());
        [Some(self.current.issued.cert.as_str()), next, previous].into_iter().flatten().collect()
    }

    /// As nodes report what they trust.
    pub fn bundle_hash(&self) -> String {
        id(&self.bundle())
    }
}

/// A certificate as its Secret has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Of the authority.
    pub issuer: String,
    pub not_after_unix_s: u64,
    /// For these hosts, as one text.
    pub hosts: String,
    /// Whom it trusts, as a hash.
    pub bundle: String,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first authority.
    MakeAuthority,
    /// A further one, which issues nothing yet.
    AddNext,
    /// Every node trusts it: it issues from now on.
    SwitchToNext,
    DropPrevious,
    /// A certificate is issued.
    Issue(Role),
    /// Only whom it trusts changes.
    Trust(Role),
}

/// Whom certificates are made for, in the order in which they are needed.
pub const ROLES: [Role; 3] = [Role::Node, Role::Admin, Role::Client];

/// The next change; `None`: all is as it should be. `trusted`: what each pod's node says that it
/// trusts; `None` of one that did not say.
pub fn next(
    now_unix_s: u64,
    authorities: Option<&Authorities>,
    leaves: &BTreeMap<Role, Leaf>,
    hosts: &dyn Fn(Role) -> Vec<String>,
    trusted: &[Option<String>],
) -> Option<Change> {
    let Some(a) = authorities else { return Some(Change::MakeAuthority) };
    let (current, bundle) = (a.current.id(), a.bundle_hash());
    // First what does not wait for anybody: whom everybody trusts, and what runs out.
    for role in ROLES {
        let Some(leaf) = leaves.get(&role) else { return Some(Change::Issue(role)) };
        let early = leaf.not_after_unix_s.saturating_sub(CERTIFICATE_EARLY_S) <= now_unix_s;
        let other = leaf.issuer != current || leaf.hosts != hosts(role).join(",");
        if early || other {
            return Some(Change::Issue(role));
        }
        if leaf.bundle != bundle {
            return Some(Change::Trust(role));
        }
    }
    let all_trust = !trusted.is_empty() && trusted.iter().all(|t| t.as_ref() == Some(&bundle));
    if a.next.is_some() {
        return all_trust.then_some(Change::SwitchToNext);
    }
    if let Some((_, until_unix_s)) = &a.previous {
        let over = *until_unix_s <= now_unix_s;
        return (over || (a.drop_previous && all_trust)).then_some(Change::DropPrevious);
    }
    let early = a.current.not_after_unix_s.saturating_sub(AUTHORITY_EARLY_S) <= now_unix_s;
    (early || a.replace).then_some(Change::AddNext)
}

fn authority(cluster: &str, now_unix_s: u64) -> Result<Kept, IssueError> {
    let not_after_unix_s = now_unix_s + AUTHORITY_VALID_S;
    let made = Authority::new(&format!("ringfold {cluster}"), now_unix_s, not_after_unix_s)?;
    Ok(Kept { issued: made.issued, not_after_unix_s })
}

/// The authorities after a change of them.
///
/// # Errors
/// When keys cannot be made.
pub fn changed(
    change: &Change,
    cluster: &str,
    before: Option<&Authorities>,
    now_unix_s: u64,
) -> Result<Option<Authorities>, IssueError> {
    let Some(a) = before else {
        let current = authority(cluster, now_unix_s)?;
        return Ok(Some(Authorities {
            current,
            next: None,
            previous: None,
            replace: false,
            drop_previous: false,
        }));
    };
    let mut after = a.clone();
    match change {
        Change::AddNext => {
            after.next = Some(authority(cluster, now_unix_s)?);
            after.replace = false;
            // Asked for too late for the one before the last.
            after.drop_previous = false;
        }
        Change::SwitchToNext => {
            let Some(next) = after.next.take() else { return Ok(None) };
            let until_unix_s = now_unix_s + CERTIFICATE_VALID_S;
            after.previous = Some((a.current.issued.cert.clone(), until_unix_s));
            after.current = next;
        }
        Change::DropPrevious => (after.previous, after.drop_previous) = (None, false),
        Change::MakeAuthority | Change::Issue(_) | Change::Trust(_) => return Ok(None),
    }
    Ok(Some(after))
}

/// A certificate of the authority that issues now.
///
/// # Errors
/// When a host's name is none.
pub fn issue(
    a: &Authorities,
    cluster: &str,
    role: Role,
    hosts: &[String],
    now_unix_s: u64,
) -> Result<(Issued, Leaf), IssueError> {
    let not_after_unix_s = now_unix_s + CERTIFICATE_VALID_S;
    let issued = Authority::read(a.current.issued.clone())?.issue(&Subject {
        name: &format!("{cluster} {role:?}"),
        hosts,
        role,
        not_before_unix_s: now_unix_s,
        not_after_unix_s,
    })?;
    let leaf = Leaf {
        issuer: a.current.id(),
        not_after_unix_s,
        hosts: hosts.join(","),
        bundle: a.bundle_hash(),
    };
    Ok((issued, leaf))
}

/// Names by which a cluster's nodes are reached.
pub fn hosts(cluster: &str, namespace: &str, role: Role) -> Vec<String> {
    if role != Role::Node {
        return Vec::new();
    }
    let nodes = names::nodes(cluster);
    let mut all: Vec<String> = vec!["localhost".into(), "127.0.0.1".into()];
    for domain in ["", ".cluster.local"] {
        all.push(format!("*.{nodes}.{namespace}.svc{domain}"));
        all.push(format!("{cluster}.{namespace}.svc{domain}"));
    }
    all.extend([format!("{cluster}.{namespace}"), cluster.to_owned()]);
    all
}
