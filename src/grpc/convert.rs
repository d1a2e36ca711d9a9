//! Messages to values, checked field by field, and values to messages.

use std::time::Duration;

use prost_types::Timestamp as PbTimestamp;

use super::pb;
use crate::domain::{Invalid, Timestamp, split_consumer};

mod admin;
mod event;
mod key;
mod session;
mod turn;
mod turn_id;

pub(super) use admin::{
    bind, cleanup, cleanup_response, close, events, force_release, forget, page_token, session,
    sessions, stats, team,
};
pub(super) use event::{event, finish_response, look_response, mark, mark_response};
pub(super) use key::{delivered, session_key};
pub(super) use session::{
    acquire, check, hold, hold_alive, hold_event, lease_held, release, renew, session_lease,
};
pub(super) use turn::{begin, begun, ending_of, finish, renew_turn, run_alive, run_event, turn};

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is required"))
}

pub(super) fn duration(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    if value.seconds < 0 || value.nanos < 0 {
        return Err(Invalid::new(field, "must not be negative"));
    }
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(Invalid::new(field, "must have nanos below 1,000,000,000")),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every message field is optional on the wire")]
pub(super) fn timestamp(at: Timestamp) -> Option<PbTimestamp> {
    let micros = at.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    Some(PbTimestamp { seconds: micros.div_euclid(1_000_000), nanos })
}

pub(super) fn length(span: Duration) -> Option<prost_types::Duration> {
    span.try_into().ok()
}

pub(super) fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The id and the consumer of a stored id.
fn ids(stored: &str) -> (String, String) {
    let (id, consumer) = split_consumer(stored);
    (id.to_owned(), consumer.to_owned())
}
