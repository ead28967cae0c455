//! Against a repository that the test makes itself.
use super::*;
use crate::events::{events, read_state, tests::fold};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        made.git(&["init", "-q", "-b", "main", "."]);
        made
    }

    fn git(&self, args: &[&str]) -> String {
        let out = Command::new("git")
            .arg("-C")
            .arg(self.0.path())
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_AUTHOR_NAME", "Ann \"A\" Ünicode")
            .env("GIT_AUTHOR_EMAIL", "ann@example.org")
            .env("GIT_AUTHOR_DATE", "2026-01-02T03:04:05+01:00")
            .env("GIT_COMMITTER_NAME", "C")
            .env("GIT_COMMITTER_EMAIL", "c@example.org")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "git {args:?}: {said}");
        String::from_utf8(out.stdout).unwrap().trim().into()
    }

    fn path(&self, name: &[u8]) -> PathBuf {
        self.0.path().join(OsStr::from_bytes(name))
    }

    fn write(&self, name: &[u8], content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn commit(&self, subject: &str) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]);
    }

    fn open(&self) -> Repository {
        Repository::open(self.0.path()).unwrap()
    }

    /// What the events of the history fold to.
    fn folded(&self) -> Folded {
        let mut commit = None;
        let mut types = Vec::new();
        let mut all = Vec::new();
        self.open()
            .history(|item| {
                match item {
                    Item::Commit(c) => commit = Some(c),
                    Item::Change(change) => {
                        for event in events(commit.as_ref().unwrap(), &change) {
                            types.push(format!("{} {}", event.event_type, event.stream));
                            all.push(event);
                        }
                    }
                }
                true
            })
            .unwrap();
        let mut ids: Vec<_> = all.iter().map(|e| (e.stream.clone(), e.id)).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all.len(), "ids are unique within a stream");
        let live = fold(all)
            .into_iter()
            .filter_map(|(stream, state)| {
                let state = read_state(state.to_string().as_bytes()).unwrap();
                assert_eq!(crate::events::stream(&state.path), stream);
                state.leaf.map(|leaf| (state.path, leaf))
            })
            .collect();
        Folded { types, live }
    }

    fn assert_equal_to_tree(&self) -> Folded {
        let tree: BTreeMap<_, _> =
            self.open().tree().unwrap().into_iter().map(|l| (l.path, (l.mode, l.blob))).collect();
        let folded = self.folded();
        assert_eq!(folded.live, tree);
        folded
    }
}

struct Folded {
    types: Vec<String>,
    live: BTreeMap<Vec<u8>, (String, String)>,
}

#[test]
fn a_history_folds_to_the_tree() {
    let made = Made::new();
    made.write(b"a", "one\ntwo\nthree\nfour\n");
    made.write(b"dir/b", "b");
    made.write(b"script", "#!/bin/sh\n");
    made.commit("first");
    made.write(b"a", "one\ntwo\nthree\nfive\n");
    fs::set_permissions(made.path(b"script"), fs::Permissions::from_mode(0o755)).unwrap();
    made.commit("content, and a mode");
    made.git(&["mv", "a", "dir/moved"]);
    fs::remove_file(made.path(b"dir/b")).unwrap();
    made.commit("a rename and a delete");
    made.commit("nothing");
    fs::remove_file(made.path(b"script")).unwrap();
    symlink("dir/moved", made.path(b"script")).unwrap();
    made.write(b"a/b", "a folder where a file was");
    made.commit("a type");
    made.write(b"dir/b", "back again");
    made.commit("what was deleted comes back");
    let folded = made.assert_equal_to_tree();
    assert_eq!(
        folded.types,
        [
            "Added file-a",
            "Added file-dir/b",
            "Added file-script",
            "Modified file-a",
            "Modified file-script",
            "Deleted file-dir/b",
            "Deleted file-a",
            "Renamed file-dir/moved",
            "Added file-a/b",
            "Modified file-script",
            "Added file-dir/b",
        ]
    );
    assert_eq!(folded.live[&b"script"[..]].0, "120000");
}

