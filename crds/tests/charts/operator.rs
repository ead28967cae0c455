//! The chart `ringfold-operator`.
use serde_json::{Value, json};

use crate::{
    helm::{helm, manifests, of_kind, rendered, root, walk},
    manifests::all_on,
};

const CHART: &str = "ringfold-operator";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn operator(values: Value) -> Option<Vec<Value>> {
    Some(manifests(helm()?, CHART, &values))
}

/// Every image that a manifest names, in containers and in what the operator is told.
pub fn images(manifests: &[Value]) -> Vec<String> {
    let mut images = Vec::new();
    for manifest in manifests {
        walk("", manifest, &mut |path, value| {
            let told = value["name"] == "RINGFOLD_OPERATOR_NODE_IMAGE";
            let image = if told { value["value"].as_str() } else { None };
            let in_container = path.ends_with(".image") && !path.contains("openAPIV3Schema");
            let image = image.or(value.as_str().filter(|_| in_container));
            images.extend(image.map(str::to_owned));
        });
    }
    images
}

/// Its text is checked in: what changes in an installation that says nothing is seen in a review.
#[test]
fn the_default_values_render_what_is_checked_in() {
    let Some(helm) = helm() else { return };
    for (chart, values) in
        [(CHART, json!({"crds": {"enabled": false}})), ("ringfold-cluster", json!({}))]
    {
        let text = rendered(helm, chart, &values).unwrap();
        let path = root().join("crds/tests/charts").join(format!("{chart}.golden.yaml"));
        if std::env::var_os("RINGFOLD_WRITE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            golden == text,
            "{chart} renders otherwise: if that is meant, run RINGFOLD_WRITE_DOCS=1 cargo test -p ringfold-crds --test charts\n{text}"
        );
    }
}

#[test]
fn the_definition_stays_when_the_release_goes() {
    let Some(manifests) = operator(json!({})) else { return };
    let crds = of_kind(&manifests, "CustomResourceDefinition");
    assert_eq!(crds.len(), 1);
    assert_eq!(crds[0]["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let definition = serde_json::to_value(ringfold_crds::generate::definition().unwrap()).unwrap();
    assert_eq!(crds[0]["spec"], definition["spec"]);
    let Some(without) = operator(json!({"crds": {"enabled": false}})) else { return };
    assert!(of_kind(&without, "CustomResourceDefinition").is_empty());
    assert_eq!(without.len() + 1, manifests.len());
}

#[test]
fn every_image_follows_registry_tag_and_digest() {
    let Some(default) = operator(json!({})) else { return };
    let version = env!("CARGO_PKG_VERSION");
    let (operator_image, node) =
        (format!("ringfold-operator:{version}"), format!("ringfold-node:{version}"));
    let mut expected = vec![operator_image.clone(), node.clone(), operator_image.clone(), node];
    let mut found = images(&default);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "the Deployment's and the test's");

    let mirrored = operator(json!({"global": {"imageRegistry": "mirror:5000/"}})).unwrap();
    for image in images(&mirrored) {
        assert!(image.starts_with("mirror:5000/ringfold-"), "{image}");
    }
    let own = json!({
        "global": {"imageRegistry": "mirror"},
        "image": {"registry": "own", "repository": "a/b", "tag": "1", "digest": DIGEST},
        "nodeImage": {"registry": "other", "repository": "c", "tag": "2"},
    });
    for image in images(&operator(own).unwrap()) {
        assert!(image == format!("own/a/b@{DIGEST}") || image == "other/c:2", "{image}");
    }
}

#[test]
fn pods_meet_the_restricted_pod_security_standard() {
    let Some(manifests) = operator(json!({})) else { return };
    let deployment = &of_kind(&manifests, "Deployment")[0]["spec"]["template"]["spec"];
    let test = &of_kind(&manifests, "Pod")[0]["spec"];
    for pod in [deployment, test] {
        assert_restricted(pod);
    }
}

/// What the standard asks for, and a root file system that cannot be written.
pub fn assert_restricted(pod: &Value) {
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_ne!(pod["securityContext"]["runAsUser"], 0);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for forbidden in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
        assert_eq!(pod.get(forbidden), None, "{forbidden}");
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        assert!(volume["secret"].is_object(), "{volume}");
    }
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
        assert_eq!(context.get("privileged"), None);
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
}

#[test]
fn the_nodes_network_policies_let_the_operator_in_whatever_it_is_called() {
    for values in [json!({}), json!({"fullnameOverride": "mine", "podLabels": {"team": "data"}})] {
        let Some(manifests) = operator(values) else { return };
        let deployment = &of_kind(&manifests, "Deployment")[0]["spec"];
        let labels = &deployment["template"]["metadata"]["labels"];
        // See operator/src/build/network_policy.rs.
        assert_eq!(labels["app.kubernetes.io/name"], "ringfold-operator");
        for (name, value) in deployment["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&labels[name], value);
        }
    }
}

