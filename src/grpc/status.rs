//! Errors as gRPC reports them: the one place that chooses the reason of each.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{pb::Reason, reason::DOMAIN};
use crate::{
    auth::OverLimit,
    domain::{Fault, Invalid},
    lane::CallError,
    session::SessionError,
    store::StoreError,
    telemetry::{self, call::CallTrace},
};

/// When to retry, in milliseconds. gRPC's own retries honour it, and know no `RetryInfo`:
/// <https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback>.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(
        "call not finished within {0:?}; the change may have been made: repeat the call with the \
         same request_id"
    )]
    Deadline(Duration),
    #[error("too many calls are in progress on this server")]
    Shed,
    #[error("connection limit reached; this connection only serves health checks")]
    Connections,
    #[error("too many streams on this connection before an accepted call")]
    Watches,
    #[error("too many half-sent requests; this one was rejected")]
    HalfOpen,
    #[error("request message not received within {0:?}")]
    Slow(Duration),
    #[error("the caller ended the call before its message was complete")]
    Cancelled,
    #[error("cannot read the request message: {0}")]
    Unreadable(Cow<'static, str>),
    #[error("metadata is longer than {0} bytes")]
    Metadata(usize),
    #[error("{0} is not on record")]
    NotFound(&'static str),
    #[error("unauthenticated")]
    Unauthenticated,
    #[error("the caller's role does not allow this method")]
    Role,
    #[error("{0}")]
    Quota(OverLimit),
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::Session(SessionError::Call(error))
    }
}

