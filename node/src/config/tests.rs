use super::*;
use std::collections::HashMap;

struct Given<'a> {
    args: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    files: &'a [(&'a str, &'a str)],
}

const NOTHING: Given<'static> = Given { args: &[], env: &[], files: &[] };

fn loaded(given: &Given<'_>) -> Result<Loaded, ConfigError> {
    let args: Vec<String> = given.args.iter().map(|a| a.to_string()).collect();
    let env: HashMap<&str, &str> = given.env.iter().copied().collect();
    let files: HashMap<&Path, &str> =
        given.files.iter().map(|(p, t)| (Path::new(*p), *t)).collect();
    load(&Sources {
        args: &args,
        env: &|name| env.get(name).map(|v| v.to_string()),
        read_file: &|path| {
            files.get(path).map(|t| t.to_string()).ok_or(std::io::ErrorKind::NotFound.into())
        },
        host_name: "host-7",
    })
}

fn settings(given: &Given<'_>) -> Settings {
    match loaded(given) {
        Ok(Loaded::Run(settings)) => *settings,
        other => panic!("{other:?}"),
    }
}

fn faults(given: &Given<'_>) -> Vec<String> {
    loaded(given).expect_err("must be refused").faults
}

#[test]
fn a_data_directory_is_all_that_is_needed() {
    let s = settings(&Given { args: &["--data-dir", "/d"], ..NOTHING });
    assert_eq!(s.data_dir, Path::new("/d"));
    assert_eq!((s.name.as_str(), s.zone.as_str()), ("host-7", ""));
    assert_eq!(s.client_url, "http://host-7:2600");
    assert_eq!(s.peer_address, "host-7:2601");
    assert_eq!((s.tick_ms, s.heartbeat_ticks, s.election_ticks), (100, 3, 10));
    assert_eq!(s.disk_min_free_bytes, 1 << 30);
    assert_eq!((s.log_format, s.log_level.as_str()), (LogFormat::Text, "info"));
    assert!(s.seeds.is_empty());
    assert_eq!(faults(&NOTHING), ["data_dir: it must be set to a directory"]);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let files = [(
        "/n.yaml",
        "data_dir: /file\nname: file\nzone: file\ntick_ms: 50\nseeds: [a:1, b:2]\ncache_bytes: 1GiB\n",
    )];
    let env = [
        ("RINGFOLD_NODE_CONFIG", "/n.yaml"),
        ("RINGFOLD_NODE_NAME", "env"),
        ("RINGFOLD_NODE_ZONE", "env"),
        // What Kubernetes sets for a Service named ringfold-node.
        ("RINGFOLD_NODE_PORT", "tcp://10.0.0.1:2600"),
        ("RINGFOLD_NODE_LOG_LEVEL", ""),
    ];
    let s = settings(&Given { args: &["--zone=flag"], env: &env, files: &files });
    assert_eq!(s.data_dir, Path::new("/file"));
    assert_eq!((s.name.as_str(), s.zone.as_str()), ("env", "flag"));
    assert_eq!((s.tick_ms, s.cache_bytes, s.log_level.as_str()), (50, 1 << 30, "info"));
    assert_eq!(s.seeds, ["a:1", "b:2"]);
    let args = ["--config", "/other", "--data-dir", "/d", "--seeds", "c:3, d:4"];
    let other = [("/other", "")];
    let s = settings(&Given { args: &args, env: &env, files: &other });
    assert_eq!(s.seeds, ["c:3", "d:4"], "--config wins over RINGFOLD_NODE_CONFIG");
}

