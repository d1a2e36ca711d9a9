//! Each method with a team that its caller may not use.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use oncegate::grpc::pb::{
    BatchMarkProcessedRequest, BeginTurnRequest, EventKey, FinishTurnRequest, ListSessionsRequest,
    SlackEvent, admin_service_client::AdminServiceClient,
    batch_mark_processed_result::Result as Item, begin_turn_response, event_key,
    turn_service_client::TurnServiceClient,
};
use serde_json::{Value, json};

use super::*;
use crate::harness::{event, mark, session};

/// A request that names `team`; none if the method has no team.
fn request(method: &str, team: &str) -> Option<Value> {
    let event = json!({"teamId": team, "eventId": "Ev1"});
    let session = json!({"teamId": team, "sessionId": "s"});
    let lease = "6f2cfa0e-3d7c-4f5a-9d24-5d0cfe3e1f10";
    let begin = json!({"event": event, "holder": "a"});
    Some(match method {
        "MarkProcessed" | "IsProcessed" => json!({"event": event}),
        "ForgetEvent" => json!({"event": event, "actor": "a"}),
        // The items of the batch are answered one by one.
        "GetServerInfo" | "BatchMarkProcessed" => return None,
        "AcquireSessionLease" | "HoldSessionLease" => json!({"session": session, "holder": "a"}),
        "RenewSessionLease" | "ReleaseSessionLease" => {
            json!({"session": session, "leaseId": lease})
        }
        "CheckSessionLease" => json!({"session": session, "fencingToken": "1"}),
        "Cleanup" | "ListSessions" | "ListEvents" | "GetStats" => json!({"teamId": team}),
        "BeginTurn" => begin,
        "RunTurn" => json!({"begin": begin}),
        "RenewTurn" => json!({"turnId": forged(team)}),
        "FinishTurn" => json!({"turnId": forged(team), "outcome": "TURN_OUTCOME_SUCCEEDED"}),
        "GetSession" => json!({"session": session}),
        "BindEpic" | "CloseSession" => json!({"session": session, "actor": "a"}),
        "ForceReleaseSessionLease" => json!({"session": session, "actor": "a", "reason": "r"}),
        method => panic!("how does a request of {method} name its team?"),
    })
}

