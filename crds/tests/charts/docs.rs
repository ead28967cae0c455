//! What the documentation says of charts and conditions is so.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ringfold_crds::charts::charts;
use serde_json::Value;

use crate::helm::root;

/// Markdown files under `docs` that are about Kubernetes, and the README.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    for folder in ["docs", "docs/operations"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        paths.extend(entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()));
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// What stands between `open` and `close`, each time.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[test]
fn every_value_that_the_docs_set_exists() {
    let charts = charts().unwrap();
    let has = |name: &str| {
        charts.iter().any(|chart| {
            name.split('.').try_fold(&chart.schema, |s, n| s["properties"].get(n)).is_some()
        })
    };
    assert!(has("global.imageRegistry") && !has("global.imageRegistri"));
    let mut seen = 0;
    for (path, text) in pages() {
        for set in between(&text, "--set ", "=") {
            let name = set.trim_start_matches('\'');
            assert!(has(name), "{}: --set {name}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (path, text) in pages() {
        for link in between(&text, "](", ")") {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.starts_with("http") {
                continue;
            }
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap_or(Path::new("")).join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let headings = std::fs::read_to_string(&target).unwrap();
                let named =
                    headings.lines().filter(|l| l.starts_with('#')).any(|l| slug(l) == anchor);
                assert!(named, "{}: {link}", path.display());
            }
        }
    }
}

fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-'].contains(c));
    kept.collect::<String>().replace(' ', "-")
}

/// Every reason that the operator gives, and every kind of operation, is looked up somewhere.
#[test]
fn every_reason_of_a_condition_has_its_row() {
    let docs: String = std::fs::read_dir(root().join("docs/operations"))
        .unwrap()
        .map(|page| std::fs::read_to_string(page.unwrap().path()).unwrap())
        .collect();
    let reasons = reasons();
    assert!(reasons.contains("DrainImpossible") && reasons.contains("AsAsked"), "{reasons:?}");
    let missing: Vec<_> = reasons.iter().filter(|r| !docs.contains(&format!("`{r}`"))).collect();
    assert!(missing.is_empty(), "docs/operations does not say what these mean: {missing:?}");
}

/// Words in quotes right after what makes a condition or a stop of the operator.
fn reasons() -> BTreeSet<String> {
    let operator = root().join("operator/src");
    let mut files = vec![operator.join("status.rs"), operator.join("decide.rs")];
    files.extend(std::fs::read_dir(operator.join("decide")).unwrap().map(|e| e.unwrap().path()));
    let mut reasons = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for call in ["says(", "stall(", "Stalled {", "map_or("] {
            for after in text.split(call).skip(1) {
                // The reason is the call's first text.
                let words = after.split(['\n', ';']).take(5).collect::<Vec<_>>().join(" ");
                reasons.extend(words.split('"').nth(1).filter(|w| is_word(w)).map(str::to_owned));
            }
        }
    }
    let schema = serde_json::to_value(ringfold_crds::generate::definition().unwrap()).unwrap();
    let versions = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let kinds = &versions["properties"]["status"]["properties"]["operation"]["properties"]["type"];
    let kinds = kinds["enum"].as_array().unwrap().iter().filter_map(Value::as_str);
    reasons.extend(kinds.map(str::to_owned));
    reasons
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.len() > 3
        && text.chars().all(|c| c.is_ascii_alphabetic())
}

/// A test on a real Kubernetes runs them one after the other.
#[test]
fn the_quick_start_is_made_of_commands() {
    let text = std::fs::read_to_string(root().join("docs/quickstart-kubernetes.md")).unwrap();
    let mut seen = 0;
    for block in between(&text, "```sh\n", "```") {
        for line in block.lines() {
            let known = ["kubectl ", "helm ", "export "].iter().any(|c| line.starts_with(c));
            assert!(known && !line.ends_with('\\'), "{line}");
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen}");
    for path in text.split_whitespace().filter(|w| w.starts_with("charts/")) {
        assert!(root().join(path).exists(), "{path}");
    }
}
