//! Every kind of call that the operator makes, as `calls.golden.txt`: the chart's roles grant these and
//! no other (crds/tests/charts/rbac.rs). A recorder in the client's place answers as little as will do.
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client, Resource as _,
    client::Body,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use parking_lot::Mutex;
use ringfold_crds::EventStoreCluster;
use serde_json::{Value, json};

use super::*;
use crate::{
    build,
    certificates::secrets::Secrets,
    controller,
    lease::Election,
    metrics::Metrics,
    names,
    plane::{Kubernetes as _, Sizing},
    validate::{Cluster, validate},
};

/// `group/resource verb`.
type Calls = Arc<Mutex<BTreeSet<String>>>;

fn resource(spec: &Value) -> Value {
    json!({
        "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster", "spec": spec,
        "metadata": {"name": "demo", "namespace": "shop", "uid": "u", "resourceVersion": "1"},
    })
}

fn cluster(spec: &Value) -> Cluster {
    validate(&serde_json::from_value(resource(spec)).unwrap()).unwrap()
}

/// The right that a call needs, and whether it names an object.
fn right(request: &hyper::Request<Body>) -> (String, Vec<&'static str>, bool) {
    let parts: Vec<_> = request.uri().path().trim_matches('/').split('/').collect();
    let (group, rest) = match parts[0] {
        "api" => ("", &parts[2..]),
        _ => (parts[1], &parts[3..]),
    };
    let rest = if rest[0] == "namespaces" && rest.len() > 2 { &rest[2..] } else { rest };
    let is_named = rest.len() > 1;
    let sub = rest.get(2).map_or(String::new(), |s| format!("/{s}"));
    let query = request.uri().query().unwrap_or_default();
    let of_apply = request.headers().get("content-type");
    let of_apply = of_apply.is_some_and(|t| t.as_bytes().starts_with(b"application/apply-patch"));
    let verbs = match request.method().as_str() {
        "GET" if is_named => vec!["get"],
        "GET" if query.contains("watch=") => vec!["watch"],
        "GET" => vec!["list"],
        "POST" => vec!["create"],
        "PUT" => vec!["update"],
        // What is applied may not be there yet.
        "PATCH" if of_apply => vec!["create", "patch"],
        "PATCH" => vec!["patch"],
        "DELETE" if is_named => vec!["delete"],
        other => panic!("{other} of {}", request.uri()),
    };
    (format!("{group}/{}{sub}", rest[0]), verbs, is_named)
}

/// A client whose calls are recorded. `exists`: objects that are asked for by name are there.
fn client(calls: &Calls, exists: bool) -> Client {
    let (calls, lease) = (calls.clone(), Arc::new(Mutex::new(None)));
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let (calls, lease) = (calls.clone(), lease.clone());
        async move {
            let (resource, verbs, is_named) = right(&request);
            calls.lock().extend(verbs.iter().map(|verb| format!("{resource} {verb}")));
            let sent = request.into_body().collect_bytes().await?;
            let sent: Value = serde_json::from_slice(&sent).unwrap_or_default();
            let answer = answer(&resource, verbs[0], is_named, exists, sent, &lease);
            let (code, body) = match answer {
                Some(body) => (200, body),
                None => (
                    404,
                    json!({"kind": "Status", "apiVersion": "v1", "code": 404, "status": "Failure",
                           "reason": "NotFound", "message": "not found"}),
                ),
            };
            let answer = hyper::Response::builder().status(code);
            Ok::<_, kube::Error>(answer.body(Body::from(body.to_string().into_bytes())).unwrap())
        }
    });
    Client::new(service, "shop")
}

fn answer(
    asked: &str,
    verb: &str,
    is_named: bool,
    exists: bool,
    sent: Value,
    lease: &Mutex<Option<Value>>,
) -> Option<Value> {
    let clusters = "ringfold.dev/eventstoreclusters";
    match verb {
        "get" if asked.ends_with("/leases") => lease.lock().clone(),
        "get" if asked == clusters => Some(resource(&json!({}))),
        "get" => exists.then(|| {
            json!({"metadata": {
                "name": "demo", "uid": "u", "resourceVersion": "1",
                "labels": {"app.kubernetes.io/managed-by": names::FIELD_MANAGER},
            }})
        }),
        "list" => {
            let items = if asked == clusters { vec![resource(&json!({}))] } else { vec![] };
            Some(json!({"metadata": {"resourceVersion": "1"}, "items": items}))
        }
        "watch" => Some(Value::String(String::new())),
        "delete" => Some(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
        _ if asked.starts_with(clusters) => Some(resource(&json!({}))),
        _ => {
            assert!(is_named || verb == "create", "{verb} of {asked}");
            if asked.ends_with("/leases") {
                *lease.lock() = Some(sent.clone());
            }
            Some(sent)
        }
    }
}

fn live<'a>(client: &'a Client, cluster: &'a Cluster, secrets: &'a Secrets) -> Live<'a> {
    Live { client, cluster, image: "node:1", trusted: &[], secrets }
}

