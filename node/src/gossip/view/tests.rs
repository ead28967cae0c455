use super::*;
use proptest::prelude::*;

const ME: NodeId = NodeId(1);

fn member(node: u64, state: MemberState) -> MetaMember {
    MetaMember { node_id: node, state: state as u32, ..Default::default() }
}

fn members(nodes: &[u64]) -> Vec<MetaMember> {
    nodes.iter().map(|n| member(*n, MemberState::Active)).collect()
}

fn heard(node: u64, generation: u64, heartbeat: u64, is_alive: bool) -> Heard {
    let facts = Facts { name: format!("n{node}"), ..Default::default() };
    Heard { node: NodeId(node), generation, heartbeat, is_alive, facts }
}

fn now(boot_ms: u64) -> Now {
    Now { boot_ms, unix_ms: 1_000_000 + boot_ms }
}

/// Node and kind of each change.
fn told(changes: Vec<Change>) -> Vec<(u64, ChangeKind)> {
    changes.into_iter().map(|c| (c.entry.member.node_id, c.kind)).collect()
}

/// Observes every second from `from_ms` on, with the heartbeat as it stands; gives all changes.
fn seconds(
    view: &mut View,
    from_ms: u64,
    n: u64,
    members: &[MetaMember],
    heard: &[Heard],
) -> Vec<(u64, ChangeKind)> {
    let at = |s| now(from_ms + s * 1_000);
    (0..n).flat_map(|s| told(view.observe(at(s), ME, members, Some(heard)))).collect()
}

#[test]
fn a_member_is_added_lost_rejoined_and_left_once_each() {
    let mut view = View::default();
    let two = members(&[1, 2]);
    let alive = [heard(2, 1, 10, true)];
    let added = seconds(&mut view, 0, 5, &two, &alive);
    assert_eq!(added, [(1, ChangeKind::Added), (2, ChangeKind::Added)]);
    assert_eq!(view.entries().nth(1).unwrap().facts.as_ref().unwrap().name, "n2");

    let dead = [heard(2, 1, 10, false)];
    assert_eq!(seconds(&mut view, 5_000, 4, &two, &dead), [], "silent for 4 s");
    let lost = view.observe(now(9_000), ME, &two, Some(&dead));
    assert_eq!(lost[0].entry.since_unix_ms, 1_009_000);
    assert_eq!(told(lost), [(2, ChangeKind::Lost)]);
    assert_eq!(seconds(&mut view, 10_000, 30, &two, &dead), []);

    // A new generation, first passed on by another node, then heard of itself.
    let first = [heard(2, 2, 3, false)];
    assert_eq!(seconds(&mut view, 40_000, 2, &two, &first), []);
    let again = [heard(2, 2, 4, false)];
    assert_eq!(seconds(&mut view, 42_000, 1, &two, &again), [(2, ChangeKind::Rejoined)]);

    let removed = [member(1, MemberState::Active), member(2, MemberState::Removed)];
    let alive = [heard(2, 2, 5, true)];
    assert_eq!(seconds(&mut view, 43_000, 5, &removed, &alive), [(2, ChangeKind::Left)]);
    assert_eq!(view.entries().count(), 1);
}

#[test]
fn a_quick_restart_is_no_change() {
    let mut view = View::default();
    let two = members(&[1, 2]);
    seconds(&mut view, 0, 3, &two, &[heard(2, 1, 10, true)]);
    assert_eq!(seconds(&mut view, 3_000, 3, &two, &[heard(2, 1, 10, false)]), []);
    assert_eq!(seconds(&mut view, 6_000, 1, &two, &[heard(2, 2, 1, false)]), []);
    assert_eq!(seconds(&mut view, 7_000, 5, &two, &[heard(2, 2, 9, true)]), []);
}

#[test]
fn a_member_that_never_speaks_is_lost_after_its_grace() {
    let mut view = View::default();
    let two = members(&[1, 2]);
    // Another node passes on what it had said before it died.
    let passed_on = [heard(2, 1, 10, false)];
    assert_eq!(seconds(&mut view, 0, 15, &two, &passed_on).len(), 2);
    assert_eq!(seconds(&mut view, 15_000, 3, &two, &passed_on), [(2, ChangeKind::Lost)]);
    assert_eq!(view.entries().nth(1).unwrap().facts, None);
}

#[test]
fn while_this_process_is_paused_others_are_not_silent() {
    let mut view = View::default();
    let two = members(&[1, 2]);
    seconds(&mut view, 0, 3, &two, &[heard(2, 1, 10, true)]);
    let stale = [heard(2, 1, 10, false)];
    assert_eq!(told(view.observe(now(60_000), ME, &two, Some(&stale))), []);
    assert_eq!(seconds(&mut view, 61_000, 5, &two, &[heard(2, 1, 11, true)]), []);
}

