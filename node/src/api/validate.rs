//! Checks of requests before anything is proposed, and the encoding of what is. Pure.
#[cfg(test)]
mod tests;

use super::errors::ApiError;
use crate::partition::content::{CONTENT_HASH_BYTES, content_hash};
use crate::partition::fold::is_json;
use crate::partition::keys::stream_hash;
use crate::partition::position;
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, bool, encode_key, encode_varint, string, uint32, uint64};
use prost::encoding::{encoded_len_varint, int32, key_len};
use ringfold_proto::internal::Expected;
use ringfold_proto::v1;
use ringfold_proto::v1::expected_revision::Expected as ExpectedRevision;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use uuid::Uuid;

/// Content type of events and states that name none.
pub const JSON: &str = "application/json";

/// What a request may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    pub name_bytes: usize,
    /// Of an event's type, and of its content type.
    pub type_bytes: usize,
    /// Data and metadata of one event.
    pub event_bytes: usize,
    /// Data and metadata of an append's events.
    pub append_bytes: usize,
    pub append_events: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            name_bytes: 1_024,
            type_bytes: 256,
            event_bytes: 1 << 20,
            append_bytes: 4 << 20,
            append_events: 1_024,
        }
    }
}

impl Limits {
    /// Longest request that the transport takes: somewhat over the largest append, so that one
    /// over the limit is refused with its reason.
    pub fn message_bytes(&self) -> usize {
        2 * self.append_bytes
    }
}

/// The partition of a stream: the top bits of its name's hash. `partitions` is a power of two.
pub fn partition_of(stream: &str, partitions: u32) -> u32 {
    debug_assert!(partitions.is_power_of_two());
    // A shift by all 64 bits, for one partition, is none that the machine knows.
    stream_hash(stream).checked_shr(64 - partitions.trailing_zeros()).unwrap_or(0) as u32
}

/// A position that a read waits for must be one of its partition.
pub fn min_position(position: u64, partition: u32) -> Result<(), ApiError> {
    if position == 0 || position::partition(position) == partition {
        return Ok(());
    }
    Err(ApiError::argument(
        "min_position",
        format!(
            "is a position of partition {}, but this is partition {partition}",
            position::partition(position)
        ),
    ))
}

/// Why a text is refused; `None`: it is fine.
fn text_fault(text: &str, limit: usize) -> Option<&'static str> {
    if text.is_empty() {
        Some("is empty")
    } else if text.len() > limit {
        Some("is too long")
    } else if has_control(text) {
        Some("has a control character")
    } else {
        None
    }
}

fn has_control(text: &str) -> bool {
    if text.is_ascii() {
        text.bytes().any(|b| b.is_ascii_control())
    } else {
        text.chars().any(char::is_control)
    }
}

pub fn stream_name(stream: &str, limits: &Limits) -> Result<(), ApiError> {
    name("stream", stream, limits)
}

/// Category, prefix and last name of a list: may be empty.
pub fn optional_name(field: &'static str, text: &str, limits: &Limits) -> Result<(), ApiError> {
    if text.is_empty() { Ok(()) } else { name(field, text, limits) }
}

fn name(field: &'static str, text: &str, limits: &Limits) -> Result<(), ApiError> {
    let limit = limits.name_bytes;
    match text_fault(text, limit) {
        None => Ok(()),
        Some(what) => Err(ApiError::InvalidStreamName { field, limit, what }),
    }
}

/// A category: what stands before the first `-` of a name.
pub fn category(field: &'static str, text: &str, limits: &Limits) -> Result<(), ApiError> {
    name(field, text, limits)?;
    if text.contains('-') {
        return Err(ApiError::argument(field, "has a `-`, which ends a category"));
    }
    Ok(())
}

pub fn consistency(value: i32) -> Result<v1::Consistency, ApiError> {
    match v1::Consistency::try_from(value) {
        Ok(v1::Consistency::Unspecified) => Ok(v1::Consistency::Linearizable),
        Ok(c) => Ok(c),
        Err(_) => {
            Err(ApiError::argument("consistency", format!("{value} is none that is known here")))
        }
    }
}

/// All that an append is checked for before it is proposed.
pub fn append(request: &v1::AppendRequest, limits: &Limits) -> Result<(), ApiError> {
    stream_name(&request.stream, limits)?;
    let count = request.events.len();
    if count == 0 || count > limits.append_events {
        return Err(ApiError::InvalidEvent {
            field: "events".into(),
            limit: limits.append_events,
            what: if count == 0 { "is empty" } else { "has too many events" },
        });
    }
    if request.after_position > position::MAX {
        return Err(ApiError::argument("after_position", "is no position: it is not below 2^63"));
    }
    let mut total = 0;
    for (i, event) in request.events.iter().enumerate() {
        let size = event.data.len() + event.metadata.len();
        total += size;
        check_event(i, event, size, limits)?;
    }
    if total > limits.append_bytes {
        return Err(ApiError::AppendTooLarge {
            field: "events".into(),
            limit: limits.append_bytes,
            actual: total,
        });
    }
    check_ids(&request.events)
}

fn check_event(i: usize, e: &v1::NewEvent, size: usize, limits: &Limits) -> Result<(), ApiError> {
    // Names are made for errors only.
    let field = |name: &str| Cow::Owned(format!("events[{i}].{name}"));
    if e.id.len() != 16 {
        let what = "is not 16 bytes";
        return Err(ApiError::InvalidEvent { field: field("id"), limit: 16, what });
    }
    let limit = limits.type_bytes;
    if let Some(what) = text_fault(&e.r#type, limit) {
        return Err(ApiError::InvalidEvent { field: field("type"), limit, what });
    }
    if !e.content_type.is_empty()
        && let Some(what) = text_fault(&e.content_type, limit)
    {
        return Err(ApiError::InvalidEvent { field: field("content_type"), limit, what });
    }
    if size > limits.event_bytes {
        return Err(ApiError::EventTooLarge {
            field: Cow::Owned(format!("events[{i}]")),
            limit: limits.event_bytes,
            actual: size,
        });
    }
    if is_json(&e.content_type)
        && let Err(fault) = check_json(&e.data)
    {
        return Err(ApiError::InvalidJson { field: field("data"), what: fault.to_string() });
    }
    Ok(())
}

