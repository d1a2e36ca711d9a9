//! Between the words of a scenario and those of the library's public API.

use std::{fmt, fmt::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use oncegate_client::{
    Codec, Delivery, Duplicate, Error, EventOutcome, GateBuilder, Json, NotGranted, OnUnavailable,
    Outcome, RawBytes, Session, Stored, Turn, TurnRequest, discord, github, slack,
    standard_webhooks, stripe, teams, telegram,
};
use serde_json::{Value, json};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a handler of these tests returns as its error.
#[derive(Debug)]
pub(crate) enum Fault {
    Library(Error),
    Own(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(f),
            Self::Own(message) => f.write_str(message),
        }
    }
}

/// Stores values as scenarios write them: JSON, or raw bytes as `{"$hex": …}`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written;

impl Codec<Value> for Written {
    fn encode(&self, value: &Value) -> Result<Stored, BoxError> {
        match value.get("$hex").and_then(Value::as_str) {
            Some(text) => RawBytes.encode(&unhex(text)),
            None => Json.encode(value),
        }
    }

    fn decode(&self, stored: &Stored) -> Result<Value, BoxError> {
        if stored.result_type == "application/octet-stream" {
            let bytes: Vec<u8> = RawBytes.decode(stored)?;
            return Ok(json!({"$hex": hex(&bytes)}));
        }
        Json.decode(stored)
    }
}

/// A type that JSON does not know: the codec keeps it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: u16,
    pub(crate) month: u8,
    pub(crate) day: u8,
}

impl Date {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let year = parts.next()?.parse().ok()?;
        let month = parts.next()?.parse().ok()?;
        Some(Self { year, month, day: parts.next()?.parse().ok()? })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct DateCodec;

impl Codec<Date> for DateCodec {
    fn encode(&self, date: &Date) -> Result<Stored, BoxError> {
        Ok(Stored::new(date.to_string(), "text/x-date"))
    }

