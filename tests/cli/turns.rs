//! `oncegate turns`: what is worked on, what failed, and what was given up.

use std::time::Duration;

use futures_util::future::join_all;
use oncegate::grpc::pb::{
    BeginTurnRequest, FinishTurnRequest, TurnOutcome, begin_turn_response::Outcome,
    turn_service_client::TurnServiceClient,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{ask, oncegate, run};
use crate::{
    harness::{Fixture, connect, event, mark, seconds},
    on_both_stores,
};

on_both_stores!(turns_are_listed_by_how_they_stand, details_are_shown, a_list_goes_on_to_its_end,);

type Turns = TurnServiceClient<Channel>;

async fn turns(fixture: &Fixture) -> Turns {
    Turns::new(connect(fixture.replica.server.address()).await)
}

fn wish(team: &str, id: &str, holder: &str) -> BeginTurnRequest {
    BeginTurnRequest { event: event(team, id), holder: holder.into(), ..Default::default() }
}

/// Begins a turn, and answers its id.
async fn begin(turns: &mut Turns, request: BeginTurnRequest) -> String {
    match turns.begin_turn(request).await.unwrap().into_inner().outcome {
        Some(Outcome::Granted(granted)) => granted.turn.unwrap().turn_id,
        other => panic!("not granted: {other:?}"),
    }
}

async fn begin_and_end(turns: &mut Turns, request: BeginTurnRequest, outcome: TurnOutcome) {
    let turn_id = begin(turns, request).await;
    let request = FinishTurnRequest { turn_id, outcome: outcome.into(), ..Default::default() };
    turns.finish_turn(request).await.unwrap();
}

async fn turns_are_listed_by_how_they_stand(fixture: Fixture) {
    let list = |more: &[&str]| ask(&fixture, &[&["turns"][..], more].concat());
    list(&[]).told(0, "");
    list(&["--output", "json"]).told(0, "");

    let mut turns = turns(&fixture).await;
    let once = BeginTurnRequest { max_attempts: 1, ..wish("T1", "Ev1", "pod-1") };
    begin_and_end(&mut turns, once, TurnOutcome::Failed).await;
    fixture.clock.advance(Duration::from_hours(1));
    let short = BeginTurnRequest { claim_ttl: seconds(60), ..wish("T1", "Ev2", "pod-2") };
    begin(&mut turns, short).await;
    for holder in ["pod-2", "pod-3"] {
        begin_and_end(&mut turns, wish("T1", "Ev3", holder), TurnOutcome::Failed).await;
    }
    begin_and_end(&mut turns, wish("T1", "Ev4", "pod-1"), TurnOutcome::Succeeded).await;
    fixture.client.clone().mark_processed(mark("T1", "Ev5")).await.unwrap();
    fixture.clock.advance(Duration::from_secs(90));
    for (team, id, holder) in [("T2", "Ev1", "pod-4"), ("T1", "Ev6", "pod-1")] {
        begin(&mut turns, wish(team, id, holder)).await;
    }
    fixture.clock.advance(Duration::from_millis(10_500));

    let claimed = "T1 Ev6 in progress by pod-1, attempt 1, begun 10s ago, 4m 49s left";
    let other = "T2 Ev1 in progress by pod-4, attempt 1, begun 10s ago, 4m 49s left";
    let lapsed = "T1 Ev2 lapsed by pod-2, attempt 1, 1m 40s ago";
    let failed = "T1 Ev3 failed by pod-3, attempt 2, 1m 40s ago";
    let given_up = "T1 Ev1 given up, attempt 1, 1h 1m 40s ago";
    let succeeded = "T1 Ev4 succeeded, attempt 1, 1m 40s ago";
    let marked = "T1 Ev5 marked, attempt 1, 1m 40s ago";
    for (more, lines) in [
        (&[][..], &[claimed, other, lapsed, failed, given_up][..]),
        (&["--team", "T1"], &[claimed, lapsed, failed, given_up]),
        (&["--team", "T3"], &[]),
        (&["--state", "in-progress"], &[claimed, other]),
        (&["--state", "failed"], &[lapsed, failed]),
        (&["--state", "gave-up"], &[given_up]),
        (&["--state", "succeeded"], &[succeeded]),
        (&["--state", "all"], &[given_up, lapsed, failed, succeeded, marked, claimed, other]),
        (&["--newer-than", "1h"], &[claimed, other, lapsed, failed]),
        (&["--older-than", "1m"], &[lapsed, failed, given_up]),
        (&["--older-than", "1m", "--newer-than", "1h"], &[lapsed, failed]),
    ] {
        let ran = list(more);
        ran.told(0, &lines.join("\n"));
        assert_eq!(ran.err, "", "{more:?}");
    }

    let json = list(&["--output", "json", "--team", "T1"]).out;
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = json.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["Ev6", "Ev2", "Ev3", "Ev1"]);
    let expected = json!({
        "team_id": "T1",
        "event_id": "Ev6",
        "state": "EVENT_STATE_IN_PROGRESS",
        "outcome": "TURN_OUTCOME_UNSPECIFIED",
        "holder": "pod-1",
        "attempt": 1,
        "detail": "",
        "process_time": "2026-09-21T15:14:50Z",
        "expire_time": "2026-09-21T15:19:50Z",
        "age_seconds": 10.5,
        "remaining_seconds": 289.5,
    });
    assert_eq!(json[0], expected);
    let expected = json!({
        "team_id": "T1",
        "event_id": "Ev2",
        "state": "EVENT_STATE_NOT_SEEN",
        "outcome": "TURN_OUTCOME_UNSPECIFIED",
        "holder": "pod-2",
        "attempt": 1,
        "detail": "",
        "process_time": "2026-09-21T15:13:20Z",
        "expire_time": "2026-09-21T15:14:20Z",
        "age_seconds": 100.5,
        "remaining_seconds": null,
    });
    assert_eq!(json[1], expected);
    assert_eq!(json[3]["outcome"], "TURN_OUTCOME_GAVE_UP");
}

