//! What a failed test leaves to look at.
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::ListParams};
use ringfold_crds::names::{CLIENT_PORT, certificate, host};
use ringfold_proto::v1::{TopologyRequest, cluster_client::ClusterClient};
use ringfold_tests::cluster::channel_to;
use ringfold_tls::Tls;

use crate::{Space, cluster::pem, tools::run};

const LINES_MAX: &str = "--tail=60";

/// Prints pods, events, logs and what the nodes say of the cluster.
pub async fn namespace(space: &Space) {
    let name = space.name.as_str();
    eprintln!("=== namespace {name}");
    let all = "esc,sts,pod,pvc,svc,pdb,lease";
    show(&["get", all, "-n", name, "-o", "wide"]);
    show(&["get", "esc", "-n", name, "-o", "yaml"]);
    show(&["get", "events", "-n", name, "--sort-by=.lastTimestamp"]);
    let pods = run(&["get", "pods", "-n", name, "-o", "name"], "");
    for pod in String::from_utf8_lossy(&pods.stdout).lines() {
        show(&["logs", "-n", name, pod, "--all-containers", LINES_MAX]);
        show(&["logs", "-n", name, pod, "--all-containers", "--previous", LINES_MAX]);
    }
    sees(space).await;
}

/// What the first node that answers says of its cluster.
async fn sees(space: &Space) {
    let labels = ListParams::default().labels("app.kubernetes.io/name=ringfold");
    let Ok(pods) = space.api::<Pod>().list(&labels).await else { return };
    for pod in pods {
        let name = pod.name_any();
        let Some((cluster, _)) = name.rsplit_once('-') else { continue };
        let tls = pem(space, &certificate(cluster, "admin")).await.ok();
        let tls = tls.and_then(|pem| Tls::from_pem("admin", &pem).ok());
        let host = host(cluster, &space.name, &name);
        let mut client = ClusterClient::new(channel_to(&host, CLIENT_PORT, tls));
        let ask = client.topology(TopologyRequest::default());
        match tokio::time::timeout(Duration::from_secs(3), ask).await {
            Ok(Ok(topology)) => return eprintln!("--- {name} sees {:#?}", topology.into_inner()),
            Ok(Err(status)) => eprintln!("--- {name}: {status}"),
            Err(_) => eprintln!("--- {name}: no answer"),
        }
    }
}

fn show(args: &[&str]) {
    let output = run(args, "");
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && !said.trim().is_empty() {
        eprintln!("--- kubectl {}\n{said}", args.join(" "));
    }
}
