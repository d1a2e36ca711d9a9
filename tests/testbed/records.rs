//! What the testbed reads and changes at the server: sessions, events, calls, the clock.

use oncegate::grpc::pb::{
    SessionLease, TurnEnd, TurnOutcome, turn_service_client::TurnServiceClient,
};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;

use super::{PATIENCE, Run, Testbed, end, marking, wish};
use crate::harness::{acquire, granted};

#[tokio::test]
async fn look_reports_a_session() {
    let mut testbed = Testbed::sqlite().await;
    let unknown = json!({
        "state": "UNKNOWN", "holder": null, "fence": null, "waiters": 0, "remaining_ms": null,
        "epic": null, "labels": {},
    });
    assert_eq!(testbed.look_at_session("S1").await, unknown);

    let mut run = Run::begin(testbed.channel().await, "E1").await;
    let mut held = testbed.look_at_session("S1").await;
    let remaining = held["remaining_ms"].take().as_u64().unwrap();
    assert!((1..=60_000).contains(&remaining), "{remaining}");
    let mut session = json!({
        "state": "HELD", "holder": "holder", "fence": held["fence"], "waiters": 0,
        "remaining_ms": null, "epic": "EPIC-1", "labels": { "job": "reindex" },
    });
    assert_eq!(held, session);
    assert!(held["fence"].as_i64().unwrap() > 0);

    run.end(end(TurnOutcome::Succeeded)).await;
    session["state"] = "FREE".into();
    let mut free = testbed.look_at_session("S1").await;
    free["labels"] = session["labels"].clone();
    assert_eq!(free, session);
}

#[tokio::test]
async fn look_reports_an_event() {
    let mut testbed = Testbed::sqlite().await;
    let not_seen = json!({
        "state": "NOT_SEEN", "outcome": null, "attempt": 0, "holder": null, "detail": null,
        "result": null,
    });
    assert_eq!(testbed.look("E1").await, not_seen);

    let mut run = Run::begin(testbed.channel().await, "E1").await;
    let in_progress = json!({
        "state": "IN_PROGRESS", "outcome": null, "attempt": 1, "holder": "holder", "detail": null,
        "result": null,
    });
    assert_eq!(testbed.look("E1").await, in_progress);

    run.end(TurnEnd { detail: "no answer".into(), ..end(TurnOutcome::Failed) }).await;
    let failed = json!({
        "state": "NOT_SEEN", "outcome": "FAILED", "attempt": 1, "holder": "holder",
        "detail": "no answer", "result": null,
    });
    assert_eq!(testbed.look("E1").await, failed);

    let mut run = Run::begin(testbed.channel().await, "E1").await;
    let result = |result: &str, result_type: &str| TurnEnd {
        result: result.into(),
        result_type: result_type.into(),
        ..end(TurnOutcome::Succeeded)
    };
    run.end(result("{\"answer\":42}", "application/json")).await;
    let succeeded = json!({
        "state": "PROCESSED", "outcome": "SUCCEEDED", "attempt": 2, "holder": null, "detail": null,
        "result": { "answer": 42 },
    });
    assert_eq!(testbed.look("E1").await, succeeded);

    let mut run = Run::begin(testbed.channel().await, "E2").await;
    run.end(result("{\"answer\":", "application/json")).await;
    assert_eq!(testbed.look("E2").await["result"], json!({ "$hex": "7b22616e73776572223a" }));
    let mut run = Run::begin(testbed.channel().await, "E4").await;
    run.end(result("42\0", "")).await;
    assert_eq!(testbed.look("E4").await["result"], json!({ "$hex": "343200" }));

    let mut run = Run::begin(testbed.channel().await, "E3").await;
    run.end(TurnEnd { detail: "nonsense".into(), ..end(TurnOutcome::Rejected) }).await;
    let rejected = testbed.look("E3").await;
    assert_eq!(
        (&rejected["outcome"], &rejected["detail"]),
        (&json!("REJECTED"), &json!("nonsense"))
    );
}

#[tokio::test]
async fn a_claim_that_lapses_is_no_failure() {
    let mut testbed = Testbed::sqlite().await;
    let mut turns = TurnServiceClient::new(testbed.channel().await);
    turns.begin_turn(wish("E1")).await.unwrap();
    assert_eq!(testbed.look("E1").await["state"], "IN_PROGRESS");
    testbed.ask(json!({ "do": "clock", "advance_ms": 60_000 })).await;
    let lapsed = json!({
        "state": "NOT_SEEN", "outcome": null, "attempt": 1, "holder": "holder", "detail": null,
        "result": null,
    });
    assert_eq!(testbed.look("E1").await, lapsed);
}

