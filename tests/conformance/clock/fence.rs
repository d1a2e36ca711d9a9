//! Fencing tokens rise whatever the clock shows and whatever rows are lost.

use super::*;

on_both_stores!(
    tokens_rise_whatever_ends_the_lease_while_the_clock_is_stepped_back,
    tokens_are_no_less_than_the_clock_and_below_two_to_the_53,
    a_sweep_leaves_what_is_above_the_clock_until_the_clock_has_passed_it,
    a_raised_floor_is_below_the_next_token_of_every_session,
);

async fn tokens_rise_whatever_ends_the_lease_while_the_clock_is_stepped_back(mut f: Fixture) {
    let (mut admin, mut turns) = (admin(&f).await, turns(&f).await);
    let mut last = 0;
    for round in 0..16 {
        let lease = take(&mut f.client, brief("a")).await;
        assert!(lease.fencing_token > last, "round {round}: {} after {last}", lease.fencing_token);
        last = lease.fencing_token;
        f.clock.step_back(secs(600));
        match round % 8 {
            0 => drop(f.client.release_session_lease(release(&lease)).await.unwrap()),
            1 => {
                held_for(&mut f).await;
                f.clock.advance(secs(5));
            }
            2 => {
                let actor = "ops".into();
                let close = CloseSessionRequest {
                    session: session("T1", "s"),
                    actor,
                    reason: String::new(),
                };
                assert!(admin.close_session(close).await.unwrap().into_inner().closed);
            }
            3 => {
                let (actor, reason) = ("ops".into(), "stuck".into());
                let session = session("T1", "s");
                let force = ForceReleaseSessionLeaseRequest { session, actor, reason };
                admin.force_release_session_lease(force).await.unwrap();
            }
            4 => {
                f.client.release_session_lease(release(&lease)).await.unwrap();
                let begin = BeginTurnRequest {
                    event: event("T1", &format!("e{round}")),
                    session: session("T1", "s"),
                    holder: "run".into(),
                    ..Default::default()
                };
                let turn = turn(outcome(turns.begin_turn(begin).await.unwrap()));
                let token = turn.lease.unwrap().fencing_token;
                assert!(token > last, "a turn: {token} after {last}");
                last = token;
                let outcome = TurnOutcome::Succeeded.into();
                let turn_id = turn.turn_id;
                let finish = FinishTurnRequest { turn_id, outcome, ..Default::default() };
                turns.finish_turn(finish).await.unwrap();
            }
            5 => {
                let wait = seconds(60);
                let mut waiter = f.client.clone();
                let request = AcquireSessionLeaseRequest { wait, ..brief("waiter") };
                let waiting =
                    tokio::spawn(async move { waiter.acquire_session_lease(request).await });
                while queue(&mut f).await == 0 {}
                f.client.release_session_lease(release(&lease)).await.unwrap();
                let next = granted(waiting.await.unwrap().unwrap().into_inner());
                assert!(next.fencing_token > last, "handed on");
                last = next.fencing_token;
                f.client.release_session_lease(release(&next)).await.unwrap();
            }
            // The row leaves once the clock has passed its token, and is stepped back then.
            _ => {
                f.client.release_session_lease(release(&lease)).await.unwrap();
                f.clock.advance(HOUR * 4);
                let cleaned = f.client.cleanup(CleanupRequest::default()).await.unwrap();
                assert_eq!(cleaned.into_inner().deleted_sessions, 1);
                f.clock.step_back(HOUR * 4);
            }
        }
    }
}

async fn tokens_are_no_less_than_the_clock_and_below_two_to_the_53(mut f: Fixture) {
    let mut last = take(&mut f.client, brief("a")).await;
    assert_eq!(last.fencing_token, f.clock.micros());
    for _ in 0..3 {
        f.client.release_session_lease(release(&last)).await.unwrap();
        let next = take(&mut f.client, brief("a")).await;
        assert_eq!(next.fencing_token, last.fencing_token + 1, "within one microsecond");
        last = next;
    }
    f.clock.advance(HOUR);
    assert_eq!(take(&mut f.client, brief("b")).await.fencing_token, f.clock.micros());
    // Beyond 2^53 - 1, in the year 2255, no token is made up.
    f.clock.set((1 << 53) - 1);
    let end = take(&mut f.client, acquire("T1", "last", "a")).await;
    assert_eq!(end.fencing_token, FencingToken::MAX.0);
    f.clock.advance(secs(60));
    let refused = f.client.acquire_session_lease(acquire("T1", "last", "a")).await;
    assert!(refused.is_err());
}

