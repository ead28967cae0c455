//! What was observed: Kubernetes' objects of one cluster, and one view of its data plane. No IO.
use std::collections::{BTreeMap, BTreeSet};

/// Id that the meta group gave a node; it never returns once the node was removed.
pub type NodeId = u64;
/// Number that rises with each change of members and of where replicas shall be; 0: nothing is placed.
pub type Epoch = u64;
/// Number of a pod in its StatefulSet, from 0.
pub type Ordinal = u32;

/// One look at everything that a decision rests on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The Secret with the cluster's id.
    pub identity: Option<Identity>,
    pub stateful_set: Option<StatefulSet>,
    pub pods: BTreeMap<Ordinal, Pod>,
    pub claims: BTreeMap<Ordinal, Claim>,
    /// What each pod's node says of itself, of those that answered.
    pub reports: BTreeMap<Ordinal, Report>,
    /// `None`: the data plane did not answer, so nothing is known of it.
    pub view: Option<View>,
    /// Why the Secret of the authorities is of no use, and what to do; `None`: it is, or may be made.
    pub authority_unreadable: Option<String>,
    /// Wall time of the look.
    pub now_unix_ms: u64,
}

/// The Secret that outlives the cluster's resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: String,
    pub resource_version: String,
    /// UID of the only volume claim that may ever be bootstrapped.
    pub bootstrap_claim_uid: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSet {
    pub uid: String,
    pub resource_version: String,
    pub replicas: u32,
    /// Revision of the newest pod template; `None`: the StatefulSet's controller has not seen it yet.
    pub revision: Option<String>,
    pub image: String,
    /// Size in its volume claim template, as it is written there.
    pub storage_size: String,
    pub terminating: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    pub resource_version: String,
    pub revision: String,
    pub ready: bool,
    /// Its container runs, whether it is ready or not.
    pub running: bool,
    /// Since when it has not been ready; of a ready one it means nothing.
    pub unready_unix_ms: u64,
    /// When its deletion was asked for.
    pub deleted_unix_ms: Option<u64>,
    /// Why its container does not run.
    pub trouble: Option<String>,
}

impl Pod {
    pub fn is_terminating(&self) -> bool {
        self.deleted_unix_ms.is_some()
    }

    pub fn is_settled(&self) -> bool {
        self.ready && !self.is_terminating()
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub uid: String,
    /// The node whose data its volume holds, recorded on the claim once a pod on it has said so.
    pub node_id: Option<NodeId>,
    pub terminating: bool,
    /// Size that it asks for.
    pub size_bytes: u64,
    /// A person asked for a new node with an empty volume in place of this one.
    pub replace: bool,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `None`: it belongs to no cluster yet.
    pub node: Option<(NodeId, String)>,
    pub version: String,
    /// Its disk or log is lost.
    pub lost_reason: Option<String>,
    /// What it waits for before it is ready; empty: it is.
    pub waiting: Vec<String>,
    /// Hash of the authorities that it trusts; `None`: there is no TLS.
    pub authorities: Option<String>,
}

/// The cluster as its data plane sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub cluster_id: String,
    /// Epoch of the placement; 0: not placed yet.
    pub epoch: Epoch,
    pub feature_level: u32,
    pub partitions: u32,
    /// By node id, removed ones included.
    pub members: BTreeMap<NodeId, Member>,
    pub meta_leader: Option<NodeId>,
    /// Balancing and draining wait.
    pub paused: bool,
    /// Nothing is left to move.
    pub at_rest: bool,
    /// Replicas that are still to move, by the most urgent reason first.
    pub moves: u32,
    pub move_reason: Option<String>,
    pub leader_moves: u32,
    pub under_replicated: u32,
    pub leaderless: u32,
    /// Why something does not go on.
    pub waiting: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name of its pod.
    pub name: String,
    pub zone: String,
    pub state: MemberState,
    pub reachable: bool,
    /// Partitions that it holds or is to hold.
    pub replicas: u32,
    pub leaders: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    Joining,
    Active,
    Draining,
    Removed,
}

impl View {
    /// The member, unless it was removed.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id).filter(|m| m.state != MemberState::Removed)
    }

    pub fn is_removed(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|m| m.state == MemberState::Removed)
    }

    /// Members that were not removed.
    pub fn living(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().filter(|(_, m)| m.state != MemberState::Removed).map(|(id, m)| (*id, m))
    }

    pub fn is_draining(&self) -> bool {
        self.living().any(|(_, m)| m.state == MemberState::Draining)
    }
}

/// Name of a cluster's pod: also the name that its node has in the cluster.
pub fn pod_name(cluster: &str, ordinal: Ordinal) -> String {
    format!("{cluster}-{ordinal}")
}

impl World {
    /// Members that belong to no volume, and to no volume that has not said yet whose it is: their
    /// volume is lost.
    pub fn orphans<'a>(
        &'a self,
        view: &'a View,
        cluster: &'a str,
    ) -> impl Iterator<Item = (NodeId, &'a Member)> {
        let claimed: BTreeSet<_> = self.claims.values().filter_map(|c| c.node_id).collect();
        let unsaid: BTreeSet<_> = self
            .claims
            .iter()
            .filter(|(_, c)| c.node_id.is_none())
            .map(|(o, _)| pod_name(cluster, *o))
            .collect();
        view.living().filter(move |(id, m)| !claimed.contains(id) && !unsaid.contains(&m.name))
    }

    /// Whether some volume holds, or may hold, the data of a living member.
    pub fn is_needed(&self, view: &View, cluster: &str, ordinal: Ordinal) -> bool {
        let Some(claim) = self.claims.get(&ordinal) else {
            return false;
        };
        match claim.node_id {
            // A member that the view does not know is one that it does not know yet.
            Some(id) => !view.is_removed(id),
            None => {
                let joined = self.reports.get(&ordinal).is_some_and(|r| r.node.is_some());
                let claimed = |id| self.claims.values().any(|c| c.node_id == Some(id));
                let name = pod_name(cluster, ordinal);
                joined || view.living().any(|(id, m)| m.name == name && !claimed(id))
            }
        }
    }

    /// Whether a volume holds the data of a member that was removed: no node can start on it.
    pub fn is_stale(&self, view: &View, ordinal: Ordinal) -> bool {
        let id = self.claims.get(&ordinal).and_then(|c| c.node_id);
        id.is_some_and(|id| view.is_removed(id))
    }
}
