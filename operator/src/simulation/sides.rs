//! The two sides that the operator writes to. Each call may be the operator's last, before or after it
//! took effect, and anything may happen before it.
use std::sync::Mutex;

use super::cluster::{CLUSTER_ID, NAME, Sim, SimMember, SimSet};
use crate::{
    decide::claim_name,
    plane::{DataPlane, Kubernetes, KubernetesError, PlaneError, Sizing},
    world::{Epoch, Identity, MemberState, NodeId, Ordinal, pod_name},
};

pub struct Sides<'a>(pub Mutex<&'a mut Sim>);

fn ordinal(pod: &str) -> Ordinal {
    pod.rsplit('-').next().unwrap().parse().unwrap()
}

fn changed<T>(what: &str) -> Result<T, KubernetesError> {
    Err(KubernetesError::Changed(what.into()))
}

impl Sides<'_> {
    /// One write: `effect` happens once, or not at all, and the operator may not hear of it.
    fn kubernetes<T>(
        &self,
        effect: impl FnOnce(&mut Sim) -> Result<T, KubernetesError>,
    ) -> Result<T, KubernetesError> {
        let mut sim = self.0.lock().unwrap();
        let died = || KubernetesError::Failed("the operator died".into());
        if sim.between_calls() {
            return Err(died());
        }
        let done = effect(&mut sim)?;
        sim.check_data();
        if sim.faults && sim.chance(5) { Err(died()) } else { Ok(done) }
    }

    fn plane<T>(
        &self,
        effect: impl FnOnce(&mut Sim) -> Result<T, PlaneError>,
    ) -> Result<T, PlaneError> {
        let mut sim = self.0.lock().unwrap();
        let died = || PlaneError::Unavailable("the operator died".into());
        if sim.between_calls() || !sim.plane_up {
            return Err(died());
        }
        let done = effect(&mut sim)?;
        sim.check_data();
        if sim.faults && sim.chance(5) { Err(died()) } else { Ok(done) }
    }

    /// A change to the data plane, which has to have a majority, and be at that epoch.
    fn change(
        &self,
        if_epoch: Epoch,
        effect: impl FnOnce(&mut Sim) -> Result<(), PlaneError>,
    ) -> Result<(), PlaneError> {
        self.plane(|sim| {
            if !sim.answers() {
                return Err(PlaneError::Unavailable("no majority".into()));
            }
            sim.check_epoch(if_epoch)?;
            sim.writes += 1;
            effect(sim)
        })
    }
}

fn refused(reason: &str, message: String) -> PlaneError {
    PlaneError::Refused { reason: reason.into(), message }
}

