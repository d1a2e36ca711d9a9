//! Attempts at an event: runs that crash, fail or repeat a request.

use super::{asking::gave_up, *};

on_all_stores!(
    a_crashed_runs_event_goes_to_the_next_delivery,
    a_failed_turn_lets_another_run_try_as_often_as_may_be,
    an_event_whose_runs_all_crash_is_given_up,
    a_repeated_request_has_the_turn_that_it_was_granted,
    a_stale_run_of_the_same_request_is_stale,
    only_what_was_done_is_told_as_done,
    one_request_id_for_two_events_is_two_attempts,
);

async fn a_crashed_runs_event_goes_to_the_next_delivery(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let short = BeginTurnRequest { claim_ttl: seconds(10), ..wish("Ev1", "crashed") };
    let crashed = turn(begin(&mut turns, short).await);
    f.clock.advance(Duration::from_secs(9));
    in_progress(begin(&mut turns, wish("Ev1", "next")).await);
    f.clock.advance(Duration::from_secs(1));
    assert_eq!(look(&mut f, "Ev1").await.state(), EventState::NotSeen);
    let next = turn(begin(&mut turns, wish("Ev1", "next")).await);
    assert_eq!(next.attempt, 2);
    // The one that was taken for dead is too late.
    let late = finish(&mut turns, &crashed, TurnOutcome::Succeeded).await.unwrap_err();
    assert_eq!(reason(&late), "CLAIM_LOST");
    let late = finish(&mut turns, &crashed, TurnOutcome::Failed).await.unwrap_err();
    assert_eq!(reason(&late), "CLAIM_LOST");
    let claimed = look(&mut f, "Ev1").await;
    assert_eq!((claimed.holder.as_str(), claimed.attempt), ("next", 2));
    let done = finish(&mut turns, &next, TurnOutcome::Succeeded).await.unwrap();
    assert_eq!((done.attempt, done.state()), (2, EventState::Processed));
}

async fn a_failed_turn_lets_another_run_try_as_often_as_may_be(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for attempt in 1..=5 {
        let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
        assert_eq!(mine.attempt, attempt);
        let event = finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
        let state = if attempt < 5 { EventState::NotSeen } else { EventState::Processed };
        assert_eq!(event.state(), state);
        // Repeated, it changes nothing.
        assert_eq!(finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap(), event);
        let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
        let lease = granted(asked.into_inner());
        f.client.release_session_lease(release(&lease)).await.unwrap();
    }
    let event = gave_up(begin(&mut turns, wish("Ev1", "a")).await);
    assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 5));
    assert_eq!(look(&mut f, "Ev1").await, event);
}

async fn an_event_whose_runs_all_crash_is_given_up(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let twice = BeginTurnRequest { max_attempts: 2, claim_ttl: seconds(1), ..wish("Ev1", "a") };
    for attempt in 1..=2 {
        assert_eq!(turn(begin(&mut turns, twice.clone()).await).attempt, attempt);
        f.clock.advance(Duration::from_secs(1));
    }
    let event = gave_up(begin(&mut turns, twice).await);
    assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 2));
    assert_eq!(look(&mut f, "Ev1").await, event);
    // The session is nobody's.
    let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
    granted(asked.into_inner());
}

async fn a_repeated_request_has_the_turn_that_it_was_granted(f: Fixture) {
    let mut turns = turns(&f).await;
    let named = BeginTurnRequest { request_id: "r1".into(), ..wish("Ev1", "a") };
    // Each call takes its own time.
    let timeless = |turn: Turn| Turn {
        elapsed: None,
        lease: turn.lease.map(|lease| SessionLease { elapsed: None, ..lease }),
        ..turn
    };
    let first = timeless(turn(begin(&mut turns, named.clone()).await));
    assert_eq!(timeless(turn(begin(&mut turns, named.clone()).await)), first);
    let other = BeginTurnRequest { request_id: "r2".into(), ..named.clone() };
    in_progress(begin(&mut turns, other).await);
    let alone = BeginTurnRequest { session: None, ..named };
    let alone = BeginTurnRequest { event: event("T1", "Ev2"), ..alone };
    let first = timeless(turn(begin(&mut turns, alone.clone()).await));
    assert_eq!(timeless(turn(begin(&mut turns, alone).await)), first);
}

/// The delivery's id for a request id: its redelivery has the same.
async fn a_stale_run_of_the_same_request_is_stale(f: Fixture) {
    let mut turns = turns(&f).await;
    for named in [
        BeginTurnRequest { session: None, request_id: "r".into(), ..wish("Ev1", "a") },
        BeginTurnRequest { request_id: "r".into(), ..wish("Ev2", "a") },
    ] {
        let stale = turn(begin(&mut turns, named.clone()).await);
        f.clock.advance(Duration::from_mins(5));
        let next = turn(begin(&mut turns, named).await);
        assert_eq!(next.attempt, 2);
        for outcome in [TurnOutcome::Failed, TurnOutcome::Succeeded] {
            let late = finish(&mut turns, &stale, outcome).await.unwrap_err();
            assert_eq!(reason(&late), "CLAIM_LOST");
        }
        let renew = RenewTurnRequest { turn_id: stale.turn_id, ..Default::default() };
        assert_eq!(reason(&turns.renew_turn(renew).await.unwrap_err()), "CLAIM_LOST");
        finish(&mut turns, &next, TurnOutcome::Succeeded).await.unwrap();
    }
}

async fn only_what_was_done_is_told_as_done(f: Fixture) {
    let mut turns = turns(&f).await;
    let once = BeginTurnRequest { max_attempts: 1, ..wish("Ev1", "a") };
    let lapsed = turn(begin(&mut turns, once.clone()).await);
    f.clock.advance(Duration::from_mins(5));
    // Neither has ended it.
    for outcome in [TurnOutcome::Failed, TurnOutcome::Succeeded] {
        let late = finish(&mut turns, &lapsed, outcome).await.unwrap_err();
        assert_eq!(reason(&late), "CLAIM_LOST");
    }
    let event = gave_up(begin(&mut turns, once).await);
    assert_eq!(event.outcome(), TurnOutcome::GaveUp);
    let late = finish(&mut turns, &lapsed, TurnOutcome::Succeeded).await.unwrap_err();
    assert_eq!(reason(&late), "CLAIM_LOST");
}

async fn one_request_id_for_two_events_is_two_attempts(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let named = |id| BeginTurnRequest { request_id: "r".into(), ..wish(id, "a") };
    let mine = turn(begin(&mut turns, named("Ev1")).await);
    assert_eq!(busy(begin(&mut turns, named("Ev2")).await).holder, "a");
    f.client.mark_processed(mark("T1", "Ev3")).await.unwrap();
    duplicate(begin(&mut turns, named("Ev3")).await);
    // Nor has any of that taken the session away.
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
}
