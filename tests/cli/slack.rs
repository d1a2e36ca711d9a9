//! `oncegate mark --slack`: whole files of deliveries.

use std::{collections::HashSet, fmt::Write as _, fs, time::Duration};

use serde_json::{Value, json};

use super::{Ran, ask, asking, data, run};
use crate::{
    harness::{Fixture, execute},
    on_both_stores,
};

on_both_stores!(
    every_delivery_is_first_once,
    a_bad_line_is_told_and_passed_over,
    a_run_with_its_request_id_repeats_its_answers,
    lines_with_the_longest_fields_fit_into_their_requests,
    a_line_that_the_database_rejects_does_not_stop_the_next,
);

/// The longest line that is read, as `--slack` promises.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// What one line was answered: its number, its team and key, and whether it was
/// first; or only that it is bad.
type Answer = (u64, Option<(String, String, bool)>);

/// Holds a run to its answers, its exit code and its summary.
#[track_caller]
fn answered(ran: &Ran, output: &str, expected: &[Answer], code: i32, summary: &str) {
    assert_eq!((ran.code, ran.err.trim_end()), (Some(code), summary));
    let read = if output == "json" { json_answer } else { text_answer };
    for (line, expected) in ran.out.lines().zip(expected) {
        assert_eq!(read(line), *expected);
    }
    assert_eq!(ran.out.lines().count(), expected.len());
}

fn text_answer(line: &str) -> Answer {
    let (number, answer) = line.split_once(": ").unwrap();
    let answer = match answer.split(' ').collect::<Vec<_>>()[..] {
        ["bad:", ..] => None,
        ["first", team, key] => Some((team.to_owned(), key.to_owned(), true)),
        ["duplicate", team, key] => Some((team.to_owned(), key.to_owned(), false)),
        _ => panic!("{line}"),
    };
    (number.parse().unwrap(), answer)
}

fn json_answer(line: &str) -> Answer {
    let answer: Value = serde_json::from_str(line).unwrap();
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    let number = answer["line"].as_u64().unwrap();
    if answer.get("error").is_some() {
        return (number, None);
    }
    (number, Some((text("team_id"), text("event_id"), answer["first"].as_bool().unwrap())))
}

async fn every_delivery_is_first_once(fixture: Fixture) {
    let deliveries = data("slack_deliveries.jsonl");
    let keys = fs::read_to_string(data("slack_deliveries.keys")).unwrap();
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    let mut first_ones = 0;
    let expected: Vec<Answer> = (1..)
        .zip(keys.lines())
        .map(|(number, line)| {
            let (team, names) = line.split_once('\t').unwrap();
            let names: Vec<_> = names.split('\t').map(|name| (team, name)).collect();
            // The event is taken with all of its names, unless one of them is taken.
            let first = names.iter().all(|name| !seen.contains(name));
            if first {
                first_ones += 1;
                seen.extend(&names);
            }
            (number, Some((team.to_owned(), names[0].1.to_owned(), first)))
        })
        .collect();
    assert_eq!(first_ones, 252);
    let duplicates = expected
        .iter()
        .cloned()
        .map(|(number, answer)| (number, answer.map(|(team, key, _)| (team, key, false))));
    let duplicates: Vec<Answer> = duplicates.collect();

    for output in ["text", "json"] {
        let from_file = ["mark", "--output", output, "--slack", &deliveries];
        let ran = ask(&fixture, &from_file);
        answered(&ran, output, &expected, 0, "252 first, 159 duplicate, 0 bad");

        let mut from_pipe = asking(&fixture, &["mark", "--output", output, "--slack", "-"]);
        let ran = run(&mut from_pipe, fs::read(&deliveries).unwrap());
        answered(&ran, output, &duplicates, 0, "0 first, 411 duplicate, 0 bad");

        // A day later all of them are new again.
        fixture.clock.advance(Duration::from_hours(24));
    }
}

async fn a_bad_line_is_told_and_passed_over(fixture: Fixture) {
    let expected = fs::read_to_string(data("slack_bad_lines.expected")).unwrap();
    let expected: Vec<Answer> = (1..)
        .zip(expected.lines())
        .filter_map(|(number, line)| match line.split('\t').collect::<Vec<_>>()[..] {
            ["ok", team, key] => Some((number, Some((team.to_owned(), key.to_owned(), true)))),
            ["bad"] => Some((number, None)),
            ["skip"] => None,
            _ => panic!("{line}"),
        })
        .collect();

    for output in ["text", "json"] {
        let file = data("slack_bad_lines.jsonl");
        let ran = ask(&fixture, &["mark", "--output", output, "--slack", &file]);
        answered(&ran, output, &expected, 3, "5 first, 0 duplicate, 14 bad");
        fixture.clock.advance(Duration::from_hours(24));
    }
}

