//! The plan as clients see it.
use super::facts::Observation;
use ringfold_proto::v1;
use ringfold_topology::plan::{Phase, Plan, Reason, Remaining};

/// Lines that say why something waits.
const WAITING_MAX: usize = 100;

pub(super) fn response(o: &Observation, plan: &Plan) -> v1::RebalancePlanResponse {
    let leads = |r: &&Remaining| r.phase == Phase::Leader;
    let moves = plan.remaining.iter().filter(|r| !leads(r)).map(|r| {
        let whole = o.partitions.get(r.partition as usize).map_or(0, |p| p.bytes);
        let bytes = if r.to.is_some() { whole.max(r.bytes) } else { 0 };
        v1::Move {
            partition: r.partition,
            from_node_id: r.from.unwrap_or(0),
            to_node_id: r.to.unwrap_or(0),
            reason: reason(r.reason) as i32,
            bytes,
            bytes_done: bytes - r.bytes.min(bytes),
            phase: phase(r.phase).into(),
        }
    });
    let waiting = plan.waiting.iter().take(WAITING_MAX);
    v1::RebalancePlanResponse {
        epoch: o.epoch,
        paused: o.paused,
        at_rest: plan.at_rest,
        moves: moves.collect(),
        leader_moves: plan.remaining.iter().filter(leads).count() as u32,
        waiting: waiting.map(|w| format!("partition {}: {}", w.partition, w.explanation)).collect(),
    }
}

fn reason(r: Reason) -> v1::MoveReason {
    match r {
        Reason::Unfinished => v1::MoveReason::Unfinished,
        Reason::Repair => v1::MoveReason::Repair,
        Reason::Drain => v1::MoveReason::Drain,
        Reason::Balance => v1::MoveReason::Balance,
        Reason::Leaders => v1::MoveReason::Leaders,
    }
}

fn phase(p: Phase) -> &'static str {
    match p {
        Phase::NotBegun => "not begun",
        Phase::Copying => "copying",
        Phase::Changing => "changing the membership",
        Phase::CleaningUp => "cleaning up",
        Phase::Leader => "handing the leadership over",
    }
}
