//! Deliveries that are known under several names, or whose payload is told.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseResponse, BatchMarkProcessedRequest, BeginTurnRequest, EventKey, EventState,
    FinishTurnRequest, ForgetEventRequest, GetStatsRequest, IsProcessedRequest, ListEventsRequest,
    MarkProcessedRequest, ProcessedEvent, RenewTurnRequest, Turn, TurnOutcome,
    admin_service_client::AdminServiceClient, batch_mark_processed_result::Result as Item,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use tonic::{Code, Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    harness::{self, Fixture, acquire, connect, event, mark, seconds, session},
    on_all_stores,
};

mod attempts;
mod digests;

on_all_stores!(
    an_event_is_taken_if_any_of_its_names_is,
    the_names_of_an_event_expire_together,
    one_request_is_told_the_same_whatever_becomes_of_aliases,
    items_of_one_batch_that_share_a_name_are_one_event,
    forgetting_an_event_forgets_all_its_names,
    a_name_that_another_event_has_by_now_is_not_forgotten,
    a_turn_claims_and_finishes_all_names,
    a_turn_runs_on_under_all_names,
    the_attempts_at_an_event_are_counted_over_its_names,
    an_event_under_any_name_is_given_up,
    what_a_request_left_by_other_names_is_its_own_no_more,
);

type Turns = TurnServiceClient<Channel>;

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn named(name: &str, aliases: &[&str]) -> Option<EventKey> {
    let aliases = aliases.iter().map(|&alias| alias.into()).collect();
    Some(EventKey { aliases, ..event("T1", name).unwrap() })
}

/// Marks an event, and tells whether it was the first.
async fn first(f: &mut Fixture, name: &str, aliases: &[&str]) -> bool {
    let request = MarkProcessedRequest { event: named(name, aliases), ..Default::default() };
    f.client.mark_processed(request).await.unwrap().into_inner().first
}

async fn look(f: &mut Fixture, name: &str, aliases: &[&str]) -> ProcessedEvent {
    let request = IsProcessedRequest { event: named(name, aliases), ..Default::default() };
    f.client.is_processed(request).await.unwrap().into_inner().event.unwrap()
}

async fn turns(f: &Fixture) -> Turns {
    Turns::new(connect(f.replica.server.address()).await)
}

fn wish(name: &str, aliases: &[&str]) -> BeginTurnRequest {
    BeginTurnRequest {
        event: named(name, aliases),
        session: session("T1", "s"),
        holder: "run".into(),
        claim_ttl: seconds(60),
        ..Default::default()
    }
}

async fn begin(turns: &mut Turns, request: BeginTurnRequest) -> Outcome {
    turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap()
}

#[track_caller]
fn turn(outcome: Outcome) -> Turn {
    match outcome {
        Outcome::Granted(granted) => granted.turn.unwrap(),
        other => panic!("not granted: {other:?}"),
    }
}

async fn finish(turns: &mut Turns, turn: Turn, outcome: TurnOutcome) {
    let result = if outcome == TurnOutcome::Succeeded { "done".into() } else { Vec::new() };
    let (turn_id, outcome) = (turn.turn_id, outcome.into());
    let request = FinishTurnRequest { turn_id, outcome, result, ttl: None, ..Default::default() };
    turns.finish_turn(request).await.unwrap();
}

async fn an_event_is_taken_if_any_of_its_names_is(mut f: Fixture) {
    assert!(first(&mut f, "message", &["ts", "other"]).await);
    assert!(!first(&mut f, "mention", &["ts"]).await);
    assert!(!first(&mut f, "ts", &[]).await);
    assert!(!first(&mut f, "other", &["message"]).await);
    assert!(!first(&mut f, "message", &[]).await);
    // A duplicate takes nothing.
    assert_eq!(look(&mut f, "mention", &[]).await.state(), EventState::NotSeen);
    let found = look(&mut f, "mention", &["ts"]).await;
    assert_eq!(found.state(), EventState::Processed);
    assert!(first(&mut f, "mention", &[]).await);
}

async fn the_names_of_an_event_expire_together(mut f: Fixture) {
    let event = named("message", &["ts"]);
    let request = MarkProcessedRequest { event, ttl: seconds(60), ..Default::default() };
    assert!(f.client.mark_processed(request).await.unwrap().into_inner().first);
    f.clock.advance(Duration::from_micros(59_999_999));
    assert!(!first(&mut f, "new", &["ts"]).await);
    f.clock.advance(Duration::from_micros(1));
    assert!(first(&mut f, "new", &["ts"]).await);
    // What was the other's name once is this one's now, and the old one free.
    assert!(!first(&mut f, "ts", &[]).await);
    assert!(first(&mut f, "message", &[]).await);
}

