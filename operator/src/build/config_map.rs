//! The nodes' settings file.
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value};

use super::meta;
use crate::{names, validate::Cluster};

pub const FILE: &str = "node.yaml";

/// Caches and memtables take a quarter of the memory each; what is left is for the log, the requests
/// in flight and the moves.
pub fn build(cluster: &Cluster) -> ConfigMap {
    let mut settings = Map::new();
    let mut set = |name: &str, value: String| settings.insert(name.into(), Value::String(value));
    if let Some(bytes) = cluster.memory_bytes {
        let quarter = format!("{}MiB", ((bytes / 4) >> 20).max(8));
        set("cache_bytes", quarter.clone());
        set("memtable_bytes", quarter);
    }
    set("moves_per_node", cluster.moves_per_node.to_string());
    set("move_bytes_per_s", format!("{}MiB", cluster.move_bytes_per_s.div_ceil(1 << 20)));
    set("log_format", "json".into());
    for (name, value) in &cluster.config {
        set(name, value.clone());
    }
    // JSON is YAML, and its maps are sorted: the same settings give the same text.
    let text = Value::Object(settings).to_string();
    ConfigMap {
        metadata: meta(cluster, names::config(&cluster.name)),
        data: Some([(FILE.to_owned(), text)].into()),
        ..ConfigMap::default()
    }
}

/// Changes with the settings, and with nothing else.
pub fn hash(config_map: &ConfigMap) -> String {
    let text = config_map.data.as_ref().and_then(|d| d.get(FILE));
    let hash = blake3::hash(text.map_or(&[], |t| t.as_bytes()));
    hash.to_hex()[..16].to_owned()
}
