//! Steps of the plan as a node takes them for the groups that it leads (`rebalance.rs`).
use super::faults::Planted;
use super::invariants::Held;
use super::planner::Ask;
use super::world::World;
use ringfold_node::ids::{GroupId, ReplicaId};
use ringfold_node::meta::rebalance::fence::{self, Act};
use ringfold_node::raft::driver::{GroupFacts, Input};
use ringfold_node::raft::handle::{ReadError, Request};
use ringfold_proto::internal::{Refusal, Step};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// A tenth of the product's, as ticks are.
const STEP_NS: u64 = 500_000_000;

/// A step that waits for the driver.
pub struct Waiting {
    ask: Ask,
    group: GroupId,
    planned_on: u64,
    until_ns: u64,
    what: What,
}

enum What {
    /// The answer, and whether it is that of a membership change.
    Change(oneshot::Receiver<Result<(), String>>, bool),
    Renounce {
        replica: ReplicaId,
        was_member: bool,
        renounced: oneshot::Receiver<Result<(), String>>,
    },
    Confirm {
        replica: ReplicaId,
        before: Box<GroupFacts>,
        /// The replica was in the last membership when it was asked for.
        was_member: bool,
        read: oneshot::Receiver<Result<(), ReadError>>,
    },
}

impl World {
    pub fn step_reaches(&mut self, n: usize, ask: Ask, step: &Step) {
        if self.nodes[n].running.is_none() {
            return;
        }
        let Some(records) = &self.records else { return };
        // These two fences would hide what is planted behind them.
        let is_lifted = matches!(
            self.options.planted,
            Some(Planted::StaleStepTaken | Planted::ForgottenUnconfirmed)
        );
        let own_epoch = if is_lifted { 0 } else { records.version(self.nodes[n].seen).epoch };
        let Some(running) = &mut self.nodes[n].running else { return };
        let own_term = if is_lifted { 0 } else { running.step_term };
        running.step_term = own_term.max(step.term);
        self.note(|| format!("node {} is to take {step:?}", n + 1));
        match self.begin_step(n, step, own_epoch, own_term) {
            Ok(Some(what)) => {
                let waiting = Waiting {
                    ask,
                    group: GroupId(step.group),
                    planned_on: step.membership_index,
                    until_ns: self.now_ns + STEP_NS,
                    what,
                };
                if let Some(running) = &mut self.nodes[n].running {
                    running.steps.push(waiting);
                }
            }
            Ok(None) => self.answer_step(n, ask, Ok(())),
            Err(refusal) => self.answer_step(n, ask, Err(refusal.message)),
        }
    }

    /// What it waits for; `None`: for nothing.
    fn begin_step(
        &mut self,
        n: usize,
        step: &Step,
        own_epoch: u64,
        own_term: u64,
    ) -> Result<Option<What>, Refusal> {
        let (group, planned_on) = (GroupId(step.group), step.membership_index);
        let act = fence::accept(step, own_epoch, own_term)?;
        let facts = self.nodes[n].running.as_ref().and_then(|r| r.facts(group));
        Ok(Some(match act {
            Act::Change(change) => {
                let (reply, changed) = oneshot::channel();
                let planned_on = Some(planned_on);
                self.input(n, Input::ChangeMembership { group, change, planned_on, reply });
                What::Change(changed, true)
            }
            Act::HandOver(to) => {
                fence::led(facts, planned_on)?;
                let (reply, moved) = oneshot::channel();
                self.input(n, Input::Request(Request::Transfer { group, to, reply }));
                What::Change(moved, false)
            }
            Act::ConfirmWithout(_)
                if self.options.planted == Some(Planted::ForgottenUnconfirmed) =>
            {
                return Ok(None);
            }
            Act::ConfirmWithout(replica) => {
                let before = Box::new(fence::led(facts, planned_on)?);
                fence::is_without(&before, replica)?;
                let (reply, read) = oneshot::channel();
                self.input(n, Input::Request(Request::ReadIndex { group, reply }));
                let was_member = self.check.is_member(group, replica);
                What::Confirm { replica, before, was_member, read }
            }
        }))
    }

    /// Goes on with steps that waited.
    pub fn poll_steps(&mut self, n: usize) -> Held {
        let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
        for waiting in std::mem::take(&mut running.steps) {
            self.poll_step(n, waiting)?;
        }
        Ok(())
    }

    fn poll_step(&mut self, n: usize, mut w: Waiting) -> Held {
        let (group, ask) = (w.group, w.ask);
        let Some(running) = &mut self.nodes[n].running else { return Ok(()) };
        let facts = running.facts(group);
        let result = match &mut w.what {
            What::Change(changed, is_membership) => match changed.try_recv() {
                Err(TryRecvError::Empty) => None,
                Ok(Ok(())) if !*is_membership => Some(Ok(())),
                Ok(Ok(())) => {
                    let is = running.driver.record(group).map_or(0, |r| r.membership_index);
                    self.check.changed(group, w.planned_on, is)?;
                    Some(Ok(()))
                }
                Ok(Err(reason)) => Some(Err(reason)),
                Err(TryRecvError::Closed) => Some(Err("the node stopped".into())),
            },
            What::Confirm { replica, before, was_member, read } => match read.try_recv() {
                Err(TryRecvError::Empty) => None,
                Ok(Ok(())) => {
                    let after = fence::led(facts, w.planned_on);
                    let (replica, was_member) = (*replica, *was_member);
                    let confirmed = after.and_then(|after| {
                        fence::is_confirmed_without(before, &after, replica).map(|()| after)
                    });
                    match confirmed {
                        Ok(after) => {
                            let (term, membership_index) = (after.term, after.membership_index);
                            let (reply, renounced) = oneshot::channel();
                            w.what = What::Renounce { replica, was_member, renounced };
                            let input =
                                Input::Renounce { group, replica, term, membership_index, reply };
                            self.input(n, input);
                            None
                        }
                        Err(refusal) => Some(Err(refusal.message)),
                    }
                }
                _ => Some(Err("the read index is not confirmed".into())),
            },
            What::Renounce { replica, was_member, renounced } => match renounced.try_recv() {
                Err(TryRecvError::Empty) => None,
                Ok(Ok(())) => {
                    self.check.confirms(group, *replica, *was_member)?;
                    Some(Ok(()))
                }
                Ok(Err(reason)) => Some(Err(reason)),
                Err(TryRecvError::Closed) => Some(Err("the node stopped".into())),
            },
        };
        match result {
            Some(result) => self.answer_step(n, ask, result),
            None if self.now_ns >= w.until_ns => {
                self.answer_step(n, ask, Err("it has not ended in time".into()));
            }
            None => {
                if let Some(running) = &mut self.nodes[n].running {
                    running.steps.push(w);
                }
            }
        }
        Ok(())
    }
}
