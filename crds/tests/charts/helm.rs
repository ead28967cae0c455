//! Runs Helm on a chart of this checkout.
use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::Value;

/// Root of the checkout.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// RINGFOLD_HELM, or what tests/kubernetes has built into the cache, or what is in PATH.
fn find() -> Option<PathBuf> {
    let named = std::env::var_os("RINGFOLD_HELM").map(PathBuf::from);
    let cache = std::env::var_os("RINGFOLD_CACHE").map(PathBuf::from).or_else(|| {
        let above = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let above = above.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(above?.join("ringfold"))
    });
    let built = cache.and_then(|c| newest_helm(&c.join("kubernetes"), 3));
    let in_path = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|p| p.join("helm")).find(|p| p.is_file())
    });
    named.or(built).or(in_path)
}

fn newest_helm(folder: &Path, depth: u32) -> Option<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            found.extend(newest_helm(&path, depth - 1));
        } else if entry.file_name() == "helm" && path.is_file() {
            found.push(path);
        }
    }
    found.into_iter().max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok())
}

/// `None`: this test is left out, which was said.
pub fn helm() -> Option<&'static Path> {
    static HELM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = HELM.get_or_init(|| {
        let found = find();
        if found.is_none() {
            let text = "LEFT OUT: what the charts render. No Helm in RINGFOLD_HELM, the cache of tests/kubernetes or PATH";
            // Not by a macro, whose text the runner keeps to itself when a test passes.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        found
    });
    assert!(
        found.is_some() || std::env::var_os("RINGFOLD_REQUIRE_HELM").is_none(),
        "RINGFOLD_REQUIRE_HELM is set and there is no Helm: set RINGFOLD_HELM to it"
    );
    found.as_deref()
}

/// What Helm says of a chart: its stdout, or its stderr where it refuses.
pub fn run(helm: &Path, args: &[&str], chart: &str, values: &Value) -> Result<String, String> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let home = std::env::temp_dir().join(format!("ringfold-helm-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&home).unwrap();
    let file = home.join("values.json");
    std::fs::write(&file, values.to_string()).unwrap();
    let done = Command::new(helm)
        .args(args)
        .arg(root().join("charts").join(chart))
        .arg("--values")
        .arg(&file)
        .env_remove("KUBECONFIG")
        .env("HOME", &home)
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_DATA_HOME", home.join("data"))
        .output();
    std::fs::remove_dir_all(&home).unwrap();
    let done = done.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match done.status.success() {
        true => Ok(text(done.stdout)),
        false => Err(text(done.stderr)),
    }
}

/// The rendered manifests, as Helm prints them: the release `test` in the namespace `system`.
pub fn rendered(helm: &Path, chart: &str, values: &Value) -> Result<String, String> {
    run(helm, &["template", "test", "--namespace", "system"], chart, values)
}

/// The rendered manifests of values that are right.
pub fn manifests(helm: &Path, chart: &str, values: &Value) -> Vec<Value> {
    let text = rendered(helm, chart, values).unwrap_or_else(|e| panic!("{values}: {e}"));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents.into_iter().filter(|d| !d.is_null()).collect()
}

/// Those of one kind.
pub fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> Vec<&'a Value> {
    manifests.iter().filter(|m| m["kind"] == kind).collect()
}

/// Calls `visit` with every value under `value`, and its path.
pub fn walk<'a>(path: &str, value: &'a Value, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(path, value);
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                walk(&format!("{path}.{name}"), inner, visit);
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                walk(&format!("{path}[{i}]"), inner, visit);
            }
        }
        _ => {}
    }
}
