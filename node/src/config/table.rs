//! The table of settings.
use super::secret::{Secret, is_key};
use super::{LogFormat, Settings};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

pub struct Setting {
    /// As in the file; the variable and the flag follow from it. Its unit stands last.
    pub name: &'static str,
    pub kind: Kind,
    pub default: SettingDefault,
    /// Follows "is not ..." and "must be set to ...".
    pub allowed: &'static str,
    pub doc: &'static str,
    /// Takes a value; false if it is not allowed.
    set: fn(&mut Settings, &str) -> bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A text that errors do not repeat.
    Secret,
    Number,
    Bytes,
    /// In a file a YAML list, elsewhere separated by commas.
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingDefault {
    Value(&'static str),
    /// Follows from other settings, as told here.
    Computed(&'static str),
    Required,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Secret => "secret",
            Kind::Number => "number",
            Kind::Bytes => "bytes",
            Kind::List => "list",
        }
    }
}

impl Setting {
    pub fn flag_name(&self) -> String {
        self.name.replace('_', "-")
    }

    pub fn env_name(&self) -> String {
        format!("RINGFOLD_NODE_{}", self.name.to_uppercase())
    }

    pub fn value_name(&self) -> String {
        self.kind.name().to_uppercase()
    }

    pub fn set(&self, settings: &mut Settings, value: &str) -> bool {
        (self.set)(settings, value)
    }
}

const LISTEN: &str = "an IP address and a port, like 0.0.0.0:2600";
const KEY: &str = "32 to 1024 bytes of text, as from `openssl rand -hex 32`";
const TEXT: &str = "at most 255 bytes without control characters";

#[rustfmt::skip] // one setting, one block of lines
pub const SETTINGS: &[Setting] = &[
    Setting { name: "data_dir", kind: Kind::Text, default: SettingDefault::Required,
        allowed: "a directory",
        doc: "Where the node keeps its identity, log and partitions; made if it is not there",
        set: |s, v| { s.data_dir = v.into(); !v.is_empty() } },
    Setting { name: "name", kind: Kind::Text, default: SettingDefault::Computed("the host name"),
        allowed: "1 to 255 bytes without control characters",
        doc: "What people call the node",
        set: |s, v| { s.name = v.into(); !v.is_empty() && is_text(v) } },
    Setting { name: "client_listen", kind: Kind::Text, default: SettingDefault::Value("0.0.0.0:2600"),
        allowed: LISTEN,
        doc: "Where clients are listened for",
        set: |s, v| listen(v, &mut s.client_listen) },
    Setting { name: "peer_listen", kind: Kind::Text, default: SettingDefault::Value("0.0.0.0:2601"),
        allowed: LISTEN,
        doc: "Where other nodes are listened for",
        set: |s, v| listen(v, &mut s.peer_listen) },
    Setting { name: "client_url", kind: Kind::Text,
        default: SettingDefault::Computed("`http://<client_listen>`, with the host name for 0.0.0.0"),
        allowed: "a URL like http://host:2600",
        doc: "Where clients and other nodes reach client_listen",
        set: |s, v| { s.client_url = v.into(); is_url(v) } },
    Setting { name: "peer_address", kind: Kind::Text,
        default: SettingDefault::Computed("`<peer_listen>`, with the host name for 0.0.0.0"),
        allowed: "a host and a port, like host:2601",
        doc: "Where other nodes reach peer_listen",
        set: |s, v| { s.peer_address = v.into(); is_address(v) } },
    Setting { name: "seeds", kind: Kind::List, default: SettingDefault::Value(""),
        allowed: "hosts with ports, like a:2601,b:2601, at most 32",
        doc: "Peer addresses that a new node asks to join; its own may be among them",
        set: |s, v| {
            s.seeds = v.split(',').map(str::trim).filter(|a| !a.is_empty()).map(Into::into).collect();
            s.seeds.len() <= 32 && s.seeds.iter().all(|a| is_address(a))
        } },
    Setting { name: "gossip_listen", kind: Kind::Text, default: SettingDefault::Value("0.0.0.0:2602"),
        allowed: LISTEN,
        doc: "Where other nodes' gossip is listened for, by UDP; others' gossip ports are taken to lie as far from their peer ports",
        set: |s, v| listen(v, &mut s.gossip_listen) },
    Setting { name: "gossip_advertise", kind: Kind::Text,
        default: SettingDefault::Computed("`<gossip_listen>`, with the address that leads to the seeds for 0.0.0.0"),
        allowed: "a host and a port, like host:2602",
        doc: "Where other nodes reach gossip_listen",
        set: |s, v| { s.gossip_advertise = v.into(); is_address(v) } },
    Setting { name: "gossip_key_file", kind: Kind::Text, default: SettingDefault::Value(""),
        allowed: "a file",
        doc: "File with the key that gossip is sealed with, the same on all nodes; without a key the node does not gossip",
        set: |s, v| { s.gossip_key_file = v.into(); is_text(v) } },
    Setting { name: "gossip_key", kind: Kind::Secret, default: SettingDefault::Computed("from gossip_key_file"),
        allowed: KEY,
        doc: "The key itself, where there is no file; other users of the machine can see flags",
        set: |s, v| { s.gossip_key = Secret::new(v); is_key(v) } },
    Setting { name: "gossip_previous_key_file", kind: Kind::Text, default: SettingDefault::Value(""),
        allowed: "a file",
        doc: "File with the key before that, accepted and used as well: restart all nodes with both, then all without it",
        set: |s, v| { s.gossip_previous_key_file = v.into(); is_text(v) } },
    Setting { name: "gossip_previous_key", kind: Kind::Secret, default: SettingDefault::Computed("from gossip_previous_key_file"),
        allowed: KEY,
        doc: "That key itself",
        set: |s, v| { s.gossip_previous_key = Secret::new(v); is_key(v) } },
    Setting { name: "http_listen", kind: Kind::Text, default: SettingDefault::Value("0.0.0.0:2603"),
        allowed: "an IP address and a port, like 0.0.0.0:2603, or off",
        doc: "Where health and metrics are served by HTTP: /livez, /readyz and /metrics",
        set: |s, v| {
            let mut address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let is_off = v == "off";
            let allowed = is_off || listen(v, &mut address);
            s.http_listen = (!is_off).then_some(address);
            allowed
        } },
    Setting { name: "zone", kind: Kind::Text, default: SettingDefault::Value(""),
        allowed: TEXT,
        doc: "Failure domain: replicas spread over zones first",
        set: |s, v| { s.zone = v.into(); is_text(v) } },
    Setting { name: "tick_ms", kind: Kind::Number, default: SettingDefault::Value("100"),
        allowed: "a whole number from 10 to 10000",
        doc: "Length of a Raft tick; peers with another value are refused",
        set: |s, v| number(v, 10, 10_000, &mut s.tick_ms) },
    Setting { name: "heartbeat_ticks", kind: Kind::Number, default: SettingDefault::Value("3"),
        allowed: "a whole number from 1 to 100",
        doc: "Ticks between two heartbeats of a leader",
        set: |s, v| number(v, 1, 100, &mut s.heartbeat_ticks) },
    Setting { name: "election_ticks", kind: Kind::Number, default: SettingDefault::Value("10"),
        allowed: "a whole number from 3 to 1000",
        doc: "Ticks without a leader before an election; at least three times heartbeat_ticks; peers with another value are refused",
        set: |s, v| number(v, 3, 1_000, &mut s.election_ticks) },
    Setting { name: "cache_bytes", kind: Kind::Bytes, default: SettingDefault::Value("256MiB"),
        allowed: "bytes from 1MiB on",
        doc: "Block cache that all partitions share",
        set: |s, v| bytes(v, 1 << 20, &mut s.cache_bytes) },
    Setting { name: "memtable_bytes", kind: Kind::Bytes, default: SettingDefault::Value("256MiB"),
        allowed: "bytes from 1MiB on",
        doc: "Unflushed writes that all partitions may hold in memory; the largest are flushed first",
        set: |s, v| bytes(v, 1 << 20, &mut s.memtable_bytes) },
    Setting { name: "log_kept_bytes", kind: Kind::Bytes, default: SettingDefault::Value("32MiB"),
        allowed: "bytes from 1MiB on",
        doc: "Raft log kept of each partition for replicas that are behind",
        set: |s, v| bytes(v, 1 << 20, &mut s.log_kept_bytes) },
    Setting { name: "disk_min_free_bytes", kind: Kind::Bytes, default: SettingDefault::Value("1GiB"),
        allowed: "bytes",
        doc: "Appends are refused with less free; of it and a tenth of the disk the lesser counts",
        set: |s, v| bytes(v, 0, &mut s.disk_min_free_bytes) },
    Setting { name: "repair_after_ms", kind: Kind::Number, default: SettingDefault::Value("600000"),
        allowed: "a whole number from 1000 to 86400000",
        doc: "A node that has not answered the meta group's leader for so long is repaired: its replicas are made anew elsewhere",
        set: |s, v| number(v, 1_000, 86_400_000, &mut s.repair_after_ms) },
    Setting { name: "move_bytes_per_s", kind: Kind::Bytes, default: SettingDefault::Value("64MiB"),
        allowed: "bytes, 0 for no limit",
        doc: "Checkpoints on their way to and from this node, in each direction, each second",
        set: |s, v| bytes(v, 0, &mut s.move_bytes_per_s) },
    Setting { name: "moves_per_node", kind: Kind::Number, default: SettingDefault::Value("2"),
        allowed: "a whole number from 1 to 64",
        doc: "Checkpoints on their way to and from one node at once; the meta group's leader's value counts",
        set: |s, v| number(v, 1, 64, &mut s.moves_per_node) },
    Setting { name: "stop_wait_ms", kind: Kind::Number, default: SettingDefault::Value("0"),
        allowed: "a whole number from 0 to 600000",
        doc: "Told to end by SIGTERM, the node goes on serving while the cluster needs it, for so long at most; told again, it ends at once",
        set: |s, v| number(v, 0, 600_000, &mut s.stop_wait_ms) },
    Setting { name: "apply_threads", kind: Kind::Number, default: SettingDefault::Value("2"),
        allowed: "a whole number from 1 to 64",
        doc: "Threads that apply committed entries",
        set: |s, v| number(v, 1, 64, &mut s.apply_threads) },
    Setting { name: "read_threads", kind: Kind::Number, default: SettingDefault::Value("4"),
        allowed: "a whole number from 1 to 256",
        doc: "Threads for reads that memory cannot answer",
        set: |s, v| number(v, 1, 256, &mut s.read_threads) },
    Setting { name: "log_format", kind: Kind::Text, default: SettingDefault::Value("text"),
        allowed: "text or json",
        doc: "How the node writes its own log, on stderr",
        set: |s, v| match v {
            "text" => { s.log_format = LogFormat::Text; true }
            "json" => { s.log_format = LogFormat::Json; true }
            _ => false,
        } },
    Setting { name: "log_level", kind: Kind::Text, default: SettingDefault::Value("info"),
        allowed: "error, warn, info, debug or trace, also by module: info,ringfold_node::raft=debug",
        doc: "What the node's own log says",
        set: |s, v| { s.log_level = v.into(); is_level(v) } },
];

/// Before any setting is read.
pub(super) fn blank() -> Settings {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Settings {
        data_dir: "".into(),
        name: String::new(),
        client_listen: nowhere,
        peer_listen: nowhere,
        gossip_listen: nowhere,
        client_url: String::new(),
        peer_address: String::new(),
        seeds: Vec::new(),
        gossip_advertise: String::new(),
        gossip_key_file: String::new(),
        gossip_key: Secret::default(),
        gossip_previous_key_file: String::new(),
        gossip_previous_key: Secret::default(),
        http_listen: None,
        zone: String::new(),
        tick_ms: 0,
        heartbeat_ticks: 0,
        election_ticks: 0,
        cache_bytes: 0,
        memtable_bytes: 0,
        log_kept_bytes: 0,
        disk_min_free_bytes: 0,
        repair_after_ms: 0,
        move_bytes_per_s: 0,
        moves_per_node: 0,
        stop_wait_ms: 0,
        apply_threads: 0,
        read_threads: 0,
        log_format: LogFormat::Text,
        log_level: String::new(),
    }
}

fn number<T: FromStr + PartialOrd>(text: &str, min: T, max: T, out: &mut T) -> bool {
    match text.parse() {
        Ok(n) if n >= min && n <= max => {
            *out = n;
            true
        }
        _ => false,
    }
}

fn bytes<T: TryFrom<u64>>(text: &str, min: u64, out: &mut T) -> bool {
    let (digits, unit) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?.trim_end(), *unit)))
        .unwrap_or((text, 1u64));
    let value = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match value.filter(|n| *n >= min).map(T::try_from) {
        Some(Ok(n)) => {
            *out = n;
            true
        }
        _ => false,
    }
}

fn listen(text: &str, out: &mut SocketAddr) -> bool {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => {
            *out = address;
            true
        }
        _ => false,
    }
}

fn is_text(text: &str) -> bool {
    text.len() <= 255 && !text.chars().any(char::is_control)
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && is_text(host)
            && !host.contains(['/', ' ', '@'])
            && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

fn is_url(text: &str) -> bool {
    text.parse::<tonic::transport::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|h| !h.is_empty())
            && matches!(uri.path(), "" | "/")
            && is_text(text)
    })
}

fn is_level(text: &str) -> bool {
    let is_level = |l: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&l);
    text.split(',').all(|part| match part.split_once('=') {
        Some((target, level)) => !target.is_empty() && is_level(level),
        None => is_level(part),
    })
}
