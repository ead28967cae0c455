//! What is read off the node with each scrape: its replicas, its disk, and of the meta group's leader
//! what the cluster is about to move.
use crate::api::node::Node;
use crate::ids::GroupId;
use crate::raft::handle::Role;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelValue, EncodeMetric,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use ringfold_proto::v1::{MemberState, MoveReason};
use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

pub struct OfNode(pub Arc<OnceLock<Weak<Node>>>);

impl std::fmt::Debug for OfNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OfNode")
    }
}

impl Collector for OfNode {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        match self.0.get().and_then(Weak::upgrade) {
            Some(node) => Out(encoder).node(&node),
            None => Ok(()),
        }
    }
}

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeGaugeValue + std::fmt::Debug,
    ) -> Result<(), Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    fn gauges<L: EncodeLabelValue>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let kind = ConstGauge::new(0_u64).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labelled, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&[(label, labelled)])?)?;
        }
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<(), Error> {
        let info = &node.info;
        self.gauges("info", "1; its version", "version", [(info.version, 1)])?;
        self.gauge("ready", "1: it may be counted on, as /readyz says", flag(node.is_ready()))?;
        self.gauge("uptime_seconds", "Since its start", info.started.elapsed().as_secs_f64())?;
        self.replicas(node)?;
        let disk = &info.disk;
        let bytes = [
            ("total", disk.total_bytes.load(Ordering::Relaxed)),
            ("free", disk.free_bytes.load(Ordering::Relaxed)),
            ("kept", disk.limit_bytes.load(Ordering::Relaxed)),
        ];
        let help = "Disk of the data directory; with less free than kept, appends are refused";
        self.gauges("disk_bytes", help, "kind", bytes)?;
        let refused = disk.appends_refused.load(Ordering::Relaxed);
        self.gauge("appends_refused", "1: the disk is nearly full", flag(refused))?;
        self.cluster(node)?;
        let counters = info.hooks.counters();
        let kind = ConstCounter::new(0_u64).metric_type();
        let help = "What was dropped or refused between nodes, by kind";
        let mut family = self.0.encode_descriptor("dropped", help, None, kind)?;
        for (kind, count) in &counters {
            let counter = ConstCounter::new(*count);
            counter.encode(family.encode_family(&[("kind", kind.as_str())])?)?;
        }
        Ok(())
    }

    fn replicas(&mut self, node: &Node) -> Result<(), Error> {
        let mut views: Vec<_> = node.raft.replicas.read().values().cloned().collect();
        views.sort_unstable_by_key(|v| v.group);
        let mut roles: BTreeMap<&str, u64> = ROLES.into_iter().map(|r| (name(r), 0)).collect();
        let (mut positions, mut unflushed) = (Vec::new(), 0);
        for view in &views {
            unflushed += view.unflushed_bytes.load(Ordering::Relaxed);
            let Some(partition) = view.group.partition() else { continue };
            *roles.entry(name(view.status.read().role)).or_default() += 1;
            positions.push((partition, view.applied.borrow().position));
        }
        let help = "Replicas of partitions, by role; a closed one neither votes nor answers";
        self.gauges("replicas", help, "role", roles)?;
        let help = "Position of the last event that was applied, by partition";
        self.gauges("applied_position", help, "partition", positions)?;
        self.gauge("unflushed_bytes", "Writes that are in memory and in the log only", unflushed)
    }

    /// What the meta group decides. How much is to move only its leader knows.
    fn cluster(&mut self, node: &Node) -> Result<(), Error> {
        let meta = node.meta.borrow().clone();
        let mut members: BTreeMap<&str, u64> = BTreeMap::new();
        for m in &meta.members {
            let state = i32::try_from(m.state).ok().and_then(|s| MemberState::try_from(s).ok());
            let state = match state {
                Some(MemberState::Joining) => "joining",
                Some(MemberState::Active) => "active",
                Some(MemberState::Draining) => "draining",
                _ => continue,
            };
            *members.entry(state).or_default() += 1;
        }
        self.gauges("members", "Nodes of the cluster, by state", "state", members)?;
        self.gauge("epoch", "Epoch of the placement; 0: not placed yet", meta.epoch)?;
        let leads = node.raft.leads(GroupId::META);
        self.gauge("leads_meta", "1: it leads the meta group", flag(leads))?;
        let Some(rebalancer) = node.info.hooks.rebalancer().filter(|_| leads) else {
            return Ok(());
        };
        let plan = rebalancer.plan().borrow().clone();
        let mut moves: BTreeMap<&str, u64> = BTreeMap::new();
        for m in &plan.moves {
            let reason = match m.reason() {
                MoveReason::Unspecified | MoveReason::Unfinished => "unfinished",
                MoveReason::Repair => "repair",
                MoveReason::Drain => "drain",
                MoveReason::Balance => "balance",
                MoveReason::Leaders => "leaders",
            };
            *moves.entry(reason).or_default() += 1;
        }
        let left = plan.moves.iter().map(|m| m.bytes.saturating_sub(m.bytes_done)).sum::<u64>();
        self.gauges("moves", "Replicas that are to move, by reason", "reason", moves)?;
        self.gauge("move_bytes_left", "Bytes of them that have not arrived, about", left)?;
        self.gauge("leader_moves", "Leaderships that are to move", plan.leader_moves)?;
        self.gauge("moves_paused", "1: balancing and draining wait", flag(plan.paused))
    }
}

const ROLES: [Role; 5] =
    [Role::Leader, Role::Follower, Role::Candidate, Role::Learner, Role::Closed];

fn name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Closed => "closed",
    }
}

fn flag(holds: bool) -> u64 {
    u64::from(holds)
}
