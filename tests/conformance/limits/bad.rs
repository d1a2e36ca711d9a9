//! What breaks a rule of the contract: for each, the field at fault and why.

use std::time::Duration;

use oncegate::grpc::pb::{
    EventKey, SessionKey, SlackEvent, ThreadKey, event_key::Key as EventId,
    session_key::Key as SessionId,
};
use prost_types::Duration as PbDuration;

use crate::harness::{event, session};

/// What no id may be, whether it may be empty or not.
pub fn bad_ids() -> Vec<(&'static str, String)> {
    vec![
        ("513 bytes", "x".repeat(513)),
        ("513 bytes of two each, and one", format!("{}x", "é".repeat(256))),
        ("NUL", "a\0b".into()),
        ("line feed", "a\n".into()),
        ("delete", "\u{7f}".into()),
        ("next line", "a\u{85}b".into()),
    ]
}

/// What no required id may be.
pub fn bad_required_ids() -> Vec<(&'static str, String)> {
    let mut bad = bad_ids();
    bad.push(("empty", String::new()));
    bad
}

/// A Slack delivery that names both an event and a session.
pub fn slack() -> SlackEvent {
    SlackEvent { channel: "C".into(), ts: "1.5".into(), ..Default::default() }
}

type Set = fn(&mut SlackEvent, String);

/// Each field of a Slack delivery.
const SLACK_FIELDS: [(&str, Set); 8] = [
    ("slack.event_id", |slack, id| slack.event_id = id),
    ("slack.client_msg_id", |slack, id| slack.client_msg_id = id),
    ("slack.channel", |slack, id| slack.channel = id),
    ("slack.ts", |slack, id| slack.ts = id),
    ("slack.thread_ts", |slack, id| slack.thread_ts = id),
    ("slack.action_id", |slack, id| slack.action_id = id),
    ("slack.message_ts", |slack, id| slack.message_ts = id),
    ("slack.user_id", |slack, id| slack.user_id = id),
];

/// What no field of a Slack delivery may be: longer than one of which an id is made, unless it
/// is an id itself.
fn bad_in_slack(field: &str) -> Vec<(&'static str, String)> {
    let mut bad = bad_ids();
    if field != "slack.event_id" {
        bad.retain(|(_, id)| id.len() <= 512);
        bad.push(("8,193 bytes", "x".repeat(8_193)));
    }
    bad
}

/// Slack deliveries with one bad field each.
fn bad_slack_fields() -> Vec<(&'static str, String, SlackEvent)> {
    let mut bad = Vec::new();
    for (field, set) in SLACK_FIELDS {
        for (case, id) in bad_in_slack(field) {
            let mut slack = slack();
            set(&mut slack, id);
            bad.push((field, case.to_owned(), slack));
        }
    }
    bad
}

pub fn interaction(message_ts: &str, user_id: &str) -> SlackEvent {
    SlackEvent {
        action_id: "approve".into(),
        message_ts: message_ts.into(),
        user_id: user_id.into(),
        ..Default::default()
    }
}

pub fn bad_events() -> Vec<(String, String, Option<EventKey>)> {
    let key = |team: &str, key: Option<EventId>| {
        Some(EventKey { team_id: team.into(), key, aliases: Vec::new(), ..Default::default() })
    };
    let of_slack = |slack| key("T", Some(EventId::Slack(slack)));
    let mut bad = vec![
        ("event".to_owned(), "missing".to_owned(), None),
        ("event.event_id".into(), "no oneof".into(), key("T", None)),
        ("event.slack".into(), "empty".into(), of_slack(SlackEvent::default())),
        ("event.slack".into(), "half a key".into(), of_slack(interaction("1.5", ""))),
        (
            "event.slack.ts".into(),
            "colon".into(),
            of_slack(SlackEvent { ts: "1:5".into(), ..slack() }),
        ),
        ("event.slack.message_ts".into(), "colon".into(), of_slack(interaction("1:5", "U"))),
        ("event.slack.user_id".into(), "colon".into(), of_slack(interaction("1.5", "U:1"))),
    ];
    let known_as = |aliases: &[&str]| {
        let aliases = aliases.iter().map(|&alias| alias.into()).collect();
        Some(EventKey { aliases, ..event("T", "x").unwrap() })
    };
    bad.push(("event.aliases".into(), "nine".into(), known_as(&["y"; 9])));
    for (case, id) in bad_required_ids() {
        bad.push(("event.team_id".into(), case.into(), event(&id, "x")));
        bad.push(("event.event_id".into(), case.into(), event("T", &id)));
        bad.push(("event.aliases[1]".into(), case.into(), known_as(&["y", &id])));
    }
    for (field, case, slack) in bad_slack_fields() {
        bad.push((format!("event.{field}"), case, of_slack(slack)));
    }
    bad
}

