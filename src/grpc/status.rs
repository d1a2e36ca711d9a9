//! What went wrong, as gRPC tells it: the one place that chooses status codes.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::{domain::Invalid, lane::CallError, session::SessionError, store::StoreError};

/// The domain of the reasons in [`tonic_types::ErrorInfo`].
const DOMAIN: &str = "oncegate";
/// The reason of an item that a rule of the database's owner rejected.
pub(crate) const REJECTED_BY_DATABASE: &str = "REJECTED_BY_DATABASE";

/// How the message of every internal error begins that is this server's fault.
const INTERNAL: &str = "internal error ";

/// When a caller who was refused for load may try again.
const RETRY_AFTER_OVERLOAD: Duration = Duration::from_millis(500);
/// When a caller who found the store away may try again.
const RETRY_AFTER_OUTAGE: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the server gave up after {0:?}; repeat the call with the same request_id")]
    Deadline(Duration),
    #[error("too many calls are under way")]
    Shed,
    #[error("connection limit reached; this connection only serves health checks")]
    Connections,
    #[error("too many incomplete requests; this one was rejected")]
    HalfOpen,
    #[error("request message not received within {0:?}")]
    Slow(Duration),
    #[error("the caller ended the call before its message was complete")]
    Cancelled,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("cannot read the request message: {0}")]
    Unreadable(String),
    #[error("the metadata is longer than {0} bytes")]
    Metadata(usize),
    #[error("the {0} is not on record")]
    NotFound(&'static str),
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::Session(SessionError::Call(error))
    }
}

impl Problem {
    /// The field at fault; empty where none is.
    pub(super) fn field(&self) -> &str {
        match self {
            Self::Invalid(invalid) => &invalid.field,
            _ => "",
        }
    }
}

/// The problem that `status` stands for, if it is the framework's: tonic answers `INTERNAL`
/// to a message that it cannot decompress or delimit, which is the sender's fault.
pub(super) fn unreadable(status: &Status) -> Option<Problem> {
    let is_ours = status.message().starts_with(INTERNAL);
    (status.code() == Code::Internal && !is_ours)
        .then(|| Problem::Unreadable(status.message().to_owned()))
}

/// The answer to a request that the framework could not read.
pub(super) fn of_request(status: Status) -> Status {
    unreadable(&status).map_or(status, Status::from)
}

/// A condition of the store, which is to be tried again.
fn unavailable(message: &str, mut details: ErrorDetails) -> Status {
    details.set_retry_info(Some(RETRY_AFTER_OUTAGE));
    Status::with_error_details(Code::Unavailable, message, details)
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let message = problem.to_string();
        let details = |code, details| Self::with_error_details(code, message.clone(), details);
        let reason = |reason: &str, metadata: HashMap<String, String>| {
            details(
                Code::FailedPrecondition,
                ErrorDetails::with_error_info(reason, DOMAIN, metadata),
            )
        };
        let retry = |code, after| details(code, ErrorDetails::with_retry_info(Some(after)));
        match problem {
            Problem::Invalid(Invalid { field, problem, .. }) => details(
                Code::InvalidArgument,
                ErrorDetails::with_bad_request_violation(field, problem),
            ),
            Problem::NotFound(_) => Self::not_found(message),
            Problem::Deadline(_) | Problem::Slow(_) => Self::deadline_exceeded(message),
            Problem::Cancelled => Self::cancelled(message),
            Problem::Malformed(_) | Problem::Unreadable(_) => Self::invalid_argument(message),
            Problem::Metadata(_) => Self::resource_exhausted(message),
            Problem::Shed | Problem::Connections | Problem::HalfOpen => {
                retry(Code::ResourceExhausted, RETRY_AFTER_OVERLOAD)
            }
            Problem::Session(error) => match error {
                SessionError::LeaseLost => reason("LEASE_LOST", HashMap::new()),
                SessionError::ClaimLost => reason("CLAIM_LOST", HashMap::new()),
                SessionError::StreamReplaced => reason("STREAM_REPLACED", HashMap::new()),
                SessionError::HeldTooLong(most) => {
                    let most = format!("{}s", most.as_secs());
                    reason("LEASE_LOST", HashMap::from([("max_hold".to_owned(), most)]))
                }
                SessionError::EpicMismatch { bound } => {
                    reason("EPIC_MISMATCH", HashMap::from([("epic_id".to_owned(), bound)]))
                }
                SessionError::PayloadMismatch => reason("PAYLOAD_MISMATCH", HashMap::new()),
                SessionError::Draining => retry(Code::Unavailable, RETRY_AFTER_OVERLOAD),
                SessionError::QueueFull | SessionError::Call(CallError::Overloaded) => {
                    retry(Code::ResourceExhausted, RETRY_AFTER_OVERLOAD)
                }
                SessionError::Call(CallError::Store(error)) => match error {
                    // What happened is in the log, and is none of the caller's.
                    StoreError::Unavailable(_)
                    | StoreError::Contended(_)
                    | StoreError::Overtaken => unavailable(
                        "the store is away, or the outcome is not known: repeat the call with \
                         the same request_id",
                        ErrorDetails::new(),
                    ),
                    StoreError::Unusable(_) | StoreError::Misconfigured(_) => unavailable(
                        "the database cannot do this in its present state; the server's log has \
                         the cause: repeat the call with the same request_id",
                        ErrorDetails::new(),
                    ),
                    // The rule may be lifted, and the event must not be lost until then.
                    StoreError::Rejected(_) => unavailable(
                        "a rule of the database (a CHECK, a trigger or a policy) rejected this; \
                         the server's log has the cause: repeat the call with the same request_id",
                        ErrorDetails::with_error_info(REJECTED_BY_DATABASE, DOMAIN, []),
                    ),
                    StoreError::Refused(_) => Self::invalid_argument(
                        "the database's encoding has no such character: a text cannot be stored",
                    ),
                    StoreError::Fault(cause) => {
                        let id = Uuid::new_v4();
                        tracing::error!(%id, %cause, "internal error");
                        Self::internal(format!("{INTERNAL}{id}: see the server's log"))
                    }
                },
            },
        }
    }
}
