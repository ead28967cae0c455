//! The node's image by itself, without an operator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use ringfold_tests_kubernetes::{image, kubectl, kubectl_with, kubernetes};

const MANIFEST: &str = include_str!("../manifests/node.yaml");

#[test]
fn a_node_becomes_ready_under_restricted_pod_security_with_a_read_only_root() {
    kubernetes(async |space| {
        let manifest = MANIFEST.replace("NODE_IMAGE", &image("node"));
        kubectl_with(&["apply", "-n", &space.name, "-f", "-"], &manifest);
        kubectl(&["wait", "pod/node", "--for=condition=Ready", "--timeout=60s", "-n", &space.name]);
    });
}
