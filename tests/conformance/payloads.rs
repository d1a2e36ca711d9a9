//! Deliveries whose payload the server reads.

use oncegate::grpc::pb::{
    self, AcquireSessionLeaseRequest, BeginTurnRequest, Delivery, EventKey, ForgetEventRequest,
    IsProcessedRequest, MarkProcessedRequest, Platform, SessionKey, SessionScope, Turn,
    admin_service_client::AdminServiceClient, begin_turn_response::Outcome, event_key, session_key,
    turn_service_client::TurnServiceClient,
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{Fixture, connect, event, granted, mark},
    on_all_stores,
};

on_all_stores!(
    a_payload_is_the_event_that_it_names,
    one_message_under_two_event_ids_is_one_event,
    consumers_of_one_payload_each_handle_it,
    a_payload_that_names_no_event_has_no_key,
    an_unreadable_payload_names_its_field,
    a_turn_reads_its_session_from_the_events_payload,
    a_payload_without_a_conversation_is_a_turn_without_a_session,
    a_scope_widens_the_session,
    a_delivery_of_another_platform_is_read,
);

fn message(event_id: &str, kind: &str) -> Value {
    json!({
        "type": "event_callback", "team_id": "T1", "api_app_id": "A1", "event_id": event_id,
        "event": {
            "type": kind, "channel": "C1", "user": "U1", "ts": "17.5", "thread_ts": "16.0",
            "client_msg_id": "6f380ae4", "text": "hello",
        },
    })
}

fn payload(payload: &Value) -> EventKey {
    let key = Some(event_key::Key::SlackPayload(payload.to_string().into_bytes()));
    EventKey { key, ..Default::default() }
}

async fn try_mark(f: &mut Fixture, key: EventKey) -> Result<pb::MarkProcessedResponse, Status> {
    let request = MarkProcessedRequest { event: Some(key), ..Default::default() };
    Ok(f.client.mark_processed(request).await?.into_inner())
}

async fn first(f: &mut Fixture, key: EventKey) -> bool {
    try_mark(f, key).await.unwrap().first
}

fn reason(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let field = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
    let reason = details.error_info().map(|info| info.reason.clone());
    (status.code(), reason.unwrap_or_default(), field.unwrap_or_default())
}

async fn a_payload_is_the_event_that_it_names(mut f: Fixture) {
    let answer = try_mark(&mut f, payload(&message("Ev1", "message"))).await.unwrap();
    let named = answer.event.unwrap();
    assert!(answer.first);
    assert_eq!((named.team_id.as_str(), named.event_id.as_str()), ("T1", "Ev1"));
    assert!(!f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);

    let ask = IsProcessedRequest {
        event: Some(payload(&message("Ev1", "message"))),
        ..Default::default()
    };
    assert!(f.client.is_processed(ask).await.unwrap().into_inner().processed);

    // A tenant that the caller gives wins over the payload's.
    let elsewhere = EventKey { team_id: "T2".into(), ..payload(&message("Ev1", "message")) };
    assert!(first(&mut f, elsewhere).await);

    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let forget = ForgetEventRequest {
        event: Some(payload(&message("Ev1", "message"))),
        actor: "ann".into(),
        ..Default::default()
    };
    admin.forget_event(forget).await.unwrap();
    for name in ["Ev1", "msg:6f380ae4", "ts:C1:17.5"] {
        let ask = IsProcessedRequest { event: event("T1", name), ..Default::default() };
        assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed, "{name}");
    }
}

async fn one_message_under_two_event_ids_is_one_event(mut f: Fixture) {
    assert!(first(&mut f, payload(&message("Ev1", "message"))).await);
    assert!(!first(&mut f, payload(&message("Ev2", "app_mention"))).await);
    let mut other = message("Ev3", "message");
    other["event"]["ts"] = "18.0".into();
    other["event"]["client_msg_id"] = "other".into();
    assert!(first(&mut f, payload(&other)).await);
}

