//! What `dev` is going to do: settings, ports, and when a cluster serves. Pure.
use ringfold_proto::v1::{MemberState, Partition, Replica, TopologyResponse};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub const NODES_MAX: u32 = 20;
const PARTITIONS_MAX: u32 = 1024;
/// Ports of a node: clients, peers, gossip, HTTP; the next node's begin ten higher.
pub const PORTS_STEP: u32 = 10;
const PORTS_USED: u32 = 4;
/// 1 had `nodes`, a count.
const FORMAT: u32 = 2;

/// What the flags say; what is absent is as remembered, or the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub nodes: Option<u32>,
    pub partitions: Option<u32>,
    pub port: Option<u16>,
}

/// `<data>/dev.json`: what a data directory was begun with, and the nodes that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OnDisk")]
pub struct Remembered {
    pub format: u32,
    pub cluster_id: Uuid,
    /// Of the nodes, rising: node i has its ports and folder by its number.
    pub numbers: Vec<u32>,
    pub partitions: u32,
    pub port: u16,
    /// The cluster exists: Bootstrap was said and answered.
    pub bootstrapped: bool,
}

#[derive(Deserialize)]
struct OnDisk {
    format: u32,
    cluster_id: Uuid,
    #[serde(default)]
    nodes: u32,
    #[serde(default)]
    numbers: Vec<u32>,
    partitions: u32,
    port: u16,
    bootstrapped: bool,
}

impl From<OnDisk> for Remembered {
    fn from(d: OnDisk) -> Self {
        let (format, numbers) = match d.format {
            1 => (FORMAT, (0..d.nodes.min(NODES_MAX)).collect()),
            other => (other, d.numbers),
        };
        Remembered {
            format,
            cluster_id: d.cluster_id,
            numbers,
            partitions: d.partitions,
            port: d.port,
            bootstrapped: d.bootstrapped,
        }
    }
}

impl Remembered {
    pub fn nodes(&self) -> u32 {
        self.numbers.len() as u32
    }

    /// Of the next node: numbers of nodes that were removed return once nobody above has one.
    pub fn next_number(&self) -> u32 {
        self.numbers.last().map_or(0, |n| n + 1)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("--nodes is {0}, expected 1 to {NODES_MAX}")]
    Nodes(u32),
    #[error(
        "--nodes is {wanted}, but this data directory has {remembered}: leave the flag out, and use `ringfold dev scale {wanted}` once it runs"
    )]
    Scale { wanted: u32, remembered: u32 },
    #[error("--partitions is {0}, expected a power of two from 1 to {PARTITIONS_MAX}")]
    Partitions(u32),
    #[error("--port {port} leaves no room for {nodes} nodes: expected 1 to {highest}")]
    Port { port: u16, nodes: u32, highest: u32 },
    #[error(
        "{flag} is {wanted}, but this data directory was begun with {remembered}: leave the flag out, or name another --data"
    )]
    Differs { flag: &'static str, wanted: u32, remembered: u32 },
    #[error(
        "dev.json has format {0}, this program reads format {FORMAT}: use the newer program, or another --data"
    )]
    Format(u32),
}

