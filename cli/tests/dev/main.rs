//! `ringfold dev` as a process, with this test in the part of `ringfold-node`: asked for a data
//! directory, it serves what `dev` asks of a node, and no more.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)] // A test: clippy's own allowance knows only those of libtest.
mod node;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--data-dir") {
        node::play(&args[at..]);
        return ExitCode::SUCCESS;
    }
    let tests: &[(&str, fn())] = &[
        ("it_stays_when_its_command_ended_well", it_stays_when_its_command_ended_well),
        ("a_commands_exit_code_is_devs", a_commands_exit_code_is_devs),
        ("ctrl_c_ends_it_and_it_goes_on_where_it_was", ctrl_c_ends_it_and_it_goes_on_where_it_was),
        ("nodes_die_with_a_killed_dev", nodes_die_with_a_killed_dev),
        ("a_dead_node_ends_it_with_its_log", a_dead_node_ends_it_with_its_log),
        ("a_dead_node_is_told_and_the_others_go_on", a_dead_node_is_told_and_the_others_go_on),
        ("a_port_in_use_is_named", a_port_in_use_is_named),
        ("sigterm_ends_the_command_too", sigterm_ends_the_command_too),
        (
            "a_cluster_that_never_serves_is_told_with_a_log",
            a_cluster_that_never_serves_is_told_with_a_log,
        ),
        ("without_a_node_binary_it_says_what_to_do", without_a_node_binary_it_says_what_to_do),
    ];
    // As libtest: `--list`, and names to choose by.
    let list = args.iter().any(|a| a == "--list");
    let chosen: Vec<_> = args[1..].iter().filter(|a| !a.starts_with('-')).collect();
    for (name, test) in tests {
        if !chosen.is_empty() && !chosen.iter().any(|c| name.contains(c.as_str())) {
            continue;
        }
        if list {
            println!("{name}: test");
        } else {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

// What the tests share

struct Dev {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfold"));
    command
        .args(args)
        .env("RINGFOLD_NODE_BIN", std::env::current_exe().unwrap())
        .env_remove("RINGFOLD_ENDPOINTS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Dev {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn serving(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    fn pid(&self) -> Pid {
        pid(self.child.id() as u64)
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

fn pid(raw: u64) -> Pid {
    Pid::from_raw(raw as i32).unwrap()
}

fn node_pids(serving: &serde_json::Value) -> Vec<Pid> {
    let nodes = serving["nodes"].as_array().unwrap();
    nodes.iter().map(|n| pid(n["pid"].as_u64().unwrap())).collect()
}

fn assert_gone(pids: &[Pid]) {
    let end = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|pid| test_kill_process(*pid).is_ok()) {
        assert!(Instant::now() < end, "nodes outlive dev");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first of ports that nobody listens on.
fn free_ports(nodes: u16) -> String {
    let first = 20_000 + (std::process::id() % 500) as u16 * 50;
    (first..60_000)
        .step_by(50)
        .find(|base| {
            let all = (0..nodes).flat_map(|i| [base + 10 * i, base + 10 * i + 1]);
            all.into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        })
        .unwrap()
        .to_string()
}

// The tests

fn a_commands_exit_code_is_devs() {
    let port = free_ports(3);
    let temp = tempfile::tempdir().unwrap();
    let script = "echo $RINGFOLD_ENDPOINTS; exit 7";
    let mut command = command(&["dev", "--port", &port, "--", "sh", "-c", script]);
    command.env("TMPDIR", temp.path());
    let mut dev = Dev::start(command);
    let mut line = String::new();
    dev.lines.read_line(&mut line).unwrap();
    let base: u16 = port.parse().unwrap();
    let endpoints = [0, 10, 20].map(|i| format!("http://127.0.0.1:{}", base + i));
    assert_eq!(line.trim(), endpoints.join(","));
    let (code, said) = dev.end();
    assert_eq!(code, Some(7), "{said}");
    let left: Vec<_> = std::fs::read_dir(temp.path()).unwrap().collect();
    assert!(left.is_empty(), "the temporary folder is removed: {left:?}");
}

fn it_stays_when_its_command_ended_well() {
    let port = free_ports(1);
    let start = |script| {
        let args = ["dev", "--stay", "--nodes", "1", "--port", &port, "--", "sh", "-c", script];
        Dev::start(command(&args))
    };
    assert_eq!(start("exit 3").end().0, Some(3));
    let mut dev = start("exit 0");
    let mut stderr = BufReader::new(dev.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("has ended well") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    assert!(dev.child.try_wait().unwrap().is_none());
    kill_process(dev.pid(), Signal::INT).unwrap();
    assert_eq!(dev.child.wait().unwrap().code(), Some(0));
}

fn ctrl_c_ends_it_and_it_goes_on_where_it_was() {
    let port = free_ports(3);
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let data = data.to_str().unwrap();
    let args = ["dev", "-o", "json", "--data", data];
    let mut dev = Dev::start(command(&[&args[..], &["--port", &port]].concat()));
    let first = dev.serving();
    let (code, said) = {
        kill_process(dev.pid(), Signal::INT).unwrap();
        dev.end()
    };
    assert_eq!(code, Some(0), "{said}");
    assert_gone(&node_pids(&first));

    let mut dev = Dev::start(command(&args));
    let second = dev.serving();
    assert_eq!(first["cluster_id"], second["cluster_id"]);
    assert_eq!(first["endpoints"], second["endpoints"]);
    let (code, said) = Dev::start(command(&args)).end();
    assert_eq!(code, Some(1));
    assert!(said.contains("another `ringfold dev` runs"), "{said}");
    kill_process(dev.pid(), Signal::TERM).unwrap();
    assert_eq!(dev.end().0, Some(0));

    let (code, said) = Dev::start(command(&[&args[..], &["--nodes", "5"]].concat())).end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--nodes is 5"), "{said}");
}

fn nodes_die_with_a_killed_dev() {
    let port = free_ports(3);
    let temp = tempfile::tempdir().unwrap();
    let mut command = command(&["dev", "-o", "json", "--port", &port]);
    command.env("TMPDIR", temp.path());
    let mut dev = Dev::start(command);
    let pids = node_pids(&dev.serving());
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| test_kill_process(*pid).is_ok()));
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    assert_gone(&pids);
}

fn a_dead_node_ends_it_with_its_log() {
    let port = free_ports(3);
    let mut dev = Dev::start(command(&["dev", "-o", "json", "--port", &port, "--", "sleep", "60"]));
    let pids = node_pids(&dev.serving());
    kill_process(pids[1], Signal::KILL).unwrap();
    let (code, said) = dev.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node-1 ended unexpectedly (signal: 9"), "{said}");
    assert!(said.contains("played node node-1 begins"), "{said}");
    assert_gone(&pids);
}

fn a_dead_node_is_told_and_the_others_go_on() {
    let port = free_ports(2);
    let args = ["dev", "-o", "json", "--port", &port, "--nodes", "2", "--keep-going"];
    let mut dev = Dev::start(command(&args));
    let pids = node_pids(&dev.serving());
    kill_process(pids[0], Signal::KILL).unwrap();
    let mut stderr = BufReader::new(dev.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("node-0 ended unexpectedly") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    assert!(test_kill_process(pids[1]).is_ok());
    assert!(dev.child.try_wait().unwrap().is_none());
    kill_process(dev.pid(), Signal::INT).unwrap();
    assert_eq!(dev.child.wait().unwrap().code(), Some(0));
    assert_gone(&pids);
}

fn a_port_in_use_is_named() {
    let port = free_ports(3);
    let taken = port.parse::<u16>().unwrap() + 11;
    let _taken = TcpListener::bind(("127.0.0.1", taken)).unwrap();
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().to_str().unwrap();
    let (code, said) = Dev::start(command(&["dev", "--port", &port, "--data", data])).end();
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("port {taken} (of node-1, for peers)")), "{said}");
    assert!(!Path::new(data).join("dev.json").exists(), "nothing is begun");
}

fn sigterm_ends_the_command_too() {
    let port = free_ports(1);
    let script = "echo $$; exec sleep 60";
    let args = ["dev", "--nodes", "1", "--port", &port, "--", "sh", "-c", script];
    let mut dev = Dev::start(command(&args));
    let mut line = String::new();
    dev.lines.read_line(&mut line).unwrap();
    let sleeps = pid(line.trim().parse().unwrap());
    kill_process(dev.pid(), Signal::TERM).unwrap();
    assert_eq!(dev.end().0, Some(128 + 15));
    assert_gone(&[sleeps]);
}

fn a_cluster_that_never_serves_is_told_with_a_log() {
    let port = free_ports(1);
    let mut command = command(&["dev", "--nodes", "1", "--port", &port, "--start-within-s", "1"]);
    command.env("PLAY_DEAF", "1");
    let (code, said) = Dev::start(command).end();
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("node-0 does not answer"), "{said}");
    assert!(said.contains("node-0.log:\nplayed node node-0 begins"), "{said}");
}

fn without_a_node_binary_it_says_what_to_do() {
    let mut command = command(&["dev"]);
    command.env("RINGFOLD_NODE_BIN", "/does/not/exist");
    let (code, said) = Dev::start(command).end();
    assert_eq!(code, Some(1));
    assert!(said.contains("/does/not/exist") && said.contains("make build"), "{said}");
}
