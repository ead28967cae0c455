use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use super::{secrets::Secrets, *};
use crate::validate::{Cluster, validate};

const NOW: u64 = 1_800_000_000;

/// A cluster's Secrets, and nodes that read them.
struct World {
    now: u64,
    cluster: Cluster,
    secrets: Secrets,
    /// What each node trusts.
    nodes: Vec<Option<String>>,
    done: Vec<Change>,
}

fn of(role: Role) -> Vec<String> {
    hosts("demo", "shop", role)
}

const TRUSTS: [Change; 3] =
    [Change::Trust(Role::Node), Change::Trust(Role::Admin), Change::Trust(Role::Client)];
const ISSUES: [Change; 3] =
    [Change::Issue(Role::Node), Change::Issue(Role::Admin), Change::Issue(Role::Client)];

fn then(first: Change, rest: [Change; 3]) -> Vec<Change> {
    [first].into_iter().chain(rest).collect()
}

impl World {
    fn new() -> World {
        let resource = json!({
            "apiVersion": "ringfold.dev/v1alpha1", "kind": "EventStoreCluster",
            "metadata": {"name": "demo", "namespace": "shop", "uid": "u"},
            "spec": {"tls": {"mode": "Operator"}},
        });
        let cluster = validate(&serde_json::from_value(resource).unwrap()).unwrap();
        let secrets = Secrets::default();
        World { now: NOW, cluster, secrets, nodes: vec![None; 3], done: Vec::new() }
    }

    /// Everything is made, and read by the nodes.
    fn settled() -> World {
        let mut world = World::new();
        world.settle();
        world.nodes_read();
        world.done.clear();
        world
    }

    fn held(&self) -> Held {
        self.secrets.held("demo").unwrap()
    }

    fn authorities(&self) -> Authorities {
        self.held().authorities.unwrap()
    }

    fn step(&mut self) -> Option<Change> {
        let held = self.held();
        let change = next(self.now, &held, &of, &self.nodes)?;
        let after = self.secrets.after(&self.cluster, &change, &held, self.now).unwrap().unwrap();
        self.secrets.put(&change, after);
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
        let bundle = self.held().leaves[&Role::Node].bundle.clone();
        self.nodes.fill(Some(bundle));
    }

    /// And to everybody else.
    fn everybody_reads(&mut self) {
        self.nodes_read();
        self.now += BROUGHT_AFTER_S;
    }

    fn ask(&mut self, annotation: &str) {
        let secret = self.secrets.authorities.as_mut().unwrap();
        secret.annotations_mut().insert(annotation.into(), "true".into());
    }

    fn lose_the_authority(&mut self) {
        self.secrets.authorities = None;
    }

    fn damage(&mut self, role: Role, part: &str) {
        set(self.secrets.leaves.get_mut(&role).unwrap(), part, Some("damaged"));
    }

    fn issuers(&self) -> Vec<String> {
        let held = self.held();
        ROLES.iter().filter_map(|r| Some(held.leaves.get(r)?.issuer.clone())).collect()
    }
}

fn set(secret: &mut Secret, part: &str, text: Option<&str>) {
    let data = secret.string_data.as_mut().unwrap();
    match text {
        Some(text) => data.insert(part.into(), text.into()),
        None => data.remove(part),
    };
}

