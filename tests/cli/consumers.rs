//! `--consumer`, and how the consumer is printed.

use serde_json::{Value, json};

use super::{ask, asking, oncegate, run};
use crate::{harness::Fixture, on_both_stores};

on_both_stores!(
    events_are_marked_checked_and_forgotten_for_a_consumer,
    deliveries_are_marked_for_a_consumer,
    leases_are_those_of_a_consumer,
    a_command_runs_under_a_consumers_lease,
    sessions_are_those_of_a_consumer,
    turns_are_listed_with_their_consumers,
);

const BOT: [&str; 2] = ["--consumer", "bot-a"];
const JSON: [&str; 2] = ["--output", "json"];

async fn events_are_marked_checked_and_forgotten_for_a_consumer(fixture: Fixture) {
    let bot = |command: &[&str]| ask(&fixture, &[command, &BOT].concat());
    ask(&fixture, &["mark", "T1", "Ev1"]).told(0, "first T1 Ev1");
    bot(&["check", "T1", "Ev1"]).told(10, "not seen T1 Ev1 (consumer bot-a)");
    bot(&["mark", "T1", "Ev1"]).told(0, "first T1 Ev1 (consumer bot-a)");
    bot(&["mark", "T1", "Ev1"]).told(10, "duplicate T1 Ev1 (consumer bot-a)");
    bot(&["check", "T1", "Ev1"]).told(0, "processed T1 Ev1 (consumer bot-a)");
    for command in [
        &["mark", "T1", "Ev1", "--output", "json"][..],
        &["check", "T1", "Ev1", "--output", "json"],
    ] {
        let of = |ran: super::Ran| serde_json::from_str::<Value>(&ran.out).unwrap();
        assert_eq!(of(bot(command))["consumer"], "bot-a");
        // Only where there is one.
        assert_eq!(of(ask(&fixture, command)).get("consumer"), None);
    }
    let forgotten = json!({
        "team_id": "T1",
        "event_id": "Ev1",
        "consumer": "bot-a",
        "forgotten": true,
        "process_time": "2026-09-21T14:13:20Z",
        "expire_time": "2026-09-22T14:13:20Z",
    });
    assert_eq!(bot(&["forget", "T1", "Ev1", "--output", "json"]).json(0), forgotten);
    bot(&["forget", "T1", "Ev1"]).told(10, "not on record T1 Ev1 (consumer bot-a)");
    bot(&["mark", "T1", "Ev1"]).told(0, "first T1 Ev1 (consumer bot-a)");
    bot(&["forget", "T1", "Ev1"]).told(0, "forgotten T1 Ev1 (consumer bot-a)");
    ask(&fixture, &["check", "T1", "Ev1"]).told(0, "processed T1 Ev1");
    let wrong = ask(&fixture, &["mark", "T1", "Ev1", "--consumer", "a\nb"]);
    wrong.complained(2, "event.consumer: must not contain control characters");
}

async fn deliveries_are_marked_for_a_consumer(fixture: Fixture) {
    let line = "{\"event\":{},\"team_id\":\"T1\",\"event_id\":\"Ev1\"}\n";
    let mark = |more: &[&str]| {
        run(&mut asking(&fixture, &[&["mark", "--slack", "-"][..], more].concat()), line)
    };
    mark(&[]).told(0, "1: first T1 Ev1");
    mark(&BOT).told(0, "1: first T1 Ev1 (consumer bot-a)");
    mark(&BOT).told(0, "1: duplicate T1 Ev1 (consumer bot-a)");
    let expected = json!({
        "line": 1, "team_id": "T1", "event_id": "Ev1", "consumer": "bot-a", "first": false,
    });
    assert_eq!(mark(&[BOT, JSON].concat()).json(0), expected);
}

