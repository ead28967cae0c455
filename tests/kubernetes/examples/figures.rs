//! The figures of docs/performance.md on Kubernetes: from `kubectl apply` to Ready, from `kubectl scale`
//! to at rest, and what clients see meanwhile. `make bench-kubernetes` runs it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)] // a measurement that fails says so and ends

use std::time::{Duration, Instant};

use ringfold_bench::{
    AppendArgs, ImportArgs, LoadArgs, LookupArgs, Report, append, import, load::setup_lookup,
    lookup,
};
use ringfold_client::{Client, ClientConfig, Consistency};
use ringfold_crds::names::{CLIENT_PORT, host};
use ringfold_tests_kubernetes::{
    Cluster, Operator, Space, image, kubectl, kubectl_with, kubernetes,
};
use serde_json::json;
use tokio::sync::watch;

const PARTITIONS: u32 = 64;
const MIB: u32 = 1_024;
/// Appends and lookups, each.
const IN_FLIGHT: u32 = 4;
const STEADY_S: f64 = 30.0;
/// Longer than any change of size takes.
const CHANGE_S: f64 = 600.0;

fn main() {
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let (ready_s, cluster) = apply(space).await;
        println!("from kubectl apply to Ready, 3 nodes, {PARTITIONS} partitions: {ready_s:.1} s");

        let mut config = ClientConfig::new((0..3).map(|n| {
            format!("https://{}:{CLIENT_PORT}", host("demo", &space.name, &format!("demo-{n}")))
        }));
        config.tls = cluster.tls();
        config.in_flight_bytes_max = 64 << 20;
        let client = Client::connect(config).await.expect("a node answers");
        fill(&client).await;
        cluster.wait_at_rest(3).await;
        println!("steady");
        load(&client, LoadArgs::new(IN_FLIGHT, STEADY_S, &[])).await;
        for replicas in [5, 3] {
            let (end, told) = watch::channel(false);
            let args = LoadArgs { end: Some(told), ..LoadArgs::new(IN_FLIGHT, CHANGE_S, &[]) };
            let change = async {
                let since = Instant::now();
                cluster.scale(replicas);
                cluster.wait_at_rest(replicas as i32).await;
                end.send_replace(true);
                since.elapsed().as_secs_f64()
            };
            println!("kubectl scale --replicas={replicas}");
            let (rest_s, ()) = tokio::join!(change, load(&client, args));
            println!("at rest with {replicas} nodes after {rest_s:.1} s");
        }
        println!("steady");
        load(&client, LoadArgs::new(IN_FLIGHT, STEADY_S, &[])).await;
    });
}

/// As a person does. Gives the seconds until the resource is Ready.
async fn apply(space: &Space) -> (f64, Cluster<'_>) {
    let resource = json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
        "metadata": {"name": "demo"},
        "spec": {
            "image": image("node"), "replicas": 3, "partitions": PARTITIONS,
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
            "storage": {"size": "4Gi"},
        },
    });
    let since = Instant::now();
    kubectl_with(&["apply", "-n", &space.name, "-f", "-"], &resource.to_string());
    kubectl(&["wait", "esc/demo", "-n", &space.name, "--for=condition=Ready", "--timeout=180s"]);
    let ready_s = since.elapsed().as_secs_f64();
    let cluster = Cluster::existing(space, "demo");
    cluster.wait_at_rest(3).await;
    (ready_s, cluster)
}

async fn fill(client: &Client) {
    let args = ImportArgs {
        events: MIB << 10,
        streams: 10_000,
        events_per_append: 16,
        bytes: 1_000,
        in_flight: 200,
        run: 1,
    };
    let report = import(client, &[], &args).await;
    assert_eq!(report.errors, 0, "{:?}", report.first_error);
    setup_lookup(client, &lookups()).await.expect("streams to look up");
    // Flushes and compactions of what was just written.
    tokio::time::sleep(Duration::from_secs(20)).await;
}

fn lookups() -> LookupArgs {
    LookupArgs {
        streams: 10_000,
        bytes: 300,
        consistency: Consistency::Linearizable,
        no_setup: true,
    }
}

/// Errors are among what is measured.
async fn load(client: &Client, args: LoadArgs) {
    let appends = AppendArgs { streams: 1_000, bytes: 256 };
    let lookups = lookups();
    let (appended, looked_up) =
        tokio::join!(append(client, &args, &appends), lookup(client, &args, &lookups));
    let say = |r: &Report| println!("{r}  {:>12} errors", r.errors);
    say(&appended);
    say(&looked_up.expect("streams to look up"));
}
