//! Errors as a person and a program see them: the cause, the next step, and an exit code.
use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use tonic::Code;
use tonic_types::StatusExt;

/// Documented in docs/cli.md; a code never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Whoever read the output has gone: no error, and nothing more to say.
    Closed = 0,
    /// Anything that has no code of its own.
    Other = 1,
    /// A flag, a name or an event that is refused whatever the cluster holds.
    Usage = 2,
    NotFound = 3,
    /// The stream or the cluster is not as expected: a wrong revision, an id used for another event.
    Refused = 4,
    /// Nothing was done, or nothing that doing it again would double: try again.
    Unavailable = 5,
    /// The append may be stored or not: send it again with the same ids.
    Unknown = 6,
    /// No room: a disk is nearly full.
    NoRoom = 7,
}

#[derive(Debug)]
pub struct CliError {
    pub exit: Exit,
    /// From the list of reasons (docs/errors.md); empty: not from a cluster.
    pub reason: String,
    pub message: String,
    /// What to do next.
    pub action: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl CliError {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            reason: String::new(),
            message: message.into(),
            action: None,
            metadata: BTreeMap::new(),
        }
    }

    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Exit::Other, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(action.into());
        self
    }

    /// Says what was being done.
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// From what a cluster said.
    pub fn answered(
        code: Code,
        reason: &str,
        message: &str,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let retry = metadata.get("retry").map_or("", String::as_str);
        let mut error = Self::new(classify(code, reason, retry), message);
        error.reason = reason.into();
        error.action = metadata.get("action").filter(|a| !a.is_empty()).cloned();
        error.metadata = metadata;
        error
    }

    /// For stderr: text, or one JSON object.
    pub fn render(&self, as_json: bool) -> String {
        if as_json {
            let mut metadata = self.metadata.clone();
            metadata.remove("action");
            return json!({"error": {
                "exit": self.exit as u8,
                "reason": self.reason,
                "message": self.message,
                "action": self.action,
                "metadata": metadata,
            }})
            .to_string();
        }
        let mut text = format!("error: {}", self.message);
        if !self.reason.is_empty() {
            text.push_str(&format!(" ({})", self.reason));
        }
        if let Some(action) = &self.action {
            text.push_str(&format!("\n  next: {action}"));
        }
        text
    }
}

/// The exit code of an answer, by its reason where one is known, else by its gRPC code.
fn classify(code: Code, reason: &str, retry: &str) -> Exit {
    match (reason, retry) {
        ("DISK_FULL", _) => return Exit::NoRoom,
        ("OUTCOME_UNKNOWN", _) | (_, "same_ids") => return Exit::Unknown,
        (_, "yes") => return Exit::Unavailable,
        _ => {}
    }
    match code {
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::NotFound => Exit::NotFound,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Exit::Refused,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Exit::Unavailable,
        _ => Exit::Other,
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        let (reason, metadata) = match status.get_details_error_info() {
            Some(info) => (info.reason, info.metadata.into_iter().collect()),
            None => Default::default(),
        };
        Self::answered(status.code(), &reason, status.message(), metadata)
    }
}

impl From<io::Error> for CliError {
    fn from(e: io::Error) -> Self {
        let exit = match e.kind() {
            io::ErrorKind::BrokenPipe => Exit::Closed,
            _ => Exit::Other,
        };
        Self::new(exit, format!("cannot write the output: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_exit_code() {
        for (code, reason, retry, exit) in [
            (Code::InvalidArgument, "INVALID_STREAM_NAME", "no", Exit::Usage),
            (Code::InvalidArgument, "EVENT_TOO_LARGE", "no", Exit::Usage),
            (Code::FailedPrecondition, "WRONG_EXPECTED_REVISION", "no", Exit::Refused),
            (Code::FailedPrecondition, "STREAM_TOMBSTONED", "no", Exit::Refused),
            (Code::AlreadyExists, "EVENT_ID_CONFLICT", "no", Exit::Refused),
            (Code::NotFound, "STREAM_NOT_FOUND", "no", Exit::NotFound),
            (Code::ResourceExhausted, "OVERLOADED", "yes", Exit::Unavailable),
            (Code::ResourceExhausted, "DISK_FULL", "no", Exit::NoRoom),
            (Code::Unavailable, "NO_LEADER", "yes", Exit::Unavailable),
            (Code::Unavailable, "OUTCOME_UNKNOWN", "same_ids", Exit::Unknown),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "same_ids", Exit::Unknown),
            (Code::DeadlineExceeded, "", "", Exit::Unavailable),
            (Code::Unavailable, "", "", Exit::Unavailable),
            (Code::Internal, "INTERNAL", "no", Exit::Other),
        ] {
            assert_eq!(classify(code, reason, retry), exit, "{reason} {code:?}");
        }
    }

    #[test]
    fn a_persons_error_names_cause_reason_and_next_step() {
        let metadata = [("action", "read the stream again"), ("actual", "7")];
        let metadata = metadata.map(|(k, v)| (k.to_string(), v.to_string())).into();
        let error = CliError::answered(
            Code::FailedPrecondition,
            "WRONG_EXPECTED_REVISION",
            "expected revision 5, the stream is at 7",
            metadata,
        )
        .context("append to a-1");
        assert_eq!(
            error.render(false),
            "error: append to a-1: expected revision 5, the stream is at 7 (WRONG_EXPECTED_REVISION)\n  \
             next: read the stream again"
        );
        let json: serde_json::Value = serde_json::from_str(&error.render(true)).unwrap();
        assert_eq!(json["error"]["exit"], 4);
        assert_eq!(json["error"]["reason"], "WRONG_EXPECTED_REVISION");
        assert_eq!(json["error"]["metadata"]["actual"], "7");
        assert!(!error.render(true).contains('\n'));
    }

    #[test]
    fn the_details_of_a_status_are_read() {
        let mut details = tonic_types::ErrorDetails::new();
        let metadata = [("action".to_string(), "wait".to_string())];
        details.set_error_info("NO_LEADER", "ringfold.dev", metadata);
        let status = tonic::Status::with_error_details(Code::Unavailable, "no leader", details);
        let error = CliError::from(status);
        assert_eq!(error.reason, "NO_LEADER");
        assert_eq!(error.action.as_deref(), Some("wait"));
    }
}
