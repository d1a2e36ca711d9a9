//! Why a session's lease was not acquired, or was lost.

use std::time::Duration;

use crate::lane::CallError;

/// Why a session's lease was not acquired, or was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The lease has ended, was released, or is another's.
    #[error("lease lost: it has ended, was released or passed to another holder")]
    LeaseLost,
    /// The lease, or the turn's, reached the maximum lifetime, renewals included.
    #[error("lease exceeded max_hold ({0:?})")]
    HeldTooLong(Duration),
    /// The claim has lapsed, or the event was handled otherwise.
    #[error("claim lost: it has lapsed, or the event was finished otherwise")]
    ClaimLost,
    /// Another call, which repeated the request, has its place in the queue or keeps the lease or
    /// the turn.
    #[error("a newer call with the same request_id replaced this one")]
    StreamReplaced,
    /// The session is bound to other work.
    #[error("session is bound to epic {bound:?}")]
    EpicMismatch {
        /// What it is bound to.
        bound: String,
    },
    /// The event is on record with another payload.
    #[error("event is on record with another payload_digest")]
    PayloadMismatch,
    /// The server ends the call or its connection; a lease or turn that was granted goes on.
    #[error(
        "server shuts down or closes the connection; a granted lease or turn is still valid: \
         renew it, or repeat the request_id, over another connection"
    )]
    Draining,
    /// The caller may no longer use the stream; a lease or turn that was granted goes on. The
    /// caller gets no detail.
    #[error("unauthenticated")]
    Denied,
    /// Too many callers wait for this session already.
    #[error("too many callers are waiting for this session")]
    QueueFull,
    /// Too many calls wait for sessions, or hold them, on this server.
    #[error("too many calls that wait or hold are in progress on this server")]
    TooManyCalls,
    /// The team has as many of these calls as it may; what is free is for other teams.
    #[error(
        "too many calls of this team that wait or hold are in progress on this server; the free \
         places are for other teams"
    )]
    TooManyOfTeam,
    /// The call took longer than the server lets one take.
    #[error(
        "call not finished within {0:?}; the change may have been made: repeat the call with the \
         same request_id"
    )]
    Timeout(Duration),
    /// The lane or the store failed.
    #[error(transparent)]
    Call(#[from] CallError),
}
