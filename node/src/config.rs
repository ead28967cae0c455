//! The node's settings: one table, read from a file, the environment and flags, later ones winning.
//! All faults are found and told at once. docs/settings.md is made from the table.
mod secret;
mod table;

pub use secret::Secret;
pub use table::{Kind, SETTINGS, Setting, SettingDefault};

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What the node runs with; each value is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub name: String,
    pub client_listen: SocketAddr,
    pub peer_listen: SocketAddr,
    pub gossip_listen: SocketAddr,
    pub client_url: String,
    pub peer_address: String,
    pub seeds: Vec<String>,
    /// Empty: to be found out.
    pub gossip_advertise: String,
    pub gossip_key_file: String,
    /// From a file or not; empty: there is no gossip.
    pub gossip_key: Secret,
    pub gossip_previous_key_file: String,
    pub gossip_previous_key: Secret,
    /// `None`: off.
    pub http_listen: Option<SocketAddr>,
    pub zone: String,
    pub tick_ms: u64,
    pub heartbeat_ticks: usize,
    pub election_ticks: usize,
    pub cache_bytes: usize,
    pub memtable_bytes: usize,
    pub log_kept_bytes: u64,
    pub disk_min_free_bytes: u64,
    pub repair_after_ms: u64,
    pub move_bytes_per_s: u64,
    pub moves_per_node: u32,
    pub stop_wait_ms: u64,
    pub apply_threads: usize,
    pub read_threads: usize,
    pub log_format: LogFormat,
    pub log_level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    Run(Box<Settings>),
    /// Help or the version: print it and end well.
    Print(String),
}

/// Everything that is wrong with the settings; each fault names the setting, where its value comes
/// from, the value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub faults: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.faults.len() {
            1 => write!(f, "the settings have a fault:")?,
            n => write!(f, "the settings have {n} faults:")?,
        }
        self.faults.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
    }
}

/// Where settings come from.
pub struct Sources<'a> {
    /// Without the program's name.
    pub args: &'a [String],
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub read_file: &'a dyn Fn(&Path) -> std::io::Result<String>,
    pub host_name: &'a str,
}

/// Reads the settings of this process.
pub fn load_process() -> Result<Loaded, ConfigError> {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    load(&Sources {
        args: &args,
        env: &|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()),
        read_file: &|path| std::fs::read_to_string(path),
        host_name: &rustix::system::uname().nodename().to_string_lossy(),
    })
}

const CONFIG_FLAG: &str = "config";
const CONFIG_ENV: &str = "RINGFOLD_NODE_CONFIG";

/// A value as text, and where it comes from. The last one wins.
type Given = BTreeMap<&'static str, (String, String)>;

/// Reads and checks all settings.
pub fn load(sources: &Sources<'_>) -> Result<Loaded, ConfigError> {
    let mut faults = Vec::new();
    let mut flags = Given::new();
    let mut file = None;
    if let Some(text) = read_flags(sources.args, &mut flags, &mut file, &mut faults) {
        return Ok(Loaded::Print(text));
    }
    let file = file.or_else(|| (sources.env)(CONFIG_ENV).filter(|v| !v.is_empty()));
    let mut given = Given::new();
    if let Some(path) = file {
        read_file(sources, Path::new(&path), &mut given, &mut faults);
    }
    for s in SETTINGS {
        // An empty variable is one that is not set: manifests often set them so. Unknown ones are
        // nobody's fault: Kubernetes sets some for a Service of this name.
        if let Some(value) = (sources.env)(&s.env_name()).filter(|v| !v.is_empty()) {
            given.insert(s.name, (value, format!("environment {}", s.env_name())));
        }
    }
    given.extend(flags);
    let mut settings = table::blank();
    for s in SETTINGS {
        let (value, source) = match (given.remove(s.name), s.default) {
            (Some(given), _) => given,
            (None, SettingDefault::Value(v)) => (v.to_owned(), "default".to_owned()),
            (None, SettingDefault::Computed(_)) => continue,
            (None, SettingDefault::Required) => {
                faults.push(format!("{}: it must be set to {}", s.name, s.allowed));
                continue;
            }
        };
        if !s.set(&mut settings, &value) {
            let value = match s.kind {
                Kind::Secret => "what is given".to_owned(),
                _ => format!("{value:?}"),
            };
            faults.push(format!("{} ({source}): {value} is not {}", s.name, s.allowed));
        }
    }
    secret::read_keys(&mut settings, sources, &mut faults);
    if faults.is_empty() {
        complete(&mut settings, sources.host_name);
        check_together(&settings, &mut faults);
    }
    if faults.is_empty() {
        Ok(Loaded::Run(Box::new(settings)))
    } else {
        Err(ConfigError { faults })
    }
}

