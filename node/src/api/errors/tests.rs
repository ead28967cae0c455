use super::*;

fn samples() -> Vec<ApiError> {
    let id = Uuid::from_u128(7);
    vec![
        ApiError::InvalidStreamName { field: "stream", limit: 1_024, what: "is empty" },
        ApiError::InvalidEvent { field: "events[0].type".into(), limit: 256, what: "is empty" },
        ApiError::InvalidJson { field: "events[0].data".into(), what: "no".into() },
        ApiError::EventTooLarge { field: "events[0]".into(), limit: 1, actual: 2 },
        ApiError::AppendTooLarge { field: "events".into(), limit: 1, actual: 2 },
        ApiError::DuplicateEventId { id },
        ApiError::argument("min_position", "is of another partition"),
        ApiError::WrongExpectedRevision { expected: "4".into(), actual: None },
        ApiError::EarlierAppendFailed,
        ApiError::StreamTombstoned,
        ApiError::AlreadyBootstrapped { cluster_id: "c".into() },
        ApiError::NotBootstrapped,
        ApiError::FeatureLevel("no".into()),
        ApiError::EventIdConflict { id, revision: 3 },
        ApiError::DrainImpossible { node_id: 3, reasons: vec!["too few nodes".into()] },
        ApiError::MemberRefused { node_id: 3, what: "it is active".into() },
        ApiError::StaleEpoch { expected: 4, actual: 5 },
        ApiError::MemberNotFound { node_id: 9 },
        ApiError::StreamNotFound,
        ApiError::Overloaded("too many reads wait"),
        ApiError::DiskFull { free_bytes: 1, limit_bytes: 2 },
        ApiError::NotLeader {
            leader: Some(LeaderHint { node: NodeId(2), url: "http://b:2600".into() }),
        },
        ApiError::NoLeader { partition: 3 },
        ApiError::NodeStopping,
        ApiError::NodeStarting,
        ApiError::ReplicaClosed("its database is corrupt".into()),
        ApiError::ClockBehind { ahead_ms: 900 },
        ApiError::OutcomeUnknown("leadership changed".into()),
        ApiError::DeadlineExceeded { in_flight: true },
        ApiError::Internal,
    ]
}

#[test]
fn every_reason_reaches_the_client_with_its_code_and_its_fields() {
    let samples = samples();
    assert_eq!(samples.iter().map(|e| e.reason().unwrap()).collect::<Vec<_>>(), Reason::ALL);
    for e in samples {
        let reason = e.reason().unwrap();
        let mut expected: Vec<_> =
            reason.fields().iter().copied().chain(["action", "retry"]).collect();
        expected.sort_unstable();

        let status = Status::from(e.clone());
        assert_eq!(status.code(), reason.code());
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason.name(), DOMAIN));
        let mut keys: Vec<_> = info.metadata.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{}", reason.name());
        assert_eq!(info.metadata["retry"], reason.retry().name());

        // The error of one append of a stream says the same, also when another node said it first.
        let own = v1::Error::from(e);
        assert_eq!(own.code, reason.code() as i32);
        assert_eq!(own.metadata, info.metadata.into_iter().collect());
        assert_eq!(v1::Error::from(ApiError::Forwarded(Box::new(status))), own);
    }
}

#[test]
fn a_wrong_revision_names_both() {
    let info = |actual| {
        let refusal = Refusal::WrongExpectedRevision { actual };
        Status::from(ApiError::refused(refusal, || "5".into())).get_details_error_info().unwrap()
    };
    assert_eq!(info(Some(9)).metadata["actual"], "9");
    assert_eq!(info(Some(9)).metadata["expected"], "5");
    assert_eq!(info(None).metadata["actual"], "none");
}

/// SCREAMING_SNAKE name of a code, as gRPC spells it.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[test]
fn the_documentation_lists_every_reason() {
    let mut table =
        String::from("| code | reason | retry | metadata | what to do |\n|---|---|---|---|---|\n");
    for r in Reason::ALL {
        let fields: Vec<_> = r.fields().iter().map(|f| format!("`{f}`")).collect();
        table += &format!(
            "| {} | {} | {} | {} | {} |\n",
            code_name(r.code()),
            r.name(),
            r.retry().name(),
            fields.join(", "),
            r.action()
        );
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
    let doc = std::fs::read_to_string(path).unwrap();
    assert!(doc.contains(&table), "docs/errors.md must contain this table:\n{table}");
}