async fn one_request_is_told_the_same_whatever_becomes_of_aliases(mut f: Fixture) {
    assert!(first(&mut f, "elsewhere", &[]).await);
    let request = |aliases: &[&str]| MarkProcessedRequest {
        event: named("message", aliases),
        request_id: "r1".into(),
        ..Default::default()
    };
    for aliases in [vec!["ts"], vec!["ts"], vec![], vec!["ts", "elsewhere"]] {
        let answer = f.client.mark_processed(request(&aliases)).await.unwrap().into_inner();
        assert!(answer.first, "{aliases:?}");
    }
}

async fn items_of_one_batch_that_share_a_name_are_one_event(mut f: Fixture) {
    let mark = |name: &str, aliases: &[&str]| MarkProcessedRequest {
        event: named(name, aliases),
        ..Default::default()
    };
    let requests = vec![
        mark("a", &["x", "y"]),
        mark("b", &["y"]),
        mark("y", &[]),
        mark("c", &[]),
        mark("d", &["d", "c"]),
        mark("e", &["z", "z"]),
    ];
    let batch = f.client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let firsts: Vec<bool> = batch
        .unwrap()
        .into_inner()
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            Item::Response(response) => response.first,
            Item::Error(error) => panic!("{error:?}"),
        })
        .collect();
    // Of those that share a name one is first, whichever.
    assert_eq!(firsts.iter().filter(|first| **first).count(), 3, "{firsts:?}");
    assert!(firsts[5] && (firsts[3] ^ firsts[4]), "{firsts:?}");
    for name in ["c", "e", "z"] {
        assert_eq!(look(&mut f, name, &[]).await.state(), EventState::Processed, "{name}");
    }
    assert_eq!(look(&mut f, "d", &[]).await.state() == EventState::Processed, firsts[4]);
}

async fn a_name_that_another_event_has_by_now_is_not_forgotten(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let Outcome::Granted(_) = begin(&mut turns, wish("a", &["b"])).await else { panic!() };
    f.clock.advance(Duration::from_mins(2));
    assert!(first(&mut f, "b", &[]).await, "the claim has lapsed");
    if f.url.starts_with("sqlite:") {
        // As a file has them that an earlier binary wrote last.
        harness::execute(&f.url, "UPDATE processed_events SET version = 0").await;
    }
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let forget =
        ForgetEventRequest { event: event("T1", "a"), actor: "test".into(), ..Default::default() };
    admin.forget_event(forget).await.unwrap();
    assert!(!first(&mut f, "b", &[]).await);
}

async fn forgetting_an_event_forgets_all_its_names(mut f: Fixture) {
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    assert!(first(&mut f, "old", &["shared"]).await);
    f.clock.advance(Duration::from_hours(24));
    assert!(first(&mut f, "message", &["ts", "shared"]).await);
    let stats = admin.get_stats(GetStatsRequest::default()).await.unwrap().into_inner();
    assert_eq!((stats.events, stats.expired_events), (1, 1));
    let listed = admin.list_events(ListEventsRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> = listed.events.into_iter().map(|event| event.event_id).collect();
    assert_eq!(listed, ["message"]);

    let forget = |event| ForgetEventRequest { event, actor: "me".into(), ..Default::default() };
    let refused = admin.forget_event(forget(named("message", &["ts"]))).await.unwrap_err();
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, "event.aliases");
    // What expired long ago has nothing to do with who has its names by now.
    assert!(admin.forget_event(forget(named("old", &[]))).await.is_err());
    assert!(!first(&mut f, "shared", &[]).await);
    let forgotten = admin.forget_event(forget(named("ts", &[]))).await.unwrap().into_inner();
    assert_eq!(forgotten.event.unwrap().event_id, "ts");
    for name in ["message", "ts", "shared"] {
        assert!(first(&mut f, name, &[]).await, "{name}");
    }
}