async fn consumers_of_one_payload_each_handle_it(mut f: Fixture) {
    for consumer in ["", "a", "b"] {
        let key = || EventKey { consumer: consumer.into(), ..payload(&message("Ev1", "message")) };
        assert!(first(&mut f, key()).await, "{consumer}");
        assert!(!first(&mut f, key()).await, "{consumer}");
    }
}

async fn a_payload_that_names_no_event_has_no_key(mut f: Fixture) {
    for kind in ["url_verification", "app_rate_limited", "block_suggestion"] {
        let handshake = json!({"type": kind, "team_id": "T1", "challenge": "c"});
        let status = try_mark(&mut f, payload(&handshake)).await.unwrap_err();
        let expected = (Code::InvalidArgument, "NO_KEY".into(), "event.slack_payload".into());
        assert_eq!(reason(&status), expected, "{kind}");
    }
    let acquire = AcquireSessionLeaseRequest {
        session: Some(SessionKey {
            key: Some(session_key::Key::SlackPayload(home_opened().to_string().into())),
            ..Default::default()
        }),
        holder: "a".into(),
        ..Default::default()
    };
    let status = f.client.acquire_session_lease(acquire).await.unwrap_err();
    let expected = (Code::InvalidArgument, "NO_KEY".into(), "session.slack_payload".into());
    assert_eq!(reason(&status), expected);
}

fn home_opened() -> Value {
    json!({
        "type": "event_callback", "team_id": "T1", "event_id": "EvHome",
        "event": {"type": "app_home_opened", "user": "U1", "channel": "D1", "tab": "home"},
    })
}

async fn an_unreadable_payload_names_its_field(mut f: Fixture) {
    let key = |body: Vec<u8>| EventKey {
        team_id: "T1".into(),
        key: Some(event_key::Key::SlackPayload(body)),
        ..Default::default()
    };
    let too_long = format!("{}{}", message("Ev1", "message"), " ".repeat(256 * 1024));
    for body in [b"".to_vec(), b"{".to_vec(), b"[1]".to_vec(), b"\xff".to_vec(), too_long.into()] {
        let status = try_mark(&mut f, key(body)).await.unwrap_err();
        let expected =
            (Code::InvalidArgument, "INVALID_FIELD".into(), "event.slack_payload".into());
        assert_eq!(reason(&status), expected, "{status:?}");
    }
    let nobody = json!({"type": "event_callback", "event_id": "Ev1", "event": {"type": "x"}});
    let status = try_mark(&mut f, payload(&nobody)).await.unwrap_err();
    assert_eq!(reason(&status).2, "event.team_id");
    let many = EventKey {
        aliases: (0..8).map(|alias| format!("alias {alias}")).collect(),
        ..payload(&message("Ev1", "message"))
    };
    let status = try_mark(&mut f, many).await.unwrap_err();
    assert_eq!(reason(&status).2, "event.aliases");
    let unknown = Delivery { platform: 99, ..Default::default() };
    let unknown = EventKey { key: Some(event_key::Key::Delivery(unknown)), ..key(Vec::new()) };
    let status = try_mark(&mut f, unknown).await.unwrap_err();
    assert_eq!(reason(&status).2, "event.delivery.platform");
}

fn of_the_event() -> SessionKey {
    SessionKey { key: Some(session_key::Key::SlackPayload(Vec::new())), ..Default::default() }
}

async fn begin(f: &Fixture, event: EventKey, session: SessionKey) -> Turn {
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let request = BeginTurnRequest {
        event: Some(event),
        session: Some(session),
        holder: "a".into(),
        ..Default::default()
    };
    let answer = turns.begin_turn(request).await.unwrap().into_inner();
    let Some(Outcome::Granted(granted)) = answer.outcome else { panic!("{answer:?}") };
    granted.turn.unwrap()
}

