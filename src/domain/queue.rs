//! A place in the queue of a session.

use super::{Acquire, LeaseId};

/// Takes a place in a session's queue.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// What is wanted, with the lease that is to be given.
    pub acquire: Acquire,
    /// Take over the place that an earlier call with the same request has or had, if it is still
    /// the one that was to end in this lease. A call names what it has found ([`Enqueued::Taken`]):
    /// one that reaches the store late, and whose caller has gone, takes no newer call's place.
    pub takes_over: Option<LeaseId>,
}

/// What became of an [`Enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The caller has a place: callers with lower tickets are before it.
    Waits(i64),
    /// It has the place of an earlier call with the same request, which was to be given this
    /// lease.
    TookOver(i64, LeaseId),
    /// Another call with the same request has a place, which is to end in this lease.
    Taken(LeaseId),
    /// The lease has come since, of a place that an earlier run took.
    Given,
    /// The lease may have come and ended, of a place that an earlier run took: the caller asks for
    /// a place for another lease.
    Spent,
    /// An acquire does not wait: the session is free, is the caller's already, or is bound to other
    /// work.
    Free,
    /// Too many wait already.
    Full,
}
