//! One connection, opened again whenever it was lost.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions as _,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow},
    query::Query,
};
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::{listener::Heard, timestamp::PgTimestamp};
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

pub(super) type Statement<'q> = Query<'q, sqlx::Postgres, PgArguments>;

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

    async fn run<'q>(
        &mut self,
        statement: impl Fn() -> Statement<'q> + Send,
        mut replaceable: bool,
    ) -> Result<Vec<PgRow>, StoreError> {
        loop {
            let timeout = self.timeout;
            let run = async {
                let connection = self.connected().await?;
                statement().fetch_all(connection).await.map_err(Failure::of)
            };
            let failure = match tokio::time::timeout(timeout, run).await {
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
                    // Whatever keeps us from connecting, the store is away.
                    let error = StoreError::unavailable(format!("cannot connect: {error}"));
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
            // 0A000 and 26000: a prepared statement that a migration or a proxy
            // made void, as none is on a fresh connection.
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("08P01") => Fate::Intact,
                Some("25006" | "0A000" | "26000") => Fate::Lost,
                Some(code) if code.starts_with("08") || code.starts_with("57P") => Fate::Lost,
                _ => Fate::Intact,
            },
            _ => Fate::Lost,
        };
        Self { error: classify(error), fate }
    }
}

/// Sorts an error by its SQLSTATE:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = &error else {
        return match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. } => StoreError::fault(error),
            _ => StoreError::unavailable(error),
        };
    };
    let code = database.code().unwrap_or_default();
    let cause = format!("SQLSTATE {code}: {}", database.message());
    // A protocol violation is a bug of ours, whatever its class.
    if code == "08P01" {
        return StoreError::fault(cause);
    }
    // Raised by `whole!`; where another transaction goes first, by itself or because this
    // one was chosen to end a deadlock; and where it took the same place in a queue.
    if ["22012", "23505", "40001", "40P01"].contains(&&*code) {
        return StoreError::Overtaken;
    }
    match code.get(..2).unwrap_or_default() {
        // 08 connection, 25 a standby refuses writes, 28 authorization, 40
        // rollback, 53 out of resources, 57 operator intervention, 58 system
        // error: the store's state, not the data's.
        "08" | "25" | "28" | "40" | "53" | "57" | "58" => StoreError::unavailable(cause),
        // 55 lock not available.
        "55" => StoreError::Contended(cause.into()),
        // 22 data exception, 54 a limit of the database's own.
        "22" | "54" => StoreError::Refused(cause.into()),
        _ => StoreError::fault(cause),
    }
}
