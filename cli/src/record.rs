//! What commands show. Field names are documented in docs/cli.md and never change their meaning.
use crate::output::{Record, time};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringfold_client::{RecordedEvent, RecordedEventExt, State, StateError, StreamInfo, Uuid};
use serde::Serialize;
use serde_json::value::RawValue;

/// Bytes as the document they are, where they are JSON; else in base64.
pub enum Document {
    Json(Box<RawValue>),
    Bytes(String),
}

impl Document {
    /// Numbers keep every digit: the text is passed on as it is.
    pub fn of(bytes: &[u8], content_type: &str) -> Self {
        let is_json = matches!(content_type, "" | "application/json");
        let text = std::str::from_utf8(bytes).ok().filter(|_| is_json);
        // Within JSON a newline stands only between tokens, and a record is one line.
        let line = text.map(|text| text.replace(['\n', '\r'], " "));
        match line.map(RawValue::from_string) {
            Some(Ok(json)) => Self::Json(json),
            _ => Self::Bytes(BASE64.encode(bytes)),
        }
    }

    fn split(self) -> (Option<Box<RawValue>>, Option<String>) {
        match self {
            Self::Json(json) => (Some(json), None),
            Self::Bytes(base64) => (None, Some(base64)),
        }
    }
}

fn cell(json: &Option<Box<RawValue>>, base64: &Option<String>) -> String {
    match (json, base64) {
        (Some(json), _) => json.get().to_string(),
        (None, Some(base64)) => format!("base64:{base64}"),
        (None, None) => String::new(),
    }
}

/// An event, of `read`.
#[derive(Serialize)]
pub struct EventRecord {
    stream: String,
    revision: u64,
    position: u64,
    recorded_at_ms: i64,
    r#type: String,
    id: Uuid,
    schema_version: u32,
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
}

impl From<RecordedEvent> for EventRecord {
    fn from(event: RecordedEvent) -> Self {
        let (data, data_base64) = Document::of(&event.data, &event.content_type).split();
        let (metadata, metadata_base64) = match event.metadata.is_empty() {
            true => (None, None),
            false => Document::of(&event.metadata, "").split(),
        };
        Self {
            id: event.uuid(),
            stream: event.stream,
            revision: event.revision,
            position: event.position,
            recorded_at_ms: event.recorded_at_ms,
            r#type: event.r#type,
            schema_version: event.schema_version,
            content_type: content_type(event.content_type),
            data,
            data_base64,
            metadata,
            metadata_base64,
        }
    }
}

fn content_type(said: String) -> String {
    if said.is_empty() { "application/json".into() } else { said }
}

impl Record for EventRecord {
    const HEADERS: &'static [&'static str] = &["REVISION", "RECORDED", "TYPE", "DATA"];
    fn row(&self) -> Vec<String> {
        vec![
            self.revision.to_string(),
            time(self.recorded_at_ms),
            self.r#type.clone(),
            cell(&self.data, &self.data_base64),
        ]
    }
}

/// A state, of `lookup`.
#[derive(Serialize)]
pub struct StateRecord {
    stream: String,
    revision: u64,
    position: u64,
    recorded_at_ms: i64,
    generation: u64,
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<StateErrorRecord>,
}

#[derive(Serialize)]
struct StateErrorRecord {
    revision: u64,
    message: String,
}

impl From<State> for StateRecord {
    fn from(state: State) -> Self {
        let (document, base64) = Document::of(&state.data, &state.content_type).split();
        Self {
            stream: state.stream,
            revision: state.revision,
            position: state.position,
            recorded_at_ms: state.recorded_at_ms,
            generation: state.generation,
            content_type: content_type(state.content_type),
            state: document,
            state_base64: base64,
            error: (state.error)
                .map(|StateError { revision, message }| StateErrorRecord { revision, message }),
        }
    }
}

impl Record for StateRecord {
    const HEADERS: &'static [&'static str] = &["STREAM", "REVISION", "RECORDED", "STATE"];
    fn row(&self) -> Vec<String> {
        let mut state = cell(&self.state, &self.state_base64);
        if let Some(error) = &self.error {
            let StateErrorRecord { revision, message } = error;
            state.push_str(&format!(" (the reducer failed at revision {revision}: {message})"));
        }
        vec![self.stream.clone(), self.revision.to_string(), time(self.recorded_at_ms), state]
    }
}

/// A stream, of `list`.
#[derive(Serialize)]
pub struct StreamRecord {
    stream: String,
    revision: u64,
    position: u64,
    recorded_at_ms: i64,
}

impl From<StreamInfo> for StreamRecord {
    fn from(info: StreamInfo) -> Self {
        Self {
            stream: info.stream,
            revision: info.revision,
            position: info.position,
            recorded_at_ms: info.recorded_at_ms,
        }
    }
}

impl Record for StreamRecord {
    const HEADERS: &'static [&'static str] = &["STREAM", "REVISION", "RECORDED"];
    fn row(&self) -> Vec<String> {
        vec![self.stream.clone(), self.revision.to_string(), time(self.recorded_at_ms)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(data: &'static [u8], content_type: &str) -> RecordedEvent {
        RecordedEvent {
            id: Uuid::from_u128(1).as_bytes().to_vec().into(),
            r#type: "T".into(),
            schema_version: 2,
            content_type: content_type.into(),
            data: data.into(),
            metadata: Default::default(),
            stream: "a-1".into(),
            revision: 3,
            position: 4,
            recorded_at_ms: 5,
        }
    }

    fn line(event: RecordedEvent) -> String {
        serde_json::to_string(&EventRecord::from(event)).unwrap()
    }

    #[test]
    fn an_event_has_its_documented_fields() {
        let line = line(event(b"{\n \"big\": 12345678901234567890123,\r\n \"s\": \"\\n\"}", ""));
        assert!(!line.contains('\n'), "{line}");
        assert!(line.contains("12345678901234567890123"), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["data"]["s"], "\n");
        let keys: Vec<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "content_type",
                "data",
                "id",
                "position",
                "recorded_at_ms",
                "revision",
                "schema_version",
                "stream",
                "type"
            ]
        );
        assert_eq!(value["id"], "00000000-0000-0000-0000-000000000001");
    }

    #[test]
    fn what_is_no_json_comes_in_base64() {
        for (data, content_type) in [(&b"\xff"[..], "image/png"), (b"\xff", ""), (b"{", "")] {
            let value: serde_json::Value =
                serde_json::from_str(&line(event(data, content_type))).unwrap();
            assert_eq!(value["data_base64"], BASE64.encode(data));
            assert!(value.get("data").is_none());
        }
        let mut with_metadata = event(b"{}", "");
        with_metadata.metadata = b"raw"[..].into();
        let value: serde_json::Value = serde_json::from_str(&line(with_metadata)).unwrap();
        assert_eq!(value["metadata_base64"], "cmF3");
    }

    #[test]
    fn a_state_tells_where_its_reducer_failed() {
        let state = State {
            stream: "a-1".into(),
            data: b"{\"a\":1}"[..].into(),
            content_type: "application/json".into(),
            revision: 9,
            position: 8,
            recorded_at_ms: 0,
            generation: 1,
            error: Some(StateError { revision: 5, message: "why".into() }),
        };
        let record = StateRecord::from(state);
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["error"], json!({"revision": 5, "message": "why"}));
        assert_eq!(value["state"], json!({"a": 1}));
        assert!(record.row()[3].contains("failed at revision 5: why"));
    }
}
