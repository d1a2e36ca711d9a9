//! What a request for a turn may leave out, and what answers it where there is no turn.

use oncegate::grpc::pb::{ThreadKey, run_turn_response::News};

use super::{calls::Kept, *};

on_all_stores!(
    what_is_about_a_session_is_ignored_without_one,
    what_is_about_a_session_is_ignored_on_a_stream_without_one,
    a_sessions_tenant_is_that_of_its_event,
    an_event_that_was_given_up_is_reported_as_such,
    retry_after_is_never_zero,
);

#[track_caller]
pub(super) fn gave_up(outcome: Outcome) -> ProcessedEvent {
    match outcome {
        Outcome::GaveUp(gave_up) => gave_up.event.unwrap(),
        other => panic!("not given up: {other:?}"),
    }
}

/// A request without a session that sets all fields which are about one.
fn alone(id: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        session: None,
        wait: seconds(60),
        lease_ttl: seconds(30),
        epic_id: "PROJ-50".into(),
        labels: [("run".to_owned(), "7".to_owned())].into(),
        ..wish(id, "a")
    }
}

async fn what_is_about_a_session_is_ignored_without_one(f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, alone("Ev1")).await);
    assert_eq!((mine.lease, mine.remaining), (None, seconds(300)));
    // Nor does it wait for anything.
    let asked = Instant::now();
    assert_eq!(in_progress(begin(&mut turns, alone("Ev1")).await).holder, "a");
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    let least = BeginTurnRequest { wait: seconds(0), lease_ttl: None, ..alone("Ev2") };
    assert_eq!(turn(begin(&mut turns, least).await).lease, None);
    // Nor is it looked at.
    let wrong = BeginTurnRequest {
        wait: seconds(-1),
        lease_ttl: seconds(3_600),
        epic_id: "a\nb".into(),
        labels: [(String::new(), String::new())].into(),
        ..alone("Ev3")
    };
    assert_eq!(turn(begin(&mut turns, wrong).await).lease, None);
}

async fn what_is_about_a_session_is_ignored_on_a_stream_without_one(f: Fixture) {
    let mut kept = Kept::new(&f, alone("Ev1")).await;
    assert_eq!(kept.turn().await.lease, None);
    let mut other = Kept::new(&f, alone("Ev1")).await;
    assert!(matches!(other.event().await, News::InProgress(_)));
}

async fn a_sessions_tenant_is_that_of_its_event(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let without = |id: &str| {
        let mut request = wish(id, "a");
        request.session.as_mut().unwrap().team_id.clear();
        request
    };
    let mine = turn(begin(&mut turns, without("Ev1")).await);
    let lease = mine.lease.clone().unwrap();
    assert_eq!((lease.team_id.as_str(), lease.session_id.as_str()), ("T1", "s"));
    // It is the session that others name in full.
    let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
    assert_eq!(held(asked.into_inner()).holder, "a");
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();

    let mut thread = without("Ev2");
    thread.session.as_mut().unwrap().key = Some(session_key::Key::Thread(ThreadKey {
        channel_id: "C1".into(),
        thread_ts: "17.5".into(),
    }));
    let mut kept = Kept::new(&f, thread).await;
    assert_eq!(kept.turn().await.lease.unwrap().session_id, "T1:C1:17.5");
    // Only here: elsewhere nothing else names the tenant.
    let mut alone = acquire("T1", "s", "b");
    alone.session.as_mut().unwrap().team_id.clear();
    refuses("session.team_id", &f.client.acquire_session_lease(alone).await.unwrap_err());
}

async fn an_event_that_was_given_up_is_reported_as_such(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let once = |id: &str| BeginTurnRequest { max_attempts: 1, ..wish(id, "a") };
    // By a failure that was reported, and by a claim that lapses.
    let mine = turn(begin(&mut turns, once("failed")).await);
    finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
    turn(begin(&mut turns, once("lapsed")).await);
    f.clock.advance(Duration::from_mins(5));
    for id in ["failed", "lapsed"] {
        let event = gave_up(begin(&mut turns, once(id)).await);
        assert_eq!((event.state(), event.outcome()), (EventState::Processed, TurnOutcome::GaveUp));
        assert_eq!((event.team_id.as_str(), event.event_id.as_str(), event.attempt), ("T1", id, 1));
        assert_eq!(look(&mut f, id).await, event);
        let mut kept = Kept::new(&f, once(id)).await;
        let News::GaveUp(told) = kept.event().await else { panic!("not given up") };
        assert_eq!(told.event.unwrap(), event);
        assert_eq!(kept.next().await.unwrap(), None);
    }
}

async fn retry_after_is_never_zero(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let short = BeginTurnRequest { claim_ttl: seconds(1), ..wish("Ev1", "a") };
    turn(begin(&mut turns, short).await);
    let mut spans = Vec::new();
    // The last is the last microsecond of claim and lease.
    for pause in [0, 333_333, 333_333, 333_333] {
        f.clock.advance(Duration::from_micros(pause));
        let claimed = in_progress(begin(&mut turns, wish("Ev1", "b")).await);
        let held_up = busy(begin(&mut turns, wish("Ev2", "b")).await);
        let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
        let refused = held(asked.into_inner());
        let mut kept = Kept::new(&f, wish("Ev1", "b")).await;
        let News::InProgress(streamed) = kept.event().await else { panic!("not in progress") };
        spans.extend([claimed.retry_after, held_up.retry_after]);
        spans.extend([refused.retry_after, streamed.retry_after]);
    }
    assert_eq!(spans.len(), 16);
    for span in spans.into_iter().map(|span| Duration::try_from(span.unwrap())) {
        assert!(span.is_ok_and(|span| !span.is_zero()));
    }
}