fn count(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn a_new_cluster_gets_an_authority_and_a_certificate_for_each_role_and_then_rests() {
    let mut world = World::new();
    assert_eq!(world.settle(), then(Change::MakeAuthority, ISSUES));
    world.nodes_read();
    world.now += 59 * DAY_S;
    assert_eq!(world.settle(), []);
    world.now += 2 * DAY_S;
    assert_eq!(world.settle(), ISSUES, "certificates are renewed a month before they run out");
    assert_eq!(world.settle(), []);
}

#[test]
fn another_authority_issues_only_once_every_node_trusts_it() {
    let mut world = World::settled();
    world.ask(names::REPLACE_AUTHORITY);
    assert_eq!(world.settle(), then(Change::AddNext, TRUSTS));
    let before = world.authorities().issuer().id();
    world.now += BROUGHT_AFTER_S;
    // One node has read it, one has not, and one does not answer.
    let bundle = world.held().leaves[&Role::Node].bundle.clone();
    let old = world.nodes[0].clone();
    for nodes in [vec![Some(bundle.clone()), old, None], vec![Some(bundle.clone()), None], vec![]] {
        world.nodes = nodes;
        assert_eq!(world.settle(), []);
    }
    world.nodes = vec![Some(bundle); 3];
    assert_eq!(world.settle(), then(Change::SwitchToNext, ISSUES));
    let a = world.authorities();
    assert!(a.issuer().id() != before && count(&a.bundle()) == 2);
    // What the one before issued is valid that long.
    world.nodes_read();
    world.now += 29 * DAY_S;
    assert_eq!(world.settle(), []);
    world.ask(names::DROP_PREVIOUS);
    assert_eq!(world.settle(), then(Change::DropPrevious, TRUSTS));
    assert_eq!(count(&world.authorities().bundle()), 1);
}

#[test]
fn nodes_alone_are_not_enough_applications_have_the_time_to_read_whom_to_trust() {
    let mut world = World::settled();
    world.now += DAY_S;
    world.ask(names::REPLACE_AUTHORITY);
    world.settle();
    world.nodes_read();
    world.now += BROUGHT_AFTER_S - 1;
    assert_eq!(world.settle(), []);
    // What was written last counts, and what nobody knows is written again.
    let client = world.secrets.leaves.get_mut(&Role::Client).unwrap();
    client.annotations_mut().remove(names::WRITTEN);
    assert_eq!(world.settle(), [Change::Trust(Role::Client)]);
    world.now += BROUGHT_AFTER_S - 1;
    assert_eq!(world.settle(), []);
    world.now += 1;
    assert_eq!(world.settle()[0], Change::SwitchToNext);
}

#[test]
fn an_authority_is_replaced_a_year_before_it_runs_out_by_itself() {
    let mut world = World::settled();
    world.now += AUTHORITY_VALID_S - AUTHORITY_EARLY_S;
    let first = world.authorities().issuer().id();
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.extend(world.settle());
        world.everybody_reads();
    }
    assert!(seen.contains(&Change::SwitchToNext));
    world.now += CERTIFICATE_VALID_S;
    for _ in 0..10 {
        seen.extend(world.settle());
        world.everybody_reads();
    }
    assert!(seen.contains(&Change::DropPrevious));
    let a = world.authorities();
    assert!(a.issuer().id() != first && a.previous.is_none() && a.next().is_none());
}

#[test]
fn a_certificate_of_other_hosts_is_issued_anew() {
    let mut world = World::settled();
    let node = world.secrets.leaves.get_mut(&Role::Node).unwrap();
    node.annotations_mut().insert(names::HOSTS.into(), "else".into());
    assert_eq!(world.settle(), [Change::Issue(Role::Node)]);
    let hosts = of(Role::Node);
    assert!(hosts.contains(&"*.demo-nodes.shop.svc".to_owned()));
    assert!(hosts.contains(&"localhost".to_owned()));
}

#[test]
fn an_authority_whose_secret_is_lost_stays_trusted_until_what_it_issued_has_run_out() {
    let mut world = World::settled();
    let before = world.authorities().issuer().id();
    world.lose_the_authority();
    assert_eq!(world.settle(), then(Change::MakeAuthority, TRUSTS));
    let a = world.authorities();
    assert!(count(&a.bundle()) == 2 && a.next().unwrap().id() != before);
    assert_eq!(world.issuers(), vec![before.clone(); 3], "what it issued is still shown");
    // Nodes that have not read it yet know nothing of the next one.
    world.now += BROUGHT_AFTER_S;
    assert_eq!(world.settle(), []);
    world.nodes_read();
    assert_eq!(world.settle(), then(Change::SwitchToNext, ISSUES));
    let a = world.authorities();
    assert!(!world.issuers().contains(&before) && count(&a.bundle()) == 2);
    // A person who drops it waits for the nodes to show what was issued last.
    world.ask(names::DROP_PREVIOUS);
    assert_eq!(world.settle(), []);
    world.secrets.authorities.as_mut().unwrap().annotations_mut().remove(names::DROP_PREVIOUS);
    world.everybody_reads();
    world.now += CERTIFICATE_VALID_S - 2 * BROUGHT_AFTER_S - 1;
    assert!(!world.settle().contains(&Change::DropPrevious));
    world.now += 1;
    assert_eq!(world.settle(), then(Change::DropPrevious, TRUSTS));
    assert_eq!(count(&world.authorities().bundle()), 1);
}

