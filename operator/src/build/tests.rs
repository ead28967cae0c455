use serde_json::{Value, json};

use super::*;
use crate::validate::validate;

fn cluster(spec: Value) -> Cluster {
    let resource = json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u"}, "spec": spec,
    });
    validate(&serde_json::from_value(resource).unwrap()).unwrap()
}

fn sizing(replicas: u32) -> Sizing {
    Sizing { replicas, storage_size: "10Gi".into(), expected: None }
}

fn built(spec: Value, replicas: u32) -> Objects {
    objects(&cluster(spec), "ringfold/node:1", &sizing(replicas))
}

fn template(objects: &Objects) -> Value {
    serde_json::to_value(&objects.stateful_set.spec.as_ref().unwrap().template).unwrap()
}

/// The text of the template of the default spec. If it changes, every cluster restarts all its nodes
/// when the operator is upgraded: that has to be meant. Written with RINGFOLD_WRITE_DOCS=1.
#[test]
fn an_upgrade_of_the_operator_restarts_no_pod() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/build/template.golden.json");
    let text = serde_json::to_string_pretty(&template(&built(json!({}), 3))).unwrap() + "\n";
    if std::env::var_os("RINGFOLD_WRITE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        golden == text,
        "the pod template changed: if every cluster shall restart its nodes for it, run RINGFOLD_WRITE_DOCS=1 cargo test -p ringfold-operator build\n{text}"
    );
}

#[test]
fn a_scale_restarts_no_pod_and_a_setting_restarts_all() {
    let three = built(json!({}), 3);
    assert_eq!(template(&three), template(&built(json!({"replicas": 7}), 7)));
    assert_ne!(template(&three), template(&built(json!({"config": {"read_threads": "8"}}), 3)));
    let more = json!({"resources": {"limits": {"memory": "2Gi"}}});
    assert_ne!(template(&three), template(&built(more, 3)));
}

#[test]
fn pods_meet_the_restricted_pod_security_standard() {
    let template = template(&built(json!({}), 3));
    let pod = &template["spec"]["securityContext"];
    assert_eq!(pod["runAsNonRoot"], true);
    assert_eq!(pod["seccompProfile"]["type"], "RuntimeDefault");
    let container = &template["spec"]["containers"][0]["securityContext"];
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(template["spec"]["automountServiceAccountToken"], false);
}

#[test]
fn the_stateful_set_leaves_upgrades_and_volumes_to_the_operator() {
    let objects = built(json!({}), 3);
    let set = serde_json::to_value(&objects.stateful_set).unwrap();
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete");
    assert_eq!(set["spec"]["podManagementPolicy"], "Parallel");
    let retention = &set["spec"]["persistentVolumeClaimRetentionPolicy"];
    assert_eq!(retention, &json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
    let deleting = serde_json::to_value(built(json!({"deletionPolicy": "Delete"}), 3).stateful_set);
    let retention = &deleting.unwrap()["spec"]["persistentVolumeClaimRetentionPolicy"];
    assert_eq!(retention["whenDeleted"], "Delete");
}

#[test]
fn volumes_and_secrets_outlive_the_resource_unless_it_asks_for_their_deletion() {
    let owned = |policy: &str| {
        let cluster = cluster(json!({"deletionPolicy": policy}));
        let secrets = [identity(&cluster, "id"), gossip(&cluster, "key")];
        secrets.map(|s| s.metadata.owner_references.is_some())
    };
    assert_eq!(owned("Retain"), [false, false]);
    assert_eq!(owned("Delete"), [true, true]);
}

#[test]
fn caches_follow_the_memory_limit_and_config_has_the_last_word() {
    let file = |spec| -> Value {
        let data = built(spec, 3).config_map.data.unwrap();
        serde_json::from_str(&data[config_map::FILE]).unwrap()
    };
    assert_eq!(file(json!({}))["cache_bytes"], "256MiB");
    let four = json!({"resources": {"limits": {"memory": "4Gi"}}});
    assert_eq!(file(four)["memtable_bytes"], "1024MiB");
    assert_eq!(file(json!({"config": {"cache_bytes": "1GiB"}}))["cache_bytes"], "1GiB");
    assert_eq!(
        file(json!({"rebalance": {"bytesPerSecond": "1Gi"}}))["move_bytes_per_s"],
        "1024MiB"
    );
}

#[test]
fn what_is_switched_off_is_not_built() {
    let off = built(
        json!({
            "pdb": {"enabled": false}, "networkPolicy": {"enabled": false},
            "serviceAccount": {"name": "mine"},
        }),
        3,
    );
    assert!(off.disruption_budget.is_none());
    assert!(off.network_policy.is_none());
    assert!(off.service_account.is_none());
    assert_eq!(template(&off)["spec"]["serviceAccountName"], "mine");
    let single = json!({"replicas": 1, "replicationFactor": 1});
    assert!(built(single, 1).disruption_budget.is_none());
}

#[test]
fn pods_spread_over_zones_as_firmly_as_asked() {
    let spread = |mode: &str| {
        let template = template(&built(json!({"zones": {"mode": mode}}), 3));
        let constraints = template["spec"]["topologySpreadConstraints"].as_array().unwrap().clone();
        let zone = constraints.iter().find(|c| c["topologyKey"] == "topology.kubernetes.io/zone");
        zone.map(|z| z["whenUnsatisfiable"].as_str().unwrap().to_owned())
    };
    assert_eq!(spread("Preferred").as_deref(), Some("ScheduleAnyway"));
    assert_eq!(spread("Required").as_deref(), Some("DoNotSchedule"));
    assert_eq!(spread("Disabled"), None);
}

#[test]
fn clients_that_are_named_come_in_and_so_does_the_operator() {
    let policy = |clients: Value| {
        let objects = built(json!({"networkPolicy": {"clients": clients}}), 3);
        serde_json::to_value(objects.network_policy).unwrap()["spec"]["ingress"][1]["from"].clone()
    };
    assert_eq!(policy(json!([])), Value::Null, "everyone");
    let named = policy(json!([{"matchLabels": {"app": "shop"}}]));
    assert_eq!(named.as_array().unwrap().len(), 2);
    assert_eq!(named[0]["podSelector"]["matchLabels"]["app"], "shop");
}

#[test]
fn a_running_cluster_without_an_image_stays_on_its_image() {
    let (asks, silent) = (cluster(json!({"image": "mine:2"})), cluster(json!({})));
    assert_eq!(image(&asks, Some("old:1"), "release:3"), "mine:2");
    assert_eq!(image(&silent, Some("old:1"), "release:3"), "old:1");
    assert_eq!(image(&silent, None, "release:3"), "release:3");
}

#[test]
fn with_tls_pods_mount_their_certificates_and_say_https() {
    let with = built(json!({"tls": {"mode": "Operator"}}), 3);
    let template = template(&with);
    let volumes = template["spec"]["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|v| v["secret"]["secretName"] == "demo-node-tls"));
    let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|e| e["name"] == name).unwrap()["value"].clone();
    assert_eq!(value("RINGFOLD_NODE_TLS_CA_FILE"), "/etc/ringfold/tls/ca.crt");
    assert!(value("RINGFOLD_NODE_CLIENT_URL").as_str().unwrap().starts_with("https://"));
    let port = &with.client_service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0];
    assert_eq!(port.app_protocol, None);
}
