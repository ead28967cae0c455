//! The meta group: members, ids and placement of the cluster. `state` decides what a command does,
//! `machine` applies and publishes it, `controller` and `rebalance` run on the leader, `join` on every node.
pub mod controller;
pub mod database;
pub mod join;
pub mod machine;
pub mod rebalance;
pub mod replicas;
pub mod state;

use crate::ids::GroupId;
use crate::partition::apply::{CommandOutcome, MetaOutcome};
use crate::raft::handle::{ProposeError, RaftHandle};
use prost::Message as _;
use ringfold_proto::internal::MetaCommand;

/// The newest feature level that this version reads and writes.
pub const FEATURE_LEVEL_MAX: u32 = 1;

/// Proposes one command to the meta group, whose leader this node must be.
pub async fn propose(
    raft: &RaftHandle,
    command: &MetaCommand,
) -> Result<MetaOutcome, ProposeError> {
    let answer = raft.propose(GroupId::META, vec![command.encode_to_vec().into()], 0).await;
    match answer.map_err(|_| ProposeError::Unknown)??.pop() {
        Some(CommandOutcome::Meta(outcome)) => Ok(outcome),
        _ => Err(ProposeError::Unknown),
    }
}
