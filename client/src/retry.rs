//! When to try again, and what a series of tries amounts to. No IO here.
use std::time::Duration;

use crate::{
    ClientError, Expected, RetryConfig,
    error::{Retry, ServerError},
};

/// The wait before try `tries` + 1: it doubles, and a random half of it keeps callers apart.
/// `random` is from [0, 1).
pub(crate) fn backoff(retry: &RetryConfig, tries: u32, random: f64) -> Duration {
    let doubled = retry.backoff_min.saturating_mul(1 << tries.saturating_sub(1).min(16));
    doubled.min(retry.backoff_max).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

/// What is known of one append over its tries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tries {
    pub(crate) count: u32,
    /// Some try ended without an answer that says whether it is stored. A delayed copy of it may
    /// take effect even after a later try was refused.
    pub(crate) may_be_stored: bool,
    pub(crate) last: Option<ServerError>,
}

impl Tries {
    /// Takes a try's failure in. `true`: try again, as far as the deadline allows.
    pub(crate) fn failed(&mut self, error: ServerError) -> bool {
        let again = error.retry() != Retry::No;
        self.count += 1;
        self.may_be_stored |= error.may_be_stored();
        self.last = Some(error);
        again
    }

    /// The error of an append that is not tried again.
    pub(crate) fn conclude_append(self, expected: Expected) -> ClientError {
        let tries = self.count;
        let Some(last) = self.last else {
            return ClientError::Closed;
        };
        let unknown = self.may_be_stored && !stays_refused(&last, expected);
        match (unknown, last.retry()) {
            (true, _) => ClientError::Unknown { tries, last },
            (false, Retry::No) => ClientError::Refused(last),
            (false, _) => ClientError::Unavailable { tries, last },
        }
    }

    /// The error of a call without effects.
    pub(crate) fn conclude_read(self) -> ClientError {
        let tries = self.count;
        match self.last {
            None => ClientError::Closed,
            Some(last) if last.retry() == Retry::No => ClientError::Refused(last),
            Some(last) => ClientError::Unavailable { tries, last },
        }
    }
}

/// Whether a delayed copy of the same append would be refused too, whenever it arrives. Ids are
/// looked at before the revision, so this refusal also says that no copy was stored before it.
fn stays_refused(refusal: &ServerError, expected: Expected) -> bool {
    match refusal.reason.as_str() {
        // A revision only rises.
        "WRONG_EXPECTED_REVISION" => match expected {
            Expected::Exact(expected) => refusal
                .metadata
                .get("actual")
                .and_then(|a| a.parse().ok())
                .is_some_and(|actual: u64| actual > expected),
            Expected::Any | Expected::NoStream | Expected::StreamExists => false,
        },
        "EVENT_ID_CONFLICT" | "STREAM_TOMBSTONED" | "DUPLICATE_EVENT_ID" | "EVENT_TOO_LARGE"
        | "APPEND_TOO_LARGE" => true,
        reason => reason.starts_with("INVALID_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn answer(code: Code, reason: &str, metadata: &[(&str, &str)]) -> ServerError {
        ServerError {
            reason: reason.into(),
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..ServerError::local(code, "m")
        }
    }

    fn wrong_revision(actual: &str) -> ServerError {
        answer(
            Code::FailedPrecondition,
            "WRONG_EXPECTED_REVISION",
            &[("retry", "no"), ("actual", actual)],
        )
    }

    fn unknown() -> ServerError {
        answer(Code::Unavailable, "OUTCOME_UNKNOWN", &[("retry", "same_ids")])
    }

    fn conclude(errors: Vec<ServerError>, expected: Expected) -> ClientError {
        let mut tries = Tries::default();
        for e in errors {
            tries.failed(e);
        }
        tries.conclude_append(expected)
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_half_of_it_is_random() {
        let retry = RetryConfig {
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(100),
            ..Default::default()
        };
        let ms = |tries, random| backoff(&retry, tries, random).as_millis();
        assert_eq!([ms(1, 0.0), ms(1, 1.0)], [10, 20]);
        assert_eq!([ms(2, 0.0), ms(2, 1.0)], [20, 40]);
        assert_eq!([ms(4, 1.0), ms(40, 1.0)], [100, 100]);
    }

    #[test]
    fn a_refusal_at_the_first_try_is_a_refusal() {
        let e = conclude(vec![wrong_revision("3")], Expected::Any);
        assert!(matches!(e, ClientError::Refused(_)), "{e}");
    }

    #[test]
    fn a_refusal_after_an_unknown_try_is_unknown_unless_a_late_copy_would_be_refused_too() {
        let e = conclude(vec![unknown(), wrong_revision("3")], Expected::Exact(2));
        assert!(matches!(e, ClientError::Refused(_)), "{e}");
        // The stream may yet grow to revision 5, and a late copy of the first try fit.
        let e = conclude(vec![unknown(), wrong_revision("3")], Expected::Exact(5));
        assert!(matches!(e, ClientError::Unknown { tries: 2, .. }), "{e}");
        let e = conclude(vec![unknown(), wrong_revision("none")], Expected::StreamExists);
        assert!(matches!(e, ClientError::Unknown { .. }), "{e}");
        let full =
            answer(Code::ResourceExhausted, "DISK_FULL", &[("retry", "no"), ("free_bytes", "1")]);
        let e = conclude(vec![unknown(), full], Expected::Any);
        assert!(matches!(e, ClientError::Unknown { .. }), "{e}");
    }

    #[test]
    fn tries_without_any_effect_are_unavailable_and_one_without_answer_makes_it_unknown() {
        let no_leader = || answer(Code::Unavailable, "NO_LEADER", &[("retry", "yes")]);
        let e = conclude(vec![no_leader(), no_leader()], Expected::Any);
        assert!(matches!(e, ClientError::Unavailable { tries: 2, .. }), "{e}");
        let e = conclude(vec![unknown(), no_leader()], Expected::Any);
        assert!(matches!(e, ClientError::Unknown { .. }), "{e}");
        let internal = answer(Code::Internal, "INTERNAL", &[("retry", "no")]);
        let e = conclude(vec![internal], Expected::Any);
        assert!(matches!(e, ClientError::Unknown { .. }), "{e}");
    }
}