async fn a_run_with_its_request_id_repeats_its_answers(fixture: Fixture) {
    let deliveries = data("slack_deliveries.jsonl");
    let mark = |request_id: &str| {
        ask(&fixture, &["mark", "--slack", &deliveries, "--request-id", request_id])
    };
    let told = mark("run-1");
    assert_eq!((told.code, told.err.as_str()), (Some(0), "252 first, 159 duplicate, 0 bad\n"));
    assert_eq!(mark("run-1").out, told.out);
    assert_eq!(mark("run-2").err, "0 first, 411 duplicate, 0 bad\n");
    // An id left empty is none.
    fixture.clock.advance(Duration::from_hours(24));
    assert_eq!(mark("").err, "252 first, 159 duplicate, 0 bad\n");
    assert_eq!(mark("").err, "0 first, 411 duplicate, 0 bad\n");
}

async fn lines_with_the_longest_fields_fit_into_their_requests(fixture: Fixture) {
    // The event is sent with all of these names.
    let long = |prefix: String| prefix.clone() + &"x".repeat(512 - prefix.len());
    let mut input = String::new();
    for line in 0..450 {
        let event = json!({
            "client_msg_id": long(format!("{line}-")),
            "channel": long(String::new()),
            "ts": long(format!("{line}-")),
            "thread_ts": long(String::new()),
        });
        let event_id = long(format!("{line}-"));
        let delivery = json!({ "team_id": long("T".into()), "event_id": event_id, "event": event });
        writeln!(input, "{delivery}").unwrap();
        // One field that is too long must not take its neighbours along.
        let huge = json!({ "team_id": "T1", "event_id": "x".repeat(10_000), "event": event });
        writeln!(input, "{huge}").unwrap();
    }
    let request_id = "r".repeat(508);
    let arguments = ["mark", "--slack", "-", "--ttl", "30d", "--request-id", &request_id];
    let ran = run(&mut asking(&fixture, &arguments), input);
    assert_eq!((ran.code, ran.err.as_str()), (Some(3), "450 first, 0 duplicate, 450 bad\n"));
    assert!(
        ran.out
            .lines()
            .any(|line| { line == "900: bad: event_id: must be at most 512 bytes, is 10000" })
    );
}

