//! What a call brings along besides its request: its deadline, and whether a node forwarded it.
use super::errors::ApiError;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// Of calls that name no deadline.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest deadline that is kept; a call may name a later one.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3_600);
/// Marks a call that a node forwarded: it is not forwarded again.
pub const FORWARDED: &str = "ringfold-forwarded";

/// The frame of one call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub deadline: Instant,
    /// Whether the client named the deadline.
    pub has_deadline: bool,
    pub forwarded: bool,
}

impl Call {
    /// Fails at once when the deadline has passed: nothing may be proposed then.
    pub fn of(metadata: &MetadataMap) -> Result<Call, ApiError> {
        let forwarded = metadata.contains_key(FORWARDED);
        let Some(header) = metadata.get("grpc-timeout") else {
            return Ok(Call {
                deadline: Instant::now() + DEFAULT_TIMEOUT,
                has_deadline: false,
                forwarded,
            });
        };
        let timeout = header
            .to_str()
            .ok()
            .and_then(parse_timeout)
            .ok_or_else(|| ApiError::argument("grpc-timeout", "is no duration as gRPC spells it"))?
            .min(MAX_TIMEOUT);
        if timeout.is_zero() {
            return Err(ApiError::DeadlineExceeded { in_flight: false });
        }
        // A little earlier than the transport's own timer, whose error would name no reason.
        let margin = (timeout / 10).min(Duration::from_millis(5));
        Ok(Call { deadline: Instant::now() + timeout - margin, has_deadline: true, forwarded })
    }

    /// The frame of one step of a long call: each has a deadline, also where the call has none.
    pub fn step(&self) -> Call {
        let deadline = Instant::now() + DEFAULT_TIMEOUT;
        let deadline = if self.has_deadline { deadline.min(self.deadline) } else { deadline };
        Call { deadline, ..*self }
    }

    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The future's result, or `DEADLINE_EXCEEDED`. `in_flight`: an append may be stored by then.
    pub async fn within<T>(
        &self,
        in_flight: bool,
        future: impl Future<Output = T>,
    ) -> Result<T, ApiError> {
        tokio::time::timeout_at(self.deadline, future)
            .await
            .map_err(|_| ApiError::DeadlineExceeded { in_flight })
    }
}

/// `1 to 8 digits, then one of H M S m u n`.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::errors::Reason;

    fn call(timeout: &str) -> Result<Call, ApiError> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", timeout.parse().unwrap());
        Call::of(&metadata)
    }

    #[test]
    fn timeouts_are_read_as_grpc_spells_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("2M", Some(Duration::from_secs(120))),
            ("30S", Some(Duration::from_secs(30))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("m", None),
            ("123456789m", None),
            ("-1S", None),
            ("1", None),
            ("1x", None),
            ("1ü", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn a_deadline_of_zero_fails_at_once() {
        assert_eq!(call("0m").unwrap_err().reason(), Some(Reason::DeadlineExceeded));
        assert_eq!(call("soon").unwrap_err().reason(), Some(Reason::InvalidArgument));
    }

    #[test]
    fn the_deadline_lies_before_the_transports_own() {
        let before = Instant::now();
        let call = call("1S").unwrap();
        assert!(call.deadline < before + Duration::from_secs(1));
        assert!(call.deadline > before + Duration::from_millis(900));
        assert!(call.has_deadline && !call.forwarded);
    }
}
