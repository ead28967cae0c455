//! The nodes, through the client.
use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, future::join_all};
use ringfold_client::{
    BootstrapRequest, Client, ClientConfig, ClientError, MemberState as ProtoState, MoveReason,
    RebalancePlan, Tls, Topology,
};
use ringfold_tls::Pem;

use crate::{
    build::client_url,
    plane::{DataPlane, PlaneError},
    validate::Cluster,
    world::{Epoch, Member, MemberState, NodeId, Ordinal, Report, View, pod_name},
};

/// Handing over leaderships takes the longest.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Nodes that are asked at first; any of them names the others.
const ENDPOINTS_MAX: usize = 5;

/// A cluster's nodes. Connections are kept between reconciles.
pub struct Plane {
    cluster: String,
    namespace: String,
    partitions: u32,
    replication_factor: u32,
    /// As an administrator; `None`: there is no TLS, or no certificate yet.
    tls: parking_lot::Mutex<Option<Tls>>,
    with_tls: bool,
    client: tokio::sync::Mutex<Option<Client>>,
}

fn failed(error: ClientError) -> PlaneError {
    match error {
        ClientError::Refused(e) if e.reason == "STALE_EPOCH" => PlaneError::Changed(e.message),
        ClientError::Refused(e) => {
            PlaneError::Refused { reason: e.reason.clone(), message: e.message }
        }
        other => PlaneError::Unavailable(other.to_string()),
    }
}

impl Plane {
    pub fn new(cluster: &Cluster) -> Plane {
        Plane {
            cluster: cluster.name.clone(),
            namespace: cluster.namespace.clone(),
            partitions: cluster.partitions,
            replication_factor: cluster.replication_factor,
            tls: parking_lot::Mutex::new(None),
            with_tls: cluster.tls,
            client: tokio::sync::Mutex::new(None),
        }
    }

    fn url(&self, pod: &str) -> String {
        client_url(&self.cluster, &self.namespace, pod, self.with_tls)
    }

    /// The certificate as it is now: new connections show it.
    pub fn show(&self, pem: &Pem) {
        let mut tls = self.tls.lock();
        let shown = match &*tls {
            Some(tls) => tls.replace(pem).map(|_| ()),
            None => Tls::from_pem("the administrator's Secret", pem).map(|new| *tls = Some(new)),
        };
        if let Err(error) = shown {
            tracing::warn!(cluster = self.cluster, %error, "the nodes cannot be asked with it");
        }
    }

    /// Connected, with the pods that run. An error leaves it to the next look.
    async fn client(&self, running: &[Ordinal]) -> Result<Client, PlaneError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let pods = running.iter().take(ENDPOINTS_MAX);
        let urls = pods.map(|o| self.url(&pod_name(&self.cluster, *o)));
        let config = ClientConfig {
            deadline: DEADLINE,
            connect_timeout: CONNECT_TIMEOUT,
            channels_per_node: 1,
            tls: self.tls.lock().clone(),
            ..ClientConfig::new(urls)
        };
        let client = Client::connect(config).await.map_err(failed)?;
        Ok(kept.insert(client).clone())
    }

    async fn connected(&self) -> Result<Client, PlaneError> {
        let kept = self.client.lock().await.clone();
        kept.ok_or_else(|| PlaneError::Unavailable("no node has answered yet".into()))
    }

    async fn at(&self, epoch: Epoch) -> Result<Client, PlaneError> {
        Ok(self.connected().await?.at_epoch(epoch))
    }

    /// What each pod's node says of itself, and the cluster as its meta group's leader sees it.
    pub async fn look(&self, running: &[Ordinal]) -> (BTreeMap<Ordinal, Report>, Option<View>) {
        if running.is_empty() {
            return (BTreeMap::new(), None);
        }
        let client = match self.client(running).await {
            Ok(client) => client,
            Err(error) => {
                tracing::info!(cluster = self.cluster, %error, "no node answers");
                return (BTreeMap::new(), None);
            }
        };
        let (reports, view) =
            tokio::join!(join_all(running.iter().map(|o| self.report(&client, *o))), view(&client));
        let view = match view {
            Ok(view) => view,
            Err(error) => {
                tracing::info!(cluster = self.cluster, %error, "the cluster does not answer");
                // Its pods may have got other addresses.
                *self.client.lock().await = None;
                None
            }
        };
        let reports: Vec<_> = reports.into_iter().flatten().collect();
        let view = view.map(|(mut topology, plan)| {
            for (_, _, led) in &reports {
                add_leaders(&mut topology, led);
            }
            seen_as(&topology, plan.as_ref())
        });
        (reports.into_iter().map(|(ordinal, report, _)| (ordinal, report)).collect(), view)
    }

    async fn report(
        &self,
        client: &Client,
        ordinal: Ordinal,
    ) -> Option<(Ordinal, Report, Vec<Led>)> {
        let url = self.url(&pod_name(&self.cluster, ordinal));
        let status = client.node_status(&url).await;
        let status = status
            .inspect_err(|error| tracing::debug!(url, %error, "a node does not answer"))
            .ok()?;
        let leads = |r: &ringfold_client::ReplicaStatus| {
            let leads = r.state() == ringfold_client::ReplicaState::Leader;
            leads.then_some(Led { partition: r.partition?, node: status.node_id, term: r.term })
        };
        let led = status.replicas.iter().filter_map(leads).collect();
        let report = Report {
            node: (status.node_id != 0 && !status.cluster_id.is_empty())
                .then_some((status.node_id, status.cluster_id)),
            version: status.version,
            lost_reason: Some(status.lost_reason).filter(|r| !r.is_empty()),
            waiting: status.waiting,
            authorities: Some(status.authorities).filter(|a| !a.is_empty()),
        };
        Some((ordinal, report, led))
    }
}