#[test]
fn five_mistakes_are_five_faults() {
    let files = [("/n.yaml", "data_dir: /d\nelection_tick: 10\nname: 7\n")];
    let given = Given {
        args: &["--config=/n.yaml", "--tick-ms", "9", "--sede", "a:1"],
        env: &[("RINGFOLD_NODE_SEEDS", "a:1,b")],
        files: &files,
    };
    assert_eq!(
        faults(&given),
        [
            "--sede is not a flag; did you mean --seeds?",
            "election_tick (file /n.yaml) is not a setting; did you mean election_ticks?",
            "name (file /n.yaml): 7 is not a text: put it in quotes",
            "seeds (environment RINGFOLD_NODE_SEEDS): \"a:1,b\" is not hosts with ports, like \
             a:2601,b:2601, at most 32",
            "tick_ms (flag --tick-ms): \"9\" is not a whole number from 10 to 10000",
        ]
    );
    let said = loaded(&given).unwrap_err().to_string();
    assert!(said.starts_with("the settings have 5 faults:\n  - "), "{said}");
}

#[test]
fn what_is_wrong_only_together_is_found() {
    let args = |more: &[&'static str]| [&["--data-dir", "/d"], more].concat();
    let a = args(&["--client-listen", "127.0.0.1:1", "--peer-listen", "127.0.0.1:1"]);
    assert!(faults(&Given { args: &a, ..NOTHING })[0].contains("two ports"));
    let a = args(&["--client-listen", "127.0.0.1:1", "--http-listen", "127.0.0.1:1"]);
    assert!(faults(&Given { args: &a, ..NOTHING })[0].contains("http_listen and client_listen"));
    let a = args(&["--election-ticks", "8"]);
    assert!(faults(&Given { args: &a, ..NOTHING })[0].contains("three times"));
}

#[test]
fn each_value_is_checked() {
    for (flag, wrong) in [
        ("--data-dir", ""),
        ("--name", ""),
        ("--client-listen", "localhost:2600"),
        ("--peer-listen", "0.0.0.0:0"),
        ("--client-url", "host:2600"),
        ("--client-url", "ftp://host"),
        ("--client-url", "http://host/path"),
        ("--peer-address", "host"),
        ("--peer-address", ":2601"),
        ("--peer-address", "http://host:2601"),
        ("--seeds", "a:1,b:70000"),
        ("--gossip-listen", "0.0.0.0"),
        ("--gossip-advertise", "host"),
        ("--http-listen", "on"),
        ("--http-listen", "0.0.0.0:0"),
        ("--stop-wait-ms", "600001"),
        ("--zone", "a\nb"),
        ("--tick-ms", "1.5"),
        ("--heartbeat-ticks", "0"),
        ("--cache-bytes", "1"),
        ("--cache-bytes", "99999999999GiB"),
        ("--memtable-bytes", "64MB"),
        ("--disk-min-free-bytes", "-1"),
        ("--apply-threads", "65"),
        ("--read-threads", ""),
        ("--log-format", "xml"),
        ("--log-level", "loud"),
        ("--log-level", "info,=debug"),
    ] {
        let mut args = vec![flag, wrong];
        if flag != "--data-dir" {
            args.extend(["--data-dir", "/d"]);
        }
        let found = faults(&Given { args: &args, ..NOTHING });
        assert_eq!(found.len(), 1, "{flag} {wrong}: {found:?}");
        let name = flag[2..].replace('-', "_");
        assert!(
            found[0].starts_with(&format!("{name} (flag {flag}): {wrong:?} is not ")),
            "{found:?}"
        );
    }
}

#[test]
fn wrong_command_lines_are_told() {
    for (args, why) in [
        (&["--data-dir", "/d", "stray"][..], "\"stray\" is not a flag"),
        (&["--data-dir", "/d", "--name"], "--name needs a value"),
        (&["--data-dir", "/d", "--data-dir", "/e"], "--data-dir is given twice"),
        (&["--data-dir", "/d", "--config", "/none"], "cannot be read"),
    ] {
        let found = faults(&Given { args, ..NOTHING });
        assert!(found.len() == 1 && found[0].contains(why), "{args:?}: {found:?}");
    }
    for text in ["- a list", "a: [", "data_dir: /d\ndata_dir: /e"] {
        let files = [("/n.yaml", text)];
        let found = faults(&Given {
            args: &["--config=/n.yaml", "--data-dir=/d"],
            env: &[],
            files: &files,
        });
        assert!(found.len() == 1 && found[0].contains("YAML"), "{text}: {found:?}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_told() {
    let files =
        [("/n.yaml", "data_dir: /d\ntick_ms: [1]\nseeds: [1, 2]\nzone: {a: b}\nlog_level:\n")];
    let found = faults(&Given { args: &["--config=/n.yaml"], env: &[], files: &files });
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn help_lists_every_setting() {
    let Ok(Loaded::Print(text)) = loaded(&Given { args: &["--wrong", "--help"], ..NOTHING }) else {
        panic!("not printed")
    };
    for s in SETTINGS {
        assert!(text.contains(&format!("--{} <", s.flag_name())), "{}", s.name);
    }
    assert!(text.contains("[default: 0.0.0.0:2600]"));
    let version = loaded(&Given { args: &["--version"], ..NOTHING });
    assert!(matches!(version, Ok(Loaded::Print(v)) if v.starts_with("ringfold-node ")));
}

#[test]
fn docs_settings_md_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    if std::env::var_os("RINGFOLD_WRITE_DOCS").is_some() {
        std::fs::write(&path, markdown()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == markdown(),
        "docs/settings.md is not what the table says: \
         RINGFOLD_WRITE_DOCS=1 cargo test -p ringfold-node config"
    );
}

const KEY: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn keys_come_from_files_or_directly() {
    let files = [
        ("/key", "0123456789abcdef0123456789abcdef\n"),
        ("/old", "previous-previous-previous-previous "),
    ];
    let args = ["--data-dir=/d", "--gossip-key-file=/key", "--gossip-previous-key-file=/old"];
    let s = settings(&Given { args: &args, files: &files, ..NOTHING });
    assert_eq!(s.gossip_key.text(), KEY);
    assert_eq!(s.gossip_previous_key.text(), "previous-previous-previous-previous");
    assert!(!format!("{s:?}").contains(KEY), "a key is never shown");
    let s = settings(&Given {
        args: &["--data-dir=/d"],
        env: &[("RINGFOLD_NODE_GOSSIP_KEY", KEY)],
        ..NOTHING
    });
    assert_eq!(s.gossip_key.text(), KEY);
    assert!(s.gossip_previous_key.is_empty());
}

#[test]
fn wrong_keys_are_told_and_never_shown() {
    let files = [
        ("/short", "a-short-secret"),
        ("/lines", "0123456789abcdef\n0123456789abcdef"),
        ("/good", KEY),
    ];
    let key = format!("--gossip-key={KEY}");
    for (args, why) in [
        (
            &["--gossip-key=a-short-secret"][..],
            "gossip_key (flag --gossip-key): what is given is not",
        ),
        (&["--gossip-key-file=/short"], "gossip_key_file: /short holds 14 bytes"),
        (&["--gossip-key-file=/lines"], "gossip_key_file: /lines holds 33 bytes"),
        (&["--gossip-key-file=/none"], "gossip_key_file: /none cannot be read"),
        (&["--gossip-key-file=/good", &key], "gossip_key and gossip_key_file are both set"),
        (&["--gossip-previous-key-file=/good"], "gossip_key is not"),
    ] {
        let args = [&["--data-dir=/d"], args].concat();
        let found = faults(&Given { args: &args, files: &files, ..NOTHING });
        assert!(found.len() == 1 && found[0].contains(why), "{args:?}: {found:?}");
        assert!(!found[0].contains("secret") && !found[0].contains(KEY), "{found:?}");
    }
    let files = [("/n.yaml", "data_dir: /d\ngossip_key: 12345678901234567890\n")];
    let found = faults(&Given { args: &["--config=/n.yaml"], files: &files, ..NOTHING });
    assert!(found.len() == 1 && !found[0].contains("1234"), "{found:?}");
}
