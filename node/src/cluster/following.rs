//! What follows from the meta group's state: addresses, and the replicas that this node must have.
use super::Cluster;
use crate::ids::{GroupId, NodeId, ReplicaId};
use crate::meta::controller;
use crate::meta::replicas::wanted_replicas;
use crate::raft::driver::{Input, NewGroup};
use crate::replicas::ReplicaHome;
use ringfold_proto::internal::{Identity, MetaState, ReducerTable, reducer_table};
use ringfold_proto::v1;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Cluster {
    /// Creates the replica of the meta group that the identity names, unless the log has it.
    pub(super) fn found_meta(&self, identity: &Identity) {
        let replica = ReplicaId(identity.meta_replica_id);
        if identity.meta_replica_id == 0 || !self.known.lock().insert(replica) {
            return;
        }
        let first = identity.bootstrap.is_some();
        // Every replica starts from the membership that the group began with, and follows its
        // changes through the log or takes a checkpoint.
        let voters = &[controller::first_voter()];
        let table = ReducerTable::default();
        self.create(self.home.found(
            GroupId::META,
            replica,
            voters,
            first,
            &table,
            &self.raft.replicas,
        ));
    }

    fn create(&self, new: Option<NewGroup>) {
        if let Some(new) = new {
            (self.input)(Input::Create(Box::new(new)));
        }
    }

    /// Follows the meta group's state: addresses, and the replicas that this node must have.
    pub async fn follow(self: Arc<Self>) {
        let mut meta = self.meta.clone();
        let mut local = self.transport.local().subscribe();
        if local.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let state = meta.borrow_and_update().clone();
            self.transport.address_book().learn_members(&state);
            // A partition that comes back is a new replica: the old one goes first.
            self.destroy_forgotten(&state).await;
            if self.found_wanted(&state).await {
                self.followed.store(state.next_replica_id, Ordering::Release);
            }
            if meta.changed().await.is_err() {
                return;
            }
        }
    }

    /// True: what the state gives to this node is there, or closed.
    async fn found_wanted(&self, state: &MetaState) -> bool {
        let Some(local) = self.transport.local().get() else { return false };
        let mut all = true;
        let known = self.known.lock().clone();
        let table = reducers_of(state);
        for wanted in wanted_replicas(state, local.node, &known) {
            let replica = wanted.replica;
            let group = GroupId::of_partition(wanted.partition);
            if let Some(other) = self.raft.replica(group).filter(|v| v.replica != replica) {
                // It would take the other one's place in everybody's eyes. Tried again with the next
                // state.
                tracing::error!(%group, %replica, running = %other.replica, "a second replica of a group is not made");
                all = false;
                continue;
            }
            self.known.lock().insert(replica);
            let (home, replicas) = (self.home.clone(), self.raft.replicas.clone());
            let table = table.clone();
            // Makes files: not on the runtime's threads.
            let made = tokio::task::spawn_blocking(move || {
                home.found(group, replica, &wanted.genesis, wanted.first_placed, &table, &replicas)
            });
            match made.await {
                Ok(new) => self.create(new),
                Err(e) => {
                    tracing::error!(error = %e, %replica, "a replica could not be made");
                    let reason = format!("it could not be made: {e}");
                    ReplicaHome::register_closed(group, replica, &reason, &self.raft.replicas);
                }
            }
        }
        all
    }
}

/// The first placement of a cluster's partitions.
pub(super) fn place(state: &MetaState) -> Result<Vec<Vec<NodeId>>, String> {
    let members: Vec<_> = state
        .members
        .iter()
        .filter(|m| m.state == v1::MemberState::Active as u32)
        .map(|m| ringfold_topology::Member {
            node_id: m.node_id,
            zone: m.zone.clone(),
            weight: 100,
        })
        .collect();
    let placed = ringfold_topology::place(&ringfold_topology::PlacementInput {
        members: &members,
        partitions: state.partitions,
        replication_factor: state.replication_factor,
        load_factor: ringfold_topology::LOAD_FACTOR,
        current: None,
    })
    .map_err(|e| e.to_string())?;
    let nodes = placed.placement.partitions.into_iter();
    Ok(nodes.map(|nodes| nodes.into_iter().map(NodeId).collect()).collect())
}

/// The reducers that a cluster's partitions begin with.
fn reducers_of(state: &MetaState) -> ReducerTable {
    let active = |reducer: u32| reducer_table::Active { reducer, generation: 1 };
    ReducerTable {
        default: Some(active(state.default_reducer)),
        categories: state.category_reducers.iter().map(|(c, r)| (c.clone(), active(*r))).collect(),
    }
}