/// The text to print, if that is what is asked for.
fn read_flags(
    args: &[String],
    given: &mut Given,
    file: &mut Option<String>,
    faults: &mut Vec<String>,
) -> Option<String> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-h" | "--help" => return Some(help()),
            "-V" | "--version" => {
                return Some(concat!("ringfold-node ", env!("CARGO_PKG_VERSION")).to_owned());
            }
            _ => {}
        }
        let Some(flag) = arg.strip_prefix("--") else {
            faults.push(format!("{arg:?} is not a flag; --help lists them"));
            continue;
        };
        let (flag, value) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (flag, None),
        };
        let setting = SETTINGS.iter().find(|s| s.flag_name() == flag);
        if setting.is_none() && flag != CONFIG_FLAG {
            faults.push(format!(
                "--{flag} is not a flag{}",
                suggestion(arg, |s| format!("--{}", s.flag_name()))
            ));
            // Its value, if it has one, is no fault of its own.
            if value.is_none() && args.as_slice().first().is_some_and(|a| !a.starts_with('-')) {
                args.next();
            }
            continue;
        }
        let Some(value) = value.or_else(|| args.next().cloned()) else {
            faults.push(format!("--{flag} needs a value"));
            continue;
        };
        let twice = match setting {
            Some(s) => given.insert(s.name, (value, format!("flag --{flag}"))).is_some(),
            None => file.replace(value).is_some(),
        };
        if twice {
            faults.push(format!("--{flag} is given twice"));
        }
    }
    None
}

fn read_file(sources: &Sources<'_>, path: &Path, given: &mut Given, faults: &mut Vec<String>) {
    let source = format!("file {}", path.display());
    let text = match (sources.read_file)(path) {
        Ok(text) => text,
        Err(e) => return faults.push(format!("{source}: it cannot be read: {e}")),
    };
    if text.trim().is_empty() {
        return;
    }
    let values: BTreeMap<String, Value> = match serde_saphyr::from_str(&text) {
        Ok(values) => values,
        Err(e) => return faults.push(format!("{source}: it must be a YAML mapping: {e}")),
    };
    for (key, value) in values {
        let Some(s) = SETTINGS.iter().find(|s| s.name == key) else {
            faults.push(format!(
                "{key} ({source}) is not a setting{}",
                suggestion(&key, |s| s.name.to_owned())
            ));
            continue;
        };
        match (text_of(s.kind, &value), &value) {
            (Some(text), _) => _ = given.insert(s.name, (text, source.clone())),
            (None, Value::Null) => {}
            (None, _) if s.kind == Kind::Secret => {
                faults.push(format!("{key} ({source}): it is not a text: put it in quotes"))
            }
            (None, _) if s.kind == Kind::Text && !value.is_array() && !value.is_object() => {
                faults.push(format!("{key} ({source}): {value} is not a text: put it in quotes"))
            }
            (None, _) => faults.push(format!("{key} ({source}): {value} is not {}", s.allowed)),
        }
    }
}

/// A value of the file as flags and variables have it.
fn text_of(kind: Kind, value: &Value) -> Option<String> {
    match (kind, value) {
        (_, Value::String(s)) => Some(s.clone()),
        (Kind::Number | Kind::Bytes, Value::Number(n)) => Some(n.to_string()),
        (Kind::List, Value::Array(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.map(|i| i.join(","))
        }
        _ => None,
    }
}

fn suggestion(name: &str, of: impl Fn(&Setting) -> String) -> String {
    SETTINGS
        .iter()
        .map(|s| (strsim::jaro_winkler(&of(s), name), of(s)))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, name)| format!("; did you mean {name}?"))
}