#[tokio::test]
async fn a_consumers_names_are_its_own() {
    let mut testbed = Testbed::sqlite().await;
    assert!(marking(testbed.client().await, "E1").await.unwrap().unwrap());
    let look = json!({ "do": "look", "team": "T1", "event": "E1", "consumer": "other" });
    assert_eq!(testbed.ask(look).await["state"], "NOT_SEEN");
}

#[tokio::test]
async fn a_lease_is_lost_by_force() {
    let mut testbed = Testbed::sqlite().await;
    let lose = json!({ "do": "lose", "team": "T1", "session": "S1" });
    let unknown = json!({ "released": false, "fence_before": null, "fence": null });
    assert_eq!(testbed.ask(lose.clone()).await, unknown);
    let mut run = Run::begin(testbed.channel().await, "E1").await;
    let held = testbed.look_at_session("S1").await;
    let released = testbed.ask(lose).await;
    assert_eq!(released["released"], true);
    assert_eq!(released["fence_before"], held["fence"]);
    assert_eq!(run.next().await.unwrap_err().code(), Code::FailedPrecondition);
    let free = testbed.look_at_session("S1").await;
    assert_eq!(free["state"], "FREE");
    assert_eq!(released["fence"], free["fence"]);
    assert!(free["fence"].as_i64() > held["fence"].as_i64(), "{held}, {free}");
}

#[tokio::test]
async fn a_forgotten_event_is_first_again() {
    let mut testbed = Testbed::sqlite().await;
    let forget = json!({ "do": "forget", "team": "T1", "event": "E1" });
    assert_eq!(testbed.ask(forget.clone()).await, json!({ "forgotten": false }));
    for _ in 0..2 {
        assert!(marking(testbed.client().await, "E1").await.unwrap().unwrap());
        assert_eq!(testbed.ask(forget.clone()).await, json!({ "forgotten": true }));
    }
}

#[tokio::test]
async fn finished_calls_are_counted_without_those_of_the_testbed() {
    let mut testbed = Testbed::sqlite().await;
    let client = testbed.client().await;
    for event in ["E1", "E1", ""] {
        assert_eq!(testbed.look("E9").await["state"], "NOT_SEEN");
        let _ = marking(client.clone(), event).await.unwrap();
    }
    let run = Run::begin(testbed.channel().await, "E2").await;
    drop(run);
    let counts = json!({
        "MarkProcessed": { "OK": 2, "INVALID_ARGUMENT": 1 },
        "RunTurn": { "CANCELLED": 1 },
    });
    // A call is counted a moment after its answer.
    let end = Instant::now() + PATIENCE;
    loop {
        let calls = testbed.ask(json!({ "do": "calls" })).await;
        if calls == counts {
            break;
        }
        assert!(Instant::now() < end, "{calls}");
        sleep(Duration::from_millis(5)).await;
    }
    testbed.ask(json!({ "do": "kill" })).await;
    testbed.ask(json!({ "do": "restart" })).await;
    assert_eq!(testbed.ask(json!({ "do": "calls" })).await, json!({}), "it counts anew");
}

#[tokio::test]
async fn the_clock_of_sqlite_runs_and_is_moved() {
    let mut testbed = Testbed::sqlite().await;
    let lease = lease_of(&testbed, "S1").await;
    let before = testbed.look_at_session("S1").await["remaining_ms"].as_u64().unwrap();
    sleep(Duration::from_millis(50)).await;
    let after = testbed.look_at_session("S1").await["remaining_ms"].as_u64().unwrap();
    assert!(after <= before - 50, "{before}, {after}");
    testbed.ask(json!({ "do": "clock", "advance_ms": 30_000 })).await;
    assert_eq!(testbed.look_at_session("S1").await["state"], "FREE");

    // A restart does not set it back.
    testbed.ask(json!({ "do": "clock", "advance_ms": 3_600_000 })).await;
    testbed.ask(json!({ "do": "kill" })).await;
    testbed.ask(json!({ "do": "restart" })).await;
    let later = lease_of(&testbed, "S2").await;
    let [lease, later] = [lease, later].map(|lease| lease.acquire_time.unwrap().seconds);
    assert!(later >= lease + 3_630, "{lease}, {later}");
}

async fn lease_of(testbed: &Testbed, session: &str) -> SessionLease {
    let request = acquire("T1", session, "holder");
    granted(testbed.client().await.acquire_session_lease(request).await.unwrap().into_inner())
}

#[tokio::test]
async fn the_clock_of_postgres_stands_as_it_is() {
    let mut testbed = Testbed::start(&["--store", "postgres"]).await;
    let error = testbed.run(json!({ "do": "clock", "advance_ms": 1 })).await.unwrap_err();
    assert_eq!(error, "only the clock of SQLite can be moved");
}
