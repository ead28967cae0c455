use super::*;
use crate::api::errors::LeaderHint;

fn status(e: ApiError) -> Status {
    e.into()
}

#[test]
fn only_what_proves_that_nothing_was_done_may_be_tried_elsewhere() {
    let leader = Some(LeaderHint { node: NodeId(3), url: String::new() });
    assert!(matches!(
        sort_out(status(ApiError::NotLeader { leader })),
        Forwarded::NotLeader(Some(NodeId(3)))
    ));
    assert!(matches!(
        sort_out(status(ApiError::ReplicaClosed("fault".into()))),
        Forwarded::NotLeader(None)
    ));
    for answer in [
        ApiError::OutcomeUnknown("leadership changed".into()),
        ApiError::EarlierAppendFailed,
        ApiError::Overloaded("too much"),
        ApiError::DeadlineExceeded { in_flight: true },
    ] {
        assert!(matches!(sort_out(status(answer)), Forwarded::Answer(_)));
    }
    assert!(matches!(sort_out(Status::unavailable("reset")), Forwarded::Lost(_)));
    // The same word of another service proves nothing.
    let details = tonic_types::ErrorDetails::with_error_info("NOT_LEADER", "other.dev", []);
    let foreign = Status::with_error_details(tonic::Code::Unavailable, "", details);
    assert!(matches!(sort_out(foreign), Forwarded::Lost(_)));
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_got_nothing() {
    // Bound and dropped: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let router = Router::default();
    let channel = router.channel(NodeId(2), &format!("http://127.0.0.1:{port}")).unwrap();
    let mut client = EventStoreClient::new(channel);
    let e = client.append(ringfold_proto::v1::AppendRequest::default()).await.unwrap_err();
    assert!(matches!(sort_out(e), Forwarded::Unreachable));
}