/// A partition that a node says it leads.
struct Led {
    partition: u32,
    node: NodeId,
    term: u64,
}

/// A node knows the leaders of the partitions that it holds: with more nodes than replicas, no single
/// one knows all.
fn add_leaders(topology: &mut Topology, led: &[Led]) {
    for Led { partition, node, term } in led {
        let of = topology.partition_map.iter_mut().find(|p| p.partition == *partition);
        if let Some(p) = of
            && (p.leader_node_id == 0 || p.term < *term)
        {
            (p.leader_node_id, p.term) = (*node, *term);
        }
    }
}

/// `None`: there is no cluster yet. The leader looks anew for the plan, so its topology afterwards has
/// every change that was confirmed before the question.
async fn view(client: &Client) -> Result<Option<(Topology, Option<RebalancePlan>)>, PlaneError> {
    let known = client.topology().await.map_err(failed)?;
    if known.cluster_id.is_empty() {
        return Ok(None);
    }
    let plan = match known.epoch {
        0 => None,
        _ => Some(client.rebalance_plan().await.map_err(failed)?),
    };
    let leader = known.members.iter().find(|m| m.node_id == known.meta_leader_node_id);
    let Some(leader) = leader else {
        return Err(PlaneError::Unavailable("the meta group has no leader".into()));
    };
    let seen = client.topology_of(&leader.client_url).await.map_err(failed)?;
    let epoch = plan.as_ref().map_or(0, |p| p.epoch);
    if seen.meta_leader_node_id != seen.node_id || seen.epoch < epoch {
        return Err(PlaneError::Unavailable("the meta group's leader changes".into()));
    }
    Ok(Some((seen, plan)))
}

fn seen_as(topology: &Topology, plan: Option<&RebalancePlan>) -> View {
    let state = |m: &ringfold_client::Member| match m.state() {
        ProtoState::Active => MemberState::Active,
        ProtoState::Draining => MemberState::Draining,
        ProtoState::Removed => MemberState::Removed,
        ProtoState::Joining | ProtoState::Unspecified => MemberState::Joining,
    };
    let holds = |node: NodeId| {
        let parts = topology.partition_map.iter();
        parts
            .filter(|p| {
                p.replicas.iter().any(|r| r.node_id == node) || p.target_node_ids.contains(&node)
            })
            .count() as u32
    };
    let leads = |node: NodeId| {
        topology.partition_map.iter().filter(|p| p.leader_node_id == node).count() as u32
    };
    let members: BTreeMap<_, _> = topology
        .members
        .iter()
        .map(|m| {
            let member = Member {
                name: m.name.clone(),
                zone: m.zone.clone(),
                state: state(m),
                reachable: m.reachable,
                replicas: holds(m.node_id),
                leaders: leads(m.node_id),
            };
            (m.node_id, member)
        })
        .collect();
    let moves = plan.map(|p| p.moves.as_slice()).unwrap_or_default();
    let is_whole = |p: &ringfold_client::Partition| {
        let up = |r: &&ringfold_client::Replica| {
            members.get(&r.node_id).is_some_and(|m| m.reachable && m.state != MemberState::Removed)
        };
        let repaired = |m: &ringfold_client::Move| {
            m.partition == p.partition && m.reason() == MoveReason::Repair
        };
        p.replicas.iter().filter(up).count() >= topology.replication_factor as usize
            && !moves.iter().any(repaired)
    };
    let reason = moves.iter().map(|m| m.reason()).min_by_key(|r| *r as i32);
    let leader_moves = plan.map_or(0, |p| p.leader_moves);
    View {
        cluster_id: topology.cluster_id.clone(),
        epoch: topology.epoch,
        feature_level: topology.feature_level,
        partitions: topology.partitions,
        meta_leader: Some(topology.meta_leader_node_id).filter(|n| *n != 0),
        paused: plan.is_some_and(|p| p.paused),
        at_rest: plan.is_some_and(|p| p.at_rest),
        moves: moves.len() as u32,
        move_reason: reason
            .map(|r| word(r).to_owned())
            .or((leader_moves > 0).then(|| "Leaders".into())),
        leader_moves,
        under_replicated: topology.partition_map.iter().filter(|p| !is_whole(p)).count() as u32,
        leaderless: topology.partition_map.iter().filter(|p| p.leader_node_id == 0).count() as u32,
        waiting: plan.map(|p| p.waiting.clone()).unwrap_or_default(),
        members,
    }
}

