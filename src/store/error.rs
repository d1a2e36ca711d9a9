//! Why a store could not answer.

use std::sync::Arc;

/// Why a store could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached. Nothing was changed.
    #[error("store unavailable: {0}")]
    Unavailable(Arc<str>),
    /// The connection to the store was lost before its answer: the change may have been made.
    /// A retry with the same attempt id is safe.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Arc<str>),
    /// Another client of the database has locked a row of this batch, or the batch failed for
    /// another of its rows: a smaller batch finds which. Nothing was written.
    #[error("locked by another client of the database: {0}")]
    LockTimeout(Arc<str>),
    /// Conflict: a concurrent writer took one of several keys that must be taken together.
    /// Rolled back; retry.
    #[error("conflict with a concurrent writer; rolled back")]
    Conflict,
    /// The store cannot keep a text of this batch; a smaller batch shows which. The only
    /// error that is a caller's fault.
    #[error("text cannot be stored: {0}")]
    InvalidData(Arc<str>),
    /// A rule that the database's owner added (a CHECK, a trigger, a policy) rejects a row of
    /// this batch; a smaller batch shows which.
    #[error("rejected by a rule of the database: {0}")]
    Rejected(Arc<str>),
    /// The store answers, and cannot do this in the state that it is in, or as it is set
    /// up: its operator has to act. A smaller batch may show that it is about one row.
    #[error("store unusable: {0}")]
    Unusable(Arc<str>),
    /// The store or a proxy before it is set up so that the service cannot work: neither a
    /// restart nor a retry helps.
    #[error("store misconfigured: {0}")]
    Misconfigured(Arc<str>),
    /// The store's answer makes no sense: a bug, or a schema not ours.
    #[error("store error: {0}")]
    Internal(Arc<str>),
}

impl StoreError {
    /// The store cannot be reached, because of `cause`.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable(cause.to_string().into())
    }

    /// The outcome is unknown, because of `cause`.
    pub fn unknown(cause: impl std::fmt::Display) -> Self {
        Self::OutcomeUnknown(cause.to_string().into())
    }

    /// The same error, after something may have been changed: it must not report that nothing
    /// was.
    #[must_use]
    pub fn after_change(self) -> Self {
        match self {
            error @ (Self::OutcomeUnknown(_) | Self::Misconfigured(_) | Self::Internal(_)) => error,
            Self::Unavailable(cause) | Self::LockTimeout(cause) => Self::OutcomeUnknown(cause),
            error => Self::unknown(error),
        }
    }

    /// The same error, of a read: nothing was changed, whatever the outcome.
    #[must_use]
    pub fn of_read(self) -> Self {
        match self {
            Self::OutcomeUnknown(cause) => Self::Unavailable(cause),
            error => error,
        }
    }

    /// The store's operator has to act, because of `cause`.
    pub fn unusable(cause: impl std::fmt::Display) -> Self {
        Self::Unusable(cause.to_string().into())
    }

    /// The store's answer makes no sense, because of `cause`.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::Internal(cause.to_string().into())
    }
}
