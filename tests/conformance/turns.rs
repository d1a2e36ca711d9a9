//! Turns: an event and its session, begun together and finished together.

use std::time::{Duration, Instant};

use oncegate::grpc::pb::{
    BeginTurnRequest, BeginTurnResponse, EventKey, EventState, FinishTurnRequest,
    ForceReleaseSessionLeaseRequest, GetSessionRequest, IsProcessedRequest, LeaseHeld,
    ProcessedEvent, RenewTurnRequest, SessionKey, SessionLease, SessionState, SlackEvent, Turn,
    TurnDuplicate, TurnInProgress, TurnOutcome, admin_service_client::AdminServiceClient,
    begin_turn_response::Outcome, event_key, session_key, turn_service_client::TurnServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Fixture, acquire, connect, event, granted, held, mark, release, renew, seconds, session,
    },
    on_all_stores,
};

mod asking;
mod attempts;
mod calls;
mod listed;
mod max_hold;
mod outcomes;
mod waiting;

on_all_stores!(
    a_turn_has_the_event_and_the_session_until_it_is_finished,
    a_busy_session_burns_no_event,
    an_event_that_is_handled_leaves_the_session_free,
    a_turn_whose_lease_was_taken_away_cannot_be_finished,
    a_turn_runs_on_while_it_is_renewed,
    a_turn_can_do_without_a_session,
    a_marked_event_is_a_turns_duplicate,
    another_epic_is_refused_and_claims_nothing,
    one_session_has_one_turn_at_a_time,
    the_longest_ids_make_a_turn_that_can_be_finished,
    what_is_asked_wrongly_is_refused_by_name,
);

type Turns = TurnServiceClient<Channel>;

async fn turns(f: &Fixture) -> Turns {
    Turns::new(connect(f.replica.server.address()).await)
}

fn wish(event_id: &str, holder: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", event_id),
        session: session("T1", "s"),
        holder: holder.into(),
        ..Default::default()
    }
}

async fn begin(turns: &mut Turns, request: BeginTurnRequest) -> Outcome {
    outcome(turns.begin_turn(request).await.unwrap().into_inner())
}

fn outcome(answer: BeginTurnResponse) -> Outcome {
    answer.outcome.unwrap()
}

#[track_caller]
fn turn(outcome: Outcome) -> Turn {
    match outcome {
        Outcome::Granted(granted) => granted.turn.unwrap(),
        other => panic!("not granted: {other:?}"),
    }
}

#[track_caller]
fn duplicate(outcome: Outcome) -> TurnDuplicate {
    match outcome {
        Outcome::Duplicate(duplicate) => duplicate,
        other => panic!("no duplicate: {other:?}"),
    }
}

#[track_caller]
fn in_progress(outcome: Outcome) -> TurnInProgress {
    match outcome {
        Outcome::InProgress(claimed) => claimed,
        other => panic!("not in progress: {other:?}"),
    }
}

#[track_caller]
fn busy(outcome: Outcome) -> LeaseHeld {
    match outcome {
        Outcome::Busy(held) => held,
        other => panic!("not busy: {other:?}"),
    }
}

async fn finish(
    turns: &mut Turns,
    turn: &Turn,
    outcome: TurnOutcome,
) -> Result<ProcessedEvent, Status> {
    let result = if outcome == TurnOutcome::Succeeded { "done".into() } else { Vec::new() };
    let turn_id = turn.turn_id.clone();
    let request = FinishTurnRequest {
        turn_id,
        outcome: outcome.into(),
        result,
        ttl: None,
        ..Default::default()
    };
    Ok(turns.finish_turn(request).await?.into_inner().event.unwrap())
}

async fn look(f: &mut Fixture, id: &str) -> ProcessedEvent {
    let request = IsProcessedRequest { event: event("T1", id), ..Default::default() };
    f.client.is_processed(request).await.unwrap().into_inner().event.unwrap()
}

fn reason(status: &Status) -> String {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    status.get_details_error_info().unwrap().reason
}

