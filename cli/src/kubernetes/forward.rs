//! Connections to the pods of a cluster through the Kubernetes API, as `kubectl port-forward` makes
//! them: nodes are named by the URLs that they have inside, and each connection is one of its own.
use super::{Args, connect, failed};
use crate::Global;
use crate::error::{CliError, Exit};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use ringfold_client::{ClientConfig, Connector, Tls};
use ringfold_crds::names::{CLUSTER_LABEL, NAME_LABEL, certificate, client_url, host};
use ringfold_crds::{EventStoreCluster, TlsMode};
use ringfold_tls::Pem;
use std::io;
use std::time::Duration;

/// A connection passes through the API server and a kubelet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes that are asked at first; any of them names the others.
const ENDPOINTS_MAX: usize = 3;
/// A namespace with more is listed no further.
const CLUSTERS_MAX: u32 = 50;

/// Where the cluster's nodes are, and how to get there.
pub async fn config(global: &Global) -> Result<ClientConfig, CliError> {
    let (client, namespace) = connect(&global.kubernetes).await?;
    let clusters: Api<EventStoreCluster> = Api::namespaced(client.clone(), &namespace);
    let cluster = match &global.kubernetes {
        Args { cluster: Some(name), .. } => {
            let found = clusters.get(name).await;
            found.map_err(|e| failed(format_args!("the cluster {namespace}/{name}"), e))?
        }
        _ => {
            let listed = clusters.list(&ListParams::default().limit(CLUSTERS_MAX)).await;
            let listed = listed.map_err(|e| {
                failed(format_args!("clusters of namespace {namespace}"), e)
                    .action("name the cluster with --cluster")
            })?;
            the_one(&namespace, listed.items)?
        }
    };
    let name = cluster.name_any();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let (label, value) = NAME_LABEL;
    let labels = ListParams::default().labels(&format!("{label}={value},{CLUSTER_LABEL}={name}"));
    let found = pods.list(&labels).await;
    let found = found.map_err(|e| failed(format_args!("pods of {namespace}/{name}"), e))?;
    let mut running: Vec<_> = found.iter().filter(|p| is_running(p)).collect();
    if running.is_empty() {
        let message = format!(
            "no pod of the cluster {namespace}/{name} runs; {} are there",
            found.items.len()
        );
        return Err(CliError::new(Exit::Unavailable, message)
            .action(format!("see `kubectl -n {namespace} describe esc {name}`")));
    }
    running.sort_by_key(|p| !is_ready(p));
    let names = running.iter().take(ENDPOINTS_MAX).map(|p| p.name_any());
    let tls = match cluster.spec.tls.mode {
        TlsMode::Disabled => None,
        TlsMode::Operator => Some(certificates(client, &namespace, &name).await?),
    };
    let urls = names.map(|p| client_url(&name, &namespace, &p, tls.is_some()));
    let mut config = ClientConfig::new(urls);
    config.connect_timeout = CONNECT_TIMEOUT;
    config.channels_per_node = 1;
    config.tls = tls;
    config.connector = Some(connector(pods, name, namespace));
    Ok(config)
}

/// The administrator's certificate, of a cluster that speaks TLS.
async fn certificates(client: Client, namespace: &str, cluster: &str) -> Result<Tls, CliError> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let secret = certificate(cluster, "admin");
    let found = secrets.get(&secret).await;
    let found = found.map_err(|e| failed(format_args!("the Secret {namespace}/{secret}"), e))?;
    let data = found.data.unwrap_or_default();
    let pem = Pem::of_parts(|key| {
        let part = data.get(key).map(|b| b.0.clone());
        part.ok_or_else(|| CliError::other(format!("the Secret {namespace}/{secret} has no {key}")))
    })?;
    Tls::from_pem(&secret, &pem).map_err(|e| CliError::other(e.to_string()))
}

/// The only cluster of a namespace.
fn the_one(
    namespace: &str,
    mut clusters: Vec<EventStoreCluster>,
) -> Result<EventStoreCluster, CliError> {
    match (clusters.pop(), clusters.is_empty()) {
        (Some(cluster), true) => Ok(cluster),
        (None, _) => {
            let message = format!("the namespace {namespace} has no EventStoreCluster");
            Err(CliError::new(Exit::NotFound, message)
                .action("name its namespace with -n, or its context with --context"))
        }
        (Some(last), false) => {
            clusters.push(last);
            let mut names: Vec<_> = clusters.iter().map(|c| c.name_any()).collect();
            names.sort();
            let message =
                format!("the namespace {namespace} has several clusters: {}", names.join(", "));
            Err(CliError::usage(message).action("name one with --cluster"))
        }
    }
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn connector(pods: Api<Pod>, cluster: String, namespace: String) -> Connector {
    Connector::new(move |asked, port| {
        let pod = pod_of(&cluster, &namespace, &asked);
        let pods = pods.clone();
        async move {
            let pod = pod.ok_or_else(|| {
                let what = format!("{asked} is no pod of the cluster: it is not reached from here");
                io::Error::new(io::ErrorKind::AddrNotAvailable, what)
            })?;
            let forwarded = pods.portforward(&pod, &[port]).await;
            let mut forwarded = forwarded.map_err(|e| io::Error::other(e.to_string()))?;
            forwarded
                .take_stream(port)
                .ok_or_else(|| io::Error::other("the port-forward has no stream"))
        }
    })
}

/// The pod whose name inside is `asked`.
fn pod_of(cluster: &str, namespace: &str, asked: &str) -> Option<String> {
    let pod = asked.split('.').next()?;
    (host(cluster, namespace, pod) == asked).then(|| pod.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_name_inside_and_nobody_else_is_connected_to() {
        let of = |asked| pod_of("demo", "shop", asked);
        assert_eq!(of("demo-2.demo-nodes.shop.svc").as_deref(), Some("demo-2"));
        assert_eq!(of("demo-2.demo-nodes.other.svc"), None);
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("demo-2.demo-nodes.shop.svc.evil"), None);
    }

    #[test]
    fn the_only_cluster_of_a_namespace_need_not_be_named() {
        let of = |names: &[&str]| {
            let spec = || serde_json::from_value(serde_json::json!({})).unwrap();
            the_one("shop", names.iter().map(|n| EventStoreCluster::new(n, spec())).collect())
        };
        assert_eq!(of(&["demo"]).unwrap().name_any(), "demo");
        assert_eq!(of(&[]).unwrap_err().exit, Exit::NotFound);
        let several = of(&["b", "a"]).unwrap_err();
        assert!(several.exit == Exit::Usage && several.message.ends_with("a, b"));
    }

    #[test]
    fn pods_that_end_are_not_asked_and_ready_ones_first() {
        let pod = |status: serde_json::Value, metadata: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({"metadata": metadata, "status": status}))
                .unwrap()
        };
        let ready = serde_json::json!({"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}]});
        let there = pod(ready.clone(), serde_json::json!({}));
        assert!(is_running(&there) && is_ready(&there));
        let ends = pod(ready, serde_json::json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert!(!is_running(&ends));
        let pending = pod(serde_json::json!({"phase": "Pending"}), serde_json::json!({}));
        assert!(!is_running(&pending) && !is_ready(&pending));
    }
}
