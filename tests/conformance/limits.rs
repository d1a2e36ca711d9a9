//! Bounds: what is outside them is refused, the field named, nothing written;
//! what is just inside is taken.

use std::{collections::HashMap, time::Duration};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BatchMarkProcessedRequest, CheckSessionLeaseRequest,
    CleanupRequest, CleanupResponse, EventKey, IsProcessedRequest, MarkProcessedRequest,
    ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, SessionKey, SlackEvent, ThreadKey,
    batch_mark_processed_result::Result as Item, event_key, session_key,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{Client, Fixture, acquire, event, granted, mark, seconds, session},
    on_all_stores,
};

mod bad;
mod ends;

use bad::{bad_durations, bad_events, bad_ids, bad_required_ids, bad_sessions, interaction, slack};

on_all_stores!(
    a_bad_event_is_refused_wherever_it_is_given,
    a_bad_session_is_refused_wherever_it_is_given,
    a_bad_duration_is_refused_wherever_it_is_given,
    other_bad_fields_are_refused_by_name,
    a_bad_item_of_a_batch_is_named_by_its_place,
);

/// A lease id that nobody was given.
const STRANGER: &str = "6f2c4a52-8d5d-4a4e-9b0b-0f5c2f1f7a11";
const DAY: i64 = 86_400;

enum Call {
    Mark(MarkProcessedRequest),
    Batch(BatchMarkProcessedRequest),
    Is(IsProcessedRequest),
    Acquire(AcquireSessionLeaseRequest),
    Renew(RenewSessionLeaseRequest),
    Release(ReleaseSessionLeaseRequest),
    Check(CheckSessionLeaseRequest),
    Cleanup(CleanupRequest),
}

impl Call {
    async fn send(self, client: &mut Client) -> Result<(), Status> {
        match self {
            Self::Mark(request) => client.mark_processed(request).await.map(drop),
            Self::Batch(request) => client.batch_mark_processed(request).await.map(drop),
            Self::Is(request) => client.is_processed(request).await.map(drop),
            Self::Acquire(request) => client.acquire_session_lease(request).await.map(drop),
            Self::Renew(request) => client.renew_session_lease(request).await.map(drop),
            Self::Release(request) => client.release_session_lease(request).await.map(drop),
            Self::Check(request) => client.check_session_lease(request).await.map(drop),
            Self::Cleanup(request) => client.cleanup(request).await.map(drop),
        }
    }

    /// Every call that takes an event.
    fn with_event(event: Option<EventKey>) -> [Self; 2] {
        [
            Self::Mark(MarkProcessedRequest { event: event.clone(), ..Default::default() }),
            Self::Is(IsProcessedRequest { event, ..Default::default() }),
        ]
    }

    /// Every call that takes a session.
    fn with_session(session: Option<SessionKey>) -> [Self; 4] {
        let lease_id = STRANGER.to_owned();
        [
            Self::Acquire(AcquireSessionLeaseRequest {
                session: session.clone(),
                holder: "h".into(),
                ..Default::default()
            }),
            Self::Renew(RenewSessionLeaseRequest {
                session: session.clone(),
                lease_id: lease_id.clone(),
                ttl: None,
            }),
            Self::Release(ReleaseSessionLeaseRequest { session: session.clone(), lease_id }),
            Self::Check(CheckSessionLeaseRequest { session, fencing_token: 1 }),
        ]
    }
}

/// Sends `call`, which must be refused because of `field` and nothing else.
async fn refused(client: &mut Client, call: Call, field: &str, case: &str) {
    let status = call.send(client).await.expect_err(&format!("{case}: {field}"));
    assert_eq!(status.code(), Code::InvalidArgument, "{case}: {field}");
    let named: Vec<String> = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("{case}: {field}: no BadRequest in {status:?}"))
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect();
    assert_eq!(named, [field], "{case}");
}

