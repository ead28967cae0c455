//! Folds events into a stream's state: a pure function, the same bytes on every replica.
use super::json::Json;
use bytes::Bytes;
use ringfold_proto::internal::StreamRecord;

/// Where an entry names no limit.
pub const STATE_BYTES_MAX: usize = 1 << 20;
pub const JSON: &str = "application/json";

/// The rule that folds. Numbers are those of `ringfold.v1.Reducer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reducer {
    /// The last event's data.
    Last,
    /// RFC 7386 over JSON data.
    MergePatch,
}

impl Reducer {
    pub fn from_number(number: u32) -> Result<Reducer, String> {
        match number {
            1 => Ok(Reducer::Last),
            2 => Ok(Reducer::MergePatch),
            _ => Err(format!("reducer {number} is not known to this version: run a newer version")),
        }
    }
}

/// Whether a content type says JSON: none, `application/json` or `…+json`, with or without
/// parameters.
pub fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim_ascii();
    let ends_so = |end: &str| {
        kind.len() > end.len()
            && kind.as_bytes()[kind.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
    };
    kind.is_empty() || kind.eq_ignore_ascii_case(JSON) || ends_so("+json")
}

/// A stream's state while events are folded into it.
#[derive(Debug, Clone)]
pub struct Fold {
    reducer: Reducer,
    /// Of the last good state; empty: there is none.
    content_type: String,
    /// Of the last good state; behind `value` while `stale`.
    bytes: Bytes,
    /// The same, parsed (`MergePatch` only).
    value: Option<Json>,
    stale: bool,
    /// The last good state has at most so many bytes; exactly so many when not `stale`.
    bytes_max: usize,
    error: Option<(u64, String)>,
    good_revision: u64,
}

/// What a fold sees of an event.
pub struct Folded<'a> {
    pub revision: u64,
    pub content_type: &'a str,
    pub data: &'a Bytes,
}

impl Fold {
    /// The state that a stream has.
    pub fn of(record: &StreamRecord) -> Result<Fold, String> {
        let failed = !record.error_message.is_empty();
        Ok(Fold {
            reducer: Reducer::from_number(record.reducer)?,
            content_type: record.content_type.clone(),
            bytes_max: record.state.len(),
            bytes: record.state.clone(),
            value: None,
            stale: false,
            error: failed.then(|| (record.error_revision, record.error_message.clone())),
            good_revision: if failed { record.good_revision } else { record.revision },
        })
    }

    /// Folds an event. A reducer that fails keeps the last good state and says since when; the next
    /// event of `last` heals it, for `last` does not need the state before.
    pub fn add(&mut self, event: &Folded<'_>, state_bytes_max: usize) {
        let result = match self.reducer {
            Reducer::Last => self.last(event, state_bytes_max),
            Reducer::MergePatch if self.error.is_some() => return,
            Reducer::MergePatch => self.merge_patch(event, state_bytes_max),
        };
        match result {
            Ok(()) => {
                self.good_revision = event.revision;
                self.error = None;
            }
            Err(message) => {
                self.error.get_or_insert((event.revision, message));
            }
        }
    }

    fn last(&mut self, event: &Folded<'_>, state_bytes_max: usize) -> Result<(), String> {
        check_size(event.data.len(), state_bytes_max)?;
        if self.content_type != event.content_type || self.content_type.is_empty() {
            self.content_type = match event.content_type {
                "" => JSON.to_owned(),
                other => other.to_owned(),
            };
        }
        self.bytes = event.data.clone();
        self.bytes_max = event.data.len();
        Ok(())
    }

    fn merge_patch(&mut self, event: &Folded<'_>, state_bytes_max: usize) -> Result<(), String> {
        if !is_json(event.content_type) {
            return Err(format!("merge-patch needs JSON, the event is {}", event.content_type));
        }
        // Says the same in every version of the parser.
        let patch = Json::parse(event.data).map_err(|_| {
            "merge-patch needs JSON, the event's data is none, or nested too deeply".to_owned()
        })?;
        let bytes_max = self.bytes_max.saturating_add(growth_max(event.data.len()));
        let before = self.value()?;
        if bytes_max <= state_bytes_max {
            before.merge(patch);
            self.bytes_max = bytes_max;
        } else {
            let mut after = before.clone();
            after.merge(patch);
            let bytes = after.bytes().map_err(|e| e.to_string())?;
            check_size(bytes, state_bytes_max)?;
            *before = after;
            self.bytes_max = bytes;
        }
        self.stale = true;
        if self.content_type != JSON {
            self.content_type = JSON.to_owned();
        }
        Ok(())
    }

    fn value(&mut self) -> Result<&mut Json, String> {
        let parsed = match self.value.take() {
            Some(value) => value,
            None if self.content_type.is_empty() => Json::Null,
            None => Json::parse(&self.bytes)
                .map_err(|_| "the state before the event is not JSON".to_owned())?,
        };
        Ok(self.value.insert(parsed))
    }

    /// What `add` may make of the state: at most so many bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The last good state, its content type, and whether it is that of the last event.
    pub fn state(&mut self) -> Result<(&Bytes, &str, bool), String> {
        if self.stale {
            if let Some(value) = &self.value {
                self.bytes = value.to_bytes().map_err(|e| e.to_string())?.into();
            }
            self.stale = false;
            self.bytes_max = self.bytes.len();
        }
        Ok((&self.bytes, &self.content_type, self.error.is_none()))
    }

    /// Writes the state into the stream's record.
    pub fn save(&mut self, record: &mut StreamRecord) -> Result<(), String> {
        let (bytes, content_type, _) = self.state()?;
        record.state = bytes.clone();
        if record.content_type != content_type {
            record.content_type = content_type.to_owned();
        }
        match &self.error {
            None => {
                record.error_revision = 0;
                record.error_message.clear();
                record.good_revision = 0;
            }
            Some((revision, message)) => {
                record.error_revision = *revision;
                record.error_message.clone_from(message);
                record.good_revision = self.good_revision;
            }
        }
        Ok(())
    }

    /// After `save`: lets go of the entry's memory that the state may point into.
    pub fn detach(&mut self, record: &mut StreamRecord) {
        if self.reducer == Reducer::Last {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
            record.state = self.bytes.clone();
        }
    }

    pub fn reducer(&self) -> Reducer {
        self.reducer
    }
}

/// By how many bytes a patch can make a state longer. A number of three bytes (`1e9`) prints as at
/// most 24; an integer, a string or a key never longer than it came; and one comma.
fn growth_max(patch_bytes: usize) -> usize {
    patch_bytes.saturating_mul(8).saturating_add(2)
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), String> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(format!("the state would have {bytes} bytes, {bytes_max} at most"))
}

#[cfg(test)]
pub(crate) mod tests;
