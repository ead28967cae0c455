//! Members and moves as a test plans them, and what was asked.
use super::refused;
use ringfold_proto::v1::*;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tonic::{Code, Status};

#[derive(Clone, Default)]
pub struct Moves(Arc<Mutex<Planned>>);

#[derive(Default)]
struct Planned {
    /// The last one stays; none: at rest.
    plans: VecDeque<RebalancePlanResponse>,
    drains: VecDeque<DrainProgress>,
    obstacles: Option<&'static str>,
    has_removed: bool,
    asked: Vec<String>,
}

impl Moves {
    pub fn plan(&self, plans: impl IntoIterator<Item = RebalancePlanResponse>) {
        self.0.lock().unwrap().plans = plans.into_iter().collect();
    }

    pub fn plan_drain(&self, progress: impl IntoIterator<Item = DrainProgress>) {
        self.0.lock().unwrap().drains = progress.into_iter().collect();
    }

    pub fn refuse_drains(&self, message: &'static str) {
        self.0.lock().unwrap().obstacles = Some(message);
    }

    /// Node 2 was a member.
    pub fn add_removed(&self) {
        self.0.lock().unwrap().has_removed = true;
    }

    /// What was asked so far, in order.
    pub fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().asked.clone()
    }

    pub(super) fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().asked.push(what.into());
    }

    /// Node 1 serves.
    pub(super) fn members(&self, url: &str) -> Vec<Member> {
        let member = |(node_id, name, state): (u64, &str, MemberState)| Member {
            node_id,
            name: name.into(),
            client_url: url.into(),
            state: state as i32,
            reachable: true,
            ..Member::default()
        };
        let all = [(1, "only", MemberState::Active), (2, "gone", MemberState::Removed)];
        let shown = if self.0.lock().unwrap().has_removed { 2 } else { 1 };
        all[..shown].iter().copied().map(member).collect()
    }

    pub(super) fn next_plan(&self) -> RebalancePlanResponse {
        let mut planned = self.0.lock().unwrap();
        let rest =
            RebalancePlanResponse { epoch: 1, at_rest: true, ..RebalancePlanResponse::default() };
        match planned.plans.len() {
            0 => rest,
            1 => planned.plans[0].clone(),
            _ => planned.plans.pop_front().unwrap_or(rest),
        }
    }

    /// All but the last one, which stays. At once: a watch that nobody reads any more must not take
    /// what is planned for the next one.
    pub(super) fn all_plans(&self) -> (Vec<RebalancePlanResponse>, RebalancePlanResponse) {
        let waiting = self.0.lock().unwrap().plans.len().saturating_sub(1);
        let plans = (0..waiting).map(|_| self.next_plan()).collect();
        (plans, self.next_plan())
    }

    pub(super) fn drain(&self, node_id: u64) -> Vec<Result<DrainProgress, Status>> {
        self.note(format!("drain {node_id}"));
        let mut planned = self.0.lock().unwrap();
        if let Some(what) = planned.obstacles {
            let status = refused(Code::FailedPrecondition, "DRAIN_IMPOSSIBLE", &[]);
            let details = status.details().to_vec().into();
            return vec![Err(Status::with_details(status.code(), what, details))];
        }
        planned.drains.drain(..).map(Ok).collect()
    }

    pub(super) fn remove(&self, node_id: u64) -> Result<RemoveMemberResponse, Status> {
        self.note(format!("remove {node_id}"));
        match node_id {
            1 => Err(refused(Code::FailedPrecondition, "MEMBER_REFUSED", &[])),
            2 => Ok(RemoveMemberResponse {}),
            _ => Err(refused(Code::NotFound, "MEMBER_NOT_FOUND", &[])),
        }
    }
}
