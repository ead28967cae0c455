//! The quick start, as it is written: the operator for all namespaces, and the definition by the chart.
//! Cargo runs it last, when no other operator is there; it takes the definition away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::{path::Path, process::Command};

use ringfold_tests::cluster::binary;
use ringfold_tests_kubernetes::{image, is_lab, kubectl};

/// The commands of all blocks, in order.
fn commands(text: &str) -> String {
    let blocks = text.split("```sh\n").skip(1).map(|b| b.split("```").next().unwrap());
    blocks.collect()
}

fn show(args: &[&str]) {
    let output = Command::new("kubectl").args(args).output().unwrap();
    eprintln!("--- kubectl {}\n{}", args.join(" "), String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_quick_start_works_as_it_is_written() {
    if !is_lab() {
        ringfold_tests_kubernetes::leave_out(
            "it would take the definition away from KUBECONFIG's cluster",
        );
        return;
    }
    // Namespaces of tests before may still be on their way out.
    let marked = "--selector=app.kubernetes.io/managed-by=ringfold-tests";
    kubectl(&["delete", "namespace", marked, "--timeout=180s"]);
    kubectl(&["delete", "crd/eventstoreclusters.ringfold.dev", "--ignore-not-found"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/quickstart-kubernetes.md")).unwrap();
    let node = image("node");
    let plugins = tempfile::tempdir().unwrap();
    let plugin = plugins.path().join("kubectl-ringfold");
    std::os::unix::fs::symlink(binary("ringfold", "RINGFOLD"), plugin).unwrap();
    let path = format!("{}:{}", plugins.path().display(), std::env::var("PATH").unwrap());
    let done = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &commands(&text)])
        .env("REGISTRY", node.rsplit_once('/').unwrap().0)
        .env("PATH", path)
        .current_dir(root)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&done.stdout);
    let passed = done.status.success() && printed.contains("Ada");
    if !passed {
        for namespace in ["shop", "ringfold-system"] {
            show(&["get", "esc,sts,pod,pvc,events", "-n", namespace, "-o", "wide"]);
            show(&["get", "esc", "-n", namespace, "-o", "yaml"]);
        }
        show(&["logs", "-n", "ringfold-system", "deploy/ringfold-operator", "--tail=60"]);
        for namespace in ["shop", "ringfold-system"] {
            show(&["delete", "namespace", namespace, "--ignore-not-found"]);
        }
    }
    assert!(passed, "{}:\n{printed}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
}
