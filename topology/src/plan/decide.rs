//! The next step of one partition.

use super::leads::Leads;
use super::slots::Slots;
use super::view::View;
use super::{Health, Reach, Reason, ReplicaFact, Role, StepKind};

pub(super) enum Outcome {
    /// It is as intended.
    Done,
    Wait(String),
    Step {
        kind: StepKind,
        reason: Reason,
        explanation: String,
    },
}

/// What the steps of one plan share. Partitions come in the order of their urgency.
pub(super) struct Decider<'a> {
    pub slots: Slots<'a>,
    pub leads: Leads,
    pub is_paused: bool,
}

impl Decider<'_> {
    pub(super) fn decide(&mut self, v: &View<'_>) -> Outcome {
        if let Some(explanation) = untouchable(v) {
            return Outcome::Wait(explanation);
        }
        if v.fact.is_joint {
            return self.leave_joint(v);
        }
        if let Some(step) = left_over(v) {
            return step;
        }
        if v.wanted.is_empty() {
            return Outcome::Done;
        }
        let reason = v.reason();
        if reason == Reason::Leaders {
            return self.lead(v).unwrap_or_else(|| settling(v));
        }
        if self.is_paused && reason != Reason::Repair {
            return Outcome::Wait(format!("paused; without that, {reason} would go on"));
        }
        if reason != Reason::Repair
            && let Some(away) = away(v)
        {
            return Outcome::Wait(format!(
                "{} is down: {reason} goes on once it is back, or is replaced as lost",
                name(away)
            ));
        }
        if let Some(outcome) = self.swap(v, reason).or_else(|| in_progress(v, reason)) {
            return outcome;
        }
        self.begin(v, reason)
            .or_else(|| self.remove(v, reason))
            .or_else(|| self.lead(v))
            .unwrap_or_else(|| Outcome::Wait(unreachable_nodes(v)))
    }

    fn leave_joint(&mut self, v: &View<'_>) -> Outcome {
        let reason = Reason::Unfinished;
        match v.leader() {
            Some(leader) if leader.role == Role::Leaving => self.transfer(v, leader, reason),
            _ => Outcome::Step {
                kind: StepKind::LeaveJoint,
                reason,
                explanation: "the joint membership is left".to_owned(),
            },
        }
    }

    /// A learner that has everything comes in, for the voter that is to go.
    fn swap(&mut self, v: &View<'_>, reason: Reason) -> Option<Outcome> {
        let promote =
            v.with_role(Role::Learner).filter(|r| v.is_ready(r)).min_by_key(|r| r.replica_id)?;
        // With too few voters the one more comes first; also where it is the only one that could
        // take over from a leader that is to go.
        let remove = first_to_go(v).filter(|gone| {
            let leads = v.fact.leader == Some(gone.replica_id);
            let stuck = leads && !self.leads.has_successor(v) && v.nodes.may_lead(promote.node_id);
            v.voters().count() >= v.replication_factor && !stuck
        });
        Some(self.change(v, Some(promote), remove, reason))
    }

    /// A voter goes without a successor: one too many, or a dead one whose place is needed.
    fn remove(&mut self, v: &View<'_>, reason: Reason) -> Option<Outcome> {
        let all_there = v.missing().next().is_none();
        let remove = v
            .departing()
            .filter(|r| {
                if v.is_wanted(r.node_id) { may_hold_more(v, r.node_id).is_ok() } else { all_there }
            })
            .min_by_key(|r| order_of_leaving(v, r))?;
        Some(self.change(v, None, Some(remove), reason))
    }

    fn change(
        &mut self,
        v: &View<'_>,
        promote: Option<&ReplicaFact>,
        remove: Option<&ReplicaFact>,
        reason: Reason,
    ) -> Outcome {
        let stays = |r: &&ReplicaFact| remove.is_none_or(|gone| gone.replica_id != r.replica_id);
        if v.slack_of(v.voters().filter(stays).chain(promote)) < 0 {
            return Outcome::Wait(format!(
                "without {} too few healthy voters would be left: others must come back first",
                remove.map_or_else(|| "a change".to_owned(), name)
            ));
        }
        if let Some(gone) = remove
            && v.fact.leader == Some(gone.replica_id)
        {
            return self.transfer(v, gone, reason);
        }
        let explanation = match (promote, remove) {
            (Some(new), Some(gone)) => {
                format!("{} becomes a voter in place of {}", name(new), name(gone))
            }
            (Some(new), None) => format!("{} becomes one more voter", name(new)),
            (None, Some(gone)) => format!("{} is to leave, and votes no more", name(gone)),
            (None, None) => return Outcome::Done,
        };
        let kind = StepKind::Swap {
            promote: promote.map(|r| r.replica_id),
            remove: remove.map(|r| r.replica_id),
        };
        Outcome::Step { kind, reason, explanation }
    }

    /// The leader hands over, because it is to go.
    fn transfer(&mut self, v: &View<'_>, leader: &ReplicaFact, reason: Reason) -> Outcome {
        match self.leads.successor(v) {
            Some(next) => Outcome::Step {
                kind: StepKind::TransferLeader { to_replica: next.replica_id },
                reason,
                explanation: format!(
                    "{} is to go, and leads: {} takes over",
                    name(leader),
                    name(next)
                ),
            },
            None => Outcome::Wait(format!(
                "{} is to go, and leads: no other voter that stays has everything yet",
                name(leader)
            )),
        }
    }

    /// A replica for a node that should have one.
    fn begin(&mut self, v: &View<'_>, reason: Reason) -> Option<Outcome> {
        let empty = |n: &u64| v.replicas().all(|r| r.node_id != *n);
        let node_id = v.missing().filter(empty).find(|&n| may_hold_more(v, n).is_ok())?;
        Some(match self.slots.take(v, node_id) {
            Ok(()) => Outcome::Step {
                kind: StepKind::CreateReplica { node_id },
                reason,
                explanation: match first_to_go(v) {
                    Some(gone) => format!("node {node_id} gets a replica, for {}", name(gone)),
                    None => format!("node {node_id} gets a replica, one is missing"),
                },
            },
            Err(why) => Outcome::Wait(format!("node {node_id} is to get a replica: {why}")),
        })
    }

    /// The preferred leader takes over.
    fn lead(&mut self, v: &View<'_>) -> Option<Outcome> {
        v.preferred()?;
        if self.is_paused {
            return Some(Outcome::Wait("paused; without that, the leader would move".to_owned()));
        }
        Some(match self.leads.preferred(v)? {
            Ok(next) => Outcome::Step {
                kind: StepKind::TransferLeader { to_replica: next.replica_id },
                reason: Reason::Leaders,
                explanation: format!("{} is the preferred leader", name(next)),
            },
            Err(why) => Outcome::Wait(why),
        })
    }
}

