//! The state, and how it is observed.
use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    validate::Cluster,
    world::{
        Claim, Identity, Member, MemberState, NodeId, Ordinal, Pod, Report, StatefulSet, View,
        World, pod_name,
    },
};

pub const NAME: &str = "demo";
pub const CLUSTER_ID: &str = "the-cluster";

/// What a pod is made from: a number that rises with each change of image or settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    pub number: u32,
    /// Its container never runs.
    pub bad: bool,
}

#[derive(Clone, Debug)]
pub struct SimSet {
    pub uid: u64,
    pub version: u64,
    pub replicas: u32,
    pub template: Template,
    /// The template that its controller has seen.
    pub seen: Option<Template>,
    pub storage_size: String,
}

#[derive(Clone, Debug)]
pub struct SimPod {
    pub uid: u64,
    pub version: u64,
    pub template: Template,
    pub running: bool,
    pub ready: bool,
    pub deleted_ms: Option<u64>,
    pub unready_ms: u64,
}

#[derive(Clone, Debug)]
pub struct SimClaim {
    pub uid: u64,
    pub recorded: Option<NodeId>,
    pub terminating: bool,
    pub replace: bool,
    pub size_bytes: u64,
    /// Whose data really lies on the volume.
    pub disk: Option<NodeId>,
}

#[derive(Clone, Debug)]
pub struct SimMember {
    pub name: String,
    pub state: MemberState,
}

pub struct Sim {
    pub rng: StdRng,
    pub now_ms: u64,
    pub next: u64,
    pub spec: Cluster,
    /// What the spec makes pods from.
    pub template: Template,
    pub identity: Option<Identity>,
    pub set: Option<SimSet>,
    pub pods: BTreeMap<Ordinal, SimPod>,
    pub claims: BTreeMap<Ordinal, SimClaim>,
    pub bootstrapped: bool,
    pub members: BTreeMap<NodeId, SimMember>,
    /// Nodes that hold each partition; empty: not placed yet.
    pub placement: Vec<BTreeSet<NodeId>>,
    /// Changes of members since the partitions were placed.
    pub epoch: u64,
    pub paused: bool,
    pub plane_up: bool,
    /// Node that the data plane said it does not need, since the last thing that happened.
    pub agreed: Option<NodeId>,
    /// The spec that the operator acts on asks for it.
    pub hibernates: bool,
    /// Faults may still come.
    pub faults: bool,
    pub writes: u64,
    pub broken: Vec<String>,
    pub log: Vec<String>,
}

impl Sim {
    pub fn new(seed: u64, spec: Cluster) -> Sim {
        Sim {
            rng: StdRng::seed_from_u64(seed),
            now_ms: 1_000_000,
            next: 1,
            spec,
            template: Template { number: 1, bad: false },
            identity: None,
            set: None,
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            bootstrapped: false,
            members: BTreeMap::new(),
            placement: Vec::new(),
            epoch: 0,
            paused: false,
            plane_up: true,
            agreed: None,
            hibernates: false,
            faults: true,
            writes: 0,
            broken: Vec::new(),
            log: Vec::new(),
        }
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    pub fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.log.push(format!("{:>7} {text}", self.now_ms / 1_000 - 1_000));
    }

