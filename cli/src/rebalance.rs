//! `ringfold rebalance`: what the cluster moves and why; pausing it, and watching it.
pub mod progress;

use crate::Global;
use crate::connect::{connect, members_of};
use crate::error::CliError;
use crate::members::names;
use crate::output::{Format, Out, Record, bytes, say};
use futures::StreamExt;
use progress::{Progress, or_one};
use ringfold_client::{Move, MoveReason, RebalancePlan};
use serde::Serialize;
use std::collections::BTreeMap;

/// Lines about what waits, for a person; `-o json` has them all.
const WAITING_SHOWN: usize = 10;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Shows what is to move, from where to where, and why
    Plan,
    /// Has balancing and draining wait; repairs go on
    Pause,
    /// Has balancing and draining go on
    Resume,
    /// Shows the progress until nothing is left to move
    Watch,
}

pub async fn run(command: Command, global: &Global) -> Result<u8, CliError> {
    match command {
        Command::Plan => plan(global).await,
        Command::Pause => pause(global, true).await,
        Command::Resume => pause(global, false).await,
        Command::Watch => watch(global).await,
    }
}

/// Lines of `-o json` differ by `kind`.
#[derive(Serialize)]
pub struct PlanLine<'a> {
    kind: &'static str,
    epoch: u64,
    paused: bool,
    at_rest: bool,
    /// So many lines of kind `move` follow where moves are shown.
    moves: usize,
    leader_moves: u32,
    bytes: u64,
    bytes_done: u64,
    waiting: &'a [String],
}

#[derive(Serialize)]
struct MoveLine<'a> {
    kind: &'static str,
    partition: u32,
    from_node_id: Option<u64>,
    to_node_id: Option<u64>,
    bytes: u64,
    bytes_done: u64,
    reason: &'static str,
    phase: &'a str,
    #[serde(skip)]
    names: &'a BTreeMap<u64, String>,
}

impl Record for MoveLine<'_> {
    const HEADERS: &'static [&'static str] =
        &["PARTITION", "FROM", "TO", "BYTES", "DONE", "REASON", "PHASE"];
    fn row(&self) -> Vec<String> {
        vec![
            self.partition.to_string(),
            node_name(self.names, self.from_node_id),
            node_name(self.names, self.to_node_id),
            bytes(self.bytes),
            bytes(self.bytes_done),
            self.reason.into(),
            self.phase.into(),
        ]
    }
}

#[derive(Serialize)]
struct PausedRecord {
    paused: bool,
}

fn node_name(names: &BTreeMap<u64, String>, node_id: Option<u64>) -> String {
    match node_id {
        None => "-".into(),
        Some(id) => match names.get(&id) {
            Some(name) => name.clone(),
            None => format!("node {id}"),
        },
    }
}

/// A text of the cluster, which has ids of nodes, for a person, who knows their names.
pub fn named(text: &str, names: &BTreeMap<u64, String>) -> String {
    let mut named = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("node ") {
        let (before, after) = rest.split_at(at);
        let number = after.get(5..).unwrap_or_default();
        let digits = number.bytes().take_while(u8::is_ascii_digit).count();
        let name = number.get(..digits).and_then(|n| n.parse().ok()).and_then(|id| names.get(&id));
        let is_word = !before.ends_with(char::is_alphanumeric);
        let (new, taken) = match name {
            Some(name) if is_word => (name.as_str(), 5 + digits),
            _ => ("node ", 5),
        };
        named.push_str(before);
        named.push_str(new);
        rest = after.get(taken..).unwrap_or_default();
    }
    named + rest
}

fn known(node_id: u64) -> Option<u64> {
    (node_id != 0).then_some(node_id)
}

pub fn reason(reason: MoveReason) -> &'static str {
    match reason {
        MoveReason::Unspecified => "unknown",
        MoveReason::Unfinished => "unfinished",
        MoveReason::Repair => "repair",
        MoveReason::Drain => "drain",
        MoveReason::Balance => "balance",
        MoveReason::Leaders => "leaders",
    }
}

pub fn plan_line(plan: &RebalancePlan) -> PlanLine<'_> {
    PlanLine {
        kind: "plan",
        epoch: plan.epoch,
        paused: plan.paused,
        at_rest: plan.at_rest,
        moves: plan.moves.len(),
        leader_moves: plan.leader_moves,
        bytes: plan.moves.iter().map(|m| m.bytes).sum(),
        bytes_done: plan.moves.iter().map(|m| m.bytes_done).sum(),
        waiting: &plan.waiting,
    }
}

fn move_line<'a>(m: &'a Move, names: &'a BTreeMap<u64, String>) -> MoveLine<'a> {
    MoveLine {
        kind: "move",
        partition: m.partition,
        from_node_id: known(m.from_node_id),
        to_node_id: known(m.to_node_id),
        bytes: m.bytes,
        bytes_done: m.bytes_done,
        reason: reason(m.reason()),
        phase: &m.phase,
        names,
    }
}

/// The plan in one line.
pub fn summary(plan: &RebalancePlan) -> String {
    let line = plan_line(plan);
    let mut parts = Vec::new();
    match line.moves {
        0 => {}
        1 => parts.push(format!("1 move of {}", bytes(line.bytes))),
        n => parts.push(format!("{n} moves of {}", bytes(line.bytes))),
    }
    match line.leader_moves {
        0 => {}
        1 => parts.push("1 leadership to hand over".into()),
        n => parts.push(format!("{n} leaderships to hand over")),
    }
    let what = match (plan.at_rest, parts.is_empty()) {
        (true, _) => "at rest".into(),
        (false, false) => parts.join(", "),
        (false, true) => "not at rest".into(),
    };
    match plan.paused {
        true => format!("{what} (paused: `ringfold rebalance resume` lets it go on)"),
        false => what,
    }
}

