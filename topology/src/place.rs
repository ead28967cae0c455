use crate::{Placement, PlacementInput};

/// A placement and the reasons for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub placement: Placement,
    /// Lines a person can read.
    pub explanation: Vec<String>,
    /// Replicas that are not where `current` had them (0 without `current`).
    pub moves: usize,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlacementError {
    #[error(
        "{members} members with a weight for a replication factor of {replication_factor}: add nodes or lower the factor"
    )]
    TooFewMembers {
        members: usize,
        replication_factor: u32,
    },
}

/// Plans where the replicas of all partitions go.
pub fn place(input: &PlacementInput<'_>) -> Result<Explained, PlacementError> {
    let _ = input;
    todo!()
}
