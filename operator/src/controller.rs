//! The loop: a look at a cluster whenever something of it changes, and now and then.
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::join_all};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        Controller,
        controller::{self, Action as Requeue, Config},
        events::{Event, EventType, Recorder, Reporter},
        reflector::ObjectRef,
        watcher,
    },
};
use parking_lot::Mutex;
use ringfold_crds::{EventStoreCluster, EventStoreClusterStatus, condition};
use serde_json::json;

use crate::{
    build,
    decide::decide,
    failpoint,
    live::{Live, Plane, observe},
    metrics::Metrics,
    names, patch,
    plane::{KubernetesError, PlaneError},
    status,
    step::{Outcome, StepError, carry_out},
    validate::{Cluster, validate},
};

/// Clusters that are looked at side by side.
const CONCURRENCY: u16 = 8;
const AFTER_AN_ACTION: Duration = Duration::from_millis(500);
const WHILE_IT_GOES_ON: Duration = Duration::from_secs(2);
const AT_REST: Duration = Duration::from_secs(15);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A look and its step take no longer, or whoever is asked is gone without a word: the next look opens
/// connections of its own.
const LOOK_MAX: Duration = Duration::from_secs(90);

/// Why a look did not end well. It is taken again, later each time.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("the status could not be written: {0}")]
    Status(#[source] Box<kube::Error>),
    #[error("it was given up after {} s without an answer", LOOK_MAX.as_secs())]
    TooLong,
}

/// What is kept of a cluster between looks: connections and times, nothing that a decision rests on.
struct Kept {
    /// A resource of the same name that was made anew is another cluster.
    uid: String,
    plane: Arc<Plane>,
    status_written: Option<Instant>,
}

pub struct Context {
    client: Client,
    /// Image of the nodes of new clusters.
    release: String,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    kept: Mutex<HashMap<ObjectRef<EventStoreCluster>, Kept>>,
    /// Looks that failed, one after the other.
    failures: Mutex<HashMap<ObjectRef<EventStoreCluster>, u32>>,
}

/// Runs until the process is told to end. `namespaces`: whose clusters; none: all.
pub async fn run(
    client: Client,
    namespaces: &[String],
    release: String,
    metrics: Arc<Metrics>,
    identity: &str,
) {
    let reporter =
        Reporter { controller: names::FIELD_MANAGER.into(), instance: Some(identity.into()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        release,
        metrics,
        kept: Mutex::default(),
        failures: Mutex::default(),
    });
    // Each namespace is watched by itself: rights in some of them are not rights to list all.
    let all = [None];
    let each: Vec<_> = namespaces.iter().map(|n| Some(n.as_str())).collect();
    let places = if each.is_empty() { &all[..] } else { &each };
    join_all(places.iter().map(|place| watch(&client, *place, context.clone()))).await;
}