async fn a_turn_claims_and_finishes_all_names(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("message", &["ts"])).await);
    let found = look(&mut f, "ts", &[]).await;
    assert_eq!((found.state(), found.holder.as_str()), (EventState::InProgress, "run"));
    assert!(!first(&mut f, "mention", &["ts"]).await);
    for other in [wish("mention", &["ts"]), wish("ts", &[]), wish("message", &[])] {
        let outcome = begin(&mut turns, other).await;
        assert!(matches!(outcome, Outcome::InProgress(_)), "{outcome:?}");
    }
    finish(&mut turns, mine, TurnOutcome::Succeeded).await;
    for other in [wish("mention", &["ts"]), wish("ts", &[]), wish("message", &[])] {
        let Outcome::Duplicate(duplicate) = begin(&mut turns, other).await else { panic!() };
        assert_eq!(duplicate.result, b"done");
        assert_eq!(duplicate.event.unwrap().outcome(), TurnOutcome::Succeeded);
    }
    assert_eq!(look(&mut f, "mention", &[]).await.state(), EventState::NotSeen);
}

async fn a_turn_runs_on_under_all_names(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("message", &["ts"])).await);
    f.clock.advance(Duration::from_secs(50));
    let renew =
        RenewTurnRequest { turn_id: mine.turn_id, claim_ttl: seconds(60), ..Default::default() };
    turns.renew_turn(renew).await.unwrap();
    f.clock.advance(Duration::from_secs(50));
    for name in ["message", "ts"] {
        assert_eq!(look(&mut f, name, &[]).await.state(), EventState::InProgress, "{name}");
    }
    f.clock.advance(Duration::from_secs(10));
    for name in ["message", "ts"] {
        assert_eq!(look(&mut f, name, &[]).await.state(), EventState::NotSeen, "{name}");
    }
}

async fn the_attempts_at_an_event_are_counted_over_its_names(f: Fixture) {
    let mut turns = turns(&f).await;
    let failed = turn(begin(&mut turns, wish("message", &["ts"])).await);
    finish(&mut turns, failed, TurnOutcome::Failed).await;
    let crashed = turn(begin(&mut turns, wish("mention", &["ts"])).await);
    assert_eq!(crashed.attempt, 2);
    f.clock.advance(Duration::from_mins(2));
    let third = turn(begin(&mut turns, wish("message", &["ts"])).await);
    assert_eq!(third.attempt, 3);
    finish(&mut turns, third, TurnOutcome::Succeeded).await;
    let outcome = begin(&mut turns, wish("mention", &["ts"])).await;
    assert!(matches!(outcome, Outcome::Duplicate(_)), "{outcome:?}");
}

async fn an_event_under_any_name_is_given_up(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let last = |name: &str| BeginTurnRequest { max_attempts: 2, ..wish(name, &["ts"]) };
    turn(begin(&mut turns, last("message")).await);
    f.clock.advance(Duration::from_mins(2));
    turn(begin(&mut turns, last("mention")).await);
    f.clock.advance(Duration::from_mins(2));
    let Outcome::GaveUp(gave_up) = begin(&mut turns, last("message")).await else { panic!() };
    let event = gave_up.event.unwrap();
    assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 2));
    for name in ["mention", "ts"] {
        assert_eq!(look(&mut f, name, &[]).await.outcome(), TurnOutcome::GaveUp, "{name}");
    }
}

async fn what_a_request_left_by_other_names_is_its_own_no_more(mut f: Fixture) {
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let mut turns = turns(&f).await;
    let own =
        |aliases: &[&str]| BeginTurnRequest { request_id: "r1".into(), ..wish("message", aliases) };
    turn(begin(&mut turns, own(&["ts"])).await);
    f.clock.advance(Duration::from_mins(2));
    let mine = turn(begin(&mut turns, own(&[])).await);
    let given_up = BeginTurnRequest { max_attempts: 1, ..wish("mention", &["ts"]) };
    let outcome = begin(&mut turns, given_up).await;
    assert!(matches!(outcome, Outcome::GaveUp(_)), "{outcome:?}");
    finish(&mut turns, mine, TurnOutcome::Succeeded).await;
    assert_eq!(look(&mut f, "message", &[]).await.outcome(), TurnOutcome::Succeeded);

    let forget =
        ForgetEventRequest { event: named("ts", &[]), actor: "me".into(), ..Default::default() };
    admin.forget_event(forget).await.unwrap();
    assert_eq!(look(&mut f, "ts", &[]).await.state(), EventState::NotSeen);
    assert_eq!(look(&mut f, "message", &[]).await.outcome(), TurnOutcome::Succeeded);
}
