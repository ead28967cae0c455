//! The partitions' replicas as the meta group records them: what its commands do to the records, and
//! what a node has to create and to destroy for them.
use super::state::{is_removed, take};
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::partition::apply::MetaOutcome;
use ringfold_proto::internal::{
    MetaAdmitReplica, MetaCreateReplica, MetaForgetReplica, MetaPartition, MetaReplica, MetaState,
};
use std::collections::BTreeSet;

/// A group has no more replicas than this beyond its replication factor, those on their way out
/// included.
const EXTRA_REPLICAS_MAX: usize = 2;

type Outcome = Result<MetaOutcome, String>;

pub(super) fn create(state: &mut MetaState, c: MetaCreateReplica) -> Outcome {
    let max = state.replication_factor as usize + EXTRA_REPLICAS_MAX;
    if !state.members.iter().any(|m| m.node_id == c.node_id && !is_removed(m)) {
        return Err(format!("there is no node {} in this cluster", c.node_id));
    }
    let Some(p) = state.placement.get_mut(c.partition as usize) else {
        return Err(format!("there is no partition {}", c.partition));
    };
    if p.replicas.iter().any(|r| r.node_id == c.node_id) {
        return Err(format!("partition {} has a replica on node {}", c.partition, c.node_id));
    }
    if p.replicas.len() >= max {
        return Err(format!("partition {} has {} replicas", c.partition, p.replicas.len()));
    }
    if p.genesis.is_empty() {
        p.genesis = genesis_of(p);
    }
    let replica_id = take(&mut state.next_replica_id);
    p.replicas.push(MetaReplica { replica_id, node_id: c.node_id, admitted: false });
    Ok(MetaOutcome::Done)
}

pub(super) fn admit(state: &mut MetaState, c: MetaAdmitReplica) -> Outcome {
    let p = state.placement.get_mut(c.partition as usize);
    let r = p.and_then(|p| p.replicas.iter_mut().find(|r| r.replica_id == c.replica_id));
    match r {
        Some(r) => r.admitted = true,
        None => return Err(no_replica(c.partition, c.replica_id)),
    }
    Ok(MetaOutcome::Done)
}

pub(super) fn forget(state: &mut MetaState, c: MetaForgetReplica) -> Outcome {
    let Some(p) = state.placement.get_mut(c.partition as usize) else {
        return Err(format!("there is no partition {}", c.partition));
    };
    if p.genesis.is_empty() {
        p.genesis = genesis_of(p);
    }
    if !c.confirmed && p.replicas.iter().any(|r| r.replica_id == c.replica_id && r.admitted) {
        return Err(format!("replica {} may be in its group", c.replica_id));
    }
    p.replicas.retain(|r| r.replica_id != c.replica_id);
    Ok(MetaOutcome::Done)
}

fn no_replica(partition: u32, replica_id: u64) -> String {
    format!("partition {partition} has no replica {replica_id}")
}

/// The group's first membership.
fn genesis_of(p: &MetaPartition) -> Vec<MetaReplica> {
    // Written before replicas could move: they are those of the beginning.
    if p.genesis.is_empty() { p.replicas.clone() } else { p.genesis.clone() }
}

/// Where a partition's replicas shall be, the preferred leader first.
pub fn target_of(p: &MetaPartition) -> Vec<u64> {
    match p.target_node_ids.is_empty() {
        true => p.replicas.iter().map(|r| r.node_id).collect(),
        false => p.target_node_ids.clone(),
    }
}

/// Of a node's own replicas, by group, those that the records do not know any more: their data is
/// to be deleted. A replica that this state is too old to know is not among them.
pub fn forgotten_replicas(
    state: &MetaState,
    own: impl IntoIterator<Item = (GroupId, ReplicaId)>,
) -> Vec<(GroupId, ReplicaId)> {
    let forgotten = |(group, replica): &(GroupId, ReplicaId)| {
        let placed = group.partition().and_then(|p| state.placement.get(p as usize));
        placed.is_some_and(|p| {
            replica.0 < state.next_replica_id
                && p.replicas.iter().all(|r| r.replica_id != replica.0)
        })
    };
    own.into_iter().filter(forgotten).collect()
}

/// A replica to create with the membership that all replicas of its partition start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedReplica {
    pub partition: u32,
    pub replica: ReplicaId,
    /// All replicas of the partition.
    pub genesis: Vec<(ReplicaId, NodeId)>,
    /// It campaigns at the partition's first start.
    pub first_placed: bool,
}