impl Problem {
    /// Why a body ended: text of gRPC-Web that is not Base64, or its caller ended the call.
    pub(super) fn of_body(error: &(dyn std::error::Error + 'static)) -> Self {
        match error.downcast_ref::<Status>() {
            Some(status) => Self::Unreadable(status.message().to_owned().into()),
            None => Self::Cancelled,
        }
    }

    /// The invalid field; empty if no field is invalid.
    pub(super) fn field(&self) -> &str {
        match self {
            Self::Invalid(invalid) => &invalid.field,
            _ => "",
        }
    }

    /// The reason, which decides the code and whether to retry.
    pub(super) const fn reason(&self) -> Reason {
        match self {
            Self::Invalid(invalid) => match invalid.fault {
                Fault::Field => Reason::InvalidField,
                Fault::NoKey => Reason::NoKey,
                Fault::TeamDenied(_) => Reason::TeamDenied,
            },
            Self::Deadline(_) | Self::Slow(_) => Reason::CallTimeout,
            Self::Shed | Self::Watches => Reason::TooManyCalls,
            Self::Connections | Self::HalfOpen => Reason::TooManyConnections,
            Self::Cancelled => Reason::Cancelled,
            Self::Unreadable(_) => Reason::UnreadableRequest,
            Self::Metadata(_) => Reason::MetadataTooLarge,
            Self::NotFound(_) => Reason::NotFound,
            Self::Unauthenticated => Reason::Unauthenticated,
            Self::Role => Reason::RoleDenied,
            Self::Quota(_) => Reason::Quota,
            Self::Session(error) => match error {
                SessionError::LeaseLost => Reason::LeaseLost,
                SessionError::ClaimLost => Reason::ClaimLost,
                SessionError::StreamReplaced => Reason::StreamReplaced,
                SessionError::HeldTooLong(_) => Reason::MaxHold,
                SessionError::EpicMismatch { .. } => Reason::EpicMismatch,
                SessionError::PayloadMismatch => Reason::PayloadMismatch,
                SessionError::Draining => Reason::Draining,
                SessionError::Denied => Reason::Unauthenticated,
                SessionError::QueueFull => Reason::QueueFull,
                SessionError::TooManyCalls | SessionError::TooManyOfTeam => Reason::TooManyCalls,
                SessionError::Timeout(_) => Reason::CallTimeout,
                SessionError::Call(CallError::Overloaded) => Reason::LaneFull,
                SessionError::Call(CallError::Store(error)) => match error {
                    StoreError::Unavailable(_) => Reason::StoreUnavailable,
                    StoreError::OutcomeUnknown(_) => Reason::OutcomeUnknown,
                    StoreError::LockTimeout(_) | StoreError::Conflict => Reason::Contended,
                    StoreError::Unusable(_) | StoreError::Misconfigured(_) => Reason::StoreUnusable,
                    StoreError::Rejected(_) => Reason::RejectedByDatabase,
                    StoreError::InvalidData(_) => Reason::UnstorableText,
                    StoreError::Internal(_) => Reason::Internal,
                },
            },
        }
    }

    /// When a retry may succeed; none if a retry of the same call cannot.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            // Whole milliseconds, as the pushback has them, and none too few.
            Self::Quota(OverLimit::Rate { retry_after }) => {
                let millis = retry_after.as_nanos().div_ceil(1_000_000);
                Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
            }
            _ => self.reason().retry_after(),
        }
    }

    /// The message. The store's own words are for the server's log only.
    fn message(&self) -> Cow<'static, str> {
        let Self::Session(SessionError::Call(CallError::Store(error))) = self else {
            return self.to_string().into();
        };
        let message = match error {
            StoreError::Unavailable(_) => "the store cannot be reached; nothing was changed",
            StoreError::OutcomeUnknown(_) => {
                "the connection to the store was lost before its answer; the change may have been \
                 made: repeat the call with the same request_id"
            }
            StoreError::LockTimeout(_) | StoreError::Conflict => {
                "another client of the database holds a lock; nothing was changed"
            }
            StoreError::Unusable(_) | StoreError::Misconfigured(_) => {
                "the database cannot do this in its present state; the server's log has the cause"
            }
            // The rule may be lifted, and the event must not be lost until then.
            StoreError::Rejected(_) => {
                "a rule of the database (a CHECK, a trigger or a policy) rejects this; the \
                 server's log has the cause"
            }
            StoreError::InvalidData(_) => {
                "the database's encoding cannot represent a character of a text"
            }
            StoreError::Internal(cause) => {
                let call = CallTrace::current();
                telemetry::call::log(call.as_ref(), || tracing::error!(%cause, "internal error"));
                let id = call.map(|call| call.id()).unwrap_or_default();
                return format!("internal error {id}; the server's log has the cause").into();
            }
        };
        message.into()
    }

    /// What else a program may need of the reason.
    fn metadata(&self) -> HashMap<String, String> {
        let Self::Session(error) = self else { return HashMap::new() };
        match error {
            SessionError::HeldTooLong(most) => {
                HashMap::from([("max_hold".to_owned(), format!("{}s", most.as_secs()))])
            }
            SessionError::EpicMismatch { bound } => {
                HashMap::from([("epic_id".to_owned(), bound.clone())])
            }
            _ => HashMap::new(),
        }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let (reason, after) = (problem.reason(), problem.retry_after());
        let (message, metadata) = (problem.message(), problem.metadata());
        let mut details = ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata);
        if let Problem::Invalid(Invalid { field, problem, .. }) = problem {
            details.add_bad_request_violation(field, problem);
        }
        detailed(reason.code(), message, after, details, MetadataMap::new())
    }
}

/// A status with `details`, to be retried `after` some time.
fn detailed(
    code: Code,
    message: impl Into<String>,
    after: Option<Duration>,
    mut details: ErrorDetails,
    mut metadata: MetadataMap,
) -> Status {
    if let Some(after) = after {
        details.set_retry_info(Some(after));
        if let Ok(millis) = after.as_millis().to_string().parse() {
            metadata.insert(PUSHBACK, millis);
        }
    }
    Status::with_error_details_and_metadata(code, message, details, metadata)
}

