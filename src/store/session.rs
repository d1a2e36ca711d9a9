//! What is needed of a database for sessions: who holds them, and who waits.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{
    Acquire, Acquired, Enqueue, Enqueued, LeaseId, Release, Renew, Renewed, SessionKey, SessionRow,
};

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
    /// [`PLACE_KEPT`](crate::rules::queue::PLACE_KEPT) the next call with the same request takes each up again, and meanwhile it
    /// is passed over. Answers whether each was there, as [`SessionStore::leave`] does.
    ///
    /// # Errors
    /// [`StoreError`]; then no place is known to be kept.
    fn keep_places(
        &mut self,
        places: &[(&SessionKey, LeaseId)],
    ) -> impl Future<Output = Result<Vec<bool>, StoreError>> + Send;

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
