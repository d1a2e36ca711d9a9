//! What is needed of a database for sessions: who holds them, and who waits.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{Acquire, Acquired, LeaseId, SessionKey, SessionRow, StreamId, Ttl};

/// How long a place in a queue is kept for the next call with the same request, once its replica
/// has left.
pub const PLACE_KEPT: Duration = Duration::from_secs(10);

/// Asks to let a lease run on.
#[derive(Debug, Clone)]
pub struct Renew {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// How long it runs from now.
    pub ttl: Ttl,
    /// The stream that keeps the lease; none where its holder carries it on by a call
    /// that returns.
    pub stream: Option<StreamId>,
}

/// What became of a [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// The lease runs on, or has ended without being given back: as its row tells.
    Found(SessionRow),
    /// It was given back, or the session passed to another.
    Gone,
    /// Another stream has taken the lease over: nothing is changed.
    Resumed,
}

/// Gives a lease back.
#[derive(Debug, Clone)]
pub struct Release {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// End it only if no other call than this stream has carried it on; none: always.
    pub unless_resumed: Option<StreamId>,
}

/// Takes a place in a session's queue.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// What is wanted.
    pub acquire: Acquire,
    /// The lease that is to be given.
    pub lease: LeaseId,
    /// Take the place that an earlier call with the same request has or had on a replica, rather
    /// than one at the end.
    pub takes_over: bool,
}

/// What became of an [`Enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The caller has a place: whoever has a lower ticket is before it.
    Waits(i64),
    /// It has the place of an earlier call with the same request, which was to be given this
    /// lease.
    TookOver(i64, LeaseId),
    /// A newer call with the same request has its place.
    Replaced,
    /// The lease has come since, of a place that an earlier run took.
    Given,
    /// The session is there for the taking.
    Free,
    /// Too many wait already.
    Full,
}

/// What became of leases that were asked for, and of others that were given
/// back; each in the order in which they were asked.
#[derive(Debug)]
pub struct Changed {
    /// The session's row as it stands after the decision; what it means to the
    /// asker [`SessionRow::decision`] tells. A lease that is granted again is noted
    /// as resumed before it is answered.
    pub taken: Vec<Verdict<Acquired>>,
    /// Whether the lease is given back, now or before; not so a lease that was
    /// resumed, where that is to be spared.
    pub ended: Vec<Verdict<bool>>,
    /// The sessions that went to whoever was next. Those who wait on other replicas
    /// are notified.
    pub handed: Vec<SessionRow>,
}

impl Changed {
    /// Whether nothing is decided.
    pub(super) fn is_nothing(&self) -> bool {
        self.taken.iter().all(|taken| matches!(taken, Verdict::Again))
            && self.ended.iter().all(|ended| *ended == Verdict::Again)
    }
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

    /// Hands on the sessions among `keys` that are free, to whoever is next on a replica
    /// that is there; other replicas are notified. They are sorted and hold none twice.
    /// Answers each one's row as it stands then, in order.
    ///
    /// # Errors
    /// [`StoreError`]; then no session is known to have been handed on.
    fn hand_on(
        &mut self,
        keys: &[&SessionKey],
    ) -> impl Future<Output = Result<Vec<Verdict<Option<SessionRow>>>, StoreError>> + Send;

    /// Gives up the places that were to end in these leases. Answers whether each was
    /// there: if not, the lease may have been given.
    ///
    /// # Errors
    /// [`StoreError`]; then no place is known to be given up.
    fn leave(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;

    /// Leaves the places that were to end in these leases behind, as the server shuts down: for
    /// [`PLACE_KEPT`] the next call with the same request takes each up again, and meanwhile it
    /// is passed over. Answers whether each was there, as [`SessionStore::leave`] does.
    ///
    /// # Errors
    /// [`StoreError`]; then no place is known to be kept.
    fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;

    /// Tells that this replica is there: those who wait on it are not passed over.
    /// Answers the places of theirs.
    ///
    /// # Errors
    /// [`StoreError`].
    fn beat(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(SessionKey, LeaseId)>, StoreError>> + Send;

    /// Lets live leases run on, each for `max_hold` at most since it was granted.
    /// `asked` are sorted by session and lease and hold no pair twice. Answers in order.
    ///
    /// # Errors
    /// [`StoreError`]; then no lease is known to run on.
    fn renew(
        &mut self,
        asked: &[&Renew],
        max_hold: Duration,
    ) -> impl Future<Output = Result<Vec<Verdict<Renewed>>, StoreError>> + Send;

    /// Reads the rows of `keys`, in order.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn look_sessions(
        &mut self,
        keys: &[&SessionKey],
    ) -> impl Future<Output = Result<Vec<Option<SessionRow>>, StoreError>> + Send;
}
