//! Nodes that come, drain and go.
use std::time::Duration;

use ringfold_proto::v1::{DrainRequest, Member, MemberState, RemoveMemberRequest, UndrainRequest};

use super::LocalCluster;
use super::calls::{RPC_MAX, timed, within};
use super::machine::free_ports;
use super::process::REMOVED_EXIT;
use super::state::{READY_MAX, eventually};

impl LocalCluster {
    /// Starts a further node, which joins; gives its place in `nodes`.
    pub fn grow(&mut self) -> usize {
        let ports = free_ports(2);
        let i = self.add(ports[0], ports[1]);
        self.start_node(i);
        i
    }

    /// The node's id in the cluster.
    pub async fn node_id(&self, i: usize) -> u64 {
        eventually("the node is a member", READY_MAX, || async {
            let name = &self.nodes[i].name;
            for node in self.running() {
                if let Ok(t) = node.topology().await
                    && let Some(m) = t.members.iter().find(|m| m.name == *name)
                {
                    return Ok(m.node_id);
                }
            }
            Err(format!("{name} is no member yet"))
        })
        .await
    }

    /// Waits until so many members are active.
    pub async fn wait_members(&self, members: usize) {
        eventually("members are active", READY_MAX, || async {
            let node = self.running().next().ok_or("no node runs")?;
            let topology = node.topology().await.map_err(|s| s.to_string())?;
            let active = |m: &&Member| m.state == MemberState::Active as i32;
            match topology.members.iter().filter(active).count() {
                n if n == members => Ok(()),
                n => Err(format!("{n} of {members}")),
            }
        })
        .await;
    }

    /// Asks for a drain; the answer's first message is that it goes on.
    pub async fn drain(&self, i: usize) -> Result<(), tonic::Status> {
        let node_id = self.node_id(i).await;
        let through = self.running().next().expect("a node runs");
        let request = tonic::Request::new(DrainRequest { node_id, if_epoch: 0 });
        let mut progress = within(through.admin().drain(request), RPC_MAX).await?;
        progress.message().await.map(|_| ())
    }

    pub async fn undrain(&self, i: usize) -> Result<(), tonic::Status> {
        let node_id = self.node_id(i).await;
        let through = self.running().next().expect("a node runs");
        let request = timed(UndrainRequest { node_id, if_epoch: 0 }, RPC_MAX);
        within(through.admin().undrain(request), RPC_MAX).await.map(|_| ())
    }

    /// Removes a node that holds nothing any more; its process ends by itself.
    pub async fn remove(&mut self, i: usize, max: Duration) {
        let node_id = self.node_id(i).await;
        eventually("the node is removed", max, || async {
            let through = self.running().find(|n| n.name != self.nodes[i].name);
            let through = through.ok_or("no other node runs")?;
            let request = timed(RemoveMemberRequest { node_id, if_epoch: 0 }, RPC_MAX);
            let removed = within(through.admin().remove_member(request), RPC_MAX).await;
            removed.map(|_| ()).map_err(|s| s.to_string())
        })
        .await;
        assert_eq!(self.wait_exit(i, max).await, REMOVED_EXIT, "{}", self.nodes[i].log());
        self.nodes[i].is_removed = true;
    }
}
