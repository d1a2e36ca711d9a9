//! Why there is no turn or lease.

use std::{fmt, time::Duration};

use crate::{EventOutcome, codec::Stored, errors::or_else};

/// Why there is no turn or lease. A scope has it as [`Error::NotGranted`](crate::Error::NotGranted), and `run`
/// returns the same as variants of [`Outcome`](crate::Outcome).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotGranted {
    /// The event has been handled; acknowledge it.
    Duplicate(Duplicate),
    /// All attempts failed, and no run has handled the event; acknowledge it, and alert a person.
    GaveUp(GaveUp),
    /// Another run handles the event; refuse the delivery if its sender redelivers.
    InProgress(InProgress),
    /// Another turn has the conversation, and the wait is over. The event is unchanged.
    Busy(Busy),
    /// The server is unavailable, and the gate is to drop events then.
    Dropped,
}

/// The event has been handled. In an [`Outcome`](crate::Outcome), its result is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Duplicate<R = Stored> {
    /// What the run returned that handled the event.
    pub result: R,
    /// Why its result cannot be decoded, such as after a change of its type; the result is then `None`.
    pub undecodable: Option<String>,
    /// How that run ended: succeeded or rejected; `None` if the event was only marked.
    pub outcome: Option<EventOutcome>,
    /// Why it was rejected.
    pub detail: String,
}

/// All attempts failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GaveUp {
    /// How many there were.
    pub attempts: u32,
    /// How the latest one failed.
    pub detail: String,
}

/// Another run handles the event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InProgress {
    /// Its name.
    pub holder: String,
    /// Its attempt.
    pub attempt: u32,
    /// When to ask again.
    pub retry_after: Duration,
}

/// Another holder has the conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Busy {
    /// Its name. Empty while the conversation passes to the first in the queue.
    pub holder: String,
    /// How many callers wait for it.
    pub queue_length: u32,
    /// When to ask again.
    pub retry_after: Duration,
}

impl fmt::Display for NotGranted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(_) => write!(f, "the event has been handled; acknowledge it"),
            Self::GaveUp(GaveUp { attempts, detail }) => {
                let detail = or_else(detail, "no detail");
                write!(f, "the event was given up after {attempts} attempts: {detail}")
            }
            Self::InProgress(InProgress { holder, retry_after, .. }) => {
                write!(f, "{holder} handles the event; ask again in {retry_after:?}")
            }
            Self::Busy(Busy { holder, queue_length, retry_after }) => {
                let holder = or_else(holder, "the next in the queue");
                write!(f, "{holder} has the conversation, {queue_length} waiting; ")?;
                write!(f, "ask again in {retry_after:?}")
            }
            Self::Dropped => {
                write!(
                    f,
                    "the server is unavailable, and the event is dropped, as its author chose"
                )
            }
        }
    }
}
