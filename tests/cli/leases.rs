//! `oncegate lease`, from the grant to the release.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};

use super::{Lines, ask, asking, run};
use crate::{
    harness::{Fixture, acquire, held},
    on_both_stores,
};

on_both_stores!(
    a_lease_is_granted_held_renewed_and_released,
    a_lease_reads_well,
    a_lease_that_ended_is_lost,
    a_fencing_token_is_current_until_it_is_stale,
    a_session_keeps_its_epic,
    an_acquire_that_waits_is_next,
);

fn granted(fixture: &Fixture, more: &[&str]) -> Value {
    let acquire = ["lease", "acquire", "T1", "S1", "--output", "json"];
    ask(fixture, &[&acquire[..], more].concat()).json(0)
}

fn text<'a>(lease: &'a Value, field: &str) -> &'a str {
    lease[field].as_str().unwrap()
}

async fn a_lease_is_granted_held_renewed_and_released(fixture: Fixture) {
    let more = ["--holder", "pod-1", "--ttl", "1m", "--label", "run=7", "--label", "by=a=b"];
    let lease = granted(&fixture, &[&more[..], &["--request-id", "run-7"]].concat());
    let id = text(&lease, "lease_id");
    let mut expected = json!({
        "outcome": "granted",
        "team_id": "T1",
        "session_id": "S1",
        "lease_id": id,
        "fencing_token": lease["fencing_token"],
        "holder": "pod-1",
        "expire_time": "2026-09-21T14:14:20Z",
        "remaining_seconds": 60.0,
        "epic_id": "",
        "labels": { "run": "7", "by": "a=b" },
    });
    assert_eq!(lease, expected);
    assert!(lease["fencing_token"].as_i64().unwrap() >= 1);
    assert_eq!(granted(&fixture, &["--holder", "pod-1", "--request-id", "run-7"]), lease);

    fixture.clock.advance(Duration::from_secs(15));
    let acquire = ["lease", "acquire", "T1", "S1", "--output", "json"];
    let held = json!({
        "outcome": "held", "holder": "pod-1", "remaining_seconds": 45.0, "queue_length": 0,
    });
    assert_eq!(ask(&fixture, &acquire).json(10), held);

    // 30 s unless more are asked for, which takes nothing away.
    let renew = ["lease", "renew", "T1", "S1", id, "--output", "json"];
    expected["outcome"] = "renewed".into();
    expected["remaining_seconds"] = 45.0.into();
    assert_eq!(ask(&fixture, &renew).json(0), expected);
    expected["expire_time"] = "2026-09-21T14:14:35Z".into();
    expected["remaining_seconds"] = 60.0.into();
    assert_eq!(ask(&fixture, &[&renew[..], &["--ttl", "1m"]].concat()).json(0), expected);

    let release = ["lease", "release", "T1", "S1", id, "--output", "json"];
    for _ in 0..2 {
        assert_eq!(ask(&fixture, &release).json(0), json!({ "released": true }));
    }
    let next = granted(&fixture, &[]);
    assert!(next["fencing_token"].as_i64() > lease["fencing_token"].as_i64());
    assert_eq!(ask(&fixture, &release).json(10), json!({ "released": false }));
}

async fn a_lease_reads_well(fixture: Fixture) {
    let acquire = ["lease", "acquire", "T1", "S1"];
    let ran = run(asking(&fixture, &acquire).env("HOSTNAME", "pod-1"), "");
    let id = ran.out.split_whitespace().nth(2).unwrap();
    let (before, after) = ran.out.split_once(id).unwrap();
    assert_eq!((ran.code, before), (Some(0), "granted: lease "));
    assert!(after.starts_with(" of S1, fencing token "), "{after}");
    assert!(after.ends_with(", 30.0 s\n"), "{after}");

    ask(&fixture, &acquire).told(10, "held by pod-1 for 30.0 s, 0 waiting");
    let renewed = ran.out.replace("granted", "renewed").replace("30.0", "60.0");
    ask(&fixture, &["lease", "renew", "T1", "S1", id, "--ttl", "60s"]).told(0, renewed.trim_end());
    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(0, "released");

    // Without a name of its own, the command is known by what it is.
    let next = granted(&fixture, &[]);
    assert_eq!(text(&next, "holder"), "oncegate-cli");
    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(10, "not released: no longer held");
}

async fn a_lease_that_ended_is_lost(fixture: Fixture) {
    let lease = granted(&fixture, &[]);
    let id = text(&lease, "lease_id");
    fixture.clock.advance(Duration::from_secs(30));
    ask(&fixture, &["lease", "renew", "T1", "S1", id])
        .complained(10, "error: FAILED_PRECONDITION: lease lost");
    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(10, "not released: no longer held");
}

async fn a_fencing_token_is_current_until_it_is_stale(fixture: Fixture) {
    let check = |token: &Value| {
        let token = token.to_string();
        ask(&fixture, &["lease", "check", "T1", "S1", &token])
    };
    check(&json!(1)).told(10, "stale: no lease of this session is on record");
    let first = granted(&fixture, &[])["fencing_token"].clone();
    check(&first).told(0, "current");
    let json = ["lease", "check", "T1", "S1", &first.to_string(), "--output", "json"];
    assert_eq!(ask(&fixture, &json).json(0), json!({ "current": true, "fencing_token": first }));

    fixture.clock.advance(Duration::from_secs(30));
    check(&first).told(10, "stale: its lease has ended");
    let second = granted(&fixture, &[])["fencing_token"].clone();
    check(&first).told(10, &format!("stale: the latest fencing token is {second}"));
    assert_eq!(ask(&fixture, &json).json(10), json!({ "current": false, "fencing_token": second }));
}

async fn a_session_keeps_its_epic(fixture: Fixture) {
    let lease = granted(&fixture, &["--epic", "PROJ-50"]);
    assert_eq!(text(&lease, "epic_id"), "PROJ-50");
    let id = text(&lease, "lease_id");
    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(0, "released");

    ask(&fixture, &["lease", "acquire", "T1", "S1", "--epic", "PROJ-51"])
        .complained(10, "error: FAILED_PRECONDITION: session is bound to epic \"PROJ-50\"");
    assert_eq!(text(&granted(&fixture, &[]), "epic_id"), "PROJ-50");
}

async fn an_acquire_that_waits_is_next(fixture: Fixture) {
    let lease = granted(&fixture, &["--ttl", "15m"]);
    // A wait that is longer than the time for an answer does not count in it.
    let wait = ["lease", "acquire", "T1", "S1", "--wait", "5m", "--timeout", "60s"];
    let mut waiter = asking(&fixture, &wait).stdout(Stdio::piped()).spawn().unwrap();
    let lines = Lines::of(waiter.stdout.take().unwrap());

    let mut client = fixture.client.clone();
    let mut waiting = 0;
    while waiting == 0 {
        let answer = client.acquire_session_lease(acquire("T1", "S1", "looks")).await;
        waiting = held(answer.unwrap().into_inner()).queue_length;
    }
    ask(&fixture, &["lease", "acquire", "T1", "S1"])
        .told(10, "held by oncegate-cli for 900.0 s, 1 waiting");
    ask(&fixture, &["lease", "release", "T1", "S1", text(&lease, "lease_id")]).told(0, "released");
    assert!(lines.next().unwrap().starts_with("granted: lease "));
    assert_eq!(waiter.wait().unwrap().code(), Some(0));
}
