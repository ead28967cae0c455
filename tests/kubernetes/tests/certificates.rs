//! A cluster whose operator issues its certificates: they and the authority are replaced under load, and
//! whoever has none of them is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use ringfold_proto::v1::{TopologyRequest, cluster_client::ClusterClient};
use ringfold_tests::certificates::{authority, client, expired};
use ringfold_tests_kubernetes::{
    Cluster, Operator, Space, Work, eventually, is_lab, kubectl, kubernetes, leave_out, pem,
};
use ringfold_tls::{
    Role, Tls,
    issue::{Authority, Issued},
};
use serde_json::json;

/// A kubelet brings a changed Secret into its pods within about a minute and a half.
const BROUGHT_MAX: Duration = Duration::from_secs(300);
/// Applications are given two minutes more to read whom to trust, and the operator looks every 15 s.
const SWITCHED_MAX: Duration = Duration::from_secs(450);

async fn secure<'a>(space: &'a Space) -> Cluster<'a> {
    let spec = json!({"partitions": 8, "tls": {"mode": "Operator"}});
    let cluster = Cluster::create(space, "demo", spec).await;
    cluster.wait_at_rest(3).await;
    cluster
}

async fn secret(space: &Space, name: &str) -> Secret {
    space.api::<Secret>().get(name).await.unwrap()
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let data = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8(data.0.clone()).unwrap())
}

/// Asks for the topology on a connection of its own.
async fn asks(cluster: &Cluster<'_>, tls: Option<Tls>) -> Result<(), String> {
    let mut client = ClusterClient::new(cluster.channel(0, tls));
    let asked = client.topology(TopologyRequest::default());
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    answer.expect("refused, not left waiting").map(|_| ()).map_err(|s| s.to_string())
}

#[test]
fn certificates_and_their_authority_are_replaced_under_load_and_no_event_is_lost() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = secure(space).await;
        let work = Work::start(&cluster, 3, 25);
        work.goes_on().await;

        // A certificate that is gone is issued anew.
        let secrets: Api<Secret> = space.api();
        let before = secret(space, "demo-client-tls").await;
        secrets.delete("demo-client-tls", &Default::default()).await.unwrap();
        eventually("another certificate for applications", BROUGHT_MAX, async || {
            let now = secrets.get("demo-client-tls").await.map_err(|e| e.to_string())?;
            (now.uid() != before.uid()).then_some(()).ok_or_else(|| "the same".to_owned())
        })
        .await;

        let old = text(&secret(space, "demo-ca").await, "current.crt").unwrap();
        let old_client = Tls::from_pem("before", &pem(space, "demo-client-tls").await.unwrap());
        let old_client = old_client.unwrap();
        let annotate = |mark| {
            kubectl(&["annotate", "secret/demo-ca", mark, "-n", &space.name]);
        };
        annotate("ringfold.dev/replace-authority=true");
        eventually("another authority issues", SWITCHED_MAX, async || {
            let now = secret(space, "demo-ca").await;
            let same = text(&now, "current.crt").as_ref() == Some(&old);
            (!same)
                .then_some(())
                .ok_or_else(|| format!("next: {}", text(&now, "next.crt").is_some()))
        })
        .await;
        work.goes_on().await;
        annotate("ringfold.dev/drop-previous-authority=true");
        eventually("the one before is trusted no more", BROUGHT_MAX, async || {
            let now = secret(space, "demo-ca").await;
            text(&now, "previous.crt").map_or(Ok(()), |_| Err("it still is".to_owned()))
        })
        .await;
        work.goes_on().await;
        // Each connection is made anew, with certificates of the new authority on both sides.
        let pods = cluster.pod_uids().await;
        cluster.change(json!({"config": {"read_threads": "3"}})).await;
        cluster.wait_restarted(&pods).await;
        cluster.wait_at_rest(3).await;
        work.goes_on().await;
        if is_lab() {
            assert!(asks(&cluster, Some(old_client)).await.is_err(), "its authority is gone");
        }
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn a_lost_authority_is_replaced_under_load_while_what_it_issued_stays_valid() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = secure(space).await;
        let work = Work::start(&cluster, 3, 27);
        work.goes_on().await;
        let secrets: Api<Secret> = space.api();
        let issuer = async || {
            let annotations = secret(space, "demo-node-tls").await.metadata.annotations;
            annotations.unwrap().get("ringfold.dev/issuer").cloned().unwrap()
        };
        let before = issuer().await;
        secrets.delete("demo-ca", &Default::default()).await.unwrap();
        eventually("another authority is trusted", BROUGHT_MAX, async || {
            secrets.get("demo-ca").await.map(|_| ()).map_err(|e| e.to_string())
        })
        .await;
        // Each connection is made anew, with certificates of the lost authority.
        let pods = cluster.pod_uids().await;
        cluster.change(json!({"config": {"read_threads": "3"}})).await;
        cluster.wait_restarted(&pods).await;
        cluster.wait_at_rest(3).await;
        work.goes_on().await;
        eventually("another authority issues", SWITCHED_MAX, async || {
            let now = issuer().await;
            (now != before).then_some(()).ok_or(now)
        })
        .await;
        work.goes_on().await;
        cluster.wait_at_rest(3).await;
        work.stop().await.judge(&cluster, 3).await;
    });
}

#[test]
fn whoever_has_no_certificate_of_the_cluster_that_is_valid_now_is_refused() {
    if !is_lab() {
        return leave_out("nodes of KUBECONFIG's cluster are not reached from here");
    }
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let cluster = secure(space).await;
        let own = pem(space, "demo-client-tls").await.unwrap();
        asks(&cluster, Some(Tls::from_pem("own", &own).unwrap())).await.unwrap();
        asks(&cluster, None).await.unwrap_err();

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ca = String::from_utf8(own.ca.clone()).unwrap();
        let stranger = client(&at("stranger"), &authority("foreign"), &ca, Role::Client);
        asks(&cluster, Some(stranger)).await.unwrap_err();

        let kept = secret(space, "demo-ca").await;
        let (cert, key) =
            (text(&kept, "current.crt").unwrap(), text(&kept, "current.key").unwrap());
        let ours = Authority::read(Issued { cert, key }).unwrap();
        asks(&cluster, Some(expired(&at("expired"), &ours))).await.unwrap_err();
        // One that differs in nothing but its time is accepted.
        asks(&cluster, Some(client(&at("valid"), &ours, &ca, Role::Client))).await.unwrap();
    });
}
