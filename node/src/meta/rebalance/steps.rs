//! A step of the plan as requests to the meta group and to a group's leader.
use super::Host;
use super::facts::{Led, Observation};
use crate::ids::GroupId;
use crate::partition::apply::MetaOutcome;
use ringfold_proto::internal::meta_command::Command;
use ringfold_proto::internal::step::Kind;
use ringfold_proto::internal::{
    self, AddLearner, LeaveJoint, MetaAdmitReplica, MetaCommand, MetaCreateReplica,
    MetaForgetReplica, Swap,
};
use ringfold_topology::plan::{ReplicaFact, Role, StepKind};
use std::time::Duration;

/// Of all requests of a step together.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Requests in their order: what fails ends the step.
#[derive(Debug, Clone, PartialEq)]
pub struct Todo(Vec<Request>);

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Propose(MetaCommand),
    Step(Led, internal::Step),
}

impl Todo {
    /// `None`: the step cannot be taken on what was observed.
    pub fn new(o: &Observation, step: &ringfold_topology::plan::Step) -> Option<Todo> {
        let partition = step.partition;
        let fact = o.partitions.get(partition as usize)?;
        let find = |id: u64| fact.replicas.iter().find(|r| r.replica_id == id);
        let propose = |c| Request::Propose(MetaCommand { if_epoch: o.epoch, command: Some(c) });
        let led = o.leaders.get(partition as usize).cloned().flatten();
        let ask = |kind| {
            let led = led.clone()?;
            let step = internal::Step {
                group: GroupId::of_partition(partition).0,
                epoch: o.epoch,
                membership_index: led.membership_index,
                kind: Some(kind),
                term: o.term,
            };
            Some(Request::Step(led, step))
        };
        let forget = |replica_id, confirmed| {
            let c = MetaForgetReplica { partition, replica_id, confirmed };
            propose(Command::ForgetReplica(c))
        };
        Some(Todo(match step.kind {
            StepKind::CreateReplica { node_id } => {
                vec![propose(Command::CreateReplica(MetaCreateReplica { partition, node_id }))]
            }
            StepKind::AddLearner { replica_id } => {
                let node_id = find(replica_id)?.node_id;
                vec![
                    propose(Command::AdmitReplica(MetaAdmitReplica { partition, replica_id })),
                    ask(Kind::AddLearner(AddLearner { replica_id, node_id }))?,
                ]
            }
            StepKind::Swap { promote: None, remove: Some(replica) } => {
                vec![ask(Kind::Demote(replica))?]
            }
            StepKind::Swap { promote, remove } => {
                let (promote, remove) = (promote.unwrap_or(0), remove.unwrap_or(0));
                vec![ask(Kind::Swap(Swap { promote, remove }))?]
            }
            StepKind::LeaveJoint => vec![ask(Kind::LeaveJoint(LeaveJoint {}))?],
            StepKind::TransferLeader { to_replica } => {
                vec![ask(Kind::TransferLeaderTo(to_replica))?]
            }
            StepKind::RemoveLearner { replica_id } => {
                vec![ask(Kind::Swap(Swap { promote: 0, remove: replica_id }))?]
            }
            // Never proposed to its group: nobody needs to confirm that it is not in there.
            StepKind::Forget { replica_id }
                if !o.admitted.contains(&replica_id)
                    && find(replica_id).is_some_and(|r: &ReplicaFact| r.role == Role::Recorded) =>
            {
                vec![forget(replica_id, false)]
            }
            StepKind::Forget { replica_id } => {
                vec![ask(Kind::ConfirmWithout(replica_id))?, forget(replica_id, true)]
            }
        }))
    }

    pub fn into_requests(self) -> Vec<Request> {
        self.0
    }

    pub async fn run(self, host: &dyn Host) -> Result<(), String> {
        let requests = async {
            for request in self.0 {
                match request {
                    Request::Propose(command) => match host.propose(command).await {
                        Ok(MetaOutcome::Refused(reason)) => return Err(reason),
                        Ok(_) => {}
                        Err(e) => return Err(e.to_string()),
                    },
                    Request::Step(led, step) => host.step(led.node, step).await?,
                }
            }
            Ok(())
        };
        match tokio::time::timeout(TIMEOUT, requests).await {
            Ok(result) => result,
            Err(_) => Err("it has not ended in time".into()),
        }
    }
}
