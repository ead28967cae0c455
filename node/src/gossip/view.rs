//! The members as one node sees them: the meta group's record of each, and whether gossip hears of
//! it. Pure: what happened goes in with the time, and each change comes out once.
use super::facts::Facts;
use crate::ids::NodeId;
use crate::meta::state::is_removed;
use ringfold_proto::internal::MetaMember;
use ringfold_proto::v1::MemberState;
use std::collections::BTreeMap;

/// A node that was heard of is lost once it was silent so long and chitchat takes it for dead, too:
/// about that at its default threshold, later where heartbeats come by far.
pub const SILENT_MAX_MS: u64 = 5_000;
/// A member that was not heard of yet gets so long from when it became known.
pub const UNHEARD_MAX_MS: u64 = 15_000;
/// Of the time between two observations no more than this counts: while this process was paused,
/// others were not silent.
pub const GAP_MAX_MS: u64 = 2_000;

/// One node, as gossip has it now: of its newest generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    pub node: NodeId,
    pub generation: u64,
    /// Rises while the node lives.
    pub heartbeat: u64,
    /// By chitchat's failure detector.
    pub is_alive: bool,
    pub facts: Facts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// This node does not gossip.
    Unknown,
    /// Heard of lately, or so new that it may still be.
    Live,
    Lost,
}

/// A member, to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub member: MetaMember,
    pub liveness: Liveness,
    /// Wall time of the observation that `liveness` is from, Unix milliseconds.
    pub since_unix_ms: u64,
    /// `None` until it was heard. Of a lost one: the last.
    pub facts: Option<Facts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// The meta group recorded a new member.
    Added,
    /// Not heard of for a while. It is still a member.
    Lost,
    /// Heard of again.
    Rejoined,
    /// The meta group recorded that it was removed.
    Left,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub kind: ChangeKind,
    /// As it is after the change.
    pub entry: Entry,
}

/// Times of an observation.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// On a clock that never goes back.
    pub boot_ms: u64,
    pub unix_ms: u64,
}

#[derive(Debug, Default)]
pub struct View {
    entries: BTreeMap<NodeId, Known>,
    /// Milliseconds of observation, and when the last one was.
    observed_ms: u64,
    last_boot_ms: Option<u64>,
}

#[derive(Debug)]
struct Known {
    entry: Entry,
    /// In `observed_ms`, as all times here: when it became known, and its last sign of life.
    known_ms: u64,
    heard_ms: Option<u64>,
    /// The last generation and heartbeat. The first of a generation is no sign of life: it may be a
    /// dead node's, passed on.
    heartbeat: Option<(u64, u64)>,
}

impl View {
    /// Members in order of their ids.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|k| &k.entry)
    }

    /// Takes what is known now. `heard`: one of each node at most; `None` where this node does not
    /// gossip. `me` is never lost.
    pub fn observe(
        &mut self,
        now: Now,
        me: NodeId,
        members: &[MetaMember],
        heard: Option<&[Heard]>,
    ) -> Vec<Change> {
        let gap_ms = now.boot_ms.saturating_sub(self.last_boot_ms.unwrap_or(now.boot_ms));
        self.observed_ms += gap_ms.min(GAP_MAX_MS);
        self.last_boot_ms = Some(now.boot_ms);
        let mut changes = self.follow_members(now, members, heard.is_some());
        let Some(heard) = heard else { return changes };
        let heard: BTreeMap<NodeId, &Heard> = heard.iter().map(|h| (h.node, h)).collect();
        for (node, known) in &mut self.entries {
            let heard = heard.get(node).copied();
            let is_live = known.hear(heard, self.observed_ms) || *node == me;
            let entry = &mut known.entry;
            let kind = match (entry.liveness, is_live) {
                (Liveness::Live, false) => ChangeKind::Lost,
                (Liveness::Lost, true) => ChangeKind::Rejoined,
                _ => continue,
            };
            entry.liveness = if is_live { Liveness::Live } else { Liveness::Lost };
            entry.since_unix_ms = now.unix_ms;
            changes.push(Change { kind, entry: entry.clone() });
        }
        changes
    }

    fn follow_members(&mut self, now: Now, members: &[MetaMember], gossips: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut gone = std::mem::take(&mut self.entries);
        for member in members.iter().filter(|m| !is_removed(m)) {
            let node = NodeId(member.node_id);
            let known = match gone.remove(&node) {
                Some(mut known) => {
                    if known.entry.member != *member {
                        known.entry.member = member.clone();
                    }
                    known
                }
                None => {
                    let entry = Entry {
                        member: member.clone(),
                        liveness: if gossips { Liveness::Live } else { Liveness::Unknown },
                        since_unix_ms: now.unix_ms,
                        facts: None,
                    };
                    changes.push(Change { kind: ChangeKind::Added, entry: entry.clone() });
                    Known { entry, known_ms: self.observed_ms, heard_ms: None, heartbeat: None }
                }
            };
            self.entries.insert(node, known);
        }
        for (_, mut known) in gone {
            known.entry.member.state = MemberState::Removed as u32;
            known.entry.since_unix_ms = now.unix_ms;
            changes.push(Change { kind: ChangeKind::Left, entry: known.entry });
        }
        changes
    }
}

impl Known {
    /// Whether it counts as live.
    fn hear(&mut self, heard: Option<&Heard>, now_ms: u64) -> bool {
        let mut is_alive = false;
        if let Some(h) = heard {
            is_alive = h.is_alive;
            let beats = match self.heartbeat {
                Some((generation, heartbeat)) if generation == h.generation => {
                    h.heartbeat > heartbeat
                }
                _ => false,
            };
            if self.heartbeat.is_none_or(|known| (h.generation, h.heartbeat) > known) {
                self.heartbeat = Some((h.generation, h.heartbeat));
            }
            if is_alive || beats {
                self.heard_ms = Some(now_ms);
                // Unless they have not come yet: the heartbeat comes first.
                if h.facts != Facts::default() && self.entry.facts.as_ref() != Some(&h.facts) {
                    self.entry.facts = Some(h.facts.clone());
                }
            }
        }
        is_alive
            || match self.heard_ms {
                Some(heard_ms) => now_ms - heard_ms < SILENT_MAX_MS,
                None => {
                    self.entry.liveness == Liveness::Live && now_ms - self.known_ms < UNHEARD_MAX_MS
                }
            }
    }
}

#[cfg(test)]
mod tests;