async fn a_line_that_the_database_rejects_does_not_stop_the_next(fixture: Fixture) {
    let rule = if fixture.url.starts_with("sqlite:") {
        "CREATE TRIGGER refuse BEFORE INSERT ON processed_events WHEN NEW.event_id = 'bad'
            BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    } else {
        "ALTER TABLE processed_events ADD CHECK (event_id <> 'bad')"
    };
    execute(&fixture.url, rule).await;
    let line = |id: &str| format!("{{\"event_id\":\"{id}\",\"event\":{{}}}}\n");
    let lines: String = ["Ev1", "bad", "Ev2"].map(line).concat();
    // It is not tried again for all of this time.
    let arguments = ["mark", "T1", "--slack", "-", "--timeout", "1h"];
    let ran = run(&mut asking(&fixture, &arguments), lines);
    let words: Vec<_> = ran.out.lines().map(|line| line.split(" of the").next().unwrap()).collect();
    assert_eq!(words, ["1: first T1 Ev1", "2: failed: a rule", "3: first T1 Ev2"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(3), "2 first, 0 duplicate, 1 bad\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_are_marked_for_their_consumer_and_clicks_counted_on_request() {
    let fixture = Fixture::sqlite().await;
    let click = |at: &str| {
        let action = json!({"type": "button", "action_id": "go", "action_ts": at});
        let (user, message) = (json!({"id": "U1"}), json!({"ts": "1.5"}));
        let actions = json!([action]);
        json!({"team_id": "T1", "user": user, "message": message, "actions": actions}).to_string()
    };
    let input = [click("2.1"), click("2.2")].join("\n");
    let summary = |flags: &[&str]| {
        let arguments = [&["mark", "T1", "--slack", "-"], flags].concat();
        run(&mut asking(&fixture, &arguments), input.clone()).err
    };
    assert_eq!(summary(&[]), "1 first, 1 duplicate, 0 bad\n");
    assert_eq!(summary(&["--consumer", "A1"]), "1 first, 1 duplicate, 0 bad\n");
    assert_eq!(summary(&["--consumer", "A1", "--each-use"]), "2 first, 0 duplicate, 0 bad\n");
    assert_eq!(summary(&["--each-use"]), "2 first, 0 duplicate, 0 bad\n");
    // Without deliveries there are no clicks.
    ask(&fixture, &["mark", "T1", "Ev1", "--each-use"]).complained(2, "error: ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_too_long_is_bad_and_the_next_is_read() {
    let fixture = Fixture::sqlite().await;
    let padded = |id: &str, bytes: usize| {
        let line = |padding| format!(r#"{{"event_id":"{id}","event":{{}},"padding":"{padding}"}}"#);
        line("x".repeat(bytes - line(String::new()).len()))
    };
    let input = [
        format!("\u{feff}{}", padded("marked", MAX_LINE_BYTES)),
        padded("longest", MAX_LINE_BYTES),
        padded("too-long", MAX_LINE_BYTES + 1),
        padded("after-too-long", 100),
        padded("far-too-long", 3 * MAX_LINE_BYTES + 17),
        padded("last", 100),
    ];
    let ran = run(&mut asking(&fixture, &["mark", "T1", "--slack", "-"]), input.join("\n"));
    ran.told(
        3,
        "1: bad: longer than 4194304 bytes\n\
         2: first T1 longest\n\
         3: bad: longer than 4194304 bytes\n\
         4: first T1 after-too-long\n\
         5: bad: longer than 4194304 bytes\n\
         6: first T1 last",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_text_are_bad() {
    let fixture = Fixture::sqlite().await;
    let line = |id: &[u8]| [br#"{"team_id":"T1","event":{},"event_id":""#, id, b"\"}"].concat();
    let nested = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let input: [&[u8]; 10] = [
        &line(b"Ev1"),
        b"\n",
        &line(b"Ev\xff2"),
        b"\r\n",
        b" \t\n",
        &line(b"Ev3"),
        b"\r\n\xef\xbb\xbf\n\0\n",
        &nested,
        b"\n",
        &line("Ev–4".as_bytes()),
    ];
    let ran = run(&mut asking(&fixture, &["mark", "--slack", "-"]), input.concat());
    let words: Vec<_> = ran.out.lines().map(|line| line.split(" at ").next().unwrap()).collect();
    assert_eq!(
        words,
        [
            "1: first T1 Ev1",
            "2: bad: event_id: invalid Unicode: not UTF-8",
            "4: first T1 Ev3",
            "5: bad: not JSON: EOF while parsing a value",
            "6: bad: not JSON: expected value",
            "7: bad: not a JSON object",
            "8: first T1 Ev–4",
        ]
    );
    assert_eq!(ran.code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_is_told() {
    let fixture = Fixture::sqlite().await;
    let mark = |file: &str| ask(&fixture, &["mark", "--slack", file]);
    mark("/nonexistent/file").complained(1, "error: cannot read /nonexistent/file: No such file");
    mark("/").complained(1, "error: cannot read /: Is a directory");
    mark("/dev/null").told(0, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_of_a_line_need_not_be_a_value() {
    let fixture = Fixture::sqlite().await;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let lines = [
        "\u{feff}{\"event_id\":\"Ev1\",\"event\":{\"text\":\"\\ud83d\"}}\r".to_owned(),
        r#"{"event_id":"Ev2","n":1e400,"event":{"n":-123456789012345678901234567890}}"#.to_owned(),
        r#"{"event_id":"Ev3","event":{},"\udc00":{"\ud83d\ud83d":"\udfff\u0000"}}"#.to_owned(),
        "\r".to_owned(),
        format!(r#"{{"event_id":"Ev4","event":{{}},"deep":{deep}}}"#),
        // The last of equal names counts.
        r#"{"event_id":"\ud83d","event_id":"Ev5","event":[],"event":{}}"#.to_owned(),
        // What is read must be text.
        r#"{"event_id":"Ev\ud83d","event":{}}"#.to_owned(),
        r#"{"event":{"channel":"C1","ts":"\udc00"}}"#.to_owned(),
        r#"{"actions":[{"action_id":"\ud83d\u0041"}],"user":{"id":"U1"}}"#.to_owned(),
        r#"{"event_id":"Ev6","event":{}"#.to_owned(),
        r#"{"event_id":"Ev\ud83d\ude00","event":{}}"#.to_owned(),
    ];
    let ran = run(&mut asking(&fixture, &["mark", "T1", "--slack", "-"]), lines.join("\n"));
    let words: Vec<_> =
        ran.out.lines().map(|line| line.split(" Unicode").next().unwrap()).collect();
    assert_eq!(
        words,
        [
            "1: first T1 Ev1",
            "2: first T1 Ev2",
            "3: first T1 Ev3",
            "5: first T1 Ev4",
            "6: first T1 Ev5",
            "7: bad: event_id: invalid",
            "8: bad: event.ts: invalid",
            "9: bad: actions[0].action_id: invalid",
            "10: bad: not JSON: EOF while parsing an object at byte 28",
            "11: first T1 Ev😀",
        ]
    );
    assert_eq!(ran.code, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_in_utf_16_is_refused_with_what_to_do() {
    let fixture = Fixture::sqlite().await;
    let line = r#"{"event_id":"Ev1","event":{}}"#;
    let little: Vec<u8> = line.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = line.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let marked = [&b"\xff\xfe"[..], &little].concat();
    for input in [marked, little, big] {
        let ran = run(&mut asking(&fixture, &["mark", "T1", "--slack", "-"]), input);
        ran.complained(1, "error: cannot read -: it is UTF-16; convert it to UTF-8");
    }
}