/// Adds the reason to an error of the framework, which is the sender's fault: a message that
/// tonic cannot decompress, delimit or decode, or that is too large. Its code stays, except
/// `INTERNAL`, which stands for faults of this server. Errors that have details are ours.
pub(super) fn of_framework(status: Status) -> Status {
    let (code, reason) = match status.code() {
        Code::Internal => (Code::InvalidArgument, Reason::UnreadableRequest),
        // Compressed by an algorithm that is not supported.
        Code::Unimplemented => (Code::Unimplemented, Reason::UnreadableRequest),
        code @ (Code::OutOfRange | Code::ResourceExhausted) => (code, Reason::MessageTooLarge),
        code @ Code::Cancelled => (code, Reason::Cancelled),
        _ => return status,
    };
    if !status.details().is_empty() {
        return status;
    }
    let message = match code {
        Code::InvalidArgument => Problem::Unreadable(status.message().to_owned().into()).message(),
        _ => status.message().to_owned().into(),
    };
    let details = ErrorDetails::with_error_info(reason.name(), DOMAIN, []);
    detailed(code, message, reason.retry_after(), details, status.metadata().clone())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::domain::TeamScope;

    /// A problem of each kind, and statuses as the framework makes them.
    fn all() -> Vec<Status> {
        let store = |error: StoreError| Problem::from(CallError::from(error));
        let second = Duration::from_secs(1);
        let mut all: Vec<Status> = [
            Invalid::new("field", "is wrong").into(),
            Invalid::no_key("field", "names no event").into(),
            Problem::Deadline(second),
            Problem::Slow(second),
            Problem::Shed,
            Problem::Connections,
            Problem::HalfOpen,
            Problem::Cancelled,
            Problem::Unreadable("cut short".into()),
            Problem::Metadata(1),
            Problem::NotFound("event"),
            Problem::Unauthenticated,
            Problem::Role,
            Problem::Quota(OverLimit::InFlight),
            Problem::Quota(OverLimit::Rate { retry_after: Duration::from_micros(1_500) }),
            TeamScope::Only(HashSet::new()).team("team_id", "T".into()).unwrap_err().into(),
            SessionError::LeaseLost.into(),
            SessionError::ClaimLost.into(),
            SessionError::StreamReplaced.into(),
            SessionError::HeldTooLong(second).into(),
            SessionError::EpicMismatch { bound: "PROJ-1".to_owned() }.into(),
            SessionError::PayloadMismatch.into(),
            SessionError::Draining.into(),
            SessionError::Denied.into(),
            SessionError::QueueFull.into(),
            SessionError::TooManyCalls.into(),
            SessionError::TooManyOfTeam.into(),
            SessionError::Timeout(second).into(),
            CallError::Overloaded.into(),
            store(StoreError::unavailable("secret")),
            store(StoreError::unknown("secret")),
            store(StoreError::LockTimeout("secret".into())),
            store(StoreError::Conflict),
            store(StoreError::unusable("secret")),
            store(StoreError::Misconfigured("secret".into())),
            store(StoreError::Rejected("secret".into())),
            store(StoreError::InvalidData("secret".into())),
            store(StoreError::internal("secret")),
        ]
        .into_iter()
        .map(Status::from)
        .collect();
        let framework = [
            Status::internal("bad flag"),
            Status::unimplemented("compressed"),
            Status::out_of_range("too large"),
            Status::resource_exhausted("too large once decompressed"),
            Status::cancelled("reset"),
        ];
        all.extend(framework.map(of_framework));
        all
    }

    #[test]
    fn every_error_has_a_reason_and_every_reason_an_error() {
        let named = |status: &Status| {
            let info = status.get_details_error_info().expect("ErrorInfo");
            assert_eq!(info.domain, DOMAIN);
            assert!(!status.message().contains("secret"), "{status:?}");
            let reason = Reason::from_str_name(&format!("REASON_{}", info.reason));
            reason.unwrap_or_else(|| panic!("{} is not in the contract", info.reason))
        };
        let produced: BTreeSet<i32> = all().iter().map(|status| named(status).into()).collect();
        let declared: BTreeSet<i32> =
            (1..i32::MAX).take_while(|number| Reason::try_from(*number).is_ok()).collect();
        assert_eq!(produced, declared);
        assert!(declared.len() >= 30, "{declared:?}");
    }

    #[test]
    fn pushback_and_retry_info_say_the_same() {
        for status in all() {
            let info = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let pushback = status.metadata().get(PUSHBACK).map(|value| value.to_str().unwrap());
            let millis = info.map(|delay| delay.as_millis().to_string());
            assert_eq!(pushback, millis.as_deref(), "{status:?}");
            let may_retry = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
            assert!(info.is_some() || !may_retry, "{status:?}");
        }
    }
}