async fn a_turn_has_the_event_and_the_session_until_it_is_finished(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let wished = BeginTurnRequest {
        epic_id: "PROJ-50".into(),
        labels: [("run".to_owned(), "7".to_owned())].into(),
        ..wish("Ev1", "pod-1")
    };
    let mine = turn(begin(&mut turns, wished).await);
    let lease = mine.lease.clone().unwrap();
    assert_eq!((mine.attempt, mine.remaining), (1, seconds(300)));
    assert_eq!((lease.holder.as_str(), lease.epic_id.as_str()), ("pod-1", "PROJ-50"));
    assert_eq!((lease.labels["run"].as_str(), lease.remaining), ("7", seconds(300)));

    let claimed = look(&mut f, "Ev1").await;
    assert_eq!(claimed.state(), EventState::InProgress);
    assert_eq!((claimed.holder.as_str(), claimed.attempt), ("pod-1", 1));
    assert_eq!(claimed.expire_time, mine.expire_time);
    f.clock.advance(Duration::from_secs(10));
    let other = in_progress(begin(&mut turns, wish("Ev1", "pod-2")).await);
    assert_eq!((other.holder.as_str(), other.attempt), ("pod-1", 1));
    assert_eq!(other.remaining, seconds(290));
    let marked = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner();
    assert!(!marked.first);
    assert_eq!(marked.event.unwrap().state(), EventState::InProgress);
    let asked = f.client.acquire_session_lease(acquire("T1", "s", "pod-2")).await.unwrap();
    assert_eq!(held(asked.into_inner()).holder, "pod-1");

    let done = finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    assert_eq!((done.state(), done.outcome()), (EventState::Processed, TurnOutcome::Succeeded));
    assert_eq!(look(&mut f, "Ev1").await, done);
    let again = duplicate(begin(&mut turns, wish("Ev1", "pod-2")).await);
    assert_eq!((again.event, again.result), (Some(done.clone()), b"done".to_vec()));
    // Its answer may have been lost.
    assert_eq!(finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap(), done);
    let asked = f.client.acquire_session_lease(acquire("T1", "s", "pod-2")).await.unwrap();
    assert!(granted(asked.into_inner()).fencing_token > lease.fencing_token);
    assert!(!f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    f.clock.advance(Duration::from_hours(24));
    assert_eq!(turn(begin(&mut turns, wish("Ev1", "pod-2")).await).attempt, 1);
}

async fn a_busy_session_burns_no_event(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "run")).await.unwrap();
    let lease = granted(lease.into_inner());
    let held = busy(begin(&mut turns, wish("Ev1", "pod-1")).await);
    assert_eq!((held.holder.as_str(), held.remaining), ("run", seconds(30)));
    assert_eq!(look(&mut f, "Ev1").await.state(), EventState::NotSeen);
    f.client.release_session_lease(release(&lease)).await.unwrap();
    assert_eq!(turn(begin(&mut turns, wish("Ev1", "pod-1")).await).attempt, 1);
}

async fn an_event_that_is_handled_leaves_the_session_free(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    duplicate(begin(&mut turns, wish("Ev1", "a")).await);
    let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
    granted(asked.into_inner());
}

async fn a_turn_whose_lease_was_taken_away_cannot_be_finished(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let force = ForceReleaseSessionLeaseRequest {
        session: session("T1", "s"),
        actor: "ops".into(),
        reason: "stuck".into(),
    };
    assert!(admin.force_release_session_lease(force).await.unwrap().into_inner().released);
    for outcome in [TurnOutcome::Succeeded, TurnOutcome::Failed] {
        let late = finish(&mut turns, &mine, outcome).await.unwrap_err();
        assert_eq!(reason(&late), "LEASE_LOST");
    }
    let renew = RenewTurnRequest { turn_id: mine.turn_id, ..Default::default() };
    assert_eq!(reason(&turns.renew_turn(renew).await.unwrap_err()), "LEASE_LOST");
    // Until the claim lapses.
    assert_eq!(look(&mut f, "Ev1").await.state(), EventState::InProgress);
    f.clock.advance(Duration::from_mins(5));
    assert_eq!(turn(begin(&mut turns, wish("Ev1", "b")).await).attempt, 2);
}