/// Settles what is run, from the flags and from what the data directory remembers.
pub fn settle(
    wanted: Wanted,
    remembered: Option<Remembered>,
    new_cluster_id: Uuid,
) -> Result<Remembered, PlanError> {
    let settled = match remembered {
        Some(remembered) => {
            if remembered.format != FORMAT {
                return Err(PlanError::Format(remembered.format));
            }
            if let Some(wanted) = wanted.nodes.filter(|w| *w != remembered.nodes()) {
                return Err(PlanError::Scale { wanted, remembered: remembered.nodes() });
            }
            let pairs = [
                ("--partitions", wanted.partitions, remembered.partitions),
                // Members know each other by address.
                ("--port", wanted.port.map(u32::from), remembered.port.into()),
            ];
            for (flag, wanted, remembered) in pairs {
                if let Some(wanted) = wanted.filter(|w| *w != remembered) {
                    return Err(PlanError::Differs { flag, wanted, remembered });
                }
            }
            remembered
        }
        None => Remembered {
            format: FORMAT,
            cluster_id: new_cluster_id,
            numbers: (0..wanted.nodes.unwrap_or(3).min(NODES_MAX + 1)).collect(),
            partitions: wanted.partitions.unwrap_or(16),
            port: wanted.port.unwrap_or(2600),
            bootstrapped: false,
        },
    };
    if !(1..=NODES_MAX).contains(&settled.nodes()) {
        return Err(PlanError::Nodes(wanted.nodes.unwrap_or(settled.nodes())));
    }
    if !settled.partitions.is_power_of_two() || settled.partitions > PARTITIONS_MAX {
        return Err(PlanError::Partitions(settled.partitions));
    }
    check_ports(&settled)?;
    Ok(settled)
}

/// Whether there are ports for its nodes.
pub fn check_ports(settled: &Remembered) -> Result<(), PlanError> {
    let last = settled.numbers.last().copied().unwrap_or(0);
    let above_first = last.saturating_mul(PORTS_STEP).saturating_add(PORTS_USED - 1);
    let highest = u32::from(u16::MAX).saturating_sub(above_first);
    if settled.port == 0 || u32::from(settled.port) > highest {
        return Err(PlanError::Port { port: settled.port, nodes: last + 1, highest });
    }
    Ok(())
}

/// Three replicas where there are three nodes, else one: two would stop when either does.
pub fn replication_factor(nodes: u32) -> u32 {
    if nodes >= 3 { 3 } else { 1 }
}

/// One node: where it listens, and where its data and log lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    pub number: u32,
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    pub log_file: PathBuf,
    /// host:port of the other nodes.
    pub seeds: Vec<String>,
}

impl NodePlan {
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Flags of `ringfold-node`.
    pub fn args(&self) -> Vec<OsString> {
        let client_listen = format!("127.0.0.1:{}", self.client_port);
        let pairs: [(&str, OsString); 7] = [
            ("--data-dir", self.data_dir.clone().into()),
            ("--name", self.name.clone().into()),
            ("--client-listen", client_listen.into()),
            ("--peer-listen", self.peer_address().into()),
            ("--client-url", self.endpoint().into()),
            ("--peer-address", self.peer_address().into()),
            ("--seeds", self.seeds.join(",").into()),
        ];
        pairs
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .flat_map(|(flag, value)| [flag.into(), value])
            .collect()
    }
}

/// The nodes of a settled plan.
pub fn nodes(settled: &Remembered, data: &Path) -> Vec<NodePlan> {
    // In range: `settle` has checked it.
    let port = |node: u32, which: u32| (u32::from(settled.port) + node * PORTS_STEP + which) as u16;
    (settled.numbers.iter().copied())
        .map(|number| NodePlan {
            number,
            name: node_name(number),
            client_port: port(number, 0),
            peer_port: port(number, 1),
            data_dir: data.join(node_name(number)),
            log_file: data.join(format!("{}.log", node_name(number))),
            seeds: (settled.numbers.iter().copied())
                .filter(|other| *other != number)
                .map(|other| format!("127.0.0.1:{}", port(other, 1)))
                .collect(),
        })
        .collect()
}

pub fn node_name(number: u32) -> String {
    format!("node-{number}")
}