#[test]
fn without_the_key_a_missing_certificate_is_the_next_ones_once_the_nodes_know_that() {
    let mut world = World::settled();
    world.lose_the_authority();
    world.secrets.leaves.remove(&Role::Client);
    world.damage(Role::Admin, "tls.key");
    let [node, ..] = TRUSTS;
    assert_eq!(world.settle(), [Change::MakeAuthority, node]);
    // No node answers: without the administrator's certificate none may ever.
    world.nodes.fill(None);
    world.now += BROUGHT_AFTER_S;
    assert_eq!(world.settle(), [Change::Issue(Role::Admin)]);
    world.now += BROUGHT_AFTER_S;
    assert_eq!(world.settle(), [Change::Issue(Role::Client)]);
    let (issuers, next) = (world.issuers(), world.authorities().issuer().id());
    assert!(issuers[0] != next && issuers[1..] == [next.clone(), next]);
    world.everybody_reads();
    assert_eq!(
        world.settle(),
        [Change::SwitchToNext, Change::Issue(Role::Node), TRUSTS[1].clone(), TRUSTS[2].clone()]
    );
}

#[test]
fn without_the_key_the_nodes_own_certificate_waits_for_nobody() {
    let mut world = World::settled();
    let before = world.authorities().issuer().id();
    world.lose_the_authority();
    world.damage(Role::Node, "tls.crt");
    let [_, admin, client] = TRUSTS;
    let expected = [Change::MakeAuthority, Change::Issue(Role::Node), admin, client];
    assert_eq!(world.settle(), expected);
    let a = world.authorities();
    assert_eq!(world.issuers(), [a.issuer().id(), before.clone(), before.clone()]);
    assert!(ringfold_tls::authorities(&a.bundle()).iter().any(|one| id(one) == before));
}

#[test]
fn without_the_key_certificates_are_left_to_their_last_days() {
    let mut world = World::settled();
    world.lose_the_authority();
    world.settle();
    // One node never answers.
    world.now += CERTIFICATE_VALID_S - LAST_DAYS_S - 1;
    assert_eq!(world.settle(), []);
    world.now += 1;
    for role in ROLES {
        assert_eq!(world.settle(), [Change::Issue(role)]);
        world.now += BROUGHT_AFTER_S;
    }
    assert_eq!(world.issuers(), vec![world.authorities().next().unwrap().id(); 3]);
    assert_eq!(world.settle(), []);
}

#[test]
fn what_is_lost_while_it_is_replaced_or_lost_again_stays_trusted_up_to_a_limit() {
    let mut world = World::settled();
    world.ask(names::REPLACE_AUTHORITY);
    world.settle();
    let mut known: Vec<_> =
        ringfold_tls::authorities(&world.authorities().bundle()).iter().map(|a| id(a)).collect();
    for _ in 0..3 {
        world.lose_the_authority();
        assert_eq!(world.settle(), then(Change::MakeAuthority, TRUSTS));
        known.push(world.authorities().next().unwrap().id());
    }
    let all = ringfold_tls::authorities(&world.authorities().bundle());
    assert_eq!(all.iter().map(|a| id(a)).collect::<Vec<_>>(), known);
    for _ in 0..2 * LOST_MAX {
        world.lose_the_authority();
        world.settle();
    }
    let all = ringfold_tls::authorities(&world.authorities().bundle());
    assert_eq!(all.len(), LOST_MAX + 1);
    assert_eq!(id(&all[0]), known[0], "it has issued what is shown");
    // One that came late, and has issued something, stays as well.
    world.secrets.leaves.remove(&Role::Client);
    world.settle();
    world.now += BROUGHT_AFTER_S;
    assert_eq!(world.settle(), [Change::Issue(Role::Client)]);
    let late = world.issuers()[2].clone();
    world.lose_the_authority();
    world.settle();
    let all = ringfold_tls::authorities(&world.authorities().bundle());
    assert!(all.iter().any(|a| id(a) == late));
}

