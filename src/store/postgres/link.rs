//! One connection, opened again whenever it was lost.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions as _, Execute, Executor as _, Postgres,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow},
    query::Query,
};
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::{classify, listener::Heard, timestamp::PgTimestamp};
use crate::{
    domain::RequestId,
    store::{Clock, StoreError},
    telemetry::Seldom,
};

/// How long a failed connection is left alone; meanwhile callers are told at
/// once that the store is away.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The most that grows to while statements get no answer: each that is given up
/// may leave a backend behind that still works on it.
const MAX_PAUSE: Duration = Duration::from_secs(10);

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// One connection to PostgreSQL.
pub struct Link {
    options: PgConnectOptions,
    timeout: Duration,
    clock: Clock,
    heard: Arc<Heard>,
    /// This replica, as the others know it.
    pub(super) replica: Uuid,
    /// Leases that were drawn for turns whose batch failed, by the request.
    pub(super) drawn: HashMap<RequestId, Uuid>,
    connection: Option<PgConnection>,
    /// Until when the store counts as away, and why.
    away: Option<(Instant, StoreError)>,
    /// How long it is left alone after the next failure.
    pause: Duration,
    warnings: Seldom,
    _open: TaskTrackerToken,
}

impl Link {
    pub(super) fn new(
        options: PgConnectOptions,
        timeout: Duration,
        clock: Clock,
        heard: Arc<Heard>,
        replica: Uuid,
        open: TaskTrackerToken,
    ) -> Self {
        Self {
            options,
            timeout,
            clock,
            heard,
            replica,
            drawn: HashMap::new(),
            connection: None,
            away: None,
            pause: MIN_PAUSE,
            warnings: Seldom::default(),
            _open: open,
        }
    }

    /// The moment that a statement is told; null where the database's clock
    /// decides.
    pub(super) fn now(&self) -> Option<PgTimestamp> {
        self.clock.now().map(PgTimestamp)
    }

    /// This connection took marks away, or may have.
    pub(super) fn invalidate(&self) {
        self.heard.invalidate();
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Runs one statement and fetches its rows; without a transaction around
    /// it, its commit is part of it.
    ///
    /// A connection that turns out to be lost is replaced once, and the
    /// statement run again: statements carry attempt ids, so a first run that
    /// did commit after all is found, not repeated. A statement without an
    /// answer in time is given up together with its connection.
    pub(super) async fn fetch<'q>(
        &mut self,
        statement: impl Fn() -> Statement<'q> + Send,
    ) -> Result<Vec<PgRow>, StoreError> {
        let replaceable = self.connection.is_some();
        self.run(statement, replaceable).await
    }

    /// The same, for a statement that carries no attempt id, and would do more if it
    /// were run again: it is not.
    pub(super) async fn fetch_once<'q>(
        &mut self,
        statement: impl Fn() -> Statement<'q> + Send,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.run(statement, false).await
    }

    /// Runs statements, written one after another, that begin a transaction and roll it
    /// back.
    pub(super) async fn rehearse(&mut self, statements: &'static str) -> Result<(), StoreError> {
        let replaceable = self.connection.is_some();
        let ended = self.run(|| sqlx::raw_sql(statements), replaceable).await;
        if ended.is_err()
            && let Some(connection) = &mut self.connection
            && !matches!(timeout(self.timeout, connection.execute("ROLLBACK")).await, Ok(Ok(_)))
        {
            self.disconnect();
        }
        ended.map(drop)
    }

    async fn run<'q, S: Execute<'q, Postgres> + 'q>(
        &mut self,
        statement: impl Fn() -> S + Send,
        mut replaceable: bool,
    ) -> Result<Vec<PgRow>, StoreError> {
        loop {
            let limit = self.timeout;
            let run = async {
                let connection = self.connected().await?;
                connection.fetch_all(statement()).await.map_err(Failure::of)
            };
            let failure = match timeout(limit, run).await {
                Ok(Ok(rows)) => {
                    self.pause = MIN_PAUSE;
                    return Ok(rows);
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure {
                    error: StoreError::unavailable("no answer in time"),
                    fate: Fate::Stuck,
                },
            };
            match failure.fate {
                Fate::Away => return Err(failure.error),
                Fate::Intact => {}
                Fate::Lost if std::mem::take(&mut replaceable) => {
                    self.disconnect();
                    continue;
                }
                // Whatever state it is in, nobody uses it again.
                Fate::Lost => self.leave_alone(&failure.error),
                Fate::Stuck => {
                    self.leave_alone(&failure.error);
                    self.pause = (self.pause * 2).min(MAX_PAUSE);
                }
            }
            if self.warnings.now() {
                tracing::warn!(error = %failure.error, "statement failed");
            }
            return Err(failure.error);
        }
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, Failure> {
        if self.connection.is_none() {
            if let Some((until, error)) = &self.away
                && Instant::now() < *until
            {
                return Err(Failure { error: error.clone(), fate: Fate::Away });
            }
            match self.options.connect().await {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => {
                    // Whatever keeps us from connecting, the store is away; unless a proxy
                    // cannot be used at all.
                    let error = match classify(error) {
                        error @ StoreError::Misconfigured(_) => error,
                        error => StoreError::unavailable(format!("cannot connect: {error}")),
                    };
                    if self.warnings.now() {
                        tracing::warn!(%error, "the store is away");
                    }
                    self.leave_alone(&error);
                    return Err(Failure { error, fate: Fate::Away });
                }
            }
            self.away = None;
        }
        let missing = || Failure { error: StoreError::fault("no connection"), fate: Fate::Away };
        self.connection.as_mut().ok_or_else(missing)
    }

    /// Gives up the connection, and makes no other for a while.
    fn leave_alone(&mut self, error: &StoreError) {
        self.disconnect();
        self.away = Some((Instant::now() + self.pause, error.clone()));
    }
}

/// A statement that failed, and what that means for its connection.
struct Failure {
    error: StoreError,
    fate: Fate,
}

enum Fate {
    /// There is none; that has been logged.
    Away,
    /// It is as good as before.
    Intact,
    /// It is gone, or leads to a server that takes no writes.
    Lost,
    /// It may answer one day.
    Stuck,
}

impl Failure {
    fn of(error: sqlx::Error) -> Self {
        let fate = match &error {
            // 08 connection exception, 57P the server shuts down or starts,
            // 25006 read only: a standby, which the primary may have become.
            // 0A000, 26000 and 42P05: a prepared statement that a migration or a proxy
            // made void, as none is on a fresh connection.
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("25006" | "0A000" | "26000" | "42P05") => Fate::Lost,
                Some(code) if code.starts_with("08") || code.starts_with("57P") => Fate::Lost,
                _ => Fate::Intact,
            },
            _ => Fate::Lost,
        };
        Self { error: classify(error), fate }
    }
}