/// What one node still misses before it serves everything; None: nothing.
pub fn missing(topology: &TopologyResponse, settled: &Remembered) -> Option<String> {
    if topology.cluster_id.is_empty() {
        return Some("has not joined the cluster yet".into());
    }
    let members = (topology.members.iter())
        .filter(|m| matches!(m.state(), MemberState::Active | MemberState::Draining))
        .count();
    if members < settled.numbers.len() {
        return Some(format!("sees {members} of {} members", settled.numbers.len()));
    }
    // Who leads a partition is known where a replica of it is.
    let is_led = |p: &&Partition| {
        let is_here = |r: &Replica| r.node_id == topology.node_id;
        p.leader_node_id != 0 || !p.replicas.is_empty() && !p.replicas.iter().any(is_here)
    };
    let led = topology.partition_map.iter().filter(is_led).count();
    if led < settled.partitions as usize {
        return Some(format!("knows leaders of {led} of {} partitions", settled.partitions));
    }
    None
}

/// The last lines of a log, without terminal escapes.
pub fn tail(text: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let all: Vec<&str> = text.lines().collect();
    let kept = &all[all.len().saturating_sub(lines)..];
    kept.iter()
        .map(|line| anstream::adapter::strip_str(line).to_string())
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_proto::v1::Member;

    fn begun(nodes: u32, partitions: u32, port: u16) -> Result<Remembered, PlanError> {
        let wanted = Wanted { nodes: Some(nodes), partitions: Some(partitions), port: Some(port) };
        settle(wanted, None, Uuid::nil())
    }

    #[test]
    fn defaults_are_three_nodes_and_sixteen_partitions() {
        let settled = settle(Wanted::default(), None, Uuid::from_u128(7)).unwrap();
        assert_eq!((settled.nodes(), settled.partitions, settled.port), (3, 16, 2600));
        assert_eq!(settled.cluster_id, Uuid::from_u128(7));
        assert!(!settled.bootstrapped);
    }

    #[test]
    fn a_data_directory_goes_on_as_it_was_begun() {
        let first = begun(5, 32, 3000).unwrap();
        let again = settle(Wanted::default(), Some(first.clone()), Uuid::from_u128(9));
        assert_eq!(again, Ok(first.clone()));
        let same = Wanted { nodes: Some(5), ..Wanted::default() };
        assert_eq!(settle(same, Some(first.clone()), Uuid::nil()), Ok(first));
    }

    #[test]
    fn flags_that_differ_from_the_data_directory_are_refused() {
        let first = begun(3, 16, 2600).unwrap();
        for (wanted, flag) in [
            (Wanted { nodes: Some(4), ..Wanted::default() }, "--nodes"),
            (Wanted { partitions: Some(8), ..Wanted::default() }, "--partitions"),
            (Wanted { port: Some(2700), ..Wanted::default() }, "--port"),
        ] {
            let error = settle(wanted, Some(first.clone()), Uuid::nil()).unwrap_err();
            assert!(error.to_string().starts_with(flag), "{error}");
        }
    }

    #[test]
    fn values_out_of_range_name_the_range() {
        assert_eq!(begun(0, 16, 2600), Err(PlanError::Nodes(0)));
        assert_eq!(begun(21, 16, 2600), Err(PlanError::Nodes(21)));
        for partitions in [0, 3, 2048] {
            assert_eq!(begun(3, partitions, 2600), Err(PlanError::Partitions(partitions)));
        }
        for port in [0, 65_513] {
            assert_eq!(
                begun(3, 16, port),
                Err(PlanError::Port { port, nodes: 3, highest: 65_512 })
            );
        }
        assert!(begun(3, 16, 65_512).is_ok());
    }

    #[test]
    fn a_dev_json_of_the_first_format_is_read_and_written_anew() {
        let first = r#"{"format": 1, "cluster_id": "00000000-0000-0000-0000-000000000001",
            "nodes": 2, "partitions": 16, "port": 2600, "bootstrapped": true}"#;
        let read: Remembered = serde_json::from_str(first).unwrap();
        assert_eq!((read.format, &read.numbers[..]), (FORMAT, &[0, 1][..]));
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Remembered>(&written).unwrap(), read);
        assert!(written.contains(r#""numbers":[0,1]"#), "{written}");
    }

    #[test]
    fn the_next_node_follows_the_last_one() {
        let mut settled = begun(3, 16, 2600).unwrap();
        settled.numbers = vec![0, 2, 5];
        assert_eq!((settled.next_number(), settled.nodes()), (6, 3));
        let plan = nodes(&settled, Path::new("/d"));
        assert_eq!(plan[2].endpoint(), "http://127.0.0.1:2650");
        assert_eq!(plan[0].seeds, ["127.0.0.1:2621", "127.0.0.1:2651"]);
        settled.port = 65_500;
        assert!(matches!(check_ports(&settled), Err(PlanError::Port { highest: 65_482, .. })));
    }

    #[test]
    fn a_newer_dev_json_is_refused() {
        let mut first = begun(3, 16, 2600).unwrap();
        first.format = 3;
        let error = settle(Wanted::default(), Some(first), Uuid::nil());
        assert_eq!(error, Err(PlanError::Format(3)));
    }

    #[test]
    fn nodes_have_ports_of_their_own_and_the_others_as_seeds() {
        let plan = nodes(&begun(3, 16, 2600).unwrap(), Path::new("/d"));
        assert_eq!(plan[2].endpoint(), "http://127.0.0.1:2620");
        assert_eq!(plan[2].peer_address(), "127.0.0.1:2621");
        assert_eq!(plan[1].seeds, ["127.0.0.1:2601", "127.0.0.1:2621"]);
        let args = plan[0].args();
        let at = args.iter().position(|a| a == "--seeds").unwrap();
        assert_eq!(args[at + 1], "127.0.0.1:2611,127.0.0.1:2621");
        assert!(args.iter().any(|a| a == "/d/node-0"));
        // An empty list is no flag: a single node has no seeds.
        let alone = nodes(&begun(1, 16, 2600).unwrap(), Path::new("/d"));
        assert!(!alone[0].args().iter().any(|a| a == "--seeds"));
    }

    #[test]
    fn a_node_serves_once_all_are_members_and_each_partition_is_led() {
        let settled = begun(3, 2, 2600).unwrap();
        let mut topology = TopologyResponse::default();
        assert!(missing(&topology, &settled).unwrap().contains("joined"));
        topology.cluster_id = "c".into();
        topology.members = vec![Member::default(); 3];
        let says = missing(&topology, &settled).unwrap();
        assert!(says.contains("0 of 3 members"), "{says}");
        for member in &mut topology.members {
            member.set_state(MemberState::Active);
        }
        topology.partition_map = vec![Partition::default(); 2];
        topology.partition_map[0].leader_node_id = 1;
        let says = missing(&topology, &settled).unwrap();
        assert!(says.contains("1 of 2 partitions"), "{says}");
        topology.partition_map[1].leader_node_id = 2;
        assert_eq!(missing(&topology, &settled), None);
        // One that drains serves as well, and of what others hold it need not know the leader.
        topology.members[2].set_state(MemberState::Draining);
        topology.partition_map[1].leader_node_id = 0;
        topology.node_id = 3;
        topology.partition_map[1].replicas = vec![Replica { replica_id: 7, node_id: 1 }];
        assert_eq!(missing(&topology, &settled), None);
        topology.partition_map[1].replicas.push(Replica { replica_id: 8, node_id: 3 });
        assert!(missing(&topology, &settled).is_some());
    }

    #[test]
    fn one_or_two_nodes_keep_one_replica() {
        let all: Vec<_> = (1..=5).map(replication_factor).collect();
        assert_eq!(all, [1, 1, 3, 3, 3]);
    }

    #[test]
    fn a_tail_is_the_last_lines_without_colours() {
        assert_eq!(tail(b"1\n2\n\x1b[31m3\x1b[0m\n", 2), "2\n3");
        assert_eq!(tail(b"", 2), "");
        assert_eq!(tail(b"only \xff", 2), "only \u{fffd}");
    }
}
