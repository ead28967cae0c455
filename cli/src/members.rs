//! `ringfold drain`, `undrain` and `remove`: members that leave, by their id or name.
use crate::Global;
use crate::connect::{connect, members_of};
use crate::error::{CliError, Exit};
use crate::output::{Format, Out, Record, say};
use crate::rebalance::named;
use crate::rebalance::progress::Progress;
use futures::StreamExt;
use ringfold_client::{Client, DrainProgress, Member, MemberState, Topology};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's id, or its name
    node: String,
}

#[derive(Serialize)]
struct MemberRecord<'a> {
    node_id: u64,
    name: &'a str,
    state: &'static str,
}

impl Record for MemberRecord<'_> {
    const HEADERS: &'static [&'static str] = &["NODE", "NAME", "STATE"];
    fn row(&self) -> Vec<String> {
        vec![self.node_id.to_string(), self.name.into(), self.state.into()]
    }
}

/// A line of a drain, whenever something has changed.
#[derive(Serialize, PartialEq, Clone)]
struct DrainRecord<'a> {
    node_id: u64,
    name: &'a str,
    replicas_at_start: u32,
    replicas_left: u32,
    done: bool,
    waiting: Vec<String>,
}

/// Names of members, by node id.
pub fn names(topology: &Topology) -> BTreeMap<u64, String> {
    let named = topology.members.iter().filter(|m| !m.name.is_empty());
    named.map(|m| (m.node_id, m.name.clone())).collect()
}

/// The node that is meant: id and name. A number that no member has may be one that the answering
/// node has not heard of: the cluster decides.
fn find(topology: &Topology, node: &str) -> Result<(u64, String), CliError> {
    let found = |m: &Member| (m.node_id, m.name.clone());
    let id = node.parse::<u64>().ok();
    if let Some(member) = topology.members.iter().find(|m| Some(m.node_id) == id) {
        return Ok(found(member));
    }
    // A removed member's name may have gone to another.
    let is_there = |m: &&Member| m.state() != MemberState::Removed;
    let named = |m: &&Member| m.name == node;
    let all: Vec<_> = topology.members.iter().filter(is_there).collect();
    match &all.iter().copied().filter(named).collect::<Vec<_>>()[..] {
        [one] => Ok(found(one)),
        [] => match id {
            Some(id) if id > 0 => Ok((id, format!("node {id}"))),
            _ => {
                let known: Vec<_> =
                    all.iter().map(|m| format!("{} ({})", m.node_id, m.name)).collect();
                let message = format!("there is no node {node}: there are {}", known.join(", "));
                Err(CliError::new(Exit::NotFound, message)
                    .action("give a node's id or name, as `ringfold status` shows them"))
            }
        },
        several => {
            let ids: Vec<_> = several.iter().map(|m| m.node_id.to_string()).collect();
            let message = format!("several nodes are named {node}: {}", ids.join(", "));
            Err(CliError::usage(message).action("give the node's id"))
        }
    }
}

/// Nodes by name, and each reason why a drain is refused on a line of its own, for a person.
pub fn list_reasons(
    mut error: CliError,
    format: Format,
    names: &BTreeMap<u64, String>,
) -> CliError {
    if format != Format::Table {
        return error;
    }
    error.message = named(&error.message, names);
    if error.reason == "DRAIN_IMPOSSIBLE"
        && let Some((what, reasons)) = error.message.split_once(": ")
    {
        error.message = format!("{what}:\n  - {}", reasons.replace("; ", "\n  - "));
    }
    error
}

async fn found(args: &Args, global: &Global) -> Result<(Client, Topology, u64, String), CliError> {
    let client = connect(global).await?;
    let topology = members_of(&client, global).await?;
    let (node_id, name) = find(&topology, &args.node)?;
    Ok((client, topology, node_id, name))
}

fn show(global: &Global, record: &MemberRecord<'_>) -> Result<u8, CliError> {
    let mut out = Out::new(global.output);
    out.show(record)?;
    out.flush()?;
    Ok(0)
}