async fn leases_are_those_of_a_consumer(fixture: Fixture) {
    let bot = |command: &[&str]| ask(&fixture, &[command, &BOT].concat());
    let json = |command: &[&str]| bot(&[command, &JSON].concat());
    let acquire = ["lease", "acquire", "T1", "S1"];
    ask(&fixture, &[&acquire[..], &JSON].concat()).json(0);
    let lease = json(&acquire).json(0);
    assert_eq!(lease["consumer"], "bot-a");
    let id = lease["lease_id"].as_str().unwrap();
    let token = lease["fencing_token"].to_string();
    ask(&fixture, &acquire[..]).told(10, "held by oncegate-cli for 30.0 s, 0 waiting");
    let renewed = bot(&["lease", "renew", "T1", "S1", id]);
    let text = format!("renewed: lease {id} of S1 (consumer bot-a), fencing token {token}, 30.0 s");
    renewed.told(0, &text);
    bot(&["lease", "check", "T1", "S1", &token]).told(0, "current");
    ask(&fixture, &["lease", "renew", "T1", "S1", id]).complained(10, "FAILED_PRECONDITION");
    bot(&["lease", "release", "T1", "S1", id]).told(0, "released");
}

async fn a_command_runs_under_a_consumers_lease(fixture: Fixture) {
    let server = fixture.replica.server.address().to_string();
    let exec = |more: &[&str]| {
        let held = ["exec", "--server", &server, "--session", "T1:C1:17.5", "-n"];
        let printing = ["--", "sh", "-c", "echo \"$ONCEGATE_SESSION $ONCEGATE_CONSUMER\""];
        run(&mut oncegate(&[&held[..], more, &printing].concat()), "")
    };
    ask(&fixture, &["lease", "acquire", "T1", "T1:C1:17.5", "--output", "json"]).json(0);
    assert_eq!(exec(&[]).code, Some(1));
    exec(&BOT).told(0, "T1:C1:17.5 bot-a");
}

async fn sessions_are_those_of_a_consumer(fixture: Fixture) {
    let bot = |command: &[&str]| ask(&fixture, &[command, &BOT].concat());
    let acquire = ["lease", "acquire", "T1", "T1:C1:17.5", "--holder", "pod-1", "--output", "json"];
    let shared = ask(&fixture, &acquire).json(0)["fencing_token"].to_string();
    let token = bot(&acquire).json(0)["fencing_token"].to_string();
    let shown = "T1:C1:17.5 (consumer bot-a) held by pod-1 for 30.0 s, token";
    bot(&["sessions", "show", "T1", "T1:C1:17.5"]).told(0, &format!("{shown} {token}"));
    let json = bot(&["sessions", "show", "T1", "T1:C1:17.5", "--output", "json"]).json(0);
    assert_eq!(json["consumer"], "bot-a");
    let other = format!("T1:C1:17.5 held by pod-1 for 30.0 s, token {shared}");
    ask(&fixture, &["sessions", "list"]).told(0, &format!("{other}\n{shown} {token}"));
    let bound = format!("{shown} {token}, epic PROJ-50");
    bot(&["sessions", "bind", "T1", "T1:C1:17.5", "PROJ-50"]).told(0, &bound);
    let release = ["sessions", "release", "T1", "T1:C1:17.5", "--reason", "stuck"];
    bot(&release).told(0, "released T1 T1:C1:17.5 (consumer bot-a)");
    let released = json!({
        "team_id": "T1", "session_id": "T1:C1:17.5", "consumer": "bot-a", "released": false,
    });
    assert_eq!(bot(&[&release[..], &JSON].concat()).json(10), released);
    let close = ["sessions", "close", "T1", "T1:C1:17.5"];
    bot(&close).told(0, "closed T1 T1:C1:17.5 (consumer bot-a)");
    ask(&fixture, &["sessions", "show", "T1", "T1:C1:17.5"]).told(0, &other);
    // The token is above the clock: the row stays for a sweep, free and unbound.
    ask(&fixture, &["sessions", "show", "T1", "none", "--consumer", "bot-b"])
        .told(10, "not on record T1 none (consumer bot-b)");
    let missing = json!({
        "team_id": "T1", "session_id": "none", "consumer": "bot-a", "state": "NOT_FOUND",
    });
    assert_eq!(bot(&["sessions", "show", "T1", "none", "--output", "json"]).json(10), missing);
}

async fn turns_are_listed_with_their_consumers(fixture: Fixture) {
    ask(&fixture, &["mark", "T1", "Ev1", "--consumer", "bot-a"]);
    let all = ["turns", "--state", "all"];
    ask(&fixture, &all).told(0, "T1 Ev1 (consumer bot-a) marked, attempt 1, 0s ago");
    let json = ask(&fixture, &[&all[..], &JSON].concat()).json(0);
    assert_eq!((&json["event_id"], &json["consumer"]), (&json!("Ev1"), &json!("bot-a")));
}
