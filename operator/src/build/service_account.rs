//! The pods' ServiceAccount: without rights, and without a token.
use k8s_openapi::api::core::v1::ServiceAccount;

use super::meta;
use crate::validate::Cluster;

pub fn build(cluster: &Cluster) -> Option<ServiceAccount> {
    if cluster.service_account.name.is_some() {
        return None;
    }
    let mut metadata = meta(cluster, cluster.name.clone());
    let annotations = &cluster.service_account.annotations;
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    Some(ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

/// Name of the account that the pods run under.
pub fn name(cluster: &Cluster) -> String {
    cluster.service_account.name.clone().unwrap_or_else(|| cluster.name.clone())
}
