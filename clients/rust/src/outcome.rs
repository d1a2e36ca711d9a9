//! What comes of a delivery, of a turn, and of an event.

use std::{fmt, time::Duration};

use crate::{Busy, Duplicate, GaveUp, InProgress, pb};

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says whether the event was handled"]
pub enum Outcome<T> {
    /// The handler ran, and returned this.
    Ran(T),
    /// The handler ran, and refused the event for good.
    #[non_exhaustive]
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

/// An enum whose values have the names that the contract and the other languages have.
macro_rules! named {
    ($(#[$meta:meta])* $kind:ident { $($(#[$about:meta])* $value:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $kind {
            $($(#[$about])* $value,)+
        }

        impl $kind {
            /// The name, as in the other languages.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $name,)+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use named;

named! {
    /// What the server knows of an event.
    EventState {
        /// `NOT_SEEN`: it is new, its record has expired, or its latest turn failed.
        NotSeen = "NOT_SEEN",
        /// `IN_PROGRESS`: a run handles it.
        InProgress = "IN_PROGRESS",
        /// `PROCESSED`: it has been handled, marked or given up.
        Processed = "PROCESSED",
    }
}

named! {
    /// How an event was processed.
    EventOutcome {
        /// `SUCCEEDED`: a run has handled it.
        Succeeded = "SUCCEEDED",
        /// `REJECTED`: a run has refused it for good.
        Rejected = "REJECTED",
        /// `GAVE_UP`: all attempts failed.
        GaveUp = "GAVE_UP",
    }
}

named! {
    /// How a turn ended here, for [`Hooks`](crate::Hooks).
    EndOutcome {
        /// `SUCCEEDED`: the event is handled.
        Succeeded = "SUCCEEDED",
        /// `FAILED`: the next delivery gets the event.
        Failed = "FAILED",
        /// `REJECTED`: the event is refused for good.
        Rejected = "REJECTED",
        /// `LOST`: the turn ended without its holder.
        Lost = "LOST",
        /// `UNKNOWN`: the server did not confirm the end.
        Unknown = "UNKNOWN",
    }
}

impl EventState {
    /// `None` for one that this library does not know.
    pub(crate) fn read(state: pb::EventState) -> Option<Self> {
        match state {
            pb::EventState::Unspecified => None,
            pb::EventState::NotSeen => Some(Self::NotSeen),
            pb::EventState::InProgress => Some(Self::InProgress),
            pb::EventState::Processed => Some(Self::Processed),
        }
    }
}

impl EventOutcome {
    /// `None` for a mark.
    pub(crate) fn read(outcome: pb::TurnOutcome) -> Option<Self> {
        match outcome {
            pb::TurnOutcome::Succeeded => Some(Self::Succeeded),
            pb::TurnOutcome::Rejected => Some(Self::Rejected),
            pb::TurnOutcome::GaveUp => Some(Self::GaveUp),
            pb::TurnOutcome::Unspecified | pb::TurnOutcome::Failed => None,
        }
    }
}
