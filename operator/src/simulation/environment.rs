//! What happens without the operator: controllers, kubelets, the data plane, people, and faults.
use rand::{Rng as _, seq::IndexedRandom as _};

use super::cluster::{NAME, Sim, SimClaim, SimMember, SimPod, Template};
use crate::{
    quantity,
    world::{MemberState, NodeId, Ordinal, pod_name},
};

const PARTITIONS: usize = 8;

impl Sim {
    /// Whatever happens between two calls of the operator. `true`: it died.
    pub fn between_calls(&mut self) -> bool {
        if self.chance(25) {
            for _ in 0..self.rng.random_range(1..4) {
                self.happen();
            }
        }
        self.faults && self.chance(4)
    }

    /// One thing happens.
    pub fn happen(&mut self) {
        self.now_ms += self.rng.random_range(500..5_000);
        match self.rng.random_range(0..100) {
            0..30 => self.controller(),
            30..65 => self.kubelet(),
            65..95 => self.data_plane(),
            _ if self.faults => self.fault(),
            _ => {}
        }
    }

    /// The StatefulSet's controller, with Parallel and OnDelete, and the claims' protection.
    fn controller(&mut self) {
        let pods = &self.pods;
        self.claims.retain(|o, c| !c.terminating || pods.contains_key(o));
        let (id, now) = (self.id(), self.now_ms);
        let Some(set) = self.set.as_mut() else { return };
        set.seen = Some(set.template);
        let set = set.clone();
        for pod in self.pods.range_mut(set.replicas..).map(|(_, p)| p) {
            pod.deleted_ms.get_or_insert(now);
        }
        for o in 0..set.replicas {
            if self.pods.contains_key(&o) {
                continue;
            }
            if self.claims.get(&o).is_some_and(|c| c.terminating) {
                continue;
            }
            let claim = self.id();
            self.claims.entry(o).or_insert_with(|| SimClaim {
                uid: claim,
                recorded: None,
                terminating: false,
                replace: false,
                size_bytes: quantity::bytes(&set.storage_size).unwrap(),
                disk: None,
            });
            let pod = SimPod {
                uid: id + 1_000_000 * (u64::from(o) + 1),
                version: id,
                template: set.template,
                running: false,
                ready: false,
                deleted_ms: None,
                unready_ms: now,
            };
            self.pods.insert(o, pod);
        }
    }

    fn some_pod(&mut self) -> Option<Ordinal> {
        let ordinals: Vec<_> = self.pods.keys().copied().collect();
        ordinals.choose(&mut self.rng).copied()
    }

    fn kubelet(&mut self) {
        let Some(o) = self.some_pod() else { return };
        let (now, version, node) = (self.now_ms, self.id(), self.id());
        let joins = self.answers();
        let name = pod_name(NAME, o);
        let Some(claim) = self.claims.get_mut(&o) else { return };
        let pod = self.pods.get_mut(&o).unwrap();
        if pod.deleted_ms.is_some() {
            self.pods.remove(&o);
            self.note(format!("{name} is gone"));
            return;
        }
        pod.version = version;
        if pod.template.bad {
            return;
        }
        let removed = claim.disk.is_some_and(|n| self.members[&n].state == MemberState::Removed);
        if removed {
            (pod.running, pod.ready) = (false, false);
        } else if !pod.running {
            (pod.running, pod.unready_ms) = (true, now);
        } else if claim.disk.is_none() && joins {
            claim.disk = Some(node);
            self.members
                .insert(node, SimMember { name: name.clone(), state: MemberState::Joining });
            self.note(format!("{name} joins as {node}"));
        } else if let Some(n) = claim.disk
            && joins
        {
            let member = self.members.get_mut(&n).unwrap();
            if member.state == MemberState::Joining {
                member.state = MemberState::Active;
            }
            pod.ready = true;
        }
    }

    /// One move: place, repair, drain or balance. Repairs go on while the rest is paused.
    fn data_plane(&mut self) {
        if !self.answers() {
            return;
        }
        let up: Vec<_> = self.active().into_iter().filter(|n| self.is_up(*n)).collect();
        let copies = self.spec.replication_factor as usize;
        if self.placement.is_empty() {
            if up.len() >= copies {
                for _ in 0..PARTITIONS {
                    let nodes = up.choose_multiple(&mut self.rng, copies).copied().collect();
                    self.placement.push(nodes);
                }
            }
            return;
        }
        for _ in 0..4 {
            let p = self.rng.random_range(0..self.placement.len());
            let nodes: Vec<NodeId> = self.placement[p].iter().copied().collect();
            let running = nodes.iter().filter(|n| self.is_up(**n)).count();
            if running * 2 <= nodes.len() {
                continue;
            }
            let load = |n: &NodeId| self.holds(*n);
            let Some(to) =
                up.iter().filter(|n| !nodes.contains(n)).min_by_key(|n| load(n)).copied()
            else {
                continue;
            };
            let lost = nodes.iter().find(|n| self.ordinal_of(**n).is_none());
            let draining = nodes.iter().find(|n| self.members[n].state == MemberState::Draining);
            let most = nodes.iter().max_by_key(|n| load(n)).filter(|n| load(n) > load(&to) + 1);
            let from = lost.or(draining.or(most).filter(|_| !self.paused)).copied();
            if let Some(from) = from {
                self.placement[p].remove(&from);
                self.placement[p].insert(to);
            }
        }
    }

