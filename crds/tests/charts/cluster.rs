//! The chart `ringfold-cluster`.
use ringfold_crds::EventStoreCluster;
use serde_json::{Value, json};

use crate::{
    helm::{helm, manifests, of_kind, rendered},
    manifests::all_on,
    operator::{assert_restricted, images},
};

const CHART: &str = "ringfold-cluster";

fn cluster(values: Value) -> Option<Value> {
    let manifests = manifests(helm()?, CHART, &values);
    let clusters = of_kind(&manifests, "EventStoreCluster");
    assert_eq!(clusters.len(), 1);
    Some(clusters[0].clone())
}

fn typed(resource: &Value) -> EventStoreCluster {
    serde_json::from_value(resource.clone()).unwrap()
}

#[test]
fn the_default_values_are_the_resources_own_defaults() {
    let Some(mut given) = cluster(json!({})) else { return };
    assert_eq!(given["metadata"]["name"], "test");
    let said = typed(&given).spec;
    given["spec"] = json!({});
    assert_eq!(said, typed(&given).spec);
}

/// What an autoscaler or `kubectl scale` said must not be taken back by an upgrade of the release.
#[test]
fn the_number_of_nodes_is_left_out_unless_it_is_said() {
    let Some(default) = cluster(json!({})) else { return };
    assert_eq!(default["spec"].get("replicas"), None);
    let null = cluster(json!({"replicas": null})).unwrap();
    assert_eq!(null["spec"].get("replicas"), None);
    assert_eq!(cluster(json!({"replicas": 5})).unwrap()["spec"]["replicas"], 5);
}

#[test]
fn each_value_reaches_the_resource_as_it_was_said() {
    let Some(given) = cluster(all_on(CHART)) else { return };
    let mut expected = all_on(CHART);
    let chart_only = ["name", "labels", "annotations", "metrics"];
    chart_only.iter().for_each(|name| drop(expected.as_object_mut().unwrap().remove(*name)));
    expected["resources"]["requests"]["cpu"] = json!("2");
    for (field, value) in expected.as_object().unwrap() {
        for (inner, said) in value.as_object().into_iter().flatten() {
            assert_eq!(&given["spec"][field][inner], said, "{field}.{inner}");
        }
        if !value.is_object() {
            assert_eq!(&given["spec"][field], value, "{field}");
        }
    }
    assert_eq!(given["metadata"]["name"], "shop");
    assert_eq!(given["metadata"]["labels"]["team"], "shop");
    assert_eq!(given["metadata"]["annotations"], json!({"a": "b"}));
    // false is said, and not empty.
    let off = cluster(json!({"networkPolicy": {"enabled": false}})).unwrap();
    assert_eq!(off["spec"]["networkPolicy"]["enabled"], false);
}

#[test]
fn only_the_spec_is_passed_on() {
    let Some(given) = cluster(json!({"global": {"imageRegistry": "mirror", "other": 1}})) else {
        return;
    };
    for name in ringfold_crds::charts::NOT_SPEC {
        assert_eq!(given["spec"].get(*name), None, "{name}");
    }
}

#[test]
fn a_release_whose_name_no_cluster_may_have_is_refused() {
    let Some(helm) = helm() else { return };
    let long = "a".repeat(41);
    let said = crate::helm::run(helm, &["template", &long], CHART, &json!({})).unwrap_err();
    assert!(said.contains("set `name`"), "{said}");
    assert!(rendered(helm, CHART, &json!({"name": "a"})).is_ok());
}

#[test]
fn the_test_asks_the_cluster_with_the_command_line() {
    let Some(helm) = helm() else { return };
    let all = manifests(helm, CHART, &all_on(CHART));
    let pod = of_kind(&all, "Pod")[0];
    assert_restricted(&pod["spec"]);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["status"]));
    assert_eq!(container["env"][0]["value"], "https://shop.system.svc:2600");
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/tls");
    assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "shop-client-tls");
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    let clear = manifests(helm, CHART, &json!({"tls": {"mode": "Disabled"}}));
    let pod = &of_kind(&clear, "Pod")[0]["spec"];
    let url = pod["containers"][0]["env"][0]["value"].as_str().unwrap();
    assert!(url.starts_with("http://") && pod.get("volumes").is_none(), "{pod}");
    let off = manifests(helm, CHART, &json!({"tests": {"enabled": false}}));
    assert_eq!(off.len(), 1);

    let digest = format!("sha256:{}", "a".repeat(64));
    let values =
        json!({"tests": {"image": {"registry": "own", "repository": "x", "digest": digest}}});
    assert_eq!(images(&manifests(helm, CHART, &values)), [format!("own/x@{digest}")]);
    let values = json!({"global": {"imageRegistry": "mirror"}});
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        images(&manifests(helm, CHART, &values)),
        [format!("mirror/ringfold-cli:{version}")]
    );
}

#[test]
fn the_pods_of_the_cluster_are_monitored_if_asked() {
    let Some(helm) = helm() else { return };
    let all = manifests(helm, CHART, &all_on(CHART));
    let monitor = of_kind(&all, "PodMonitor")[0];
    let labels =
        json!({"app.kubernetes.io/name": "ringfold", "app.kubernetes.io/instance": "shop"});
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "http");
    assert!(of_kind(&manifests(helm, CHART, &json!({})), "PodMonitor").is_empty());
}
