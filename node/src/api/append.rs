//! Appends one request at the leader.
use super::deadline::Call;
use super::errors::ApiError;
use super::node::Node;
use super::validate;
use crate::ids::GroupId;
use crate::partition::apply::CommandOutcome;
use crate::raft::handle::{ProposeError, ProposeResult, ReplicaView};
use crate::router::{LocalError, Operation, frame};
use ringfold_proto::v1;
use ringfold_proto::v1::event_store_client::EventStoreClient;
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::Channel;

/// A checked append of a partition.
pub struct AppendOne<'a> {
    pub request: &'a v1::AppendRequest,
    pub partition: u32,
}

impl Operation for AppendOne<'_> {
    type Output = v1::AppendResponse;

    fn stale(&self) -> bool {
        false
    }

    fn is_repeatable(&self) -> bool {
        false
    }

    async fn local(
        &self,
        node: &Arc<Node>,
        _: &Arc<ReplicaView>,
        call: &Call,
    ) -> Result<v1::AppendResponse, LocalError> {
        node.info.disk.check_appends()?;
        let command = validate::encode_append(self.request, false);
        let group = GroupId::of_partition(self.partition);
        let answer = node.raft.propose(group, vec![command], self.request.after_position);
        let mut outcomes = proposed(call.within(true, answer).await?)?.into_iter();
        outcome(outcomes.next(), self.request, self.partition).map_err(LocalError::Failed)
    }

    async fn remote(
        &self,
        mut client: EventStoreClient<Channel>,
        call: &Call,
    ) -> Result<v1::AppendResponse, Status> {
        Ok(client.append(frame(self.request.clone(), call)).await?.into_inner())
    }
}

/// Outcomes of a proposal, or what its failure proves.
pub fn proposed(
    answer: Result<ProposeResult, oneshot::error::RecvError>,
) -> Result<Vec<CommandOutcome>, LocalError> {
    let unknown = |what: &'static str| LocalError::Failed(ApiError::OutcomeUnknown(what.into()));
    match answer {
        Ok(Ok(outcomes)) => Ok(outcomes),
        Ok(Err(ProposeError::NotLeader { leader })) => Err(LocalError::NotLeader(leader)),
        Ok(Err(ProposeError::NoReplica)) => Err(LocalError::NotLeader(None)),
        Ok(Err(ProposeError::Busy)) => {
            Err(LocalError::Failed(ApiError::Overloaded("too many bytes of appends wait")))
        }
        Ok(Err(ProposeError::ClockBehind { ahead_ms })) => {
            Err(LocalError::Failed(ApiError::ClockBehind { ahead_ms }))
        }
        Ok(Err(ProposeError::Closed(_))) => Err(unknown("the replica was closed")),
        Ok(Err(ProposeError::Unknown)) => Err(unknown("leadership changed")),
        Err(_) => Err(unknown("the node is stopping")),
    }
}

/// What one append came to.
pub fn outcome(
    outcome: Option<CommandOutcome>,
    request: &v1::AppendRequest,
    partition: u32,
) -> Result<v1::AppendResponse, ApiError> {
    match outcome {
        Some(CommandOutcome::Appended(a)) => Ok(v1::AppendResponse {
            first_revision: a.first_revision,
            last_revision: a.last_revision,
            first_position: a.first_position,
            last_position: a.last_position,
            partition,
        }),
        Some(CommandOutcome::Refused(refusal)) => {
            Err(ApiError::refused(refusal, || validate::expected_text(request)))
        }
        other => Err(ApiError::internal(format_args!("an append came to {other:?}"))),
    }
}
