//! Certificates and authorities, in Secrets.
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::PostParams};

use super::{
    Live,
    kubernetes::{check_ours, failed},
};
use crate::{
    certificates::{
        self, ROLES,
        secrets::{self, Secrets},
    },
    names,
    plane::KubernetesError,
    validate::Cluster,
};

/// Changes of one look: a new cluster needs four.
const CHANGES_MAX: usize = 8;

/// All four, once for each look.
pub(super) async fn read(api: &Api<Secret>, cluster: &Cluster) -> Result<Secrets, kube::Error> {
    if !cluster.tls {
        return Ok(Secrets::default());
    }
    let of = |role| async move {
        let found = api.get_opt(&secrets::name(&cluster.name, role)).await?;
        Ok::<_, kube::Error>(found.map(|secret| (role, secret)))
    };
    let kept = names::authorities(&cluster.name);
    let (authorities, leaves) = tokio::try_join!(api.get_opt(&kept), try_join_all(ROLES.map(of)))?;
    Ok(Secrets { authorities, leaves: leaves.into_iter().flatten().collect() })
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
    /// Makes and renews certificates. Every write is bound to what was read at the look's begin.
    pub(super) async fn ensure_certificates(&self) -> Result<(), KubernetesError> {
        if !self.cluster.tls {
            return Ok(());
        }
        for secret in self.secrets.leaves.values() {
            check_ours(secret)?;
        }
        let (name, mut secrets) = (&self.cluster.name, self.secrets.clone());
        let hosts = |role| certificates::hosts(name, &self.cluster.namespace, role);
        for _ in 0..CHANGES_MAX {
            let now_unix_s = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
            // The status says so, and all else goes on.
            let Ok(held) = secrets.held(name) else { return Ok(()) };
            let change = certificates::next(now_unix_s, &held, &hosts, self.trusted);
            let Some(change) = change else { return Ok(()) };
            let after = secrets
                .after(self.cluster, &change, &held, now_unix_s)
                .map_err(|e| KubernetesError::Failed(e.to_string()))?;
            let Some(after) = after else { return Ok(()) };
            let written = self.write(after, secrets.of(&change)).await?;
            tracing::info!(cluster = name, ?change, "certificates");
            secrets.put(&change, written);
        }
        Ok(())
    }

    /// The Secret as it is then.
    pub(super) async fn write(
        &self,
        mut secret: Secret,
        before: Option<&Secret>,
    ) -> Result<Secret, KubernetesError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.cluster.namespace);
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let done = match before {
            None => api.create(&params, &secret).await,
            Some(before) => {
                secret.metadata.uid = before.uid();
                secret.metadata.resource_version = before.resource_version();
                keep_foreign(&mut secret, before);
                // A Secret's type cannot change.
                secret.type_ = before.type_.clone();
                api.replace(&secret.name_any(), &params, &secret).await
            }
        };
        done.map_err(failed)
    }
}
