use super::*;

fn plan(folder: &Path) -> NodePlan {
    NodePlan {
        number: 0,
        name: "node-0".into(),
        client_port: 1,
        peer_port: 2,
        gossip_port: 3,
        http_port: 4,
        tls: None,
        gossip_key_file: folder.join("gossip.key"),
        data_dir: folder.join("d"),
        log_file: folder.join("node-0.log"),
        seeds: vec![],
    }
}

/// A stand-in for `ringfold-node`. Another process writes it: a child that another test starts meanwhile
/// would have the file open for writing for a moment, and what is open so cannot be run.
fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("script");
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$2" && chmod 0755 "$2""#;
    let mut command = std::process::Command::new("sh");
    assert!(command.args(["-c", write, "sh", text]).arg(&path).status().unwrap().success());
    path
}

#[tokio::test]
async fn a_node_that_dies_is_told_with_the_end_of_this_runs_log() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path());
    std::fs::write(&plan.log_file, "from an earlier run\n").unwrap();
    let binary = script(folder.path(), "echo what went wrong >&2; exit 4");
    let mut nodes = Nodes::start(&[plan], &binary).unwrap();
    let death = nodes.next_end().await;
    assert!(death.message.starts_with("node-0 "), "{}", death.message);
    assert!(death.message.contains("exit status: 4"), "{}", death.message);
    assert!(death.message.contains("what went wrong"), "{}", death.message);
    assert!(!death.message.contains("earlier"), "{}", death.message);
    assert!(!nodes.any_left());
}

#[tokio::test]
async fn nodes_end_when_asked_and_are_killed_when_they_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let polite = script(folder.path(), "trap 'exit 0' TERM; while :; do sleep 0.05; done");
    let mut nodes = Nodes::start(&[plan(folder.path())], &polite).unwrap();
    // Let it set its trap.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let complaints = nodes.stop(std::future::pending()).await;
    assert_eq!(complaints, Vec::<String>::new());

    let deaf = script(folder.path(), "trap '' TERM; while :; do sleep 0.05; done");
    let mut nodes = Nodes::start(&[plan(folder.path())], &deaf).unwrap();
    let pid = Pid::from_raw(nodes.pid(0).unwrap() as i32).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let complaints = nodes.stop(std::future::ready(())).await;
    assert_eq!(complaints, ["node-0 did not end and was killed"]);
    assert!(rustix::process::test_kill_process(pid).is_err());
}

#[tokio::test]
async fn a_removed_node_ends_without_a_fault_and_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let removed = script(folder.path(), "exit 5");
    let mut nodes = Nodes::start(&[plan(folder.path())], &removed).unwrap();
    let end = nodes.next_end().await;
    assert!(end.is_removed, "{end:?}");
    assert!(!nodes.any_left());
    assert!(!nodes.expect_end(0, STOP_WITHIN));
}

#[tokio::test]
async fn a_removed_node_that_stays_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let deaf = script(folder.path(), "trap '' TERM; while :; do sleep 0.1; done");
    let mut nodes = Nodes::start(&[plan(folder.path())], &deaf).unwrap();
    assert!(nodes.expect_end(0, Duration::from_millis(100)));
    assert!(nodes.next_end().await.is_removed);
    assert!(!nodes.any_left());
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut plan = plan(Path::new("/d"));
    plan.client_port = taken.local_addr().unwrap().port();
    let error = check_ports(&[plan.clone()]).unwrap_err();
    assert!(error.message.contains(&plan.client_port.to_string()), "{error:?}");
    assert!(error.message.contains("node-0"), "{error:?}");
}

#[tokio::test]
async fn nodes_share_the_cores_and_one_that_is_added_has_its_share() {
    let folder = tempfile::tempdir().unwrap();
    let binary = script(folder.path(), "echo \"has $TOKIO_WORKER_THREADS.\"; exit 3");
    let plan_of = |number| NodePlan {
        number,
        log_file: folder.path().join(format!("node-{number}.log")),
        ..plan(folder.path())
    };
    let mut nodes = Nodes::start(&[plan_of(0), plan_of(1)], &binary).unwrap();
    nodes.add(&plan_of(2), &binary).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let said = |sharing: usize| match std::env::var(WORKERS_VARIABLE) {
        // What whoever runs this has set is theirs to choose.
        Ok(set) => format!("has {set}."),
        Err(_) => format!("has {}.", (cores / sharing).max(1)),
    };
    for _ in 0..3 {
        let end = nodes.next_end().await;
        let sharing = if end.number == 2 { 3 } else { 2 };
        assert!(end.message.contains(&said(sharing)), "{}", end.message);
    }
}
