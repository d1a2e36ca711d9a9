//! A channel of notifications: it is known to be heard, or it fails.
//!
//! A connection can be lost without a sign, so a listener asks for a proof now and then: a
//! round trip. PostgreSQL sends a backend's answer after the
//! notifications that had reached it (`ProcessNotifyInterrupt` comes before
//! `ReadyForQuery`,
//! <https://github.com/postgres/postgres/blob/REL_17_STABLE/src/backend/tcop/postgres.c>).

use std::{future::Future, time::Duration};

use sqlx::{
    PgExecutor, Row as _,
    postgres::{PgListener, PgNotification, PgPoolOptions},
};
use tokio::{runtime, time::timeout};
use uuid::Uuid;

use super::{classify, connect::Connector, timestamp::PgTimestamp};
use crate::{domain::Timestamp, store::StoreError, telemetry::Counted};

pub(super) const PROVE: &str = "SELECT clock_timestamp()";

pub(super) const BACKEND: &str = "SELECT pg_backend_pid()";

pub(super) const GREET: &str = "SELECT pg_notify($1, '')";

/// A connection that listens to one channel.
pub(super) struct Channel {
    /// None only while it is dropped.
    connection: Option<PgListener>,
    _counted: Counted,
}

impl Channel {
    /// Listens to the channel whose name the statement `name` returns, and makes sure that it
    /// hears; each step within `limit`. Behind a proxy that pools transactions LISTEN succeeds,
    /// nothing ever comes, and what does come would surprise the next user of the backend: so
    /// backends are compared first, and the channel that others notify is the last.
    pub(super) async fn open(
        connector: &Connector,
        purpose: &str,
        name: &'static str,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        // Both lead to the same server.
        let (mut other, options) = within(limit, connector.connect_with_options()).await?;
        let application = options.get_application_name().unwrap_or_default();
        let named = options.clone().application_name(&format!("{application} {purpose}"));
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(limit)
            .connect_lazy_with(named);
        let mut connection = within(limit, Box::pin(PgListener::connect_with(&pool))).await?;
        // A lost connection is an error; it is not replaced in silence.
        connection.eager_reconnect(false);
        let counted = Counted::one(&connector.metrics.open);
        let mut channel = Self { connection: Some(connection), _counted: counted };

        if backend(channel.listener()?, limit).await? == backend(&mut other, limit).await? {
            return Err(StoreError::unavailable("a proxy uses transaction pooling"));
        }
        let ask = sqlx::query_scalar(name).persistent(false).fetch_one(&mut other);
        let name: String = within(limit, ask).await?;
        let own = format!("oncegate_greeting_{}", Uuid::new_v4().simple());
        within(limit, Box::pin(channel.listener()?.listen(&own))).await?;
        let greet = sqlx::query(GREET).bind(&own).persistent(false).execute(&mut other);
        within(limit, greet).await?;
        let greeted = async {
            while channel.hear().await?.channel() != own {}
            Ok(())
        };
        timeout(limit, greeted).await.unwrap_or_else(|_| {
            Err(StoreError::unavailable(
                "no notification arrived; does a proxy use transaction pooling?",
            ))
        })?;
        within(limit, Box::pin(channel.listener()?.listen(&name))).await?;
        Ok(channel)
    }

    /// Proves within `limit` that the connection hears: what was notified before this
    /// began has come once it answers. Answers what the database's clock showed.
    pub(super) async fn prove(&mut self, limit: Duration) -> Result<Timestamp, StoreError> {
        let prove = sqlx::query(PROVE).persistent(false).fetch_all(self.listener()?);
        let rows = within(limit, prove).await?;
        let at = rows.first().ok_or(sqlx::Error::RowNotFound).and_then(|row| row.try_get(0));
        let PgTimestamp(at) = at.map_err(classify)?;
        Ok(at)
    }

    /// A notification that has come already.
    pub(super) fn buffered(&mut self) -> Option<PgNotification> {
        self.connection.as_mut().and_then(PgListener::next_buffered)
    }

    /// The next notification. May be dropped while it waits: none is lost.
    pub(super) async fn hear(&mut self) -> Result<PgNotification, StoreError> {
        let notified = Box::pin(self.listener()?.try_recv()).await.map_err(classify)?;
        notified.ok_or_else(|| StoreError::unavailable("the connection was lost"))
    }

    fn listener(&mut self) -> Result<&mut PgListener, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::internal("no connection"))
    }
}

impl Drop for Channel {
    /// Closes the connection at once. As it is dropped, it says goodbye in a task of
    /// its own, which would wait for a mute server for ever: so that is spawned where
    /// nothing runs.
    fn drop(&mut self) {
        let Ok(nowhere) = runtime::Builder::new_current_thread().build() else {
            return;
        };
        let within = nowhere.enter();
        drop(self.connection.take());
        drop(within);
        nowhere.shutdown_background();
    }
}

/// The process that serves a connection.
async fn backend(connection: impl PgExecutor<'_>, limit: Duration) -> Result<i32, StoreError> {
    within(limit, sqlx::query_scalar(BACKEND).persistent(false).fetch_one(connection)).await
}

async fn within<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match timeout(limit, step).await {
        Ok(done) => done.map_err(classify),
        Err(_) => Err(StoreError::unavailable("timed out waiting for the answer")),
    }
}
