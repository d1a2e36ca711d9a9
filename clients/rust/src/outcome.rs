//! What comes of a delivery.

use std::time::Duration;

use crate::{Busy, Duplicate, GaveUp, InProgress};

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says whether the event was handled"]
pub enum Outcome<T> {
    /// The handler ran, and returned this.
    Ran(T),
    /// The handler ran, and refused the event for good.
    Rejected {
        /// Why.
        detail: String,
    },
    /// The event has been handled; acknowledge it. The result is what the run returned that handled
    /// it; `None` if it returned nothing.
    Duplicate(Duplicate<Option<T>>),
    /// All attempts failed, and no run has handled the event; acknowledge it, and alert a person.
    GaveUp(GaveUp),
    /// Another run handles the event; refuse the delivery if its sender redelivers.
    InProgress(InProgress),
    /// Another turn has the conversation, and the wait is over.
    Busy(Busy),
    /// The server is unavailable, and the gate is to drop events then.
    Dropped,
}

impl<T> Outcome<T> {
    /// What the handler returned, or the run that handled a duplicate.
    #[must_use]
    pub fn value(self) -> Option<T> {
        match self {
            Self::Ran(value) => Some(value),
            Self::Duplicate(duplicate) => duplicate.result,
            _ => None,
        }
    }

    /// When to ask again, if another run has the event or the conversation.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::InProgress(other) => Some(other.retry_after),
            Self::Busy(busy) => Some(busy.retry_after),
            _ => None,
        }
    }
}