async fn a_turn_reads_its_session_from_the_events_payload(f: Fixture) {
    let turn = begin(&f, payload(&message("Ev1", "message")), of_the_event()).await;
    let lease = turn.lease.unwrap();
    assert_eq!((lease.team_id.as_str(), lease.session_id.as_str()), ("T1", "T1:C1:16.0"));
    let mut client = f.client.clone();
    let ask = IsProcessedRequest { event: event("T1", "ts:C1:17.5"), ..Default::default() };
    let claimed = client.is_processed(ask).await.unwrap().into_inner();
    assert_eq!(claimed.state(), pb::EventState::InProgress);
}

async fn a_payload_without_a_conversation_is_a_turn_without_a_session(f: Fixture) {
    let turn = begin(&f, payload(&home_opened()), of_the_event()).await;
    assert_eq!((turn.attempt, turn.lease), (1, None));
}

async fn a_scope_widens_the_session(f: Fixture) {
    let scopes = [
        (SessionScope::Unspecified, "T1:C1:16.0"),
        (SessionScope::Thread, "T1:C1:16.0"),
        (SessionScope::Channel, "T1:C1"),
        (SessionScope::User, "T1:user:U1"),
    ];
    let mut client = f.client.clone();
    for (place, (scope, expected)) in scopes.into_iter().enumerate() {
        let body = message("Ev1", "message").to_string().into_bytes();
        let key = |key| SessionKey {
            team_id: "T1".into(),
            consumer: place.to_string(),
            scope: scope.into(),
            key: Some(key),
        };
        let request = |session| AcquireSessionLeaseRequest {
            session: Some(session),
            holder: "a".into(),
            ..Default::default()
        };
        let of_payload = request(key(session_key::Key::SlackPayload(body)));
        let lease = granted(client.acquire_session_lease(of_payload).await.unwrap().into_inner());
        assert_eq!((lease.session_id.as_str(), &*lease.consumer), (expected, &*place.to_string()));
        if scope == SessionScope::Unspecified {
            continue;
        }
        let status = client
            .acquire_session_lease(request(key(session_key::Key::SessionId("S".into()))))
            .await
            .unwrap_err();
        assert_eq!(reason(&status).2, "session.scope");
    }
}

async fn a_delivery_of_another_platform_is_read(mut f: Fixture) {
    let delivery = |name: &str| Delivery {
        platform: Platform::Github.into(),
        headers: [(name.to_owned(), "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned())].into(),
        body: json!({
            "action": "opened", "issue": {"number": 7},
            "repository": {"full_name": "octo/cat", "owner": {"id": 1}},
            "installation": {"id": 42},
        })
        .to_string()
        .into_bytes(),
    };
    let key = |name| EventKey {
        key: Some(event_key::Key::Delivery(delivery(name))),
        ..Default::default()
    };
    let answer = try_mark(&mut f, key("X-GitHub-Delivery")).await.unwrap();
    assert!(answer.first);
    assert_eq!(answer.event.unwrap().team_id, "42");
    // Header names are compared without regard to case.
    assert!(!first(&mut f, key("x-github-delivery")).await);
    let status = try_mark(&mut f, key("other")).await.unwrap_err();
    let headers = || "event.delivery.headers".to_owned();
    assert_eq!(reason(&status), (Code::InvalidArgument, "NO_KEY".into(), headers()));
    assert!(status.message().contains("X-GitHub-Delivery"), "{}", status.message());
    // Headers that are wrong, and not the body.
    let wrong: [&[(&str, &str)]; 2] = [
        &[("X-GitHub-Delivery", "a"), ("x-github-delivery", "b")],
        &[("X-GitHub-Delivery", "a\nb")],
    ];
    for wrong in wrong {
        let named = wrong.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let delivery = Delivery { headers: named.collect(), ..delivery("other") };
        let key = Some(event_key::Key::Delivery(delivery));
        let status = try_mark(&mut f, EventKey { key, ..Default::default() }).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELD".into(), headers()));
    }
}