pub fn bad_sessions() -> Vec<(String, String, Option<SessionKey>)> {
    let key = |team: &str, key: Option<SessionId>| {
        Some(SessionKey { team_id: team.into(), key, ..Default::default() })
    };
    let of_slack = |slack| key("T", Some(SessionId::Slack(slack)));
    let of_thread = |channel: &str, ts: &str| {
        key(
            "T",
            Some(SessionId::Thread(ThreadKey { channel_id: channel.into(), thread_ts: ts.into() })),
        )
    };
    let mut bad = vec![
        ("session".to_owned(), "missing".to_owned(), None),
        ("session.session_id".into(), "no oneof".into(), key("T", None)),
        ("session.thread.thread_ts".into(), "colon".into(), of_thread("C", "1:5")),
        ("session.slack.channel".into(), "empty".into(), of_slack(SlackEvent::default())),
        (
            "session.slack.thread_ts".into(),
            "no ts of any kind".into(),
            of_slack(SlackEvent { ts: String::new(), ..slack() }),
        ),
        (
            "session.slack.ts".into(),
            "colon".into(),
            of_slack(SlackEvent { ts: "1:5".into(), ..slack() }),
        ),
        (
            "session.slack.thread_ts".into(),
            "colon".into(),
            of_slack(SlackEvent { thread_ts: "1:5".into(), ..slack() }),
        ),
        (
            "session.slack.message_ts".into(),
            "colon".into(),
            of_slack(SlackEvent { ts: String::new(), message_ts: "1:5".into(), ..slack() }),
        ),
    ];
    for (case, id) in bad_required_ids() {
        bad.push(("session.team_id".into(), case.into(), session(&id, "x")));
        bad.push(("session.session_id".into(), case.into(), session("T", &id)));
        bad.push(("session.thread.channel_id".into(), case.into(), of_thread(&id, "1.5")));
        bad.push(("session.thread.thread_ts".into(), case.into(), of_thread("C", &id)));
    }
    for (field, case, slack) in bad_slack_fields() {
        bad.push((format!("session.{field}"), case, of_slack(slack)));
    }
    bad
}

/// What no duration may be, where `least` and `most` are still allowed.
pub fn bad_durations(least: Duration, most: i64) -> Vec<(&'static str, PbDuration)> {
    let span = |seconds, nanos| PbDuration { seconds, nanos };
    let mut bad = vec![
        ("negative seconds", span(-1, 0)),
        ("negative nanos", span(0, -1)),
        ("the most negative", span(i64::MIN, i32::MIN)),
        ("above the range by a nanosecond", span(most, 1)),
        ("the most seconds", span(i64::MAX, 999_999_999)),
        ("nanos of two seconds", span(1, 2_000_000_000)),
        ("nanos of one second", span(1, 1_000_000_000)),
        ("negative nanos after positive seconds", span(5, -1)),
        ("positive nanos after negative seconds", span(-5, 1)),
    ];
    if !least.is_zero() {
        bad.push(("zero", span(0, 0)));
        bad.push(("below the range by a nanosecond", span(0, 999_999_999)));
    }
    bad
}
