//! What a failed test leaves to look at.
use std::time::Duration;

use ringfold_proto::v1::{TopologyRequest, cluster_client::ClusterClient};

use crate::{
    Space,
    cluster::{channel, node_urls},
    tools::run,
};

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
    for url in node_urls(space).await {
        let mut client = ClusterClient::new(channel(&url));
        let ask = client.topology(TopologyRequest::default());
        match tokio::time::timeout(Duration::from_secs(3), ask).await {
            Ok(Ok(topology)) => return eprintln!("--- {url} sees {:#?}", topology.into_inner()),
            Ok(Err(status)) => eprintln!("--- {url}: {status}"),
            Err(_) => eprintln!("--- {url}: no answer"),
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