#[test]
fn a_merge_counts_as_what_it_changed_against_its_first_parent() {
    let made = Made::new();
    made.write(b"base", "1");
    made.write(b"gone", "to be deleted on the side");
    made.commit("base");
    made.git(&["checkout", "-q", "-b", "side"]);
    made.write(b"side", "side");
    made.git(&["rm", "-q", "gone"]);
    made.commit("side 1");
    made.write(b"side", "side, again");
    made.commit("side 2");
    made.git(&["checkout", "-q", "main"]);
    made.write(b"base", "2");
    made.commit("main");
    made.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    let folded = made.assert_equal_to_tree();
    // The side's own commits are not in the first-parent history: its file is added once.
    let side: Vec<_> = folded.types.iter().filter(|t| t.contains("side")).collect();
    assert_eq!(side, ["Added file-side"]);
    assert!(folded.types.contains(&"Deleted file-gone".to_string()));
    assert_eq!(made.open().count_commits().unwrap(), 3);
}

#[test]
fn odd_names_are_paths_like_any_other() {
    let made = Made::new();
    let names: &[&[u8]] = &[
        b"new\nline",
        b"tab\tand \"quotes\" and 'more'",
        b"\xff\xfe not UTF-8",
        "ünï/cödé/日本語 🦀".as_bytes(),
        b":100644 100644 0 0 A",
        b"commit 0123456789012345678901234567890123456789",
        b"-rf",
        b" leading and trailing ",
        b"sha256:0000",
        b"back\\slash",
    ];
    for name in names {
        made.write(name, &format!("content of {}", name.escape_ascii()));
    }
    made.commit(":100644 a subject\nthat looks like something else");
    for name in names {
        let new = [b"renamed/".as_slice(), name].concat();
        fs::create_dir_all(made.path(&new).parent().unwrap()).unwrap();
        fs::rename(made.path(name), made.path(&new)).unwrap();
    }
    made.commit("commit of renames");
    let folded = made.assert_equal_to_tree();
    assert_eq!(folded.live.len(), names.len());
    assert_eq!(folded.types.iter().filter(|t| t.starts_with("Renamed")).count(), names.len());
}

#[test]
fn a_submodule_is_its_commit() {
    let made = Made::new();
    made.write(b"a", "a");
    made.commit("first");
    let commit = made.git(&["rev-parse", "HEAD"]);
    let add = format!("160000,{commit},lib");
    made.git(&["update-index", "--add", "--cacheinfo", &add]);
    made.git(&["commit", "-q", "-m", "a submodule"]);
    let folded = made.assert_equal_to_tree();
    assert_eq!(folded.live[&b"lib"[..]], ("160000".to_string(), commit));
}

#[test]
fn a_configuration_of_the_user_changes_nothing() {
    let made = Made::new();
    made.write(b"dir/a", "some content that is long enough\n");
    made.commit("first");
    fs::copy(made.path(b"dir/a"), made.path(b"copy")).unwrap();
    made.write(b"dir/a", "some content that is long enough\nand more\n");
    made.commit("second");
    for (key, value) in [
        ("diff.renames", "copies"),
        ("diff.relative", "true"),
        ("diff.ignoreSubmodules", "all"),
        ("log.showSignature", "true"),
        ("log.showRoot", "false"),
        ("log.decorate", "full"),
        ("log.date", "relative"),
        ("log.abbrevCommit", "true"),
        ("core.quotePath", "true"),
        ("color.ui", "always"),
    ] {
        made.git(&["config", key, value]);
    }
    made.assert_equal_to_tree();
    // From within a folder, too.
    let inner = Repository::open(&made.path(b"dir")).unwrap();
    assert_eq!(inner.tree().unwrap(), made.open().tree().unwrap());
}

#[test]
fn no_repository_and_no_commit_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let error = Repository::open(folder.path()).unwrap_err();
    assert!(matches!(error, GitError::NoRepository { .. }), "{error}");
    let made = Made::new();
    let error = Repository::open(made.0.path()).unwrap_err();
    assert!(matches!(error, GitError::Empty(_)), "{error}");
    assert!(error.to_string().contains("no commit yet"), "{error}");
}

#[test]
fn who_asks_may_stop_early() {
    let made = Made::new();
    for i in 0..20 {
        made.write(b"a", &i.to_string());
        made.commit("more");
    }
    let mut seen = 0;
    made.open()
        .history(|_| {
            seen += 1;
            seen < 3
        })
        .unwrap();
    assert_eq!(seen, 3);
}
