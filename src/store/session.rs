//! What sessions need of a database: who holds them, and who waits.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{
    Acquire, Acquired, Enqueue, Enqueued, LeaseId, Release, Renew, Renewed, SessionKey, SessionRow,
};

/// An operation on a session.
#[derive(Debug, Clone, Copy)]
pub enum SessionOp<'a> {
    /// Takes the lease of a session that is free and that no caller waits for.
    Acquire(&'a Acquire),
    /// Ends a live lease. The session goes to the next waiter, if there is one, in the same step.
    Release(&'a Release),
    /// Extends a live lease, up to so long since it was granted.
    Renew(&'a Renew, Duration),
    /// Takes a place in the queue of a session that is held.
    Enqueue(&'a Enqueue),
    /// Gives up a place.
    Leave {
        /// The session.
        key: &'a SessionKey,
        /// The lease that the place was to end in.
        lease: LeaseId,
        /// Whether it is left behind, as the server shuts down: for
        /// [`PLACE_KEPT`](crate::rules::queue::PLACE_KEPT) the next call with the same request
        /// takes it up again, and meanwhile it is passed over.
        keep: bool,
    },
    /// Hands a session that is free on to the next waiter on a replica that is there.
    HandOn(&'a SessionKey),
}

/// The answer to a [`SessionOp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionAnswer {
    /// The session's row after the decision; [`SessionRow::decision`] says what it means to the
    /// caller. A lease that is granted again to a call that names it is noted as resumed before it
    /// is answered.
    Acquired(Acquired),
    /// Whether the lease is given back, now or before; not so a lease that was
    /// resumed, where that is to be spared.
    Released(bool),
    /// What became of the lease.
    Renewed(Renewed),
    /// What became of the place.
    Enqueued(Enqueued),
    /// Whether the place was there: if not, the lease may have been given.
    Left(bool),
    /// The session's row as it stands then.
    HandedOn(Option<SessionRow>),
}

/// The outcomes of a batch of operations on sessions.
#[derive(Debug)]
pub struct SessionBatch {
    /// The answers, in the order of the operations.
    pub answers: Vec<Verdict<SessionAnswer>>,
    /// The sessions that went to the next waiter. Waiters on other replicas are notified.
    pub handovers: Vec<SessionRow>,
}

impl SessionBatch {
    /// The batch of `count` operations, none of which is decided.
    #[must_use]
    pub fn open(count: usize) -> Self {
        Self { answers: vec![Verdict::Retry; count], handovers: Vec::new() }
    }
}

/// Sessions: one row each, which says who holds the lease.
pub trait SessionStore {
    /// Runs operations on sessions. Those on one session follow each other, are run in their
    /// order, and are written together.
    ///
    /// # Errors
    /// [`StoreError`]; then no operation of the batch is known to have changed anything.
    fn change_sessions(
        &mut self,
        asked: &[SessionOp<'_>],
    ) -> impl Future<Output = Result<SessionBatch, StoreError>> + Send;

    /// Reads the rows of `keys`, in order.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> impl Future<Output = Result<Vec<Option<SessionRow>>, StoreError>> + Send;
}

impl<'a> SessionOp<'a> {
    /// The session.
    #[must_use]
    pub const fn key(&self) -> &'a SessionKey {
        match self {
            Self::Acquire(acquire) => &acquire.key,
            Self::Release(release) => &release.key,
            Self::Renew(renew, _) => &renew.key,
            Self::Enqueue(enqueue) => &enqueue.acquire.key,
            Self::Leave { key, .. } | Self::HandOn(key) => key,
        }
    }
}