async fn details_are_shown(fixture: Fixture) {
    let mut turns = turns(&fixture).await;
    let lines = "no such channel\n\tat C1";
    let long = "é".repeat(200);
    for (id, outcome, max_attempts, detail) in [
        ("Ev1", TurnOutcome::Rejected, 5, lines),
        ("Ev2", TurnOutcome::Failed, 5, "timeout"),
        ("Ev3", TurnOutcome::Failed, 1, &long),
        ("Ev4", TurnOutcome::Rejected, 5, ""),
        ("Ev5", TurnOutcome::Failed, 5, "\ntwo"),
    ] {
        let wished = BeginTurnRequest { max_attempts, ..wish("T1", id, "pod-1") };
        let turn_id = begin(&mut turns, wished).await;
        let outcome = outcome.into();
        let request =
            FinishTurnRequest { turn_id, outcome, detail: detail.into(), ..Default::default() };
        turns.finish_turn(request).await.unwrap();
    }
    begin(&mut turns, wish("T1", "Ev2", "pod-2")).await;

    let list = |more: &[&str]| ask(&fixture, &[&["turns"][..], more].concat());
    let claimed = "T1 Ev2 in progress by pod-2, attempt 2, begun 0s ago, 5m left: timeout";
    let failed = "T1 Ev5 failed by pod-1, attempt 1, 0s ago: two";
    let short = format!("T1 Ev3 given up, attempt 1, 0s ago: {}…", "é".repeat(99));
    let rejected = [
        "T1 Ev1 rejected, attempt 1, 0s ago: no such channel…",
        "T1 Ev4 rejected, attempt 1, 0s ago",
    ];
    list(&["--state", "rejected"]).told(0, &rejected.join("\n"));
    list(&["--state", "failed"]).told(0, failed);
    list(&[]).told(0, &[claimed, failed, &short, rejected[0], rejected[1]].join("\n"));

    let json = list(&["--output", "json", "--state", "rejected"]).out;
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json[0]["outcome"], "TURN_OUTCOME_REJECTED");
    assert_eq!((&json[0]["detail"], &json[1]["detail"]), (&json!(lines), &json!("")));
    let json = list(&["--output", "json", "--state", "gave-up"]).json(0);
    assert_eq!(json["detail"], long);
}

async fn a_list_goes_on_to_its_end(fixture: Fixture) {
    // More than are asked for at once.
    let ids: Vec<_> = (0..600).map(|number| format!("Ev{number:03}")).collect();
    let turns = turns(&fixture).await;
    let begun = ids.iter().map(|id| {
        let mut turns = turns.clone();
        async move { begin(&mut turns, wish("T1", id, "pod-1")).await }
    });
    join_all(begun).await;
    let ran = ask(&fixture, &["turns"]);
    let printed: Vec<_> =
        ran.out.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(printed, ids);
}

#[test]
fn wrong_arguments_are_refused() {
    let cases: [(&[&str], &str); 3] = [
        (
            &["turns", "--state", "held"],
            "possible values: in-progress, failed, gave-up, rejected, succeeded, all",
        ),
        (&["turns", "--newer-than", "soon"], "invalid value 'soon' for '--newer-than <AGE>'"),
        (&["turns", "--older-than", "3651d"], "must be 0s to"),
    ];
    for (arguments, problem) in cases {
        let ran = run(&mut oncegate(arguments), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(problem), "{arguments:?}: {problem:?} is not in {}", ran.err);
    }
}