    /// All data is there, all nodes are up, and nobody asked for any of it to go.
    fn is_whole(&self) -> bool {
        self.spec.replication_factor > 1
            && self.living().iter().all(|n| self.is_up(*n))
            && self.pods.values().all(|p| p.deleted_ms.is_none())
            && self.claims.values().all(|c| !c.terminating && !c.replace)
            && self.set.as_ref().is_some_and(|s| s.replicas >= self.pods.len() as u32)
    }

    fn terminating_claims(&self) -> bool {
        self.claims.values().any(|c| c.terminating)
    }

    fn fault(&mut self) {
        let what = self.rng.random_range(0..14);
        match what {
            0 | 1 => self.change_size(),
            2 => self.change_template(),
            3 => self.plane_up = !self.plane_up,
            4 => {
                if let Some(o) = self.some_pod() {
                    let pod = self.pods.get_mut(&o).unwrap();
                    (pod.running, pod.ready, pod.unready_ms) = (false, false, self.now_ms);
                    self.note(format!("pod {o} crashes"));
                }
            }
            5 => {
                if let Some(o) = self.some_pod()
                    && !self.terminating_claims()
                {
                    let now = self.now_ms;
                    self.pods.get_mut(&o).unwrap().deleted_ms.get_or_insert(now);
                    self.note(format!("pod {o} is evicted"));
                }
            }
            6 if !self.bootstrapped && self.chance(50) => {
                self.pods.remove(&0);
                self.claims.remove(&0);
                self.note("the first volume is lost before it holds anything");
            }
            6 if self.is_whole() && !self.spec.hibernated => self.lose_a_volume(),
            7 if self.is_whole() && !self.spec.hibernated => self.ask_for_replacement(),
            8 => {
                let replicas = self.rng.random_range(0..7);
                let version = self.id();
                if let Some(set) =
                    self.set.as_mut().filter(|_| self.claims.values().all(|c| !c.terminating))
                {
                    (set.replicas, set.version) = (replicas, version);
                    self.note(format!("kubectl scale sts --replicas={replicas}"));
                }
            }
            9 => {
                self.spec.paused = !self.spec.paused;
                self.note(format!("spec.paused = {}", self.spec.paused));
            }
            10 if !self.terminating_claims() => {
                self.spec.hibernated = !self.spec.hibernated;
                self.note(format!("spec.hibernated = {}", self.spec.hibernated));
            }
            11 if !self.terminating_claims() && self.chance(30) => self.delete_the_resource(),
            12 => {
                let gib = quantity::bytes(&self.spec.storage_size).unwrap() / (1 << 30) + 1;
                self.spec.storage_size = format!("{gib}Gi");
                self.spec.storage_size_bytes = gib << 30;
                self.note(format!("spec.storage.size = {gib}Gi"));
            }
            13 if self.bootstrapped && self.chance(20) => {
                self.identity = None;
                self.note("somebody deletes the Secret");
            }
            _ => {}
        }
    }

    pub fn change_size(&mut self) {
        if !self.spec.hibernated {
            self.spec.replicas = self.rng.random_range(self.spec.replication_factor..7);
            self.note(format!("spec.replicas = {}", self.spec.replicas));
        }
    }

    pub fn change_template(&mut self) {
        let bad = self.faults && self.chance(25);
        self.template = Template { number: self.template.number + 1, bad };
        self.note(format!("spec.image: {:?}", self.template));
    }

    fn lose_a_volume(&mut self) {
        let nodes = self.active();
        let Some(node) = nodes.choose(&mut self.rng).copied() else { return };
        if nodes.len() < 3 || !self.lost_without(Some(node)).is_empty() {
            return;
        }
        let o = self.ordinal_of(node).unwrap();
        self.pods.remove(&o);
        self.claims.remove(&o);
        self.note(format!("the volume of pod {o}, node {node}, is lost"));
    }

    /// By the annotation, or by deleting the claim; of a node that is up or down.
    fn ask_for_replacement(&mut self) {
        let nodes = self.active();
        let Some(node) = nodes.choose(&mut self.rng).copied() else { return };
        if nodes.len() < 3 || !self.lost_without(Some(node)).is_empty() {
            return;
        }
        let o = self.ordinal_of(node).unwrap();
        let (down, by_deletion) = (self.chance(50), self.chance(30));
        if down && let Some(pod) = self.pods.get_mut(&o) {
            (pod.running, pod.ready, pod.unready_ms) = (false, false, self.now_ms);
        }
        let claim = self.claims.get_mut(&o).unwrap();
        claim.replace = true;
        claim.terminating = by_deletion;
        self.note(format!("pod {o} is to be replaced: down {down}, claim deleted {by_deletion}"));
    }

    /// `kubectl delete esc`, and the same name again: volumes and the Secret stay.
    fn delete_the_resource(&mut self) {
        self.set = None;
        self.pods.clear();
        self.note("the resource is deleted and made again");
    }

    /// No more faults; what is asked for is possible.
    pub fn calm_down(&mut self) {
        self.faults = false;
        self.plane_up = true;
        self.spec.paused = false;
        self.spec.hibernated = false;
        self.change_size();
        if self.template.bad || self.chance(50) {
            self.change_template();
        }
        // A person does what the message says.
        let reserved = self.identity.as_ref().and_then(|i| i.bootstrap_claim_uid.clone());
        let first = self.claims.get(&0).map(|c| c.uid.to_string());
        if !self.bootstrapped && reserved.is_some() && reserved != first {
            self.identity = None;
        }
        self.note(format!("calm: {} replicas, {:?}", self.spec.replicas, self.template));
    }
}