fn word(reason: MoveReason) -> &'static str {
    match reason {
        MoveReason::Unspecified | MoveReason::Unfinished => "Unfinished",
        MoveReason::Repair => "Repair",
        MoveReason::Drain => "Drain",
        MoveReason::Balance => "Balance",
        MoveReason::Leaders => "Leaders",
    }
}

impl DataPlane for Plane {
    async fn bootstrap(&self, pod: &str, cluster_id: &str) -> Result<(), PlaneError> {
        let request = BootstrapRequest {
            cluster_id: cluster_id.to_owned(),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            ..BootstrapRequest::default()
        };
        let client = self.connected().await?;
        client.bootstrap(&self.url(pod), request).await.map(|_| ()).map_err(failed)
    }

    async fn drain(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        let mut progress = self.at(if_epoch).await?.drain(node);
        match progress.next().await {
            Some(Ok(_)) => Ok(()),
            Some(Err(e)) => Err(failed(e)),
            None => Err(PlaneError::Unavailable("the answers broke off".into())),
        }
    }

    async fn undrain(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.at(if_epoch).await?.undrain(node).await.map_err(failed)
    }

    async fn remove(&self, node: NodeId, if_epoch: Epoch) -> Result<(), PlaneError> {
        self.at(if_epoch).await?.remove_member(node).await.map_err(failed)
    }

    async fn needs(&self, node: NodeId, if_epoch: Epoch) -> Result<Vec<String>, PlaneError> {
        let answer = self.at(if_epoch).await?.safe_to_stop(node).await.map_err(failed)?;
        match (answer.safe, answer.reasons.is_empty()) {
            (true, _) => Ok(Vec::new()),
            (false, true) => Ok(vec!["the cluster needs it, and does not say why".into()]),
            (false, false) => Ok(answer.reasons),
        }
    }

    async fn transfer_leaders(&self, pod: &str, if_epoch: Epoch) -> Result<u32, PlaneError> {
        let client = self.at(if_epoch).await?;
        let done = client.transfer_leaders(&self.url(pod)).await.map_err(failed)?;
        Ok(done.remaining)
    }

    async fn pause(&self, paused: bool, if_epoch: Epoch) -> Result<(), PlaneError> {
        let client = self.at(if_epoch).await?;
        match paused {
            true => client.rebalance_pause().await.map_err(failed),
            false => client.rebalance_resume().await.map_err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use ringfold_client::Partition;

    use super::*;

    #[test]
    fn leaders_are_what_the_nodes_say_of_themselves_and_the_later_term_counts() {
        let partition = |partition, leader_node_id, term| Partition {
            partition,
            leader_node_id,
            term,
            ..Partition::default()
        };
        let mut topology = Topology {
            partition_map: vec![partition(0, 0, 0), partition(1, 3, 5), partition(2, 3, 5)],
            ..Topology::default()
        };
        let led = |partition, node, term| Led { partition, node, term };
        add_leaders(&mut topology, &[led(0, 7, 2), led(1, 7, 4), led(2, 7, 6), led(9, 7, 1)]);
        let leaders: Vec<_> = topology.partition_map.iter().map(|p| p.leader_node_id).collect();
        assert_eq!(leaders, [7, 3, 7]);
    }
}
