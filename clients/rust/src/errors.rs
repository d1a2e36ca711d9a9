//! What can come of a call, other than its answer.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::codec::Stored;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no turn or lease. A scope has it as [`Error::NotGranted`], and `run` returns the
/// same as variants of [`Outcome`](crate::Outcome).
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
    /// How that run ended: `SUCCEEDED` or `REJECTED`; `None` if the event was only marked.
    pub outcome: Option<String>,
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

/// Why a turn or lease ended without its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// `CLAIM_LOST`: the claim has lapsed, or the event was finished otherwise.
    ClaimLost,
    /// `LEASE_LOST`: the lease has ended, or was taken away.
    LeaseLost,
    /// `MAX_HOLD`: the server's maximum lifetime was reached.
    MaxHold,
    /// `DENIED`: the server does not accept the caller any more.
    Denied,
    /// `EXPIRED`: the trusted end has passed.
    Expired,
    /// `CLOSED`: the gate was closed.
    Closed,
    /// `ENDED`, from `check` and a second end alone: the holder has ended it.
    Ended,
}

impl LossReason {
    /// The name, as in the other languages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClaimLost => "CLAIM_LOST",
            Self::LeaseLost => "LEASE_LOST",
            Self::MaxHold => "MAX_HOLD",
            Self::Denied => "DENIED",
            Self::Expired => "EXPIRED",
            Self::Closed => "CLOSED",
            Self::Ended => "ENDED",
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that a log is not to have: its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Says whether an error still exists, in whatever it was put.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct Kept(Arc<()>);

impl Kept {
    pub(crate) fn downgrade(&self) -> Weak<()> {
        Arc::downgrade(&self.0)
    }
}

/// What can come of a call. One that a gRPC status caused has it as its source.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no turn or lease, as is to be expected.
    NotGranted(Box<NotGranted>),
    /// The turn ended without its holder: stop working, another run may have it.
    #[non_exhaustive]
    TurnLost {
        /// Why.
        reason: LossReason,
        /// What the handler returned all the same. It was not stored.
        value: Option<Stored>,
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The lease ended without its holder: stop working, another holder may have it.
    #[non_exhaustive]
    LeaseLost {
        /// Why.
        reason: LossReason,
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The end of a turn was sent, and no answer came. `Gate::seen` reports later.
    #[non_exhaustive]
    OutcomeUnknown {
        /// The turn's id. Keep it secret.
        turn_id: Secret,
        /// What the handler returned.
        value: Stored,
        /// The last failure.
        source: Option<tonic::Status>,
    },
    /// No server answered within the patience. Nothing is held, as far as is known.
    #[non_exhaustive]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
        /// What happened.
        message: String,
        /// The last failure.
        source: Option<tonic::Status>,
    },
    /// The gate is closed. It is unavailable for good.
    Closed,
    /// A limit of the server was reached, and the patience is over.
    #[non_exhaustive]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
        /// Which limit.
        message: String,
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The server does not know the caller, or the caller may not do this.
    #[non_exhaustive]
    Denied {
        /// `TEAM_DENIED`, `ROLE_DENIED` or another reason of the contract; without one,
        /// `UNAUTHENTICATED` or `PERMISSION_DENIED`.
        reason: String,
        /// What the server said.
        message: String,
        /// Its status.
        source: Option<tonic::Status>,
    },
    /// An option of the gate, or the file that it names, cannot be used.
    #[non_exhaustive]
    Misconfigured {
        /// The option.
        option: &'static str,
        /// Why.
        problem: String,
    },
    /// The session is bound to another epic.
    #[non_exhaustive]
    EpicMismatch {
        /// To this one.
        bound: String,
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The event is on record with another digest.
    #[non_exhaustive]
    PayloadMismatch {
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The request breaks a rule of the contract; fix the caller.
    #[non_exhaustive]
    Invalid {
        /// The field's path; empty if the message has no field.
        field: String,
        /// Which rule.
        message: String,
        /// What the server said.
        source: Option<tonic::Status>,
    },
    /// The result of a duplicate is none of the handler's type.
    #[non_exhaustive]
    Undecodable {
        /// The type of the result, as it was stored.
        result_type: String,
        /// What the codec says.
        problem: BoxError,
    },
    /// The handler's result cannot be encoded. The turn has failed.
    #[non_exhaustive]
    Unencodable {
        /// What the codec says.
        problem: BoxError,
    },
    /// The handler refused the event for good; made by [`Turn::reject`](crate::Turn::reject).
    #[non_exhaustive]
    Rejected {
        /// Why.
        detail: String,
        #[doc(hidden)]
        is_kept: Kept,
    },
    /// A fault of the server, or an answer that this library does not know; report it.
    #[non_exhaustive]
    Internal {
        /// What happened.
        message: String,
        /// What the server said.
        source: Option<tonic::Status>,
    },
}

impl Error {
    /// Why there is no turn or lease, if that is all that this error says.
    #[must_use]
    pub fn not_granted(&self) -> Option<&NotGranted> {
        match self {
            Self::NotGranted(why) => Some(why),
            _ => None,
        }
    }

    /// Whether the turn or lease was lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::TurnLost { .. } | Self::LeaseLost { .. })
    }

    /// When to try again, if that may help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Overloaded { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::NotGranted(why) => match **why {
                NotGranted::InProgress(InProgress { retry_after, .. })
                | NotGranted::Busy(Busy { retry_after, .. }) => Some(retry_after),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn with_value(mut self, result: &Stored) -> Self {
        if let Self::TurnLost { value, .. } = &mut self {
            *value = Some(result.clone());
        }
        self
    }
}

impl From<NotGranted> for Error {
    fn from(why: NotGranted) -> Self {
        Self::NotGranted(Box::new(why))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGranted(why) => why.fmt(f),
            Self::TurnLost { reason, .. } => {
                write!(f, "the turn was lost ({reason}); stop working, another run may have it")
            }
            Self::LeaseLost { reason, .. } => {
                write!(f, "the lease was lost ({reason}); stop working, another holder may have it")
            }
            Self::OutcomeUnknown { .. } => write!(
                f,
                "the server did not confirm the end of the turn; refuse the delivery, so that its \
                 redelivery finds out"
            ),
            Self::Unavailable { message, .. } => write!(
                f,
                "the server is unavailable: {message}; refuse the delivery or retry later"
            ),
            Self::Closed => write!(f, "the gate is closed; make another one"),
            Self::Overloaded { retry_after, message, .. } => {
                write!(f, "the server is overloaded: {message}; retry in {retry_after:?}")
            }
            Self::Denied { reason, message, .. } => write!(
                f,
                "the server denies the call ({reason}): {message}; check the gate's token or \
                 certificate, and its role and teams in the server's --auth file"
            ),
            Self::Misconfigured { option, problem } => {
                write!(f, "{option}: {problem}; fix the settings of the gate")
            }
            Self::EpicMismatch { bound, .. } => {
                write!(f, "the session is bound to epic {bound}; use another session, or BindEpic")
            }
            Self::PayloadMismatch { .. } => {
                write!(f, "another payload has the same name; name the two events differently")
            }
            Self::Invalid { message, .. } => write!(f, "{message}; fix the caller"),
            Self::Undecodable { result_type, problem } => write!(
                f,
                "the stored result, of type {result_type:?}, cannot be decoded: {problem}; decode \
                 it as what the other run returned"
            ),
            Self::Unencodable { problem } => {
                write!(
                    f,
                    "the result cannot be encoded: {problem}; return what the codec can store"
                )
            }
            Self::Rejected { detail, .. } => write!(f, "rejected: {detail}"),
            Self::Internal { message, .. } => write!(f, "{message}; report it"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TurnLost { source, .. }
            | Self::LeaseLost { source, .. }
            | Self::OutcomeUnknown { source, .. }
            | Self::Unavailable { source, .. }
            | Self::Overloaded { source, .. }
            | Self::Denied { source, .. }
            | Self::EpicMismatch { source, .. }
            | Self::PayloadMismatch { source }
            | Self::Invalid { source, .. }
            | Self::Internal { source, .. } => source.as_ref().map(|status| status as _),
            Self::Undecodable { problem, .. } | Self::Unencodable { problem } => {
                Some(problem.as_ref())
            }
            _ => None,
        }
    }
}

/// Says which option cannot be used. Such an error is not repeated.
pub(crate) fn misconfigured(option: &'static str, problem: impl Into<String>) -> Error {
    Error::Misconfigured { option, problem: problem.into() }
}

pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Error {
    Error::Invalid { field: field.to_owned(), message: message.into(), source: None }
}

pub(crate) fn or_else<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}
