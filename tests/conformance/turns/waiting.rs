//! Turns whose callers wait for the session.

use super::*;

on_all_stores!(
    an_event_is_looked_at_again_when_its_session_is_had,
    a_turn_that_waited_is_finished_as_any_other,
    a_finished_turn_hands_its_session_on,
);

async fn waits(f: &Fixture, request: BeginTurnRequest) -> tokio::task::JoinHandle<Outcome> {
    let mut waiter = turns(f).await;
    let request = BeginTurnRequest { wait: seconds(60), ..request };
    let waiter = tokio::spawn(async move { begin(&mut waiter, request).await });
    let mut client = f.client.clone();
    let stands = async {
        while held(
            client.acquire_session_lease(acquire("T1", "s", "x")).await.unwrap().into_inner(),
        )
        .queue_length
            == 0
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), stands).await.expect("a waiter");
    waiter
}

async fn an_event_is_looked_at_again_when_its_session_is_had(mut f: Fixture) {
    let lease = f.client.acquire_session_lease(acquire("T1", "s", "run")).await.unwrap();
    let lease = granted(lease.into_inner());
    let waiter = waits(&f, wish("Ev1", "waiter")).await;
    assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    f.client.release_session_lease(release(&lease)).await.unwrap();
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    duplicate(waiter.await.unwrap());
    // And the session is free again, before that is answered.
    let look = GetSessionRequest { session: session("T1", "s") };
    let found = admin.get_session(look).await.unwrap().into_inner().session.unwrap();
    assert_eq!(found.state(), SessionState::Free, "{found:?}");
}

async fn a_turn_that_waited_is_finished_as_any_other(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let first = turn(begin(&mut turns, wish("Ev1", "first")).await);
    let waiter = waits(&f, wish("Ev2", "second")).await;
    finish(&mut turns, &first, TurnOutcome::Succeeded).await.unwrap();
    let second = turn(waiter.await.unwrap());
    let fences = [first, second.clone()].map(|turn| turn.lease.unwrap().fencing_token);
    assert!(fences[0] < fences[1]);
    assert_eq!(look(&mut f, "Ev2").await.holder, "second");
    let done = finish(&mut turns, &second, TurnOutcome::Succeeded).await.unwrap();
    assert_eq!(done.state(), EventState::Processed);
    turn(begin(&mut turns, wish("Ev3", "third")).await);
}

async fn a_finished_turn_hands_its_session_on(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    let waiter = waits(&f, wish("Ev2", "b")).await;
    let begun = Instant::now();
    finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap();
    turn(waiter.await.unwrap());
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    f.client.renew_session_lease(renew(&mine.lease.unwrap())).await.unwrap_err();
}
