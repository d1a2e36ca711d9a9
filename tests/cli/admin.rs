//! `oncegate sessions`, `forget` and `stats`: what there is, and how it is put
//! right by hand.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::tempdir;

use super::{ask, asking, oncegate, run};
use crate::{
    harness::{Fixture, acquire, mark, process::Process, seconds, sqlite_url},
    on_both_stores,
};

on_both_stores!(
    sessions_are_listed_in_order,
    a_list_goes_on_for_as_many_as_it_may,
    a_session_is_shown,
    a_session_tells_who_waits_for_it,
    a_session_is_bound_to_other_work,
    a_lease_is_ended_whoever_holds_it,
    a_session_is_closed,
    an_event_is_forgotten,
    what_there_is_is_counted,
    who_asks_must_be_told,
);

fn leased(fixture: &Fixture, target: [&str; 2], more: &[&str]) -> Value {
    let [team, session] = target;
    let acquire = ["lease", "acquire", team, session, "--output", "json"];
    ask(fixture, &[&acquire[..], more].concat()).json(0)
}

fn shown(fixture: &Fixture, target: [&str; 2]) -> Value {
    let [team, session] = target;
    ask(fixture, &["sessions", "show", team, session, "--output", "json"]).json(0)
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap()
}

async fn sessions_are_listed_in_order(fixture: Fixture) {
    let list = |more: &[&str]| ask(&fixture, &[&["sessions", "list"][..], more].concat());
    list(&[]).told(0, "");

    let other = leased(&fixture, ["T2", "S1"], &["--holder", "pod-2"]);
    let more = ["--holder", "pod-1", "--ttl", "1m", "--epic", "PROJ-50"];
    let held = leased(&fixture, ["T1", "T1:C1:17.2"], &more);
    let free = leased(&fixture, ["T1", "T1:C1:17.1"], &[]);
    ask(&fixture, &["lease", "release", "T1", "T1:C1:17.1", text(&free, "lease_id")])
        .told(0, "released");
    // An id that only looks as if it began with its team.
    let like = leased(&fixture, ["T1", "T12:C1:17.1"], &["--holder", "pod-1"]);
    fixture.clock.advance(Duration::from_secs(15));

    let lines = [
        format!("T1 T12:C1:17.1 held by pod-1 for 15.0 s, token {}", like["fencing_token"]),
        format!("T1:C1:17.1 free, token {}", free["fencing_token"]),
        format!(
            "T1:C1:17.2 held by pod-1 for 45.0 s, token {}, epic PROJ-50",
            held["fencing_token"]
        ),
        format!("T2 S1 held by pod-2 for 15.0 s, token {}", other["fencing_token"]),
    ];
    list(&[]).told(0, &lines.join("\n"));
    list(&["--team", "T1"]).told(0, &lines[..3].join("\n"));
    list(&["--state", "held"]).told(0, &[&lines[0][..], &lines[2], &lines[3]].join("\n"));
    list(&["--state", "free"]).told(0, &lines[1]);
    list(&["--state", "held", "--team", "T2"]).told(0, &lines[3]);
    list(&["--state", "free", "--team", "T2"]).told(0, "");

    let cut = list(&["--limit", "2"]);
    cut.told(0, &lines[..2].join("\n"));
    assert_eq!(cut.err, "more sessions exist; --limit 0 lists all\n");
    for limit in ["0", "4"] {
        let all = list(&["--limit", limit]);
        all.told(0, &lines.join("\n"));
        assert_eq!(all.err, "");
    }

    fixture.clock.advance(Duration::from_secs(15));
    let ended = format!("T2 S1 free, token {}", other["fencing_token"]);
    list(&["--team", "T2"]).told(0, &ended);

    let json = list(&["--output", "json"]).out;
    let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = json.iter().map(|session| text(session, "session_id")).collect();
    assert_eq!(ids, ["T12:C1:17.1", "T1:C1:17.1", "T1:C1:17.2", "S1"]);
    assert_eq!(json[2], shown(&fixture, ["T1", "T1:C1:17.2"]));
}

async fn a_list_goes_on_for_as_many_as_it_may(fixture: Fixture) {
    // More than are asked for at once.
    let ids: Vec<_> = (0..600).map(|number| format!("S{number:03}")).collect();
    let acquired = ids.iter().map(|id| {
        let mut client = fixture.client.clone();
        async move { client.acquire_session_lease(acquire("T1", id, "pod-1")).await.unwrap() }
    });
    join_all(acquired).await;

    for (limit, expected) in [("0", 600), ("600", 600), ("500", 500), ("251", 251)] {
        let list = ["sessions", "list", "--limit", limit];
        let ran = ask(&fixture, &list);
        let printed: Vec<_> =
            ran.out.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(printed, ids[..expected], "--limit {limit}");
        assert_eq!(ran.err.is_empty(), expected == ids.len(), "--limit {limit}: {}", ran.err);
    }
    assert_eq!(ask(&fixture, &["sessions", "list"]).out.lines().count(), 100);
}

