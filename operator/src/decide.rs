//! What to do next: a pure function of the spec and of one look at the world.
//!
//! Nothing is remembered: where an operation stands is read from the objects and the data plane, so a
//! reversal, a restart of the operator or a fault is the same as any other look. One decision holds at
//! most one action, and the size of the StatefulSet.
mod grow;
mod leave;
mod upgrade;

pub use leave::refused as drain_refused;
use ringfold_crds::OperationType;

use crate::{
    validate::Cluster,
    world::{MemberState, NodeId, Ordinal, View, World, pod_name},
};

/// One step outside of what is applied anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// With the id that running nodes report, or a new one.
    CreateIdentity {
        cluster_id: Option<String>,
    },
    ReserveBootstrap {
        claim_uid: String,
        resource_version: String,
    },
    Bootstrap {
        pod: String,
        cluster_id: String,
    },
    RecordNode {
        claim: String,
        uid: String,
        node: NodeId,
    },
    Pause(bool),
    Drain(NodeId),
    Undrain(NodeId),
    Remove(NodeId),
    /// Stops a node that serves, once the data plane agrees and its leaderships are handed over.
    Restart {
        pod: String,
        uid: String,
        node: NodeId,
        must_be_safe: bool,
    },
    /// Deletes a pod that serves nobody: nothing of it runs, or its node was removed.
    DeletePod {
        pod: String,
        uid: String,
        resource_version: Option<String>,
        now: bool,
        without: Option<NodeId>,
    },
    /// `without`: only if the data plane does not need that node.
    DeleteClaim {
        claim: String,
        uid: String,
        without: Option<NodeId>,
    },
    ResizeClaim {
        claim: String,
        uid: String,
        size: String,
    },
    OrphanStatefulSet {
        uid: String,
    },
}

impl Action {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Action::CreateIdentity { .. } => "CreateIdentity",
            Action::ReserveBootstrap { .. } => "ReserveBootstrap",
            Action::Bootstrap { .. } => "Bootstrap",
            Action::RecordNode { .. } => "RecordNode",
            Action::Pause(_) => "Pause",
            Action::Drain(_) => "Drain",
            Action::Undrain(_) => "Undrain",
            Action::Remove(_) => "Remove",
            Action::Restart { .. } => "Restart",
            Action::DeletePod { .. } => "DeletePod",
            Action::DeleteClaim { .. } => "DeleteClaim",
            Action::ResizeClaim { .. } => "ResizeClaim",
            Action::OrphanStatefulSet { .. } => "OrphanStatefulSet",
        }
    }
}

/// What is going on, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    pub kind: OperationType,
    /// The step, as a sentence.
    pub step: String,
    pub ordinal: Option<Ordinal>,
    pub node: Option<NodeId>,
}

/// Why it does not go on without a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// A CamelCase word.
    pub reason: &'static str,
    /// What was expected, and what to do.
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Size of the StatefulSet; `None`: nothing is applied at all.
    pub replicas: Option<u32>,
    pub action: Option<Action>,
    pub doing: Option<Doing>,
    pub stalled: Option<Stalled>,
}

/// A pod that is deleted for good, and is still there so long afterwards, was on a kubelet that is gone.
pub(crate) const KUBELET_GONE_MS: u64 = 240_000;

/// What decides, gathered once.
struct Look<'a> {
    cluster: &'a Cluster,
    world: &'a World,
    /// Size of the StatefulSet that this decision applies.
    size: u32,
}

type Step = Option<(Option<Action>, Option<Doing>, Option<Stalled>)>;

fn act(action: Action, doing: Doing) -> Step {
    Some((Some(action), Some(doing), None))
}

fn wait(doing: Doing) -> Step {
    Some((None, Some(doing), None))
}

fn stall(doing: Option<Doing>, reason: &'static str, message: impl Into<String>) -> Step {
    Some((None, doing, Some(Stalled { reason, message: message.into() })))
}

fn doing(
    kind: OperationType,
    step: impl Into<String>,
    ordinal: Option<Ordinal>,
    node: Option<NodeId>,
) -> Doing {
    Doing { kind, step: step.into(), ordinal, node }
}