#[test]
fn without_certificates_there_is_nothing_to_wait_for() {
    let mut world = World::settled();
    world.secrets = Secrets::default();
    assert_eq!(world.settle(), then(Change::MakeAuthority, ISSUES));
    world.lose_the_authority();
    ROLES.iter().for_each(|role| world.damage(*role, "ca.crt"));
    assert_eq!(world.settle(), then(Change::MakeAuthority, ISSUES));
}

/// What whoever restores it has to know.
#[test]
fn a_secret_of_authorities_that_is_damaged_or_somebody_elses_says_what_to_do() {
    let mut world = World::settled();
    world.ask(names::REPLACE_AUTHORITY);
    world.settle();
    let whole = world.secrets.authorities.clone().unwrap();
    type Damage<'a> = Box<dyn Fn(&mut Secret) + 'a>;
    let part = |part, text| -> Damage<'_> { Box::new(move |s| set(s, part, text)) };
    let note = |note| -> Damage<'_> {
        Box::new(move |s| {
            s.annotations_mut().remove(note);
        })
    };
    let other = whole.string_data.as_ref().unwrap()["next.key"].clone();
    let cases = [
        ("has no readable current.key", part("current.key", None)),
        ("has no readable current.crt", part("current.crt", None)),
        ("has no readable next.key", part("next.key", None)),
        ("has no readable next.crt", part("next.crt", None)),
        (
            "has no readable previous.crt",
            Box::new(|s| {
                s.annotations_mut().insert(names::PREVIOUS_UNTIL.into(), "1".into());
            }),
        ),
        ("has no readable ringfold.dev/not-after", note(names::NOT_AFTER)),
        ("has no readable ringfold.dev/next-not-after", note(names::NEXT_NOT_AFTER)),
        ("holds what is no authority", part("current.key", Some("damaged"))),
        ("holds what is no authority", part("current.key", Some(&other))),
        ("holds what is no authority", part("next.crt", Some("damaged"))),
        (
            "is not the operator's",
            Box::new(|s| {
                s.labels_mut().remove(names::MANAGED_BY_LABEL);
            }),
        ),
    ];
    for (expected, damage) in cases {
        let mut secret = whole.clone();
        damage(&mut secret);
        world.secrets.authorities = Some(secret);
        let said = world.secrets.held("demo").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains(expected), "{expected}: {said:?}");
        assert!(said.contains("Secret demo-ca") && said.contains("delete it"), "{said}");
    }
    world.secrets.authorities = Some(Secret::default());
    assert!(world.secrets.held("demo").is_err());
    world.secrets.authorities = Some(whole);
    assert!(world.secrets.held("demo").is_ok());
}

/// Somebody who mounts a Secret, as it was last read.
#[derive(Clone)]
struct Party {
    role: Role,
    issuer: String,
    not_after: u64,
    trusts: BTreeSet<String>,
    bundle: String,
    reads_at: u64,
}

impl Party {
    fn read(role: Role, secrets: &Secrets, before: Option<&Party>, reads_at: u64) -> Option<Party> {
        let part = |s: &Secret, part| s.string_data.as_ref().unwrap()[part].clone();
        let there = secrets.leaves.get(&role).filter(|s| part(s, "tls.key") != "damaged");
        let Some(secret) = there else {
            // What it has read stays.
            return before.map(|p| Party { reads_at, ..p.clone() });
        };
        let note = |name: &str| secret.annotations()[name].clone();
        let ca = part(secret, "ca.crt");
        Some(Party {
            role,
            issuer: note(names::ISSUER),
            not_after: note(names::NOT_AFTER).parse().unwrap(),
            trusts: ringfold_tls::authorities(&ca).iter().map(|a| id(a)).collect(),
            bundle: id(&ca),
            reads_at,
        })
    }

    fn refuses(&self, other: &Party, now: u64) -> Option<String> {
        let unknown = !self.trusts.contains(&other.issuer);
        let why = match (unknown, other.not_after <= now) {
            (true, _) => format!("trusts {:?}, not {}", self.trusts, other.issuer),
            (_, true) => "it has run out".to_owned(),
            _ => return None,
        };
        Some(format!("{:?} refuses {:?}: {why}", self.role, other.role))
    }
}

/// Three nodes, two applications and the operator, which reads at each look.
const PARTIES: [Role; 6] =
    [Role::Node, Role::Node, Role::Node, Role::Client, Role::Client, Role::Admin];
/// A kubelet's longest, and what reads after it.
const BROUGHT_MAX_S: u64 = 95;