#[test]
fn objects_are_called_after_the_release_without_saying_it_twice() {
    let Some(helm) = helm() else { return };
    let long = "a".repeat(53);
    for (release, name) in [
        ("ringfold", "ringfold-operator"),
        ("my-ringfold-operator", "my-ringfold-operator"),
        ("shop", "shop-ringfold-operator"),
        (long.as_str(), long.as_str()),
    ] {
        let args = ["template", release, "--show-only", "templates/deployment.yaml"];
        let text = crate::helm::run(helm, &args, CHART, &json!({})).unwrap();
        let deployment: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(deployment["metadata"]["name"], name);
    }
}

#[test]
fn no_label_of_a_person_takes_the_place_of_one_that_is_selected_by() {
    let values = json!({"podLabels": {"app.kubernetes.io/name": "mine", "team": "data"}});
    let Some(manifests) = operator(values) else { return };
    let labels = &of_kind(&manifests, "Deployment")[0]["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["app.kubernetes.io/name"], "ringfold-operator");
    assert_eq!(labels["team"], "data");
}

#[test]
fn the_network_policy_opens_the_metrics_port_and_the_ways_to_the_api_and_the_nodes() {
    let Some(manifests) = operator(all_on(CHART)) else { return };
    let policy = &of_kind(&manifests, "NetworkPolicy")[0]["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["ingress"].as_array().unwrap().len(), 1);
    let ingress = &policy["ingress"][0];
    assert_eq!(ingress["ports"], json!([{"port": "http", "protocol": "TCP"}]));
    assert_eq!(ingress["from"][0]["podSelector"]["matchLabels"]["app"], "prometheus");
    let ports: Vec<_> = policy["egress"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["ports"][0]["port"].clone())
        .collect();
    assert_eq!(ports, [json!(53), json!(443), json!("client")]);
    let to = &policy["egress"][2]["to"][0];
    assert_eq!(to["podSelector"]["matchLabels"], json!({"app.kubernetes.io/name": "ringfold"}));
    assert_eq!(to["namespaceSelector"]["matchExpressions"][0]["values"], json!(["shop", "bank"]));
    let off = operator(json!({"networkPolicy": {"enabled": false}})).unwrap();
    assert!(of_kind(&off, "NetworkPolicy").is_empty());
}

#[test]
fn one_operator_has_no_disruption_budget_and_metrics_are_off_by_default() {
    let Some(default) = operator(json!({})) else { return };
    assert_eq!(of_kind(&default, "Deployment")[0]["spec"]["replicas"], 2);
    assert_eq!(of_kind(&default, "PodDisruptionBudget")[0]["spec"]["maxUnavailable"], 1);
    for kind in ["Service", "PodMonitor"] {
        assert!(of_kind(&default, kind).is_empty(), "{kind}");
    }
    let one = operator(json!({"replicas": 1})).unwrap();
    assert!(of_kind(&one, "PodDisruptionBudget").is_empty());
    let all = operator(all_on(CHART)).unwrap();
    let port = &of_kind(&all, "Service")[0]["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&json!(2603), &json!("http")));
    assert_eq!(of_kind(&all, "PodMonitor")[0]["spec"]["podMetricsEndpoints"][0]["port"], "http");
}

#[test]
fn where_pods_run_and_what_they_pull_with_reaches_every_pod() {
    let Some(manifests) = operator(all_on(CHART)) else { return };
    let deployment = &of_kind(&manifests, "Deployment")[0]["spec"]["template"]["spec"];
    for pod in [deployment, &of_kind(&manifests, "Pod")[0]["spec"]] {
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "pull"}]));
        assert_eq!(pod["nodeSelector"], json!({"pool": "system"}));
        assert_eq!(pod["tolerations"][0]["key"], "dedicated");
    }
    assert_eq!(deployment["priorityClassName"], "high");
    assert!(deployment["affinity"]["podAntiAffinity"].is_object());
    assert_eq!(deployment["topologySpreadConstraints"][0]["topologyKey"], "zone");
}

#[test]
fn the_test_of_the_release_reads_what_the_operator_reads() {
    let Some(manifests) = operator(all_on(CHART)) else { return };
    let deployment = &of_kind(&manifests, "Deployment")[0]["spec"]["template"]["spec"];
    let pod = of_kind(&manifests, "Pod")[0];
    assert_eq!(pod["metadata"]["annotations"]["helm.sh/hook"], "test");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["--check"]));
    assert_eq!(container["env"], deployment["containers"][0]["env"]);
    assert_eq!(pod["spec"]["serviceAccountName"], deployment["serviceAccountName"]);
    // It is none of the operators, for Services, budgets and policies.
    assert_ne!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "ringfold-operator");
}