impl DataPlane for Sides<'_> {
    async fn bootstrap(&self, pod: &str, cluster_id: &str) -> Result<(), PlaneError> {
        self.plane(|sim| {
            let o = ordinal(pod);
            if !sim.pods.get(&o).is_some_and(|p| p.running) {
                return Err(PlaneError::Unavailable("not running".into()));
            }
            assert_eq!(cluster_id, CLUSTER_ID);
            sim.writes += 1;
            if sim.claims[&o].disk.is_some() {
                return Ok(());
            }
            if sim.bootstrapped {
                sim.broken("a second cluster was bootstrapped");
            }
            sim.note("bootstrap");
            sim.bootstrapped = true;
            let node = sim.id();
            let member = SimMember { name: pod.into(), state: MemberState::Active };
            sim.members.insert(node, member);
            sim.claims.get_mut(&o).unwrap().disk = Some(node);
            Ok(())
        })
    }

    async fn drain(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.change(if_epoch, |sim| {
            let others = sim.active().iter().filter(|n| **n != node && sim.is_up(**n)).count();
            if others < sim.spec.replication_factor as usize {
                return Err(refused("DRAIN_IMPOSSIBLE", format!("{others} others")));
            }
            if sim.members.values().any(|m| m.state == MemberState::Draining) {
                sim.broken("two nodes drain at once");
            }
            sim.note(format!("drain {node}"));
            sim.members.get_mut(&node).unwrap().state = MemberState::Draining;
            sim.epoch += 1;
            Ok(())
        })
    }

    async fn undrain(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.change(if_epoch, |sim| {
            let member = sim.members.get_mut(&node).unwrap();
            if member.state == MemberState::Removed {
                return Err(refused("MEMBER_NOT_FOUND", node.to_string()));
            }
            member.state = MemberState::Active;
            sim.epoch += 1;
            sim.note(format!("undrain {node}"));
            Ok(())
        })
    }

    async fn remove(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.change(if_epoch, |sim| {
            let holds = sim.holds(node);
            let member = sim.members.get_mut(&node).unwrap();
            if member.state == MemberState::Active || holds > 0 {
                return Err(refused("MEMBER_REFUSED", format!("{node} is not drained")));
            }
            member.state = MemberState::Removed;
            sim.epoch += 1;
            sim.note(format!("remove {node}"));
            if let Some(pod) = sim.ordinal_of(node).and_then(|o| sim.pods.get_mut(&o)) {
                (pod.running, pod.ready) = (false, false);
            }
            Ok(())
        })
    }

    async fn needs(&self, node: NodeId, if_epoch: Epoch) -> Result<Vec<String>, PlaneError> {
        self.plane(|sim| {
            if !sim.answers() {
                return Err(PlaneError::Unavailable("no majority".into()));
            }
            sim.check_epoch(if_epoch)?;
            let mut reasons = sim.lost_without(Some(node));
            let others = sim.living().iter().filter(|n| **n != node && sim.is_up(**n)).count();
            if others * 2 <= sim.living().len() {
                reasons.push("the meta group".into());
            }
            if reasons.is_empty() {
                sim.agreed = Some(node);
            }
            Ok(reasons)
        })
    }

    async fn transfer_leaders(&self, pod: &str, if_epoch: Epoch) -> Result<u32, PlaneError> {
        self.plane(|sim| {
            sim.check_epoch(if_epoch)?;
            let up = sim.pods.get(&ordinal(pod)).is_some_and(|p| p.running);
            let left = u32::from(sim.faults && sim.chance(10));
            if up { Ok(left) } else { Err(PlaneError::Unavailable("not running".into())) }
        })
    }

    async fn pause(&self, paused: bool, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.change(if_epoch, |sim| {
            sim.note(format!("pause {paused}"));
            sim.paused = paused;
            Ok(())
        })
    }
}

impl Kubernetes for Sides<'_> {
    async fn apply(&self, sizing: &Sizing) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let template = sim.template;
            let id = sim.id();
            let Some(set) = &sim.set else {
                if sizing.expected.is_some() {
                    return changed("the StatefulSet is gone");
                }
                sim.note(format!("the StatefulSet is made with {}", sizing.replicas));
                sim.writes += 1;
                sim.set = Some(SimSet {
                    uid: id,
                    version: id,
                    replicas: sizing.replicas,
                    template,
                    seen: None,
                    storage_size: sizing.storage_size.clone(),
                });
                return Ok(());
            };
            if sizing.expected != Some((set.uid.to_string(), set.version.to_string())) {
                return changed("the StatefulSet");
            }
            assert_eq!(set.storage_size, sizing.storage_size, "that field cannot change");
            let before = set.replicas;
            if (before, set.template) != (sizing.replicas, template) {
                sim.check_shrink(before, sizing.replicas);
                sim.note(format!("replicas {before} -> {}, {template:?}", sizing.replicas));
                sim.writes += 1;
                let set = sim.set.as_mut().unwrap();
                (set.replicas, set.template, set.version) = (sizing.replicas, template, id);
            }
            Ok(())
        })
    }

    async fn create_identity(&self, cluster_id: Option<&str>) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            assert!(cluster_id.is_none_or(|id| id == CLUSTER_ID));
            let resource_version = sim.id().to_string();
            sim.writes += 1;
            sim.identity.get_or_insert(Identity {
                cluster_id: CLUSTER_ID.into(),
                resource_version,
                bootstrap_claim_uid: None,
            });
            Ok(())
        })
    }

    async fn reserve_bootstrap(
        &self,
        claim_uid: &str,
        resource_version: &str,
    ) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let version = sim.id().to_string();
            let Some(identity) =
                sim.identity.as_mut().filter(|i| i.resource_version == resource_version)
            else {
                return changed("the Secret");
            };
            identity.bootstrap_claim_uid = Some(claim_uid.into());
            identity.resource_version = version;
            sim.writes += 1;
            Ok(())
        })
    }

    async fn record_node(
        &self,
        claim: &str,
        uid: &str,
        node: NodeId,
    ) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let o = ordinal(claim);
            let Some(c) = sim.claims.get_mut(&o).filter(|c| c.uid.to_string() == uid) else {
                return changed("the claim");
            };
            c.recorded = Some(node);
            let right = c.disk == Some(node);
            sim.writes += 1;
            sim.note(format!("claim {o} is node {node}'s"));
            if !right {
                sim.broken(format!("claim {o} is recorded as {node}'s, and is not"));
            }
            Ok(())
        })
    }

    async fn delete_pod(
        &self,
        pod: &str,
        uid: &str,
        resource_version: Option<&str>,
        now: bool,
    ) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let o = ordinal(pod);
            let Some(p) = sim.pods.get(&o).cloned() else { return Ok(()) };
            if p.uid.to_string() != uid
                || resource_version.is_some_and(|v| p.version.to_string() != v)
            {
                return changed(pod);
            }
            sim.check_stop(o, &p);
            sim.writes += 1;
            sim.note(format!("delete {pod}"));
            let at = sim.now_ms;
            if now {
                sim.pods.remove(&o);
            } else if let Some(p) = sim.pods.get_mut(&o) {
                p.deleted_ms.get_or_insert(at);
            }
            Ok(())
        })
    }

    async fn delete_claim(&self, claim: &str, uid: &str) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let o = ordinal(claim);
            let Some(c) = sim.claims.get_mut(&o) else { return Ok(()) };
            if c.uid.to_string() != uid {
                return changed(claim);
            }
            c.terminating = true;
            let c = c.clone();
            sim.check_discard(o, &c);
            sim.writes += 1;
            sim.note(format!("delete {} of {:?}", claim_name(NAME, o), c.disk));
            Ok(())
        })
    }

    async fn resize_claim(&self, claim: &str, uid: &str, _: &str) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            let bytes = sim.spec.storage_size_bytes;
            match sim.claims.get_mut(&ordinal(claim)).filter(|c| c.uid.to_string() == uid) {
                None => return changed(claim),
                Some(c) => c.size_bytes = bytes,
            }
            sim.writes += 1;
            Ok(())
        })
    }

    async fn orphan_stateful_set(&self, uid: &str) -> Result<(), KubernetesError> {
        self.kubernetes(|sim| {
            if sim.set.as_ref().is_none_or(|s| s.uid.to_string() != uid) {
                return changed("the StatefulSet");
            }
            sim.note("the StatefulSet is made anew");
            sim.writes += 1;
            sim.set = None;
            Ok(())
        })
    }
}

