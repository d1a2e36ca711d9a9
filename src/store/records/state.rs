//! How an event stands, as databases store it.

use serde::Serialize;
use uuid::Uuid;

use crate::{
    domain::{Detail, ProcessedBy},
    rules::{Event, State},
};

/// The columns that change with how an event stands, in JSON. Times are in microseconds.
#[derive(Serialize)]
pub(in crate::store) struct StateColumns<'a> {
    pub time: i64,
    pub expires: i64,
    pub until: Option<i64>,
    pub attempt: Option<u32>,
    pub holder: Option<&'a str>,
    /// In hexadecimal, as JSON can carry it.
    pub result: Option<String>,
    pub result_type: Option<&'a str>,
    /// True or nothing.
    pub repeated: Option<bool>,
    pub resumed_by: Option<Uuid>,
    /// The same as `time`, if it was rejected: a binary of the version before leaves what it finds.
    pub rejected: Option<i64>,
    pub detail: Option<&'a str>,
    /// None for 0.
    pub uncounted: Option<u32>,
    pub interrupted: Option<u32>,
}

impl<'a> StateColumns<'a> {
    pub(in crate::store) fn of(event: &'a Event) -> Self {
        let (until, by, result) = match &event.state {
            State::Claimed(until) => (Some(until.as_micros()), None, None),
            State::Handled(by, result) => (None, Some(*by), result.as_deref()),
        };
        let (time, attempts) = (event.time.as_micros(), event.attempts);
        let is_rejected = matches!(by, Some(ProcessedBy::Rejected(_)));
        Self {
            time,
            expires: event.expire_time.as_micros(),
            until,
            attempt: attempts.map(|attempts| attempts.claimed),
            holder: event.holder.as_deref(),
            result: result.map(|result| hexadecimal(&result.bytes)),
            result_type: result.and_then(|result| result.type_name.as_deref()),
            repeated: event.resumed.is_repeated().then_some(true),
            resumed_by: event.resumed.as_uuid(),
            rejected: is_rejected.then_some(time),
            detail: event.detail.as_ref().map(Detail::as_str),
            uncounted: attempts.map(|attempts| attempts.uncounted).filter(|count| *count > 0),
            interrupted: attempts.and_then(|attempts| attempts.interrupted),
        }
    }
}

/// Bytes as JSON can carry them.
fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