    /// Something that must never happen.
    pub fn broken(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("BROKEN: {text}"));
        self.broken.push(text);
    }

    pub fn ordinal_of(&self, node: NodeId) -> Option<Ordinal> {
        self.claims.iter().find(|(_, c)| c.disk == Some(node)).map(|(o, _)| *o)
    }

    /// Its process runs on its disk.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.ordinal_of(node).and_then(|o| self.pods.get(&o)).is_some_and(|p| p.running)
    }

    pub fn holds(&self, node: NodeId) -> u32 {
        self.placement.iter().filter(|p| p.contains(&node)).count() as u32
    }

    /// Partitions that have no majority of running replicas without that node.
    pub fn lost_without(&self, node: Option<NodeId>) -> Vec<String> {
        let up = |n: &&NodeId| Some(**n) != node && self.is_up(**n);
        self.placement
            .iter()
            .enumerate()
            .filter(|(_, p)| node.is_none_or(|n| p.contains(&n)))
            .filter(|(_, p)| p.iter().filter(up).count() <= p.len() / 2)
            .map(|(i, p)| format!("partition {i} of {p:?}"))
            .collect()
    }

    /// The meta group: half of the living members, more or less, and the least of them leads.
    pub fn answers(&self) -> bool {
        let living: Vec<_> = self.living();
        let up = living.iter().filter(|n| self.is_up(**n)).count();
        self.bootstrapped && self.plane_up && up * 2 > living.len()
    }

    pub fn living(&self) -> Vec<NodeId> {
        let living = self.members.iter().filter(|(_, m)| m.state != MemberState::Removed);
        living.map(|(n, _)| *n).collect()
    }

    pub fn active(&self) -> Vec<NodeId> {
        let active = self.members.iter().filter(|(_, m)| m.state == MemberState::Active);
        active.map(|(n, _)| *n).collect()
    }

    pub fn observe(&self) -> World {
        let set = self.set.as_ref().map(|s| StatefulSet {
            uid: s.uid.to_string(),
            resource_version: s.version.to_string(),
            replicas: s.replicas,
            revision: s.seen.filter(|t| *t == s.template).map(|t| t.number.to_string()),
            image: "image".into(),
            storage_size: s.storage_size.clone(),
            terminating: false,
        });
        let pod = |p: &SimPod| Pod {
            uid: p.uid.to_string(),
            resource_version: p.version.to_string(),
            revision: p.template.number.to_string(),
            ready: p.ready,
            running: p.running,
            unready_unix_ms: p.unready_ms,
            deleted_unix_ms: p.deleted_ms,
            trouble: p.template.bad.then(|| "ErrImagePull".into()),
        };
        let claim = |c: &SimClaim| Claim {
            uid: c.uid.to_string(),
            node_id: c.recorded,
            terminating: c.terminating,
            size_bytes: c.size_bytes,
            replace: c.replace,
        };
        World {
            identity: self.identity.clone(),
            stateful_set: set,
            pods: self.pods.iter().map(|(o, p)| (*o, pod(p))).collect(),
            claims: self.claims.iter().map(|(o, c)| (*o, claim(c))).collect(),
            reports: self.reports(),
            view: self.answers().then(|| self.view()),
            authority_unreadable: None,
            now_unix_ms: self.now_ms,
        }
    }

    fn reports(&self) -> BTreeMap<Ordinal, Report> {
        let answering = self.pods.iter().filter(|(_, p)| p.running && self.plane_up);
        let report = |o: &Ordinal| Report {
            node: self.claims[o].disk.map(|n| (n, CLUSTER_ID.to_owned())),
            version: "1".into(),
            lost_reason: None,
            waiting: Vec::new(),
            authorities: None,
        };
        answering.map(|(o, _)| (*o, report(o))).collect()
    }

    /// 0 before anything is placed.
    pub fn epoch(&self) -> u64 {
        if self.placement.is_empty() { 0 } else { 1 + self.epoch }
    }

    fn view(&self) -> View {
        let member = |n: NodeId, m: &SimMember| Member {
            name: m.name.clone(),
            zone: String::new(),
            state: m.state,
            reachable: self.is_up(n),
            replicas: self.holds(n),
            leaders: 0,
        };
        let copies = self.spec.replication_factor as usize;
        let up = |p: &&BTreeSet<NodeId>| p.iter().filter(|n| self.is_up(**n)).count();
        View {
            cluster_id: CLUSTER_ID.into(),
            epoch: self.epoch(),
            partitions: self.placement.len() as u32,
            members: self.members.iter().map(|(n, m)| (*n, member(*n, m))).collect(),
            meta_leader: self.living().into_iter().find(|n| self.is_up(*n)),
            paused: self.paused,
            under_replicated: self.placement.iter().filter(|p| up(p) < copies).count() as u32,
            leaderless: self.placement.iter().filter(|p| up(p) <= p.len() / 2).count() as u32,
            ..View::default()
        }
    }

    /// What the spec asks for, and nothing more.
    pub fn not_at_rest(&self) -> Option<String> {
        let want = self.spec.replicas;
        let set = self.set.as_ref()?;
        if set.replicas != want {
            return Some(format!("the StatefulSet has {} replicas, not {want}", set.replicas));
        }
        let pods: Vec<_> = self.pods.keys().copied().collect();
        if pods != (0..want).collect::<Vec<_>>() {
            return Some(format!("pods {pods:?}"));
        }
        if let Some((o, p)) = self
            .pods
            .iter()
            .find(|(_, p)| !p.ready || p.template != self.template || p.deleted_ms.is_some())
        {
            return Some(format!("pod {o}: {p:?}, wanted {:?}", self.template));
        }
        let claims: Vec<_> = self.claims.keys().copied().collect();
        if claims != (0..want).collect::<Vec<_>>() {
            return Some(format!("claims {claims:?}"));
        }
        let names: BTreeSet<_> =
            self.active().iter().map(|n| self.members[n].name.clone()).collect();
        if self.living().len() != want as usize
            || names != (0..want).map(|o| pod_name(NAME, o)).collect()
        {
            return Some(format!("members {:?}", self.members));
        }
        if self.placement.iter().any(|p| p.len() < self.spec.replication_factor as usize) {
            return Some(format!("placement {:?}", self.placement));
        }
        let grown = self.claims.values().all(|c| c.size_bytes == self.spec.storage_size_bytes);
        if !grown || set.storage_size != self.spec.storage_size {
            return Some(format!("storage {}, claims {:?}", set.storage_size, self.claims));
        }
        self.paused.then(|| "balancing is paused".into())
    }
}
