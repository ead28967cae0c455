//! What a caller says: events to append, expectations, and how to read.
use std::{fmt, str::FromStr};

use bytes::Bytes;
use ringfold_proto::v1;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// An event to append. Its id makes a repeated append harmless: the same id is stored once.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub(crate) inner: v1::NewEvent,
}

impl NewEvent {
    /// An event with a new UUIDv7. `data` is JSON unless [`content_type`](Self::content_type) says
    /// otherwise; together with the metadata up to 1 MiB. `type`: 1 to 256 bytes without control
    /// characters. The cluster checks both.
    pub fn new(r#type: impl Into<String>, data: impl Into<Bytes>) -> Self {
        NewEvent {
            inner: v1::NewEvent {
                id: Bytes::copy_from_slice(Uuid::now_v7().as_bytes()),
                r#type: r#type.into(),
                data: data.into(),
                ..Default::default()
            },
        }
    }

    /// An event whose data is `value` as JSON.
    ///
    /// # Errors
    /// `value` has no JSON form (a map whose keys are no strings, for example).
    pub fn json(
        r#type: impl Into<String>,
        value: &impl Serialize,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::new(r#type, serde_json::to_vec(value)?))
    }

    /// Sets the id: give one that is derived from what the event is about, and a program that runs
    /// again appends nothing twice.
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.inner.id = Bytes::copy_from_slice(id.as_bytes());
        self
    }

    #[must_use]
    pub fn schema_version(mut self, version: u32) -> Self {
        self.inner.schema_version = version;
        self
    }

    /// For data that is not JSON.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.inner.content_type = content_type.into();
        self
    }

    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<Bytes>) -> Self {
        self.inner.metadata = metadata.into();
        self
    }

    /// The event's id.
    pub fn get_id(&self) -> Uuid {
        Uuid::from_slice(&self.inner.id).unwrap_or_default()
    }
}

/// What must be true of the stream for an append to take place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    #[default]
    Any,
    NoStream,
    StreamExists,
    /// The stream's last event has this revision.
    Exact(u64),
}

impl From<Expected> for v1::ExpectedRevision {
    fn from(expected: Expected) -> Self {
        use v1::expected_revision::{Any, Expected as E, NoStream, StreamExists};
        let e = match expected {
            Expected::Any => E::Any(Any {}),
            Expected::NoStream => E::NoStream(NoStream {}),
            Expected::StreamExists => E::StreamExists(StreamExists {}),
            Expected::Exact(revision) => E::Exact(revision),
        };
        v1::ExpectedRevision { expected: Some(e) }
    }
}

/// `any`, `none`, `exists` or a revision.
impl FromStr for Expected {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "any" => Ok(Expected::Any),
            "none" => Ok(Expected::NoStream),
            "exists" => Ok(Expected::StreamExists),
            n => n.parse().map(Expected::Exact).map_err(|_| {
                format!("{n:?} is not an expectation: any, none, exists, or a revision from 0")
            }),
        }
    }
}

/// Where an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub first_revision: u64,
    pub last_revision: u64,
    pub first_position: u64,
    pub last_position: u64,
    pub partition: u32,
}

impl From<v1::AppendResponse> for Appended {
    fn from(r: v1::AppendResponse) -> Self {
        Appended {
            first_revision: r.first_revision,
            last_revision: r.last_revision,
            first_position: r.first_position,
            last_position: r.last_position,
            partition: r.partition,
        }
    }
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Shows every append acknowledged before the call began.
    #[default]
    Linearizable,
    /// The same promise, kept by the leader's clock lease, without a round between nodes.
    Lease,
    /// Any replica: may be behind.
    Stale,
}

impl From<Consistency> for v1::Consistency {
    fn from(c: Consistency) -> Self {
        match c {
            Consistency::Linearizable => v1::Consistency::Linearizable,
            Consistency::Lease => v1::Consistency::Lease,
            Consistency::Stale => v1::Consistency::Stale,
        }
    }
}

impl FromStr for Consistency {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linearizable" => Ok(Consistency::Linearizable),
            "lease" => Ok(Consistency::Lease),
            "stale" => Ok(Consistency::Stale),
            _ => Err(format!("{text:?} is not a consistency: linearizable, lease, or stale")),
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Consistency::Linearizable => "linearizable",
            Consistency::Lease => "lease",
            Consistency::Stale => "stale",
        })
    }
}

/// Which events of a stream to read. The default: all, from the first, linearizable.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// First revision read. `None`: the first event, or the last one when backwards.
    pub from_revision: Option<u64>,
    pub backwards: bool,
    /// `None`: all.
    pub max_count: Option<u64>,
    pub consistency: Consistency,
    /// The node waits until it has applied this position of the stream's partition; 0: no wait.
    pub min_position: u64,
}

/// How a state is looked up.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookupOptions {
    pub consistency: Consistency,
    /// The node waits until it has applied this position of the stream's partition; 0: no wait.
    pub min_position: u64,
}

impl From<Consistency> for LookupOptions {
    fn from(consistency: Consistency) -> Self {
        LookupOptions { consistency, min_position: 0 }
    }
}

/// Which streams to list. The default: all, linearizable.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only streams of this category.
    pub category: Option<String>,
    /// Only names that begin so.
    pub prefix: Option<String>,
    /// Only names after this one, in byte order.
    pub after: Option<String>,
    /// `None`: all.
    pub max_count: Option<u64>,
    pub consistency: Consistency,
    /// Only this partition.
    pub partition: Option<u32>,
}

/// Conveniences of a recorded event.
pub trait RecordedEventExt {
    /// The event's id; nil if the server sent one that is no UUID.
    fn uuid(&self) -> Uuid;
    /// The data, read as JSON.
    ///
    /// # Errors
    /// The data is not JSON, or not of this shape.
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error>;
}

impl RecordedEventExt for v1::RecordedEvent {
    fn uuid(&self) -> Uuid {
        Uuid::from_slice(&self.id).unwrap_or_default()
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.data)
    }
}

/// Conveniences of a state.
pub trait StateExt {
    /// The state, read as JSON.
    ///
    /// # Errors
    /// The state is not JSON, or not of this shape.
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error>;
}

impl StateExt for v1::State {
    fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_and_consistencies_parse_and_refuse() {
        assert_eq!("any".parse(), Ok(Expected::Any));
        assert_eq!("none".parse(), Ok(Expected::NoStream));
        assert_eq!("exists".parse(), Ok(Expected::StreamExists));
        assert_eq!("7".parse(), Ok(Expected::Exact(7)));
        assert!("-1".parse::<Expected>().is_err());
        for c in [Consistency::Linearizable, Consistency::Lease, Consistency::Stale] {
            assert_eq!(c.to_string().parse(), Ok(c));
        }
        assert!("eventual".parse::<Consistency>().is_err());
    }

    #[test]
    fn each_new_event_has_its_own_version_7_id() {
        let (a, b) = (NewEvent::new("T", "{}"), NewEvent::new("T", "{}"));
        assert_ne!(a.get_id(), b.get_id());
        assert_eq!(a.get_id().get_version_num(), 7);
        let id = Uuid::from_u128(5);
        assert_eq!(a.id(id).get_id(), id);
    }
}
