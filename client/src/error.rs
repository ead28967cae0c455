//! What a call ends with when it does not end well.
use std::{collections::BTreeMap, fmt};

use ringfold_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Domain of the cluster's `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "ringfold.dev";

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The cluster refused the call, for good: an append that was refused is not stored.
    #[error("{0}")]
    Refused(ServerError),
    /// The append **may or may not be stored**: no try got an answer that says which. Appending the
    /// same events again, with the same ids, is safe and finds out.
    #[error(
        "the append may or may not be stored after {tries} tries: append it again with the same event ids ({last})"
    )]
    Unknown { tries: u32, last: ServerError },
    /// No node could do it within the deadline. An append that ends so is not stored.
    #[error("the cluster did not answer within the deadline, after {tries} tries: {last}")]
    Unavailable { tries: u32, last: ServerError },
    /// A setting or an argument that never left this process.
    #[error("{0}")]
    Invalid(String),
    /// The appender stopped: it was dropped or closed.
    #[error("the appender is closed")]
    Closed,
}

impl ClientError {
    /// Whether the same call, with the same event ids, may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Refused(e) => e.retry() != Retry::No,
            ClientError::Unknown { .. } | ClientError::Unavailable { .. } => true,
            ClientError::Invalid(_) | ClientError::Closed => false,
        }
    }

    /// Whether an append that ended so is stored for certain neither now nor later.
    pub fn is_not_stored(&self) -> bool {
        !matches!(self, ClientError::Unknown { .. })
    }

    /// What the cluster said last.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            ClientError::Refused(e)
            | ClientError::Unknown { last: e, .. }
            | ClientError::Unavailable { last: e, .. } => Some(e),
            ClientError::Invalid(_) | ClientError::Closed => None,
        }
    }

    /// The reason, such as `WRONG_EXPECTED_REVISION`; empty where no node said one.
    pub fn reason(&self) -> &str {
        self.server_error().map_or("", |e| e.reason.as_str())
    }
}

/// One answer that was an error, or a connection that failed.
#[derive(Debug, Clone)]
pub struct ServerError {
    pub code: Code,
    /// A reason of `docs/errors.md`; empty when it was the connection that failed.
    pub reason: String,
    pub message: String,
    /// Fields that the reason comes with.
    pub metadata: BTreeMap<String, String>,
    /// No connection could be opened: the node never saw the request.
    pub(crate) never_sent: bool,
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    No,
    /// The request had no effect.
    Yes,
    /// The request may have had its effect: an append is sent again with the same ids.
    SameIds,
}

impl ServerError {
    pub(crate) fn local(code: Code, message: impl Into<String>) -> Self {
        ServerError {
            code,
            reason: String::new(),
            message: message.into(),
            metadata: BTreeMap::new(),
            never_sent: false,
        }
    }

    /// What to do, as the cluster says it.
    pub fn action(&self) -> Option<&str> {
        self.metadata.get("action").map(String::as_str)
    }

    pub(crate) fn retry(&self) -> Retry {
        if self.reason.is_empty() {
            return match self.code {
                _ if self.never_sent => Retry::Yes,
                // Connections that broke or were reset, in the codes that tonic gives them.
                Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::Aborted
                | Code::DeadlineExceeded => Retry::SameIds,
                _ => Retry::No,
            };
        }
        match self.metadata.get("retry").map(String::as_str) {
            Some("no") => Retry::No,
            Some("yes") => Retry::Yes,
            Some("same_ids") => Retry::SameIds,
            _ => match self.code {
                Code::Unavailable | Code::DeadlineExceeded => Retry::SameIds,
                _ => Retry::No,
            },
        }
    }

    /// Whether an append answered so may have been stored all the same. A fault within a node says
    /// nothing about its log, and neither does what something on the way says.
    pub(crate) fn may_be_stored(&self) -> bool {
        if self.reason.is_empty() {
            let never_done = matches!(
                self.code,
                Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied
            );
            return !self.never_sent && !never_done;
        }
        match self.retry() {
            Retry::SameIds => true,
            Retry::Yes => false,
            Retry::No => matches!(self.code, Code::Internal | Code::DataLoss | Code::Unknown),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason.is_empty() {
            write!(f, "{:?}: {}", self.code, self.message)?;
        } else {
            write!(f, "{}: {}", self.reason, self.message)?;
        }
        match self.action() {
            Some(action) => write!(f, " ({action})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerError {}

impl From<Status> for ServerError {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info().filter(|i| i.domain == ERROR_DOMAIN);
        let (reason, metadata) = match info {
            Some(i) => (i.reason, i.metadata.into_iter().collect()),
            None => (String::new(), BTreeMap::new()),
        };
        ServerError {
            code: status.code(),
            never_sent: is_connect_error(&status),
            message: full_message(&status),
            reason,
            metadata,
        }
    }
}

impl From<v1::Error> for ServerError {
    fn from(e: v1::Error) -> Self {
        ServerError {
            code: Code::from_i32(e.code),
            reason: e.reason,
            message: e.message,
            metadata: e.metadata,
            never_sent: false,
        }
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |e| e.source())
}

fn is_connect_error(status: &Status) -> bool {
    causes(status).any(|e| e.is::<tonic::ConnectError>())
}

/// The innermost cause says most ("Connection refused"), and tonic's own message least.
fn full_message(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) => {
            let cause = cause.to_string();
            if status.message().contains(&cause) {
                status.message().to_owned()
            } else {
                format!("{}: {cause}", status.message())
            }
        }
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(code: Code, reason: &str, retry: &str) -> ServerError {
        ServerError {
            reason: reason.into(),
            metadata: [("retry".to_owned(), retry.to_owned())].into(),
            ..ServerError::local(code, "m")
        }
    }

    #[test]
    fn only_what_may_help_is_tried_again() {
        let e = server_error(Code::Unavailable, "NOT_LEADER", "yes");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::Yes, false));
        let e = server_error(Code::Unavailable, "OUTCOME_UNKNOWN", "same_ids");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::SameIds, true));
        let e = server_error(Code::FailedPrecondition, "WRONG_EXPECTED_REVISION", "no");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::No, false));
        let e = server_error(Code::Internal, "INTERNAL", "no");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::No, true));
        let e = ServerError::local(Code::Unknown, "connection reset");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::SameIds, true));
        let e = ServerError::local(Code::Unimplemented, "no such call");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::No, false));
        let e = ServerError::local(Code::OutOfRange, "the answer is too large");
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::No, true));
        let e = ServerError {
            never_sent: true,
            ..ServerError::local(Code::Unavailable, "connection refused")
        };
        assert_eq!((e.retry(), e.may_be_stored()), (Retry::Yes, false));
    }
}
