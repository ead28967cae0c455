//! Single calls, recorded as a history has them.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfold_proto::v1::{self, expected_revision};
use tonic::{Code, Status};

use super::Store;
use crate::cluster::{detail, reason, timed, within};
use crate::history::{
    AppendOutcome, Clock, Consistency, Event, Expected, Lookup, LookupOutcome, Read, SeenEvent,
    SeenState, Span,
};

/// One attempt; a paused node says nothing for as long.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_secs(4);

pub fn append_request(
    stream: &str,
    events: &[Event],
    expected: Expected,
    after_position: u64,
) -> v1::AppendRequest {
    use expected_revision::Expected as E;
    let expected = match expected {
        Expected::Any => E::Any(expected_revision::Any {}),
        Expected::NoStream => E::NoStream(expected_revision::NoStream {}),
        Expected::StreamExists => E::StreamExists(expected_revision::StreamExists {}),
        Expected::Exact(n) => E::Exact(n),
    };
    v1::AppendRequest {
        stream: stream.to_string(),
        events: events.iter().map(new_event).collect(),
        expected: Some(v1::ExpectedRevision { expected: Some(expected) }),
        after_position,
    }
}

pub fn new_event(event: &Event) -> v1::NewEvent {
    v1::NewEvent {
        id: Bytes::copy_from_slice(&event.id.to_be_bytes()),
        r#type: "Changed".into(),
        schema_version: 1,
        content_type: String::new(),
        data: event.data.clone(),
        metadata: Bytes::new(),
    }
}

pub(super) fn acknowledged(ok: &v1::AppendResponse) -> AppendOutcome {
    AppendOutcome::Acknowledged {
        first_revision: ok.first_revision,
        last_revision: ok.last_revision,
        first_position: ok.first_position,
        last_position: ok.last_position,
        partition: ok.partition,
    }
}

pub(super) fn failed(
    code: Code,
    reason: &str,
    metadata: impl Fn(&str) -> Option<String>,
    message: &str,
) -> AppendOutcome {
    // These say that nothing was stored; anything else leaves it open. Without a reason it is not
    // the product that speaks: HTTP/2 resets become codes too.
    let definite = !reason.is_empty()
        && matches!(
            code,
            Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::NotFound
                | Code::ResourceExhausted
        );
    if !definite {
        return AppendOutcome::Unknown { why: format!("{code:?} {reason}: {message}") };
    }
    let retry = metadata("retry").is_some_and(|r| r != "no");
    let actual = (reason == "WRONG_EXPECTED_REVISION").then(|| {
        let actual = metadata("actual").expect("WRONG_EXPECTED_REVISION names the actual revision");
        match actual.as_str() {
            "none" => None,
            revision => Some(revision.parse().expect("a revision or `none`")),
        }
    });
    // A full disk refuses whatever comes, known or not.
    let for_good = !retry && reason != "DISK_FULL";
    AppendOutcome::Refused { reason: reason.to_string(), actual, for_good }
}

pub fn outcome_of(answer: Result<v1::AppendResponse, Status>) -> AppendOutcome {
    match answer {
        Ok(ok) => acknowledged(&ok),
        Err(status) => failed(
            status.code(),
            &reason(&status),
            |field| detail(&status, field),
            status.message(),
        ),
    }
}

pub fn consistency_of(consistency: Consistency) -> i32 {
    (match consistency {
        Consistency::Linearizable => v1::Consistency::Linearizable,
        Consistency::Lease => v1::Consistency::Lease,
        Consistency::Stale => v1::Consistency::Stale,
    }) as i32
}

/// One lookup, recorded.
pub async fn lookup(
    store: &mut Store,
    clock: Clock,
    client: u32,
    stream: Arc<str>,
    consistency: Consistency,
    min_position: u64,
) -> Lookup {
    let request = v1::LookupRequest {
        stream: stream.to_string(),
        consistency: consistency_of(consistency),
        min_position,
    };
    let start_ns = clock.now_ns();
    let answer = within(store.lookup(timed(request, ATTEMPT_MAX)), ATTEMPT_MAX).await;
    let outcome = match answer {
        Ok(v1::LookupResponse { state: Some(s) }) => LookupOutcome::State(SeenState {
            revision: s.revision,
            position: s.position,
            data: s.data,
        }),
        Ok(_) => LookupOutcome::Failed("an answer without a state".into()),
        Err(s) if reason(&s) == "STREAM_NOT_FOUND" => LookupOutcome::None,
        Err(s) => LookupOutcome::Failed(format!("{:?} {}: {}", s.code(), reason(&s), s.message())),
    };
    Lookup {
        client,
        stream,
        consistency,
        min_position,
        span: Span { start_ns, end_ns: clock.now_ns() },
        outcome,
    }
}

/// One read, recorded: `request` without its span and what was seen.
pub async fn read(store: &mut Store, clock: Clock, mut request: Read) -> Read {
    let message = v1::ReadRequest {
        stream: request.stream.to_string(),
        from_revision: request.from_revision,
        backwards: request.backwards,
        max_count: request.max_count,
        consistency: consistency_of(request.consistency),
        min_position: request.min_position,
    };
    let start_ns = clock.now_ns();
    let work = async {
        let mut pages = store.read(timed(message, ATTEMPT_MAX)).await?.into_inner();
        let mut seen = Vec::new();
        while let Some(page) = pages.message().await? {
            seen.extend(page.events.into_iter().map(seen_event));
        }
        Ok::<_, Status>(seen)
    };
    request.seen = match tokio::time::timeout(ATTEMPT_MAX, work).await {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(s)) if reason(&s) == "STREAM_NOT_FOUND" => Some(Vec::new()),
        _ => None,
    };
    request.span = Span { start_ns, end_ns: clock.now_ns() };
    request
}

fn seen_event(e: v1::RecordedEvent) -> SeenEvent {
    SeenEvent {
        revision: e.revision,
        position: e.position,
        id: u128::from_be_bytes(e.id[..].try_into().expect("an id of 16 bytes")),
        data: e.data,
    }
}
