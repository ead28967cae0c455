//! Certificates and authorities as Secrets. Pure.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use ringfold_crds::names::certificate;
use ringfold_tls::{
    Pem, Role, Tls,
    issue::{Authority, IssueError, Issued},
};

use super::{Authorities, Change, Held, Kept, Leaf, Stage, changed, hosts, id, issue, trust};
use crate::{build, names, validate::Cluster};

const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";

/// Why the Secret of the authorities is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "certificates are not renewed, for the Secret {secret} {problem}. Restore it, or delete it: the operator then makes another authority, and brings it in step by step"
)]
pub struct Unreadable {
    secret: String,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error(
        "is not the operator's: it has no label {}={}",
        names::MANAGED_BY_LABEL,
        names::FIELD_MANAGER
    )]
    Foreign,
    #[error("has no readable {0}")]
    Lacks(String),
    #[error("holds what is no authority: {0}")]
    Damaged(String),
}

/// Those of one cluster, as they were read.
#[derive(Clone, Default)]
pub struct Secrets {
    pub authorities: Option<Secret>,
    pub leaves: BTreeMap<Role, Secret>,
}

/// Name of the Secret with a role's certificate.
pub fn name(cluster: &str, role: Role) -> String {
    let word = match role {
        Role::Node => "node",
        Role::Admin => "admin",
        Role::Client => "client",
    };
    certificate(cluster, word)
}

/// Whether the operator made it.
pub fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get(names::MANAGED_BY_LABEL).is_some_and(|m| m == names::FIELD_MANAGER)
}

impl Secrets {
    /// # Errors
    /// When nothing can be made from the Secret of the authorities.
    pub fn held(&self, cluster: &str) -> Result<Held, Unreadable> {
        let kept = self.authorities.as_ref().map(authorities).transpose();
        let authorities =
            kept.map_err(|problem| Unreadable { secret: names::authorities(cluster), problem })?;
        Ok(Held {
            authorities,
            leaves: self.leaves.iter().filter_map(|(r, s)| Some((*r, leaf(s)?))).collect(),
            bundles: self.leaves.values().filter_map(|s| text(s, CA)).collect(),
        })
    }

    /// The one that a change is about.
    pub fn of(&self, change: &Change) -> Option<&Secret> {
        match change {
            Change::Issue(role) | Change::Trust(role) => self.leaves.get(role),
            _ => self.authorities.as_ref(),
        }
    }

    /// Takes what that one has become.
    pub fn put(&mut self, change: &Change, secret: Secret) {
        match change {
            Change::Issue(role) | Change::Trust(role) => {
                self.leaves.insert(*role, secret);
            }
            _ => self.authorities = Some(secret),
        }
    }

    /// What the one that a change is about shall become; `None`: nothing is to be done.
    ///
    /// # Errors
    /// When keys or certificates cannot be made.
    pub fn after(
        &self,
        cluster: &Cluster,
        change: &Change,
        held: &Held,
        now_unix_s: u64,
    ) -> Result<Option<Secret>, IssueError> {
        let name = &cluster.name;
        Ok(match (change, &held.authorities) {
            (Change::Issue(role), Some(a)) => {
                let hosts = hosts(name, &cluster.namespace, *role);
                let (issued, leaf) = issue(a, name, *role, &hosts, now_unix_s)?;
                Some(leaf_secret(cluster, *role, &issued, &a.bundle(), &leaf))
            }
            (Change::Trust(role), Some(a)) => {
                let there = self.leaves.get(role).and_then(issued).zip(held.leaves.get(role));
                there.map(|(issued, leaf)| {
                    let leaf = trust(a, leaf, now_unix_s);
                    leaf_secret(cluster, *role, &issued, &a.bundle(), &leaf)
                })
            }
            _ => changed(change, name, held, now_unix_s)?.map(|a| authorities_secret(cluster, &a)),
        })
    }
}

/// Also of a Secret that was not written yet.
fn bytes(secret: &Secret, key: &str) -> Option<Vec<u8>> {
    let read = secret.data.as_ref().and_then(|data| Some(data.get(key)?.0.clone()));
    read.or_else(|| Some(secret.string_data.as_ref()?.get(key)?.clone().into_bytes()))
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(bytes(secret, key)?).ok()
}

fn number(secret: &Secret, annotation: &str) -> Option<u64> {
    secret.annotations().get(annotation)?.parse().ok()
}

/// What a Secret shows to whoever is asked.
pub fn pem(secret: &Secret) -> Option<Pem> {
    let part = |key| bytes(secret, key);
    Some(Pem { cert: part(CERT)?, key: part(KEY)?, ca: part(CA)? })
}

fn issued(secret: &Secret) -> Option<Issued> {
    Some(Issued { cert: text(secret, CERT)?, key: text(secret, KEY)? })
}

/// `None` also where its parts are of no use to whoever reads them: it is issued anew then.
fn leaf(secret: &Secret) -> Option<Leaf> {
    Tls::from_pem("a certificate's Secret", &pem(secret)?).ok()?;
    Some(Leaf {
        issuer: secret.annotations().get(names::ISSUER)?.clone(),
        not_after_unix_s: number(secret, names::NOT_AFTER)?,
        hosts: secret.annotations().get(names::HOSTS)?.clone(),
        bundle: id(&text(secret, CA)?),
        written_unix_s: number(secret, names::WRITTEN),
    })
}

