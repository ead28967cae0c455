//! The StatefulSet. Nothing in its pod template depends on the number of replicas or on the operator's
//! version: neither a scale nor an upgrade of the operator restarts a pod.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EnvVar,
            EnvVarSource, HTTPGetAction, ObjectFieldSelector, PersistentVolumeClaim,
            PersistentVolumeClaimSpec, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
            SeccompProfile, SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume,
            VolumeMount, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString,
    },
};
use ringfold_crds::{DeletionPolicy, ImagePullPolicy, ZoneMode};

use super::{
    CLIENT_PORT, GOSSIP_PORT, HTTP_PORT, PEER_PORT, client_url, config_map, host, meta, selector,
    selector_labels, service_account,
};
use crate::{names, plane::Sizing, validate::Cluster, world::pod_name};

/// A node that is stopped serves on while the cluster needs it, up to [`STOP_WAIT_MS`]; handing over
/// its leaderships and stopping take it seconds, with a slow disk longer.
const GRACE_SECONDS: i64 = 120;
const STOP_WAIT_MS: u64 = 90_000;
const USER: i64 = 65_532;
const CONFIG_DIR: &str = "/etc/ringfold/config";
const GOSSIP_DIR: &str = "/etc/ringfold/gossip";

pub fn build(cluster: &Cluster, image: &str, sizing: &Sizing, config: &ConfigMap) -> StatefulSet {
    let mut metadata = meta(cluster, cluster.name.clone());
    if let Some((uid, resource_version)) = &sizing.expected {
        (metadata.uid, metadata.resource_version) =
            (Some(uid.clone()), Some(resource_version.clone()));
    }
    let when_deleted = match cluster.deletion_policy {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(i32::try_from(sizing.replicas).unwrap_or(i32::MAX)),
            service_name: Some(names::nodes(&cluster.name)),
            selector: selector(cluster),
            // A pod that does not start holds up no other, and a new template waits for the operator.
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".into()),
                ..StatefulSetUpdateStrategy::default()
            }),
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(when_deleted.into()),
                    when_scaled: Some("Retain".into()),
                },
            ),
            revision_history_limit: Some(3),
            volume_claim_templates: Some(vec![claim(cluster, sizing)]),
            template: template(cluster, image, config),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim(cluster: &Cluster, sizing: &Sizing) -> PersistentVolumeClaim {
    let storage = ("storage".to_owned(), Quantity(sizing.storage_size.clone()));
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("data".into()),
            labels: Some(selector_labels(&cluster.name)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: cluster.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([storage].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn template(cluster: &Cluster, image: &str, config: &ConfigMap) -> PodTemplateSpec {
    let hash = (names::CONFIG_HASH.to_owned(), config_map::hash(config));
    let pull_secrets = &cluster.image_pull_secrets;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(selector_labels(&cluster.name)),
            annotations: Some([hash].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(service_account::name(cluster)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            image_pull_secrets: (!pull_secrets.is_empty()).then(|| pull_secrets.clone()),
            node_selector: some_map(&cluster.node_selector),
            tolerations: (!cluster.tolerations.is_empty()).then(|| cluster.tolerations.clone()),
            priority_class_name: cluster.priority_class_name.clone(),
            topology_spread_constraints: spread(cluster),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".into()),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(cluster, image)],
            volumes: Some(vec![
                Volume {
                    name: "config".into(),
                    config_map: Some(ConfigMapVolumeSource {
                        name: names::config(&cluster.name),
                        ..ConfigMapVolumeSource::default()
                    }),
                    ..Volume::default()
                },
                Volume {
                    name: "gossip".into(),
                    secret: Some(SecretVolumeSource {
                        secret_name: Some(names::gossip(&cluster.name)),
                        ..SecretVolumeSource::default()
                    }),
                    ..Volume::default()
                },
            ]),
            ..PodSpec::default()
        }),
    }
}

fn some_map(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}

fn spread(cluster: &Cluster) -> Option<Vec<TopologySpreadConstraint>> {
    let over = |key: &str, firmly: bool| TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.into(),
        when_unsatisfiable: if firmly { "DoNotSchedule" } else { "ScheduleAnyway" }.into(),
        label_selector: Some(selector(cluster)),
        ..TopologySpreadConstraint::default()
    };
    if !cluster.topology_spread_constraints.is_empty() {
        let mut asked = cluster.topology_spread_constraints.clone();
        for constraint in &mut asked {
            constraint.label_selector.get_or_insert_with(|| selector(cluster));
        }
        return Some(asked);
    }
    let mut spread = vec![over("kubernetes.io/hostname", false)];
    match cluster.zones.mode {
        ZoneMode::Disabled => {}
        mode => spread.push(over(&cluster.zones.topology_key, mode == ZoneMode::Required)),
    }
    Some(spread)
}

fn container(cluster: &Cluster, image: &str) -> Container {
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let port = |name: &str, number: i32, protocol: &str| ContainerPort {
        name: Some(name.into()),
        container_port: number,
        protocol: Some(protocol.into()),
        ..ContainerPort::default()
    };
    let pull = match cluster.image_pull_policy {
        ImagePullPolicy::Always => "Always",
        ImagePullPolicy::IfNotPresent => "IfNotPresent",
        ImagePullPolicy::Never => "Never",
    };
    let probe = |path: &str, period_seconds: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("http".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    Container {
        name: "node".into(),
        image: Some(image.into()),
        image_pull_policy: Some(pull.into()),
        env: Some(env(cluster)),
        ports: Some(vec![
            port("client", CLIENT_PORT, "TCP"),
            port("peer", PEER_PORT, "TCP"),
            port("gossip", GOSSIP_PORT, "UDP"),
            port("http", HTTP_PORT, "TCP"),
        ]),
        resources: Some(cluster.resources.clone()),
        // It answers from the first moment on, while a log of many GiB is read as well, and without a
        // quorum: neither would be mended by a restart.
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".into()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            mount("data", "/data", false),
            mount("config", CONFIG_DIR, true),
            mount("gossip", GOSSIP_DIR, true),
        ]),
        ..Container::default()
    }
}

