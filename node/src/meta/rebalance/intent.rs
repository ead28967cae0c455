//! When the partitions' targets are due to change, and to what. Pure.
use super::facts::Observation;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::meta_place::Nodes;
use ringfold_proto::internal::{MetaCommand, MetaRetarget};
use ringfold_topology::PlacementError;
use ringfold_topology::plan::{Limits, MemberState, PlanMember, Reach, retarget};

/// For what the targets are right as they are. New ones are not remembered before the records have
/// them: their proposal may be lost, or be refused because of another command.
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
    /// New targets, where members have changed since the present ones; again until they are recorded.
    ///
    /// # Errors
    /// [`PlacementError`], mostly too few members: the targets stay as they are.
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
        if target == o.target {
            self.0 = Some(key);
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

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_topology::plan::PartitionFact;

    #[test]
    fn new_targets_are_due_until_they_are_recorded() {
        let member = |node_id, state| PlanMember {
            node_id,
            zone: String::new(),
            weight: 100,
            state,
            reach: Reach::Up,
            free_bytes: None,
            may_lead: true,
        };
        let mut o = Observation {
            epoch: 1,
            replication_factor: 3,
            members: (1..5).map(|n| member(n, MemberState::Active)).collect(),
            target: vec![vec![1, 2, 3]],
            partitions: vec![PartitionFact::default()],
            ..Default::default()
        };
        let mut intent = Intent::default();
        assert!(intent.due(&o, Limits::default()).unwrap().is_none());
        o.members[2].state = MemberState::Draining;
        for _ in 0..2 {
            let due = intent.due(&o, Limits::default()).unwrap().unwrap();
            let Some(Command::Retarget(r)) = due.command.command else { panic!("a retarget") };
            o.target = r.partitions.into_iter().map(|n| n.node_ids).collect();
            assert!(!o.target[0].contains(&3));
            if due.command.if_epoch == 1 {
                // The proposal was lost: another command came first.
                (o.epoch, o.target) = (2, vec![vec![1, 2, 3]]);
            }
        }
        assert!(intent.due(&o, Limits::default()).unwrap().is_none());
    }
}