/// A turn id as a caller can make one: nothing signs it.
fn forged(team: &str) -> String {
    let field = |tag: u8, bytes: &[u8]| {
        [&[tag << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    };
    let id = [field(1, team.as_bytes()), field(2, b"Ev1"), field(3, &[7; 16])].concat();
    URL_SAFE_NO_PAD.encode([id, vec![6 << 3, 5, 7 << 3, 1]].concat())
}

fn is_denied(status: &Status, what: &str) {
    assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
    assert_eq!(reason(status), "TEAM_DENIED", "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_method_takes_a_team_of_others() {
    let token = new_token();
    let server = Guarded::start(&principal("ops", "admin", &["T1", "T2"], &[&token])).await;
    let authorization = format!("Bearer {token}");
    let mut raw = Raw::connect(server.address()).await;
    for method in methods() {
        let path = path(&method);
        // Look-alikes: a full-width digit, a Greek letter, a combining mark, another case, a space.
        for team in ["T3", "T", "t1", "T1 ", "T１", "Τ1", "T1\u{301}", "*"] {
            let Some(request) = request(method.name(), team) else { continue };
            let message = DynamicMessage::deserialize(method.input(), request).unwrap();
            let status = call(&mut raw, &path, Some(&authorization), &message).await;
            is_denied(&status, &format!("{path} {team}"));
        }
        let lasts = ["HoldSessionLease", "RunTurn"].contains(&method.name());
        if let Some(request) = request(method.name(), "T1").filter(|_| !lasts) {
            let message = DynamicMessage::deserialize(method.input(), request).unwrap();
            let status = call(&mut raw, &path, Some(&authorization), &message).await;
            assert_ne!(status.code(), Code::PermissionDenied, "{path}: {status:?}");
        }
        if ["Cleanup", "ListSessions", "ListEvents", "GetStats"].contains(&method.name()) {
            let all = DynamicMessage::new(method.input());
            is_denied(&call(&mut raw, &path, Some(&authorization), &all).await, &path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_another_team_fails_alone() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["T1"], &[&token])).await;
    let mut client = server.client().await;
    let requests = vec![mark("T1", "a"), mark("T2", "b"), mark("T1", "c")];
    let batch = with(&token, BatchMarkProcessedRequest { requests });
    let results = client.batch_mark_processed(batch).await.unwrap().into_inner().results;
    let codes: Vec<_> = results
        .into_iter()
        .map(|item| match item.result.unwrap() {
            Item::Response(marked) => marked.first.to_string(),
            Item::Error(error) => {
                assert_eq!(error.code, i32::from(Code::PermissionDenied));
                format!("{} {}", error.reason, error.field)
            }
        })
        .collect();
    assert_eq!(codes, ["true", "TEAM_DENIED requests[1].event.team_id", "true"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derived_names_and_aliases_stay_in_the_callers_team() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["T1"], &[&token])).await;
    let mut client = server.client().await;
    let slack = SlackEvent { event_id: "Ev1".into(), ..Default::default() };
    let slack = |team: &str| EventKey {
        team_id: team.into(),
        key: Some(event_key::Key::Slack(slack.clone())),
        ..Default::default()
    };
    let payload = |team: &str| EventKey {
        key: Some(event_key::Key::SlackPayload(
            json!({"type": "event_callback", "team_id": team, "event_id": "Ev2",
                "event": {"type": "message", "channel": "C1", "ts": "17.5"}})
            .to_string()
            .into_bytes(),
        )),
        ..Default::default()
    };
    let aliased =
        |team: &str| EventKey { aliases: vec!["T2".into()], ..event(team, "Ev3").unwrap() };
    for (own, foreign) in
        [(slack("T1"), slack("T2")), (payload("T1"), payload("T2")), (aliased("T1"), aliased("T2"))]
    {
        let ask = |event: EventKey| {
            with(&token, pb::MarkProcessedRequest { event: Some(event), ..Default::default() })
        };
        assert!(client.mark_processed(ask(own)).await.unwrap().into_inner().first);
        is_denied(&client.mark_processed(ask(foreign)).await.unwrap_err(), "derived");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_id_and_a_page_token_give_no_permission() {
    let (own, other) = (new_token(), new_token());
    let file =
        principal("a", "admin", &["T1"], &[&own]) + &principal("b", "admin", &["T2"], &[&other]);
    let server = Guarded::start(&file).await;
    let channel = connect(server.address()).await;
    let mut turns = TurnServiceClient::new(channel.clone());
    let begin = BeginTurnRequest {
        event: event("T2", "Ev1"),
        session: session("T2", "s"),
        holder: "b".into(),
        ..Default::default()
    };
    let answer = turns.begin_turn(with(&other, begin)).await.unwrap().into_inner();
    let Some(begin_turn_response::Outcome::Granted(granted)) = answer.outcome else { panic!() };
    let turn_id = granted.turn.unwrap().turn_id;
    let finish = || FinishTurnRequest {
        turn_id: turn_id.clone(),
        outcome: pb::TurnOutcome::Succeeded.into(),
        ..Default::default()
    };
    is_denied(&turns.finish_turn(with(&own, finish())).await.unwrap_err(), "turn id");
    turns.finish_turn(with(&other, finish())).await.unwrap();

    let mut client = server.client().await;
    for (token, team) in [(&own, "T1"), (&other, "T2"), (&other, "T2")] {
        for id in ["x", "y"] {
            let request = crate::harness::acquire(team, id, "h");
            client.acquire_session_lease(with(token, request)).await.unwrap();
        }
    }
    let mut admin = AdminServiceClient::new(channel);
    let list = |team: &str, page_token: String| ListSessionsRequest {
        team_id: team.into(),
        page_size: 1,
        page_token,
        ..Default::default()
    };
    let page = admin.list_sessions(with(&other, list("T2", String::new()))).await.unwrap();
    let foreign = page.into_inner().next_page_token;
    assert!(!foreign.is_empty());
    let page = admin.list_sessions(with(&own, list("T1", foreign.clone()))).await.unwrap();
    assert!(page.into_inner().sessions.iter().all(|session| session.team_id == "T1"));
    is_denied(&admin.list_sessions(with(&own, list("T2", foreign))).await.unwrap_err(), "page");
}
