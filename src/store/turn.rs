//! What is needed of a database for turns: an event and a session at once.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{
    Begin, Begun, Claim, EventRow, Finish, Lease, LeaseId, RenewTurn, SessionKey, SessionRow,
    TurnLost,
};

/// A turn that runs on: its event's claim, and its session's lease.
pub type RenewedTurn = Result<(Claim, Option<Lease>), TurnLost>;

/// What became of turns that were to begin, and of others that were to end; each in the
/// order in which they were asked.
#[derive(Debug)]
pub struct TurnBatch {
    /// What each of those that were to begin came to.
    pub begun: Vec<Verdict<Begun>>,
    /// The events' rows of those that were to end, where they are handled.
    pub kept: Vec<Verdict<Result<Option<EventRow>, TurnLost>>>,
    /// The sessions that went to the next waiter. Waiters on other replicas are notified.
    pub handed: Vec<SessionRow>,
    /// Leases that are still to be given back: of turns that have ended, and those that
    /// were taken, now or before, for turns that came to nothing.
    pub idle: Vec<(SessionKey, LeaseId)>,
    /// How many claims had lapsed before.
    pub lapsed: u64,
    /// How many events were given up, the last of their claims having ended.
    pub gave_up: u64,
}

impl TurnBatch {
    /// Nothing is decided yet, of so many.
    pub(super) fn nothing(begins: usize, finishes: usize) -> Self {
        Self {
            begun: vec![Verdict::Retry; begins],
            kept: vec![Verdict::Retry; finishes],
            handed: Vec::new(),
            idle: Vec::new(),
            lapsed: 0,
            gave_up: 0,
        }
    }

    /// Whether nothing of it is decided.
    pub(super) fn is_nothing(&self) -> bool {
        self.begun.iter().all(|begun| matches!(begun, Verdict::Retry))
            && self.kept.iter().all(|kept| matches!(kept, Verdict::Retry))
            && self.idle.is_empty()
    }
}

/// Turns: an event's row, and a session's.
pub trait TurnStore {
    /// Begins turns: claims the event, under all of its names, and takes the session, or
    /// neither. Ends turns: writes what became of the event and hands the session on, or
    /// neither. No name and no session is in either twice, nor in both. Answers in order;
    /// [`Verdict::Retry`] where another is deciding just now.
    ///
    /// # Errors
    /// [`StoreError`]; then no turn of the batch is known to have begun or ended.
    fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> impl Future<Output = Result<TurnBatch, StoreError>> + Send;

    /// Lets turns run on, claim and lease together, the lease for `max_hold` at most
    /// since it was granted. No event and no session is in `asked` twice.
    ///
    /// # Errors
    /// [`StoreError`]; then no turn is known to run on.
    fn renew_turns(
        &mut self,
        asked: &[&RenewTurn],
        max_hold: Duration,
    ) -> impl Future<Output = Result<Vec<Verdict<RenewedTurn>>, StoreError>> + Send;
}
