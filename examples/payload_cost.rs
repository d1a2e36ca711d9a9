//! Prints how long it takes to read what a payload names:
//! `cargo run --release --example payload_cost`.

use std::{hint::black_box, time::Instant};

use oncegate::platform::{self, Headers, Platform};
use serde_json::{Value, json};

/// How often each payload is read in a round.
const READS: u32 = 1_000;
/// How many rounds there are: the fastest is the one that the machine disturbed least.
const ROUNDS: u32 = 50;
/// About how long a payload of Slack's is.
const BYTES: usize = 5_000;

/// A message of a few paragraphs in its envelope.
fn message() -> Value {
    let mut elements = Vec::new();
    let mut payload = Value::Null;
    while payload.to_string().len() < BYTES {
        elements.push(json!({
            "type": "rich_text_section",
            "elements": [
                {"type": "text", "text": "The deploy of \"api\" to staging is done, see "},
                {"type": "link", "url": "https://ci.example.com/run/4242"},
                {"type": "emoji", "name": "white_check_mark", "unicode": "2705"},
            ],
        }));
        payload = json!({
            "token": "one-long-verification-token",
            "team_id": "T024BE7LD",
            "context_team_id": "T024BE7LD",
            "api_app_id": "A06ONCE7GT",
            "event": {
                "user": "U0B3DMKUOM",
                "type": "message",
                "ts": "1763801253.083453",
                "client_msg_id": "262de3e9-5d24-4fc9-aa5d-95cc86488937",
                "text": "The deploy of \"api\" to staging is done. ".repeat(elements.len()),
                "team": "T024BE7LD",
                "thread_ts": "1763801200.000100",
                "blocks": [{"type": "rich_text", "block_id": "UAFNL", "elements": elements}],
                "channel": "C0PSW0U7ZE",
                "event_ts": "1763801253.083453",
                "channel_type": "channel",
            },
            "type": "event_callback",
            "event_id": "Ev0PV52K25",
            "event_time": 1_763_801_253,
            "authorizations": [{
                "enterprise_id": null,
                "team_id": "T024BE7LD",
                "user_id": "U0E4XHLVRD",
                "is_bot": true,
                "is_enterprise_install": false,
            }],
            "is_ext_shared_channel": false,
        });
    }
    payload
}

/// The microseconds that one reading takes.
fn cost(body: &[u8]) -> f64 {
    let headers = Headers::default();
    let begun = Instant::now();
    for _ in 0..READS {
        let named = platform::read(Platform::Slack, &headers, black_box(body), false);
        assert!(black_box(named).is_ok_and(|named| !named.names.is_empty()));
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(READS)
}

fn main() {
    let event = message();
    let edit = json!({
        "team_id": "T024BE7LD",
        "event_id": "Ev0PV52K26",
        "event": {
            "type": "message",
            "subtype": "message_changed",
            "channel": "C0PSW0U7ZE",
            "message": event["event"],
            "previous_message": {"ts": "1763801253.083453"},
        },
    });
    let frame = json!({"envelope_id": "e-1", "type": "events_api", "payload": event});
    let click = json!({
        "type": "block_actions",
        "team": {"id": "T024BE7LD"},
        "user": {"id": "U0B3DMKUOM"},
        "channel": {"id": "C0PSW0U7ZE"},
        "message": event["event"],
        "actions": [{"type": "button", "action_id": "approve", "block_id": "b1", "value": "1"}],
    });
    for (what, payload) in
        [("message", event), ("edit", edit), ("Socket Mode frame", frame), ("click", click)]
    {
        let body = payload.to_string();
        let micros = (0..ROUNDS).map(|_| cost(body.as_bytes())).fold(f64::INFINITY, f64::min);
        println!("{what}, {} bytes: {micros:.1} µs", body.len());
    }
}