async fn a_turn_runs_on_while_it_is_renewed(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let short = BeginTurnRequest { claim_ttl: seconds(10), ..wish("Ev1", "a") };
    let mine = turn(begin(&mut turns, short).await);
    for _ in 0..3 {
        f.clock.advance(Duration::from_secs(9));
        let renew = RenewTurnRequest {
            turn_id: mine.turn_id.clone(),
            claim_ttl: seconds(10),
            lease_ttl: seconds(12),
        };
        let renewed = turns.renew_turn(renew).await.unwrap().into_inner().turn.unwrap();
        let lease = renewed.lease.unwrap();
        assert_eq!((renewed.turn_id.as_str(), renewed.attempt), (mine.turn_id.as_str(), 1));
        assert_eq!((renewed.remaining, lease.remaining), (seconds(10), seconds(12)));
        assert_eq!(lease.fencing_token, mine.lease.as_ref().unwrap().fencing_token);
    }
    f.clock.advance(Duration::from_secs(10));
    let renew = RenewTurnRequest { turn_id: mine.turn_id.clone(), ..Default::default() };
    assert_eq!(reason(&turns.renew_turn(renew).await.unwrap_err()), "CLAIM_LOST");
    // Which has not let the lease run on either.
    f.clock.advance(Duration::from_secs(2));
    f.client.renew_session_lease(self::renew(&mine.lease.unwrap())).await.unwrap_err();
}

async fn a_turn_can_do_without_a_session(f: Fixture) {
    let mut turns = turns(&f).await;
    let alone = |holder| BeginTurnRequest { session: None, ..wish("Ev1", holder) };
    let mine = turn(begin(&mut turns, alone("a")).await);
    assert_eq!(mine.lease, None);
    in_progress(begin(&mut turns, alone("b")).await);
    let renew = RenewTurnRequest { turn_id: mine.turn_id.clone(), ..Default::default() };
    let renewed = turns.renew_turn(renew).await.unwrap().into_inner().turn.unwrap();
    assert_eq!(renewed.lease, None);
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    duplicate(begin(&mut turns, alone("b")).await);
}

async fn a_marked_event_is_a_turns_duplicate(mut f: Fixture) {
    let mut turns = turns(&f).await;
    f.client.mark_processed(mark("T1", "Ev1")).await.unwrap();
    let duplicate = duplicate(begin(&mut turns, wish("Ev1", "a")).await);
    let event = duplicate.event.unwrap();
    assert_eq!((event.outcome(), event.attempt), (TurnOutcome::Unspecified, 1));
    // A lapsed claim is no bar to a mark, which takes the event for good.
    let short = BeginTurnRequest { claim_ttl: seconds(1), ..wish("Ev2", "a") };
    let mine = turn(begin(&mut turns, short).await);
    f.clock.advance(Duration::from_secs(1));
    assert!(f.client.mark_processed(mark("T1", "Ev2")).await.unwrap().into_inner().first);
    let late = finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap_err();
    assert_eq!(reason(&late), "CLAIM_LOST");
}

async fn another_epic_is_refused_and_claims_nothing(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let bound = |id, epic: &str| BeginTurnRequest { epic_id: epic.into(), ..wish(id, "a") };
    let mine = turn(begin(&mut turns, bound("Ev1", "PROJ-50")).await);
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    let refused = turns.begin_turn(bound("Ev2", "PROJ-51")).await.unwrap_err();
    assert_eq!(reason(&refused), "EPIC_MISMATCH");
    assert_eq!(look(&mut f, "Ev2").await.state(), EventState::NotSeen);
}

