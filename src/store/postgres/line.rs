//! One connection to PostgreSQL, opened again whenever it was lost.

use std::time::{Duration, Instant};

use sqlx::{
    Connection as _, Execute, Executor as _, Postgres,
    postgres::{PgConnection, PgRow},
};
use tokio::time::timeout;

use super::{
    classify,
    connect::{Connector, is_too_many},
    sqlstate::error_class,
};
use crate::{
    backoff::Backoff,
    store::StoreError,
    telemetry::{Counted, ErrorClass, LogThrottle},
};

/// First pause of a failed connection; meanwhile calls fail at once with the reason.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The most that grows to while statements get no answer: each that is given up
/// may leave a backend behind that still works on it.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How long a connection may have been idle and still be used without a check: a NAT or a
/// firewall may have dropped it without a sign. None is known to forget a flow so soon, and a
/// check costs a round trip: one in two seconds at most, of a connection that had nothing to
/// do, while callers that come one after the other pay none.
const MAX_IDLE: Duration = Duration::from_secs(2);
/// How long that check may take before another connection is opened. A statement that the
/// lost one still carried may commit later: its attempt id is then found.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a statement may be run again where its first run may have committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It carries attempt ids, or changes nothing: a first run is found, not repeated.
    Safe,
    /// It may grant an id, and no id is granted twice: if an answer is lost, there are no rows, and
    /// its caller finds what it did.
    NotIfLost,
    /// It would do more. So its connection is checked before, however short it was idle.
    Never,
}

/// What a statement answered.
pub(super) struct Fetched {
    pub(super) rows: Vec<PgRow>,
    /// Whether the answer to a first run was lost, which may have been committed.
    pub(super) is_after_loss: bool,
    /// How long the answer took, without a wait for the connection.
    pub(super) took: Duration,
}

/// A connection that counts as open.
struct OpenConnection {
    to: PgConnection,
    _counted: Counted,
}

/// One connection, used by one statement at a time.
pub(super) struct Line {
    connector: Connector,
    connection: Option<OpenConnection>,
    /// Whether it was open before.
    was_open: bool,
    used: Instant,
    /// Until when the store counts as away, and why.
    away: Option<(Instant, StoreError)>,
    backoff: Backoff,
    /// Whether it could not be opened because there are too many connections.
    starved: bool,
    warnings: LogThrottle,
}