    fn decode(&self, stored: &Stored) -> Result<Date, BoxError> {
        let text = std::str::from_utf8(&stored.data)?;
        Date::parse(text).ok_or_else(|| "this is no date".into())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A value that a step writes, with its repeated texts.
pub(crate) fn read(written: &Value) -> Value {
    match written {
        Value::Array(items) => items.iter().map(read).collect(),
        Value::Object(fields) => match fields.get("$repeat") {
            Some(repeat) => {
                let count = usize::try_from(repeat[1].as_u64().expect("a count")).expect("few");
                repeat[0].as_str().expect("a text").repeat(count).into()
            }
            None => fields.iter().map(|(key, item)| (key.clone(), read(item))).collect(),
        },
        other => other.clone(),
    }
}

pub(crate) fn text(written: &Value) -> String {
    read(written).as_str().unwrap_or_default().to_owned()
}

pub(crate) fn millis(written: &Value) -> Duration {
    Duration::from_millis(written.as_u64().unwrap_or_default())
}

pub(crate) fn number(written: &Value) -> u32 {
    u32::try_from(written.as_u64().unwrap_or_default()).unwrap_or(u32::MAX)
}

/// Given in a step.
fn given(value: &Value) -> Option<&Value> {
    Some(value).filter(|value| !value.is_null())
}

pub(crate) fn delivery(step: &Value) -> Delivery {
    if let Some(made) = from_platform(step) {
        let team = text(&step["team"]);
        return if team.is_empty() { made } else { made.team(team) };
    }
    let team = text(&step["team"]);
    let mut made = Delivery::new(&team, text(&step["event"])).digest(unhex(&text(&step["digest"])));
    if let Some(session) = given(&step["session"]) {
        made = made.session(text(session));
    }
    if let Some(thread) = given(&step["thread"]) {
        made = made.session(Session::thread(team, text(&thread[0]), text(&thread[1])));
    }
    if let Some(ttl) = given(&step["ttl_ms"]) {
        made = made.ttl(millis(ttl));
    }
    for alias in step["aliases"].as_array().into_iter().flatten() {
        made = made.alias(text(alias));
    }
    made
}

fn from_platform(step: &Value) -> Option<Delivery> {
    let (platform, sent) = step.as_object()?.iter().find(|(name, _)| {
        let names = ["slack", "github", "discord", "telegram", "teams", "stripe"];
        names.contains(&name.as_str()) || *name == "standard_webhooks"
    })?;
    let body = match &sent["body"] {
        Value::String(body) => body.clone(),
        body => body.to_string(),
    };
    let body = body.as_bytes();
    let mut headers = HeaderMap::new();
    for (name, value) in sent["headers"].as_object().into_iter().flatten() {
        let name: HeaderName = name.parse().expect("a header");
        headers.insert(name, HeaderValue::from_str(&text(value)).expect("a header's value"));
    }
    Some(match platform.as_str() {
        "slack" => slack(sent.to_string().as_bytes()),
        "github" => github(&headers, body),
        "discord" => discord(body),
        "telegram" => telegram("", body),
        "teams" => teams(body),
        "stripe" => stripe(body),
        _ => standard_webhooks("", &headers, body),
    })
}

pub(crate) fn session(step: &Value) -> Session {
    let team = text(&step["team"]);
    match given(&step["thread"]) {
        Some(thread) => Session::thread(team, text(&thread[0]), text(&thread[1])),
        None => Session::new(team, text(&step["id"])),
    }
}

pub(crate) fn labels(step: &Value) -> impl Iterator<Item = (String, String)> {
    let labels = step["labels"].as_object().cloned().unwrap_or_default();
    labels.into_iter().map(|(name, value)| (name, text(&value)))
}

fn on_unavailable(word: &str) -> OnUnavailable {
    match word {
        "run" => OnUnavailable::Run,
        "drop" => OnUnavailable::Drop,
        _ => OnUnavailable::Raise,
    }
}

pub(crate) fn with_turn_options<C>(mut request: TurnRequest<C>, step: &Value) -> TurnRequest<C> {
    request = request.wait(millis(&step["wait_ms"]));
    if let Some(ttl) = given(&step["ttl_ms"]) {
        request = request.ttl(millis(ttl));
    }
    if let Some(patience) = given(&step["patience_ms"]) {
        request = request.patience(millis(patience));
    }
    if let Some(attempts) = given(&step["max_attempts"]) {
        request = request.max_attempts(number(attempts));
    }
    if let Some(word) = step["on_unavailable"].as_str() {
        request = request.on_unavailable(on_unavailable(word));
    }
    if let Some(epic) = given(&step["epic"]) {
        request = request.epic(text(epic));
    }
    labels(step).fold(request, |request, (name, value)| request.label(name, value))
}

pub(crate) fn with_gate_options(mut builder: GateBuilder, options: &Value) -> GateBuilder {
    let ttl = given(&options["ttl_ms"]).map_or(Duration::from_secs(3), millis);
    builder = builder.ttl(ttl).consumer(text(&options["consumer"]));
    if let Some(grace) = given(&options["grace_ms"]) {
        builder = builder.grace(millis(grace));
    }
    if let Some(patience) = given(&options["patience_ms"]) {
        builder = builder.patience(millis(patience));
    }
    if let Some(attempts) = given(&options["max_attempts"]) {
        builder = builder.max_attempts(number(attempts));
    }
    if let Some(word) = options["on_unavailable"].as_str() {
        builder = builder.on_unavailable(on_unavailable(word));
    }
    builder.share_sessions(options["share_sessions"] == true)
}

/// What the body of a handler returns, as its step says.
pub(crate) fn body_of(step: &Value, turn: Option<&Turn>) -> Result<Value, Fault> {
    if let Some(message) = step["error"].as_str() {
        return Err(Fault::Own(message.to_owned()));
    }
    if let (Some(detail), Some(turn)) = (step["reject"].as_str(), turn) {
        return Err(turn.reject(detail).into());
    }
    Ok(read(&step["result"]))
}

/// What came of a run.
pub(crate) fn outcome(ran: Result<Outcome<Value>, Fault>) -> Value {
    let outcome = match ran {
        Ok(outcome) => outcome,
        Err(fault) => return failed(&fault),
    };
    match outcome {
        Outcome::Ran(value) => json!({"ran": value}),
        Outcome::Rejected { .. } => json!({"ran": null}),
        Outcome::Duplicate(Duplicate { undecodable: Some(problem), .. }) => {
            json!({"error": {"kind": "unexpected", "message": problem}})
        }
        Outcome::Duplicate(Duplicate { result, outcome, detail, .. }) => {
            let outcome = outcome.map(EventOutcome::as_str);
            json!({"duplicate": {"result": result, "outcome": outcome, "detail": detail}})
        }
        Outcome::GaveUp(why) => answer(&NotGranted::GaveUp(why)),
        Outcome::InProgress(why) => answer(&NotGranted::InProgress(why)),
        Outcome::Busy(why) => answer(&NotGranted::Busy(why)),
        Outcome::Dropped => answer(&NotGranted::Dropped),
        other => json!({"error": {"kind": "unexpected", "message": format!("{other:?}")}}),
    }
}

fn answer(why: &NotGranted) -> Value {
    match why {
        NotGranted::Duplicate(Duplicate { result, outcome, detail, .. }) => {
            let result = result.decode_with(&Written).expect("what a scenario has stored");
            let outcome = outcome.map(EventOutcome::as_str);
            json!({"duplicate": {"result": result, "outcome": outcome, "detail": detail}})
        }
        NotGranted::GaveUp(why) => {
            json!({"gave_up": {"attempts": why.attempts, "detail": why.detail}})
        }
        NotGranted::InProgress(why) => json!({"in_progress": {
            "holder": why.holder, "attempt": why.attempt, "retry_after_ms": in_millis(why.retry_after),
        }}),
        NotGranted::Busy(why) => json!({"busy": {
            "holder": why.holder,
            "queue_length": why.queue_length,
            "retry_after_ms": in_millis(why.retry_after),
        }}),
        _ => json!({"dropped": {}}),
    }
}

pub(crate) fn in_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An error, which may be an expected answer.
pub(crate) fn failed(fault: &Fault) -> Value {
    match fault {
        Fault::Library(Error::NotGranted(why)) => answer(why),
        fault => json!({"error": error_fields(fault)}),
    }
}

pub(crate) fn error_fields(fault: &Fault) -> Value {
    let error = match fault {
        Fault::Own(message) => return json!({"kind": "own", "message": message}),
        Fault::Library(error) => error,
    };
    let value = |stored: Option<&Stored>| {
        let stored = stored.cloned().unwrap_or_default();
        stored.decode_with(&Written).expect("what a scenario has returned")
    };
    match error {
        Error::TurnLost { reason, value: stored, .. } => json!({
            "kind": "turn_lost", "reason": reason.as_str(), "value": value(stored.as_ref()),
        }),
        Error::LeaseLost { reason, .. } => json!({"kind": "lease_lost", "reason": reason.as_str()}),
        Error::OutcomeUnknown { value: stored, .. } => {
            json!({"kind": "outcome_unknown", "value": value(Some(stored))})
        }
        Error::Closed => json!({"kind": "unavailable"}),
        Error::Unavailable { retry_after, .. } => {
            json!({"kind": "unavailable", "retry_after_ms": in_millis(*retry_after)})
        }
        Error::Overloaded { retry_after, .. } => {
            json!({"kind": "overloaded", "retry_after_ms": in_millis(*retry_after)})
        }
        Error::EpicMismatch { bound, .. } => json!({"kind": "epic_mismatch", "bound": bound}),
        Error::PayloadMismatch { .. } => json!({"kind": "payload_mismatch"}),
        Error::Invalid { field, .. } => json!({"kind": "invalid", "field": field}),
        Error::Internal { message, .. } => json!({"kind": "internal", "message": message}),
        other => json!({"kind": "unexpected", "message": format!("{other:?}")}),
    }
}

pub(crate) fn cancelled() -> Value {
    json!({"error": {"kind": "cancelled"}})
}

/// The deliveries of `mark_all`.
pub(crate) fn many_deliveries(step: &Value) -> Vec<Delivery> {
    let has = |name: &str, index: u64| {
        step[name].as_array().is_some_and(|indexes| indexes.contains(&index.into()))
    };
    let count = step["count"].as_u64().unwrap_or_default();
    let made = (0..count).map(|index| {
        let event = if has("bad", index) {
            String::new()
        } else {
            format!("{}{}", text(&step["prefix"]), if has("repeat", index) { 0 } else { index })
        };
        let aliases = (0..number(&step["aliases"])).map(|n| format!("{event}:{n}:"));
        let made = Delivery::new(text(&step["team"]), &event);
        aliases.fold(made, |made, alias| made.alias(format!("{alias:x<512}")))
    });
    made.collect()
}
