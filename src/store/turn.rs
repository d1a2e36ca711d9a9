//! What is needed of a database for turns: an event and a session at once.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{
    Begin, Begun, Claim, EventRow, Finish, Kept, Lease, LeaseId, Prolong, SessionKey, SessionRow,
};

/// A turn that runs on: its event's claim, and its session's lease.
pub type Prolonged = Kept<(Claim, Option<Lease>)>;

/// What became of turns that were to end.
#[derive(Debug)]
pub struct Finished {
    /// The event's row, where it is handled; in order.
    pub kept: Vec<Verdict<Kept<Option<EventRow>>>>,
    /// The sessions that went to whoever was next. Those who wait on other replicas
    /// are notified.
    pub handed: Vec<SessionRow>,
    /// Leases that are still to be given back.
    pub idle: Vec<(SessionKey, LeaseId)>,
}

/// What became of turns that were to begin.
#[derive(Debug, Default)]
pub struct Begins {
    /// What each came to, in order.
    pub begun: Vec<Verdict<Begun>>,
    /// Leases that were taken, now or before, for turns that came to nothing: to be given
    /// back.
    pub idle: Vec<(SessionKey, LeaseId)>,
    /// How many claims had lapsed before.
    pub lapsed: u64,
    /// How many events were given up, the last of their claims having ended.
    pub gave_up: u64,
}

/// Turns: an event's row, and a session's.
pub trait TurnStore {
    /// Begins turns: claims the event, under all of its names, and takes the session, or
    /// neither. No name and no session is in `asked` twice. Answers in order; [`Verdict::Again`] where another
    /// is deciding just now.
    ///
    /// # Errors
    /// [`StoreError`]; then no turn of the batch is known to have begun.
    fn begin_turns(
        &mut self,
        asked: &[&Begin],
    ) -> impl Future<Output = Result<Begins, StoreError>> + Send;

    /// Lets turns run on, claim and lease together, the lease for `max_hold` at most
    /// since it was granted. No event and no session is in `asked` twice.
    ///
    /// # Errors
    /// [`StoreError`]; then no turn is known to run on.
    fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> impl Future<Output = Result<Vec<Verdict<Prolonged>>, StoreError>> + Send;

    /// Ends turns: writes what became of the event and hands the session on, or neither.
    /// No event and no session is in `asked` twice.
    ///
    /// # Errors
    /// [`StoreError`]; then no turn of the batch is known to have ended.
    fn finish_turns(
        &mut self,
        asked: &[&Finish],
    ) -> impl Future<Output = Result<Finished, StoreError>> + Send;
}
