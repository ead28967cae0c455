//! Certificates and authorities, in Secrets.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::PostParams};
use ringfold_crds::names::certificate;
use ringfold_tls::{Pem, Role, Tls, issue::Issued};

use super::{Live, kubernetes::failed};
use crate::{
    build,
    certificates::{self, Authorities, Change, Kept, Leaf, ROLES},
    names,
    plane::KubernetesError,
    validate::Cluster,
};

/// Changes of one look: a new cluster needs four.
const CHANGES_MAX: usize = 8;

const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";

fn word(role: Role) -> &'static str {
    match role {
        Role::Node => "node",
        Role::Admin => "admin",
        Role::Client => "client",
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

fn number(secret: &Secret, annotation: &str) -> Option<u64> {
    secret.annotations().get(annotation)?.parse().ok()
}

/// What a Secret shows to whoever is asked.
pub fn pem(secret: &Secret) -> Option<Pem> {
    let part = |key| secret.data.as_ref()?.get(key).map(|b| b.0.clone());
    Some(Pem { cert: part(CERT)?, key: part(KEY)?, ca: part(CA)? })
}

fn authorities(secret: &Secret) -> Option<Authorities> {
    let kept = |name: &str, not_after| {
        let issued = Issued {
            cert: text(secret, &format!("{name}.crt"))?,
            key: text(secret, &format!("{name}.key"))?,
        };
        Some(Kept { issued, not_after_unix_s: number(secret, not_after)? })
    };
    let asked = |annotation| secret.annotations().contains_key(annotation);
    Some(Authorities {
        current: kept("current", names::NOT_AFTER)?,
        next: kept("next", names::NEXT_NOT_AFTER),
        previous: text(secret, "previous.crt").zip(number(secret, names::PREVIOUS_UNTIL)),
        replace: asked(names::REPLACE_AUTHORITY),
        drop_previous: asked(names::DROP_PREVIOUS),
    })
}

fn authorities_secret(cluster: &Cluster, a: &Authorities) -> Secret {
    let mut secret = build::secret(
        cluster,
        names::authorities(&cluster.name),
        [("current.crt", &a.current.issued.cert), ("current.key", &a.current.issued.key)],
    );
    let data = secret.string_data.get_or_insert_default();
    let mut annotations = BTreeMap::new();
    let mut note = |name: &str, value: String| annotations.insert(name.to_owned(), value);
    note(names::NOT_AFTER, a.current.not_after_unix_s.to_string());
    if let Some(next) = &a.next {
        data.insert("next.crt".into(), next.issued.cert.clone());
        data.insert("next.key".into(), next.issued.key.clone());
        note(names::NEXT_NOT_AFTER, next.not_after_unix_s.to_string());
    }
    if let Some((cert, until_unix_s)) = &a.previous {
        data.insert("previous.crt".into(), cert.clone());
        note(names::PREVIOUS_UNTIL, until_unix_s.to_string());
    }
    for (asked, name) in
        [(a.replace, names::REPLACE_AUTHORITY), (a.drop_previous, names::DROP_PREVIOUS)]
    {
        if asked {
            note(name, "true".into());
        }
    }
    secret.metadata.annotations = Some(annotations);
    secret
}

/// `None` also where its parts are of no use to whoever reads them: it is issued anew then.
fn leaf(secret: &Secret) -> Option<Leaf> {
    Tls::from_pem("a certificate's Secret", &pem(secret)?).ok()?;
    Some(Leaf {
        issuer: secret.annotations().get(names::ISSUER)?.clone(),
        not_after_unix_s: number(secret, names::NOT_AFTER)?,
        hosts: secret.annotations().get(names::HOSTS)?.clone(),
        bundle: certificates::id(&text(secret, CA)?),
    })
}

fn leaf_secret(cluster: &Cluster, role: Role, issued: &Issued, ca: &str, leaf: &Leaf) -> Secret {
    let name = certificate(&cluster.name, word(role));
    let mut secret =
        build::secret(cluster, name, [(CERT, &issued.cert), (KEY, &issued.key), (CA, ca)]);
    secret.type_ = Some("kubernetes.io/tls".into());
    secret.metadata.annotations = Some(
        [
            (names::ISSUER, leaf.issuer.clone()),
            (names::NOT_AFTER, leaf.not_after_unix_s.to_string()),
            (names::HOSTS, leaf.hosts.clone()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into(),
    );
    secret
}

/// Labels and annotations that others have added stay.
fn keep_foreign(secret: &mut Secret, before: &Secret) {
    let own = |name: &str| name.starts_with(names::DOMAIN);
    for (name, value) in before.annotations() {
        if !own(name) {
            secret.annotations_mut().entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    for (name, value) in before.labels() {
        secret.labels_mut().entry(name.clone()).or_insert_with(|| value.clone());
    }
}

impl Live<'_> {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.cluster.namespace)
    }

    /// Makes and renews certificates; at rest it reads four Secrets and writes none. Every write is
    /// bound to what was read.
    pub(super) async fn ensure_certificates(&self) -> Result<(), KubernetesError> {
        if !self.cluster.tls {
            return Ok(());
        }
        let name = &self.cluster.name;
        let hosts = |role| certificates::hosts(name, &self.cluster.namespace, role);
        let unmade = |e: ringfold_tls::issue::IssueError| KubernetesError::Failed(e.to_string());
        for _ in 0..CHANGES_MAX {
            let now_unix_s = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
            let kept = self.read(&names::authorities(name)).await?;
            let known = kept.as_ref().and_then(authorities);
            if kept.is_some() && known.is_none() {
                return Err(KubernetesError::Failed(format!(
                    "the Secret {} cannot be read: restore it, or delete it for a new authority, after which all nodes have to restart",
                    names::authorities(name)
                )));
            }
            let (mut secrets, mut leaves) = (BTreeMap::new(), BTreeMap::new());
            for role in ROLES {
                if let Some(secret) = self.read(&certificate(name, word(role))).await? {
                    leaves.extend(leaf(&secret).map(|l| (role, l)));
                    secrets.insert(role, secret);
                }
            }
            let change =
                certificates::next(now_unix_s, known.as_ref(), &leaves, &hosts, self.trusted);
            let Some(change) = change else { return Ok(()) };
            let written = match (&change, &known) {
                (Change::Issue(role), Some(a)) => {
                    let (issued, leaf) =
                        certificates::issue(a, name, *role, &hosts(*role), now_unix_s)
                            .map_err(unmade)?;
                    leaf_secret(self.cluster, *role, &issued, &a.bundle(), &leaf)
                }
                (Change::Trust(role), Some(a)) => {
                    let Some(before) = secrets.get(role) else { return Ok(()) };
                    let (Some(cert), Some(key)) = (text(before, CERT), text(before, KEY)) else {
                        return Ok(());
                    };
                    let Some(leaf) = leaves.get(role) else { return Ok(()) };
                    leaf_secret(self.cluster, *role, &Issued { cert, key }, &a.bundle(), leaf)
                }
                (change, _) => {
                    let changed = certificates::changed(change, name, known.as_ref(), now_unix_s);
                    let Some(a) = changed.map_err(unmade)? else { return Ok(()) };
                    authorities_secret(self.cluster, &a)
                }
            };
            let before = match &change {
                Change::Issue(role) | Change::Trust(role) => secrets.get(role),
                _ => kept.as_ref(),
            };
            self.write(written, before).await?;
            tracing::info!(cluster = name, ?change, "certificates");
        }
        Ok(())
    }

    async fn read(&self, name: &str) -> Result<Option<Secret>, KubernetesError> {
        self.ours::<Secret>(name).await
    }

    pub(super) async fn write(
        &self,
        mut secret: Secret,
        before: Option<&Secret>,
    ) -> Result<(), KubernetesError> {
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let done = match before {
            None => self.secrets().create(&params, &secret).await,
            Some(before) => {
                secret.metadata.uid = before.uid();
                secret.metadata.resource_version = before.resource_version();
                keep_foreign(&mut secret, before);
                // A Secret's type cannot change.
                secret.type_ = before.type_.clone();
                self.secrets().replace(&secret.name_any(), &params, &secret).await
            }
        };
        done.map(|_| ()).map_err(failed)
    }
}
