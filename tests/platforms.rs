//! What payloads name: the cases in `tests/data/platforms`, which other implementations share.

use std::fmt::Write as _;

use oncegate::{
    domain::{Id, SessionKey, SessionScope, Team},
    platform::{self, Headers, Named, Platform},
};
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde_json::{Value, json};

use crate::cli::data;

/// Each platform with its file of cases.
const FILES: [(Platform, &str); 7] = [
    (Platform::Slack, "slack"),
    (Platform::Github, "github"),
    (Platform::Discord, "discord"),
    (Platform::Telegram, "telegram"),
    (Platform::Teams, "teams"),
    (Platform::Stripe, "stripe"),
    (Platform::StandardWebhooks, "standard_webhooks"),
];

/// What a case sends.
struct Sent {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    each_use: bool,
}

fn cases(platform: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(&format!("platforms/{platform}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn sent(case: &Value) -> Sent {
    let headers = case["headers"].as_object().into_iter().flatten();
    Sent {
        headers: headers
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
            .collect(),
        body: match &case["text"] {
            Value::String(text) => text.clone().into_bytes(),
            _ => case["body"].to_string().into_bytes(),
        },
        each_use: case["each_use"] == true,
    }
}

fn read(platform: Platform, sent: &Sent) -> Result<Named, platform::Unreadable> {
    let headers = sent.headers.iter().map(|(name, value)| (&**name, &**value));
    platform::read(platform, &Headers::new(headers)?, &sent.body, sent.each_use)
}

/// What is read, as the cases write it.
fn written(named: &Named) -> Value {
    let team = Team::stored("T");
    let session = |scope| {
        let conversation = named.conversations.of(scope)?;
        Some(SessionKey::of(team.clone(), &conversation).session)
    };
    json!({
        "team": named.team.as_ref().map(Id::as_str),
        "names": named.names.iter().map(Id::as_str).collect::<Vec<_>>(),
        "sessions": {
            "thread": session(SessionScope::Thread),
            "channel": session(SessionScope::Channel),
            "user": session(SessionScope::User),
        },
    })
}

#[test]
fn payloads_name_what_they_should() {
    for (platform, file) in FILES {
        for case in cases(file) {
            let named = read(platform, &sent(&case)).unwrap();
            assert_eq!(written(&named), case["expect"], "{file}: {}", case["what"]);
        }
    }
}

/// The same value, written another way: the order of fields, escapes, white space.
fn written_otherwise(value: &Value, random: &mut StdRng, text: &mut String) {
    let space = |random: &mut StdRng, text: &mut String| {
        text.push_str(["", "", "", " ", "\n", "\r\n\t"].choose(random).unwrap());
    };
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.shuffle(random);
            text.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                space(random, text);
                quoted(name, random, text);
                space(random, text);
                text.push(':');
                space(random, text);
                written_otherwise(value, random, text);
                space(random, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                space(random, text);
                written_otherwise(item, random, text);
                space(random, text);
            }
            text.push(']');
        }
        Value::String(string) => quoted(string, random, text),
        other => write!(text, "{other}").unwrap(),
    }
}

fn quoted(string: &str, random: &mut StdRng, text: &mut String) {
    let escapes = random.random_ratio(1, 3);
    text.push('"');
    for letter in string.chars() {
        if escapes && random.random_ratio(1, 2) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let upper = random.random_ratio(1, 2);
                let digits = if upper { format!("{unit:04X}") } else { format!("{unit:04x}") };
                write!(text, "\\u{digits}").unwrap();
            }
        } else if letter == '/' && random.random_ratio(1, 2) {
            text.push_str("\\/");
        } else {
            let plain = Value::from(letter.to_string()).to_string();
            text.push_str(&plain[1..plain.len() - 1]);
        }
    }
    text.push('"');
}

/// A form of one field, with as many letters escaped as chance will have it.
fn form(name: &str, value: &str, random: &mut StdRng) -> String {
    let mut text = format!("{name}=");
    for byte in value.bytes() {
        match byte {
            b' ' if random.random_ratio(1, 2) => text.push('+'),
            b'a'..=b'z' | b'0'..=b'9' if random.random_ratio(4, 5) => text.push(char::from(byte)),
            _ => write!(text, "%{byte:02x}").unwrap(),
        }
    }
    text
}

#[test]
fn a_payload_that_is_encoded_otherwise_names_the_same() {
    let mut random = StdRng::seed_from_u64(1_300);
    for (platform, file) in FILES {
        encode_otherwise(platform, &cases(file), &mut random);
    }
}

fn encode_otherwise(platform: Platform, cases: &[Value], random: &mut StdRng) {
    for case in cases.iter().filter(|case| case["body"].is_object()) {
        for _ in 0..20 {
            let mut json = String::new();
            written_otherwise(&case["body"], random, &mut json);
            let may_be_framed =
                platform == Platform::Slack && !case["body"]["envelope_id"].is_string();
            let body = match random.random_range(0..4) {
                0 => form("payload", &json, random),
                1 => format!("\u{feff}{json}\r\n"),
                2 if may_be_framed => {
                    let frame = [r#""envelope_id":"e-7""#, r#""type":"interactive""#];
                    format!("{{{},\"payload\":{json},{}}}", frame[0], frame[1])
                }
                _ => json,
            };
            let otherwise = Sent { body: body.clone().into_bytes(), ..sent(case) };
            let named = read(platform, &otherwise).unwrap();
            assert_eq!(written(&named), case["expect"], "{}: {body}", case["what"]);
        }
    }
}

#[test]
fn what_cannot_be_read_is_reported_with_its_place_and_without_its_text() {
    let too_long = format!("{{\"text\":\"{}\"}}", "x".repeat(256 * 1024));
    for (body, problem) in [
        (&b"not json at all"[..], "not JSON: expected ident at byte 2"),
        (b"", "not JSON: EOF while parsing a value at byte 0"),
        (b"[]", "not a JSON object"),
        (b"payload=5", "not a JSON object"),
        (b"payload=%7B", "not JSON: EOF while parsing an object at byte 1"),
        (b"command=/go&trigger_id=%ff", "trigger_id: invalid Unicode: not UTF-8"),
        (
            br#"{"event_id":"a\nsecret","event":{}}"#,
            "event_id: must not contain control characters",
        ),
        (
            br#"{"event_id":"Ev1","event":{"message":{"edited":{"ts":"\ud83d"}},"subtype":"message_changed"}}"#,
            "event.message.edited.ts: invalid Unicode: unexpected end of hex escape",
        ),
        (
            br#"{"envelope_id":"e","payload":{"actions":[{},{"value":"secret \udfff"}]}}"#,
            "payload.actions[1].value: invalid Unicode: lone leading surrogate in hex escape",
        ),
        (too_long.as_bytes(), "must be at most 262144 bytes, is 262155"),
    ] {
        let sent = Sent { headers: Vec::new(), body: body.to_vec(), each_use: false };
        let error = read(Platform::Slack, &sent).unwrap_err();
        assert_eq!(error.to_string(), problem);
        assert_eq!(error.in_field("slack_payload").field, "slack_payload");
    }
}