#[test]
fn without_gossip_members_are_still_added_and_left() {
    let mut view = View::default();
    let changes = view.observe(now(0), ME, &members(&[1, 2]), None);
    assert!(changes.iter().all(|c| c.entry.liveness == Liveness::Unknown));
    assert_eq!(told(view.observe(now(60_000), ME, &members(&[1, 2]), None)), []);
    let left = view.observe(now(61_000), ME, &members(&[1]), None);
    assert_eq!(told(left), [(2, ChangeKind::Left)]);
}

#[derive(Debug, Clone)]
struct Step {
    after_ms: u64,
    members: Vec<u64>,
    /// Node, generation, heartbeat, alive.
    heard: BTreeMap<u64, (u64, u64, bool)>,
}

/// A node id never returns once it is removed, and generations and heartbeats only rise.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let said = || prop::option::weighted(0.8, (any::<bool>(), 0..3u64, any::<bool>()));
    let step = (0..4_000u64, prop::collection::vec(said(), 4), 0..40u32);
    prop::collection::vec(step, 1..120).prop_map(|raw| {
        let (mut joined, mut left) = (1u64, 0u64);
        let mut said = BTreeMap::<u64, (u64, u64)>::new();
        raw.into_iter()
            .map(|(after_ms, nodes, turn)| {
                match turn {
                    0..4 => joined = (joined + 1).min(4),
                    4 if left + 1 < joined => left += 1,
                    _ => {}
                }
                let mut heard = BTreeMap::new();
                for (node, says) in (1..).zip(nodes) {
                    let Some((restarts, beats, is_alive)) = says else { continue };
                    let (generation, heartbeat) = said.entry(node).or_insert((1, 1));
                    if restarts && beats == 2 {
                        (*generation, *heartbeat) = (*generation + 1, 1);
                    } else {
                        *heartbeat += beats;
                    }
                    heard.insert(node, (*generation, *heartbeat, is_alive && beats > 0));
                }
                Step { after_ms, members: (left + 1..=joined).collect(), heard }
            })
            .collect()
    })
}

/// By looking through all that ever happened, each time anew.
fn naive_is_live(history: &[Step], node: u64) -> bool {
    let Some(first) = history.iter().position(|s| s.members.contains(&node)) else { return false };
    let mut time = 0;
    let mut times = Vec::new();
    for (i, s) in history.iter().enumerate() {
        if i > 0 {
            time += s.after_ms.min(GAP_MAX_MS);
        }
        times.push(time);
    }
    let last = history.len() - 1;
    let before =
        |i: usize| (first..i).rev().find_map(|j| history[j].heard.get(&node).map(|h| (h.0, h.1)));
    let is_sign = |i: usize| {
        history[i].heard.get(&node).is_some_and(|&(generation, heartbeat, is_alive)| {
            is_alive || before(i).is_some_and(|(g, h)| g == generation && heartbeat > h)
        })
    };
    let sign = (first..=last).rev().find(|&i| is_sign(i));
    match sign {
        Some(i) => times[last] - times[i] < SILENT_MAX_MS,
        None => times[last] - times[first] < UNHEARD_MAX_MS,
    }
}

proptest! {
    #[test]
    fn every_change_is_told_once_and_the_list_is_what_the_changes_add_up_to(steps in steps()) {
        let mut view = View::default();
        let mut boot_ms = 5_000;
        // What a subscriber from the start holds.
        let mut held = BTreeMap::<u64, Liveness>::new();
        for at in 0..steps.len() {
            let step = &steps[at];
            boot_ms += step.after_ms;
            let all: Vec<Heard> = step.heard.iter()
                .map(|(n, (g, h, alive))| heard(*n, *g, *h, *alive))
                .collect();
            for change in view.observe(now(boot_ms), ME, &members(&step.members), Some(&all)) {
                let node = change.entry.member.node_id;
                let before = held.get(&node).copied();
                match change.kind {
                    ChangeKind::Added => prop_assert_eq!(before, None),
                    ChangeKind::Lost => prop_assert_eq!(before, Some(Liveness::Live)),
                    ChangeKind::Rejoined => prop_assert_eq!(before, Some(Liveness::Lost)),
                    ChangeKind::Left => prop_assert!(before.is_some()),
                }
                match change.kind {
                    ChangeKind::Left => held.remove(&node),
                    _ => held.insert(node, change.entry.liveness),
                };
            }
            let listed: BTreeMap<u64, Liveness> =
                view.entries().map(|e| (e.member.node_id, e.liveness)).collect();
            prop_assert_eq!(&held, &listed);
            let expected: BTreeMap<u64, Liveness> = step.members.iter()
                .map(|&n| {
                    let is_live = n == ME.0 || naive_is_live(&steps[..=at], n);
                    (n, if is_live { Liveness::Live } else { Liveness::Lost })
                })
                .collect();
            prop_assert_eq!(listed, expected, "step {}", at);
        }
    }
}
