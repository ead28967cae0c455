//! When each node was last heard by the leader of the meta group itself, and what it said.
use crate::ids::NodeId;
use ringfold_proto::internal::ReportAnswer;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// A report counts for so long.
const FRESH: Duration = Duration::from_secs(3);

/// What is known of one node.
#[derive(Debug, Clone)]
struct Contact {
    /// The last answer; the leader's election, if there was none since.
    heard: Instant,
    report: Option<ReportAnswer>,
}

/// By node, since this node was elected: an earlier leader's knowledge is not taken over.
#[derive(Debug, Clone, Default)]
pub struct Contacts {
    nodes: BTreeMap<NodeId, Contact>,
}

/// How a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Up,
    Down { lost: bool },
}

impl Contacts {
    /// Takes in one round of answers; `nodes` are those that were asked, others are forgotten.
    pub fn heard(
        &mut self,
        now: Instant,
        nodes: &BTreeSet<NodeId>,
        answers: Vec<(NodeId, ReportAnswer)>,
    ) {
        self.nodes.retain(|n, _| nodes.contains(n));
        for n in nodes {
            self.nodes.entry(*n).or_insert(Contact { heard: now, report: None });
        }
        for (n, report) in answers {
            if let Some(c) = self.nodes.get_mut(&n) {
                *c = Contact { heard: now, report: Some(report) };
            }
        }
    }

    /// The node's last report, if it is fresh.
    pub fn report(&self, node: NodeId, now: Instant) -> Option<&ReportAnswer> {
        let c = self.nodes.get(&node)?;
        c.report.as_ref().filter(|_| now.duration_since(c.heard) < FRESH)
    }

    /// A node without an answer for `lost_after`, or one that says that its log is lost, is lost.
    pub fn reached(&self, node: NodeId, now: Instant, lost_after: Duration) -> Reached {
        let Some(c) = self.nodes.get(&node) else { return Reached::Down { lost: false } };
        match self.report(node, now) {
            Some(report) if report.lost => Reached::Down { lost: true },
            Some(_) => Reached::Up,
            // The log of a node does not come back.
            None if c.report.as_ref().is_some_and(|r| r.lost) => Reached::Down { lost: true },
            None => Reached::Down { lost: now.duration_since(c.heard) >= lost_after },
        }
    }

    pub fn fresh(&self, now: Instant) -> impl Iterator<Item = (NodeId, &ReportAnswer)> {
        self.nodes.keys().filter_map(move |n| Some((*n, self.report(*n, now)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST_AFTER: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_node_is_up_then_down_then_lost_and_up_again() {
        let start = Instant::now();
        let (one, two) = (NodeId(1), NodeId(2));
        let nodes = BTreeSet::from([one, two]);
        let mut contacts = Contacts::default();
        contacts.heard(start, &nodes, vec![(one, ReportAnswer::default())]);
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(contacts.reached(one, at(1), LOST_AFTER), Reached::Up);
        let down = |lost| Reached::Down { lost };
        assert_eq!(contacts.reached(two, at(1), LOST_AFTER), down(false), "never heard yet");
        assert_eq!(contacts.reached(one, at(4), LOST_AFTER), down(false));
        contacts.heard(at(300), &nodes, vec![]);
        assert_eq!(contacts.reached(one, at(599), LOST_AFTER), down(false));
        assert_eq!(contacts.reached(one, at(600), LOST_AFTER), down(true));
        contacts.heard(at(700), &nodes, vec![(one, ReportAnswer::default())]);
        assert_eq!(contacts.reached(one, at(701), LOST_AFTER), Reached::Up);
        assert_eq!(contacts.fresh(at(701)).count(), 1);
    }

    #[tokio::test]
    async fn a_lost_log_is_lost_at_once_and_stays_so() {
        let start = Instant::now();
        let nodes = BTreeSet::from([NodeId(1)]);
        let mut contacts = Contacts::default();
        let lost = ReportAnswer { lost: true, ..Default::default() };
        contacts.heard(start, &nodes, vec![(NodeId(1), lost)]);
        for s in [0, 10] {
            let now = start + Duration::from_secs(s);
            let reached = contacts.reached(NodeId(1), now, LOST_AFTER);
            assert_eq!(reached, Reached::Down { lost: true });
        }
    }
}