async fn watch(client: &Client, namespace: Option<&str>, context: Arc<Context>) {
    let after = context.clone();
    let controller = Controller::new(scoped(client, namespace), watcher::Config::default())
        .with_config(
            Config::default().concurrency(CONCURRENCY).debounce(Duration::from_millis(100)),
        )
        .owns(scoped::<StatefulSet>(client, namespace), ours())
        .watches(scoped::<PartialObjectMeta<Pod>>(client, namespace), ours(), cluster_of)
        .watches(
            scoped::<PartialObjectMeta<PersistentVolumeClaim>>(client, namespace),
            ours(),
            cluster_of,
        )
        .shutdown_on_signal();
    controller
        .run(reconcile, failed, context)
        .for_each(|done| {
            match done {
                // It is gone, and nobody will ask for it again.
                Err(controller::Error::ObjectNotFound(gone)) => after.forget(
                    &ObjectRef::new(&gone.name)
                        .within(gone.namespace.as_deref().unwrap_or_default()),
                ),
                Err(error) => tracing::debug!(%error, "a look was not taken"),
                Ok(_) => {}
            }
            std::future::ready(())
        })
        .await;
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn ours() -> watcher::Config {
    let (label, value) = names::NAME_LABEL;
    watcher::Config::default().labels(&format!("{label}={value}"))
}

/// Only names and labels come over the wire.
fn cluster_of<K>(object: PartialObjectMeta<K>) -> Option<ObjectRef<EventStoreCluster>> {
    let meta = object.metadata;
    let name = meta.labels?.remove(names::CLUSTER_LABEL)?;
    Some(ObjectRef::new(&name).within(&meta.namespace?))
}

/// Longer with each failure, and never the same for all.
fn failed(
    resource: Arc<EventStoreCluster>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Requeue {
    let failures = {
        let mut failures = context.failures.lock();
        let failures = failures.entry(ObjectRef::from_obj(&*resource)).or_default();
        *failures = failures.saturating_add(1);
        *failures
    };
    context.metrics.reconciles.get_or_create(&[("result", "error".into())]).inc();
    tracing::warn!(cluster = %ObjectRef::from_obj(&*resource), %error, failures, "a look failed");
    let longest = BACKOFF_MAX.min(Duration::from_millis(250) * 2_u32.pow(failures.min(10)));
    Requeue::requeue(longest.mul_f64(0.5 + rand::random::<f64>() / 2.0))
}

async fn reconcile(
    resource: Arc<EventStoreCluster>,
    context: Arc<Context>,
) -> Result<Requeue, ReconcileError> {
    let looked = tokio::time::timeout(LOOK_MAX, look(resource, context)).await;
    looked.unwrap_or(Err(ReconcileError::TooLong))
}

async fn look(
    resource: Arc<EventStoreCluster>,
    context: Arc<Context>,
) -> Result<Requeue, ReconcileError> {
    let key = ObjectRef::from_obj(&*resource);
    // Owner references do the rest.
    if resource.metadata.deletion_timestamp.is_some() {
        context.forget(&key);
        return Ok(Requeue::await_change());
    }
    let began = Instant::now();
    // The newest spec: what a person took back must not be acted on.
    let namespace = resource.namespace().unwrap_or_default();
    let api: Api<EventStoreCluster> = Api::namespaced(context.client.clone(), &namespace);
    let found = api
        .get_opt(&resource.name_any())
        .await
        .map_err(|e| ReconcileError::Kubernetes(KubernetesError::Failed(e.to_string())))?;
    let Some(resource) = found.filter(|r| r.metadata.deletion_timestamp.is_none()) else {
        return Ok(Requeue::await_change());
    };
    let before = resource.status.clone().unwrap_or_default();
    let cluster = match validate(&resource) {
        Ok(cluster) => cluster,
        Err(invalid) => {
            let generation = resource.metadata.generation.unwrap_or(0);
            let after = status::refused(generation, &invalid, &before, Timestamp::now());
            context.write(&resource, &before, &after).await?;
            return Ok(Requeue::await_change());
        }
    };
    let plane = context.plane(&key, &cluster);
    let look = context.look(&cluster, &plane, &before).await;
    let (after, soon, error) = match look {
        Ok((after, soon)) => (after, soon, None),
        Err((Some(after), error)) => (*after, AT_REST, Some(error)),
        Err((None, error)) => return Err(error),
    };
    context.write(&resource, &before, &after).await?;
    context.metrics.reconcile_seconds.observe(began.elapsed().as_secs_f64());
    match error {
        // What it rested on has changed: that is no failure.
        Some(ReconcileError::Step(
            StepError::Kubernetes(KubernetesError::Changed(what))
            | StepError::Plane(PlaneError::Changed(what)),
        )) => {
            tracing::debug!(cluster = %key, what, "looking again");
            return Ok(Requeue::requeue(AFTER_AN_ACTION));
        }
        Some(error) => return Err(error),
        None => {}
    }
    context.metrics.reconciles.get_or_create(&[("result", "ok".into())]).inc();
    context.failures.lock().remove(&key);
    Ok(Requeue::requeue(soon))
}

type Looked = Result<
    (EventStoreClusterStatus, Duration),
    (Option<Box<EventStoreClusterStatus>>, ReconcileError),
>;

impl Context {
    fn plane(&self, key: &ObjectRef<EventStoreCluster>, cluster: &Cluster) -> Arc<Plane> {
        let mut kept = self.kept.lock();
        let new = || Kept {
            uid: cluster.uid.clone(),
            plane: Arc::new(Plane::new(cluster)),
            status_written: None,
        };
        let kept = kept.entry(key.clone()).or_insert_with(new);
        if kept.uid != cluster.uid {
            *kept = new();
        }
        kept.plane.clone()
    }

    fn forget(&self, key: &ObjectRef<EventStoreCluster>) {
        self.kept.lock().remove(key);
        self.failures.lock().remove(key);
    }

    /// Looks, decides and acts. What failed still has a status: what was seen.
    async fn look(
        &self,
        cluster: &Cluster,
        plane: &Plane,
        before: &EventStoreClusterStatus,
    ) -> Looked {
        let (world, secrets) =
            observe(&self.client, plane, cluster).await.map_err(|e| (None, e.into()))?;
        let decision = decide(cluster, &world);
        failpoint::hit("observed").await;
        let running = world.stateful_set.as_ref().map(|s| s.image.as_str());
        let image = build::image(cluster, running, &self.release);
        let pods = world.stateful_set.as_ref().map_or(0, |s| s.replicas);
        let said = |o| world.reports.get(&o).and_then(|r| r.authorities.clone());
        let trusted: Vec<_> = (0..pods).map(said).collect();
        let live =
            Live { client: &self.client, cluster, image, trusted: &trusted, secrets: &secrets };
        let done = carry_out(cluster, &world, &decision, &live, plane).await;
        let (outcome, error) = match done {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::default(), Some(error)),
        };
        if let Some(action) = decision.action.as_ref().filter(|_| outcome.acted) {
            tracing::info!(cluster = cluster.name, namespace = cluster.namespace, ?action, "done");
            self.metrics.actions.get_or_create(&[("action", action.name().into())]).inc();
        }
        let after = status::status(cluster, &world, &decision, &outcome, before, Timestamp::now());
        if let Some(error) = error {
            return Err((Some(Box::new(after)), error.into()));
        }
        let soon = match (&decision.doing, outcome.acted) {
            (_, true) => AFTER_AN_ACTION,
            (Some(_), false) => WHILE_IT_GOES_ON,
            (None, false) if after.rebalance.is_some() => WHILE_IT_GOES_ON,
            // Whoever is silent may answer at any time, and no object changes then.
            (None, false) if world.view.is_none() && !cluster.hibernated => WHILE_IT_GOES_ON,
            (None, false) => AT_REST,
        };
        Ok((after, soon))
    }

    /// Writes a status that changed: at once where it says something new, and progress now and then.
    async fn write(
        &self,
        resource: &EventStoreCluster,
        before: &EventStoreClusterStatus,
        after: &EventStoreClusterStatus,
    ) -> Result<(), ReconcileError> {
        let key = ObjectRef::from_obj(resource);
        let written = self.kept.lock().get(&key).and_then(|k| k.status_written);
        let just_now = written.is_some_and(|at| at.elapsed() < PROGRESS_EVERY);
        if after == before || (just_now && status::differ_in_progress_only(before, after)) {
            return Ok(());
        }
        let namespace = resource.namespace().unwrap_or_default();
        let api: Api<EventStoreCluster> = Api::namespaced(self.client.clone(), &namespace);
        // Bound to what was read.
        let Some(status) = patch::merge(&json!(before), &json!(after)) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": resource.resource_version()}, "status": status,
        });
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match api.patch_status(&resource.name_any(), &params, &Patch::Merge(patch)).await {
            Ok(_) => {}
            // It has changed: that change brings the next look.
            Err(kube::Error::Api(e)) if [404, 409].contains(&e.code) => return Ok(()),
            Err(e) => return Err(ReconcileError::Status(Box::new(e))),
        }
        if let Some(kept) = self.kept.lock().get_mut(&key) {
            kept.status_written = Some(Instant::now());
        }
        failpoint::hit("status-written").await;
        self.tell(resource, before, after).await;
        Ok(())
    }

    /// An Event for each condition that turned.
    async fn tell(
        &self,
        resource: &EventStoreCluster,
        before: &EventStoreClusterStatus,
        after: &EventStoreClusterStatus,
    ) {
        for now in &after.conditions {
            let then = before.conditions.iter().find(|c| c.type_ == now.type_);
            let same = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
                c.status == now.status && c.reason == now.reason
            };
            // What begins with False has nothing to tell.
            if then.is_some_and(same) || (then.is_none() && now.status == "False") {
                continue;
            }
            let bad = [condition::STALLED, condition::DEGRADED].contains(&now.type_.as_str());
            let is_true = now.status == "True";
            let type_ = if bad && is_true { EventType::Warning } else { EventType::Normal };
            let text = format!("{} is {}: {} {}", now.type_, now.status, now.reason, now.message);
            let event = Event {
                type_,
                reason: now.reason.clone(),
                note: Some(text.chars().take(1_000).collect()),
                action: now.type_.clone(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &resource.object_ref(&())).await {
                tracing::warn!(%error, "an Event could not be written");
            }
        }
    }
}
