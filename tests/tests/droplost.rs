//! The shim that drops what was not synced, on small programs whose outcome is known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringfold_tests::shim::{Loss, Shim, Survivors, library};

/// A program of steps: it does each of its arguments in order.
const STEPS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int fd = -1;
static void must(int ok, const char *what) { if (!ok) { perror(what); exit(9); } }
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    char *op = argv[i];
    if (!strcmp(op, "open")) { if (fd >= 0) close(fd); fd = open(argv[++i], O_RDWR | O_CREAT, 0644); must(fd >= 0, op); }
    else if (!strcmp(op, "append")) { if (fd >= 0) close(fd); fd = open(argv[++i], O_WRONLY | O_CREAT | O_APPEND, 0644); must(fd >= 0, op); }
    else if (!strcmp(op, "trunc")) { if (fd >= 0) close(fd); fd = open(argv[++i], O_RDWR | O_CREAT | O_TRUNC, 0644); must(fd >= 0, op); }
    else if (!strcmp(op, "write")) { char *s = argv[++i]; must(write(fd, s, strlen(s)) == (ssize_t)strlen(s), op); }
    else if (!strcmp(op, "writev")) { char *s = argv[++i]; struct iovec v[2] = {{s, 1}, {s + 1, strlen(s) - 1}}; must(writev(fd, v, 2) > 0, op); }
    else if (!strcmp(op, "pwrite")) { long at = atol(argv[++i]); char *s = argv[++i]; must(pwrite(fd, s, strlen(s), at) > 0, op); }
    else if (!strcmp(op, "size")) must(ftruncate(fd, atol(argv[++i])) == 0, op);
    else if (!strcmp(op, "allocate")) must(fallocate(fd, 0, 0, atol(argv[++i])) == 0, op);
    else if (!strcmp(op, "sync")) must(fdatasync(fd) == 0, op);
    else if (!strcmp(op, "try-sync")) { if (fsync(fd) != 0) must(write(fd, "failed", 6) == 6, op); }
    else if (!strcmp(op, "range")) must(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) == 0, op);
    else if (!strcmp(op, "syncdir")) { int d = open(argv[++i], O_RDONLY | O_DIRECTORY); must(d >= 0 && fsync(d) == 0, op); close(d); }
    else if (!strcmp(op, "syncgone")) { int d = open(argv[++i], O_RDONLY | O_DIRECTORY); must(d >= 0 && rmdir(argv[i]) == 0 && fsync(d) == 0, op); close(d); }
    else if (!strcmp(op, "mkdir")) must(mkdir(argv[++i], 0755) == 0, op);
    else if (!strcmp(op, "rename")) { must(rename(argv[i + 1], argv[i + 2]) == 0, op); i += 2; }
    else if (!strcmp(op, "link")) { must(link(argv[i + 1], argv[i + 2]) == 0, op); i += 2; }
    else if (!strcmp(op, "unlink")) must(unlink(argv[++i]) == 0, op);
    else if (!strcmp(op, "stdio")) { FILE *f = fopen(argv[++i], "w"); must(f != NULL, op); fputs(argv[++i], f); fflush(f); must(fsync(fileno(f)) == 0, op); fclose(f); }
    else { fprintf(stderr, "no step %s\n", op); exit(9); }
  }
  raise(SIGKILL);
}
"#;

struct Bench {
    root: PathBuf,
    program: PathBuf,
    shim: Shim,
}

impl Bench {
    fn new(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("droplost-{name}"));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("data")).unwrap();
        let program = root.join("steps");
        fs::write(root.join("steps.c"), STEPS).unwrap();
        let built = Command::new("cc")
            .arg("-o")
            .arg(&program)
            .arg(root.join("steps.c"))
            .status()
            .expect("a C compiler: apt-get install gcc");
        assert!(built.success());
        let shim = Shim::new(&root.join("data"), &root.join("shadow"));
        Self { root, program, shim }
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Runs the steps in the data directory; the program kills itself at their end.
    fn run(&self, steps: &str) {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mut command = Command::new(&self.program);
        command
            .args(steps.split_whitespace())
            .current_dir(self.data())
            .env("RINGFOLD_SHIM_VERIFY", "1");
        self.shim.preload(&mut command, library(scratch));
        let out = command.output().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&out.status),
            Some(9),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// Files and their content after the power was lost.
    fn after_loss(&self) -> BTreeMap<String, String> {
        self.shim.drop_unsynced(Survivors::None);
        self.files()
    }

    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        collect(&self.data(), &self.data(), &mut files);
        files
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            let content = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            files.insert(name.to_string(), content);
        }
    }
}

fn expect(name: &str, steps: &str, left: &[(&str, &str)]) {
    let bench = Bench::new(name);
    bench.run(steps);
    let left: BTreeMap<String, String> =
        left.iter().map(|(n, c)| (n.to_string(), c.to_string())).collect();
    assert_eq!(bench.after_loss(), left, "after: {steps}");
}

#[test]
fn what_was_synced_stays() {
    expect("synced", "open a write one sync syncdir .", &[("a", "one")]);
}

#[test]
fn what_was_written_after_the_sync_is_gone() {
    expect("after", "open a write one sync syncdir . write two pwrite 0 X", &[("a", "one")]);
}

#[test]
fn a_file_that_was_never_synced_is_empty() {
    expect("never", "open a write one syncdir .", &[("a", "")]);
}

#[test]
fn a_file_whose_directory_was_not_synced_is_gone() {
    expect("entry", "open a write one sync", &[]);
}

