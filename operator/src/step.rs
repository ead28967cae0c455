//! Carries out one decision over the two sides. What is asked of the data plane is asked right before
//! what rests on the answer.
use crate::{
    decide::{Action, Decision, Stalled},
    failpoint,
    plane::{DataPlane, Kubernetes, KubernetesError, PlaneError, Sizing},
    validate::Cluster,
    world::{Epoch, NodeId, World, pod_name},
};

/// What became of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Something was changed, so that looking again soon is worthwhile.
    pub acted: bool,
    /// Why the data plane did not agree yet, a line each.
    pub waiting: Vec<String>,
    /// The data plane says that it never will.
    pub stalled: Option<Stalled>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

/// Applies the objects with the decision's size, then does its action.
///
/// # Errors
/// The first call that failed. What was done before it stays, and the next look sees it.
pub async fn carry_out<K: Kubernetes, P: DataPlane>(
    cluster: &Cluster,
    world: &World,
    decision: &Decision,
    kubernetes: &K,
    plane: &P,
) -> Result<Outcome, StepError> {
    if let Some(replicas) = decision.replicas {
        let set = world.stateful_set.as_ref();
        let sizing = Sizing {
            replicas,
            storage_size: set.map_or(&cluster.storage_size, |s| &s.storage_size).clone(),
            expected: set.map(|s| (s.uid.clone(), s.resource_version.clone())),
        };
        kubernetes.apply(&sizing).await?;
        failpoint::hit("applied").await;
    }
    match &decision.action {
        None => Ok(Outcome::default()),
        Some(action) => {
            let name = action.name();
            failpoint::hit(&format!("before-{name}")).await;
            let outcome = act(cluster, action, world, kubernetes, plane).await;
            failpoint::hit(&format!("after-{name}")).await;
            outcome
        }
    }
}

async fn act<K: Kubernetes, P: DataPlane>(
    cluster: &Cluster,
    action: &Action,
    world: &World,
    kubernetes: &K,
    plane: &P,
) -> Result<Outcome, StepError> {
    // Without a view nothing is decided that needs one, but what a report alone decides.
    let epoch = world.view.as_ref().map_or(0, |v| v.epoch);
    match action {
        Action::CreateIdentity { cluster_id } => {
            kubernetes.create_identity(cluster_id.as_deref()).await?;
        }
        Action::ReserveBootstrap { claim_uid, resource_version } => {
            kubernetes.reserve_bootstrap(claim_uid, resource_version).await?;
        }
        Action::Bootstrap { pod, cluster_id } => plane.bootstrap(pod, cluster_id).await?,
        Action::RecordNode { claim, uid, node } => {
            kubernetes.record_node(claim, uid, *node).await?
        }
        Action::Pause(paused) => plane.pause(*paused, epoch).await?,
        Action::Drain(node) => match plane.drain(*node, epoch).await {
            Err(PlaneError::Refused { reason, message }) if reason == "DRAIN_IMPOSSIBLE" => {
                let claim = world.claims.iter().find(|(_, c)| c.node_id == Some(*node));
                let pod = claim.map(|(o, _)| pod_name(&cluster.name, *o));
                let pod = pod.unwrap_or_else(|| format!("node {node}"));
                let stalled = Some(crate::decide::drain_refused(&pod, &message));
                return Ok(Outcome { stalled, ..Outcome::default() });
            }
            done => done?,
        },
        Action::Undrain(node) => plane.undrain(*node, epoch).await?,
        Action::Remove(node) => plane.remove(*node, epoch).await?,
        Action::Restart { pod, uid, node, must_be_safe } => {
            if *must_be_safe {
                if let Some(waiting) = needed(Some(*node), epoch, plane).await? {
                    return Ok(waiting);
                }
                failpoint::hit("restart-agreed").await;
                let left = plane.transfer_leaders(pod, epoch).await?;
                if left > 0 {
                    let waiting = vec![format!("{pod} still leads {left} groups")];
                    return Ok(Outcome { waiting, ..Outcome::default() });
                }
                failpoint::hit("restart-handed-over").await;
                // Handing over takes seconds, in which another node may have been lost.
                if let Some(waiting) = needed(Some(*node), epoch, plane).await? {
                    return Ok(waiting);
                }
            }
            kubernetes.delete_pod(pod, uid, None, false).await?;
        }
        Action::DeletePod { pod, uid, resource_version, now, without } => {
            if let Some(waiting) = needed(*without, epoch, plane).await? {
                return Ok(waiting);
            }
            kubernetes.delete_pod(pod, uid, resource_version.as_deref(), *now).await?;
        }
        Action::DeleteClaim { claim, uid, without } => {
            if let Some(waiting) = needed(*without, epoch, plane).await? {
                return Ok(waiting);
            }
            kubernetes.delete_claim(claim, uid).await?;
        }
        Action::ResizeClaim { claim, uid, size } => {
            kubernetes.resize_claim(claim, uid, size).await?;
        }
        Action::OrphanStatefulSet { uid } => kubernetes.orphan_stateful_set(uid).await?,
    }
    Ok(Outcome { acted: true, ..Outcome::default() })
}

/// What to wait for where the data plane needs the node.
async fn needed<P: DataPlane>(
    node: Option<NodeId>,
    epoch: Epoch,
    plane: &P,
) -> Result<Option<Outcome>, PlaneError> {
    let Some(node) = node else { return Ok(None) };
    let waiting = plane.needs(node, epoch).await?;
    Ok((!waiting.is_empty()).then(|| Outcome { waiting, ..Outcome::default() }))
}
