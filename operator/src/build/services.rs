//! The headless Service of the nodes, and the one that clients connect to.
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use ringfold_crds::ServiceType;

use super::{CLIENT_PORT, GOSSIP_PORT, PEER_PORT, meta, selector_labels};
use crate::{names, validate::Cluster};

/// `tls`: of the whole cluster.
fn port(tls: bool, name: &str, port: i32, protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port,
        target_port: Some(IntOrString::String(name.into())),
        protocol: Some(protocol.into()),
        // What speaks HTTP/2 from its first byte is not to be guessed at.
        app_protocol: (name == "client" && !tls).then(|| "kubernetes.io/h2c".into()),
        ..ServicePort::default()
    }
}

/// Gives each pod its name. Nodes find each other before they are ready.
pub fn nodes(cluster: &Cluster) -> Service {
    Service {
        metadata: meta(cluster, names::nodes(&cluster.name)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(&cluster.name)),
            ports: Some(vec![
                port(cluster.tls, "client", CLIENT_PORT, "TCP"),
                port(cluster.tls, "peer", PEER_PORT, "TCP"),
                port(cluster.tls, "gossip", GOSSIP_PORT, "UDP"),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

pub fn client(cluster: &Cluster) -> Service {
    let mut metadata = meta(cluster, cluster.name.clone());
    let annotations = &cluster.service.annotations;
    metadata.annotations = (!annotations.is_empty()).then(|| annotations.clone());
    let kind = match cluster.service.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(kind.into()),
            selector: Some(selector_labels(&cluster.name)),
            ports: Some(vec![port(cluster.tls, "client", CLIENT_PORT, "TCP")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