/// The next step. See the module.
pub fn decide(cluster: &Cluster, world: &World) -> Decision {
    if cluster.paused {
        return Decision::default();
    }
    // Its pods stay; the new one takes them over.
    if world.stateful_set.as_ref().is_some_and(|s| s.terminating) {
        return Decision::default();
    }
    if world.identity.is_none()
        && let Some(early) = identity(world)
    {
        return early;
    }
    let size = grow::size(cluster, world);
    let look = Look { cluster, world, size };
    let step = look.steps();
    let (action, doing, stalled) = step.unwrap_or_default();
    Decision { replicas: Some(size), action, doing, stalled }
}

/// Without the Secret: a new cluster gets a new id, and one that runs gets the Secret back.
fn identity(world: &World) -> Option<Decision> {
    let reported = world.reports.values().find_map(|r| r.node.as_ref()).map(|(_, id)| id.clone());
    let has_data = world.claims.values().any(|c| c.node_id.is_some());
    if has_data && reported.is_none() {
        // Its nodes are started; they say their cluster's id.
        return None;
    }
    let doing =
        doing(OperationType::Bootstrap, "the Secret with the cluster's id is made", None, None);
    Some(Decision {
        action: Some(Action::CreateIdentity { cluster_id: reported }),
        doing: Some(doing),
        ..Decision::default()
    })
}

