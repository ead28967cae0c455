//! Specs that break each validation rule, and the nearest that do not: the unit tests judge them with
//! kube's evaluation, the tests on Kubernetes (feature `cases`) with the API server's.
use serde_json::{Value, json};

/// Names of clusters that are refused...
pub const BAD_NAMES: [&str; 5] =
    ["Demo", "1demo", "demo-", "de.mo", "a2345678901234567890123456789012345678901"];
/// ... and the longest and shortest that are not.
pub const GOOD_NAMES: [&str; 3] = ["a", "demo-2", "a234567890123456789012345678901234567890"];

/// A rule's message begins so; the first spec breaks it and only it; the second is the nearest that
/// does not. `old`: what is updated.
#[derive(Clone, Debug)]
pub struct Case {
    pub message: &'static str,
    pub old: Option<Value>,
    pub bad: Value,
    pub good: Value,
}

fn case(message: &'static str, bad: Value, good: Value) -> Case {
    Case { message, old: None, bad, good }
}

fn update(message: &'static str, old: Value, bad: Value, good: Value) -> Case {
    Case { message, old: Some(old), bad, good }
}

/// At least one for each rule over the spec.
pub fn cases() -> Vec<Case> {
    let class = |name: &str| json!({"storage": {"storageClassName": name}});
    vec![
        case("replicas must not be below", json!({"replicas": 2}), json!({"replicas": 3})),
        case(
            "replicas must not be below",
            json!({"replicas": 4, "replicationFactor": 5}),
            json!({"replicas": 5, "replicationFactor": 5}),
        ),
        case(
            "replicas must not be above partitions",
            json!({"replicas": 5, "partitions": 4}),
            json!({"replicas": 4, "partitions": 4}),
        ),
        update(
            "replicas cannot change while",
            json!({"replicas": 3, "hibernated": true}),
            json!({"replicas": 5, "hibernated": true}),
            json!({"replicas": 5, "hibernated": false}),
        ),
        update(
            "replicas cannot change while",
            json!({"replicas": 3}),
            json!({"replicas": 5, "hibernated": true}),
            json!({"replicas": 3, "hibernated": true}),
        ),
        case(
            "partitions must be a power of two",
            json!({"partitions": 48}),
            json!({"partitions": 32}),
        ),
        update(
            "partitions cannot be changed",
            json!({"partitions": 32}),
            json!({"partitions": 64}),
            json!({"partitions": 32}),
        ),
        case(
            "replicationFactor must be 1, 3 or 5",
            json!({"replicationFactor": 2}),
            json!({"replicationFactor": 1}),
        ),
        update(
            "tls.mode cannot be changed",
            json!({"tls": {"mode": "Operator"}}),
            json!({"tls": {"mode": "Disabled"}}),
            json!({"tls": {"mode": "Operator"}}),
        ),
        update(
            "replicationFactor cannot be changed",
            json!({"replicationFactor": 3}),
            json!({"replicationFactor": 1}),
            json!({"replicationFactor": 3}),
        ),
        case(
            "size must be a positive amount",
            json!({"storage": {"size": "ten"}}),
            json!({"storage": {"size": "10G"}}),
        ),
        case(
            "size must be a positive amount",
            json!({"storage": {"size": "0Gi"}}),
            json!({"storage": {"size": "1"}}),
        ),
        update(
            "size must not become smaller",
            json!({"storage": {"size": "10Gi"}}),
            json!({"storage": {"size": "10G"}}),
            json!({"storage": {"size": "10240Mi"}}),
        ),
        update("storageClassName cannot be changed", class("a"), class("b"), class("a")),
        update("storageClassName cannot be changed", json!({}), class("b"), json!({})),
        update("storageClassName cannot be changed", class("a"), json!({}), class("a")),
        case(
            "bytesPerSecond must be",
            json!({"rebalance": {"bytesPerSecond": "1000"}}),
            json!({"rebalance": {"bytesPerSecond": "1Mi"}}),
        ),
        case(
            "bytesPerSecond must be",
            json!({"rebalance": {"bytesPerSecond": "fast"}}),
            json!({"rebalance": {"bytesPerSecond": "1G"}}),
        ),
        case(
            "config must not hold",
            json!({"config": {"data_dir": "/"}}),
            json!({"config": {"read_threads": "8"}}),
        ),
        case(
            "serviceAccount.annotations are for",
            json!({"serviceAccount": {"name": "a", "annotations": {"b": "c"}}}),
            json!({"serviceAccount": {"annotations": {"b": "c"}}}),
        ),
    ]
}
