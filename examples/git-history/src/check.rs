//! Compares states with what git itself says of HEAD.
use crate::Fault;
use crate::events::{CATEGORY, read_state, stream};
use crate::git::Repository;
use crate::log::Shown;
use crate::tree::Leaf;
use futures::StreamExt;
use indicatif::ProgressBar;
use ringfold_client::{Client, Consistency, ListOptions, State};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const IN_FLIGHT: usize = 64;
/// Differences told in words; more are only counted.
const TOLD_MAX: usize = 20;

/// What the check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Paths of HEAD, each looked up by its name.
    pub paths: u64,
    pub lookups_took: Duration,
    /// States of the category, living or not.
    pub states: u64,
    pub differences: u64,
    pub told: Vec<String>,
    /// A few streams of HEAD, to try.
    pub samples: Vec<String>,
}

impl Report {
    fn differ(&mut self, what: String) {
        self.differences += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(what);
        }
    }
}

/// Compares the tree with the states, path for path, blob for blob, mode for mode: first each path
/// of the tree by a lookup, then all states of the category, so that none lives that git has not.
pub async fn check(
    client: &Client,
    repository: &Repository,
    bar: &ProgressBar,
) -> Result<Report, Fault> {
    let tree = {
        let repository = repository.clone();
        let tree = tokio::task::spawn_blocking(move || repository.tree());
        tree.await.map_err(|e| Fault::Reader(e.to_string()))??
    };
    bar.set_length(tree.len() as u64);
    let mut report =
        Report { paths: tree.len() as u64, samples: samples(&tree), ..Report::default() };
    let started = Instant::now();
    let mut lookups = futures::stream::iter(&tree)
        .map(|leaf| async move {
            let name = stream(&leaf.path);
            (leaf, client.lookup(&name, Consistency::Linearizable).await)
        })
        .buffer_unordered(IN_FLIGHT);
    while let Some((leaf, state)) = lookups.next().await {
        bar.inc(1);
        if let Some(difference) = compare(leaf, state?.as_ref()) {
            report.differ(difference);
        }
    }
    report.lookups_took = started.elapsed();
    let names: HashSet<String> = tree.iter().map(|leaf| stream(&leaf.path)).collect();
    let mut states = client
        .list_states(ListOptions { category: Some(CATEGORY.into()), ..ListOptions::default() });
    while let Some(state) = states.next().await {
        let state = state?;
        report.states += 1;
        if let Some(difference) = surplus(&state, names.contains(&state.stream)) {
            report.differ(difference);
        }
    }
    Ok(report)
}

/// How a path's state differs from the tree; None: not at all.
fn compare(leaf: &Leaf, state: Option<&State>) -> Option<String> {
    let path = Shown(&leaf.path);
    let Some(state) = state else {
        return Some(format!("{path}: there is no stream of it"));
    };
    let read = match good(state) {
        Ok(read) => read,
        Err(why) => return Some(format!("{path}: its state cannot be read: {why}")),
    };
    if read.path != leaf.path {
        return Some(format!("{path}: its state is of {}", Shown(&read.path)));
    }
    let Some((mode, blob)) = read.leaf else {
        return Some(format!("{path}: its state says it is deleted"));
    };
    (mode != leaf.mode || blob != leaf.blob)
        .then(|| format!("{path}: git has {} {}, its state {mode} {blob}", leaf.mode, leaf.blob))
}

/// Why a state of the category should not be there; None: it should.
fn surplus(state: &State, in_tree: bool) -> Option<String> {
    match good(state) {
        Ok(read) if read.leaf.is_some() && !in_tree => Some(format!(
            "{}: it lives, and HEAD has no such path (was another repository loaded, or history rewritten?)",
            state.stream
        )),
        Ok(_) => None,
        Err(why) => Some(format!("{}: its state cannot be read: {why}", state.stream)),
    }
}

fn good(state: &State) -> Result<crate::events::PathState, String> {
    match &state.error {
        Some(e) => Err(format!("the reducer failed: {}", e.message)),
        None => read_state(&state.data),
    }
}

/// A few paths spread over the tree.
fn samples(tree: &[Leaf]) -> Vec<String> {
    let step = (tree.len() / 3).max(1);
    (tree.iter().step_by(step).take(3)).map(|leaf| stream(&leaf.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfold_client::StateError;

    fn leaf(mode: &str, blob: &str) -> Leaf {
        Leaf { path: b"a".to_vec(), mode: mode.into(), blob: blob.into() }
    }

    fn state(data: &'static str) -> State {
        State { stream: "file-a".into(), data: data.into(), ..State::default() }
    }

    const LIVING: &str = r#"{"path":"a","deleted":false,"mode":"100644","blob":"b1"}"#;
    const DELETED: &str = r#"{"path":"a","deleted":true}"#;
    const OTHER: &str = r#"{"path":"b","deleted":false,"mode":"100644","blob":"b1"}"#;

    #[test]
    fn every_way_to_differ_is_told() {
        let same = leaf("100644", "b1");
        assert_eq!(compare(&same, Some(&state(LIVING))), None);
        for (leaf, state, told) in [
            (&same, None, "no stream"),
            (&same, Some(state("[]")), "cannot be read"),
            (&same, Some(state(OTHER)), "is of \"b\""),
            (&same, Some(state(DELETED)), "deleted"),
            (&leaf("100755", "b1"), Some(state(LIVING)), "git has 100755 b1"),
            (&leaf("100644", "b2"), Some(state(LIVING)), "git has 100644 b2"),
        ] {
            let difference = compare(leaf, state.as_ref()).unwrap();
            assert!(difference.contains(told), "{difference}");
        }
        let mut failed = state(LIVING);
        failed.error = Some(StateError::default());
        assert!(compare(&same, Some(&failed)).is_some());
    }

    #[test]
    fn what_lives_must_be_in_the_tree() {
        assert_eq!(surplus(&state(LIVING), true), None);
        assert_eq!(surplus(&state(DELETED), false), None);
        assert!(surplus(&state(LIVING), false).is_some());
        assert!(surplus(&state("x"), true).is_some());
    }

    #[test]
    fn samples_are_a_few() {
        let tree = vec![leaf("100644", "b"); 10];
        assert_eq!(samples(&tree).len(), 3);
        assert_eq!(samples(&tree[..1]).len(), 1);
        assert!(samples(&[]).is_empty());
    }
}
