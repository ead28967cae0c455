//! Only nodes reach the nodes' own ports; clients and the operator reach the client port, and anybody
//! the port for health and metrics.
use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{meta, selector};
use crate::{names, validate::Cluster};

fn port(name: &str, protocol: &str) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::String(name.into())),
        protocol: Some(protocol.into()),
        ..NetworkPolicyPort::default()
    }
}

fn pods(selector: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector), ..NetworkPolicyPeer::default() }
}

/// The operator, in whichever namespace it runs.
fn operator() -> NetworkPolicyPeer {
    let (label, _) = names::NAME_LABEL;
    let name = (label.to_owned(), "ringfold-operator".to_owned());
    NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some([name].into()),
            ..LabelSelector::default()
        }),
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }
}

pub fn build(cluster: &Cluster) -> Option<NetworkPolicy> {
    if !cluster.network_policy.enabled {
        return None;
    }
    let nodes = NetworkPolicyIngressRule {
        from: Some(vec![pods(selector(cluster))]),
        ports: Some(vec![port("client", "TCP"), port("peer", "TCP"), port("gossip", "UDP")]),
    };
    let clients = &cluster.network_policy.clients;
    let from = (!clients.is_empty())
        .then(|| clients.iter().cloned().map(pods).chain([operator()]).collect());
    let clients = NetworkPolicyIngressRule { from, ports: Some(vec![port("client", "TCP")]) };
    // Health and numbers, and nothing of what is stored: whoever scrapes them is not known here.
    let http = NetworkPolicyIngressRule { from: None, ports: Some(vec![port("http", "TCP")]) };
    Some(NetworkPolicy {
        metadata: meta(cluster, cluster.name.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(cluster)),
            policy_types: Some(vec!["Ingress".into()]),
            ingress: Some(vec![nodes, clients, http]),
            ..NetworkPolicySpec::default()
        }),
    })
}