async fn write_everything(calls: &Calls) {
    let new = Sizing { replicas: 3, storage_size: "10Gi".into(), expected: None };
    let (fresh, there) = (client(calls, false), client(calls, true));
    let full = cluster(&json!({"tls": {"mode": "Operator"}}));
    let secrets = Secrets::default();
    observe(&fresh, &Plane::new(&full), &full).await.unwrap();
    let on_fresh = live(&fresh, &full, &secrets);
    on_fresh.apply(&new).await.unwrap();
    on_fresh.create_identity(None).await.unwrap();
    on_fresh.reserve_bootstrap("u", "1").await.unwrap();
    on_fresh.record_node("data-demo-0", "u", 1).await.unwrap();
    on_fresh.delete_pod("demo-0", "u", Some("1"), true).await.unwrap();
    on_fresh.delete_claim("data-demo-0", "u").await.unwrap();
    on_fresh.resize_claim("data-demo-0", "u", "20Gi").await.unwrap();
    on_fresh.orphan_stateful_set("u").await.unwrap();
    let certificate = build::secret(&full, "demo-node-tls".into(), [("tls.crt", "")]);
    live(&there, &full, &secrets).write(certificate.clone(), Some(&certificate)).await.unwrap();
    // What is switched off is deleted where it exists.
    let bare = cluster(&json!({
        "pdb": {"enabled": false}, "networkPolicy": {"enabled": false},
        "serviceAccount": {"name": "mine"},
    }));
    let sizing = Sizing { expected: Some(("u".into(), "1".into())), ..new };
    live(&there, &bare, &secrets).apply(&sizing).await.unwrap();
}

async fn elect_and_tell(calls: &Calls) {
    let client = client(calls, true);
    let mut election = Election::new(client.clone(), "system", "operator", "me");
    election.acquire().await;
    election.release().await;
    let reporter = Reporter { controller: names::FIELD_MANAGER.into(), instance: None };
    let recorder = Recorder::new(client, reporter);
    let about: EventStoreCluster = serde_json::from_value(resource(&json!({}))).unwrap();
    for _ in 0..2 {
        let event = Event {
            type_: EventType::Normal,
            reason: "AtRest".into(),
            note: None,
            action: "Reconciling".into(),
            secondary: None,
        };
        recorder.publish(&event, &about.object_ref(&())).await.unwrap();
    }
}

/// The loop, until it has watched everything and written a status.
async fn watch_and_reconcile(calls: &Calls) {
    let mine = Calls::default();
    let client = client(&mine, false);
    let metrics = Arc::new(Metrics::default());
    let run = tokio::spawn(async move {
        controller::run(client, &["shop".to_owned()], "node:1".into(), metrics, "me").await;
    });
    let expected = [
        "/persistentvolumeclaims watch",
        "/pods watch",
        "apps/statefulsets watch",
        "events.k8s.io/events create",
        "ringfold.dev/eventstoreclusters watch",
        "ringfold.dev/eventstoreclusters/status patch",
    ];
    let until = Instant::now() + Duration::from_secs(60);
    while !expected.iter().all(|e| mine.lock().contains(*e)) {
        assert!(Instant::now() < until, "made only {:?}", mine.lock());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    run.abort();
    calls.lock().extend(mine.lock().iter().cloned());
}

#[tokio::test]
async fn the_calls_that_the_operator_makes_are_those_that_the_chart_grants() {
    let calls = Calls::default();
    write_everything(&calls).await;
    elect_and_tell(&calls).await;
    watch_and_reconcile(&calls).await;
    let text: String = calls.lock().iter().map(|call| format!("{call}\n")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/live/calls.golden.txt");
    if std::env::var_os("RINGFOLD_WRITE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        golden == text,
        "the operator calls the Kubernetes API otherwise: run RINGFOLD_WRITE_DOCS=1 cargo test -p ringfold-operator calls, and change the rules in charts/ringfold-operator/templates/_helpers.tpl\n{text}"
    );
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_stops_nothing_but_certificates() {
    let calls = Calls::default();
    let (client, cluster) = (client(&calls, true), cluster(&json!({"tls": {"mode": "Operator"}})));
    let damaged = build::secret(&cluster, "demo-ca".into(), [("current.crt", "damaged")]);
    let secrets = Secrets { authorities: Some(damaged), ..Secrets::default() };
    assert!(secrets.held("demo").is_err());
    let sizing = Sizing {
        replicas: 3,
        storage_size: "10Gi".into(),
        expected: Some(("u".into(), "1".into())),
    };
    live(&client, &cluster, &secrets).apply(&sizing).await.unwrap();
    let calls = calls.lock();
    assert!(calls.contains("apps/statefulsets patch"), "{calls:?}");
    let written = calls.iter().find(|c| c.starts_with("/secrets") && *c != "/secrets get");
    assert_eq!(written, None);
}
