//! Every error that a client can see: one list of reasons, each with its code, whether a retry
//! helps, and what to do. docs/errors.md shows the same list.
#[cfg(test)]
mod tests;

use crate::ids::NodeId;
use crate::partition::apply::Refusal;
use crate::partition::store::StoreError;
use ringfold_proto::v1;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use uuid::Uuid;

/// Domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "ringfold.dev";

/// Whether the same call may succeed when it is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    No,
    Yes,
    /// An append may be stored already: send it again with the same event ids.
    SameIds,
}

impl Retry {
    pub fn name(self) -> &'static str {
        match self {
            Retry::No => "no",
            Retry::Yes => "yes",
            Retry::SameIds => "same_ids",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $name:literal, $code:ident, $retry:ident, [$($field:literal),*], $action:literal;)*) => {
        /// Why a call failed, as its ErrorInfo says it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($variant),* }

        impl Reason {
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name),* }
            }

            pub fn code(self) -> Code {
                match self { $(Reason::$variant => Code::$code),* }
            }

            pub fn retry(self) -> Retry {
                match self { $(Reason::$variant => Retry::$retry),* }
            }

            /// Keys of the metadata, besides `retry` and `action`. Left out where not known.
            pub fn fields(self) -> &'static [&'static str] {
                match self { $(Reason::$variant => &[$($field),*]),* }
            }

            /// What to do about it.
            pub fn action(self) -> &'static str {
                match self { $(Reason::$variant => $action),* }
            }
        }
    };
}

// A macro, because a function cannot hold the enum and the list of its values equal.
reasons! {
    InvalidStreamName = "INVALID_STREAM_NAME", InvalidArgument, No, ["field", "limit"],
        "use a name of 1 to 1,024 bytes of UTF-8 without control characters";
    InvalidEvent = "INVALID_EVENT", InvalidArgument, No, ["field", "limit"],
        "correct the named field";
    InvalidJson = "INVALID_JSON", InvalidArgument, No, ["field"],
        "send JSON, or declare the content type that the data has";
    EventTooLarge = "EVENT_TOO_LARGE", InvalidArgument, No, ["field", "limit", "actual"],
        "make the event smaller";
    AppendTooLarge = "APPEND_TOO_LARGE", InvalidArgument, No, ["field", "limit", "actual"],
        "split the append";
    DuplicateEventId = "DUPLICATE_EVENT_ID", InvalidArgument, No, ["id"],
        "give each event an id of its own";
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, No, ["field"],
        "correct the named field";
    WrongExpectedRevision = "WRONG_EXPECTED_REVISION", FailedPrecondition, No, ["expected", "actual"],
        "read the stream, decide again, and append with its actual revision";
    EarlierAppendFailed = "EARLIER_APPEND_FAILED", FailedPrecondition, No, [],
        "send the failed appends of this stream again in order, the first with resume set";
    StreamTombstoned = "STREAM_TOMBSTONED", FailedPrecondition, No, [],
        "use another stream: this one never takes an append again";
    AlreadyBootstrapped = "ALREADY_BOOTSTRAPPED", FailedPrecondition, No, ["cluster_id"],
        "use the cluster that this node belongs to, or a node with an empty data directory";
    NotBootstrapped = "NOT_BOOTSTRAPPED", FailedPrecondition, Yes, [],
        "bootstrap the cluster, or wait until this node has joined it";
    FeatureLevel = "FEATURE_LEVEL", FailedPrecondition, No, [],
        "upgrade every node of the cluster first";
    EventIdConflict = "EVENT_ID_CONFLICT", AlreadyExists, No, ["id", "revision"],
        "use a new id for another event, or send the append exactly as it was stored";
    DrainImpossible = "DRAIN_IMPOSSIBLE", FailedPrecondition, No, ["node_id"],
        "add nodes or room first, or undrain others: nothing was changed";
    MemberRefused = "MEMBER_REFUSED", FailedPrecondition, No, ["node_id"],
        "see the members in the topology: a node is drained, then removed";
    StaleEpoch = "STALE_EPOCH", FailedPrecondition, No, ["expected", "actual"],
        "look at the cluster again, and decide anew: it has changed since, and nothing was done";
    MemberNotFound = "MEMBER_NOT_FOUND", NotFound, No, ["node_id"],
        "see the members in the topology: a removed one never comes back";
    StreamNotFound = "STREAM_NOT_FOUND", NotFound, No, [],
        "check the name: no event was ever appended to this stream";
    Overloaded = "OVERLOADED", ResourceExhausted, Yes, [],
        "send it again after a pause that grows";
    DiskFull = "DISK_FULL", ResourceExhausted, No, ["free_bytes", "limit_bytes"],
        "make room on the node's disk: reads go on, appends are refused until then";
    NotLeader = "NOT_LEADER", Unavailable, Yes, ["leader_node_id", "leader_url"],
        "ask the leader";
    NoLeader = "NO_LEADER", Unavailable, Yes, ["partition"],
        "send it again: a majority of the partition's replicas must be up to elect a leader";
    NodeStopping = "NODE_STOPPING", Unavailable, Yes, [],
        "ask another node";
    NodeStarting = "NODE_STARTING", Unavailable, Yes, [],
        "send it again, or ask another node: this one has not read the cluster's state yet";
    ReplicaClosed = "REPLICA_CLOSED", Unavailable, Yes, [],
        "ask another node, and see why the replica was closed in this node's status";
    ClockBehind = "CLOCK_BEHIND", Unavailable, Yes, ["ahead_ms"],
        "send it again later, and check the clocks of the nodes";
    OutcomeUnknown = "OUTCOME_UNKNOWN", Unavailable, SameIds, [],
        "send it again with the same event ids: it is stored once";
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, SameIds, [],
        "send it again with a longer deadline, an append with the same event ids";
    Internal = "INTERNAL", Internal, No, [],
        "see the node's log, and report it";
}

