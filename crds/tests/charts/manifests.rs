//! Every rendered manifest is what its Kubernetes type says, and nothing else.
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use ringfold_crds::{EventStoreCluster, charts::charts};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::helm::{helm, manifests, rendered, run};

/// Values that switch everything on that a chart has.
pub fn all_on(chart: &str) -> Value {
    let tolerations = json!([{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}]);
    let spread =
        json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
    match chart {
        "ringfold-operator" => json!({
            "imagePullSecrets": [{"name": "pull"}],
            "watchNamespaces": ["shop", "bank"],
            "serviceAccount": {"annotations": {"a": "b"}},
            "metrics": {
                "service": {"enabled": true, "annotations": {"a": "b"}},
                "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
            },
            "networkPolicy": {"metricsFrom": [{"matchLabels": {"app": "prometheus"}}]},
            "nodeSelector": {"pool": "system"}, "tolerations": tolerations,
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
            ]}},
            "topologySpreadConstraints": spread, "priorityClassName": "high",
            "podLabels": {"team": "data"}, "podAnnotations": {"a": "b"},
        }),
        _ => json!({
            "name": "shop", "labels": {"team": "shop"}, "annotations": {"a": "b"},
            "replicas": 5, "partitions": 128, "replicationFactor": 3,
            "storage": {"size": "50Gi", "storageClassName": "fast"},
            "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "4Gi"}},
            "image": "registry.example.com/ringfold/node:0.1.0", "imagePullPolicy": "Always",
            "imagePullSecrets": [{"name": "pull"}],
            "config": {"read_threads": "8"},
            "zones": {"mode": "Required"}, "topologySpreadConstraints": spread,
            "nodeSelector": {"pool": "data"}, "tolerations": tolerations, "priorityClassName": "high",
            "rebalance": {"maxMovesPerNode": 4, "bytesPerSecond": "128Mi"},
            "serviceAccount": {"annotations": {"a": "b"}}, "pdb": {"enabled": false},
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "networkPolicy": {"clients": [{"matchLabels": {"app": "shop"}}]},
            "upgrade": {"progressDeadlineSeconds": 900}, "deletionPolicy": "Delete", "paused": true,
            "metrics": {"podMonitor": {"enabled": true, "labels": {"release": "prometheus"}}},
        }),
    }
}

/// What of a manifest is not in what its type read of it.
fn unknown<T: DeserializeOwned + Serialize>(manifest: &Value) -> Vec<String> {
    let typed: T = serde_json::from_value(manifest.clone())
        .unwrap_or_else(|e| panic!("{e}: {}", manifest["metadata"]["name"]));
    let mut missing = Vec::new();
    lost("", manifest, &serde_json::to_value(typed).unwrap(), &mut missing);
    missing
}

fn lost(path: &str, given: &Value, read: &Value, missing: &mut Vec<String>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (name, inner) in given {
                let path = format!("{path}.{name}");
                lost(&path, inner, read.get(name).unwrap_or(&Value::Null), missing);
            }
        }
        (Value::Array(given), Value::Array(read)) if given.len() == read.len() => {
            for (i, (given, read)) in given.iter().zip(read).enumerate() {
                lost(&format!("{path}[{i}]"), given, read, missing);
            }
        }
        // Empty is as good as absent.
        (Value::Object(map), _) if map.is_empty() => {}
        (Value::Array(items), _) if items.is_empty() => {}
        (given, read) if given == read => {}
        _ => missing.push(path.to_owned()),
    }
}

fn unknown_of(manifest: &Value) -> Vec<String> {
    match manifest["kind"].as_str().unwrap() {
        "ClusterRole" => unknown::<ClusterRole>(manifest),
        "ClusterRoleBinding" => unknown::<ClusterRoleBinding>(manifest),
        "CustomResourceDefinition" => unknown::<CustomResourceDefinition>(manifest),
        "Deployment" => unknown::<Deployment>(manifest),
        "EventStoreCluster" => unknown::<EventStoreCluster>(manifest),
        "NetworkPolicy" => unknown::<NetworkPolicy>(manifest),
        "Pod" => unknown::<Pod>(manifest),
        "PodDisruptionBudget" => unknown::<PodDisruptionBudget>(manifest),
        "Role" => unknown::<Role>(manifest),
        "RoleBinding" => unknown::<RoleBinding>(manifest),
        "Service" => unknown::<Service>(manifest),
        "ServiceAccount" => unknown::<ServiceAccount>(manifest),
        // Of the Prometheus operator; k8s-openapi does not have it.
        "PodMonitor" => Vec::new(),
        kind => panic!("no type is known for the kind {kind}"),
    }
}

