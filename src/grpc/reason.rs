//! What follows from each reason of the contract: the status code, and when to retry.

use std::time::Duration;

use tonic::Code;

use super::pb::Reason;

/// The domain of the reasons in [`tonic_types::ErrorInfo`].
pub(super) const DOMAIN: &str = "oncegate";
/// What the names of the enum's values begin with; reasons on the wire do not.
const PREFIX: &str = "REASON_";

/// When to retry a call that was rejected for load, or by a server that shuts down.
const AFTER_OVERLOAD: Duration = Duration::from_millis(500);
/// When to retry a call that failed for the store's condition.
const AFTER_OUTAGE: Duration = Duration::from_secs(1);

impl Reason {
    /// The name on the wire, such as `LEASE_LOST`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix(PREFIX).unwrap_or(name)
    }

    /// The status code.
    pub(super) const fn code(self) -> Code {
        self.rule().0
    }

    /// When a retry may succeed; none if a retry of the same call cannot.
    pub(super) const fn retry_after(self) -> Option<Duration> {
        self.rule().1
    }

    const fn rule(self) -> (Code, Option<Duration>) {
        match self {
            Self::InvalidField | Self::NoKey | Self::UnreadableRequest | Self::UnstorableText => {
                (Code::InvalidArgument, None)
            }
            Self::NotFound => (Code::NotFound, None),
            Self::LeaseLost
            | Self::MaxHold
            | Self::ClaimLost
            | Self::StreamReplaced
            | Self::EpicMismatch
            | Self::PayloadMismatch => (Code::FailedPrecondition, None),
            Self::QueueFull
            | Self::TooManyCalls
            | Self::TooManyConnections
            | Self::LaneFull
            | Self::Quota => (Code::ResourceExhausted, Some(AFTER_OVERLOAD)),
            Self::MetadataTooLarge => (Code::ResourceExhausted, None),
            Self::MessageTooLarge => (Code::OutOfRange, None),
            Self::Draining => (Code::Unavailable, Some(AFTER_OVERLOAD)),
            Self::StoreUnavailable
            | Self::OutcomeUnknown
            | Self::Contended
            | Self::StoreUnusable
            | Self::RejectedByDatabase => (Code::Unavailable, Some(AFTER_OUTAGE)),
            Self::CallTimeout => (Code::DeadlineExceeded, Some(AFTER_OVERLOAD)),
            Self::Cancelled => (Code::Cancelled, None),
            Self::Unauthenticated => (Code::Unauthenticated, None),
            Self::TeamDenied | Self::RoleDenied => (Code::PermissionDenied, None),
            Self::Internal | Self::Unspecified => (Code::Internal, None),
        }
    }
}