/// What differs between pods, and what the settings file must not change.
fn env(cluster: &Cluster) -> Vec<EnvVar> {
    let value = |name: &str, value: String| EnvVar {
        name: name.into(),
        value: Some(value),
        ..EnvVar::default()
    };
    let field = |name: &str, path: String| EnvVar {
        name: name.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path, ..Default::default() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let (name, namespace) = (cluster.name.as_str(), cluster.namespace.as_str());
    let here = host(name, namespace, "$(RINGFOLD_NODE_NAME)");
    // Any three that may exist: a new node asks them to join. More would change with the size.
    let seeds: Vec<_> = (0..3)
        .map(|o| format!("{}:{PEER_PORT}", host(name, namespace, &pod_name(name, o))))
        .collect();
    let mut env = vec![
        field("RINGFOLD_NODE_NAME", "metadata.name".into()),
        value("RINGFOLD_NODE_CONFIG", format!("{CONFIG_DIR}/{}", config_map::FILE)),
        value("RINGFOLD_NODE_DATA_DIR", "/data".into()),
        value("RINGFOLD_NODE_CLIENT_LISTEN", format!("0.0.0.0:{CLIENT_PORT}")),
        value("RINGFOLD_NODE_PEER_LISTEN", format!("0.0.0.0:{PEER_PORT}")),
        value("RINGFOLD_NODE_GOSSIP_LISTEN", format!("0.0.0.0:{GOSSIP_PORT}")),
        value("RINGFOLD_NODE_HTTP_LISTEN", format!("0.0.0.0:{HTTP_PORT}")),
        value("RINGFOLD_NODE_STOP_WAIT_MS", STOP_WAIT_MS.to_string()),
        value("RINGFOLD_NODE_CLIENT_URL", client_url(name, namespace, "$(RINGFOLD_NODE_NAME)")),
        value("RINGFOLD_NODE_PEER_ADDRESS", format!("{here}:{PEER_PORT}")),
        value("RINGFOLD_NODE_SEEDS", seeds.join(",")),
        value("RINGFOLD_NODE_GOSSIP_KEY_FILE", format!("{GOSSIP_DIR}/{}", names::GOSSIP_CURRENT)),
    ];
    if cluster.zones.mode != ZoneMode::Disabled {
        // Kubernetes copies the node's topology labels to its pods; without it the zone is empty.
        let label = format!("metadata.labels['{}']", cluster.zones.topology_key);
        env.push(field("RINGFOLD_NODE_ZONE", label));
    }
    env
}
