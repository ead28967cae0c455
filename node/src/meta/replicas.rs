//! Which partition replicas a node has to create, as the placement says.
use crate::ids::{NodeId, ReplicaId};
use ringfold_proto::internal::MetaState;
use std::collections::BTreeSet;

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
        let own = placed.replicas.iter().enumerate().find(|(_, r)| r.node_id == me.0);
        if let Some((i, r)) = own
            && !known.contains(&ReplicaId(r.replica_id))
        {
            wanted.push(WantedReplica {
                partition,
                replica: ReplicaId(r.replica_id),
                genesis: placed
                    .replicas
                    .iter()
                    .map(|r| (ReplicaId(r.replica_id), NodeId(r.node_id)))
                    .collect(),
                first_placed: i == 0,
            });
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ringfold_proto::internal::{MetaPartition, MetaReplica};

    fn state(placement: &[Vec<u64>]) -> MetaState {
        let mut id = 0;
        let mut replicas = |nodes: &Vec<u64>| {
            nodes
                .iter()
                .map(|node_id| {
                    id += 1;
                    MetaReplica { replica_id: id, node_id: *node_id }
                })
                .collect()
        };
        MetaState {
            placement: placement.iter().map(|n| MetaPartition { replicas: replicas(n) }).collect(),
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
