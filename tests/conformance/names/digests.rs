//! Deliveries with the digest of their payload.

use super::*;

on_all_stores!(
    another_payload_is_told_and_never_a_duplicate,
    a_turns_payload_is_compared_while_it_is_on_record,
    the_payload_of_an_alias_is_not_compared,
    a_payload_is_compared_with_that_of_its_own_name,
    a_turn_that_waited_for_another_payloads_event_leaves_the_session,
    a_twin_of_another_payload_takes_no_turn_away,
);

fn digested(digest: &str) -> MarkProcessedRequest {
    MarkProcessedRequest { payload_digest: digest.into(), ..mark("T1", "Ev1") }
}

#[track_caller]
fn mismatched<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "PAYLOAD_MISMATCH");
}

async fn another_payload_is_told_and_never_a_duplicate(mut f: Fixture) {
    let of_request = MarkProcessedRequest { request_id: "r1".into(), ..digested("one") };
    assert!(f.client.mark_processed(of_request.clone()).await.unwrap().into_inner().first);
    // Once from the store, and once from memory.
    for _ in 0..2 {
        mismatched(f.client.mark_processed(digested("two")).await);
        let again = MarkProcessedRequest { payload_digest: "two".into(), ..of_request.clone() };
        mismatched(f.client.mark_processed(again).await);
        for same in [digested("one"), digested("")] {
            assert!(!f.client.mark_processed(same).await.unwrap().into_inner().first);
        }
    }
    assert!(f.client.mark_processed(of_request).await.unwrap().into_inner().first);
    let requests = vec![digested("two"), mark("T1", "Ev2")];
    let batch = f.client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let results = batch.unwrap().into_inner().results;
    let Some(Item::Error(error)) = &results[0].result else { panic!("{results:?}") };
    assert_eq!((error.code, error.field.as_str()), (Code::FailedPrecondition as i32, ""));
    assert!(matches!(&results[1].result, Some(Item::Response(answer)) if answer.first));
    f.clock.advance(Duration::from_hours(24));
    assert!(f.client.mark_processed(digested("two")).await.unwrap().into_inner().first);
    mismatched(f.client.mark_processed(digested("one")).await);
}

async fn a_turns_payload_is_compared_while_it_is_on_record(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let wish = |digest: &str| BeginTurnRequest {
        payload_digest: digest.into(),
        request_id: "r1".into(),
        ..wish("Ev1", &[])
    };
    let mine = turn(begin(&mut turns, wish("one")).await);
    mismatched(turns.begin_turn(wish("two")).await);
    mismatched(f.client.mark_processed(digested("two")).await);
    assert_eq!(turn(begin(&mut turns, wish("one")).await).turn_id, mine.turn_id);
    finish(&mut turns, mine, TurnOutcome::Failed).await;
    // What is free again is nobody's, whatever it was.
    let mine = turn(begin(&mut turns, wish("two")).await);
    assert_eq!(mine.attempt, 2);
    finish(&mut turns, mine, TurnOutcome::Succeeded).await;
    mismatched(turns.begin_turn(wish("one")).await);
    assert!(matches!(begin(&mut turns, wish("two")).await, Outcome::Duplicate(_)));
    mismatched(f.client.mark_processed(digested("one")).await);
}

async fn the_payload_of_an_alias_is_not_compared(mut f: Fixture) {
    let request = |name: &str, digest: &str| MarkProcessedRequest {
        event: named(name, &["ts"]),
        payload_digest: digest.into(),
        ..Default::default()
    };
    assert!(f.client.mark_processed(request("message", "one")).await.unwrap().into_inner().first);
    let twin = f.client.mark_processed(request("mention", "two")).await.unwrap().into_inner();
    assert!(!twin.first);
    mismatched(f.client.mark_processed(request("message", "two")).await);
}

async fn a_payload_is_compared_with_that_of_its_own_name(mut f: Fixture) {
    let request = |name: &str, aliases: &[&str], digest: &str| MarkProcessedRequest {
        event: named(name, aliases),
        payload_digest: digest.into(),
        ..Default::default()
    };
    for (name, digest) in [("z", "one"), ("a", ""), ("m", "one")] {
        assert!(
            f.client.mark_processed(request(name, &[], digest)).await.unwrap().into_inner().first
        );
    }
    for _ in 0..2 {
        mismatched(f.client.mark_processed(request("z", &["a", "m"], "two")).await);
        let other = f.client.mark_processed(request("new", &["m", "z"], "two")).await;
        assert!(!other.unwrap().into_inner().first);
    }
    let mut turns = turns(&f).await;
    let wish = |name: &str, aliases: &[&str]| BeginTurnRequest {
        payload_digest: "two".into(),
        ..wish(name, aliases)
    };
    mismatched(turns.begin_turn(wish("z", &["a", "m"])).await);
    let other = begin(&mut turns, wish("new", &["m", "z"])).await;
    assert!(matches!(other, Outcome::Duplicate(_)), "{other:?}");
}

async fn a_turn_that_waited_for_another_payloads_event_leaves_the_session(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let holding = turn(begin(&mut turns, wish("other", &[])).await);
    let mut waiter = turns.clone();
    let waits =
        BeginTurnRequest { payload_digest: "two".into(), wait: seconds(60), ..wish("Ev1", &[]) };
    let waiter = tokio::spawn(async move { waiter.begin_turn(waits).await });
    while f.client.acquire_session_lease(acquire("T1", "s", "x")).await.map(held).unwrap() == 0 {}
    assert!(f.client.mark_processed(digested("one")).await.unwrap().into_inner().first);
    finish(&mut turns, holding, TurnOutcome::Succeeded).await;
    mismatched(waiter.await.unwrap());
    turn(begin(&mut turns, wish("next", &[])).await);
}

/// Two calls with one request id and different payloads wait: one gets the turn, and the other
/// fails with `PAYLOAD_MISMATCH`, which ends no turn.
async fn a_twin_of_another_payload_takes_no_turn_away(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let holding = turn(begin(&mut turns, wish("other", &[])).await);
    let mut waiters = Vec::new();
    for (digest, waiting) in [("one", 1), ("two", 2)] {
        let waits = BeginTurnRequest {
            payload_digest: digest.into(),
            request_id: "r1".into(),
            wait: seconds(60),
            ..wish("Ev1", &[])
        };
        let mut waiter = turns.clone();
        waiters.push(tokio::spawn(async move { waiter.begin_turn(waits).await }));
        let look = || acquire("T1", "s", "x");
        while f.client.acquire_session_lease(look()).await.map(held).unwrap() < waiting {}
    }
    finish(&mut turns, holding, TurnOutcome::Succeeded).await;
    let mut granted = Vec::new();
    for waiter in waiters {
        match waiter.await.unwrap() {
            Ok(answer) => granted.push(turn(answer.into_inner().outcome.unwrap())),
            refused => mismatched(refused),
        }
    }
    assert_eq!(granted.len(), 1);
    finish(&mut turns, granted.remove(0), TurnOutcome::Succeeded).await;
}

/// How many wait for a session that is held.
fn held(answer: Response<AcquireSessionLeaseResponse>) -> i32 {
    harness::held(answer.into_inner()).queue_length
}