/// Nothing is on record, seen through every window there is.
async fn nothing_was_written(f: &mut Fixture) {
    let ask = IsProcessedRequest { event: event("T", "x"), ..Default::default() };
    let answer = f.client.is_processed(ask).await.unwrap().into_inner();
    assert!(!answer.processed);
    // Past the longest TTL, where a dry run counts all rows of all teams.
    f.clock.advance(Duration::from_hours(31 * 24));
    let count = CleanupRequest { older_than: seconds(1), dry_run: true, ..Default::default() };
    let counted = f.client.cleanup(count).await.unwrap().into_inner();
    assert_eq!(counted, CleanupResponse::default());
    let taken = f.client.acquire_session_lease(acquire("T", "x", "h")).await;
    granted(taken.unwrap().into_inner());
}

async fn a_bad_event_is_refused_wherever_it_is_given(mut f: Fixture) {
    for (field, case, event) in bad_events() {
        for call in Call::with_event(event) {
            refused(&mut f.client, call, &field, &case).await;
        }
    }
    nothing_was_written(&mut f).await;
}

async fn a_bad_session_is_refused_wherever_it_is_given(mut f: Fixture) {
    for (field, case, session) in bad_sessions() {
        for call in Call::with_session(session) {
            refused(&mut f.client, call, &field, &case).await;
        }
    }
    nothing_was_written(&mut f).await;
}

async fn a_bad_duration_is_refused_wherever_it_is_given(mut f: Fixture) {
    let second = Duration::from_secs(1);
    for (case, ttl) in bad_durations(second, 30 * DAY) {
        let call = Call::Mark(MarkProcessedRequest { ttl: Some(ttl), ..mark("T", "x") });
        refused(&mut f.client, call, "ttl", case).await;
    }
    for (case, ttl) in bad_durations(second, 15 * 60) {
        let call =
            Call::Acquire(AcquireSessionLeaseRequest { ttl: Some(ttl), ..acquire("T", "x", "h") });
        refused(&mut f.client, call, "ttl", case).await;
        let call = Call::Renew(RenewSessionLeaseRequest {
            session: session("T", "x"),
            lease_id: STRANGER.into(),
            ttl: Some(ttl),
        });
        refused(&mut f.client, call, "ttl", case).await;
    }
    for (case, wait) in bad_durations(Duration::ZERO, 10 * 60) {
        let call = Call::Acquire(AcquireSessionLeaseRequest {
            wait: Some(wait),
            ..acquire("T", "x", "h")
        });
        refused(&mut f.client, call, "wait", case).await;
    }
    for (case, older_than) in bad_durations(Duration::ZERO, 3_650 * DAY) {
        let call =
            Call::Cleanup(CleanupRequest { older_than: Some(older_than), ..Default::default() });
        refused(&mut f.client, call, "older_than", case).await;
    }
    nothing_was_written(&mut f).await;
}

