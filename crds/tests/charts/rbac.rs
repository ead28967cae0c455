//! What the operator may do.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::helm::{helm, manifests, of_kind};

type Rights = BTreeMap<String, BTreeSet<String>>;

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// `group/resource` and the verbs.
fn rights(role: &Value) -> Rights {
    let mut rights = Rights::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule.get("nonResourceURLs"), None);
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let verbs = rights.entry(format!("{group}/{resource}")).or_default();
                verbs.extend(texts(&rule["verbs"]).map(str::to_owned));
            }
        }
    }
    rights
}

fn operator(values: Value) -> Option<Vec<Value>> {
    Some(manifests(helm()?, "ringfold-operator", &values))
}

fn named<'a>(manifests: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let of_name = |m: &&&Value| m["metadata"]["name"] == name;
    of_kind(manifests, kind).iter().find(of_name).copied().expect(name)
}

const NAME: &str = "test-ringfold-operator";

#[test]
fn no_role_has_a_wildcard_or_reads_secrets_in_bulk_or_grants_rights() {
    for values in [json!({}), json!({"watchNamespaces": ["shop", "bank"]})] {
        let Some(manifests) = operator(values) else { return };
        let roles = [of_kind(&manifests, "Role"), of_kind(&manifests, "ClusterRole")].concat();
        assert!(roles.len() >= 2);
        for role in roles {
            let name = &role["metadata"]["name"];
            assert!(!role["rules"].to_string().contains('*'), "{name}");
            for (resource, verbs) in rights(role) {
                if resource == "/secrets" {
                    for verb in ["list", "watch", "deletecollection", "delete"] {
                        assert!(!verbs.contains(verb), "{name}: {verb} of Secrets");
                    }
                }
                assert!(!resource.starts_with("rbac."), "{name}: {resource}");
                assert!(!resource.starts_with("apiextensions."), "{name}: {resource}");
                for part in ["exec", "attach", "portforward", "token", "nodes", "proxy"] {
                    assert!(!resource.ends_with(&format!("/{part}")), "{name}: {resource}");
                }
            }
        }
    }
}

#[test]
fn namespaced_mode_has_roles_in_its_namespaces_and_nothing_that_is_cluster_wide() {
    let Some(manifests) = operator(json!({"watchNamespaces": ["shop", "bank"]})) else { return };
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        assert!(of_kind(&manifests, kind).is_empty(), "{kind}");
    }
    let places = |kind| -> BTreeSet<_> {
        let all = of_kind(&manifests, kind);
        let ours = all.iter().filter(|m| m["metadata"]["name"] == NAME);
        ours.map(|m| m["metadata"]["namespace"].as_str().unwrap().to_owned()).collect()
    };
    let expected: BTreeSet<_> = ["bank", "shop"].map(str::to_owned).into();
    assert_eq!(places("Role"), expected);
    assert_eq!(places("RoleBinding"), expected);
    // The operator is told the same namespaces.
    let deployment = of_kind(&manifests, "Deployment")[0].to_string();
    assert!(deployment.contains(r#""name":"RINGFOLD_OPERATOR_NAMESPACES","value":"shop,bank""#));
    // And no manifest but the CustomResourceDefinition is outside of a namespace.
    for manifest in &manifests {
        let is_crd = manifest["kind"] == "CustomResourceDefinition";
        assert!(is_crd || manifest["metadata"]["namespace"].is_string(), "{manifest}");
    }
}

#[test]
fn both_modes_may_do_the_same_to_a_cluster() {
    let Some(wide) = operator(json!({})) else { return };
    let Some(narrow) = operator(json!({"watchNamespaces": ["shop"]})) else { return };
    let wide = rights(named(&wide, "ClusterRole", NAME));
    assert_eq!(wide, rights(named(&narrow, "Role", NAME)));
}

#[test]
fn every_binding_binds_a_role_of_this_release_to_the_operators_account() {
    for values in
        [json!({}), json!({"watchNamespaces": ["shop"], "serviceAccount": {"name": "me"}})]
    {
        let account = values["serviceAccount"]["name"]
            .as_str()
            .unwrap_or("test-ringfold-operator")
            .to_owned();
        let Some(manifests) = operator(values) else { return };
        let bindings =
            [of_kind(&manifests, "RoleBinding"), of_kind(&manifests, "ClusterRoleBinding")]
                .concat();
        assert_eq!(bindings.len(), 2);
        for binding in bindings {
            let role = &binding["roleRef"];
            let role =
                named(&manifests, role["kind"].as_str().unwrap(), role["name"].as_str().unwrap());
            assert_eq!(role["metadata"]["namespace"], binding["metadata"]["namespace"]);
            let subject =
                json!([{"kind": "ServiceAccount", "name": account, "namespace": "system"}]);
            assert_eq!(binding["subjects"], subject);
        }
        let pod = &of_kind(&manifests, "Deployment")[0]["spec"]["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], account.as_str());
    }
}

#[test]
fn without_rbac_no_role_is_made() {
    let Some(manifests) = operator(json!({"rbac": {"create": false}})) else { return };
    for kind in ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"] {
        assert!(of_kind(&manifests, kind).is_empty(), "{kind}");
    }
}

/// What a test of the operator has recorded, in both directions: a call without its right fails in a
/// cluster, and a right without its call is one too many.
#[test]
fn the_rights_are_those_of_the_calls_that_the_operator_makes() {
    let Some(manifests) = operator(json!({})) else { return };
    let mut granted = rights(named(&manifests, "ClusterRole", NAME));
    granted.extend(rights(named(&manifests, "Role", &format!("{NAME}-lease"))));
    let granted: BTreeSet<_> = granted
        .iter()
        .flat_map(|(resource, verbs)| verbs.iter().map(move |verb| format!("{resource} {verb}")))
        .collect();
    let path = crate::helm::root().join("operator/src/live/calls.golden.txt");
    let recorded = std::fs::read_to_string(path).unwrap();
    let mut called: BTreeSet<_> = recorded.lines().map(str::to_owned).collect();
    // Not a call: what some API servers ask for where an owner is held back by what it owns.
    called.insert("ringfold.dev/eventstoreclusters/finalizers update".to_owned());
    assert_eq!(granted, called);
}
