//! When the partitions' targets are due to change, and to what. Pure.
use super::facts::Observation;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{MetaCommand, MetaRetarget};
use ringfold_topology::PlacementError;
use ringfold_topology::plan::{Limits, MemberState, PlanMember, Reach, retarget};

/// What the last targets were computed from.
#[derive(Debug, Default)]
pub struct Intent(Option<(FitMembers, Vec<Vec<u64>>)>);

/// New targets.
#[derive(Debug)]
pub struct Retarget {
    pub command: MetaCommand,
    pub explanation: Vec<String>,
}

/// Who may be given replicas: when this changes, the intent may.
type FitMembers = Vec<(u64, String, u32, bool)>;

impl Intent {
    /// New targets, when members have changed since the last ones.
    ///
    /// # Errors
    /// [`PlacementError`], once for the same members: the targets stay as they are.
    pub fn due(
        &mut self,
        o: &Observation,
        limits: Limits,
    ) -> Result<Option<Retarget>, PlacementError> {
        let key = (fit_members(o), o.target.clone());
        if self.0.as_ref() == Some(&key) {
            return Ok(None);
        }
        let explained = retarget(&o.plan_input(limits))?;
        let target = explained.placement.partitions;
        self.0 = Some(key);
        if target == o.target {
            return Ok(None);
        }
        let partitions = target.into_iter().map(|node_ids| Nodes { node_ids }).collect();
        let command = MetaCommand {
            if_epoch: o.epoch,
            command: Some(Command::Retarget(MetaRetarget { partitions })),
        };
        Ok(Some(Retarget { command, explanation: explained.explanation }))
    }
}

fn fit_members(o: &Observation) -> FitMembers {
    let lost = |m: &PlanMember| matches!(m.reach, Reach::Down { lost: true });
    o.members
        .iter()
        .filter(|m| m.state == MemberState::Active && !lost(m))
        .map(|m| (m.node_id, m.zone.clone(), m.weight, m.reach == Reach::Up))
        .collect()
}
