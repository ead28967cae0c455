//! The cluster's certificates: what is to be made next. Pure, but for the keys themselves.
//!
//! An authority is replaced without a moment at which one side does not know the other: the next one
//! is trusted everywhere first; once every node says so, and applications had the time to read it,
//! certificates of it are issued; the one before stays trusted until whatever it issued has run out,
//! unless a person drops it. One whose key is lost is replaced in the same way: what it has issued is
//! valid meanwhile.
pub mod secrets;
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
/// Whoever mounts a Secret has read it so long after it was written: a kubelet needs a minute and a
/// half, and what it brings is read every 5 s.
pub const BROUGHT_AFTER_S: u64 = 120;
/// Where the issuer's key is lost, a certificate is left to its last days: nodes that have not said yet
/// that they trust the next one have the time to.
pub const LAST_DAYS_S: u64 = 7 * DAY_S;
/// Authorities that stay trusted after their keys were lost; a few more than anybody loses in the time
/// that a certificate is valid.
const LOST_MAX: usize = 16;

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
fn id(cert: &str) -> String {
    authorities_id(cert.as_bytes())
}

/// How far a replacement is.
#[derive(Clone)]
pub enum Stage {
    /// There is none.
    One(Kept),
    /// The next one is trusted, and does not issue yet.
    Two { current: Kept, next: Kept },
    /// The one that issued is lost with its key: certificates of all that were trusted then, and when
    /// nothing of them is valid any more. The next one is trusted, and issues what cannot wait.
    Lost { certs: String, until_unix_s: u64, next: Kept },
}

/// The Secret that only the operator reads.
#[derive(Clone)]
pub struct Authorities {
    pub stage: Stage,
    /// Trusted, and issues nothing any more: its certificate, and when nothing of it is valid any more.
    pub previous: Option<(String, u64)>,
    /// A person asks for another authority now.
    pub replace: bool,
    /// A person asks to trust the previous one no more.
    pub drop_previous: bool,
}

impl Authorities {
    /// The one that issues.
    pub fn issuer(&self) -> &Kept {
        match &self.stage {
            Stage::One(current) | Stage::Two { current, .. } => current,
            Stage::Lost { next, .. } => next,
        }
    }

    pub fn next(&self) -> Option<&Kept> {
        match &self.stage {
            Stage::One(_) => None,
            Stage::Two { next, .. } | Stage::Lost { next, .. } => Some(next),
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self.stage, Stage::Lost { .. })
    }

    /// All that are trusted, PEM. A switch changes their order, so that a node that reports it has read
    /// what was issued then, too.
    pub fn bundle(&self) -> String {
        let first = match &self.stage {
            Stage::One(current) | Stage::Two { current, .. } => &current.issued.cert,
            Stage::Lost { certs, .. } => certs,
        };
        let next = self.next().map(|n| n.issued.cert.as_str());
        let previous = self.previous.as_ref().map(|(cert, _)| cert.as_str());
        [Some(first.as_str()), next, previous].into_iter().flatten().collect()
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
    /// When all of this was written; `None`: nobody knows.
    pub written_unix_s: Option<u64>,
}

/// What the Secrets hold.
#[derive(Clone, Default)]
pub struct Held {
    pub authorities: Option<Authorities>,
    /// Those that are of use.
    pub leaves: BTreeMap<Role, Leaf>,
    /// Whom each certificate's Secret trusts, PEM, also where its certificate is of no use.
    pub bundles: Vec<String>,
}

impl Held {
    /// Each authority that is trusted, once; first those that have issued what is there.
    fn trusted(&self) -> Vec<String> {
        let mut all = Vec::new();
        for one in self.bundles.iter().flat_map(|bundle| ringfold_tls::authorities(bundle)) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
        all.sort_by_key(|one| !self.leaves.values().any(|leaf| leaf.issuer == id(one)));
        all.truncate(LOST_MAX);
        all
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first authority; or the next one, where those that certificates trust are lost.
    MakeAuthority,
    /// A further one, which issues nothing yet.
    AddNext,
    /// Everybody trusts it: it issues from now on.
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
    held: &Held,
    hosts: &dyn Fn(Role) -> Vec<String>,
    trusted: &[Option<String>],
) -> Option<Change> {
    let Some(a) = &held.authorities else { return Some(Change::MakeAuthority) };
    let bundle = a.bundle_hash();
    let look = Look {
        now_unix_s,
        a,
        is_brought: is_brought(now_unix_s, &held.leaves, &bundle),
        all_trust: !trusted.is_empty() && trusted.iter().all(|t| t.as_ref() == Some(&bundle)),
        bundle,
    };
    // First what does not wait for every node: whom everybody trusts, and what runs out.
    ROLES
        .into_iter()
        .find_map(|role| look.of_leaf(role, held.leaves.get(&role), &hosts(role).join(",")))
        .or_else(|| look.of_authorities())
}

/// Whoever mounts one of the Secrets has read what they trust now.
fn is_brought(now_unix_s: u64, leaves: &BTreeMap<Role, Leaf>, bundle: &str) -> bool {
    let is_old = |at: u64| at.saturating_add(BROUGHT_AFTER_S) <= now_unix_s;
    leaves.values().all(|l| l.bundle == bundle && l.written_unix_s.is_some_and(is_old))
}

/// What decides, gathered once.
struct Look<'a> {
    now_unix_s: u64,
    a: &'a Authorities,
    bundle: String,
    is_brought: bool,
    /// Every node says so.
    all_trust: bool,
}

impl Look<'_> {
    fn is_over(&self, until_unix_s: u64, early_s: u64) -> bool {
        until_unix_s.saturating_sub(early_s) <= self.now_unix_s
    }