#[test]
fn a_file_in_a_new_directory_needs_both_directories_synced() {
    expect("nested", "mkdir d open d/a write one sync syncdir d", &[]);
    expect("nested-both", "mkdir d open d/a write one sync syncdir d syncdir .", &[("d/a", "one")]);
}

#[test]
fn a_rename_without_a_sync_of_its_directory_is_undone() {
    expect(
        "rename",
        "open a write one sync open b write two sync syncdir . rename b a",
        &[("a", "one"), ("b", "two")],
    );
    expect(
        "rename-synced",
        "open a write one sync open b write two sync syncdir . rename b a syncdir .",
        &[("a", "two")],
    );
}

#[test]
fn a_rename_of_content_that_was_not_synced_leaves_an_empty_file() {
    expect(
        "rename-unsynced",
        "open a write one sync syncdir . open b write two rename b a syncdir .",
        &[("a", "")],
    );
}

#[test]
fn a_removed_file_is_back_until_its_directory_is_synced() {
    expect("unlink", "open a write one sync syncdir . unlink a", &[("a", "one")]);
    expect("unlink-synced", "open a write one sync syncdir . unlink a syncdir .", &[]);
}

#[test]
fn an_inode_number_used_again_does_not_show_through_the_old_name() {
    // ext4 hands the number of a removed file to the next new one.
    expect(
        "reuse",
        "open a write one sync syncdir . open z unlink a open b write two sync",
        &[("a", "one")],
    );
}

#[test]
fn hard_links_share_what_was_synced() {
    expect(
        "links",
        "mkdir d open a write one sync link a d/b syncdir d syncdir . write two",
        &[("a", "one"), ("d/b", "one")],
    );
}

#[test]
fn a_sync_through_another_descriptor_counts_for_all_writes() {
    expect(
        "descriptors",
        "open a write one open b write other open a sync syncdir .",
        &[("a", "one"), ("b", "")],
    );
}

/// As when a database is destroyed while RocksDB syncs its folder.
#[test]
fn a_folder_may_be_removed_before_its_sync() {
    expect("gone", "mkdir d syncgone d open a write x sync syncdir .", &[("a", "x")]);
}

#[test]
fn a_range_sync_promises_nothing() {
    expect("range", "open a write one syncdir . range", &[("a", "")]);
}

#[test]
fn truncation_is_undone_until_it_is_synced() {
    expect("truncate", "open a write abcdef sync syncdir . size 2", &[("a", "abcdef")]);
    expect(
        "truncate-synced",
        "open a write abcdef sync syncdir . size 2 size 4 sync",
        &[("a", "ab\0\0")],
    );
    expect("trunc-open", "open a write abcdef sync syncdir . trunc a write xy", &[("a", "abcdef")]);
    expect(
        "trunc-open-synced",
        "open a write abcdef sync syncdir . trunc a write xy sync",
        &[("a", "xy")],
    );
}

#[test]
fn allocation_ahead_and_writes_into_it_are_followed() {
    expect(
        "allocate",
        "open a allocate 8 sync syncdir . pwrite 2 xy sync pwrite 5 z",
        &[("a", "\0\0xy\0\0\0\0")],
    );
}

#[test]
fn all_kinds_of_writes_are_followed() {
    expect(
        "kinds",
        "open a write ab writev cd pwrite 6 gh sync append a write ij sync syncdir . \
         stdio s text syncdir .",
        &[("a", "abcd\0\0ghij"), ("s", "text")],
    );
}

#[test]
fn what_lay_there_before_counts_as_synced() {
    let bench = Bench::new("before");
    fs::write(bench.data().join("old"), "old").unwrap();
    bench.shim.settle();
    bench.run("open old write new open b write two sync");
    assert_eq!(bench.after_loss(), [("old".into(), "old".into())].into());
}

#[test]
fn a_second_life_after_the_loss_is_followed_too() {
    let bench = Bench::new("second");
    bench.run("open a write one sync syncdir . write two");
    assert_eq!(bench.after_loss(), [("a".into(), "one".into())].into());
    bench.run("append a write three sync write four open b write five sync");
    assert_eq!(bench.after_loss(), [("a".into(), "onethree".into())].into());
}

#[test]
fn a_sync_counts_for_what_a_life_before_wrote() {
    let bench = Bench::new("lives");
    bench.run("open a write one sync syncdir . write two");
    bench.run("append a write three sync write four");
    assert_eq!(bench.after_loss(), [("a".into(), "onetwothree".into())].into());
}

#[test]
fn what_was_lost_is_counted() {
    let bench = Bench::new("counted");
    bench.run("open a write one sync syncdir . write two open b write three sync");
    assert_eq!(bench.shim.drop_unsynced(Survivors::None), Loss { files_gone: 1, files_older: 1 });
}

#[test]
fn at_random_each_file_has_its_synced_or_its_last_content() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..24 {
        let bench = Bench::new(&format!("random-{seed}"));
        bench.run("open a write one sync syncdir . write two");
        bench.shim.drop_unsynced(Survivors::Random { seed });
        seen.insert(bench.files()["a"].clone());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["one".to_string(), "onetwo".to_string()]);
}

#[test]
fn a_sync_that_is_made_to_fail_keeps_nothing() {
    let bench = Bench::new("fail");
    bench.run("open a write one sync syncdir .");
    bench.shim.fail_syncs(true);
    bench.run("append a write two try-sync");
    assert_eq!(bench.files()["a"], "onetwofailed");
    assert_eq!(bench.after_loss(), [("a".into(), "one".into())].into());
}
