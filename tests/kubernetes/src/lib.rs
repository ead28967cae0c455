//! What tests on a real Kubernetes share. `make test-kubernetes` runs them: it brings up the cluster,
//! puts `kubectl` and `helm` into the PATH, and says where it is by KUBECONFIG.
//!
//! | variable | |
//! |---|---|
//! | `RINGFOLD_TEST_CLUSTER` | `lab`: the cluster of `tests/kubernetes/cluster`, whose network the tests run in; `current`: KUBECONFIG's |
//! | `RINGFOLD_TEST_KEEP` | namespaces of tests stay |
//! | `RINGFOLD_TEST_IMAGES` | what images are called before `-node`, `-operator` and `-cli`, and their tag: `localhost/ringfold:0.1.0` |
//!
//! Each test has a namespace of its own under restricted Pod Security. When it fails, what is in the
//! namespace is printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // support for tests: a panic is a failed test

mod cluster;
mod dump;
mod operator;
mod process;
mod space;
mod tools;
mod work;

pub use cluster::{Cluster, condition, pem};
pub use operator::Operator;
pub use process::MortalOperator;
pub use space::{Space, kubernetes};
pub use tools::{
    HungApiServer, eventually, helm, image, kubectl, kubectl_fails, kubectl_with, power, script,
};
pub use work::Work;

/// Says that a test is left out, past the test runner, which keeps to itself what passing tests print.
pub fn leave_out(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {why}");
}

/// Whether the tests are in the network of `tests/kubernetes/cluster`, and may take a node's power.
pub fn is_lab() -> bool {
    std::env::var("RINGFOLD_TEST_CLUSTER").is_ok_and(|c| c == "lab")
}
