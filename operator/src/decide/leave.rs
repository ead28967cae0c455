//! Nodes that leave: scale-in, replacement, members whose volume is lost.
use ringfold_crds::OperationType;

use super::{Action, KUBELET_GONE_MS, Look, Stalled, Step, act, claim_name, doing, wait};
use crate::world::{Claim, Member, MemberState, NodeId, Ordinal, Pod, View};

impl Look<'_> {
    /// Volumes of members that were removed, and volumes above the size that never held any: nobody
    /// can start on the former, and nobody misses the latter.
    pub(super) fn stale_claims(&self, view: &View) -> Step {
        for (ordinal, claim) in self.world.claims.iter().rev() {
            let stale = self.world.is_stale(view, *ordinal);
            let is_above = *ordinal >= self.size;
            let empty = is_above && !self.world.is_needed(view, &self.cluster.name, *ordinal);
            if !stale && !empty {
                continue;
            }
            let pod = self.world.pods.get(ordinal);
            // A pod that the StatefulSet takes away goes by itself, unless its kubelet is gone.
            if let Some(pod) = pod.filter(|_| is_above) {
                return self.gone_kubelet(*ordinal, pod).or_else(|| {
                    let step = format!("waiting for {} to stop", self.pod(*ordinal));
                    wait(doing(OperationType::ScaleIn, step, Some(*ordinal), claim.node_id))
                });
            }
            return self.delete_claim(*ordinal, claim, pod);
        }
        None
    }

    fn delete_claim(&self, ordinal: Ordinal, claim: &Claim, pod: Option<&Pod>) -> Step {
        let name = claim_name(&self.cluster.name, ordinal);
        let kind = match ordinal < self.cluster.replicas {
            true => OperationType::Replace,
            false => OperationType::ScaleIn,
        };
        let doing = |step: String| doing(kind, step, Some(ordinal), claim.node_id);
        if !claim.terminating {
            let uid = claim.uid.clone();
            let step = format!("the volume of {} is deleted", self.pod(ordinal));
            return act(Action::DeleteClaim { claim: name, uid, without: None }, doing(step));
        }
        match pod {
            // It holds the claim back, and finds no data that it may use.
            Some(pod) if !pod.is_terminating() => act(
                Action::DeletePod {
                    pod: self.pod(ordinal),
                    uid: pod.uid.clone(),
                    resource_version: None,
                    now: false,
                    without: None,
                },
                doing(format!("{} is made anew", self.pod(ordinal))),
            ),
            Some(pod) => self
                .gone_kubelet(ordinal, pod)
                .or_else(|| wait(doing(format!("waiting for {} to stop", self.pod(ordinal))))),
            None => wait(doing(format!("waiting for {name} to be deleted"))),
        }
    }

    /// A pod whose node was removed and that does not go: its kubelet cannot say that it went.
    fn gone_kubelet(&self, ordinal: Ordinal, pod: &Pod) -> Step {
        let since = pod.deleted_unix_ms?;
        if self.world.now_unix_ms.saturating_sub(since) < KUBELET_GONE_MS {
            return None;
        }
        let action = Action::DeletePod {
            pod: self.pod(ordinal),
            uid: pod.uid.clone(),
            resource_version: None,
            now: true,
            without: None,
        };
        let step =
            format!("{} is forgotten: its Kubernetes node does not answer", self.pod(ordinal));
        act(action, doing(OperationType::ScaleIn, step, Some(ordinal), None))
    }

    /// Members without a volume, which nothing brings back: others get their replicas as soon as there
    /// are enough of them, and then they go. The data plane by itself would wait for them first.
    pub(super) fn orphans(&self, view: &View) -> Step {
        let ready = |node, m: &Member| match m.state {
            MemberState::Draining => m.replicas == 0,
            _ if view.is_draining() => false,
            // With one copy nobody has what it held.
            _ if self.cluster.replication_factor == 1 => m.replicas == 0,
            _ => m.replicas == 0 || self.others_suffice(view, node),
        };
        let mut orphans = self.world.orphans(view, &self.cluster.name);
        let (node, member) = orphans.find(|(node, m)| !m.reachable && ready(*node, m))?;
        let name = &member.name;
        let doing = |step| doing(OperationType::Replace, step, None, Some(node));
        match member.state {
            MemberState::Draining => {
                let step = format!("node {node} ({name}) has lost its volume and holds nothing");
                act(Action::Remove(node), doing(step))
            }
            _ => {
                let step = format!("node {node} ({name}) has lost its volume, and is to drain");
                act(Action::Drain(node), doing(step))
            }
        }
    }

    /// Without that node there are as many active ones as replicas of a partition.
    fn others_suffice(&self, view: &View, node: NodeId) -> bool {
        let is_other = |(id, m): &(NodeId, &Member)| {
            *id != node && m.state == MemberState::Active && m.reachable
        };
        view.living().filter(is_other).count() >= self.cluster.replication_factor as usize
    }

    /// Members that a person wants on an empty volume, or whose claim a person has deleted.
    pub(super) fn replace(&self, view: &View) -> Step {
        let (ordinal, claim) =
            self.world.claims.iter().rev().find(|(_, c)| c.replace || c.terminating)?;
        let node = claim.node_id?;
        let member = view.member(node)?;
        if member.reachable && self.others_suffice(view, node) {
            return self.drain(view, *ordinal, node, member, OperationType::Replace);
        }
        // Nobody can drain it, or nobody else has room for its replicas. Where the others have everything,
        // a new node takes its place, and gets its replicas.
        let name = self.pod(*ordinal);
        let step = match member.reachable {
            false => format!("{name} does not answer, and gets an empty volume"),
            true => format!("{name} gets an empty volume"),
        };
        let doing = doing(OperationType::Replace, step, Some(*ordinal), Some(node));
        // It still has its replicas: the others must have all of them, not only enough.
        if member.reachable && (view.under_replicated > 0 || view.is_draining()) {
            return wait(doing);
        }
        if !claim.terminating {
            let claim_name = claim_name(&self.cluster.name, *ordinal);
            let uid = claim.uid.clone();
            return act(Action::DeleteClaim { claim: claim_name, uid, without: Some(node) }, doing);
        }
        let Some(pod) = self.world.pods.get(ordinal) else {
            return wait(doing);
        };
        let asked = pod.deleted_unix_ms;
        let now =
            asked.is_some_and(|at| self.world.now_unix_ms.saturating_sub(at) >= KUBELET_GONE_MS);
        if asked.is_some() && !now {
            return wait(doing);
        }
        let (pod, uid) = (name, pod.uid.clone());
        let without = Some(node);
        act(Action::DeletePod { pod, uid, resource_version: None, now, without }, doing)
    }

    /// Volumes' members, from the highest ordinal down.
    fn members<'v>(
        &'v self,
        view: &'v View,
    ) -> impl Iterator<Item = (Ordinal, NodeId, &'v Member)> {
        self.world.claims.iter().rev().filter_map(|(o, c)| {
            let node = c.node_id?;
            Some((*o, node, view.member(node)?))
        })
    }

    /// What drains and holds nothing any more leaves.
    pub(super) fn finish_leaving(&self, view: &View) -> Step {
        let (ordinal, node, member) =
            self.members(view).find(|(_, _, m)| m.state == MemberState::Draining)?;
        let kind = match ordinal < self.cluster.replicas {
            true => OperationType::Replace,
            false => OperationType::ScaleIn,
        };
        let name = self.pod(ordinal);
        if member.replicas == 0 {
            let step = format!("{name} holds nothing any more, and is removed");
            return act(Action::Remove(node), doing(kind, step, Some(ordinal), Some(node)));
        }
        let step = format!("{name} drains: {} replicas left", member.replicas);
        wait(doing(kind, step, Some(ordinal), Some(node)))
    }

    /// The highest pod above what the spec asks for.
    pub(super) fn leave(&self, view: &View) -> Step {
        let top = self.size.checked_sub(1).filter(|top| *top >= self.cluster.replicas)?;
        if let Some((ordinal, node, member)) = self.members(view).find(|(o, ..)| *o == top) {
            return self.drain(view, ordinal, node, member, OperationType::ScaleIn);
        }
        let step = format!("waiting for {} to say which node it is", self.pod(top));
        wait(doing(OperationType::ScaleIn, step, Some(top), None))
    }

    fn drain(
        &self,
        view: &View,
        ordinal: Ordinal,
        node: NodeId,
        member: &Member,
        kind: OperationType,
    ) -> Step {
        let name = self.pod(ordinal);
        let doing = |step: String| doing(kind, step, Some(ordinal), Some(node));
        if view.is_draining() {
            return wait(doing(format!("{name} waits for another drain")));
        }
        // A node that does not answer is what is missing.
        if view.under_replicated > 0 && member.reachable {
            let step = format!("{name} waits until each partition has all its replicas");
            return wait(doing(step));
        }
        if member.state == MemberState::Joining {
            return wait(doing(format!("{name} waits until it has joined")));
        }
        act(Action::Drain(node), doing(format!("{name} is to drain")))
    }
}

/// What a refused drain means for a person.
pub fn refused(pod: &str, message: &str) -> Stalled {
    let message = format!(
        "{pod} cannot be drained: {message}. Add nodes or room, or ask for more replicas again"
    );
    Stalled { reason: "DrainImpossible", message }
}