struct Life {
    world: World,
    parties: Vec<Party>,
    rng: StdRng,
    /// A node that the operator does not reach.
    silent: bool,
    changes: BTreeSet<String>,
}

impl Life {
    fn new(seed: u64) -> Life {
        let world = World::settled();
        let read = |role| Party::read(role, &world.secrets, None, NOW).unwrap();
        let parties = PARTIES.map(read).into();
        let rng = StdRng::seed_from_u64(seed);
        Life { world, parties, rng, silent: false, changes: BTreeSet::new() }
    }

    fn read(&mut self, all: bool) {
        let now = self.world.now;
        for party in &mut self.parties {
            if all || party.role == Role::Admin || party.reads_at <= now {
                let again = now + self.rng.random_range(1..=BROUGHT_MAX_S);
                let read = Party::read(party.role, &self.world.secrets, Some(&*party), again);
                *party = read.unwrap();
            }
        }
        let said = self.parties[..3].iter().map(|p| Some(p.bundle.clone()));
        self.world.nodes = said.collect();
        if self.silent {
            self.world.nodes[0] = None;
        }
    }

    /// A look of the operator, which may die between two changes.
    fn look(&mut self) {
        while self.rng.random_range(0..10) > 0 {
            let Some(change) = self.world.step() else { return };
            self.changes.insert(format!("{change:?}"));
        }
    }

    fn happen(&mut self) {
        let secrets = &mut self.world.secrets;
        match self.rng.random_range(0..400) {
            0..16 if secrets.authorities.is_some() => self.world.ask(names::REPLACE_AUTHORITY),
            16 => self.lose(None),
            17 => self.lose(Some(Role::Client)),
            18 => self.lose(Some(Role::Admin)),
            19 => drop(secrets.leaves.remove(&Role::Client)),
            20..30 => self.silent = !self.silent,
            30..110 => self.skip(),
            _ => {}
        }
    }

    /// Up to the limit, and with a certificate.
    fn lose(&mut self, with: Option<Role>) {
        let known = self.world.held().authorities.map_or(0, |a| count(&a.bundle()));
        if known > LOST_MAX {
            return;
        }
        self.world.lose_the_authority();
        if let Some(role) = with.filter(|r| self.world.secrets.leaves.contains_key(r)) {
            self.world.damage(role, "tls.key");
        }
    }

    /// Days go by, but nothing runs out before the operator looks again.
    fn skip(&mut self) {
        let now = self.world.now;
        let left = self.parties.iter().map(|p| p.not_after - now).min().unwrap_or_default();
        let most = left.saturating_sub(LAST_DAYS_S - DAY_S).max(3_600);
        self.world.now += (self.rng.random_range(1..6) * DAY_S).min(most);
        self.read(true);
    }

    fn judge(&self) -> Result<(), String> {
        let now = self.world.now;
        for node in &self.parties[..3] {
            for other in &self.parties {
                let refused = node.refuses(other, now).or_else(|| other.refuses(node, now));
                if let Some(refused) = refused {
                    return Err(refused);
                }
            }
        }
        Ok(())
    }
}

/// Authorities are replaced and lost at any moment, Secrets arrive late, nodes are silent for long, and
/// the operator dies between any two changes.
#[test]
fn there_is_no_moment_at_which_one_side_does_not_know_the_other() {
    let mut changes = BTreeSet::new();
    for seed in 0..20 {
        let mut life = Life::new(seed);
        for _ in 0..250 {
            for _ in 0..3 {
                life.world.now += 5;
                life.read(false);
                life.judge().unwrap_or_else(|e| panic!("seed {seed}: {e}: {:?}", life.world.done));
            }
            life.happen();
            life.look();
        }
        // Long enough in peace for what was replaced to run out.
        life.silent = false;
        for _ in 0..60 {
            life.skip();
            life.judge().unwrap_or_else(|e| panic!("seed {seed}: {e}: {:?}", life.world.done));
            life.look();
        }
        changes.extend(life.changes);
    }
    let expected = [
        "MakeAuthority",
        "AddNext",
        "SwitchToNext",
        "DropPrevious",
        "Issue(Client)",
        "Trust(Node)",
    ];
    assert!(expected.iter().all(|e| changes.contains(*e)), "{changes:?}");
}
