use crate::{Placement, PlacementInput};

/// An invariant that a placement breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {}

/// Recomputes every invariant of a placement, without the planner's code.
pub fn check(input: &PlacementInput<'_>, placement: &Placement) -> Result<(), Vec<Violation>> {
    let _ = (input, placement);
    todo!()
}