async fn other_bad_fields_are_refused_by_name(mut f: Fixture) {
    let mut bad: Vec<(&str, &str, Call)> = Vec::new();
    for (case, id) in bad_ids() {
        let request_id = id.clone();
        bad.push((
            "request_id",
            case,
            Call::Mark(MarkProcessedRequest { request_id, ..mark("T", "x") }),
        ));
        let request_id = id.clone();
        bad.push((
            "request_id",
            case,
            Call::Acquire(AcquireSessionLeaseRequest { request_id, ..acquire("T", "x", "h") }),
        ));
        let epic_id = id.clone();
        bad.push((
            "epic_id",
            case,
            Call::Acquire(AcquireSessionLeaseRequest { epic_id, ..acquire("T", "x", "h") }),
        ));
        bad.push(("labels", case, with_labels([("name".into(), id.clone())])));
        let cleanup = CleanupRequest { team_id: id.clone(), ..Default::default() };
        bad.push(("team_id", case, Call::Cleanup(cleanup)));
        bad.push(("lease_id", case, release(&id)));
        bad.push(("lease_id", case, renew(&id)));
    }
    for (case, id) in bad_required_ids() {
        bad.push(("holder", case, Call::Acquire(acquire("T", "x", &id))));
        bad.push(("labels", case, with_labels([(id, "value".into())])));
    }
    for id in ["", "x", "6f2c4a52", &STRANGER[1..]] {
        bad.push(("lease_id", "no lease id", release(id)));
        bad.push(("lease_id", "no lease id", renew(id)));
    }
    bad.push(("labels", "nine", with_labels((0..9).map(|n| (n.to_string(), String::new())))));
    let payload_digest = vec![0; 33];
    bad.push((
        "payload_digest",
        "33 bytes",
        Call::Mark(MarkProcessedRequest { payload_digest, ..mark("T", "x") }),
    ));
    for fencing_token in [0, -1, i64::MIN] {
        let check = CheckSessionLeaseRequest { session: session("T", "x"), fencing_token };
        bad.push(("fencing_token", "below 1", Call::Check(check)));
    }
    for max_rows in [-1, i32::MIN, 1_000_001, i32::MAX] {
        let cleanup = CleanupRequest { max_rows, ..Default::default() };
        bad.push(("max_rows", "out of range", Call::Cleanup(cleanup)));
    }
    let all_of_all_teams = CleanupRequest { older_than: seconds(0), ..Default::default() };
    bad.push(("team_id", "missing where older_than is zero", Call::Cleanup(all_of_all_teams)));
    for count in [0, 1_001] {
        let requests = vec![mark("T", "x"); count];
        bad.push(("requests", "size", Call::Batch(BatchMarkProcessedRequest { requests })));
    }
    for (field, case, call) in bad {
        refused(&mut f.client, call, field, case).await;
    }
    nothing_was_written(&mut f).await;
}

fn with_labels(labels: impl IntoIterator<Item = (String, String)>) -> Call {
    Call::Acquire(AcquireSessionLeaseRequest {
        labels: labels.into_iter().collect(),
        ..acquire("T", "x", "h")
    })
}

fn renew(lease_id: &str) -> Call {
    Call::Renew(RenewSessionLeaseRequest {
        session: session("T", "x"),
        lease_id: lease_id.into(),
        ttl: None,
    })
}

fn release(lease_id: &str) -> Call {
    Call::Release(ReleaseSessionLeaseRequest {
        session: session("T", "x"),
        lease_id: lease_id.into(),
    })
}

async fn a_bad_item_of_a_batch_is_named_by_its_place(mut f: Fixture) {
    let mut bad: Vec<(String, MarkProcessedRequest)> = bad_events()
        .into_iter()
        .map(|(field, _, event)| (field, MarkProcessedRequest { event, ..Default::default() }))
        .collect();
    for (_, ttl) in bad_durations(Duration::from_secs(1), 30 * DAY) {
        bad.push(("ttl".into(), MarkProcessedRequest { ttl: Some(ttl), ..mark("T", "x") }));
    }
    for (_, request_id) in bad_ids() {
        bad.push(("request_id".into(), MarkProcessedRequest { request_id, ..mark("T", "x") }));
    }
    let (fields, mut requests): (Vec<_>, Vec<_>) = bad.into_iter().unzip();
    requests.insert(0, mark("T", "before"));
    requests.push(mark("T", "after"));

    let batch = BatchMarkProcessedRequest { requests };
    let answer = f.client.batch_mark_processed(batch).await.unwrap();
    let results = answer.into_inner().results;
    let mut results = results.into_iter().map(|item| item.result.unwrap());
    let first = |item: Option<Item>| matches!(item, Some(Item::Response(answer)) if answer.first);
    assert!(first(results.next()), "the neighbour before");
    for (index, field) in fields.iter().enumerate() {
        let Some(Item::Error(error)) = results.next() else {
            panic!("{field} was taken");
        };
        assert_eq!(error.code, i32::from(Code::InvalidArgument));
        assert_eq!(error.field, format!("requests[{}].{field}", index + 1));
    }
    assert!(first(results.next()), "the neighbour after");
    assert!(results.next().is_none());
    let ask = IsProcessedRequest { event: event("T", "x"), ..Default::default() };
    assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed);
}