/// Replicas that the placement gives to `me` and that `known`, the replicas of all records of this
/// node's log, destroyed ones too, does not have.
pub fn wanted_replicas(
    state: &MetaState,
    me: NodeId,
    known: &BTreeSet<ReplicaId>,
) -> Vec<WantedReplica> {
    let mut wanted = Vec::new();
    for (partition, placed) in (0..).zip(&state.placement) {
        let own = placed.replicas.iter().find(|r| r.node_id == me.0);
        if let Some(r) = own
            && !known.contains(&ReplicaId(r.replica_id))
        {
            let genesis = genesis_of(placed);
            wanted.push(WantedReplica {
                partition,
                replica: ReplicaId(r.replica_id),
                first_placed: genesis.first().is_some_and(|f| f.replica_id == r.replica_id),
                genesis: genesis
                    .iter()
                    .map(|r| (ReplicaId(r.replica_id), NodeId(r.node_id)))
                    .collect(),
            });
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringfold_proto::internal::MetaMember;

    fn state(placement: &[Vec<u64>]) -> MetaState {
        let mut id = 0;
        let mut replicas = |nodes: &Vec<u64>| {
            nodes
                .iter()
                .map(|node_id| {
                    id += 1;
                    MetaReplica { replica_id: id, node_id: *node_id, admitted: true }
                })
                .collect()
        };
        MetaState {
            placement: placement
                .iter()
                .map(|n| MetaPartition { replicas: replicas(n), ..Default::default() })
                .collect(),
            ..MetaState::default()
        }
    }

    #[test]
    fn what_is_known_is_not_created_again() {
        let s = state(&[vec![1, 2, 3], vec![2, 3, 4], vec![2, 1, 3]]);
        let wanted = wanted_replicas(&s, NodeId(1), &BTreeSet::from([ReplicaId(1)]));
        let genesis = [(7, 2), (8, 1), (9, 3)].map(|(r, n)| (ReplicaId(r), NodeId(n))).to_vec();
        assert_eq!(
            wanted,
            [WantedReplica { partition: 2, replica: ReplicaId(8), genesis, first_placed: false }]
        );
    }

    #[test]
    fn a_further_replica_starts_from_the_first_membership_and_does_not_campaign() {
        let mut s = state(&[vec![1, 2, 3]]);
        s.next_replica_id = 4;
        s.replication_factor = 3;
        s.members = (1..5).map(|node_id| MetaMember { node_id, ..Default::default() }).collect();
        create(&mut s, MetaCreateReplica { partition: 0, node_id: 4 }).unwrap();
        assert!(create(&mut s, MetaCreateReplica { partition: 0, node_id: 4 }).is_err());
        for replica_id in 1..3 {
            let confirmed = true;
            forget(&mut s, MetaForgetReplica { partition: 0, replica_id, confirmed }).unwrap();
        }
        let wanted = wanted_replicas(&s, NodeId(4), &BTreeSet::new());
        let genesis = [(1, 1), (2, 2), (3, 3)].map(|(r, n)| (ReplicaId(r), NodeId(n))).to_vec();
        assert_eq!(
            wanted,
            [WantedReplica { partition: 0, replica: ReplicaId(4), genesis, first_placed: false }]
        );
    }

    #[test]
    fn only_what_the_records_once_knew_and_know_no_more_is_destroyed() {
        let mut s = state(&[vec![1, 2, 3]]);
        s.next_replica_id = 10;
        s.placement[0].replicas.remove(0);
        let group = GroupId::of_partition(0);
        // 1: forgotten; 2: recorded; 10: handed out later than this state; the meta group's: never.
        let own = [
            (group, ReplicaId(1)),
            (group, ReplicaId(2)),
            (group, ReplicaId(10)),
            (GroupId::of_partition(1), ReplicaId(3)),
            (GroupId::META, ReplicaId(4)),
        ];
        assert_eq!(forgotten_replicas(&s, own), [(group, ReplicaId(1))]);
        assert_eq!(forgotten_replicas(&MetaState::default(), own), []);
    }

    proptest! {
        /// All nodes together create each replica once, from the same membership, with one to campaign.
        #[test]
        fn every_placed_replica_is_created_by_its_node(
            placement in prop::collection::vec(
                prop::sample::subsequence((1..8u64).collect::<Vec<_>>(), 3), 0..20)
        ) {
            let s = state(&placement);
            let all: Vec<_> = (1..8)
                .flat_map(|n| wanted_replicas(&s, NodeId(n), &BTreeSet::new()).into_iter().map(move |w| (n, w)))
                .collect();
            prop_assert_eq!(all.len(), placement.len() * 3);
            for (partition, nodes) in placement.iter().enumerate() {
                let own: Vec<_> = all.iter().filter(|(_, w)| w.partition as usize == partition).collect();
                let first: Vec<_> = own.iter().filter(|(_, w)| w.first_placed).map(|(n, _)| *n).collect();
                prop_assert_eq!(first, vec![nodes[0]]);
                for (n, w) in &own {
                    prop_assert_eq!(&w.genesis, &own[0].1.genesis);
                    prop_assert!(w.genesis.contains(&(w.replica, NodeId(*n))));
                }
            }
        }
    }
}
