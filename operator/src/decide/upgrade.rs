//! Pods get a new template one at a time, and only as the data plane agrees.
use ringfold_crds::OperationType;

use super::{Action, Look, Step, act, doing, wait};
use crate::world::{Ordinal, Pod, View};

impl Look<'_> {
    /// Pods of an older template that stay, if the StatefulSet's controller has seen the newest.
    fn outdated(&self) -> impl Iterator<Item = (Ordinal, &Pod)> {
        let set = self.world.stateful_set.as_ref();
        let revision = set.and_then(|s| s.revision.as_ref());
        self.world
            .pods
            .range(..self.size)
            .filter(move |(_, p)| revision.is_some_and(|r| p.revision != *r) && !p.is_terminating())
            .map(|(o, p)| (*o, p))
    }

    /// A pod of an older template of which nothing runs is replaced whatever else is the matter:
    /// going back from a bad image must not wait for the bad image.
    pub(super) fn broken_pods(&self) -> Step {
        let (ordinal, pod) = self.outdated().filter(|(_, p)| !p.running).last()?;
        let step = format!("{} does not run, and is made anew", self.pod(ordinal));
        act(
            Action::DeletePod {
                pod: self.pod(ordinal),
                uid: pod.uid.clone(),
                resource_version: Some(pod.resource_version.clone()),
                now: false,
                without: None,
            },
            doing(OperationType::Upgrade, step, Some(ordinal), None),
        )
    }

    /// Balancing waits while pods are restarted, and for no longer.
    pub(super) fn resume(&self, view: &View) -> Step {
        let restarts = self.outdated().next().is_some() && !view.is_draining() && !self.is_late();
        (view.paused && !restarts).then_some(())?;
        let step = "balancing goes on";
        act(Action::Pause(false), doing(OperationType::Upgrade, step, None, None))
    }

    /// A pod is not ready past its deadline.
    fn is_late(&self) -> bool {
        let deadline = self.cluster.progress_deadline_ms;
        let age = |p: &Pod| self.world.now_unix_ms.saturating_sub(p.unready_unix_ms);
        self.world.pods.range(..self.size).any(|(_, p)| !p.is_settled() && age(p) > deadline)
    }

    pub(super) fn upgrade(&self, view: &View) -> Step {
        let mut outdated: Vec<_> = self.outdated().collect();
        if outdated.is_empty() {
            return None;
        }
        // A pod that leaves and is not ready leaves first.
        let leaving = self.world.pods.range(self.cluster.replicas.min(self.size)..self.size);
        if leaving.clone().any(|(_, p)| !p.is_settled()) {
            return None;
        }
        let left = outdated.len();
        let doing = |step: String, ordinal| doing(OperationType::Upgrade, step, ordinal, None);
        if view.under_replicated > 0 || view.leaderless > 0 {
            let step =
                format!("{left} pods wait until each partition has a leader and all its replicas");
            return wait(doing(step, None));
        }
        if !view.paused {
            let step = format!("{left} pods are to restart: balancing waits");
            return act(Action::Pause(true), doing(step, None));
        }
        // The meta group's leader last, else from the highest ordinal down.
        let node = |o: &Ordinal| self.world.claims.get(o).and_then(|c| c.node_id);
        outdated.sort_by_key(|(o, _)| {
            (node(o).is_some() && node(o) == view.meta_leader, std::cmp::Reverse(*o))
        });
        let (ordinal, pod) = outdated.first()?;
        let name = self.pod(*ordinal);
        let Some(node) = node(ordinal).filter(|n| view.member(*n).is_some()) else {
            return wait(doing(format!("waiting for {name} to join"), Some(*ordinal)));
        };
        let step = format!("{name} restarts, {left} left");
        let action = Action::Restart {
            pod: name,
            uid: pod.uid.clone(),
            node,
            // With one copy there is no safe moment.
            must_be_safe: self.cluster.replication_factor > 1,
        };
        act(action, doing(step, Some(*ordinal)))
    }

    /// Volumes grow before all else: a drain that was refused may wait for the room.
    pub(super) fn grow_volumes(&self) -> Step {
        let size = &self.cluster.storage_size;
        let doing = |step: String, ordinal| doing(OperationType::Resize, step, ordinal, None);
        for (ordinal, claim) in self.world.claims.range(..self.size) {
            if claim.size_bytes < self.cluster.storage_size_bytes && !claim.terminating {
                let claim_name = super::claim_name(&self.cluster.name, *ordinal);
                let step = format!("the volume of {} grows to {size}", self.pod(*ordinal));
                let (uid, size) = (claim.uid.clone(), size.clone());
                return act(
                    Action::ResizeClaim { claim: claim_name, uid, size },
                    doing(step, Some(*ordinal)),
                );
            }
        }
        None
    }

    /// The StatefulSet's template follows once all volumes have grown.
    pub(super) fn resize(&self) -> Step {
        let size = &self.cluster.storage_size;
        let set = self.world.stateful_set.as_ref()?;
        let same = crate::quantity::same(&set.storage_size, size);
        (!same).then(|| {
            let step =
                format!("the StatefulSet is made anew around its pods for volumes of {size}");
            (
                Some(Action::OrphanStatefulSet { uid: set.uid.clone() }),
                Some(doing(OperationType::Resize, step, None, None)),
                None,
            )
        })
    }
}