impl Line {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            connection: None,
            was_open: false,
            used: Instant::now(),
            away: None,
            backoff: Backoff::new(MIN_PAUSE, MAX_PAUSE),
            starved: false,
            warnings: LogThrottle::default(),
        }
    }

    /// Runs one statement and fetches its rows, within `limit`; without a transaction around
    /// it, its commit is part of it.
    ///
    /// A connection that turns out to be lost is replaced once, and the statement run again
    /// if that is safe: in any case, if its first run did nothing. A statement without an answer in time is given up together with its
    /// connection.
    pub(super) async fn run<'q, S: Execute<'q, Postgres> + 'q>(
        &mut self,
        limit: Duration,
        repeat: Repeat,
        statement: impl Fn() -> S + Send,
    ) -> Result<Fetched, StoreError> {
        self.check(if repeat == Repeat::Never { Duration::ZERO } else { MAX_IDLE }).await;
        let mut replaceable = self.connection.is_some();
        // Whether a run of the statement may have been committed without an answer.
        let mut is_unknown = false;
        loop {
            let mut is_sent = false;
            let run = async {
                // Away while it is used: one whose statement was not carried through, as by
                // a panic, is not used again.
                let mut connection = self.connected().await?;
                is_sent = true;
                let sent = Instant::now();
                let ended = connection.to.fetch_all(statement()).await;
                let took = sent.elapsed();
                self.connection = Some(connection);
                ended.map(|rows| (rows, took)).map_err(|error| {
                    self.connector.metrics.failed(error_class(&error));
                    Failure::of(error)
                })
            };
            let failure = match timeout(limit, run).await {
                Ok(Ok((rows, took))) => {
                    self.backoff.reset();
                    self.used = Instant::now();
                    return Ok(Fetched { rows, is_after_loss: is_unknown, took });
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    self.connector.metrics.failed(ErrorClass::Timeout);
                    Failure {
                        error: StoreError::unavailable("timed out waiting for the answer"),
                        state: ConnectionState::Stuck,
                        is_answer: false,
                    }
                }
            };
            is_unknown |= is_sent && !failure.is_answer;
            match failure.state {
                ConnectionState::Away => return Err(failure.outcome(is_unknown)),
                ConnectionState::Intact => {}
                ConnectionState::Lost
                    if (repeat != Repeat::Never || !is_unknown)
                        && std::mem::take(&mut replaceable) =>
                {
                    self.disconnect();
                    if is_unknown && repeat == Repeat::NotIfLost {
                        let (rows, took) = Default::default();
                        return Ok(Fetched { rows, is_after_loss: true, took });
                    }
                    continue;
                }
                // Whatever state it is in, nobody uses it again.
                ConnectionState::Lost => self.back_off(&failure.error),
                ConnectionState::Stuck => {
                    self.back_off(&failure.error);
                    self.backoff.grow();
                }
            }
            if self.warnings.now() {
                tracing::warn!(error = %failure.error, "statement failed");
            }
            return Err(failure.outcome(is_unknown));
        }
    }

    /// Runs statements, written one after another, that begin a transaction and roll it
    /// back.
    pub(super) async fn rehearse(
        &mut self,
        limit: Duration,
        statements: &'static str,
    ) -> Result<(), StoreError> {
        let ended = self.run(limit, Repeat::Safe, || sqlx::raw_sql(statements)).await;
        // Away meanwhile, as in `run`: if this is cancelled, nobody uses a connection whose
        // transaction may be open.
        if ended.is_err()
            && let Some(mut connection) = self.connection.take()
            && matches!(timeout(limit, connection.to.execute("ROLLBACK")).await, Ok(Ok(_)))
        {
            self.connection = Some(connection);
        }
        ended.map(drop)
    }

    /// Opens the connection, if it is not open yet.
    pub(super) async fn open(&mut self, limit: Duration) -> Result<(), StoreError> {
        match timeout(limit, self.connected()).await {
            Ok(Ok(connection)) => {
                self.connection = Some(connection);
                Ok(())
            }
            Ok(Err(failure)) => Err(failure.error),
            Err(_) => Err(StoreError::unavailable("timed out while connecting")),
        }
    }

    /// Whether the last try to open it failed because there are too many connections.
    pub(super) const fn is_starved(&self) -> bool {
        self.starved
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Gives up a connection that was idle for longer than `idle`, unless it answers.
    async fn check(&mut self, idle: Duration) {
        if self.used.elapsed() < idle {
            return;
        }
        if let Some(connection) = &mut self.connection
            && !matches!(timeout(CHECK_TIMEOUT, connection.to.ping()).await, Ok(Ok(())))
        {
            tracing::debug!("idle connection lost; reconnecting");
            self.disconnect();
        }
    }

    /// Takes the connection, which is opened if there is none.
    async fn connected(&mut self) -> Result<OpenConnection, Failure> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        if let Some((until, error)) = &self.away
            && Instant::now() < *until
        {
            return Err(Failure::away(error.clone()));
        }
        match self.connector.connect().await {
            Ok(to) => {
                (self.away, self.starved) = (None, false);
                let metrics = &self.connector.metrics;
                if std::mem::replace(&mut self.was_open, true) {
                    metrics.reconnects.inc();
                }
                Ok(OpenConnection { to, _counted: Counted::one(&metrics.open) })
            }
            Err(error) => {
                self.starved = is_too_many(&error);
                // Whatever keeps us from connecting, the store is away; unless a proxy
                // cannot be used at all.
                let error = match classify(error) {
                    error @ StoreError::Misconfigured(_) => error,
                    error => StoreError::unavailable(format!("cannot connect: {error}")),
                };
                if self.warnings.now() {
                    tracing::warn!(%error, "store unavailable; retrying with back-off");
                }
                self.back_off(&error);
                Err(Failure::away(error))
            }
        }
    }

    /// Gives up the connection, and makes no other for a while.
    fn back_off(&mut self, error: &StoreError) {
        self.disconnect();
        self.away = Some((Instant::now() + self.backoff.pause(), error.clone()));
    }
}

/// A statement that failed, and what that means for its connection.
struct Failure {
    error: StoreError,
    state: ConnectionState,
    /// Whether it is the database's answer to the statement, which was rolled back then.
    is_answer: bool,
}

enum ConnectionState {
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
    fn away(error: StoreError) -> Self {
        Self { error, state: ConnectionState::Away, is_answer: false }
    }

    /// The error, if a run of the statement may have been committed without an answer.
    fn outcome(self, is_unknown: bool) -> StoreError {
        if is_unknown { self.error.after_change() } else { self.error }
    }

    fn of(error: sqlx::Error) -> Self {
        let state = match &error {
            // 08 connection exception, 57P the server shuts down or starts,
            // 25006 read only: a standby, which the primary may have become.
            // 25001 and 25P02: in a transaction that is still open, or has failed; no
            // statement leaves one behind.
            // 0A000, 26000 and 42P05: a prepared statement that a migration or a proxy
            // made void, as none is on a fresh connection.
            sqlx::Error::Database(database) => match database.code().as_deref() {
                Some("25001" | "25006" | "25P02" | "0A000" | "26000" | "42P05") => {
                    ConnectionState::Lost
                }
                Some(code) if code.starts_with("08") || code.starts_with("57P") => {
                    ConnectionState::Lost
                }
                _ => ConnectionState::Intact,
            },
            _ => ConnectionState::Lost,
        };
        Self { is_answer: is_answer(&error), error: classify(error), state }
    }
}

/// Whether `error` is the database's answer to a statement. What a backend or a proxy says as
/// it closes the connection (08, 57P) is none: the statement may have been committed before.
/// 40003 is `statement_completion_unknown`.
fn is_answer(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => !database.code().is_some_and(|code| {
            code.starts_with("08") || code.starts_with("57P") || code == "40003"
        }),
        _ => false,
    }
}
