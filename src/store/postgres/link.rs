//! One connection, opened again whenever it was lost.

use std::time::{Duration, Instant};

use sqlx::{
    ConnectOptions as _,
    postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow},
    query::Query,
};

use super::timestamp::PgTimestamp;
use crate::store::{Clock, StoreError};

/// How long a failed connection is left alone; meanwhile callers are told at
/// once that the store is away.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// One connection to PostgreSQL.
pub struct Link {
    options: PgConnectOptions,
    timeout: Duration,
    clock: Clock,
    connection: Option<PgConnection>,
    /// The last failure to connect, and when.
    failed: Option<(Instant, StoreError)>,
}

impl Link {
    pub(super) fn new(options: PgConnectOptions, timeout: Duration, clock: Clock) -> Self {
        Self { options, timeout, clock, connection: None, failed: None }
    }

    /// The moment that a statement is told; null where the database's clock
    /// decides.
    pub(super) fn now(&self) -> Option<PgTimestamp> {
        self.clock.now().map(PgTimestamp)
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
        statement: impl Fn() -> Query<'q, sqlx::Postgres, PgArguments> + Send,
    ) -> Result<Vec<PgRow>, StoreError> {
        let mut second_try = self.connection.is_some();
        loop {
            let timeout = self.timeout;
            let run = async {
                let connection = self.connected().await?;
                statement().fetch_all(connection).await.map_err(classify)
            };
            let (outcome, in_time) = match tokio::time::timeout(timeout, run).await {
                Ok(outcome) => (outcome, true),
                Err(_) => (Err(StoreError::unavailable("no answer in time")), false),
            };
            let Err(error) = outcome else { return outcome };
            if matches!(error, StoreError::Unavailable(_)) {
                // Whatever state it is in, nobody uses it again.
                self.disconnect();
                if second_try && in_time {
                    second_try = false;
                    continue;
                }
            }
            tracing::warn!(%error, "statement failed");
            return Err(error);
        }
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, StoreError> {
        if self.connection.is_none() {
            if let Some((since, error)) = &self.failed
                && since.elapsed() < RECONNECT_PAUSE
            {
                return Err(error.clone());
            }
            match self.options.connect().await {
                Ok(connection) => {
                    self.connection = Some(connection);
                    self.failed = None;
                }
                Err(error) => {
                    // Whatever keeps us from connecting, the store is away.
                    let error = StoreError::unavailable(format!("cannot connect: {error}"));
                    self.failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
        }
        self.connection.as_mut().ok_or_else(|| StoreError::fault("no connection"))
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
    match code.get(..2).unwrap_or_default() {
        // 08 connection, 25 a standby refuses writes, 28 authorization, 40
        // rollback, 53 out of resources, 55 lock not available, 57 operator
        // intervention, 58 system error: the store's state, not the data's.
        "08" | "25" | "28" | "40" | "53" | "55" | "57" | "58" => StoreError::unavailable(cause),
        // 22 data exception, 54 a limit of the database's own.
        "22" | "54" => StoreError::Refused(cause.into()),
        _ => StoreError::fault(cause),
    }
}
