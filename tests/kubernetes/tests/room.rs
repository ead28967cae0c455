//! Nodes whose disks are small. In the lab only: nobody makes and fills disks of another cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use ringfold_tests::ballast::Ballast;
use ringfold_tests_kubernetes::{
    Cluster, Operator, Space, condition, eventually, is_lab, kubectl, kubectl_with, kubernetes,
    leave_out, script,
};
use serde_json::json;

const PARTITIONS: u32 = 8;
const DISK_MIB: &str = "1024";
/// Of which each node has three quarters, and gets another quarter when the fourth one leaves.
const DATA_BYTES: u64 = 128 << 20;

/// A disk of a Kubernetes node, and the folder where that has it.
struct Disk {
    node: &'static str,
    folder: String,
}

impl Disk {
    fn on_node(&self, command: &str) {
        let number = self.node.trim_start_matches("node");
        script(&["node", "exec", number, "sh", "-euc", command, "sh", &self.folder]);
    }

    /// Ten MiB are left above the tenth that a Ringfold node keeps free.
    fn fill(&self) {
        self.on_node(
            r#"set -- "$1" $(df -B1 --output=avail,size "$1" | tail -n 1)
            fallocate -l $(($2 - $3 / 10 - 10 * 1048576)) "$1/filler""#,
        );
    }

    fn clear(&self) {
        self.on_node(r#"rm "$1/filler""#);
    }
}

/// Two for each node, as volumes of a class that is named after the namespace.
fn disks(space: &Space) -> Vec<Disk> {
    let mut disks = Vec::new();
    let mut objects = vec![json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": space.name},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    })];
    for node in ["node1", "node2", "node3"] {
        for half in ["a", "b"] {
            let name = format!("{}-{half}", space.name);
            let number = node.trim_start_matches("node");
            let folder = script(&["node", "disk", number, &name, DISK_MIB]).trim().to_owned();
            let hosts = json!({
                "key": "kubernetes.io/hostname", "operator": "In", "values": [node],
            });
            objects.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("{name}-{node}")},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "storageClassName": space.name, "local": {"path": folder},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [hosts]}]}},
                },
            }));
            disks.push(Disk { node, folder });
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl_with(&["apply", "-f", "-"], &list.to_string());
    disks
}

#[test]
fn a_drain_that_the_other_disks_have_no_room_for_is_refused_with_the_reason_until_there_is_room() {
    if !is_lab() {
        return leave_out("small disks are made on the lab's nodes only");
    }
    kubernetes(async |space| {
        let _operator = Operator::install(space).await;
        let disks = disks(space);
        let spec = json!({
            "partitions": PARTITIONS, "replicas": 4,
            "storage": {"size": "1Gi", "storageClassName": space.name},
        });
        let cluster = Cluster::create(space, "demo", spec).await;
        cluster.wait_at_rest(4).await;
        let data = Ballast::new(26, PARTITIONS, DATA_BYTES, 64 << 10);
        data.append_on(cluster.stores(4)).await;
        disks.iter().for_each(Disk::fill);
        // Nodes report their disks once a second.
        tokio::time::sleep(Duration::from_secs(5)).await;

        cluster.scale(3);
        eventually("it says why it does not shrink", Duration::from_secs(60), async || {
            let now = cluster.get().await;
            let says = condition(&now, "Stalled").is_some_and(|c| {
                c.status == "True"
                    && c.reason == "DrainImpossible"
                    && c.message.contains("demo-3 cannot be drained")
                    && c.message.contains("and has room for")
            });
            says.then_some(()).ok_or_else(|| format!("{:?}", now.status))
        })
        .await;
        let set: StatefulSet = space.api().get("demo").await.unwrap();
        assert_eq!(set.spec.unwrap().replicas, Some(4));
        assert_eq!(cluster.pods().await.len(), 4);

        disks.iter().for_each(Disk::clear);
        let now = cluster.wait_at_rest(3).await;
        assert!(condition(&now, "Stalled").is_none_or(|c| c.status == "False"));
        data.verify_on(cluster.stores(3)).await;
        let volumes = kubectl(&["get", "pv", "-o", "name"]);
        let class = format!("sc/{}", space.name);
        let mut delete = vec!["delete", "--wait=false", &class];
        delete.extend(volumes.lines().filter(|v| v.contains(&space.name)));
        kubectl(&delete);
    });
}
