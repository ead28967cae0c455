//! Reads JSON lines and cuts them into appends. Pure: the same input gives the same appends and the
//! same ids, so an import can be run again and stores nothing twice.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringfold_client::{NewEvent, Uuid};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};

/// Lines are looked at in windows: within one, the events of a stream become one append.
const WINDOW_LINES: usize = 8192;
const WINDOW_BYTES: usize = 8 << 20;
/// Far below what a cluster takes (1,024 events, 4 MiB), so that no setting there matters.
const APPEND_EVENTS_MAX: usize = 512;
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Namespace of derived event ids (version 5 UUIDs).
const NAMESPACE: Uuid = Uuid::from_u128(0x86a9_4d0f_51c2_4b0e_9f37_696d_706f_7274);

/// A line, as it is written; and as `ringfold read -o json` shows it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    stream: String,
    r#type: String,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    data_base64: Option<String>,
    #[serde(default)]
    id: Option<Uuid>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(default)]
    metadata_base64: Option<String>,
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    content_type: Option<String>,
    // What the server has said of an event that was read.
    #[serde(default, rename = "revision")]
    _revision: Option<IgnoredAny>,
    #[serde(default, rename = "position")]
    _position: Option<IgnoredAny>,
    #[serde(default, rename = "recorded_at_ms")]
    _recorded_at_ms: Option<IgnoredAny>,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct LineError {
    /// Counted from 1.
    pub line: u64,
    pub fault: String,
}

/// An event of the input.
#[derive(Debug)]
pub struct InputEvent {
    pub line: u64,
    pub stream: String,
    pub event: NewEvent,
    bytes: usize,
}

/// Reads one line, without its end; None for an empty one. `source` names the input: equal lines of
/// two sources are two events.
pub fn read_line(line: u64, text: &[u8], source: &str) -> Result<Option<InputEvent>, LineError> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let fail = |fault: String| LineError { line, fault };
    let read: Line = serde_json::from_slice(text).map_err(|e| fail(e.to_string()))?;
    let data = bytes(read.data, read.data_base64, "data").map_err(fail)?;
    let metadata = bytes(read.metadata, read.metadata_base64, "metadata").map_err(fail)?;
    let id = read.id.unwrap_or_else(|| derived_id(line, text, source));
    let size = data.as_ref().map_or(0, Vec::len) + metadata.as_ref().map_or(0, Vec::len);
    let mut event = NewEvent::new(read.r#type, data.unwrap_or_else(|| b"{}".to_vec()))
        .id(id)
        .schema_version(read.schema_version);
    if let Some(content_type) = read.content_type {
        event = event.content_type(content_type);
    }
    if let Some(metadata) = metadata {
        event = event.metadata(metadata);
    }
    Ok(Some(InputEvent { line, stream: read.stream, event, bytes: size }))
}

fn bytes(
    json: Option<&RawValue>,
    base64: Option<String>,
    field: &str,
) -> Result<Option<Vec<u8>>, String> {
    match (json, base64) {
        (Some(_), Some(_)) => Err(format!("it has both {field} and {field}_base64")),
        (Some(json), None) => Ok(Some(json.get().as_bytes().to_vec())),
        (None, Some(base64)) => match BASE64.decode(base64) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) => Err(format!("{field}_base64 is no base64: {e}")),
        },
        (None, None) => Ok(None),
    }
}

/// From the line, its number and the name of its source.
fn derived_id(line: u64, text: &[u8], source: &str) -> Uuid {
    let mut name = Vec::with_capacity(source.len() + 9 + text.len());
    name.extend_from_slice(source.as_bytes());
    name.push(0);
    name.extend_from_slice(&line.to_le_bytes());
    name.extend_from_slice(text);
    Uuid::new_v5(&NAMESPACE, &name)
}

/// One append: events of one stream, in the order of the input.
#[derive(Debug)]
pub struct Cut {
    pub stream: String,
    pub events: Vec<NewEvent>,
    /// Line of each event.
    pub lines: Vec<u64>,
}

/// Collects events into windows.
#[derive(Default)]
pub struct Cutter {
    open: HashMap<String, Open>,
    cuts: Vec<Cut>,
    lines: usize,
    bytes: usize,
}

/// The append of a stream that events are still put into.
struct Open {
    cut: usize,
    bytes: usize,
    ids: HashSet<Uuid>,
}

impl Cutter {
    /// Takes the next event; returns the window's appends when it is full.
    pub fn push(&mut self, event: InputEvent) -> Option<Vec<Cut>> {
        self.lines += 1;
        self.bytes += event.bytes;
        let id = event.event.get_id();
        let room = match self.open.get(&event.stream) {
            Some(open) => {
                open.ids.len() < APPEND_EVENTS_MAX
                    && open.bytes + event.bytes <= APPEND_BYTES_MAX
                    // An id may not stand twice in one append.
                    && !open.ids.contains(&id)
            }
            None => false,
        };
        if !room {
            let open = Open { cut: self.cuts.len(), bytes: 0, ids: HashSet::new() };
            self.cuts.push(Cut {
                stream: event.stream.clone(),
                events: Vec::new(),
                lines: Vec::new(),
            });
            self.open.insert(event.stream.clone(), open);
        }
        if let Some(open) = self.open.get_mut(&event.stream) {
            open.bytes += event.bytes;
            open.ids.insert(id);
            let cut = &mut self.cuts[open.cut];
            cut.events.push(event.event);
            cut.lines.push(event.line);
        }
        if self.lines >= WINDOW_LINES || self.bytes >= WINDOW_BYTES {
            return self.finish();
        }
        None
    }

    /// The appends of the last window.
    pub fn finish(&mut self) -> Option<Vec<Cut>> {
        let window = std::mem::take(self);
        (!window.cuts.is_empty()).then_some(window.cuts)
    }
}

#[cfg(test)]
mod tests;
