//! A user of a connection: it runs one kind of statement over it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use sqlx::{
    Postgres,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::sync::Mutex;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::{
    line::{Fetched, Line, Repeat},
    namespace::Locks,
    notifications::CacheValidity,
    records::Awaited,
    timestamp::PgTimestamp,
};
use crate::{
    rules::Ids,
    store::{Clock, StoreError},
};

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// The connections that could not be opened because there are too many.
#[derive(Default)]
pub(super) struct Starved(std::sync::Mutex<Vec<Weak<Mutex<Line>>>>);

impl Starved {
    fn add(&self, line: &Arc<Mutex<Line>>) {
        let mut lines = self.lines();
        if !lines.iter().any(|other| other.as_ptr() == Arc::as_ptr(line)) {
            lines.push(Arc::downgrade(line));
        }
    }

    fn remove(&self, line: &Arc<Mutex<Line>>) {
        self.lines().retain(|other| other.as_ptr() != Arc::as_ptr(line));
    }

    /// Those that are still used.
    fn all(&self) -> Vec<Arc<Mutex<Line>>> {
        let mut lines = self.lines();
        lines.retain(|line| line.strong_count() > 0);
        lines.iter().filter_map(Weak::upgrade).collect()
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Mutex<Line>>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// One user of a connection to PostgreSQL.
pub struct Handle {
    /// Fair: who waits has it in the order in which they came.
    line: Arc<Mutex<Line>>,
    timeout: Duration,
    clock: Clock,
    heard: Arc<CacheValidity>,
    starved: Arc<Starved>,
    pub(super) locks: Locks,
    /// This replica, as the others know it.
    pub(super) replica: Uuid,
    pub(super) ids: Ids,
    pub(super) awaited: Awaited,
    _open: TaskTrackerToken,
}

impl Handle {
    /// A user of `line`, one of the connections of `store`.
    pub(super) fn new(store: &super::Postgres, line: Arc<Mutex<Line>>, timeout: Duration) -> Self {
        Self {
            line,
            timeout,
            clock: store.clock.clone(),
            heard: Arc::clone(&store.heard),
            starved: Arc::clone(&store.starved),
            locks: store.locks.get().copied().unwrap_or_default(),
            replica: store.replica,
            ids: Ids::Random,
            awaited: Awaited::default(),
            _open: store.links.token(),
        }
    }

    /// The time that a statement is given; null where the database's clock decides.
    pub(super) fn now(&self) -> Option<PgTimestamp> {
        self.clock.now().map(PgTimestamp)
    }

    /// This connection took marks away, or may have.
    pub(super) fn invalidate(&self) {
        self.heard.invalidate();
    }

    /// Runs one statement and fetches its rows; without a transaction around
    /// it, its commit is part of it.
    ///
    /// A connection that turns out to be lost is replaced once, and the statement run again: a
    /// first run that did commit after all changes nothing twice.
    pub(super) async fn fetch<'q>(
        &self,
        statement: impl Fn() -> Statement<'q> + Send,
    ) -> Result<Vec<PgRow>, StoreError> {
        Ok(self.run(Repeat::Safe, statement).await?.rows)
    }

    /// Runs statements, written one after another, that begin a transaction and roll it
    /// back. Fails as well while another user's connection cannot be opened because there
    /// are too many.
    pub(super) async fn rehearse(&self, statements: &'static str) -> Result<(), StoreError> {
        self.line.lock().await.rehearse(self.timeout, statements).await?;
        for line in self.starved.all() {
            // One that is busy is connected, or tries to be: the next look finds out which.
            if let Ok(mut idle) = line.try_lock() {
                idle.open(self.timeout).await?;
                self.starved.remove(&line);
            }
        }
        Ok(())
    }

    /// The same; and again after a lost connection only if that is safe.
    pub(super) async fn run<'q>(
        &self,
        repeat: Repeat,
        statement: impl Fn() -> Statement<'q> + Send,
    ) -> Result<Fetched, StoreError> {
        let mut line = self.line.lock().await;
        let fetched = line.run(self.timeout, repeat, statement).await;
        if fetched.is_err() && line.is_starved() {
            self.starved.add(&self.line);
        }
        fetched
    }
}