/// The leader that a NOT_LEADER error names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    pub node: NodeId,
    /// Its URL for clients; empty when not known.
    pub url: String,
}

/// An error of a call, or of one append of an AppendStream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    #[error("{field}: {what}")]
    InvalidStreamName { field: &'static str, limit: usize, what: &'static str },
    #[error("{field}: {what}")]
    InvalidEvent { field: Cow<'static, str>, limit: usize, what: &'static str },
    #[error("{field} is declared as JSON and is none: {what}")]
    InvalidJson { field: Cow<'static, str>, what: String },
    #[error("{field} has {actual} bytes of data and metadata, {limit} at most")]
    EventTooLarge { field: Cow<'static, str>, limit: usize, actual: usize },
    #[error("{field} have {actual} bytes together, {limit} at most")]
    AppendTooLarge { field: Cow<'static, str>, limit: usize, actual: usize },
    #[error("event id {id} stands twice in the append")]
    DuplicateEventId { id: Uuid },
    #[error("{field}: {what}")]
    InvalidArgument { field: Cow<'static, str>, what: Cow<'static, str> },
    #[error("the stream's revision is {}, {expected} expected", Revision(*actual))]
    WrongExpectedRevision { expected: Cow<'static, str>, actual: Option<u64> },
    #[error("an earlier append of this stream failed")]
    EarlierAppendFailed,
    #[error("the stream is deleted for good")]
    StreamTombstoned,
    #[error("this node belongs to cluster {cluster_id} already")]
    AlreadyBootstrapped { cluster_id: String },
    #[error("this node does not belong to a cluster yet")]
    NotBootstrapped,
    #[error("{0}")]
    FeatureLevel(String),
    #[error(
        "event id {id} is stored already, at revision {revision}, with other content or in another append"
    )]
    EventIdConflict { id: Uuid, revision: u64 },
    #[error("node {node_id} cannot be drained: {}", .reasons.join("; "))]
    DrainImpossible { node_id: u64, reasons: Vec<String> },
    #[error("{what}")]
    MemberRefused { node_id: u64, what: String },
    #[error("decided on epoch {expected}, and the cluster is at epoch {actual}")]
    StaleEpoch { expected: u64, actual: u64 },
    #[error("there is no node {node_id} in this cluster")]
    MemberNotFound { node_id: u64 },
    #[error("the meta group has no leader now")]
    NoMetaLeader,
    #[error("there is no stream of this name")]
    StreamNotFound,
    #[error("{0}")]
    Overloaded(&'static str),
    #[error("the node's disk is nearly full: {free_bytes} bytes are free, {limit_bytes} are kept")]
    DiskFull { free_bytes: u64, limit_bytes: u64 },
    #[error("this node does not lead the partition")]
    NotLeader { leader: Option<LeaderHint> },
    #[error("partition {partition} has no leader now")]
    NoLeader { partition: u32 },
    #[error("the node is stopping")]
    NodeStopping,
    #[error("the node is starting: it does not know its cluster's partitions yet")]
    NodeStarting,
    #[error("the node's replica is closed: {0}")]
    ReplicaClosed(String),
    #[error("after_position lies {ahead_ms} ms ahead of the leader's clock, 500 ms at most")]
    ClockBehind { ahead_ms: u64 },
    #[error("the append may or may not be stored: {0}")]
    OutcomeUnknown(Cow<'static, str>),
    #[error("the deadline passed{}", if *.in_flight { ": the append may or may not be stored" } else { "" })]
    DeadlineExceeded { in_flight: bool },
    #[error("the node failed: its log has the details")]
    Internal,
    /// What the node answered that this call was forwarded to.
    #[error("{}", .0.message())]
    Forwarded(Box<Status>),
}

/// A stream's revision for a reader: "none" where there is no stream.
struct Revision(Option<u64>);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(r) => write!(f, "{r}"),
        }
    }
}