/// What waits, a line each, no more than a person reads.
fn waiting(plan: &RebalancePlan, names: &BTreeMap<u64, String>) -> Vec<String> {
    let line = |w: &String| format!("waits: {}", named(w, names));
    let mut lines: Vec<String> = plan.waiting.iter().take(WAITING_SHOWN).map(line).collect();
    if plan.waiting.len() > WAITING_SHOWN {
        lines.push(format!("and {} more that wait", plan.waiting.len() - WAITING_SHOWN));
    }
    lines
}

fn show(
    out: &mut Out,
    plan: &RebalancePlan,
    names: &BTreeMap<u64, String>,
) -> Result<(), CliError> {
    out.json(&plan_line(plan))?;
    for m in &plan.moves {
        out.json(&move_line(m, names))?;
    }
    out.flush()
}

async fn plan(global: &Global) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let names = names(&members_of(&client, global).await?);
    let plan = client.rebalance_plan().await?;
    let mut out = Out::new(global.output);
    match global.output {
        Format::Json => show(&mut out, &plan, &names)?,
        Format::Table => {
            for m in &plan.moves {
                out.show(&move_line(m, &names))?;
            }
            out.flush()?;
            out.text(&format_args!("{}\n", summary(&plan)))?;
            for line in waiting(&plan, &names) {
                out.text(&format_args!("{line}\n"))?;
            }
            out.flush()?;
        }
    }
    Ok(0)
}

async fn pause(global: &Global, paused: bool) -> Result<u8, CliError> {
    let client = connect(global).await?;
    match paused {
        true => client.rebalance_pause().await?,
        false => client.rebalance_resume().await?,
    }
    match global.output {
        Format::Json => {
            let mut out = Out::new(global.output);
            out.json(&PausedRecord { paused })?;
            out.flush()?;
        }
        Format::Table if paused => {
            say(format_args!("paused: `ringfold rebalance resume` lets it go on"));
        }
        Format::Table => say(format_args!("balancing and draining go on")),
    }
    Ok(0)
}

async fn watch(global: &Global) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let members = names(&members_of(&client, global).await?);
    let mut out = Out::new(global.output);
    let mut plans = client.rebalance_watch();
    let mut progress = Progress::new(members.clone());
    let mut was_paused = false;
    while let Some(plan) = plans.next().await {
        let plan = plan?;
        if progress.misses_names(&plan.moves)
            && let Ok(topology) = client.topology().await
        {
            progress.rename(names(&topology));
        }
        progress.take(&plan.moves, or_one(&plan.waiting, &summary(&plan)));
        if global.output == Format::Json {
            show(&mut out, &plan, &members)?;
        }
        if plan.at_rest {
            break;
        }
        if plan.paused && !was_paused {
            progress.say(format_args!("paused: `ringfold rebalance resume` lets it go on"));
        }
        was_paused = plan.paused;
    }
    let done = progress.finish();
    if global.output == Format::Table {
        out.text(&format_args!("at rest{done}\n"))?;
        out.flush()?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_move(partition: u32, bytes: u64) -> Move {
        let mut m = Move { partition, from_node_id: 1, bytes, ..Move::default() };
        m.set_reason(MoveReason::Drain);
        m
    }

    #[test]
    fn a_plan_is_said_in_one_line() {
        let mut plan = RebalancePlan { at_rest: true, ..RebalancePlan::default() };
        assert_eq!(summary(&plan), "at rest");
        plan.at_rest = false;
        assert_eq!(summary(&plan), "not at rest");
        plan.leader_moves = 1;
        plan.moves = vec![a_move(0, 1 << 20), a_move(1, 1 << 19)];
        assert_eq!(summary(&plan), "2 moves of 1.50 MiB, 1 leadership to hand over");
        plan.paused = true;
        assert!(summary(&plan).contains("rebalance resume"));
    }

    #[test]
    fn a_move_has_its_documented_fields_and_names_nodes_to_a_person() {
        let names = BTreeMap::from([(1, "node-0".to_string())]);
        let m = a_move(3, 7);
        let line = move_line(&m, &names);
        assert_eq!(
            serde_json::to_value(&line).unwrap(),
            serde_json::json!({"kind": "move", "partition": 3, "from_node_id": 1,
                "to_node_id": null, "bytes": 7, "bytes_done": 0, "reason": "drain", "phase": ""})
        );
        assert_eq!(line.row()[1..3], ["node-0", "-"]);
        assert_eq!(line.row().len(), MoveLine::HEADERS.len());
        assert_eq!(node_name(&names, Some(9)), "node 9");
    }

    #[test]
    fn a_person_reads_names_in_place_of_ids() {
        let names = BTreeMap::from([(5, "node-3".to_string()), (14, "b".to_string())]);
        for (told, read) in [
            ("node 5 has 2: node 14, node 5", "node-3 has 2: b, node-3"),
            ("replica 7 on node 5", "replica 7 on node-3"),
            ("node 6, node 51, anode 5, node x, node ", "node 6, node 51, anode 5, node x, node "),
            ("ä node 5ä", "ä node-3ä"),
            ("", ""),
        ] {
            assert_eq!(named(told, &names), read);
        }
    }

    #[test]
    fn a_person_sees_the_first_lines_of_what_waits() {
        let waiting_lines = (0..30).map(|i| i.to_string()).collect();
        let plan = RebalancePlan { waiting: waiting_lines, ..RebalancePlan::default() };
        let lines = waiting(&plan, &BTreeMap::new());
        assert_eq!((lines.len(), lines[10].as_str()), (11, "and 20 more that wait"));
    }
}
