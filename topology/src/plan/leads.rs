//! Who takes a leadership over.

use std::collections::BTreeMap;

use super::ReplicaFact;
use super::view::View;

pub(super) struct Leads {
    /// By node: what it leads, the steps of this plan counted in.
    by_node: BTreeMap<u64, usize>,
    /// Transfers for the sake of balance that this plan may still have.
    left: u32,
}

impl Leads {
    pub(super) fn new(views: &[View<'_>], transfers: u32) -> Leads {
        let mut by_node = BTreeMap::new();
        for leader in views.iter().filter_map(View::leader) {
            *by_node.entry(leader.node_id).or_default() += 1;
        }
        Leads { by_node, left: transfers }
    }

    /// Who takes over from the leader: a voter that has everything; the target's preferred leader,
    /// then one that stays, then the one that leads least.
    pub(super) fn successor<'a>(&mut self, v: &View<'a>) -> Option<&'a ReplicaFact> {
        let leads = |n: u64| self.by_node.get(&n).copied().unwrap_or_default();
        let next = may_take_over(v).min_by_key(|r| {
            (
                v.wanted.first() != Some(&r.node_id),
                !v.is_wanted(r.node_id),
                leads(r.node_id),
                r.replica_id,
            )
        })?;
        self.hand_over(v, next);
        Some(next)
    }

    pub(super) fn has_successor(&self, v: &View<'_>) -> bool {
        may_take_over(v).next().is_some()
    }

    /// The preferred leader, where the leadership can go there now.
    pub(super) fn preferred<'a>(
        &mut self,
        v: &View<'a>,
    ) -> Option<Result<&'a ReplicaFact, String>> {
        let next = v.preferred()?;
        if self.left == 0 {
            return Some(Err("other leaders are handed over first".to_owned()));
        }
        self.left -= 1;
        self.hand_over(v, next);
        Some(Ok(next))
    }

    fn hand_over(&mut self, v: &View<'_>, to: &ReplicaFact) {
        if let Some(before) = v.leader().and_then(|r| self.by_node.get_mut(&r.node_id)) {
            *before = before.saturating_sub(1);
        }
        *self.by_node.entry(to.node_id).or_default() += 1;
    }
}

fn may_take_over<'a>(v: &View<'a>) -> impl Iterator<Item = &'a ReplicaFact> {
    v.voters().filter(|r| {
        Some(r.replica_id) != v.fact.leader && v.is_ready(r) && v.nodes.may_lead(r.node_id)
    })
}

impl<'a> View<'a> {
    /// The voter that should lead and does not, where it could. The leader's node is asked for
    /// nothing: it may be one that is not to lead.
    pub(super) fn preferred(&self) -> Option<&'a ReplicaFact> {
        let &node_id = self.wanted.first()?;
        self.voters()
            .find(|r| r.node_id == node_id && Some(r.replica_id) != self.fact.leader)
            .filter(|r| self.is_ready(r) && self.nodes.may_lead(node_id))
    }
}