impl ApiError {
    /// Logs the details, which clients do not see.
    pub fn internal(details: impl std::fmt::Display) -> ApiError {
        tracing::error!(%details, "a call failed");
        ApiError::Internal
    }

    pub fn argument(
        field: impl Into<Cow<'static, str>>,
        what: impl Into<Cow<'static, str>>,
    ) -> ApiError {
        ApiError::InvalidArgument { field: field.into(), what: what.into() }
    }

    /// Why an append was refused; `expected` as the client said it.
    pub fn refused(refusal: Refusal, expected: impl FnOnce() -> Cow<'static, str>) -> ApiError {
        match refusal {
            Refusal::WrongExpectedRevision { actual } => {
                ApiError::WrongExpectedRevision { expected: expected(), actual }
            }
            Refusal::EventIdConflict { id, revision } => ApiError::EventIdConflict { id, revision },
            Refusal::EarlierAppendFailed => ApiError::EarlierAppendFailed,
            Refusal::Tombstoned => ApiError::StreamTombstoned,
        }
    }

    /// `None`: forwarded, the status has it.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            ApiError::InvalidStreamName { .. } => Reason::InvalidStreamName,
            ApiError::InvalidEvent { .. } => Reason::InvalidEvent,
            ApiError::InvalidJson { .. } => Reason::InvalidJson,
            ApiError::EventTooLarge { .. } => Reason::EventTooLarge,
            ApiError::AppendTooLarge { .. } => Reason::AppendTooLarge,
            ApiError::DuplicateEventId { .. } => Reason::DuplicateEventId,
            ApiError::InvalidArgument { .. } => Reason::InvalidArgument,
            ApiError::WrongExpectedRevision { .. } => Reason::WrongExpectedRevision,
            ApiError::EarlierAppendFailed => Reason::EarlierAppendFailed,
            ApiError::StreamTombstoned => Reason::StreamTombstoned,
            ApiError::AlreadyBootstrapped { .. } => Reason::AlreadyBootstrapped,
            ApiError::NotBootstrapped => Reason::NotBootstrapped,
            ApiError::FeatureLevel(_) => Reason::FeatureLevel,
            ApiError::EventIdConflict { .. } => Reason::EventIdConflict,
            ApiError::DrainImpossible { .. } => Reason::DrainImpossible,
            ApiError::MemberRefused { .. } => Reason::MemberRefused,
            ApiError::StaleEpoch { .. } => Reason::StaleEpoch,
            ApiError::MemberNotFound { .. } => Reason::MemberNotFound,
            ApiError::NoMetaLeader => Reason::NoLeader,
            ApiError::StreamNotFound => Reason::StreamNotFound,
            ApiError::Overloaded(_) => Reason::Overloaded,
            ApiError::DiskFull { .. } => Reason::DiskFull,
            ApiError::NotLeader { .. } => Reason::NotLeader,
            ApiError::NoLeader { .. } => Reason::NoLeader,
            ApiError::NodeStopping => Reason::NodeStopping,
            ApiError::NodeStarting => Reason::NodeStarting,
            ApiError::ReplicaClosed(_) => Reason::ReplicaClosed,
            ApiError::ClockBehind { .. } => Reason::ClockBehind,
            ApiError::OutcomeUnknown(_) => Reason::OutcomeUnknown,
            ApiError::DeadlineExceeded { .. } => Reason::DeadlineExceeded,
            ApiError::Internal => Reason::Internal,
            ApiError::Forwarded(_) => return None,
        })
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            ApiError::InvalidStreamName { field, limit, .. } => {
                vec![("field", (*field).to_string()), ("limit", limit.to_string())]
            }
            ApiError::InvalidEvent { field, limit, .. } => {
                vec![("field", field.to_string()), ("limit", limit.to_string())]
            }
            ApiError::EventTooLarge { field, limit, actual }
            | ApiError::AppendTooLarge { field, limit, actual } => vec![
                ("field", field.to_string()),
                ("limit", limit.to_string()),
                ("actual", actual.to_string()),
            ],
            ApiError::InvalidJson { field, .. } | ApiError::InvalidArgument { field, .. } => {
                vec![("field", field.to_string())]
            }
            ApiError::DuplicateEventId { id } => vec![("id", id.to_string())],
            ApiError::WrongExpectedRevision { expected, actual } => {
                vec![("expected", expected.to_string()), ("actual", Revision(*actual).to_string())]
            }
            ApiError::AlreadyBootstrapped { cluster_id } => {
                vec![("cluster_id", cluster_id.clone())]
            }
            ApiError::EventIdConflict { id, revision } => {
                vec![("id", id.to_string()), ("revision", revision.to_string())]
            }
            ApiError::DiskFull { free_bytes, limit_bytes } => vec![
                ("free_bytes", free_bytes.to_string()),
                ("limit_bytes", limit_bytes.to_string()),
            ],
            ApiError::NotLeader { leader: Some(l) } => {
                let mut fields = vec![("leader_node_id", l.node.0.to_string())];
                if !l.url.is_empty() {
                    fields.push(("leader_url", l.url.clone()));
                }
                fields
            }
            ApiError::DrainImpossible { node_id, .. }
            | ApiError::MemberRefused { node_id, .. }
            | ApiError::MemberNotFound { node_id } => vec![("node_id", node_id.to_string())],
            ApiError::StaleEpoch { expected, actual } => {
                vec![("expected", expected.to_string()), ("actual", actual.to_string())]
            }
            ApiError::NoLeader { partition } => vec![("partition", partition.to_string())],
            ApiError::ClockBehind { ahead_ms } => vec![("ahead_ms", ahead_ms.to_string())],
            ApiError::EarlierAppendFailed
            | ApiError::StreamTombstoned
            | ApiError::NotBootstrapped
            | ApiError::FeatureLevel(_)
            | ApiError::NoMetaLeader
            | ApiError::StreamNotFound
            | ApiError::Overloaded(_)
            | ApiError::NotLeader { leader: None }
            | ApiError::NodeStopping
            | ApiError::NodeStarting
            | ApiError::ReplicaClosed(_)
            | ApiError::OutcomeUnknown(_)
            | ApiError::DeadlineExceeded { .. }
            | ApiError::Internal
            | ApiError::Forwarded(_) => Vec::new(),
        }
    }

    fn metadata(&self, reason: Reason) -> impl Iterator<Item = (String, String)> {
        [("retry", reason.retry().name().to_string()), ("action", reason.action().to_string())]
            .into_iter()
            .chain(self.fields())
            .map(|(k, v)| (k.to_string(), v))
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> ApiError {
        ApiError::internal(e)
    }
}

impl From<ApiError> for Status {
    fn from(e: ApiError) -> Status {
        let Some(reason) = e.reason() else {
            let ApiError::Forwarded(status) = e else {
                return Status::unknown("no reason");
            };
            return *status;
        };
        let metadata: HashMap<_, _> = e.metadata(reason).collect();
        let details = ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata);
        Status::with_error_details(reason.code(), e.to_string(), details)
    }
}

impl From<ApiError> for v1::Error {
    fn from(e: ApiError) -> v1::Error {
        let message = e.to_string();
        match (e.reason(), e) {
            (Some(reason), e) => v1::Error {
                code: reason.code() as i32,
                reason: reason.name().to_string(),
                message,
                metadata: e.metadata(reason).collect(),
            },
            (None, ApiError::Forwarded(status)) => {
                let (reason, metadata) = status
                    .get_details_error_info()
                    .map(|info| (info.reason, info.metadata.into_iter().collect()))
                    .unwrap_or_default();
                v1::Error { code: status.code() as i32, reason, message, metadata }
            }
            (None, _) => v1::Error {
                code: Code::Unknown as i32,
                reason: String::new(),
                message,
                metadata: BTreeMap::new(),
            },
        }
    }
}