impl Sim {
    fn check_epoch(&self, if_epoch: Epoch) -> Result<(), PlaneError> {
        match if_epoch == 0 || if_epoch == self.epoch() {
            true => Ok(()),
            false => Err(PlaneError::Changed(format!("{if_epoch}, not {}", self.epoch()))),
        }
    }

    /// The size went from `before` to `after`.
    fn check_shrink(&mut self, before: u32, after: u32) {
        if after >= before || self.hibernates {
            return;
        }
        if before - after > 1 {
            self.broken(format!("{before} -> {after}: several pods would go at once"));
        }
        for o in after..before {
            let node = self.claims.get(&o).and_then(|c| c.disk);
            let holds = node.map_or(0, |n| self.holds(n));
            if holds > 0 {
                self.broken(format!("{} goes and holds {holds} replicas", pod_name(NAME, o)));
            }
        }
    }

    /// A pod is stopped.
    fn check_stop(&mut self, o: Ordinal, pod: &super::SimPod) {
        // With one copy there is no moment to agree to.
        if self.spec.replication_factor == 1 || !pod.running {
            return;
        }
        let Some(node) = self.claims.get(&o).and_then(|c| c.disk) else { return };
        if self.members[&node].state != MemberState::Removed && self.agreed != Some(node) {
            let name = pod_name(NAME, o);
            self.broken(format!("{name} is stopped, and the data plane did not agree"));
        }
    }

    /// A volume is given up.
    fn check_discard(&mut self, o: Ordinal, claim: &super::SimClaim) {
        let Some(node) = claim.disk else { return };
        let unneeded = claim.replace && self.agreed == Some(node);
        if self.members[&node].state != MemberState::Removed && !unneeded && self.holds(node) > 0 {
            self.broken(format!(
                "the volume of {} is deleted, and node {node} is a member",
                pod_name(NAME, o)
            ));
        }
    }

    /// Each partition keeps a majority of its data.
    pub fn check_data(&mut self) {
        let gone: Vec<_> = self
            .placement
            .iter()
            .filter(|p| p.iter().filter(|n| self.ordinal_of(**n).is_some()).count() <= p.len() / 2)
            .cloned()
            .collect();
        if let Some(p) = gone.first() {
            self.broken(format!("a partition of {p:?} has lost its data"));
        }
    }
}