#[test]
fn each_manifest_is_its_kubernetes_type_without_unknown_fields() {
    let Some(helm) = helm() else { return };
    for chart in ["ringfold-operator", "ringfold-cluster"] {
        for values in [json!({}), all_on(chart)] {
            let manifests = manifests(helm, chart, &values);
            assert!(!manifests.is_empty());
            for manifest in &manifests {
                let name = &manifest["metadata"]["name"];
                assert_eq!(unknown_of(manifest), Vec::<String>::new(), "{name}");
            }
        }
    }
    let typo = json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "imagee": "b"}]}});
    assert_eq!(unknown_of(&typo), [".spec.containers[0].imagee"], "a typo is found");
}

#[test]
fn helm_lint_has_nothing_to_say() {
    let Some(helm) = helm() else { return };
    for chart in ["ringfold-operator", "ringfold-cluster"] {
        for values in [json!({}), all_on(chart)] {
            let said = run(helm, &["lint", "--strict"], chart, &values);
            assert!(said.is_ok(), "{chart}: {said:?}");
        }
    }
}

/// With one key too many at each level that is the chart's own.
#[test]
fn an_unknown_value_is_refused_at_every_level() {
    let Some(helm) = helm() else { return };
    for chart in charts().unwrap() {
        let mut places = vec![json!({"typo": 1})];
        objects("", &chart.schema, &mut places);
        assert!(places.len() > 5, "{places:?}");
        for values in places {
            let said = rendered(helm, chart.name, &values).expect_err(&values.to_string());
            assert!(said.contains("typo"), "{values}: {said}");
        }
    }
}

/// Values with a misspelt key in each object under `schema`.
fn objects(path: &str, schema: &Value, places: &mut Vec<Value>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if !field["properties"].is_object() || field["additionalProperties"] != json!(false) {
            continue;
        }
        let path = format!("{path}/{name}");
        let inner = path.rsplit('/').filter(|n| !n.is_empty());
        places.push(inner.fold(json!({"typo": 1}), |value, name| json!({name: value})));
        objects(&path, field, places);
    }
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    let Some(helm) = helm() else { return };
    let refused = [
        ("ringfold-operator", json!({"replicas": 0}), "replicas"),
        ("ringfold-operator", json!({"image": {"digest": "sha256:1"}}), "digest"),
        ("ringfold-operator", json!({"watchNamespaces": ["Shop"]}), "watchNamespaces"),
        ("ringfold-operator", json!({"watchNamespaces": ["a", "a"]}), "watchNamespaces"),
        ("ringfold-operator", json!({"watchNamespaces": "shop"}), "watchNamespaces"),
        ("ringfold-operator", json!({"imagePullPolicy": "Sometimes"}), "imagePullPolicy"),
        ("ringfold-cluster", json!({"replicas": 100}), "replicas"),
        ("ringfold-cluster", json!({"replicas": "3"}), "replicas"),
        ("ringfold-cluster", json!({"deletionPolicy": "Keep"}), "deletionPolicy"),
        ("ringfold-cluster", json!({"name": "1shop"}), "name"),
        ("ringfold-cluster", json!({"config": {"read_threads": 8}}), "config"),
    ];
    for (chart, values, field) in refused {
        let said = rendered(helm, chart, &values).expect_err(&values.to_string());
        assert!(said.contains(field), "{values}: {said}");
    }
}

/// A parent chart passes what it has for all charts, and may switch this one on and off.
#[test]
fn a_parent_chart_may_pass_its_own_globals_and_a_condition() {
    let Some(helm) = helm() else { return };
    for chart in ["ringfold-operator", "ringfold-cluster"] {
        let values = json!({"global": {"storageClass": "fast"}, "enabled": true});
        assert!(rendered(helm, chart, &values).is_ok());
    }
}

#[test]
fn charts_have_the_version_of_the_workspace() {
    for chart in ["ringfold-operator", "ringfold-cluster"] {
        let path = crate::helm::root().join("charts").join(chart).join("Chart.yaml");
        let read: Value = serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read["version"], env!("CARGO_PKG_VERSION"), "{chart}/Chart.yaml: version");
        assert_eq!(read["appVersion"], env!("CARGO_PKG_VERSION"), "{chart}/Chart.yaml: appVersion");
    }
}