async fn a_session_is_shown(fixture: Fixture) {
    let show = ["sessions", "show", "T1", "S1"];
    let json = ["sessions", "show", "T1", "S1", "--output", "json"];
    ask(&fixture, &show).told(10, "not on record T1 S1");
    let nothing = json!({ "team_id": "T1", "session_id": "S1", "state": "NOT_FOUND" });
    assert_eq!(ask(&fixture, &json).json(10), nothing);

    let more = ["--holder", "pod-1", "--epic", "PROJ-50", "--label", "run=7"];
    let lease = leased(&fixture, ["T1", "S1"], &more);
    let token = &lease["fencing_token"];
    fixture.clock.advance(Duration::from_millis(200));
    ask(&fixture, &show)
        .told(0, &format!("T1 S1 held by pod-1 for 29.8 s, token {token}, epic PROJ-50"));
    let mut expected = json!({
        "team_id": "T1",
        "session_id": "S1",
        "state": "SESSION_STATE_HELD",
        "holder": "pod-1",
        "fencing_token": token,
        "acquire_time": "2026-09-21T14:13:20Z",
        "expire_time": "2026-09-21T14:13:50Z",
        "remaining_seconds": 29.8,
        "epic_id": "PROJ-50",
        "labels": { "run": "7" },
        "waiters": 0,
    });
    assert_eq!(ask(&fixture, &json).json(0), expected);

    fixture.clock.advance(Duration::from_secs(30));
    ask(&fixture, &show).told(0, &format!("T1 S1 free, token {token}, epic PROJ-50"));
    expected["state"] = "SESSION_STATE_FREE".into();
    expected["remaining_seconds"] = Value::Null;
    assert_eq!(ask(&fixture, &json).json(0), expected);
}

async fn a_session_tells_who_waits_for_it(fixture: Fixture) {
    let lease = leased(&fixture, ["T1", "S1"], &["--holder", "pod-1"]);
    let mut client = fixture.client.clone();
    let mut request = acquire("T1", "S1", "pod-2");
    request.wait = seconds(600);
    let waiter = tokio::spawn(async move { client.acquire_session_lease(request).await });
    while shown(&fixture, ["T1", "S1"])["waiters"] == 0 {}

    let token = &lease["fencing_token"];
    ask(&fixture, &["sessions", "show", "T1", "S1"])
        .told(0, &format!("T1 S1 held by pod-1 for 30.0 s, token {token}, 1 waiting"));
    ask(&fixture, &["stats"]).told(0, "0 events, 0 expired, 1 sessions, 1 held, 1 waiting");

    let release = ["sessions", "release", "T1", "S1", "--reason", "pod-1 hangs"];
    ask(&fixture, &release).told(0, "released T1 S1");
    waiter.await.unwrap().unwrap();
    assert_eq!(shown(&fixture, ["T1", "S1"])["holder"], "pod-2");
}

async fn a_session_is_bound_to_other_work(fixture: Fixture) {
    let bind =
        |more: &[&str]| ask(&fixture, &[&["sessions", "bind", "T1", "S1"][..], more].concat());
    let made = bind(&["PROJ-50"]);
    let token = &shown(&fixture, ["T1", "S1"])["fencing_token"];
    made.told(0, &format!("T1 S1 free, token {token}, epic PROJ-50"));
    let with = |epic| ask(&fixture, &["lease", "acquire", "T1", "S1", "--epic", epic]);
    with("PROJ-51")
        .complained(10, "error: FAILED_PRECONDITION: session is bound to epic \"PROJ-50\"");

    // A lease goes on, whatever its session is bound to.
    let lease = leased(&fixture, ["T1", "S1"], &["--holder", "pod-1"]);
    let (id, token) = (text(&lease, "lease_id"), &lease["fencing_token"]);
    let rebound = bind(&["PROJ-51", "--reason", "moved", "--output", "json"]).json(0);
    assert_eq!((text(&rebound, "epic_id"), &rebound["fencing_token"]), ("PROJ-51", token));
    assert_eq!(rebound, shown(&fixture, ["T1", "S1"]));
    bind(&["--unbind"]).told(0, &format!("T1 S1 held by pod-1 for 30.0 s, token {token}"));
    let renew = ["lease", "renew", "T1", "S1", id, "--output", "json"];
    assert_eq!(text(&ask(&fixture, &renew).json(0), "epic_id"), "");

    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(0, "released");
    assert_eq!(text(&leased(&fixture, ["T1", "S1"], &["--epic", "PROJ-52"]), "epic_id"), "PROJ-52");
}