    fn of_leaf(&self, role: Role, leaf: Option<&Leaf>, hosts: &str) -> Option<Change> {
        let is_lost = self.a.is_lost();
        let Some(leaf) = leaf else {
            // It is the next one's then. Nodes are told by their own Secret to trust it, which waits for
            // nobody; the others wait for the nodes.
            let may = !is_lost || role == Role::Node || self.is_brought;
            return may.then_some(Change::Issue(role));
        };
        let over = |early_s| self.is_over(leaf.not_after_unix_s, early_s);
        let is_other = leaf.issuer != self.a.issuer().id() || leaf.hosts != hosts;
        let issue = match is_lost {
            true => self.is_brought && over(LAST_DAYS_S),
            false => is_other || over(CERTIFICATE_EARLY_S),
        };
        if issue {
            return Some(Change::Issue(role));
        }
        let is_told = leaf.bundle == self.bundle && leaf.written_unix_s.is_some();
        (!is_told).then_some(Change::Trust(role))
    }

    fn of_authorities(&self) -> Option<Change> {
        let Stage::One(current) = &self.a.stage else {
            return (self.all_trust && self.is_brought).then_some(Change::SwitchToNext);
        };
        if let Some((_, until_unix_s)) = &self.a.previous {
            let dropped = self.a.drop_previous && self.all_trust;
            return (dropped || self.is_over(*until_unix_s, 0)).then_some(Change::DropPrevious);
        }
        let early = self.is_over(current.not_after_unix_s, AUTHORITY_EARLY_S);
        (early || self.a.replace).then_some(Change::AddNext)
    }
}

fn authority(cluster: &str, now_unix_s: u64) -> Result<Kept, IssueError> {
    let not_after_unix_s = now_unix_s + AUTHORITY_VALID_S;
    let made = Authority::new(&format!("ringfold {cluster}"), now_unix_s, not_after_unix_s)?;
    Ok(Kept { issued: made.issued, not_after_unix_s })
}

/// Where there was none, or it is lost.
fn first(cluster: &str, held: &Held, now_unix_s: u64) -> Result<Authorities, IssueError> {
    let made = authority(cluster, now_unix_s)?;
    let lost = held.trusted();
    let stage = match lost.is_empty() {
        true => Stage::One(made),
        false => Stage::Lost {
            certs: lost.concat(),
            until_unix_s: now_unix_s + CERTIFICATE_VALID_S,
            next: made,
        },
    };
    Ok(Authorities { stage, previous: None, replace: false, drop_previous: false })
}

/// The authorities after a change of them.
///
/// # Errors
/// When keys cannot be made.
fn changed(
    change: &Change,
    cluster: &str,
    held: &Held,
    now_unix_s: u64,
) -> Result<Option<Authorities>, IssueError> {
    let Some(a) = &held.authorities else { return first(cluster, held, now_unix_s).map(Some) };
    let mut after = a.clone();
    match (change, &a.stage) {
        (Change::AddNext, Stage::One(current)) => {
            let next = authority(cluster, now_unix_s)?;
            after.stage = Stage::Two { current: current.clone(), next };
            after.replace = false;
            // Asked for too late for the one before the last.
            after.drop_previous = false;
        }
        (Change::SwitchToNext, Stage::Two { current, next }) => {
            let until_unix_s = now_unix_s + CERTIFICATE_VALID_S;
            after.previous = Some((current.issued.cert.clone(), until_unix_s));
            after.stage = Stage::One(next.clone());
        }
        (Change::SwitchToNext, Stage::Lost { certs, until_unix_s, next }) => {
            after.previous = Some((certs.clone(), *until_unix_s));
            after.stage = Stage::One(next.clone());
        }
        (Change::DropPrevious, _) => (after.previous, after.drop_previous) = (None, false),
        _ => return Ok(None),
    }
    Ok(Some(after))
}

/// A certificate of the authority that issues now.
///
/// # Errors
/// When a host's name is none.
fn issue(
    a: &Authorities,
    cluster: &str,
    role: Role,
    hosts: &[String],
    now_unix_s: u64,
) -> Result<(Issued, Leaf), IssueError> {
    let not_after_unix_s = now_unix_s + CERTIFICATE_VALID_S;
    let by = a.issuer();
    let issued = Authority::read(by.issued.clone())?.issue(&Subject {
        name: &format!("{cluster} {role:?}"),
        hosts,
        role,
        not_before_unix_s: now_unix_s,
        not_after_unix_s,
    })?;
    let leaf = Leaf {
        issuer: by.id(),
        not_after_unix_s,
        hosts: hosts.join(","),
        bundle: a.bundle_hash(),
        written_unix_s: Some(now_unix_s),
    };
    Ok((issued, leaf))
}

/// The same certificate, with whom to trust as it is now.
fn trust(a: &Authorities, leaf: &Leaf, now_unix_s: u64) -> Leaf {
    Leaf { bundle: a.bundle_hash(), written_unix_s: Some(now_unix_s), ..leaf.clone() }
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
