//! A cluster that grows by one node and shrinks by one, again and again, so that partitions move for
//! as long as a test wants. Nothing here waits: faults may be made between any two looks.
use ringfold_proto::v1::{Member, MemberState, RemoveMemberRequest};

use crate::cluster::{LocalCluster, REMOVED_EXIT, RPC_MAX, timed, within};
use crate::load::Running;

/// What is under way, by the node's place in `cluster.nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Small,
    Large,
    Draining(usize),
    /// Removed, but its process has not ended yet.
    Leaving(usize),
}

/// Between `members` and one more.
#[derive(Debug)]
pub struct Resize {
    members: usize,
    stage: Stage,
    /// How often it has grown, and how often a node has left.
    pub grown: u32,
    pub left: u32,
    /// A cut-off node is asked nothing, and its opinion is none.
    pub cut_off: Option<usize>,
}

impl Resize {
    pub fn new(members: usize) -> Self {
        Self { members, stage: Stage::Small, grown: 0, left: 0, cut_off: None }
    }

    /// Who drains now.
    pub fn draining(&self) -> Option<usize> {
        match self.stage {
            Stage::Draining(i) => Some(i),
            _ => None,
        }
    }

    /// Who was removed, and ends by itself.
    pub fn leaving(&self) -> Option<usize> {
        match self.stage {
            Stage::Leaving(i) => Some(i),
            _ => None,
        }
    }

    /// Nothing is under way, and the cluster has its first size.
    pub fn is_small(&self) -> bool {
        self.stage == Stage::Small
    }

    /// Begins what comes next if what was begun has ended. A call that fails is made again at the
    /// next look.
    pub async fn go_on(&mut self, cluster: &mut LocalCluster, running: &Running) {
        if let Stage::Leaving(i) = self.stage {
            if cluster.nodes[i].pid().is_none() {
                cluster.start_node(i);
            }
            match cluster.exited(i) {
                None => {}
                Some(REMOVED_EXIT) => {
                    cluster.nodes[i].is_removed = true;
                    running.use_nodes(cluster);
                    self.left += 1;
                    self.stage = Stage::Small;
                }
                // Killed before it heard of it: it hears when it starts again.
                Some(_) => cluster.start_node(i),
            }
            return;
        }
        let Some((at_rest, draining, removed)) = self.at_rest_with(cluster).await else { return };
        if let Stage::Draining(i) = self.stage
            && removed.contains(&i)
        {
            self.stage = Stage::Leaving(i);
            return;
        }
        if let (Stage::Large, Some(i)) = (self.stage, draining) {
            // The call failed, but what it asked for had been taken.
            self.stage = Stage::Draining(i);
        }
        match self.stage {
            Stage::Small if at_rest == self.members => {
                let i = cluster.grow();
                running.use_nodes(cluster);
                self.grown += 1;
                self.stage = Stage::Large;
                eprintln!("node {i} joins");
            }
            Stage::Large if at_rest > self.members => {
                // The oldest: it leads, and may vote in the meta group.
                let Some(i) = (0..cluster.nodes.len()).find(|i| cluster.is_running(*i)) else {
                    return;
                };
                match cluster.drain(i).await {
                    Ok(()) => self.stage = Stage::Draining(i),
                    Err(status) => eprintln!("node {i} shall drain: {status}"),
                }
            }
            Stage::Draining(i) if at_rest == self.members => {
                let node_id = cluster.node_id(i).await;
                let others: Vec<_> = self.asked(cluster).filter(|n| *n != i).collect();
                for n in others {
                    let request = timed(RemoveMemberRequest { node_id, if_epoch: 0 }, RPC_MAX);
                    let mut admin = cluster.nodes[n].admin();
                    if within(admin.remove_member(request), RPC_MAX).await.is_ok() {
                        self.stage = Stage::Leaving(i);
                        eprintln!("node {i} has drained and is removed");
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    /// Nodes that are asked, by their place.
    fn asked<'a>(&'a self, cluster: &'a LocalCluster) -> impl Iterator<Item = usize> + 'a {
        let asked = |i: &usize| cluster.is_running(*i) && self.cut_off != Some(*i);
        (0..cluster.nodes.len()).filter(asked)
    }

    /// With how many active members nothing is left to move; who drains or has drained; who was
    /// removed.
    async fn at_rest_with(
        &self,
        cluster: &LocalCluster,
    ) -> Option<(usize, Option<usize>, Vec<usize>)> {
        let node = &cluster.nodes[self.asked(cluster).next()?];
        let plan = cluster.plan_of(node).await.ok()?;
        let topology = node.topology().await.ok()?;
        let active = |m: &&Member| m.state == MemberState::Active as i32;
        let active: Vec<u64> = topology.members.iter().filter(active).map(|m| m.node_id).collect();
        let mut replicas = topology.partition_map.iter().flat_map(|p| &p.replicas);
        let is_settled = plan.at_rest && replicas.all(|r| active.contains(&r.node_id));
        let places = |state: MemberState| {
            let members = topology.members.iter().filter(move |m| m.state == state as i32);
            members.filter_map(|m| cluster.nodes.iter().position(|n| n.name == m.name))
        };
        let draining = places(MemberState::Draining).next();
        let removed = places(MemberState::Removed).collect();
        is_settled.then_some((active.len(), draining, removed))
    }
}
