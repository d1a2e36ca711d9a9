//! What turns need of a database: an event and a session at once.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{
    Begin, Begun, Claim, EventRow, Finish, Lease, LeaseId, RenewTurn, SessionKey, SessionRow,
    TurnLost,
};

/// A turn that runs on: its event's claim, and its session's lease.
pub type RenewedTurn = Result<(Claim, Option<Lease>), TurnLost>;

/// The outcomes of a batch of turns that begin, and of others that end.
#[derive(Debug)]
pub struct TurnBatch {
    /// The outcome of each begin, in the order of the requests.
    pub begins: Vec<Verdict<Begun>>,
    /// The outcome of each finish, in the order of the requests: the event's row, if it is
    /// handled.
    pub finishes: Vec<Verdict<Result<Option<EventRow>, TurnLost>>>,
    /// The sessions that went to the next waiter. Waiters on other replicas are notified.
    pub handovers: Vec<SessionRow>,
    /// Leases without a turn, which the caller must give back: they were taken, now or before, for
    /// turns that did not begin.
    pub orphans: Vec<(SessionKey, LeaseId)>,
    /// How many claims of earlier turns had lapsed.
    pub lapsed: u64,
    /// How many events were given up, because their attempts were spent.
    pub gave_up: u64,
}

impl TurnBatch {
    /// A batch of this size, in which nothing is decided.
    pub(super) fn open(begins: usize, finishes: usize) -> Self {
        Self {
            begins: vec![Verdict::Retry; begins],
            finishes: vec![Verdict::Retry; finishes],
            handovers: Vec::new(),
            orphans: Vec::new(),
            lapsed: 0,
            gave_up: 0,
        }
    }

    /// Whether nothing of it is decided.
    pub(super) fn is_open(&self) -> bool {
        self.begins.iter().all(|begin| matches!(begin, Verdict::Retry))
            && self.finishes.iter().all(|finish| matches!(finish, Verdict::Retry))
            && self.orphans.is_empty()
    }
}

/// Turns: an event's row, and a session's.
pub trait TurnStore {
    /// Begins turns: claims the event, under all of its names, and takes the session, or
    /// neither. Ends turns: writes what became of the event and hands the session on, or
    /// neither. No name and no session is in either twice, nor in both. Answers in order;
    /// [`Verdict::Retry`] if another writer changed what the decision rests on.
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
