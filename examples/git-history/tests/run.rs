//! `git-history` as a process, against a cluster in memory.
#![allow(clippy::unwrap_used)] // A test: clippy's own allowance does not reach its helpers.
#[path = "../../../cli/tests/commands/fake/mod.rs"]
mod fake;

use fake::Fake;
use std::path::Path;
use std::process::{Command, Output};

fn git(repo: &Path, args: &[&str]) {
    let mut command = Command::new("git");
    command.arg("-C").arg(repo);
    for (key, value) in [("user.name", "A"), ("user.email", "a@example.org")] {
        command.args(["-c", &format!("{key}={value}")]);
    }
    let output = command.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {said}");
}

fn commit(repo: &Path, subject: &str) {
    git(repo, &["add", "-A"]);
    git(repo, &["commit", "-q", "-m", subject]);
}

async fn git_history(fake: &Fake, what: &str, repo: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_git-history"));
    command.arg(what).arg("--repo").arg(repo).env("RINGFOLD_ENDPOINTS", &fake.url);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stdout, stderr } = output.await.unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_loaded_checked_loaded_again_and_goes_on() {
    let fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path();
    git(repo, &["init", "-q", "."]);
    let (code, text) = git_history(&fake, "run", repo).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("no commit yet"), "{text}");

    for i in 0..50 {
        std::fs::write(repo.join(format!("file {i}")), format!("content {i}")).unwrap();
    }
    commit(repo, "first");
    let (code, text) = git_history(&fake, "check", repo).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("50 differ"), "{text}");
    for _ in 0..2 {
        let (code, text) = git_history(&fake, "run", repo).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("1 commits"), "{text}");
        assert!(text.contains("ringfold lookup 'file-file 0'"), "{text}");
        assert_eq!(fake.count(), 50);
    }

    git(repo, &["mv", "file 1", "moved\nfile"]);
    std::fs::remove_file(repo.join("file 2")).unwrap();
    commit(repo, "second");
    let (code, text) = git_history(&fake, "check", repo).await;
    assert_eq!(code, Some(1), "{text}");
    // Two that live and should not, one that is not there.
    assert!(text.contains("3 differ from git"), "{text}");
    assert!(text.contains("moved\\nfile"), "{text}");
    let (code, text) = git_history(&fake, "run", repo).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(fake.count(), 53);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cluster_and_no_repository_are_told() {
    let mut fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = git_history(&fake, "load", folder.path()).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("no git repository"), "{text}");
    let repo = folder.path();
    git(repo, &["init", "-q", "."]);
    std::fs::write(repo.join("a"), "a").unwrap();
    commit(repo, "first");
    fake.url = "http://127.0.0.1:1".into();
    let (code, text) = git_history(&fake, "check", repo).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot reach http://127.0.0.1:1"), "{text}");
}