async fn one_session_has_one_turn_at_a_time(f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    assert_eq!(busy(begin(&mut turns, wish("Ev2", "b")).await).holder, "a");
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    turn(begin(&mut turns, wish("Ev2", "b")).await);
}

async fn the_longest_ids_make_a_turn_that_can_be_finished(f: Fixture) {
    let mut turns = turns(&f).await;
    let long = |letter: &str| letter.repeat(512);
    let slack = SlackEvent {
        action_id: long("a"),
        message_ts: long("1"),
        user_id: long("u"),
        channel: long("c"),
        ..Default::default()
    };
    let team_id = long("T");
    let request = BeginTurnRequest {
        event: Some(EventKey {
            team_id: team_id.clone(),
            key: Some(event_key::Key::Slack(slack.clone())),
            aliases: Vec::new(),
            ..Default::default()
        }),
        session: Some(SessionKey {
            team_id,
            key: Some(session_key::Key::Slack(slack)),
            ..Default::default()
        }),
        ..wish("", "a")
    };
    let mine = turn(begin(&mut turns, request).await);
    assert!(mine.turn_id.len() <= 8_192, "{}", mine.turn_id.len());
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
}

async fn what_is_asked_wrongly_is_refused_by_name(f: Fixture) {
    let mut turns = turns(&f).await;
    let well = || wish("Ev1", "a");
    let wrong = [
        ("event", BeginTurnRequest { event: None, ..well() }),
        ("holder", BeginTurnRequest { holder: String::new(), ..well() }),
        ("holder", BeginTurnRequest { holder: String::new(), session: None, ..well() }),
        ("claim_ttl", BeginTurnRequest { claim_ttl: seconds(3_601), ..well() }),
        ("lease_ttl", BeginTurnRequest { lease_ttl: seconds(901), ..well() }),
        ("wait", BeginTurnRequest { wait: seconds(601), ..well() }),
        ("max_attempts", BeginTurnRequest { max_attempts: 101, ..well() }),
        ("max_attempts", BeginTurnRequest { max_attempts: -1, ..well() }),
        ("payload_digest", BeginTurnRequest { payload_digest: vec![0; 33], ..well() }),
        ("session.team_id", BeginTurnRequest { session: session("T2", "s"), ..well() }),
    ];
    for (field, request) in wrong {
        refuses(field, &turns.begin_turn(request).await.unwrap_err());
    }
    let mine = turn(begin(&mut turns, well()).await);
    let well = || FinishTurnRequest {
        turn_id: mine.turn_id.clone(),
        outcome: TurnOutcome::Succeeded.into(),
        ..Default::default()
    };
    let failed = TurnOutcome::Failed.into();
    let wrong = [
        ("turn_id", FinishTurnRequest { turn_id: String::new(), ..well() }),
        ("turn_id", FinishTurnRequest { turn_id: "AAAA".into(), ..well() }),
        ("outcome", FinishTurnRequest { outcome: 0, ..well() }),
        ("outcome", FinishTurnRequest { outcome: 3, ..well() }),
        ("outcome", FinishTurnRequest { outcome: 99, ..well() }),
        ("result", FinishTurnRequest { result: vec![0; 65_537], ..well() }),
        ("result", FinishTurnRequest { outcome: failed, result: vec![0], ..well() }),
        ("ttl", FinishTurnRequest { ttl: seconds(0), ..well() }),
        ("ttl", FinishTurnRequest { outcome: failed, ttl: seconds(9), ..well() }),
    ];
    for (field, request) in wrong {
        refuses(field, &turns.finish_turn(request).await.unwrap_err());
    }
    let most = FinishTurnRequest { result: vec![7; 65_536], ..well() };
    turns.finish_turn(most).await.unwrap();
    assert_eq!(duplicate(begin(&mut turns, wish("Ev1", "a")).await).result, vec![7; 65_536]);
}

#[track_caller]
fn refuses(field: &str, status: &Status) {
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let bad = status.get_details_bad_request().unwrap();
    assert_eq!(bad.field_violations[0].field, field);
}
