//! What can come of a call, other than its answer.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use tonic::Status;

use crate::{
    codec::Stored,
    not_granted::{Busy, InProgress, NotGranted},
    outcome::named,
};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

named! {
    /// Why a turn or lease ended without its holder.
    LossReason {
        /// `CLAIM_LOST`: the claim has lapsed, or the event was finished otherwise.
        ClaimLost = "CLAIM_LOST",
        /// `LEASE_LOST`: the lease has ended, or was taken away.
        LeaseLost = "LEASE_LOST",
        /// `MAX_HOLD`: the server's maximum lifetime was reached.
        MaxHold = "MAX_HOLD",
        /// `DENIED`: the server does not accept the caller any more.
        Denied = "DENIED",
        /// `EXPIRED`: the trusted end has passed.
        Expired = "EXPIRED",
        /// `CLOSED`: the gate was closed.
        Closed = "CLOSED",
        /// `ENDED`, from `check` and a second end alone: the holder has ended it.
        Ended = "ENDED",
    }
}

/// What caused an error, which returns it as its [`source`](std::error::Error::source): what the server or the
/// connection said. Its type is not part of this API.
#[derive(Clone, Default)]
pub struct Cause(Option<Box<Status>>);

impl Cause {
    pub(crate) fn new(status: Status) -> Self {
        Self(Some(Box::new(status)))
    }

    /// As a log shows it.
    pub(crate) fn text(&self) -> Option<String> {
        self.0.as_ref().map(ToString::to_string)
    }

    fn error(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_deref().map(|status| status as _)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
        source: Cause,
    },
    /// The lease ended without its holder: stop working, another holder may have it.
    #[non_exhaustive]
    LeaseLost {
        /// Why.
        reason: LossReason,
        /// What the server said.
        source: Cause,
    },
    /// The end of a turn was sent, and no answer came. `Gate::seen` reports later.
    #[non_exhaustive]
    OutcomeUnknown {
        /// The turn's id. Keep it secret.
        turn_id: Secret,
        /// What the handler returned.
        value: Stored,
        /// The last failure.
        source: Cause,
    },
    /// No server answered within the patience. Nothing is held, as far as is known.
    #[non_exhaustive]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
        /// What happened.
        message: String,
        /// The last failure.
        source: Cause,
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
        source: Cause,
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
        source: Cause,
    },
    /// An option of the gate, or the file that it names, cannot be used.
    #[non_exhaustive]
    Misconfigured {
        /// The option.
        option: &'static str,
        /// Why.
        problem: String,
        /// Another option that would allow it.
        allowed_by: Option<&'static str>,
    },
    /// The session is bound to another epic.
    #[non_exhaustive]
    EpicMismatch {
        /// To this one.
        bound: String,
        /// What the server said.
        source: Cause,
    },
    /// The event is on record with another digest.
    #[non_exhaustive]
    PayloadMismatch {
        /// What the server said.
        source: Cause,
    },
    /// The request breaks a rule of the contract; fix the caller.
    #[non_exhaustive]
    Invalid {
        /// The field's path; empty if the message has no field.
        field: String,
        /// Which rule.
        message: String,
        /// What the server said.
        source: Cause,
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
        source: Cause,
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
            Self::Misconfigured { option, problem, allowed_by } => {
                write!(f, "{option}: {problem}")?;
                if let Some(other) = allowed_by {
                    write!(f, ", or set {other}")?;
                }
                write!(f, "; fix the settings of the gate")
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
            | Self::Internal { source, .. } => source.error(),
            Self::Undecodable { problem, .. } | Self::Unencodable { problem } => {
                Some(problem.as_ref())
            }
            _ => None,
        }
    }
}

/// Says which option cannot be used. Such an error is not repeated.
pub(crate) fn misconfigured(option: &'static str, problem: impl Into<String>) -> Error {
    Error::Misconfigured { option, problem: problem.into(), allowed_by: None }
}

pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Error {
    Error::Invalid { field: field.to_owned(), message: message.into(), source: Cause::default() }
}

pub(crate) fn or_else<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}
