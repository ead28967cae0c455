//! A namespace for each test.
use std::{collections::BTreeMap, panic::AssertUnwindSafe, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::{
    NamespaceResourceScope, api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};

use crate::{dump, tools::eventually};

/// The namespace of one test, and a client.
#[derive(Clone)]
pub struct Space {
    pub client: Client,
    pub name: String,
}

impl Space {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }
}

/// Runs a test in a namespace of its own. That namespace is named after the test, and goes with it
/// unless RINGFOLD_TEST_KEEP is set.
///
/// # Panics
/// With the test, after what is in the namespace was printed; and where there is no cluster.
pub fn kubernetes(test: impl AsyncFnOnce(&Space)) {
    let cluster = std::env::var("RINGFOLD_TEST_CLUSTER").unwrap_or_default();
    assert!(
        ["lab", "current"].contains(&cluster.as_str()),
        "tests on Kubernetes run by `make test-kubernetes`; RINGFOLD_TEST_CLUSTER=current takes KUBECONFIG's cluster"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = Client::try_default().await.expect("KUBECONFIG's cluster");
        define(&client).await;
        let space = Space { name: create(&client).await, client };
        let done = AssertUnwindSafe(test(&space)).catch_unwind().await;
        if done.is_err() {
            dump::namespace(&space).await;
        }
        if std::env::var_os("RINGFOLD_TEST_KEEP").is_some() {
            eprintln!("kept: namespace {}", space.name);
        } else {
            let namespaces: Api<Namespace> = Api::all(space.client.clone());
            // Nobody waits for its end: the next test has another.
            let _ = namespaces.delete(&space.name, &DeleteParams::default()).await;
        }
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The definition of the resources, as it is checked in.
async fn define(client: &Client) {
    let crd = ringfold_crds::generate::definition().expect("the definition");
    let name = crd.metadata.name.clone().expect("a name");
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("ringfold-tests").force();
    api.patch(&name, &params, &Patch::Apply(&crd)).await.expect("the definition is accepted");
    eventually("the definition is established", Duration::from_secs(30), async || {
        let crd = api.get(&name).await.map_err(|e| e.to_string())?;
        let conditions = crd.status.and_then(|s| s.conditions).unwrap_or_default();
        let established = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
        established.then_some(()).ok_or_else(|| format!("{conditions:?}"))
    })
    .await;
}

async fn create(client: &Client) -> String {
    let thread = std::thread::current();
    let test = thread.name().and_then(|n| n.rsplit("::").next()).unwrap_or("test").to_owned();
    let mut name: String = test.replace('_', "-").chars().take(48).collect();
    name.truncate(name.trim_end_matches('-').len());
    let id = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{name}-{}", &id[..6]);
    let labels = [
        ("pod-security.kubernetes.io/enforce", "restricted"),
        ("app.kubernetes.io/managed-by", "ringfold-tests"),
    ];
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from(labels.map(|(k, v)| (k.to_owned(), v.to_owned())))),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let api: Api<Namespace> = Api::all(client.clone());
    api.create(&PostParams::default(), &namespace).await.expect("a namespace");
    name
}
