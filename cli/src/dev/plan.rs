//! The nodes of `dev`: ports, folders, and when a cluster serves. Pure.
use super::certificates;
use super::settled::Remembered;
use ringfold_proto::v1::{MemberState, Partition, Replica, TopologyResponse};
use ringfold_tls::Files;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub const NODES_MAX: u32 = 20;
/// Ports of a node: clients, peers, gossip, HTTP; the next node's begin ten higher.
pub const PORTS_STEP: u32 = 10;
pub const PORTS_USED: u32 = 4;
/// In the data directory.
pub const GOSSIP_KEY_FILE: &str = "gossip.key";

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
    /// UDP.
    pub gossip_port: u16,
    pub http_port: u16,
    /// Where all nodes have their gossip key from.
    pub gossip_key_file: PathBuf,
    /// Where its certificates are; `None`: it speaks in the clear.
    pub tls: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub log_file: PathBuf,
    /// host:port of the other nodes.
    pub seeds: Vec<String>,
}

impl NodePlan {
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Flags of `ringfold-node`.
    pub fn args(&self) -> Vec<OsString> {
        let client_listen = format!("127.0.0.1:{}", self.client_port);
        let gossip_listen = format!("127.0.0.1:{}", self.gossip_port);
        let http_listen = format!("127.0.0.1:{}", self.http_port);
        let tls = self.tls.as_deref().map(Files::in_folder);
        let tls_file = |of: fn(&Files) -> &PathBuf| -> OsString {
            tls.as_ref().map(|files| of(files).into()).unwrap_or_default()
        };
        let pairs: [(&str, OsString); 13] = [
            ("--data-dir", self.data_dir.clone().into()),
            ("--name", self.name.clone().into()),
            ("--client-listen", client_listen.into()),
            ("--peer-listen", self.peer_address().into()),
            ("--gossip-listen", gossip_listen.into()),
            ("--http-listen", http_listen.into()),
            ("--gossip-key-file", self.gossip_key_file.clone().into()),
            ("--tls-cert-file", tls_file(|f| &f.cert)),
            ("--tls-key-file", tls_file(|f| &f.key)),
            ("--tls-ca-file", tls_file(|f| &f.ca)),
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
            gossip_port: port(number, 2),
            http_port: port(number, 3),
            gossip_key_file: data.join(GOSSIP_KEY_FILE),
            tls: settled.tls.then(|| certificates::node(data)),
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
    use crate::dev::settled::tests::begun;
    use ringfold_proto::v1::Member;

    #[test]
    fn nodes_have_ports_of_their_own_and_the_others_as_seeds() {
        let plan = nodes(&begun(3, 16, 2600).unwrap(), Path::new("/d"));
        assert_eq!(plan[2].endpoint(), "http://127.0.0.1:2620");
        assert_eq!(plan[2].peer_address(), "127.0.0.1:2621");
        assert_eq!(plan[1].seeds, ["127.0.0.1:2601", "127.0.0.1:2621"]);
        let args = plan[0].args();
        let at = args.iter().position(|a| a == "--gossip-listen").unwrap();
        assert_eq!(args[at + 1], "127.0.0.1:2602");
        assert!(args.iter().any(|a| a == "/d/gossip.key"));
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
