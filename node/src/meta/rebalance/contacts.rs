//! When each node was last heard by the leader of the meta group itself, and what it said.
use crate::ids::NodeId;
use ringfold_proto::internal::{MetaState, ReportAnswer};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// A report counts for so long.
const FRESH: Duration = Duration::from_secs(3);

/// Longest time between two readings that counts: behind it the process itself was stopped.
const GAP_MAX: Duration = Duration::from_secs(1);

/// Time in which this process ran itself. A leader that was stopped, or whose machine slept, has not
/// heard the others because of that, and must not take its own pause for their silence.
#[derive(Debug)]
pub struct OwnTime {
    read_at: Instant,
    now: Instant,
}

impl OwnTime {
    pub fn new(clock: Instant) -> OwnTime {
        OwnTime { read_at: clock, now: clock }
    }

    /// The own time at `clock`; to be read several times within the longest gap.
    pub fn read(&mut self, clock: Instant) -> Instant {
        let gap = clock.saturating_duration_since(self.read_at);
        self.read_at = self.read_at.max(clock);
        self.now += gap.min(GAP_MAX);
        self.now
    }
}

/// A replica that is not in so many reports in a row is not there.
const MISSING_REPORTS: u32 = 3;

/// What is known of one node.
#[derive(Debug, Clone)]
struct Contact {
    /// The last answer; the leader's election, if there was none since.
    heard: Instant,
    report: Option<ReportAnswer>,
    /// Replicas that it has not, though the records give them to it: in how many reports in a row.
    missing: BTreeMap<u64, u32>,
    /// The report was not looked through yet.
    is_new: bool,
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
            self.nodes.entry(*n).or_insert_with(|| Contact {
                heard: now,
                report: None,
                missing: BTreeMap::new(),
                is_new: false,
            });
        }
        for (n, report) in answers {
            if let Some(c) = self.nodes.get_mut(&n) {
                (c.heard, c.report, c.is_new) = (now, Some(report), true);
            }
        }
    }

    /// Looks for replicas that the records, as new as the reports or newer, give to nodes which know
    /// of that, and do not have them.
    pub fn look_for_missing(&mut self, state: &MetaState) {
        let mut given: HashMap<u64, Vec<u64>> = HashMap::new();
        for r in state.placement.iter().flat_map(|p| &p.replicas) {
            given.entry(r.node_id).or_default().push(r.replica_id);
        }
        for (node, c) in self.nodes.iter_mut().filter(|(_, c)| c.is_new) {
            c.is_new = false;
            let Some(report) = &c.report else { continue };
            let there: HashSet<u64> = report.replicas.iter().map(|r| r.replica_id).collect();
            let given = given.remove(&node.0).unwrap_or_default().into_iter();
            let missing = given
                .filter(|id| *id < report.followed_replica_id && !there.contains(id))
                .map(|id| (id, c.missing.get(&id).copied().unwrap_or(0).saturating_add(1)));
            c.missing = missing.collect();
        }
    }

    /// The node lives, and has the replica no more.
    pub fn is_missing(&self, node: NodeId, replica: u64) -> bool {
        let c = self.nodes.get(&node);
        c.is_some_and(|c| c.missing.get(&replica).is_some_and(|n| *n >= MISSING_REPORTS))
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
    use ringfold_proto::internal::{MetaPartition, MetaReplica, ReplicaReport};

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
    async fn a_leaders_own_pause_is_not_the_silence_of_others() {
        let start = Instant::now();
        let (one, two) = (NodeId(1), NodeId(2));
        let nodes = BTreeSet::from([one, two]);
        let both = || vec![(one, ReportAnswer::default()), (two, ReportAnswer::default())];
        let mut time = OwnTime::new(start);
        let mut contacts = Contacts::default();
        let at = |ms| start + Duration::from_millis(ms);
        contacts.heard(time.read(at(0)), &nodes, both());
        // Stopped for an hour, in the middle of a round: nobody's answer is there.
        let now = time.read(at(3_600_000));
        contacts.heard(now, &nodes, vec![]);
        for n in [one, two] {
            assert_eq!(contacts.reached(n, now, LOST_AFTER), Reached::Up);
        }
        // From then on silence counts, reading by reading.
        let mut now = now;
        for i in 1..=2_400 {
            now = time.read(at(3_600_000 + i * 250));
            contacts.heard(now, &nodes, vec![(one, ReportAnswer::default())]);
        }
        assert_eq!(contacts.reached(one, now, LOST_AFTER), Reached::Up);
        assert_eq!(contacts.reached(two, now, LOST_AFTER), Reached::Down { lost: true });
    }

    #[tokio::test]
    async fn a_replica_that_its_node_does_not_have_is_missing_after_some_reports() {
        let (now, node) = (Instant::now(), NodeId(1));
        let nodes = BTreeSet::from([node]);
        let given = |replica_id| MetaReplica { replica_id, node_id: 1, admitted: true };
        let replicas = vec![given(4), given(5), given(9), MetaReplica { node_id: 2, ..given(6) }];
        let placed = MetaPartition { replicas, ..Default::default() };
        let state = MetaState { placement: vec![placed], ..Default::default() };
        let has = ReplicaReport { replica_id: 4, ..Default::default() };
        // Of replica 9 the node has not heard yet.
        let report =
            ReportAnswer { replicas: vec![has], followed_replica_id: 8, ..Default::default() };
        let mut contacts = Contacts::default();
        let hear = |c: &mut Contacts, answers| {
            c.heard(now, &nodes, answers);
            c.look_for_missing(&state);
        };
        for i in 1..=MISSING_REPORTS {
            assert!(!contacts.is_missing(node, 5), "after {} reports", i - 1);
            hear(&mut contacts, vec![(node, report.clone())]);
            // A round without an answer says nothing.
            hear(&mut contacts, vec![]);
        }
        assert!(contacts.is_missing(node, 5));
        assert!(![4, 6, 9].iter().any(|r| contacts.is_missing(node, *r)));
        let replicas = [4, 5].map(|replica_id| ReplicaReport { replica_id, ..Default::default() });
        let found = ReportAnswer { replicas: replicas.into(), ..report };
        hear(&mut contacts, vec![(node, found)]);
        assert!(!contacts.is_missing(node, 5));
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
