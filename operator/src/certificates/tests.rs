use super::*;

const NOW: u64 = 1_800_000_000;

/// A cluster's Secrets, and nodes that read them.
struct World {
    now: u64,
    authorities: Option<Authorities>,
    leaves: BTreeMap<Role, Leaf>,
    /// What each node trusts.
    nodes: Vec<Option<String>>,
    done: Vec<Change>,
}

fn of(role: Role) -> Vec<String> {
    hosts("demo", "shop", role)
}

impl World {
    fn new() -> World {
        let (authorities, leaves) = (None, BTreeMap::new());
        World { now: NOW, authorities, leaves, nodes: vec![None; 3], done: Vec::new() }
    }

    fn step(&mut self) -> Option<Change> {
        let (a, leaves) = (self.authorities.as_ref(), &self.leaves);
        let change = next(self.now, a, leaves, &of, &self.nodes)?;
        match &change {
            Change::Issue(role) => {
                let a = a.unwrap();
                let (issued, leaf) = issue(a, "demo", *role, &of(*role), self.now).unwrap();
                assert!(issued.cert.contains("BEGIN CERTIFICATE"));
                self.leaves.insert(*role, leaf);
            }
            Change::Trust(role) => {
                let bundle = a.unwrap().bundle_hash();
                self.leaves.get_mut(role).unwrap().bundle = bundle;
            }
            other => self.authorities = changed(other, "demo", a, self.now).unwrap(),
        }
        self.done.push(change.clone());
        Some(change)
    }

    fn settle(&mut self) -> Vec<Change> {
        for _ in 0..100 {
            if self.step().is_none() {
                return std::mem::take(&mut self.done);
            }
        }
        panic!("no rest: {:?}", self.done)
    }

    /// Kubelets bring the Secrets to the nodes, which read them.
    fn nodes_read(&mut self) {
        let bundle = self.leaves[&Role::Node].bundle.clone();
        self.nodes.fill(Some(bundle));
    }
}

#[test]
fn a_new_cluster_gets_an_authority_and_a_certificate_for_each_role_and_then_rests() {
    let mut world = World::new();
    let made = world.settle();
    let expected = [
        Change::MakeAuthority,
        Change::Issue(Role::Node),
        Change::Issue(Role::Admin),
        Change::Issue(Role::Client),
    ];
    assert_eq!(made, expected);
    world.nodes_read();
    world.now += 59 * DAY_S;
    assert_eq!(world.settle(), []);
    world.now += 2 * DAY_S;
    assert_eq!(world.settle().len(), 3, "certificates are renewed a month before they run out");
    assert_eq!(world.settle(), []);
}

#[test]
fn another_authority_issues_only_once_every_node_trusts_it() {
    let mut world = World::new();
    world.settle();
    world.nodes_read();
    world.authorities.as_mut().unwrap().replace = true;
    let trusts =
        [Change::Trust(Role::Node), Change::Trust(Role::Admin), Change::Trust(Role::Client)];
    let mut expected = vec![Change::AddNext];
    expected.extend(trusts.clone());
    assert_eq!(world.settle(), expected);
    let before = world.authorities.as_ref().unwrap().current.id();
    // One node has read it, one has not, and one does not answer.
    let bundle = world.leaves[&Role::Node].bundle.clone();
    let old = world.nodes[0].clone();
    for nodes in [vec![Some(bundle.clone()), old, None], vec![Some(bundle.clone()), None], vec![]] {
        world.nodes = nodes;
        assert_eq!(world.settle(), []);
    }
    world.nodes = vec![Some(bundle); 3];
    let switched = world.settle();
    assert_eq!(switched[0], Change::SwitchToNext);
    assert_eq!(
        switched[1..],
        [Change::Issue(Role::Node), Change::Issue(Role::Admin), Change::Issue(Role::Client)]
    );
    let a = world.authorities.as_ref().unwrap();
    assert!(a.current.id() != before && a.bundle().matches("BEGIN").count() == 2);
    // What the one before issued is valid that long.
    world.nodes_read();
    world.now += 29 * DAY_S;
    assert_eq!(world.settle(), []);
    world.authorities.as_mut().unwrap().drop_previous = true;
    let mut expected = vec![Change::DropPrevious];
    expected.extend(trusts);
    assert_eq!(world.settle(), expected);
    assert_eq!(world.authorities.unwrap().bundle().matches("BEGIN").count(), 1);
}

#[test]
fn an_authority_is_replaced_a_year_before_it_runs_out_by_itself() {
    let mut world = World::new();
    world.settle();
    world.nodes_read();
    world.now += AUTHORITY_VALID_S - AUTHORITY_EARLY_S;
    let first = world.authorities.as_ref().unwrap().current.id();
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.extend(world.settle());
        world.nodes_read();
    }
    assert!(seen.contains(&Change::SwitchToNext));
    world.now += CERTIFICATE_VALID_S;
    for _ in 0..10 {
        seen.extend(world.settle());
        world.nodes_read();
    }
    assert!(seen.contains(&Change::DropPrevious));
    let a = world.authorities.as_ref().unwrap();
    assert!(a.current.id() != first && a.previous.is_none() && a.next.is_none());
}

#[test]
fn a_certificate_of_other_hosts_is_issued_anew() {
    let mut world = World::new();
    world.settle();
    world.leaves.get_mut(&Role::Node).unwrap().hosts = "else".into();
    assert_eq!(world.settle(), [Change::Issue(Role::Node)]);
    let hosts = of(Role::Node);
    assert!(hosts.contains(&"*.demo-nodes.shop.svc".to_owned()));
    assert!(hosts.contains(&"localhost".to_owned()));
}
