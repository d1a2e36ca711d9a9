//! What oncegate needs of a database, and nothing of any one database.
//!
//! A store hands out *connections*, each for one kind of work: several may share one
//! underneath, which runs one statement at a time. A method whose future is dropped leaves
//! no transaction open. A method takes a batch, and decides and writes each operation of it in one
//! atomic step. The row decides: a statement is safe to run again with the same attempt ids, so a
//! connection repeats one whose outcome was lost.
//!
//! Architecture Invariant: `sqlx` is used below this module and nowhere else.

use std::{
    future::{Future, ready},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;

use crate::domain::{
    EventKey, EventRow, LeaseId, Mark, RequestId, SessionKey, TeamFilter, Timestamp, TurnResult,
};

mod admin;
mod clock;
pub mod doctor;
mod durability;
mod error;
mod fence;
mod figures;
pub mod memory;
pub mod postgres;
mod records;
mod schema;
mod session;
pub mod sqlite;
mod turn;

pub use admin::{AdminChanges, AdminStore, Counts, EventFilter, EventStatus, Events, Page};
pub use clock::{Clock, ManualClock};
pub use durability::{Durability, StoreInfo};
pub use error::StoreError;
pub use fence::{Fence, FenceStore};
pub use figures::Figures;
pub use records::{Applied, Decided, Records};
pub use session::{SessionAnswer, SessionBatch, SessionOp, SessionStore};
pub use turn::{RenewedTurn, TurnBatch, TurnStore};

/// What became of one item of a batch.
#[derive(Debug, Clone)]
pub enum Verdict<T> {
    /// Decided and committed.
    Decided(T),
    /// Conflict: a concurrent writer changed what the decision rests on. Nothing was written;
    /// retry.
    Retry,
    /// Its statement failed, while others of its batch were decided.
    Failed(StoreError),
}

impl<T> Verdict<T> {
    /// The verdict with another value.
    pub fn map<U>(self, value: impl FnOnce(T) -> U) -> Verdict<U> {
        match self {
            Self::Decided(decided) => Verdict::Decided(value(decided)),
            Self::Retry => Verdict::Retry,
            Self::Failed(error) => Verdict::Failed(error),
        }
    }
}

/// How long a replica counts as there since it last reported: longer than a statement that just
/// does not fail, and the report before it.
const PRESENCE: Duration = Duration::from_secs(8);

/// Which rows a sweep takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Those that have expired.
    Expired,
    /// Those marked, claimed, finished or left idle at least this long ago, but for
    /// claims and leases that run.
    AtLeast(Duration),
}

impl Age {
    /// How long ago, in microseconds.
    fn as_micros(self) -> i64 {
        match self {
            Self::Expired => 0,
            Self::AtLeast(age) => i64::try_from(age.as_micros()).unwrap_or(i64::MAX),
        }
    }
}

/// What a sweep deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Events.
    Events,
    /// Idle, unbound sessions.
    Sessions,
}

impl Kind {
    /// As metrics label it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Events => "event",
            Self::Sessions => "session",
        }
    }
}

/// Which rows are to be deleted, and how.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Of this team only.
    pub team: TeamFilter,
    /// Which rows.
    pub age: Age,
    /// Count, delete nothing.
    pub dry_run: bool,
    /// Only if no other replica sweeps at this moment.
    pub elected: bool,
}

/// Asks to delete one bounded batch of rows.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Of this kind.
    pub kind: Kind,
    /// Of these.
    pub scope: Scope,
    /// The most rows to delete.
    pub limit: u32,
}

impl Sweep {
    /// Whether it may delete marks that have not expired.
    #[must_use]
    pub const fn takes_live_marks(&self) -> bool {
        matches!((self.kind, self.scope.age), (Kind::Events, Age::AtLeast(_)))
            && !self.scope.dry_run
    }

    /// What became of it where `rows` were found: there may be more if they are as many as asked for.
    const fn done(&self, rows: u64, busy: bool) -> Swept {
        Swept { rows, more: rows >= self.limit as u64, busy, elected: true }
    }
}

/// What became of a [`Sweep`].
#[derive(Debug, Clone, Copy)]
pub struct Swept {
    /// How many rows were deleted; or were found, where none were to be.
    pub rows: u64,
    /// Whether there may be more to do.
    pub more: bool,
    /// Whether others had work for the store at that moment, on any replica.
    pub busy: bool,
    /// Whether it was done: not while another replica sweeps, if it was only to be done then.
    pub elected: bool,
}