/// Fills in what follows from other settings. Others cannot reach an address like 0.0.0.0: the host
/// name stands for it.
fn complete(s: &mut Settings, host_name: &str) {
    let reachable = |listen: SocketAddr| match listen.ip().is_unspecified() {
        true => format!("{host_name}:{}", listen.port()),
        false => listen.to_string(),
    };
    if s.name.is_empty() {
        s.name = host_name.to_owned();
    }
    if s.client_url.is_empty() {
        s.client_url = format!("http://{}", reachable(s.client_listen));
    }
    if s.peer_address.is_empty() {
        s.peer_address = reachable(s.peer_listen);
    }
}

/// What no setting can say alone.
fn check_together(s: &Settings, faults: &mut Vec<String>) {
    if s.client_listen == s.peer_listen {
        faults.push(format!(
            "client_listen and peer_listen are both {}: two ports are needed",
            s.client_listen
        ));
    }
    for (name, address) in [("client_listen", s.client_listen), ("peer_listen", s.peer_listen)] {
        if s.http_listen == Some(address) {
            faults.push(format!("http_listen and {name} are both {address}: two ports are needed"));
        }
    }
    // A lease lasts three quarters of an election timeout and must outlive a lost heartbeat.
    if s.election_ticks < 3 * s.heartbeat_ticks {
        faults.push(format!(
            "election_ticks {} is not at least three times heartbeat_ticks {}",
            s.election_ticks, s.heartbeat_ticks
        ));
    }
}

/// What `--help` prints.
fn help() -> String {
    let mut out = String::from(
        "Runs a Ringfold node.\n\nUsage: ringfold-node --data-dir DIR [FLAGS]\n\nEach flag can also \
         be a variable RINGFOLD_NODE_<NAME> or a line of the YAML file; flags win over\nvariables, \
         and variables over the file.\n\nFlags:\n",
    );
    let mut flag = |name: &str, doc: &str, default: &str| {
        let _ = writeln!(out, "      --{name}\n          {doc}{default}");
    };
    flag("config <FILE>", "YAML file with settings", &format!(" [variable: {CONFIG_ENV}]"));
    for s in SETTINGS {
        let default = match s.default {
            SettingDefault::Value("") => String::new(),
            SettingDefault::Value(v) | SettingDefault::Computed(v) => format!(" [default: {v}]"),
            SettingDefault::Required => " [required]".into(),
        };
        flag(&format!("{} <{}>", s.flag_name(), s.value_name()), s.doc, &default);
    }
    out.push_str("  -h, --help\n  -V, --version");
    out
}

/// docs/settings.md.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Settings of a node\n\n\
         `ringfold-node` reads its settings from a YAML file (`--config FILE`, or \
         `RINGFOLD_NODE_CONFIG`), from the\nenvironment (`RINGFOLD_NODE_<NAME>` in capitals; an empty \
         variable counts as not set) and from flags\n(`--name`, with `-` for `_`). Flags win over the \
         environment, and the environment over the file. All faults are\ntold at once, and the process \
         ends with code 2. Bytes take the units `KiB`, `MiB` and `GiB`.\n\n\
         | setting | type | default | allowed | |\n|---|---|---|---|---|\n",
    );
    for s in SETTINGS {
        let default = match s.default {
            SettingDefault::Value("") => "empty".into(),
            SettingDefault::Value(v) => format!("`{v}`"),
            SettingDefault::Computed(v) => v.to_owned(),
            SettingDefault::Required => "required".into(),
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {default} | {} | {} |",
            s.name,
            s.kind.name(),
            s.allowed,
            s.doc
        );
    }
    out.push_str(
        "\n## Exit codes\n\n| code | when |\n|---|---|\n\
         | 0 | ended by SIGTERM or SIGINT |\n\
         | 2 | settings are wrong: all faults are listed on stderr |\n\
         | 3 | the data directory is of another cluster, of a newer format, or in use |\n\
         | 4 | the log could not be written or synced |\n\
         | 5 | this node was removed from the cluster |\n\
         | 6 | a part of the node panicked where no single partition could be closed instead: please report it |\n\
         | 1 | anything else |\n",
    );
    out.push_str(
        "\n<!-- Made from node/src/config/table.rs: RINGFOLD_WRITE_DOCS=1 cargo test -p ringfold-node config -->\n",
    );
    out
}

#[cfg(test)]
mod tests;
