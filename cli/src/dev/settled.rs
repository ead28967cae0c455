//! What `dev` is to run: from its flags and from what its folder remembers. Pure.
use super::plan::{NODES_MAX, PORTS_STEP, PORTS_USED};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const PARTITIONS_MAX: u32 = 1024;
/// 1 had `nodes`, a count.
const FORMAT: u32 = 2;

/// What the flags say; what is absent is as remembered, or the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub nodes: Option<u32>,
    pub partitions: Option<u32>,
    pub port: Option<u16>,
    pub tls: bool,
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
    /// Nodes speak TLS only.
    #[serde(default)]
    pub tls: bool,
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
    #[serde(default)]
    tls: bool,
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
            tls: d.tls,
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
        "--tls is given, but this data directory was begun without it: leave the flag out, or name another --data"
    )]
    Tls,
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
            if wanted.tls && !remembered.tls {
                return Err(PlanError::Tls);
            }
            remembered
        }
        None => Remembered {
            format: FORMAT,
            cluster_id: new_cluster_id,
            numbers: (0..wanted.nodes.unwrap_or(3).min(NODES_MAX + 1)).collect(),
            partitions: wanted.partitions.unwrap_or(16),
            port: wanted.port.unwrap_or(2600),
            tls: wanted.tls,
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

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::dev::plan::nodes;
    use std::path::Path;

    pub fn begun(nodes: u32, partitions: u32, port: u16) -> Result<Remembered, PlanError> {
        let wanted = Wanted {
            nodes: Some(nodes),
            partitions: Some(partitions),
            port: Some(port),
            tls: false,
        };
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
    fn nodes_that_were_begun_with_tls_go_on_with_it() {
        let first = settle(Wanted { tls: true, ..Wanted::default() }, None, Uuid::nil()).unwrap();
        let again = settle(Wanted::default(), Some(first), Uuid::nil()).unwrap();
        let plan = nodes(&again, Path::new("/d"));
        assert_eq!(plan[0].endpoint(), "https://127.0.0.1:2600");
        let args = plan[0].args();
        let at = args.iter().position(|a| a == "--tls-cert-file").unwrap();
        assert_eq!(args[at + 1], "/d/tls/node/tls.crt");
    }

    #[test]
    fn flags_that_differ_from_the_data_directory_are_refused() {
        let first = begun(3, 16, 2600).unwrap();
        for (wanted, flag) in [
            (Wanted { nodes: Some(4), ..Wanted::default() }, "--nodes"),
            (Wanted { partitions: Some(8), ..Wanted::default() }, "--partitions"),
            (Wanted { port: Some(2700), ..Wanted::default() }, "--port"),
            (Wanted { tls: true, ..Wanted::default() }, "--tls"),
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
}