/// Says whether a mark that was read earlier still counts.
pub trait Invalidations: Send + Sync + 'static {
    /// Rises when marks that have not expired were deleted, on this replica or another. Nothing
    /// that was asked for before counts from then on.
    fn epoch(&self) -> u64;

    /// The latest time that the store's clock can show by now. None while a deletion of marks
    /// could be missed: then nothing that was read before counts.
    fn now(&self) -> Option<Timestamp>;
}

/// What another replica notifies. Each may be lost; what they are about, the rows decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// A lease was handed to a caller that waits.
    Handed(LeaseId),
    /// A newer call has taken over the place that was to end in this lease.
    TakenOver(LeaseId),
    /// An operator ended a lease, or a queue has changed, of a session with this lock key.
    Session(i64),
    /// The event was forgotten that the turn of this request had claimed.
    Forgotten(RequestId),
    /// Hints may have been lost.
    Any,
}

/// Asks for an event's row.
#[derive(Debug, Clone)]
pub struct Look {
    /// The event.
    pub key: EventKey,
    /// Whether to read what its turn left as well, which may be long.
    pub with_result: bool,
}

/// An event's live row, and what its turn left if that was asked for.
pub type Looked = (EventRow, Option<TurnResult>);

/// Events: one row each, until they expire.
pub trait EventStore {
    /// Marks events, each under all of its names or none. `marks` are sorted by key and
    /// hold no name twice. Answers a live row of each, in order: this attempt's, if it
    /// has one; [`Verdict::Retry`] if another writer changed the row meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; then no mark of the batch is known to have been made.
    fn mark(
        &mut self,
        marks: &[&Mark],
    ) -> impl Future<Output = Result<Vec<Verdict<EventRow>>, StoreError>> + Send;

    /// Reads the live rows of the events in `asked`, in order.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn look_events(
        &mut self,
        asked: &[&Look],
    ) -> impl Future<Output = Result<Vec<Option<Looked>>, StoreError>> + Send;
}

/// What the service does for the store, rather than for a caller.
pub trait Upkeep {
    /// Deletes one bounded batch.
    ///
    /// # Errors
    /// [`StoreError`]; then no row is known to be gone.
    fn sweep(&mut self, sweep: &Sweep) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// Reports that this replica is there: callers that wait on it are not passed over.
    /// Answers the places of theirs.
    ///
    /// # Errors
    /// [`StoreError`].
    fn heartbeat(
        &mut self,
    ) -> impl Future<Output = Result<Vec<(SessionKey, LeaseId)>, StoreError>> + Send;

    /// Counts the leases that run now, over all replicas.
    ///
    /// # Errors
    /// [`StoreError`].
    fn count_leases(&mut self) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Reads the state of the store for metrics; how long the oldest event has been due only if
    /// `with_lag`. By default nothing is known.
    fn figures(&mut self, with_lag: bool) -> impl Future<Output = Figures> + Send {
        let _ = with_lag;
        ready(Figures::default())
    }

    /// Checks that the store accepts writes.
    ///
    /// # Errors
    /// [`StoreError`], when it does not.
    fn ping(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// One connection to a store: opened when it is first used, and again when it
/// was lost.
pub trait Connection:
    EventStore + SessionStore + TurnStore + AdminStore + AdminChanges + Upkeep + Reset + Send + 'static
{
}

/// State that a batch may leave inconsistent when it panics.
pub trait Reset {
    /// Forgets that state.
    fn reset(&mut self);
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Marking events.
    Marks,
    /// Taking and giving back leases.
    Leases,
    /// Beginning and ending turns.
    Turns,
    /// Everything else that finds its rows by the key, and is over soon.
    Short,
    /// Scanning whole tables, which may take its time.
    Scans,
}

/// A store that the service can be built on.
pub trait Store {
    /// What it hands out.
    type Connection: Connection;

    /// Another connection, not opened yet; or a share of one that others use as well.
    fn connection(&self, work: Work) -> Self::Connection;

    /// Reports when marks are deleted, until it is dropped. What this replica deletes is reported
    /// before the deletion is answered.
    fn invalidations(&self) -> Arc<dyn Invalidations>;

    /// What other replicas notify, until it is dropped.
    fn hints(&self) -> mpsc::Receiver<Hint>;

    /// How many connections are worth having for one kind of writing, at most.
    fn writers(&self, wanted: usize) -> usize;

    /// Waits until every connection that was handed out is gone: what was
    /// queued has been written, and the next process may have the database.
    fn closed(&self) -> impl Future<Output = ()> + Send + 'static;
}