fn leaf_secret(cluster: &Cluster, role: Role, issued: &Issued, ca: &str, leaf: &Leaf) -> Secret {
    let name = name(&cluster.name, role);
    let mut secret =
        build::secret(cluster, name, [(CERT, &issued.cert), (KEY, &issued.key), (CA, ca)]);
    secret.type_ = Some("kubernetes.io/tls".into());
    let written = leaf.written_unix_s.map(|at| (names::WRITTEN, at.to_string()));
    let notes = [
        (names::ISSUER, leaf.issuer.clone()),
        (names::NOT_AFTER, leaf.not_after_unix_s.to_string()),
        (names::HOSTS, leaf.hosts.clone()),
    ];
    let notes = notes.into_iter().chain(written);
    secret.metadata.annotations = Some(notes.map(|(k, v)| (k.to_owned(), v)).collect());
    secret
}

fn text_or(secret: &Secret, key: &str) -> Result<String, Problem> {
    text(secret, key).ok_or_else(|| Problem::Lacks(key.to_owned()))
}

fn number_or(secret: &Secret, annotation: &str) -> Result<u64, Problem> {
    number(secret, annotation).ok_or_else(|| Problem::Lacks(annotation.to_owned()))
}

/// One part without the others is damage, and not that there is none.
fn has_any(secret: &Secret, parts: [&str; 3]) -> bool {
    parts.iter().any(|p| bytes(secret, p).is_some() || secret.annotations().contains_key(*p))
}

fn kept(secret: &Secret, name: &str, not_after: &str) -> Result<Option<Kept>, Problem> {
    let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
    if !has_any(secret, [&cert, &key, not_after]) {
        return Ok(None);
    }
    let issued = Issued { cert: text_or(secret, &cert)?, key: text_or(secret, &key)? };
    Ok(Some(Kept { issued, not_after_unix_s: number_or(secret, not_after)? }))
}

/// Authorities without their keys, and when nothing of them is valid any more.
fn keyless(secret: &Secret, cert: &str, until: &str) -> Result<Option<(String, u64)>, Problem> {
    if !has_any(secret, [cert, cert, until]) {
        return Ok(None);
    }
    Ok(Some((text_or(secret, cert)?, number_or(secret, until)?)))
}

fn stage(secret: &Secret) -> Result<Stage, Problem> {
    let next = kept(secret, "next", names::NEXT_NOT_AFTER)?;
    if let Some(current) = kept(secret, "current", names::NOT_AFTER)? {
        return Ok(match next {
            None => Stage::One(current),
            Some(next) => Stage::Two { current, next },
        });
    }
    let lacks = |part: &str| Problem::Lacks(part.to_owned());
    let lost = keyless(secret, "lost.crt", names::LOST_UNTIL)?;
    let (certs, until_unix_s) = lost.ok_or_else(|| lacks("current.crt"))?;
    Ok(Stage::Lost { certs, until_unix_s, next: next.ok_or_else(|| lacks("next.crt"))? })
}

fn authorities(secret: &Secret) -> Result<Authorities, Problem> {
    if !is_ours(secret.labels()) {
        return Err(Problem::Foreign);
    }
    let asked = |annotation| secret.annotations().contains_key(annotation);
    let a = Authorities {
        stage: stage(secret)?,
        previous: keyless(secret, "previous.crt", names::PREVIOUS_UNTIL)?,
        replace: asked(names::REPLACE_AUTHORITY),
        drop_previous: asked(names::DROP_PREVIOUS),
    };
    let bundle = a.bundle();
    for kept in [Some(a.issuer()), a.next()].into_iter().flatten() {
        check(kept, &bundle).map_err(Problem::Damaged)?;
    }
    Ok(a)
}

/// It issues, its key is its own, and whoever reads whom to trust is able to.
fn check(kept: &Kept, bundle: &str) -> Result<(), String> {
    let Issued { cert, key } = kept.issued.clone();
    let bundle = bundle.to_owned();
    let pem = Pem { cert: cert.into_bytes(), key: key.into_bytes(), ca: bundle.into_bytes() };
    Tls::from_pem("the authority", &pem).map_err(|e| e.to_string())?;
    Authority::read(kept.issued.clone()).map_err(|e| e.to_string())?;
    Ok(())
}

fn authorities_secret(cluster: &Cluster, a: &Authorities) -> Secret {
    let mut secret = build::secret(cluster, names::authorities(&cluster.name), []);
    let data = secret.string_data.get_or_insert_default();
    let mut notes = BTreeMap::new();
    let mut keep = |name: &str, kept: &Kept, not_after: &str| {
        data.insert(format!("{name}.crt"), kept.issued.cert.clone());
        data.insert(format!("{name}.key"), kept.issued.key.clone());
        notes.insert(not_after.to_owned(), kept.not_after_unix_s.to_string());
    };
    if let Stage::One(current) | Stage::Two { current, .. } = &a.stage {
        keep("current", current, names::NOT_AFTER);
    }
    if let Some(next) = a.next() {
        keep("next", next, names::NEXT_NOT_AFTER);
    }
    let mut keep = |cert: &str, certs: &str, until: &str, until_unix_s: u64| {
        data.insert(cert.to_owned(), certs.to_owned());
        notes.insert(until.to_owned(), until_unix_s.to_string());
    };
    if let Stage::Lost { certs, until_unix_s, .. } = &a.stage {
        keep("lost.crt", certs, names::LOST_UNTIL, *until_unix_s);
    }
    if let Some((certs, until_unix_s)) = &a.previous {
        keep("previous.crt", certs, names::PREVIOUS_UNTIL, *until_unix_s);
    }
    for (asked, name) in
        [(a.replace, names::REPLACE_AUTHORITY), (a.drop_previous, names::DROP_PREVIOUS)]
    {
        if asked {
            notes.insert(name.to_owned(), "true".into());
        }
    }
    secret.metadata.annotations = Some(notes);
    secret
}