async fn a_sweep_leaves_what_is_above_the_clock_until_the_clock_has_passed_it(mut f: Fixture) {
    let mut last = take(&mut f.client, brief("a")).await;
    // Tokens that are ahead of the clock, by 3 µs.
    for _ in 0..3 {
        f.client.release_session_lease(release(&last)).await.unwrap();
        last = take(&mut f.client, brief("a")).await;
    }
    f.client.release_session_lease(release(&last)).await.unwrap();
    let swept = |answer: tonic::Response<oncegate::grpc::pb::CleanupResponse>| {
        answer.into_inner().deleted_sessions
    };
    let dry = CleanupRequest { dry_run: true, ..CleanupRequest::default() };
    for cleanup in [dry, CleanupRequest::default()] {
        assert_eq!(swept(f.client.cleanup(cleanup).await.unwrap()), 0);
    }
    // A session that is closed meanwhile stays, free and unbound.
    let mut admin = admin(&f).await;
    let (session, actor) = (|| session("T1", "s"), String::from("ops"));
    let bind = BindEpicRequest {
        session: session(),
        epic_id: "PROJ-50".into(),
        actor: actor.clone(),
        reason: String::new(),
    };
    admin.bind_epic(bind).await.unwrap();
    let close = CloseSessionRequest { session: session(), actor, reason: String::new() };
    assert!(admin.close_session(close).await.unwrap().into_inner().closed);
    let get = GetSessionRequest { session: session() };
    let left = admin.get_session(get).await.unwrap().into_inner().session.unwrap();
    assert_eq!(left.epic_id, "");
    assert!(left.fencing_token > last.fencing_token);
    f.clock.advance(Duration::from_secs(10));
    assert_eq!(swept(f.client.cleanup(CleanupRequest::default()).await.unwrap()), 0);
    f.clock.advance(Duration::from_micros(5));
    assert_eq!(swept(f.client.cleanup(CleanupRequest::default()).await.unwrap()), 1);
    f.clock.step_back(HOUR);
    let next = take(&mut f.client, brief("b")).await;
    assert!(next.fencing_token > left.fencing_token, "the floor");
}

async fn a_raised_floor_is_below_the_next_token_of_every_session(mut f: Fixture) {
    let known = take(&mut f.client, brief("a")).await;
    f.client.release_session_lease(release(&known)).await.unwrap();
    let floor = f.clock.micros() + 1_000_000_000;
    let raise = format!("UPDATE oncegate_fence SET floor = {floor}");
    execute(&f.url, &raise).await;
    assert_eq!(take(&mut f.client, brief("b")).await.fencing_token, floor + 1, "known");
    let new = take(&mut f.client, acquire("T1", "new", "a")).await;
    assert_eq!(new.fencing_token, floor + 1, "new");
}

/// As after a restore to an earlier state, a promotion of a standby that lags, or a move by
/// logical replication: rows and floor are what they were, or are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_though_rows_and_floor_are_lost() {
    const BEFORE: &str = "CREATE TABLE before_s AS SELECT * FROM oncegate_sessions;
        CREATE TABLE before_f AS SELECT * FROM oncegate_fence";
    const RESTORE: &str = "DELETE FROM oncegate_sessions; DELETE FROM oncegate_fence;
        INSERT INTO oncegate_sessions SELECT * FROM before_s;
        INSERT INTO oncegate_fence SELECT * FROM before_f";
    const LOSE: &str = "TRUNCATE oncegate_sessions; UPDATE oncegate_fence SET floor = 0";
    let mut f = Fixture::postgres().await;
    take(&mut f.client, brief("a")).await;
    execute(&f.url, BEFORE).await;
    let mut last = 0;
    for lost in [RESTORE, LOSE, RESTORE] {
        for _ in 0..10 {
            f.clock.advance(secs(5));
            let lease = take(&mut f.client, brief("a")).await;
            assert!(lease.fencing_token > last);
            last = lease.fencing_token;
        }
        execute(&f.url, lost).await;
        f.clock.advance(secs(5));
        let lease = take(&mut f.client, brief("b")).await;
        assert!(lease.fencing_token > last, "{} after {last}: {lost}", lease.fencing_token);
        last = lease.fencing_token;
    }
}
