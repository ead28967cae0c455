use serde_json::Value;

use super::{charts, is_foreign};
use crate::{EventStoreCluster, tests::refusals};

/// `kubectl apply` of a sample stores what it says.
#[test]
fn the_samples_are_clusters_that_the_api_server_takes() {
    fn contained(given: &Value, read: &Value) -> Option<String> {
        match given {
            Value::Object(map) => map.iter().find_map(|(n, v)| contained(v, &read[n])),
            other => (other != read).then(|| format!("{other} was read as {read}")),
        }
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/samples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for resource in documents.iter().filter(|d| d["kind"] == "EventStoreCluster") {
            seen += 1;
            assert_eq!(resource["apiVersion"], "ringfold.dev/v1alpha1");
            let typed: EventStoreCluster = serde_json::from_value(resource.clone()).unwrap();
            let back = serde_json::to_value(&typed).unwrap();
            assert_eq!(contained(&resource["spec"], &back["spec"]), None, "{path:?}");
            assert_eq!(refusals(resource, None), Vec::<String>::new(), "{path:?}");
        }
    }
    assert!(seen >= 4, "{seen} samples");
}

/// A value that a chart's type has and its order of `values.yaml` names wrongly would go to the end.
#[test]
fn the_order_of_values_names_values() {
    for chart in charts().unwrap() {
        for name in chart.order() {
            assert!(chart.schema["properties"][name].is_object(), "{}: {name}", chart.name);
        }
    }
}

/// Every value is said what it is about, and a default that the schema itself refuses helps nobody.
#[test]
fn every_value_of_a_chart_is_described() {
    fn look(path: &str, schema: &Value) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let said = field["description"].as_str().unwrap_or_default();
            assert!(said.len() > 5 && !said.contains('\n'), "{path}: {said:?}");
            if !is_foreign(name) {
                look(&path, field);
            }
        }
    }
    charts().unwrap().iter().for_each(|c| look(c.name, &c.schema));
}