impl Look<'_> {
    fn pod(&self, ordinal: Ordinal) -> String {
        pod_name(&self.cluster.name, ordinal)
    }

    /// In order of urgency; the first that has something to say is the decision.
    fn steps(&self) -> Step {
        if self.cluster.hibernated {
            return self.hibernate();
        }
        // What does not run comes before the wait for the first node: it may be the first node.
        self.identities().or_else(|| self.broken_pods()).or_else(|| self.bootstrap()).or_else(
            || match &self.world.view {
                Some(view) => self.with_view(view),
                None => self.is_starting().then(|| {
                    let step = "waiting for the nodes to answer";
                    (None, Some(doing(OperationType::Bootstrap, step, None, None)), None)
                }),
            },
        )
    }

    fn with_view(&self, view: &View) -> Step {
        self.resume(view)
            .or_else(|| self.stale_claims(view))
            .or_else(|| self.undrain(view))
            .or_else(|| self.grow_volumes())
            .or_else(|| self.orphans(view))
            .or_else(|| self.finish_leaving(view))
            .or_else(|| self.replace(view))
            .or_else(|| self.begun())
            .or_else(|| self.upgrade(view))
            .or_else(|| self.leave(view))
            .or_else(|| self.resize())
    }

    fn hibernate(&self) -> Step {
        let left = self.world.pods.len();
        (left > 0).then(|| {
            let step = format!("{left} pods are still to stop");
            (None, Some(doing(OperationType::Hibernate, step, None, None)), None)
        })
    }

    /// Nothing was ever served: the first pods are on their way.
    fn is_starting(&self) -> bool {
        self.world.claims.values().all(|c| c.node_id.is_none())
    }

    /// Each volume says whose data it holds, from the first time that a node on it says so.
    fn identities(&self) -> Step {
        for (ordinal, report) in &self.world.reports {
            let Some((node, cluster_id)) = &report.node else { continue };
            if let Some(identity) = &self.world.identity
                && identity.cluster_id != *cluster_id
            {
                return stall(
                    None,
                    "ForeignVolume",
                    format!(
                        "the volume of {} holds data of the cluster {cluster_id}, not of {}: delete the claim if its data is not needed",
                        self.pod(*ordinal),
                        identity.cluster_id
                    ),
                );
            }
            let Some(claim) = self.world.claims.get(ordinal) else { continue };
            let name = claim_name(&self.cluster.name, *ordinal);
            match claim.node_id {
                Some(recorded) if recorded == *node => {}
                Some(recorded) => {
                    return stall(
                        None,
                        "ForeignVolume",
                        format!(
                            "the claim {name} is recorded as node {recorded}'s, and the node on it says that it is {node}: remove the annotation {} if that is right",
                            crate::names::NODE_ID
                        ),
                    );
                }
                None => {
                    let uid = claim.uid.clone();
                    let step = format!("{} is node {node}", self.pod(*ordinal));
                    return act(
                        Action::RecordNode { claim: name, uid, node: *node },
                        doing(OperationType::ScaleOut, step, Some(*ordinal), Some(*node)),
                    );
                }
            }
        }
        None
    }

    /// An empty disk by itself can only join, so a cluster is created once, on the one claim that is
    /// written down before: a volume that was lost and made anew never becomes a second cluster.
    fn bootstrap(&self) -> Step {
        let world = self.world;
        let identity = world.identity.as_ref()?;
        let has_data = world.claims.values().any(|c| c.node_id.is_some())
            || world.reports.values().any(|r| r.node.is_some());
        if has_data || world.view.is_some() {
            return None;
        }
        let doing = |step: &str| doing(OperationType::Bootstrap, step, Some(0), None);
        let Some(claim) = world.claims.get(&0).filter(|c| !c.terminating) else {
            return wait(doing("waiting for the first volume claim"));
        };
        match &identity.bootstrap_claim_uid {
            None => {
                let claim_uid = claim.uid.clone();
                let resource_version = identity.resource_version.clone();
                act(
                    Action::ReserveBootstrap { claim_uid, resource_version },
                    doing("the volume to bootstrap is written down"),
                )
            }
            Some(uid) if *uid != claim.uid => stall(
                Some(doing("no volume may be bootstrapped")),
                "BootstrapVolumeLost",
                format!(
                    "the cluster was to be bootstrapped on a volume that is gone, and no other volume says that it holds data. If there is no data to lose, delete the Secret {} to begin anew",
                    crate::names::identity(&self.cluster.name)
                ),
            ),
            Some(_) if world.reports.contains_key(&0) => {
                let (pod, cluster_id) = (self.pod(0), identity.cluster_id.clone());
                act(
                    Action::Bootstrap { pod, cluster_id },
                    doing("the first node creates the cluster"),
                )
            }
            Some(_) => wait(doing("waiting for the first node to answer")),
        }
    }

    /// A member that stays takes replicas again: a drain that was begun and is not wanted any more.
    fn undrain(&self, view: &View) -> Step {
        for (ordinal, claim) in self.world.claims.range(..self.cluster.replicas) {
            let Some(node) = claim.node_id.filter(|_| !claim.replace && !claim.terminating) else {
                continue;
            };
            if view.member(node).is_some_and(|m| m.state == MemberState::Draining) {
                let step = format!("{} stays, and takes replicas again", self.pod(*ordinal));
                return act(
                    Action::Undrain(node),
                    doing(OperationType::ScaleOut, step, Some(*ordinal), Some(node)),
                );
            }
        }
        None
    }

    /// A pod that was begun with is finished before anything else begins.
    fn begun(&self) -> Step {
        for ordinal in 0..self.size.min(self.cluster.replicas) {
            let pod = self.world.pods.get(&ordinal);
            if pod.is_some_and(|p| p.is_settled()) {
                continue;
            }
            let kind = match ordinal < self.cluster.replicas && self.is_new(ordinal) {
                true => OperationType::ScaleOut,
                false => OperationType::Upgrade,
            };
            let name = self.pod(ordinal);
            let doing = doing(kind, format!("waiting for {name} to be ready"), Some(ordinal), None);
            let late = pod.filter(|p| {
                self.world.now_unix_ms.saturating_sub(p.unready_unix_ms)
                    > self.cluster.progress_deadline_ms
            });
            return match late {
                Some(pod) => {
                    let said = self.world.reports.get(&ordinal);
                    let said = said.map(|r| r.waiting.join("; ")).filter(|w| !w.is_empty());
                    let trouble = match pod.trouble.as_ref().or(said.as_ref()) {
                        Some(t) => format!(": {t}"),
                        None => String::new(),
                    };
                    stall(
                        Some(doing),
                        "PodNotReady",
                        format!(
                            "{name} is not ready {} s after it began{trouble}. See `kubectl describe pod {name}` and its log; a correction of the spec goes on from here",
                            self.cluster.progress_deadline_ms / 1_000
                        ),
                    )
                }
                None => wait(doing),
            };
        }
        None
    }

    fn is_new(&self, ordinal: Ordinal) -> bool {
        self.world.claims.get(&ordinal).is_none_or(|c| c.node_id.is_none())
    }
}

/// Name of the claim of an ordinal's volume.
pub fn claim_name(cluster: &str, ordinal: Ordinal) -> String {
    ringfold_crds::names::claim(&pod_name(cluster, ordinal))
}

#[cfg(test)]
mod tests;
