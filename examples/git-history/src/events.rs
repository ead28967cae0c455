//! Turns a commit's change of a path into events: their streams, ids and data. Pure.
//!
//! The data are merge patches: folded, they give `{path, blob, mode, deleted, commit, ...}`, the
//! path as the last commit left it.
use crate::log::{Change, Commit, Kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// All streams are `file-<path>`.
pub const CATEGORY: &str = "file";
const STREAM_MAX_BYTES: usize = 1024;
const HASHED: &str = "sha256:";
/// Long texts are cut: an event stays far below its limit whatever is in the repository.
const TEXT_MAX_CHARS: usize = 200;
/// Namespace of event ids (version 5 UUIDs).
const NAMESPACE: Uuid = Uuid::from_u128(0x2b0f_6c5e_93a1_4d7e_8c41_6769_7468_6973);

/// An event to append.
#[derive(Clone, Debug, PartialEq)]
pub struct PathEvent {
    pub stream: String,
    pub id: Uuid,
    /// `Added`, `Modified`, `Renamed` or `Deleted`.
    pub event_type: &'static str,
    pub data: Value,
}

/// The stream of a path: `file-<path>`, or `file-sha256:<hash>` where the path cannot be a name.
pub fn stream(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text)
            if !text.is_empty()
                && CATEGORY.len() + 1 + text.len() <= STREAM_MAX_BYTES
                && !text.chars().any(char::is_control)
                // A file of such a name must not meet a hashed one.
                && !text.starts_with(HASHED) =>
        {
            format!("{CATEGORY}-{text}")
        }
        _ => {
            let hash = Sha256::digest(path);
            let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            format!("{CATEGORY}-{HASHED}{hex}")
        }
    }
}

/// The events of one change: one, or for a rename two, the old path's first.
pub fn events(commit: &Commit, change: &Change) -> Vec<PathEvent> {
    match &change.kind {
        Kind::Added => vec![event(commit, change, &change.path, "Added", None, None)],
        Kind::Modified => vec![event(commit, change, &change.path, "Modified", None, None)],
        Kind::Deleted => vec![event(commit, change, &change.path, "Deleted", None, None)],
        Kind::Copied { from } => {
            vec![event(commit, change, &change.path, "Added", Some(from), None)]
        }
        Kind::Renamed { from } => vec![
            event(commit, change, from, "Deleted", None, Some(&change.path)),
            event(commit, change, &change.path, "Renamed", Some(from), None),
        ],
    }
}

fn event(
    commit: &Commit,
    change: &Change,
    path: &[u8],
    event_type: &'static str,
    from: Option<&[u8]>,
    to: Option<&[u8]>,
) -> PathEvent {
    let deleted = event_type == "Deleted";
    let mut data = json!({
        "change": event_type,
        "deleted": deleted,
        "commit": commit.id,
        "author": {"name": cut(&commit.author_name), "email": cut(&commit.author_email)},
        "time": commit.time,
        "subject": cut(&commit.subject),
        // null takes out what an earlier event said.
        "blob": (!deleted).then_some(&change.blob),
        "mode": (!deleted).then_some(&change.mode),
    });
    put_path(&mut data, "path", Some(path));
    put_path(&mut data, "renamed_from", from);
    put_path(&mut data, "renamed_to", to);
    PathEvent { stream: stream(path), id: id(&commit.id, event_type, path), event_type, data }
}

/// From commit, role and path, so that loading again stores nothing twice.
fn id(commit: &str, event_type: &str, path: &[u8]) -> Uuid {
    let mut name = Vec::with_capacity(commit.len() + event_type.len() + path.len() + 2);
    for part in [commit.as_bytes(), event_type.as_bytes(), path] {
        name.extend_from_slice(part);
        name.push(0);
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

/// A path under `key`, or in base64 under `<key>_base64` where it is not UTF-8. The path of a
/// stream never changes, so only the other two need to be taken out again.
fn put_path(data: &mut Value, key: &str, path: Option<&[u8]>) {
    let encoded = format!("{key}_base64");
    let (text, base64) = match path.map(std::str::from_utf8) {
        Some(Ok(text)) => (json!(text), Value::Null),
        Some(Err(_)) => {
            (Value::Null, json!(path.map(|bytes| BASE64.encode(bytes)).unwrap_or_default()))
        }
        None => (Value::Null, Value::Null),
    };
    data[key] = text;
    data[encoded] = base64;
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).collect()
}

/// A path as its state tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathState {
    pub path: Vec<u8>,
    /// None: the path is not in the tree.
    pub leaf: Option<(String, String)>,
}

/// Reads a state: mode and blob of a living path. The error says what is wrong with it.
pub fn read_state(data: &[u8]) -> Result<PathState, String> {
    let value: Value = serde_json::from_slice(data).map_err(|e| format!("no JSON: {e}"))?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let path = match (text("path"), text("path_base64")) {
        (Some(path), None) => path.as_bytes().to_vec(),
        (None, Some(path)) => {
            BASE64.decode(path).map_err(|e| format!("path_base64 is no base64: {e}"))?
        }
        _ => return Err("it has neither path nor path_base64".into()),
    };
    let leaf = match value.get("deleted").and_then(Value::as_bool) {
        Some(true) => None,
        Some(false) => Some((
            text("mode").ok_or("it has no mode")?.into(),
            text("blob").ok_or("it has no blob")?.into(),
        )),
        None => return Err("it does not say whether it is deleted".into()),
    };
    Ok(PathState { path, leaf })
}

#[cfg(test)]
pub mod tests;
