//! The charts: upgraded and uninstalled.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use k8s_openapi::{
    api::apps::v1::Deployment,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::PostParams};
use ringfold_tests_kubernetes::{Cluster, Operator, Work, eventually, helm, kubernetes};
use serde_json::json;

const DEFINITION: &str = "eventstoreclusters.ringfold.dev";

#[test]
fn an_upgraded_chart_updates_the_definition_and_an_uninstalled_one_leaves_it_and_all_clusters() {
    kubernetes(async |space| {
        let operator = Operator::install(space).await;
        let cluster = Cluster::create(space, "demo", json!({"partitions": 8})).await;
        cluster.wait_at_rest(3).await;
        let (pods, claims) = (cluster.pod_uids().await, cluster.claims().await);
        let work = Work::start(&cluster, 3, 30);
        work.goes_on().await;

        // The version before had another text there.
        let api: Api<CustomResourceDefinition> = Api::all(space.client.clone());
        let mut older = api.get(DEFINITION).await.unwrap();
        let description = |crd: &mut CustomResourceDefinition| {
            let schema = crd.spec.versions[0].schema.as_mut().unwrap();
            let text = &mut schema.open_api_v3_schema.as_mut().unwrap().description;
            text.replace("As it was before.".into())
        };
        let expected = description(&mut older);
        api.replace(DEFINITION, &PostParams::default(), &older).await.unwrap();
        // From a release without the definition to one that has it.
        // Until now the tests themselves had applied it.
        let args = ["--take-ownership", "--force-conflicts", "--wait", "--timeout=120s"];
        operator.upgrade(&args, json!({"crds": {"enabled": true}, "logLevel": "debug"}));
        assert_eq!(description(&mut api.get(DEFINITION).await.unwrap()), expected);
        cluster.wait_at_rest(3).await;
        assert_eq!(cluster.pod_uids().await, pods, "no node restarts");

        helm(&["uninstall", "ringfold-operator", "-n", &space.name, "--wait"], "");
        eventually("the operator is gone", Duration::from_secs(60), async || {
            let deployment = space.api::<Deployment>().get_opt("ringfold-operator").await;
            deployment.unwrap().map_or(Ok(()), |_| Err("it is there".to_owned()))
        })
        .await;
        assert!(api.get_opt(DEFINITION).await.unwrap().is_some());
        cluster.get().await;
        assert_eq!(cluster.pod_uids().await, pods);
        assert_eq!(cluster.claims().await, claims);
        work.goes_on().await;

        // Installed again, it takes up what is there.
        let _operator = Operator::install(space).await;
        cluster.scale(4);
        cluster.wait_at_rest(4).await;
        work.stop().await.judge(&cluster, 3).await;
    });
}