async fn a_lease_is_ended_whoever_holds_it(fixture: Fixture) {
    let release = ["sessions", "release", "T1", "S1", "--reason", "pod-1 hangs"];
    ask(&fixture, &release).told(10, "not held T1 S1");

    let lease = leased(&fixture, ["T1", "S1"], &["--epic", "PROJ-50"]);
    let (id, token) = (text(&lease, "lease_id"), lease["fencing_token"].to_string());
    ask(&fixture, &release).told(0, "released T1 S1");
    ask(&fixture, &["lease", "renew", "T1", "S1", id])
        .complained(10, "error: FAILED_PRECONDITION: lease lost");
    ask(&fixture, &["lease", "release", "T1", "S1", id]).told(10, "not released: no longer held");
    let session = shown(&fixture, ["T1", "S1"]);
    assert_eq!(
        (text(&session, "state"), text(&session, "epic_id")),
        ("SESSION_STATE_FREE", "PROJ-50")
    );
    assert!(session["fencing_token"].as_i64() > lease["fencing_token"].as_i64());
    ask(&fixture, &["lease", "check", "T1", "S1", &token])
        .told(10, &format!("stale: the latest fencing token is {}", session["fencing_token"]));

    let mut json = json!({ "team_id": "T1", "session_id": "S1", "released": false });
    let release = [&release[..], &["--output", "json"]].concat();
    assert_eq!(ask(&fixture, &release).json(10), json);
    leased(&fixture, ["T1", "S1"], &[]);
    json["released"] = true.into();
    assert_eq!(ask(&fixture, &release).json(0), json);
}

async fn a_session_is_closed(fixture: Fixture) {
    let close = ["sessions", "close", "T1", "S1"];
    ask(&fixture, &close).told(10, "not on record T1 S1");

    let lease = leased(&fixture, ["T1", "S1"], &["--epic", "PROJ-50"]);
    ask(&fixture, &close).told(0, "closed T1 S1");
    ask(&fixture, &["sessions", "show", "T1", "S1"]).told(10, "not on record T1 S1");
    ask(&fixture, &["lease", "renew", "T1", "S1", text(&lease, "lease_id")])
        .complained(10, "error: FAILED_PRECONDITION: ");

    let mut json = json!({ "team_id": "T1", "session_id": "S1", "closed": false });
    let close = ["sessions", "close", "T1", "S1", "--reason", "done", "--output", "json"];
    assert_eq!(ask(&fixture, &close).json(10), json);
    let next = leased(&fixture, ["T1", "S1"], &["--epic", "PROJ-51"]);
    assert!(next["fencing_token"].as_i64() > lease["fencing_token"].as_i64());
    json["closed"] = true.into();
    assert_eq!(ask(&fixture, &close).json(0), json);
}

async fn an_event_is_forgotten(fixture: Fixture) {
    let (mark, forget) = (["mark", "T1", "Ev1"], ["forget", "T1", "Ev1"]);
    ask(&fixture, &forget).told(10, "not on record T1 Ev1");
    ask(&fixture, &mark).told(0, "first T1 Ev1");
    ask(&fixture, &mark).told(10, "duplicate T1 Ev1");
    ask(&fixture, &forget).told(0, "forgotten T1 Ev1");
    ask(&fixture, &["check", "T1", "Ev1"]).told(10, "not seen T1 Ev1");
    ask(&fixture, &mark).told(0, "first T1 Ev1");

    let mut json = json!({
        "team_id": "T1",
        "event_id": "Ev1",
        "forgotten": true,
        "process_time": "2026-09-21T14:13:20Z",
        "expire_time": "2026-09-22T14:13:20Z",
    });
    let forget = ["forget", "T1", "Ev1", "--reason", "again", "--output", "json"];
    assert_eq!(ask(&fixture, &forget).json(0), json);
    json["forgotten"] = false.into();
    json["process_time"] = Value::Null;
    json["expire_time"] = Value::Null;
    assert_eq!(ask(&fixture, &forget).json(10), json);
}