fn name(r: &ReplicaFact) -> String {
    format!("replica {} on node {}", r.replica_id, r.node_id)
}

fn names<'a>(replicas: impl Iterator<Item = &'a ReplicaFact>) -> String {
    replicas.map(name).collect::<Vec<_>>().join(", ")
}

/// Why nothing may be done with the group now.
fn untouchable(v: &View<'_>) -> Option<String> {
    if !v.fact.is_known {
        return Some("its membership is not known: no leader has reported recently".to_owned());
    }
    if v.slack() < 0 {
        let ill = names(v.replicas().filter(|r| {
            matches!(r.role, Role::Voter | Role::Entering | Role::Leaving) && !v.is_healthy(r)
        }));
        return Some(format!(
            "it has no quorum of healthy voters, and is left alone until they come back: {ill}"
        ));
    }
    if v.leader().is_none() {
        return Some("it has no leader: one is being elected".to_owned());
    }
    v.fact.change_pending.then(|| "a change of it is under way".to_owned())
}

/// What a membership without it left behind, and what was begun for a target that has changed.
fn left_over(v: &View<'_>) -> Option<Outcome> {
    let unfinished =
        |kind, explanation| Some(Outcome::Step { kind, reason: Reason::Unfinished, explanation });
    if let Some(r) = v.with_role(Role::Left).next() {
        let kind = StepKind::Forget { replica_id: r.replica_id };
        return unfinished(kind, format!("{} has left: its data go", name(r)));
    }
    if let Some(r) = v.with_role(Role::Learner).find(|r| is_surplus(v, r)) {
        let kind = StepKind::RemoveLearner { replica_id: r.replica_id };
        return unfinished(kind, format!("{} is not needed any more", name(r)));
    }
    if let Some(r) = v.with_role(Role::Recorded).find(|r| is_surplus(v, r)) {
        let kind = StepKind::Forget { replica_id: r.replica_id };
        return unfinished(kind, format!("{} is not needed any more", name(r)));
    }
    None
}

