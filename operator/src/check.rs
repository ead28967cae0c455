//! What `--check` looks at, for `helm test`: an operator acts, and may read what it is to look after.
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::ListParams};
use ringfold_crds::EventStoreCluster;

use crate::lease::DURATION;

const TRIES: u32 = 30;
const BETWEEN: Duration = Duration::from_secs(2);

/// What is not right, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error(
        "no operator holds the Lease {namespace}/{name}: see the pods of the Deployment and their log"
    )]
    NobodyActs { namespace: String, name: String },
    #[error(
        "the Lease {namespace}/{name} of {holder} has run out: see the pods of the Deployment and their log"
    )]
    RunOut { namespace: String, name: String, holder: String },
    #[error("{what} cannot be read: {error}. Is the CustomResourceDefinition there, and the role?")]
    Unreadable { what: String, error: Box<kube::Error> },
}

/// Looks again for a minute, since an operator that was just installed needs a moment.
///
/// # Errors
/// What is still not right then.
pub async fn until_right(
    client: &Client,
    namespaces: &[String],
    lease_namespace: &str,
    lease_name: &str,
) -> Result<String, Wrong> {
    let mut tries = 1;
    loop {
        match check(client, namespaces, lease_namespace, lease_name).await {
            Err(error) if tries < TRIES => tracing::info!(%error, tries, "looking again"),
            done => return done,
        }
        tries += 1;
        tokio::time::sleep(BETWEEN).await;
    }
}

async fn check(
    client: &Client,
    namespaces: &[String],
    lease_namespace: &str,
    lease_name: &str,
) -> Result<String, Wrong> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), lease_namespace);
    let what = || format!("the Lease {lease_namespace}/{lease_name}");
    let unreadable = |what: String| |error| Wrong::Unreadable { what, error: Box::new(error) };
    let lease = leases.get_opt(lease_name).await.map_err(unreadable(what()))?;
    let holder = holder(lease.as_ref(), lease_namespace, lease_name, Timestamp::now())?;
    let mut clusters = 0;
    let all = [None];
    let each: Vec<_> = namespaces.iter().map(|n| Some(n.as_str())).collect();
    for place in if each.is_empty() { &all[..] } else { &each } {
        let api: Api<EventStoreCluster> = match place {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let place = place.map_or("all namespaces".to_owned(), |n| format!("the namespace {n}"));
        // What is stored is of no interest: one tells whether all could be read.
        let page = ListParams::default().limit(1);
        let found = api.list_metadata(&page).await;
        let found = found.map_err(unreadable(format!("EventStoreClusters of {place}")))?;
        let more = found.metadata.remaining_item_count.unwrap_or(0);
        clusters += found.items.len() as i64 + more;
    }
    Ok(format!("{holder} holds the Lease; {clusters} clusters are there"))
}

/// Who acts. Unlike an election, this compares the holder's clock with the own one, generously.
fn holder(
    lease: Option<&Lease>,
    namespace: &str,
    name: &str,
    now: Timestamp,
) -> Result<String, Wrong> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let spec = lease.and_then(|l| l.spec.as_ref());
    let holder = spec.and_then(|s| s.holder_identity.clone()).filter(|h| !h.is_empty());
    let Some(holder) = holder else { return Err(Wrong::NobodyActs { namespace, name }) };
    let renewed = spec.and_then(|s| s.renew_time.as_ref()).map(|t| t.0);
    let age_s = renewed.map_or(i64::MAX, |at| now.as_second().saturating_sub(at.as_second()));
    if age_s > 2 * DURATION.as_secs() as i64 {
        return Err(Wrong::RunOut { namespace, name, holder });
    }
    Ok(holder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_that_is_not_renewed_is_nobodys() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let look = |spec| {
            let lease: Lease = serde_json::from_value(json!({"spec": spec})).unwrap();
            holder(Some(&lease), "system", "ringfold", now).map_err(|e| e.to_string())
        };
        let at = |time: &str| json!({"holderIdentity": "a", "renewTime": time});
        assert_eq!(look(at("2026-01-01T00:00:55.000000Z")), Ok("a".into()));
        assert!(look(at("2026-01-01T00:00:00.000000Z")).unwrap_err().contains("has run out"));
        assert!(look(json!({"holderIdentity": ""})).unwrap_err().contains("no operator holds"));
        assert!(holder(None, "system", "ringfold", now).is_err());
    }
}
