//! `ringfold dev`: nodes that come and go with it, and are found again on the same folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use ringfold_tests::cluster::{
    Turn, binary, eventually, free_ports, scratch, signal, spawn, wait_exit,
};

/// That a test scales to.
const NODES_MAX: u16 = 5;
const RUN_MAX: Duration = Duration::from_secs(90);
const END_MAX: Duration = Duration::from_secs(20);

struct Dev {
    data: PathBuf,
    port: u16,
}

impl Dev {
    fn new(name: &str) -> Self {
        let data = scratch().join(format!("dev-{name}"));
        let _ = fs::remove_dir_all(&data);
        Self { data, port: base_port() }
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut dev = Command::new(binary("ringfold", "RINGFOLD_BIN"));
        dev.args(["dev", "--partitions", "4", "--data"])
            .arg(&self.data)
            .args(["--port", &self.port.to_string()])
            .stdin(Stdio::null());
        if !command.is_empty() {
            dev.arg("--").args(command);
        }
        dev
    }

    async fn run(&self, command: &[&str]) -> Output {
        output(self.command(command)).await
    }

    fn start(&self) -> Child {
        let log = fs::File::create(self.data.with_extension("log")).unwrap();
        let mut command = self.command(&[]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        spawn(command).unwrap()
    }

    fn endpoints(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Node i takes base + 10 i and the three ports after it.
fn ports_free(base: u16) -> bool {
    (0..NODES_MAX)
        .all(|i| (0..4).all(|p| TcpListener::bind(("127.0.0.1", base + 10 * i + p)).is_ok()))
}

fn base_port() -> u16 {
    loop {
        let base = free_ports(1)[0];
        if ports_free(base) {
            return base;
        }
    }
}

async fn output(mut command: Command) -> Output {
    let mut child = spawn({
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })
    .unwrap();
    if wait_exit(&mut child, RUN_MAX).await.is_none() {
        let _ = child.kill();
        let out = child.wait_with_output().unwrap();
        panic!("it does not end: {}", text(&out));
    }
    child.wait_with_output().unwrap()
}

fn text(out: &Output) -> String {
    format!(
        "{:?}\n{}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Processes whose command line names this folder.
fn processes_of(data: &Path) -> Vec<i32> {
    let data = data.to_str().unwrap().as_bytes();
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(data.len()).any(|w| w == data) {
            pids.push(pid);
        }
    }
    pids
}

/// No process of the folder is left, and its ports are free: a dying process loses its command line
/// before its sockets, and shows as a zombie while its other threads still hold them.
async fn gone(dev: &Dev) {
    eventually("all processes of the folder are gone", END_MAX, || async {
        let left = processes_of(&dev.data);
        if left.is_empty() && ports_free(dev.port) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

async fn cli(dev: &Dev, args: &[&str]) -> Output {
    let mut command = Command::new(binary("ringfold", "RINGFOLD_BIN"));
    command.args(args).env("RINGFOLD_ENDPOINTS", dev.endpoints());
    output(command).await
}

#[tokio::test]
async fn dev_ends_with_the_exit_code_of_its_command() {
    let _turn = Turn::take().await;
    let dev = Dev::new("code");
    for code in ["0", "7"] {
        let script = format!("exit {code}");
        let out = dev.run(&["sh", "-c", &script]).await;
        assert_eq!(out.status.code(), code.parse().ok(), "{}", text(&out));
        gone(&dev).await;
    }
}

#[tokio::test]
async fn dev_tells_its_command_where_the_nodes_are() {
    let _turn = Turn::take().await;
    let dev = Dev::new("endpoints");
    let out = dev.run(&["sh", "-c", "echo ENDPOINTS=$RINGFOLD_ENDPOINTS"]).await;
    let told = text(&out);
    for i in 0..3 {
        let url = format!("127.0.0.1:{}", dev.port + 10 * i);
        let line = told.lines().find(|l| l.contains("ENDPOINTS=")).expect(&told);
        assert!(line.contains(&url), "{told}");
    }
}

#[tokio::test]
async fn dev_goes_on_where_it_was_on_the_same_folder() {
    let _turn = Turn::take().await;
    let dev = Dev::new("again");
    let ringfold = binary("ringfold", "RINGFOLD_BIN");
    let ringfold = ringfold.to_str().unwrap();
    for (n, field) in ["a", "b"].iter().enumerate() {
        let data = format!("{{\"{field}\":{n}}}");
        let out = dev
            .run(&[ringfold, "append", "customer-42", "--type", "Changed", "--data", &data])
            .await;
        assert!(out.status.success(), "{}", text(&out));
    }
    let out = dev.run(&[ringfold, "lookup", "customer-42", "-o", "json"]).await;
    let told = text(&out);
    assert!(out.status.success(), "{told}");
    let line = String::from_utf8_lossy(&out.stdout)
        .lines()
        .find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .unwrap_or_else(|| panic!("no JSON line in {told}"));
    assert_eq!(line["stream"], "customer-42");
    assert_eq!(line["revision"], 1);
    assert_eq!(line["state"], serde_json::json!({"a": 0, "b": 1}));
}

#[tokio::test]
async fn dev_killed_by_force_takes_its_nodes_along() {
    let _turn = Turn::take().await;
    let dev = Dev::new("killed");
    let mut child = dev.start();
    serving(&dev).await;
    assert!(processes_of(&dev.data).len() >= 4, "dev and three nodes");
    signal(&child, libc::SIGKILL);
    child.wait().unwrap();
    gone(&dev).await;
    // And what they had is there the next time.
    let out = dev.run(&["true"]).await;
    assert!(out.status.success(), "{}", text(&out));
}

#[tokio::test]
async fn dev_ends_its_nodes_when_it_is_asked_to_end() {
    let _turn = Turn::take().await;
    for (name, sent) in [("term", libc::SIGTERM), ("int", libc::SIGINT)] {
        let dev = Dev::new(name);
        let mut child = dev.start();
        serving(&dev).await;
        signal(&child, sent);
        let status = wait_exit(&mut child, END_MAX).await.expect("it ends");
        assert!(status.code().is_some(), "by itself, not by a signal: {status:?}");
        gone(&dev).await;
    }
}

#[tokio::test]
async fn dev_without_a_folder_leaves_none_behind() {
    let _turn = Turn::take().await;
    let dev = Dev::new("temporary");
    fs::create_dir_all(&dev.data).unwrap();
    let mut command = Command::new(binary("ringfold", "RINGFOLD_BIN"));
    command
        .args(["dev", "--partitions", "4", "--port", &dev.port.to_string()])
        .args(["--", "sh", "-c", "ls $TMPDIR | wc -l"])
        .env("TMPDIR", &dev.data);
    let out = output(command).await;
    assert!(out.status.success(), "{}", text(&out));
    assert!(
        text(&out).lines().any(|l| l.trim() == "1"),
        "one folder while it runs: {}",
        text(&out)
    );
    assert_eq!(fs::read_dir(&dev.data).unwrap().count(), 0);
}

/// Each customer's state, as `ringfold` tells it.
async fn customers(dev: &Dev) -> BTreeMap<String, serde_json::Value> {
    let out = cli(dev, &["lookup", "--category", "customer", "-o", "json"]).await;
    assert!(out.status.success(), "{}", text(&out));
    let lines = String::from_utf8_lossy(&out.stdout).into_owned();
    lines
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .map(|l| (l["stream"].as_str().unwrap().to_string(), l["state"].clone()))
        .collect()
}

/// Names of the nodes that run, of those that are members, and of the folders.
async fn nodes(dev: &Dev) -> [Vec<String>; 3] {
    let mut running = Vec::new();
    for pid in processes_of(&dev.data) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        if let Some(at) = words.iter().position(|w| w == "--name") {
            running.push(words[at + 1].to_string());
        }
    }
    let out = cli(dev, &["topology", "-o", "json"]).await;
    let mut members: Vec<String> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|l| l["kind"] == "member" && l["state"] == "active")
        .map(|l| l["name"].as_str().unwrap().to_string())
        .collect();
    let mut folders: Vec<String> = fs::read_dir(&dev.data)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    running.sort();
    members.sort();
    folders.sort();
    [running, members, folders]
}

fn node_names(count: u32) -> [Vec<String>; 3] {
    let names: Vec<_> = (0..count).map(|i| format!("node-{i}")).collect();
    [names.clone(), names.clone(), names]
}

/// Waits until gossip hears of each node.
async fn all_gossip(dev: &Dev, count: usize) {
    eventually("all nodes gossip", RUN_MAX, || async {
        let out = cli(dev, &["status", "-o", "json"]).await;
        let told = text(&out);
        let live = String::from_utf8_lossy(&out.stdout)
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .filter(|l| l["kind"] == "node" && l["gossip"] == "live")
            .count();
        if live == count { Ok(()) } else { Err(told) }
    })
    .await;
}

#[tokio::test]
async fn dev_is_scaled_up_and_down_and_goes_on_with_the_nodes_that_remain() {
    let _turn = Turn::take().await;
    let dev = Dev::new("scale");
    let mut child = dev.start();
    serving(&dev).await;
    let mut expected = BTreeMap::from([("customer-1".to_string(), serde_json::json!({}))]);
    let mut lines = String::new();
    for i in 2..200 {
        let stream = format!("customer-{i}");
        let data = serde_json::json!({"number": i, "text": "x".repeat(i)});
        let line = serde_json::json!({"stream": stream, "type": "Registered", "data": data});
        lines += &format!("{line}\n");
        expected.insert(stream, data);
    }
    let file = dev.data.with_extension("jsonl");
    fs::write(&file, lines).unwrap();
    let out = cli(&dev, &["import", file.to_str().unwrap()]).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(3));

    let out = cli(&dev, &["dev", "scale", "5"]).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(5));
    assert_eq!(customers(&dev).await, expected);
    all_gossip(&dev, 5).await;

    // Too few for three replicas: nothing changes.
    let out = cli(&dev, &["dev", "scale", "2"]).await;
    assert_eq!(out.status.code(), Some(4), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(5));

    let out = cli(&dev, &["dev", "scale", "3"]).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(3));
    assert_eq!(customers(&dev).await, expected);

    // The numbers of nodes that were removed can be used again.
    let out = cli(&dev, &["dev", "scale", "4"]).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(4));
    let out = cli(&dev, &["dev", "scale", "3"]).await;
    assert!(out.status.success(), "{}", text(&out));

    signal(&child, libc::SIGTERM);
    wait_exit(&mut child, END_MAX).await.expect("it ends");
    gone(&dev).await;
    let mut child = dev.start();
    serving(&dev).await;
    assert_eq!(nodes(&dev).await, node_names(3));
    assert_eq!(customers(&dev).await, expected);
    signal(&child, libc::SIGTERM);
    wait_exit(&mut child, END_MAX).await.expect("it ends");
    gone(&dev).await;
}

/// `ringfold dev scale` in the background.
fn begin_scale(dev: &Dev, nodes: &str) -> Child {
    let mut command = Command::new(binary("ringfold", "RINGFOLD_BIN"));
    let log = fs::File::create(dev.data.with_extension("scale.log")).unwrap();
    command.args(["dev", "scale", nodes]).env("RINGFOLD_ENDPOINTS", dev.endpoints());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    spawn(command).unwrap()
}

#[tokio::test]
async fn a_scale_that_was_cut_off_is_taken_up_again_on_the_next_start() {
    let _turn = Turn::take().await;
    let dev = Dev::new("cut-off");
    let mut child = dev.start();
    serving(&dev).await;
    let mut scale = begin_scale(&dev, "5");
    eventually("the last node starts", RUN_MAX, || async {
        let begun = processes_of(&dev.data).len() == 6;
        if begun { Ok(()) } else { Err("not yet".to_string()) }
    })
    .await;
    for cut_off in [&mut scale, &mut child] {
        signal(cut_off, libc::SIGKILL);
        cut_off.wait().unwrap();
    }
    gone(&dev).await;

    let mut child = dev.start();
    serving(&dev).await;
    // It waits until those that were started have joined; the first drain is cut off as well.
    let mut scale = begin_scale(&dev, "3");
    eventually("a node drains", RUN_MAX, || async {
        let told = text(&cli(&dev, &["status"]).await);
        let scale = fs::read_to_string(dev.data.with_extension("scale.log")).unwrap();
        if told.contains("draining") { Ok(()) } else { Err(format!("{told}\n{scale}")) }
    })
    .await;
    signal(&scale, libc::SIGKILL);
    scale.wait().unwrap();
    let out = cli(&dev, &["dev", "scale", "4"]).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(nodes(&dev).await, node_names(4));
    assert_eq!(customers(&dev).await.len(), 1);
    signal(&child, libc::SIGTERM);
    wait_exit(&mut child, END_MAX).await.expect("it ends");
    gone(&dev).await;
}

async fn serving(dev: &Dev) {
    eventually("dev serves", RUN_MAX, || async {
        let out = cli(dev, &["append", "customer-1", "--type", "T", "--data", "{}"]).await;
        if out.status.success() { Ok(()) } else { Err(text(&out)) }
    })
    .await;
}
