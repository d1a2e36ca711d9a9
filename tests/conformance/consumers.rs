//! Applications that share tenants, events and sessions, or keep them apart.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BatchMarkProcessedRequest, BeginTurnRequest, BindEpicRequest,
    CheckSessionLeaseRequest, CleanupRequest, CloseSessionRequest, EventKey, EventState,
    FinishTurnRequest, ForceReleaseSessionLeaseRequest, ForgetEventRequest, GetSessionRequest,
    IsProcessedRequest, ListEventsRequest, ListSessionsRequest, MarkProcessedRequest,
    ProcessedEvent, ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, RenewTurnRequest,
    SessionKey, SessionState, SlackEvent, TurnOutcome, admin_service_client::AdminServiceClient,
    batch_mark_processed_result::Result as Item, begin_turn_response::Outcome, event_key,
    session_key, turn_service_client::TurnServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    harness::{self, Fixture, connect, execute, granted, held, seconds},
    on_all_stores,
};

mod operator;

on_all_stores!(
    each_consumer_handles_an_event_once,
    each_item_of_a_batch_has_its_consumer,
    an_alias_of_one_consumer_does_not_block_another,
    a_turn_of_one_consumer_leaves_the_event_to_another,
    each_consumer_has_its_own_attempts,
    sessions_of_two_consumers_are_independent,
    a_turn_names_the_consumers_of_event_and_session,
    a_repeated_request_is_another_attempt_for_another_consumer,
    a_consumer_out_of_bounds_is_refused_by_name,
    the_longest_ids_with_consumers_are_kept;
    kept: a_row_of_the_older_bots_counts_for_the_empty_consumer_only,
);

const CONSUMERS: [&str; 3] = ["", "bot-a", "bot-b"];

type Turns = TurnServiceClient<Channel>;
type Admin = AdminServiceClient<Channel>;

async fn turns(f: &Fixture) -> Turns {
    Turns::new(connect(f.replica.server.address()).await)
}

