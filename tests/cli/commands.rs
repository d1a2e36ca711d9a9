//! What the commands about events answer, as text, as JSON and as exit codes.

use std::time::Duration;

use serde_json::json;
use tempfile::tempdir;

use super::{ask, asking, oncegate, run};
use crate::{
    harness::{Fixture, Replica, TestClock, sqlite_url},
    on_both_stores,
};

on_both_stores!(
    a_mark_is_first_once,
    a_mark_under_several_names_is_first_once,
    a_mark_with_its_request_id_is_first_again,
    a_mark_with_a_ttl_is_first_again_after_it,
    a_check_tells_and_writes_nothing,
    a_cleanup_counts_and_then_deletes,
    health_is_told_by_service,
    a_server_describes_itself,
);

async fn a_server_describes_itself(fixture: Fixture) {
    let version = env!("CARGO_PKG_VERSION");
    let text = ask(&fixture, &["server-info"]);
    assert!(text.out.starts_with(&format!("version {version}\nfeatures turns ")), "{}", text.out);
    assert!(text.out.contains("\nmax_id_bytes 512\n"), "{}", text.out);
    assert!(text.out.contains("\nmax_hold 3600.0s\n"), "{}", text.out);
    let json = ask(&fixture, &["server-info", "--output", "json"]).json(0);
    assert_eq!((&json["version"], &json["limits"]["max_hold"]), (&json!(version), &json!(3_600.0)));
    assert_eq!(json["limits"].as_object().unwrap().len(), 14);
}

async fn a_mark_is_first_once(fixture: Fixture) {
    ask(&fixture, &["mark", "T1", "Ev1"]).told(0, "first T1 Ev1");
    ask(&fixture, &["mark", "T1", "Ev1"]).told(10, "duplicate T1 Ev1");
    ask(&fixture, &["mark", "T2", "Ev1"]).told(0, "first T2 Ev1");

    let mut json = json!({
        "team_id": "T1",
        "event_id": "Ev2",
        "first": true,
        "process_time": "2026-09-21T14:13:20Z",
        "expire_time": "2026-09-22T14:13:20Z",
    });
    let mark = ["mark", "T1", "Ev2", "--output", "json"];
    assert_eq!(ask(&fixture, &mark).json(0), json);
    json["first"] = false.into();
    assert_eq!(ask(&fixture, &mark).json(10), json);
}

async fn a_mark_under_several_names_is_first_once(fixture: Fixture) {
    let mark = |event| ask(&fixture, &["mark", "T1", event, "--alias", "ts", "--alias", "id"]);
    mark("message").told(0, "first T1 message");
    mark("mention").told(10, "duplicate T1 mention");
    let check =
        |arguments: &[&str]| ask(&fixture, &[&["check", "T1", "mention"], arguments].concat());
    check(&[]).told(10, "not seen T1 mention");
    check(&["--alias", "id"]).told(0, "processed T1 mention");
}

async fn a_mark_with_its_request_id_is_first_again(fixture: Fixture) {
    let mark = |request_id| ask(&fixture, &["mark", "T1", "Ev1", "--request-id", request_id]);
    mark("run-1").told(0, "first T1 Ev1");
    mark("run-1").told(0, "first T1 Ev1");
    mark("run-2").told(10, "duplicate T1 Ev1");
}

async fn a_mark_with_a_ttl_is_first_again_after_it(fixture: Fixture) {
    let mark = ["mark", "T1", "Ev1", "--ttl", "1h 30m"];
    ask(&fixture, &mark).told(0, "first T1 Ev1");
    fixture.clock.advance(Duration::from_mins(90) - Duration::from_micros(1));
    ask(&fixture, &mark).told(10, "duplicate T1 Ev1");
    fixture.clock.advance(Duration::from_micros(1));
    ask(&fixture, &mark).told(0, "first T1 Ev1");
}

async fn a_check_tells_and_writes_nothing(fixture: Fixture) {
    let text = ["check", "T1", "Ev1"];
    let json = ["check", "T1", "Ev1", "--output", "json"];
    for _ in 0..2 {
        ask(&fixture, &text).told(10, "not seen T1 Ev1");
        let expected = json!({
            "team_id": "T1",
            "event_id": "Ev1",
            "state": "EVENT_STATE_NOT_SEEN",
            "process_time": null,
            "expire_time": null,
        });
        assert_eq!(ask(&fixture, &json).json(10), expected);
    }

    ask(&fixture, &["mark", "T1", "Ev1"]).told(0, "first T1 Ev1");
    ask(&fixture, &text).told(0, "processed T1 Ev1");
    let expected = json!({
        "team_id": "T1",
        "event_id": "Ev1",
        "state": "EVENT_STATE_PROCESSED",
        "process_time": "2026-09-21T14:13:20Z",
        "expire_time": "2026-09-22T14:13:20Z",
    });
    assert_eq!(ask(&fixture, &json).json(0), expected);
}

