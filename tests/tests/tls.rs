//! Nodes and clients that speak TLS: certificates and authority are replaced under load, and whoever has
//! no certificate of the cluster's is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::sync::Arc;
use std::time::Duration;

use ringfold_proto::v1::cluster_client::ClusterClient;
use ringfold_proto::v1::{NodeStatusRequest, RebalancePauseRequest, TopologyRequest};
use ringfold_tests::certificates::{self, Certificates, authority};
use ringfold_tests::cluster::{LocalCluster, Settings, channel_to, eventually, reason};
use ringfold_tests::history::Clock;
use ringfold_tests::load::{self, Load, Running, judge};
use ringfold_tls::{Role, Tls};

const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// Files are looked at every 5 s.
const TAKEN_MAX: Duration = Duration::from_secs(30);

fn settings(certificates: &Arc<Certificates>) -> Settings {
    Settings { tls: Some(certificates.clone()), ..Settings::default() }
}

/// Every node trusts these authorities.
async fn trusted(cluster: &LocalCluster, authorities: &str) {
    let expected = &ringfold_tls::authorities_id(authorities.as_bytes());
    eventually("every node has read its files anew", TAKEN_MAX, || async {
        for node in cluster.running() {
            let status = node.admin().node_status(NodeStatusRequest {}).await;
            let said = status.map_err(|s| s.to_string())?.into_inner().authorities;
            if said != *expected {
                return Err(format!("{} trusts {said}, not {expected}", node.name));
            }
        }
        Ok(())
    })
    .await;
}

/// Each node makes all its connections anew.
async fn restart_each(cluster: &mut LocalCluster, running: &Running) {
    for i in 0..cluster.nodes.len() {
        assert_eq!(cluster.stop(i).await, 0);
        cluster.start_node(i);
        cluster.wait_ready().await;
        running.progress(20, PROGRESS_MAX).await;
    }
}

/// Asks a node for the topology, on a connection of its own.
async fn asks(cluster: &LocalCluster, tls: Option<Tls>) -> Result<(), tonic::Status> {
    let node = &cluster.nodes[0];
    let mut client = ClusterClient::new(channel_to(&node.host, node.client_port, tls));
    let asked = client.topology(TopologyRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    answer.expect("refused, not left waiting").map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_authority_are_replaced_under_load_and_no_event_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority("old"), authority("new"));
    let certificates = Arc::new(Certificates::make(dir.path(), &old));
    let mut cluster = LocalCluster::start(settings(&certificates)).await;
    let (clock, load) = (Clock::new(), Load { seed: 81, ..Load::default() });
    let running = load::start(&cluster, clock, &load);
    running.progress(200, PROGRESS_MAX).await;
    trusted(&cluster, &old.issued.cert).await;

    // Renewed, by the same authority.
    certificates.replace(&old, &old.issued.cert);
    running.progress(50, PROGRESS_MAX).await;

    let both = format!("{}{}", old.issued.cert, new.issued.cert);
    certificates.trust(&both);
    trusted(&cluster, &both).await;
    certificates.replace(&new, &both);
    // Some nodes still show what the old authority issued, others what the new one did.
    restart_each(&mut cluster, &running).await;

    let clients = |name: &str| dir.path().join(name);
    let before = certificates::client(&clients("before"), &old, &both, Role::Client);
    asks(&cluster, Some(before.clone())).await.unwrap();
    certificates.trust(&new.issued.cert);
    trusted(&cluster, &new.issued.cert).await;
    assert!(asks(&cluster, Some(before)).await.is_err(), "its authority is trusted no more");
    let after = certificates::client(&clients("after"), &new, &new.issued.cert, Role::Client);
    asks(&cluster, Some(after)).await.unwrap();
    restart_each(&mut cluster, &running).await;

    let history = running.stop().await;
    judge(&cluster, clock, &load, history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_certificate_of_the_cluster_that_is_valid_now_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, foreign) = (authority("ours"), authority("foreign"));
    let certificates = Arc::new(Certificates::make(&dir.path().join("ours"), &ours));
    let cluster = LocalCluster::start(settings(&certificates)).await;
    let cert = &ours.issued.cert;
    let own = |name: &str, by, role| certificates::client(&dir.path().join(name), by, cert, role);
    let client = own("client", &ours, Role::Client);
    asks(&cluster, Some(client.clone())).await.unwrap();

    assert!(asks(&cluster, None).await.is_err(), "in the clear");
    let stranger = own("foreign", &foreign, Role::Client);
    assert!(asks(&cluster, Some(stranger)).await.is_err(), "of a foreign authority");
    let expired = certificates::expired(&dir.path().join("expired"), &ours);
    assert!(asks(&cluster, Some(expired)).await.is_err(), "expired");
    // Nor do clients take a node of another authority for one of theirs.
    let misled =
        certificates::client(&dir.path().join("misled"), &ours, &foreign.issued.cert, Role::Client);
    assert!(asks(&cluster, Some(misled)).await.is_err(), "it trusts others");

    let node = &cluster.nodes[0];
    let channel = |tls| channel_to(&node.host, node.client_port, Some(tls));
    let pause = async |tls| {
        ClusterClient::new(channel(tls)).rebalance_pause(RebalancePauseRequest::default()).await
    };
    let refused = pause(client).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_PERMITTED", "{refused:?}");
    pause(own("admin", &ours, Role::Admin)).await.unwrap();
    asks(&cluster, Some(own("again", &ours, Role::Client))).await.unwrap();
}