async fn admin(f: &Fixture) -> Admin {
    Admin::new(connect(f.replica.server.address()).await)
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn event(id: &str, consumer: &str) -> Option<EventKey> {
    Some(EventKey { consumer: consumer.into(), ..harness::event("T1", id).unwrap() })
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn session(id: &str, consumer: &str) -> Option<SessionKey> {
    Some(SessionKey { consumer: consumer.into(), ..harness::session("T1", id).unwrap() })
}

fn marking(event: Option<EventKey>) -> MarkProcessedRequest {
    MarkProcessedRequest { event, ..Default::default() }
}

/// Marks an event, and answers whether that was the first mark; it names what was marked.
async fn mark(f: &mut Fixture, id: &str, consumer: &str) -> bool {
    let marked = f.client.mark_processed(marking(event(id, consumer))).await.unwrap().into_inner();
    assert_eq!(names(&marked.event.unwrap()), (id, consumer));
    marked.first
}

fn names(event: &ProcessedEvent) -> (&str, &str) {
    (&event.event_id, &event.consumer)
}

async fn look(f: &mut Fixture, event: Option<EventKey>) -> ProcessedEvent {
    let request = IsProcessedRequest { event, ..Default::default() };
    f.client.is_processed(request).await.unwrap().into_inner().event.unwrap()
}

fn wish(event: Option<EventKey>, session: Option<SessionKey>) -> BeginTurnRequest {
    BeginTurnRequest { event, session, holder: "pod-1".into(), ..Default::default() }
}

async fn begin(turns: &mut Turns, request: BeginTurnRequest) -> Outcome {
    turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap()
}

#[track_caller]
fn turn(outcome: Outcome) -> oncegate::grpc::pb::Turn {
    match outcome {
        Outcome::Granted(granted) => granted.turn.unwrap(),
        other => panic!("not granted: {other:?}"),
    }
}

async fn finish(turns: &mut Turns, turn_id: &str, outcome: TurnOutcome) -> ProcessedEvent {
    let turn_id = turn_id.to_owned();
    let request = FinishTurnRequest { turn_id, outcome: outcome.into(), ..Default::default() };
    turns.finish_turn(request).await.unwrap().into_inner().event.unwrap()
}

fn asking(session: Option<SessionKey>, holder: &str) -> AcquireSessionLeaseRequest {
    AcquireSessionLeaseRequest { session, holder: holder.into(), ..Default::default() }
}

#[track_caller]
fn refuses(field: &str, status: &Status) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let bad = status.get_details_bad_request().unwrap();
    assert_eq!(bad.field_violations[0].field, field);
}

async fn each_consumer_handles_an_event_once(mut f: Fixture) {
    for consumer in CONSUMERS {
        let seen = look(&mut f, event("Ev1", consumer)).await;
        assert_eq!((seen.state(), names(&seen)), (EventState::NotSeen, ("Ev1", consumer)));
        assert!(mark(&mut f, "Ev1", consumer).await, "{consumer:?}");
        for _ in 0..2 {
            // From the store, and from memory.
            assert!(!mark(&mut f, "Ev1", consumer).await, "{consumer:?}");
            let seen = look(&mut f, event("Ev1", consumer)).await;
            assert_eq!((seen.state(), names(&seen)), (EventState::Processed, ("Ev1", consumer)));
        }
    }
    let slack = SlackEvent { event_id: "Ev2".into(), ..Default::default() };
    let of_slack = |consumer: &str| {
        let key = Some(event_key::Key::Slack(slack.clone()));
        Some(EventKey { key, ..event("", consumer).unwrap() })
    };
    for consumer in CONSUMERS {
        let marked = f.client.mark_processed(marking(of_slack(consumer))).await.unwrap();
        let marked = marked.into_inner();
        assert_eq!((marked.first, names(&marked.event.unwrap())), (true, ("Ev2", consumer)));
        assert!(!mark(&mut f, "Ev2", consumer).await, "{consumer:?}");
    }
}

async fn each_item_of_a_batch_has_its_consumer(mut f: Fixture) {
    let asked = ["", "bot-a", "", "bot-a", "bot-b"];
    let requests = asked.map(|consumer| marking(event("Ev1", consumer))).to_vec();
    let request = BatchMarkProcessedRequest { requests };
    let results = f.client.batch_mark_processed(request).await.unwrap().into_inner().results;
    let mut firsts = Vec::new();
    for (result, consumer) in results.into_iter().zip(asked) {
        let Some(Item::Response(response)) = result.result else { panic!("{result:?}") };
        assert_eq!(names(response.event.as_ref().unwrap()), ("Ev1", consumer));
        firsts.push(response.first);
    }
    assert_eq!(firsts, [true, true, false, false, true]);
}

async fn an_alias_of_one_consumer_does_not_block_another(mut f: Fixture) {
    let with_alias = |id: &str, consumer: &str| {
        let aliases = vec!["ts:C1:17.5".to_owned(), "msg:m1".to_owned()];
        Some(EventKey { aliases, ..event(id, consumer).unwrap() })
    };
    for consumer in CONSUMERS {
        let id = format!("Ev of {consumer}");
        let marked = f.client.mark_processed(marking(with_alias(&id, consumer))).await.unwrap();
        assert!(marked.into_inner().first, "{consumer:?}");
        // Each of its names is taken, for this consumer.
        for name in [id.as_str(), "ts:C1:17.5", "msg:m1"] {
            let seen = look(&mut f, event(name, consumer)).await;
            assert_eq!((seen.state(), names(&seen)), (EventState::Processed, (name, consumer)));
        }
        let other = f.client.mark_processed(marking(with_alias("other", consumer))).await.unwrap();
        assert!(!other.into_inner().first, "{consumer:?}");
    }
    let mut turns = turns(&f).await;
    for consumer in CONSUMERS {
        let asked = begin(&mut turns, wish(with_alias("third", consumer), None)).await;
        let Outcome::Duplicate(duplicate) = asked else { panic!("{asked:?}") };
        assert_eq!(names(&duplicate.event.unwrap()), ("third", consumer));
    }
    turn(begin(&mut turns, wish(with_alias("third", "bot-c"), None)).await);
}

async fn a_row_of_the_older_bots_counts_for_the_empty_consumer_only(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let row = "INSERT INTO processed_events (team_id, event_id) VALUES ('T1', 'Ev1')";
    if f.url.starts_with("sqlite:") {
        // The older bots had PostgreSQL; a row of the embedded store is written in full.
        let row = format!(
            "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
            VALUES ('T1', 'Ev1', {0}, {0} + 86400000000, '11111111111141118111111111111111')",
            f.clock.micros()
        );
        execute(&f.url, &row).await;
    } else {
        execute(&f.url, row).await;
        // The row has the database's clock, and this test's stands elsewhere.
        let moment = format!("to_timestamp({}::float8 / 1000000)", f.clock.micros());
        let set = format!("UPDATE processed_events SET processed_at = {moment}");
        execute(&f.url, &format!("{set}, expires_at = {moment} + interval '24 hours'")).await;
    }
    assert!(!mark(&mut f, "Ev1", "").await);
    assert_eq!(look(&mut f, event("Ev1", "")).await.state(), EventState::Processed);
    let asked = begin(&mut turns, wish(event("Ev1", ""), None)).await;
    assert!(matches!(asked, Outcome::Duplicate(_)), "{asked:?}");
    assert_eq!(look(&mut f, event("Ev1", "bot-a")).await.state(), EventState::NotSeen);
    assert!(mark(&mut f, "Ev1", "bot-a").await);
    turn(begin(&mut turns, wish(event("Ev1", "bot-b"), None)).await);
}

async fn a_turn_of_one_consumer_leaves_the_event_to_another(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let wish = |consumer: &str| wish(event("Ev1", consumer), session(consumer, ""));
    let mine = turn(begin(&mut turns, BeginTurnRequest { session: None, ..wish("bot-a") }).await);
    let again = begin(&mut turns, BeginTurnRequest { session: None, ..wish("bot-a") }).await;
    assert!(matches!(again, Outcome::InProgress(_)), "{again:?}");
    assert!(mark(&mut f, "Ev1", "").await);
    let other = turn(begin(&mut turns, wish("bot-b")).await);
    let done = finish(&mut turns, &mine.turn_id, TurnOutcome::Succeeded).await;
    assert_eq!(names(&done), ("Ev1", "bot-a"));
    let rejected = finish(&mut turns, &other.turn_id, TurnOutcome::Failed).await;
    assert_eq!((rejected.state(), names(&rejected)), (EventState::NotSeen, ("Ev1", "bot-b")));
    let again = begin(&mut turns, wish("bot-a")).await;
    let Outcome::Duplicate(duplicate) = again else { panic!("{again:?}") };
    assert_eq!(duplicate.event.unwrap(), done);
    assert_eq!(turn(begin(&mut turns, wish("bot-b")).await).attempt, 2);
}

async fn each_consumer_has_its_own_attempts(f: Fixture) {
    let mut turns = turns(&f).await;
    let once =
        |consumer: &str| BeginTurnRequest { max_attempts: 1, ..wish(event("Ev1", consumer), None) };
    let mine = turn(begin(&mut turns, once("bot-a")).await);
    finish(&mut turns, &mine.turn_id, TurnOutcome::Failed).await;
    let asked = begin(&mut turns, once("bot-a")).await;
    let Outcome::GaveUp(gave_up) = asked else { panic!("{asked:?}") };
    assert_eq!(names(&gave_up.event.unwrap()), ("Ev1", "bot-a"));
    for consumer in ["", "bot-b"] {
        assert_eq!(turn(begin(&mut turns, once(consumer)).await).attempt, 1);
    }
}

async fn sessions_of_two_consumers_are_independent(mut f: Fixture) {
    let mut leases = Vec::new();
    for consumer in CONSUMERS {
        let holder = format!("holder of {consumer}");
        let asked = f.client.acquire_session_lease(asking(session("s", consumer), &holder)).await;
        let lease = granted(asked.unwrap().into_inner());
        assert_eq!((lease.session_id.as_str(), lease.consumer.as_str()), ("s", consumer));
        // It is shared by all that name the same consumer.
        let asked = f.client.acquire_session_lease(asking(session("s", consumer), "x")).await;
        assert_eq!(held(asked.unwrap().into_inner()).holder, holder);
        leases.push(lease);
        // Or tokens of different sessions may be equal.
        f.clock.advance(Duration::from_secs(1));
    }
    for (lease, other) in leases.iter().zip(["bot-a", "bot-b", ""]) {
        let check = |consumer: &str| CheckSessionLeaseRequest {
            session: session("s", consumer),
            fencing_token: lease.fencing_token,
        };
        let current = f.client.check_session_lease(check(&lease.consumer)).await.unwrap();
        assert!(current.into_inner().current);
        assert!(!f.client.check_session_lease(check(other)).await.unwrap().into_inner().current);
        let renew = |consumer: &str| RenewSessionLeaseRequest {
            session: session("s", consumer),
            lease_id: lease.lease_id.clone(),
            ttl: seconds(60),
        };
        f.client.renew_session_lease(renew(other)).await.unwrap_err();
        let renewed = f.client.renew_session_lease(renew(&lease.consumer)).await.unwrap();
        assert_eq!(renewed.into_inner().lease.unwrap().consumer, lease.consumer);
    }
    for (lease, other) in leases.iter().zip(["bot-a", "bot-b", ""]) {
        let release = |consumer: &str| ReleaseSessionLeaseRequest {
            session: session("s", consumer),
            lease_id: lease.lease_id.clone(),
        };
        assert!(
            !f.client.release_session_lease(release(other)).await.unwrap().into_inner().released
        );
        let released = f.client.release_session_lease(release(&lease.consumer)).await.unwrap();
        assert!(released.into_inner().released);
    }
}

async fn a_turn_names_the_consumers_of_event_and_session(f: Fixture) {
    let mut turns = turns(&f).await;
    for (of_event, of_session) in [("bot-a", "bot-a"), ("bot-b", ""), ("", "bot-b")] {
        let request = wish(event("Ev1", of_event), session("s", of_session));
        let mine = turn(begin(&mut turns, request).await);
        let lease = mine.lease.unwrap();
        assert_eq!((lease.session_id.as_str(), lease.consumer.as_str()), ("s", of_session));
        let renew = RenewTurnRequest { turn_id: mine.turn_id.clone(), ..Default::default() };
        let renewed = turns.renew_turn(renew).await.unwrap().into_inner().turn.unwrap();
        assert_eq!(renewed.turn_id, mine.turn_id);
        assert_eq!(renewed.lease.unwrap().consumer, of_session);
        // Another event finds that session held, and the same event is in progress.
        let busy = begin(&mut turns, wish(event("Ev2", of_event), session("s", of_session))).await;
        assert!(matches!(busy, Outcome::Busy(_)), "{busy:?}");
        let done = finish(&mut turns, &mine.turn_id, TurnOutcome::Succeeded).await;
        assert_eq!(names(&done), ("Ev1", of_event));
    }
}

async fn a_repeated_request_is_another_attempt_for_another_consumer(mut f: Fixture) {
    let named = |consumer: &str| MarkProcessedRequest {
        request_id: "r1".into(),
        ..marking(event("Ev1", consumer))
    };
    for consumer in CONSUMERS {
        for _ in 0..2 {
            let marked = f.client.mark_processed(named(consumer)).await.unwrap().into_inner();
            assert!(marked.first, "{consumer:?}");
        }
    }
    let named = |consumer: &str| AcquireSessionLeaseRequest {
        request_id: "r1".into(),
        ..asking(session("s", consumer), "pod-1")
    };
    let mut leases = Vec::new();
    for consumer in CONSUMERS {
        let asked = f.client.acquire_session_lease(named(consumer)).await.unwrap().into_inner();
        let lease = granted(asked);
        let again = f.client.acquire_session_lease(named(consumer)).await.unwrap().into_inner();
        assert_eq!(granted(again).lease_id, lease.lease_id);
        leases.push(lease.lease_id);
    }
    leases.dedup();
    assert_eq!(leases.len(), 3);
}

async fn a_consumer_out_of_bounds_is_refused_by_name(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for wrong in ["a".repeat(513), "a\nb".into(), "a\u{1e}b".into()] {
        let refused = f.client.mark_processed(marking(event("Ev1", &wrong))).await.unwrap_err();
        refuses("event.consumer", &refused);
        let asked = f.client.acquire_session_lease(asking(session("s", &wrong), "h")).await;
        refuses("session.consumer", &asked.unwrap_err());
        let request = wish(event("Ev1", ""), session("s", &wrong));
        refuses("session.consumer", &turns.begin_turn(request).await.unwrap_err());
        // Nor can an id be read as one with a consumer.
        if !wrong.starts_with("aa") {
            let refused = f.client.mark_processed(marking(event(&wrong, ""))).await.unwrap_err();
            refuses("event.event_id", &refused);
        }
    }
}

async fn the_longest_ids_with_consumers_are_kept(mut f: Fixture) {
    let (mut turns, mut admin) = (turns(&f).await, admin(&f).await);
    let long = |letter: &str| letter.repeat(512);
    let of_event = EventKey {
        team_id: long("T"),
        key: Some(event_key::Key::EventId(long("e"))),
        aliases: ["1", "2", "3", "4", "5", "6", "7", "8"].map(|name| name.repeat(512)).to_vec(),
        consumer: long("c"),
        ..Default::default()
    };
    let of_session = SessionKey {
        team_id: String::new(),
        key: Some(session_key::Key::SessionId(long("s"))),
        consumer: long("d"),
        ..Default::default()
    };
    let mine = turn(begin(&mut turns, wish(Some(of_event.clone()), Some(of_session))).await);
    assert!(mine.turn_id.len() <= 8_192, "{}", mine.turn_id.len());
    let lease = mine.lease.unwrap();
    assert_eq!((lease.session_id, lease.consumer), (long("s"), long("d")));
    let done = finish(&mut turns, &mine.turn_id, TurnOutcome::Succeeded).await;
    assert_eq!((&done.event_id, &done.consumer), (&long("e"), &long("c")));
    assert_eq!(look(&mut f, Some(of_event)).await, done);
    // The token of a page after it is accepted.
    let short = EventKey { team_id: "Z".into(), ..event("Ev1", "").unwrap() };
    f.client.mark_processed(marking(Some(short))).await.unwrap();
    let request = ListEventsRequest { page_size: 1, ..Default::default() };
    let page = admin.list_events(request.clone()).await.unwrap().into_inner();
    assert_eq!(page.events, [done]);
    let next = ListEventsRequest { page_token: page.next_page_token, ..request };
    let page = admin.list_events(next).await.unwrap().into_inner();
    assert_eq!((page.events[0].team_id.as_str(), page.next_page_token.as_str()), ("Z", ""));
}