/// No use for this learner, or for this record of one to come.
fn is_surplus(v: &View<'_>, r: &ReplicaFact) -> bool {
    if !r.is_recorded {
        return true;
    }
    if v.wanted.is_empty() {
        return false;
    }
    // The one that got furthest is kept, of equals the older.
    let rank =
        |r: &ReplicaFact| (r.role == Role::Recorded, r.health != Health::Ready, r.replica_id);
    let better = |other: &ReplicaFact| {
        other.replica_id != r.replica_id
            && other.node_id == r.node_id
            && (other.role == Role::Voter
                || matches!(other.role, Role::Learner | Role::Recorded)
                    && other.is_recorded
                    && rank(other) < rank(r))
    };
    !v.is_wanted(r.node_id) || v.is_dead(r) || v.replicas().any(better)
}

/// A replica that is on its way to a node that is up.
fn in_progress(v: &View<'_>, reason: Reason) -> Option<Outcome> {
    let on_its_way = |role| v.with_role(role).find(|r| v.nodes.is_up(r.node_id));
    if let Some(r) = on_its_way(Role::Recorded) {
        return Some(Outcome::Step {
            kind: StepKind::AddLearner { replica_id: r.replica_id },
            reason,
            explanation: format!("{} joins as a learner", name(r)),
        });
    }
    let r = on_its_way(Role::Learner)?;
    Some(Outcome::Wait(format!("{} catches up{}", name(r), lacks(r))))
}

fn lacks(r: &ReplicaFact) -> String {
    match r.health {
        Health::Behind { matched: 0, .. } => ": it receives a checkpoint".to_owned(),
        Health::Behind { missing, .. } => format!(": it lacks {missing} entries"),
        Health::Unknown => ": it has not been heard of yet".to_owned(),
        Health::Ready | Health::Closed => String::new(),
    }
}

/// The voter that goes first: dead ones, then followers, then those on draining nodes, then those
/// that are ill anyway.
fn first_to_go<'a>(v: &View<'a>) -> Option<&'a ReplicaFact> {
    v.departing().min_by_key(|r| order_of_leaving(v, r))
}

/// A voter whose node is down, beside those that are to go: a move would make the group rest on fewer
/// still.
fn away<'a>(v: &View<'a>) -> Option<&'a ReplicaFact> {
    let goes = |r: &ReplicaFact| v.departing().any(|d| d.replica_id == r.replica_id);
    v.voters().find(|r| !goes(r) && !v.nodes.is_up(r.node_id))
}

fn order_of_leaving(v: &View<'_>, r: &ReplicaFact) -> (bool, bool, bool, bool, u64) {
    (
        !v.is_dead(r),
        v.fact.leader == Some(r.replica_id),
        !v.nodes.is_draining(r.node_id),
        v.is_healthy(r),
        r.replica_id,
    )
}

/// Why a node cannot be given a replica now.
fn may_hold_more(v: &View<'_>, node_id: u64) -> Result<(), &'static str> {
    match v.nodes.get(node_id) {
        None => Err("is no member"),
        Some(m) => match m.reach {
            Reach::Down { lost: true } => Err("is lost"),
            Reach::Down { lost: false } => Err("is down, and waited for"),
            Reach::Up if v.nodes.is_draining(node_id) => Err("is draining"),
            Reach::Up => Ok(()),
        },
    }
}

fn unreachable_nodes(v: &View<'_>) -> String {
    let nodes: Vec<u64> =
        v.wanted.iter().copied().filter(|&n| may_hold_more(v, n).is_err()).collect();
    let whys = nodes
        .into_iter()
        .filter_map(|n| may_hold_more(v, n).err().map(|why| format!("node {n} {why}")))
        .collect::<Vec<_>>()
        .join(", ");
    format!("the target names nodes that cannot be given a replica: {whys}")
}

/// The membership is as intended: what is awaited all the same.
fn settling(v: &View<'_>) -> Outcome {
    if let Some(n) = v.wanted.iter().find(|n| v.nodes.is_draining(**n)) {
        return Outcome::Wait(format!(
            "node {n} is draining, and the target still names it: a new target is due, or more nodes"
        ));
    }
    match v.voters().find(|r| !v.is_ready(r)) {
        None => Outcome::Done,
        Some(r) if !v.nodes.is_up(r.node_id) => {
            Outcome::Wait(format!("{} is down: it is waited for until it counts as lost", name(r)))
        }
        Some(r) => Outcome::Wait(format!("{} catches up{}", name(r), lacks(r))),
    }
}
