//! The port for clients with TLS: who gets in, and what for.
use super::*;
use crate::test_certificates::{authority, certificate};
use hyper_util::rt::TokioIo;
use ringfold_tls::{Protocol, Role, Stream, Tls};
use tonic::transport::{Endpoint, Uri};

async fn channel(url: &str, tls: Tls) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    let connector = tower::service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let (host, port) = (uri.host().unwrap(), uri.port_u16().unwrap());
            let tcp = tokio::net::TcpStream::connect((host, port)).await?;
            let stream = Stream::opened(tcp, host, Some(&tls), Protocol::Http2).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await
}

#[tokio::test]
async fn applications_append_and_read_and_only_admins_change_the_cluster() {
    let ca = authority("ours");
    let cluster = cluster_with(true, Some(certificate(&ca, Role::Node, &ca))).await;
    let url = &cluster.nodes[0].url;
    assert!(url.starts_with("https://"));
    let application = channel(url, certificate(&ca, Role::Client, &ca)).await.unwrap();
    let mut store = EventStoreClient::new(application.clone());
    // One of them is led by the other node: it goes on by TLS as well.
    for (node, id) in [(0, 1), (1, 2)] {
        let stream = stream_of(node);
        store.append(append(&stream, id, None)).await.unwrap();
        store.lookup(lookup(&stream, v1::Consistency::Linearizable)).await.unwrap();
    }
    let mut shown = ClusterClient::new(application);
    assert_eq!(shown.topology(v1::TopologyRequest {}).await.unwrap().into_inner().node_id, 1);
    for refused in [
        shown.transfer_leaders(v1::TransferLeadersRequest::default()).await.unwrap_err(),
        shown.drain(v1::DrainRequest::default()).await.unwrap_err(),
        shown.undrain(v1::UndrainRequest::default()).await.unwrap_err(),
        shown.remove_member(v1::RemoveMemberRequest::default()).await.unwrap_err(),
        shown.rebalance_pause(v1::RebalancePauseRequest::default()).await.unwrap_err(),
        shown.rebalance_resume(v1::RebalanceResumeRequest::default()).await.unwrap_err(),
        shown.bootstrap(v1::BootstrapRequest::default()).await.unwrap_err(),
    ] {
        assert_eq!(reason(&refused), "NOT_PERMITTED");
    }
    for role in [Role::Admin, Role::Node] {
        let mut admin =
            ClusterClient::new(channel(url, certificate(&ca, role, &ca)).await.unwrap());
        admin.transfer_leaders(v1::TransferLeadersRequest::default()).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_gets_in_in_the_clear_or_with_a_foreign_certificate() {
    let ca = authority("ours");
    let cluster = cluster_with(true, Some(certificate(&ca, Role::Node, &ca))).await;
    let url = cluster.nodes[0].url.clone();
    let ask = async |channel: Channel| {
        let mut admin = ClusterClient::new(channel);
        tokio::time::timeout(Duration::from_secs(20), admin.topology(v1::TopologyRequest {})).await
    };
    // It trusts the cluster, which does not trust its authority, whatever that is called.
    let foreign = certificate(&authority("ours"), Role::Admin, &ca);
    // The client may have its side of the handshake before it is refused.
    if let Ok(channel) = channel(&url, foreign).await {
        assert!(ask(channel).await.unwrap().is_err());
    }
    let plain = Endpoint::from_shared(url.replace("https", "http")).unwrap();
    if let Ok(channel) = plain.connect().await {
        assert!(ask(channel).await.unwrap().is_err());
    }
    // The port goes on.
    let good = channel(&url, certificate(&ca, Role::Client, &ca)).await.unwrap();
    ask(good).await.unwrap().unwrap();
}