fn check_ids(events: &[v1::NewEvent]) -> Result<(), ApiError> {
    if events.len() < 2 {
        return Ok(());
    }
    let mut ids: Vec<&[u8]> = events.iter().map(|e| &e.id[..]).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|w| w[0] == w[1]) {
        None => Ok(()),
        Some(w) => {
            Err(ApiError::DuplicateEventId { id: Uuid::from_slice(w[0]).unwrap_or_default() })
        }
    }
}

/// As stored: the default is stored as nothing, so that both ways to say it are the same content.
fn stored_content_type(content_type: &str) -> &str {
    if content_type == JSON { "" } else { content_type }
}

/// Content type of what is stored, for a reader.
pub fn shown_content_type(stored: String) -> String {
    if stored.is_empty() { JSON.to_string() } else { stored }
}

/// Whether the data is JSON that a fold can read: everything that building a tree would refuse
/// (broken UTF-8, lone surrogates, numbers out of range, nesting over 127), without building it.
fn check_json(data: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Json>(data).map(|Json| ())
}

struct Json;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Json, D::Error> {
        d.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        while items.next_element::<Json>()?.is_some() {}
        Ok(Json)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        while entries.next_entry::<Json, Json>()?.is_some() {}
        Ok(Json)
    }
}

/// The expected revision as an entry says it: kind and, for an exact one, the revision.
fn expected(request: &v1::AppendRequest) -> (Expected, u64) {
    match request.expected.as_ref().and_then(|e| e.expected.as_ref()) {
        None | Some(ExpectedRevision::Any(_)) => (Expected::Any, 0),
        Some(ExpectedRevision::NoStream(_)) => (Expected::NoStream, 0),
        Some(ExpectedRevision::StreamExists(_)) => (Expected::StreamExists, 0),
        Some(ExpectedRevision::Exact(revision)) => (Expected::Exact, *revision),
    }
}

/// The expected revision for a reader of an error.
pub fn expected_text(request: &v1::AppendRequest) -> Cow<'static, str> {
    match expected(request) {
        (Expected::Any, _) => "any".into(),
        (Expected::NoStream, _) => "none".into(),
        (Expected::StreamExists, _) => "exists".into(),
        (Expected::Exact, revision) => revision.to_string().into(),
    }
}

/// An append as an encoded `ringfold.internal.v1.Command`. Written by hand in one pass over the
/// request, which stays whole for a forward; the payloads are copied once.
pub fn encode_append(request: &v1::AppendRequest, chained: bool) -> Bytes {
    let (expected, exact) = expected(request);
    let expected = expected as i32;
    let lens: Vec<usize> = request.events.iter().map(event_len).collect();
    let mut len = string::encoded_len(1, &request.stream);
    len += lens.iter().map(|l| key_len(2) + encoded_len_varint(*l as u64) + l).sum::<usize>();
    if expected != 0 {
        len += int32::encoded_len(3, &expected);
    }
    if exact != 0 {
        len += uint64::encoded_len(4, &exact);
    }
    if chained {
        len += bool::encoded_len(5, &chained);
    }

    let mut out = BytesMut::with_capacity(key_len(1) + encoded_len_varint(len as u64) + len);
    encode_key(1, WireType::LengthDelimited, &mut out);
    encode_varint(len as u64, &mut out);
    string::encode(1, &request.stream, &mut out);
    for (event, len) in request.events.iter().zip(lens) {
        encode_key(2, WireType::LengthDelimited, &mut out);
        encode_varint(len as u64, &mut out);
        encode_event(event, &mut out);
    }
    if expected != 0 {
        int32::encode(3, &expected, &mut out);
    }
    if exact != 0 {
        uint64::encode(4, &exact, &mut out);
    }
    if chained {
        bool::encode(5, &chained, &mut out);
    }
    out.freeze()
}

fn event_len(e: &v1::NewEvent) -> usize {
    let delimited = |len: usize| match len {
        0 => 0,
        // Field numbers below 16: keys of one byte.
        n => 1 + encoded_len_varint(n as u64) + n,
    };
    let version = match e.schema_version {
        0 => 0,
        v => uint32::encoded_len(3, &v),
    };
    delimited(e.id.len())
        + delimited(e.r#type.len())
        + version
        + delimited(stored_content_type(&e.content_type).len())
        + delimited(e.data.len())
        + delimited(e.metadata.len())
        + delimited(CONTENT_HASH_BYTES)
}

fn encode_event(e: &v1::NewEvent, out: &mut BytesMut) {
    let content_type = stored_content_type(&e.content_type);
    let hash = content_hash(&e.r#type, e.schema_version, content_type, &e.data, &e.metadata);
    put_field(1, &e.id, out);
    put_field(2, e.r#type.as_bytes(), out);
    if e.schema_version != 0 {
        uint32::encode(3, &e.schema_version, out);
    }
    put_field(4, content_type.as_bytes(), out);
    put_field(5, &e.data, out);
    put_field(6, &e.metadata, out);
    put_field(7, &hash, out);
}

/// A field of bytes, which is left out where it is empty.
fn put_field(tag: u32, bytes: &[u8], out: &mut BytesMut) {
    if !bytes.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}
