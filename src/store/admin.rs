//! What the operator API needs of a database.

use std::{future::Future, time::Duration};

use super::{StoreError, Verdict};
use crate::domain::{EventKey, EventRow, SessionKey, SessionRow, TeamFilter, Timestamp};

/// Which part of a list to read.
#[derive(Debug, Clone)]
pub struct Page {
    /// Of this team only.
    pub team: TeamFilter,
    /// What comes after this team and id. They are never empty, so that all comes after
    /// empty ones.
    pub after: (String, String),
    /// The most of it.
    pub limit: u32,
}

/// Which events to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventFilter {
    /// Those that stand so; all where it does not say.
    pub standing: Option<EventStatus>,
    /// Those marked, claimed or finished less than so long ago.
    pub newer_than: Option<Duration>,
    /// Those marked, claimed or finished at least so long ago.
    pub older_than: Option<Duration>,
}

/// How an event on record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStatus {
    /// A run has claimed it.
    Claimed,
    /// Runs had claimed it, and the next may.
    Free,
    /// It is handled, or was rejected or given up.
    Processed,
    /// It is handled, by a turn.
    Succeeded,
    /// Its handler rejected it.
    Rejected,
    /// It was given up.
    GaveUp,
}

impl EventStatus {
    /// As the statements spell it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Free => "free",
            Self::Processed => "processed",
            Self::Succeeded => "succeeded",
            Self::Rejected => "rejected",
            Self::GaveUp => "gave_up",
        }
    }
}

/// Events, as they stood at one moment.
#[derive(Debug, Clone)]
pub struct Events {
    /// The moment.
    pub at: Timestamp,
    /// The events; a claim that has lapsed by then, or ended, counts its attempts.
    pub rows: Vec<(EventKey, EventRow)>,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that have not expired.
    pub events: u64,
    /// Events that have.
    pub expired_events: u64,
    /// Sessions.
    pub sessions: u64,
    /// Sessions whose lease runs.
    pub held_sessions: u64,
    /// Callers that wait for a session, on all replicas.
    pub waiters: u64,
}

/// What the operator API reads, one item at a time.
pub trait AdminStore {
    /// Reads sessions in the order of team and id, byte by byte: those that are held, or
    /// those that are not, or all.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> impl Future<Output = Result<Vec<(SessionKey, SessionRow)>, StoreError>> + Send;

    /// Reads events that have not expired in the order of team and id, byte by byte.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written.
    fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> impl Future<Output = Result<Events, StoreError>> + Send;

    /// Counts the records of one team, or of all.
    ///
    /// # Errors
    /// [`StoreError`].
    fn count(
        &mut self,
        team: Option<&str>,
    ) -> impl Future<Output = Result<Counts, StoreError>> + Send;
}

/// What the operator API changes, one item at a time.
pub trait AdminChanges {
    /// Binds a session to `epic`, or to nothing, whatever it is bound to; makes the
    /// session where there is none.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known to be bound.
    fn bind_epic(
        &mut self,
        key: &SessionKey,
        epic: Option<&str>,
    ) -> impl Future<Output = Result<Verdict<()>, StoreError>> + Send;

    /// Ends a session's lease, and raises its fence. Answers whether there was one.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known to have ended.
    fn force_release(
        &mut self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Verdict<bool>, StoreError>> + Send;

    /// Forgets a session, held or not. A session with waiters is freed for them instead: unbound,
    /// and with a higher fence. Returns whether there was a session.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known to be gone.
    fn close_session(
        &mut self,
        key: &SessionKey,
    ) -> impl Future<Output = Result<Verdict<bool>, StoreError>> + Send;

    /// Forgets an event. Answers its row, if it had not expired.
    ///
    /// # Errors
    /// [`StoreError`]; then it is not known to be gone.
    fn forget_event(
        &mut self,
        key: &EventKey,
    ) -> impl Future<Output = Result<Verdict<Option<EventRow>>, StoreError>> + Send;
}
