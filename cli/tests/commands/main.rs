//! The commands as processes, against a cluster in memory: what they print, and how they end.
#![allow(clippy::unwrap_used)] // A test: clippy's own allowance does not reach its helpers.
mod fake;
mod moves;

use fake::Fake;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn lines(&self) -> Vec<Value> {
        (self.out.lines()).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn error(&self) -> Value {
        let error: Value = serde_json::from_str(&self.err).unwrap();
        error["error"].clone()
    }
}

/// Runs `ringfold -o json ARGS`.
async fn run(fake: &Fake, args: &[&str], stdin: &str) -> Ended {
    run_as("json", fake, args, stdin).await
}

async fn run_as(output: &str, fake: &Fake, args: &[&str], stdin: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfold"));
    command
        .args(["-o", output])
        .args(args)
        .env("RINGFOLD_ENDPOINTS", &fake.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let stdin = stdin.to_string();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A command that does not read it may have ended.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const ID: &str = "00000000-0000-0000-0000-000000000007";

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_appended_read_and_looked_up() {
    let fake = Fake::start().await;
    let args = ["append", "customer-42", "--type", "Registered", "--data", "-", "--id", ID];
    let ended = run(&fake, &args, "{\"name\":\"Ada\"}").await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    let appended = json!({"stream": "customer-42", "revision": 0, "position": 100,
                          "type": "Registered", "id": ID, "partition": 0});
    assert_eq!(ended.lines(), std::slice::from_ref(&appended));
    // The same id again: the same answer.
    let again = run(&fake, &args, "{\"name\":\"Ada\"}").await;
    assert_eq!((again.code, again.lines()), (0, vec![appended]));

    let read = run(&fake, &["read", "customer-42"], "").await;
    assert_eq!(
        read.lines(),
        [json!({"stream": "customer-42", "revision": 0, "position": 100, "recorded_at_ms": 1000,
                "type": "Registered", "id": ID, "schema_version": 0,
                "content_type": "application/json", "data": {"name": "Ada"}})]
    );
    let looked_up = run(&fake, &["lookup", "customer-42"], "").await;
    let state = json!({"stream": "customer-42", "revision": 0, "position": 100,
                       "recorded_at_ms": 1000, "generation": 1,
                       "content_type": "application/json", "state": {"name": "Ada"}});
    assert_eq!(looked_up.lines(), std::slice::from_ref(&state));
    let category = run(&fake, &["lookup", "--category", "customer"], "").await;
    assert_eq!(category.lines(), [state]);
    let list = run(&fake, &["list", "--prefix", "cust"], "").await;
    assert_eq!(list.lines()[0]["stream"], "customer-42");
    assert_eq!(run(&fake, &["list", "--category", "other"], "").await.out, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_exit_codes_and_say_why() {
    let fake = Fake::start().await;
    let missing = run(&fake, &["read", "a-1"], "").await;
    assert_eq!(missing.code, 3, "{}", missing.err);
    assert_eq!(missing.error()["reason"], "STREAM_NOT_FOUND");

    run(&fake, &["append", "a-1", "--type", "T"], "").await;
    let some = run(&fake, &["lookup", "a-1", "a-2"], "").await;
    assert_eq!((some.code, some.lines().len()), (3, 1));
    assert!(some.err.contains("a-2"), "{}", some.err);

    let wrong = run(&fake, &["append", "a-1", "--type", "T", "--expect", "5"], "").await;
    assert_eq!(wrong.code, 4, "{}", wrong.err);
    let error = wrong.error();
    assert_eq!(error["reason"], "WRONG_EXPECTED_REVISION");
    assert_eq!(error["action"], "the action of WRONG_EXPECTED_REVISION");
    assert_eq!(error["metadata"]["actual"], "0");
    let none = run(&fake, &["append", "a-1", "--type", "T", "--expect", "none"], "").await;
    assert_eq!(none.code, 4);

    let unnamed = run(&fake, &["append", "", "--type", "T"], "").await;
    assert_eq!((unnamed.code, &unnamed.error()["reason"]), (2, &json!("INVALID_STREAM_NAME")));

    let nobody = ["lookup", "a-1", "--endpoints", "http://127.0.0.1:1", "--timeout-ms", "500"];
    let nobody = run(&fake, &nobody, "").await;
    assert_eq!(nobody.code, 5, "{}", nobody.err);
    assert!(nobody.err.contains("ringfold dev"), "{}", nobody.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_can_be_run_again_and_may_have_grown() {
    let fake = Fake::start().await;
    let line = |i: usize| {
        format!("{{\"stream\":\"s-{}\",\"type\":\"T\",\"data\":{{\"i\":{i}}}}}\n", i % 7)
    };
    let input: String = (0..1000).map(line).collect();
    for _ in 0..2 {
        let ended = run(&fake, &["import"], &input).await;
        assert_eq!(ended.code, 0, "{}", ended.err);
        let lines = ended.lines();
        assert_eq!((&lines[0]["events"], &lines[0]["appends"]), (&json!(1000), &json!(7)));
        assert_eq!(fake.count(), 1000);
    }
    let grown: String = (0..1010).map(line).collect();
    let ended = run(&fake, &["import", "-"], &grown).await;
    assert_eq!(ended.code, 0, "{}", ended.err);
    assert_eq!(fake.count(), 1010);
    // In the order of the input.
    let read = run(&fake, &["read", "s-3"], "").await;
    let order: Vec<_> = read.lines().iter().map(|e| e["data"]["i"].as_u64().unwrap()).collect();
    assert_eq!(order, (0..1010).filter(|i| i % 7 == 3).collect::<Vec<u64>>());
    // Another source, other events.
    run(&fake, &["import", "--source", "second"], &line(0)).await;
    assert_eq!(fake.count(), 1011);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_names_the_line_that_is_wrong() {
    let fake = Fake::start().await;
    let good = "{\"stream\":\"a-1\",\"type\":\"T\"}\n";
    let no_json = run(&fake, &["import"], &format!("{good}{good}nonsense\n")).await;
    assert_eq!(no_json.code, 2);
    let message = no_json.error()["message"].to_string();
    assert!(message.contains("line 3: "), "{message}");
    // What only the cluster knows to be wrong.
    let refused = format!("{good}{good}{}{good}", "{\"stream\":\"a-1\",\"type\":\"\"}\n");
    let refused = run(&fake, &["import"], &refused).await;
    assert_eq!(refused.code, 2, "{}", refused.err);
    let message = refused.error()["message"].to_string();
    assert!(message.contains("line 3, stream a-1"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_read_shows_is_imported_as_the_same_events() {
    let fake = Fake::start().await;
    let args = ["append", "a-1", "--type", "T", "--data", "\u{1}", "--content-type", "text/plain"];
    assert_eq!(run(&fake, &args, "").await.code, 0);
    let metadata = ["append", "a-1", "--type", "T", "--metadata", "{\"by\":1.50}"];
    assert_eq!(run(&fake, &metadata, "").await.code, 0);
    let read = run(&fake, &["read", "a-1"], "").await.out;
    let other = Fake::start().await;
    assert_eq!(run(&other, &["import"], &read).await.code, 0);
    assert_eq!(run(&other, &["read", "a-1"], "").await.out, read);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_shown() {
    let fake = Fake::start().await;
    let status = run(&fake, &["status"], "").await;
    assert_eq!(status.code, 0, "{}", status.err);
    assert_eq!(status.lines()[0]["answers"], true);
    assert_eq!(status.lines()[0]["gossip"], "live");
    assert_eq!(status.lines()[0]["gossip_since_unix_ms"], 7);
    let topology = run(&fake, &["topology"], "").await;
    let kinds: Vec<_> = topology.lines().iter().map(|l| l["kind"].clone()).collect();
    assert_eq!(kinds, ["cluster", "member", "partition"]);
    let bootstrap = run(&fake, &["bootstrap", "--cluster-id", ID], "").await;
    assert_eq!(bootstrap.lines()[0]["cluster_id"], ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_measured() {
    let fake = Fake::start().await;
    let short =
        ["--streams", "10", "--in-flight", "4", "--seconds", "0.2", "--warmup-seconds", "0"];
    for load in [&["lookup"][..], &["append"], &["append", "--pipelined"]] {
        let ended = run(&fake, &[&["bench"], load, &short].concat(), "").await;
        assert_eq!(ended.code, 0, "{}", ended.err);
        let report = &ended.lines()[0];
        assert!(report["calls"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["errors"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let fake = Fake::start().await;
    let line =
        |i: usize| format!("{{\"stream\":\"a-1\",\"type\":\"T\",\"data\":\"{:0>900}\"}}\n", i);
    let input: String = (0..500).map(line).collect();
    assert_eq!(run(&fake, &["import"], &input).await.code, 0);
    let script =
        format!("{{ {} read a-1; echo $? >&2; }} | head -n 1", env!("CARGO_BIN_EXE_ringfold"));
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &script]).env("RINGFOLD_ENDPOINTS", &fake.url);
    let output = command.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "0");
}