async fn a_cleanup_counts_and_then_deletes(fixture: Fixture) {
    for event in ["Ev1", "Ev2", "Ev3"] {
        ask(&fixture, &["mark", "T1", event]).told(0, &format!("first T1 {event}"));
    }
    ask(&fixture, &["mark", "T2", "Ev1"]).told(0, "first T2 Ev1");
    ask(&fixture, &["cleanup"]).told(0, "deleted 0 events, 0 sessions");

    let all = ["cleanup", "--team", "T1", "--older-than", "0s"];
    let with = |more: &[&str]| ask(&fixture, &[&all[..], more].concat());
    with(&["--dry-run"]).told(0, "would delete 3 events, 0 sessions");
    with(&["--max-rows", "2"]).told(0, "deleted 2 events, 0 sessions; more may remain");
    let mut json = json!({
        "deleted_events": 1, "deleted_sessions": 0, "more": false, "dry_run": true,
    });
    assert_eq!(with(&["--dry-run", "--output", "json"]).json(0), json);
    json["dry_run"] = false.into();
    assert_eq!(with(&["--output", "json"]).json(0), json);

    fixture.clock.advance(Duration::from_hours(24));
    ask(&fixture, &["cleanup"]).told(0, "deleted 1 events, 0 sessions");
}

async fn health_is_told_by_service(fixture: Fixture) {
    for service in ["readiness", "liveness", "oncegate.v1.IdempotencyService"] {
        ask(&fixture, &["health", service]).told(0, &format!("{service}: SERVING"));
    }
    ask(&fixture, &["health"]).told(0, "readiness: SERVING");
    ask(&fixture, &["health", "none.such"]).told(10, "none.such: SERVICE_UNKNOWN");

    let json = json!({ "service": "readiness", "status": "SERVING" });
    assert_eq!(ask(&fixture, &["health", "--output", "json"]).json(0), json);
    let json = json!({ "service": "none.such", "status": "SERVICE_UNKNOWN" });
    assert_eq!(ask(&fixture, &["health", "none.such", "--output", "json"]).json(10), json);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_be_named_in_many_ways() {
    let directory = tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("oncegate.sock").display());
    let clock = TestClock::new().store_clock();
    let replica = Replica::start(&sqlite_url(&directory), clock, &["--listen", &socket]).await;
    assert_eq!(replica.server.address().to_string(), socket);

    let health = |server: &str| run(&mut oncegate(&["health", "--server", server]), "");
    health(&socket).told(0, "readiness: SERVING");
    health(&socket.replacen("unix:", "unix://", 1)).told(0, "readiness: SERVING");

    let fixture = Fixture::sqlite().await;
    let address = fixture.replica.server.address().to_string();
    health(&address).told(0, "readiness: SERVING");
    health(&format!("http://{address}/")).told(0, "readiness: SERVING");
    health(&address.replace("127.0.0.1", "localhost")).told(0, "readiness: SERVING");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_stands_in_for_flags() {
    let fixture = Fixture::sqlite().await;
    let address = fixture.replica.server.address().to_string();
    let nowhere = "unix:/nonexistent/oncegate.sock";

    let mut health = oncegate(&["health"]);
    health.env("ONCEGATE_SERVER", &address).env("ONCEGATE_OUTPUT", "json");
    assert_eq!(run(&mut health, "").json(0)["status"], "SERVING");
    health.args(["--output", "text"]);
    run(&mut health, "").told(0, "readiness: SERVING");
    health.args(["--server", nowhere]);
    run(&mut health, "").complained(4, nowhere);

    let mut mark = asking(&fixture, &["mark", "T1", "Ev1"]);
    mark.env("ONCEGATE_SERVER", nowhere).env("ONCEGATE_TIMEOUT", "9s");
    run(&mut mark, "").told(0, "first T1 Ev1");
    mark.env("ONCEGATE_TIMEOUT", "soon");
    run(&mut mark, "").complained(2, "'soon' for '--timeout");
}