pub async fn drain(args: Args, global: &Global) -> Result<u8, CliError> {
    let (client, topology, node_id, name) = found(&args, global).await?;
    let mut out = Out::new(global.output);
    let names = names(&topology);
    let mut progress = Progress::new(names.clone());
    let mut drain = client.drain(node_id);
    let mut last = None;
    while let Some(message) = drain.next().await {
        let message =
            message.map_err(|e| list_reasons(CliError::from(e), global.output, &names))?;
        progress.take(&message.moves, &message.waiting);
        if last.is_none() && !message.done {
            progress.say(format_args!(
                "{name} is being drained; Ctrl-C leaves it going on, `ringfold undrain {name}` ends it"
            ));
        }
        let record = drain_record(&name, message);
        if global.output == Format::Json && last.as_ref() != Some(&record) {
            out.json(&record)?;
            out.flush()?;
        }
        last = Some(record);
    }
    let done = progress.finish();
    say(format_args!("{name} holds nothing any more{done}: `ringfold remove {name}` takes it out"));
    if global.output == Format::Table {
        return show(global, &MemberRecord { node_id, name: &name, state: "draining" });
    }
    Ok(0)
}

fn drain_record(name: &str, message: DrainProgress) -> DrainRecord<'_> {
    DrainRecord {
        node_id: message.node_id,
        name,
        replicas_at_start: message.replicas_at_start,
        replicas_left: message.replicas_left,
        done: message.done,
        waiting: message.waiting,
    }
}

pub async fn undrain(args: Args, global: &Global) -> Result<u8, CliError> {
    let (client, _, node_id, name) = found(&args, global).await?;
    client.undrain(node_id).await?;
    show(global, &MemberRecord { node_id, name: &name, state: "active" })
}

pub async fn remove(args: Args, global: &Global) -> Result<u8, CliError> {
    let (client, topology, node_id, name) = found(&args, global).await?;
    client.remove_member(node_id).await.map_err(|e| {
        let mut error = list_reasons(CliError::from(e), global.output, &names(&topology));
        if error.reason == "MEMBER_REFUSED" {
            error.action = Some(format!("`ringfold drain {name}` first, then remove it"));
        }
        error
    })?;
    show(global, &MemberRecord { node_id, name: &name, state: "removed" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node_id: u64, name: &str, state: MemberState) -> Member {
        let mut member = Member { node_id, name: name.into(), ..Member::default() };
        member.set_state(state);
        member
    }

    fn topology() -> Topology {
        let members = vec![
            member(1, "node-0", MemberState::Active),
            member(2, "node-1", MemberState::Removed),
            member(3, "node-1", MemberState::Active),
            member(4, "twin", MemberState::Active),
            member(5, "twin", MemberState::Active),
            member(6, "3", MemberState::Active),
        ];
        Topology { members, ..Topology::default() }
    }

    #[test]
    fn a_node_is_named_by_its_id_or_its_name() {
        let t = topology();
        let id = |node: &str| find(&t, node).map(|(id, _)| id);
        assert_eq!(id("node-0").unwrap(), 1);
        // Not the one that was removed.
        assert_eq!(id("node-1").unwrap(), 3);
        assert_eq!(id("2").unwrap(), 2);
        // An id goes before a name.
        assert_eq!(id("3").unwrap(), 3);
        // The cluster may know it.
        assert_eq!(id("9").unwrap(), 9);
        let missing = id("node-7").unwrap_err();
        assert_eq!(missing.exit, Exit::NotFound);
        assert!(missing.message.contains("3 (node-1)"), "{missing:?}");
        let several = id("twin").unwrap_err();
        assert_eq!(several.exit, Exit::Usage);
        assert!(several.message.contains("4, 5"), "{several:?}");
        assert_eq!(id("0").unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn a_person_gets_each_reason_on_a_line() {
        let refused = || {
            let mut error = CliError::other("node 2 cannot be drained: no room; too few: 2");
            error.reason = "DRAIN_IMPOSSIBLE".into();
            error
        };
        let names = BTreeMap::from([(2, "b".to_string())]);
        let listed = list_reasons(refused(), Format::Table, &names).message;
        assert_eq!(listed, "b cannot be drained:\n  - no room\n  - too few: 2");
        assert_eq!(list_reasons(refused(), Format::Json, &names).message, refused().message);
    }
}
