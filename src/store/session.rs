//! What is needed of a database for sessions: who holds them, and who waits.

use std::{future::Future, time::Duration};

use uuid::Uuid;

use super::{StoreError, Verdict};
use crate::domain::{Acquire, Acquired, LeaseId, SessionKey, SessionRow, Ttl};

/// Asks to let a lease run on.
#[derive(Debug, Clone)]
pub struct Renew {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// How long it runs from now.
    pub ttl: Ttl,
}

/// Gives a lease back.
#[derive(Debug, Clone)]
pub struct Release {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// Not if it was told to a repetition of its request as well: whoever asked
    /// first has gone, but whoever repeated it may hold.
    pub unless_repeated: bool,
}

/// Takes a place in a session's queue.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// What is wanted.
    pub acquire: Acquire,
    /// The lease that is to be given.
    pub lease: LeaseId,
    /// Where the caller is connected.
    pub replica: Uuid,
}

/// What became of an [`Enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The caller has a place.
    Waits,
    /// The session is there for the taking.
    Free,
    /// Too many wait already.
    Full,
}

/// Hands a session on to whoever is next, if it is free.
#[derive(Debug, Clone)]
pub struct HandOn {
    /// The session.
    pub key: SessionKey,
    /// Who asks: those who wait there count as there.
    pub replica: Uuid,
}

/// A session that went to whoever was next in its queue.
#[derive(Debug, Clone)]
pub struct Handed {
    /// Its row, with the lease that they had asked for.
    pub row: SessionRow,
    /// Where they are connected. If that is elsewhere, they are notified.
    pub replica: Uuid,
}

/// What became of leases that were asked for, and of others that were given
/// back; each in the order in which they were asked.
#[derive(Debug)]
pub struct Changed {
    /// The session's row as it stands after the decision; what it means to the
    /// asker [`SessionRow::decision`] tells. A lease that is granted again is noted
    /// as repeated before it is answered.
    pub taken: Vec<Verdict<Acquired>>,
    /// Whether the lease is given back, now or before; not so a lease that was
    /// repeated, where that is to be spared.
    pub ended: Vec<Verdict<bool>>,
    /// The sessions that went to whoever was next.
    pub handed: Vec<Handed>,
}

/// Sessions: one row each, which says who holds the lease.
pub trait SessionStore {
    /// Takes leases of free sessions that nobody waits for, and ends live leases,
    /// in one step. Both are sorted by session, and no session is in them twice. A
    /// session that somebody waits for goes to them in the same step.
    ///
    /// # Errors
    /// [`StoreError`]; then no lease of the batch is known to have been taken or
    /// to have ended.
    fn change(
        &mut self,
        acquires: &[&Acquire],
        releases: &[&Release],
        replica: Uuid,
    ) -> impl Future<Output = Result<Changed, StoreError>> + Send;

    /// Takes places in queues of sessions that are held. `asked` are sorted by session
    /// and hold none twice. Answers in order.
    ///
    /// # Errors
    /// [`StoreError`]; then no place of the batch is known to have been taken.
    fn enqueue(
        &mut self,
        asked: &[&Enqueue],
    ) -> impl Future<Output = Result<Vec<Verdict<Enqueued>>, StoreError>> + Send;

    /// Hands on the sessions among `asked` that are free. They are sorted and hold
    /// none twice. Answers those that went to somebody, in any order.
    ///
    /// # Errors
    /// [`StoreError`]; then no session is known to have been handed on.
    fn hand_on(
        &mut self,
        asked: &[&HandOn],
    ) -> impl Future<Output = Result<Vec<Handed>, StoreError>> + Send;

    /// Leaves the queues: gives up the places that were to end in `leases`.
    ///
    /// # Errors
    /// [`StoreError`]; then no place is known to be given up.
    fn leave(&mut self, leases: &[LeaseId]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Tells that `replica` is there: those who wait on it are not passed over.
    ///
    /// # Errors
    /// [`StoreError`].
    fn beat(&mut self, replica: Uuid) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Lets live leases run on, each for `max_hold` at most since it was granted.
    /// `asked` are sorted by session and lease and hold no pair twice. Answers the
    /// row of each, in order, which is live if it runs on; none where the lease was
    /// given back or the session passed to another.
    ///
    /// # Errors
    /// [`StoreError`]; then no lease is known to run on.
    fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> impl Future<Output = Result<Vec<Verdict<Option<SessionRow>>>, StoreError>> + Send;

    /// Reads the rows of `keys`, in order.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> impl Future<Output = Result<Vec<Option<SessionRow>>, StoreError>> + Send;
}