async fn what_there_is_is_counted(fixture: Fixture) {
    ask(&fixture, &["stats"]).told(0, "0 events, 0 expired, 0 sessions, 0 held, 0 waiting");
    let mut client = fixture.client.clone();
    for (team, event, ttl) in [("T1", "Ev1", 1), ("T1", "Ev2", 60), ("T2", "Ev1", 60)] {
        let mut request = mark(team, event);
        request.ttl = seconds(ttl);
        client.mark_processed(request).await.unwrap();
    }
    for (target, ttl) in [(["T1", "S1"], "1s"), (["T1", "S2"], "1m"), (["T2", "S1"], "1m")] {
        leased(&fixture, target, &["--ttl", ttl]);
    }
    fixture.clock.advance(Duration::from_secs(1));

    ask(&fixture, &["stats"]).told(0, "2 events, 1 expired, 3 sessions, 2 held, 0 waiting");
    let json = json!({
        "events": 1, "expired_events": 1, "sessions": 2, "held_sessions": 1, "waiters": 0,
    });
    assert_eq!(ask(&fixture, &["stats", "--team", "T1", "--output", "json"]).json(0), json);
    ask(&fixture, &["stats", "--team", "T3"])
        .told(0, "0 events, 0 expired, 0 sessions, 0 held, 0 waiting");
}

async fn who_asks_must_be_told(fixture: Fixture) {
    let changes: [&[&str]; 4] = [
        &["sessions", "bind", "T1", "S1", "PROJ-50"],
        &["sessions", "release", "T1", "S1", "--reason", "pod-1 hangs"],
        &["sessions", "close", "T1", "S1"],
        &["forget", "T1", "Ev1"],
    ];
    for change in changes {
        let mut nobody = asking(&fixture, change);
        run(nobody.env("USER", ""), "")
            .complained(2, "error: INVALID_ARGUMENT: actor: must not be empty");
        let ran = run(nobody.args(["--actor", "ann"]), "");
        assert_ne!(ran.code, Some(2), "{}", ran.err);
    }
    ask(&fixture, &["sessions", "release", "T1", "S1", "--reason", ""])
        .complained(2, "error: INVALID_ARGUMENT: reason: must not be empty");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_change_is_logged_with_who_made_it_and_why() {
    let directory = tempdir().unwrap();
    let server = Process::start(&sqlite_url(&directory), &["--log-format", "json"]).await;
    let address = server.address.to_string();
    let by = ["--server", &address, "--actor", "ann", "--reason", "pod-1 hangs"];
    let changes: [(&[&str], &str); 5] = [
        (&["sessions", "bind", "T1", "S1", "PROJ-50"], "bind epic"),
        (&["sessions", "release", "T1", "S1"], "force-release lease"),
        (&["sessions", "close", "T1", "S1"], "close session"),
        (&["forget", "T1", "Ev1"], "forget event"),
        (&["forget", "T1", "Ev1", "--consumer", "app1"], "forget event"),
    ];
    for (change, _) in changes {
        let ran = run(&mut oncegate(&[change, &by].concat()), "");
        assert!(matches!(ran.code, Some(0 | 10)), "{}", ran.err);
    }
    let log = server.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let audit: Vec<Value> = lines.filter(|line| line["target"] == "oncegate::audit").collect();
    let told: Vec<&str> = audit.iter().map(|line| text(line, "message")).collect();
    assert_eq!(told, changes.map(|(_, message)| message));
    let named = audit.iter().map(|line| (text(line, "id"), line["consumer"].as_str()));
    let of_app = [("Ev1", None), ("Ev1", Some("app1"))];
    assert_eq!(named.skip(3).collect::<Vec<_>>(), of_app);
    for line in audit {
        assert_eq!((text(&line, "actor"), text(&line, "reason")), ("ann", "pod-1 hangs"));
        assert_eq!(text(&line, "team"), "T1");
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_changed() {
    let cases: [(&[&str], &str); 8] = [
        (&["sessions"], "Usage: oncegate sessions"),
        (&["sessions", "list", "--state", "ended"], "possible values: held, free"),
        (&["sessions", "list", "--limit", "-1"], "unexpected argument '-1'"),
        (&["sessions", "bind", "T1", "S1"], "<EPIC>"),
        (&["sessions", "bind", "T1", "S1", ""], "a value is required for '[EPIC]'"),
        (
            &["sessions", "bind", "T1", "S1", "E", "--unbind"],
            "'[EPIC]' cannot be used with '--unbind'",
        ),
        (&["sessions", "release", "T1", "S1"], "--reason <REASON>"),
        (&["forget", "T1"], "<EVENT>"),
    ];
    for (arguments, problem) in cases {
        let ran = run(&mut oncegate(arguments), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(problem), "{arguments:?}: {problem:?} is not in {}", ran.err);
    }
}
