//! Opens connections: where, as whom, and how is read again for each of them.
//!
//! A password or a URL in a file may change at any time, so nothing that it says is kept. Of
//! several hosts the one that was good last is tried first, and one that takes no writes is
//! passed over.

use std::{
    io,
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Row as _,
    error::DatabaseError,
    postgres::{PgConnectOptions, PgConnection},
};
use tokio::time::{sleep, timeout};

use super::sqlstate::error_class;
use crate::{
    store::StoreError,
    telemetry::{Counted, StoreConnectionMetrics},
};

mod options;
mod parameters;
mod source;
#[cfg(test)]
mod tests;
mod tls;
mod url;

use options::canonical;
pub(super) use source::MAX_SCHEMA_BYTES;
use source::Problem;
pub use source::{Origin, Source};
pub(super) use tls::is_off_host;
use tls::{Security, Warnings, is_about_tls};
use url::{Host, Session, Target};

/// What a new connection leads to, where that matters.
pub(super) const GREETING: &str = "
SELECT pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only')::boolean AS read_only,
    current_schema()::text AS schema
";

/// How a backend finds out that a replica has gone without a word. Its probes also keep the path
/// of an idle connection open in a NAT. PostgreSQL ignores them on Unix sockets.
const KEEPALIVE: [(&str, &str); 3] = [
    ("tcp_keepalives_idle", "60"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "6"),
];

/// How long a file may take to be written that was found empty or incomplete.
const WRITING: Duration = Duration::from_millis(100);

/// How often, and how soon, it is tried again where there are too many connections: one
/// that was closed counts until its backend has ended.
const MAX_VACANCY_TRIES: u32 = 5;
const VACANCY_PAUSE: Duration = Duration::from_millis(50);

/// Opens connections to one database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    source: Arc<Source>,
    /// What each connection is set to.
    settings: Vec<(&'static str, String)>,
    /// How long connecting may take, over all hosts.
    limit: Duration,
    /// The place of the host that was good last.
    good: Arc<AtomicUsize>,
    warnings: Warnings,
    pub(super) metrics: StoreConnectionMetrics,
}

/// Machine code for a statement takes 100 ms to make, and none here runs for so long
/// that it would be worth it: but the planner goes by costs that it only guesses.
fn no_jit() -> (&'static str, String) {
    ("jit", "off".to_owned())
}

impl Connector {
    /// A way to a database. Nothing is opened.
    pub(super) fn new(
        source: Source,
        limit: Duration,
        metrics: StoreConnectionMetrics,
    ) -> Result<Self, StoreError> {
        source.check().map_err(StoreError::internal)?;
        let keepalive = KEEPALIVE.map(|(name, value)| (name, value.to_owned()));
        let (settings, good) = (keepalive.to_vec(), Arc::new(AtomicUsize::new(0)));
        let warnings = Warnings::default();
        Ok(Self { source: Arc::new(source), settings, limit, good, warnings, metrics })
    }

    /// The same, for connections with further settings.
    fn with(&self, settings: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let mut connector = self.clone();
        connector.settings.extend(settings);
        connector
    }

    /// How a connection is opened for statements that find their rows by the key. Settings that
    /// a proxy does not pass on are lost without harm to an answer.
    pub(super) fn for_short(&self, timeout: Duration) -> Self {
        let lock_timeout = format!("{}ms", (timeout / 10).as_millis().max(1));
        self.with([
            // How long a statement waits for a row that somebody outside has locked:
            // it gives up by itself, for one that we gave up would go on waiting.
            // Short enough to find the row by halves, long enough for a slow commit.
            ("lock_timeout", lock_timeout),
            // Every statement finds its rows by the key. A plan is kept for as long
            // as the connection, and on a table that is small by then, the planner
            // would rather read the whole, every time until it is analyzed.
            ("enable_seqscan", "off".to_owned()),
            // So the plan is the same whatever the arrays hold. By default the planner
            // makes one for each batch, at a third of what the batch costs.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            no_jit(),
        ])
    }

    /// The same, for connections whose statements scan whole tables.
    pub(super) fn for_scans(&self, timeout: Duration) -> Self {
        let lock_timeout = format!("{}ms", timeout.as_millis().max(1));
        // A table may be locked, or the fence's row by another sweep: all that is to scan would wait
        // behind the one that waits for it. A sweep that gave up is made again.
        self.with([("lock_timeout", lock_timeout), no_jit()])
    }

    /// What each connection is set to.
    pub(super) fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    pub(super) fn schema(&self) -> Option<&str> {
        self.source.schema.as_deref()
    }

    /// Opens a connection.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.connect_with_options().await.map(|(connection, _)| connection)
    }

    /// Opens a connection, and answers how, so that another one leads to the same server.
    pub(super) async fn connect_with_options(
        &self,
    ) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        let _connecting = Counted::one(&self.metrics.connecting);
        let mut opened = self.connect_as_written().await;
        for _ in 0..MAX_VACANCY_TRIES {
            match &opened {
                Err(error) if is_too_many(error) => {}
                _ => break,
            }
            sleep(VACANCY_PAUSE).await;
            opened = self.connect_as_written().await;
        }
        if let Err(error) = &opened {
            self.metrics.failed(error_class(error));
        }
        opened
    }

    /// Opens one as the URL and the files say, which are read again if that may help.
    async fn connect_as_written(&self) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        let first = self.connect_once().await;
        match &first {
            // The password was changed after it was read.
            Err(error) if is_code(error, "28P01") && self.source.is_a_file() => {
                self.connect_once().await
            }
            // The file is being written.
            Err(sqlx::Error::Configuration(_)) if self.source.is_a_file() => {
                sleep(WRITING).await;
                self.connect_once().await
            }
            _ => first,
        }
    }

    async fn connect_once(&self) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        let target = self.source.read()?;
        let hosts = target.hosts.iter().map(Some).collect::<Vec<_>>();
        let hosts = if hosts.is_empty() { vec![None] } else { hosts };
        let count = hosts.len();
        // One that is mute leaves time for the others, and for a statement.
        let share = self.limit / u32::try_from(count + usize::from(count > 1)).unwrap_or(u32::MAX);
        let limit = target.connect_timeout.map_or(share, |limit| limit.min(share));
        let good = self.good.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for place in (0..count).map(|number| (good + number) % count) {
            let host = hosts[place];
            match self.try_host(&target, host, limit).await {
                Ok(opened) => {
                    self.good.store(place, Ordering::Relaxed);
                    return Ok(opened);
                }
                Err(error) if count == 1 => return Err(error),
                Err(error) => {
                    let name = host.map(Host::to_string).unwrap_or_default();
                    failures.push((name, error));
                }
            }
        }
        // What a server answered says more than that another is away.
        let answered = |(_, error): &(_, sqlx::Error)| error.as_database_error().is_some();
        if let Some(answer) = failures.iter().position(answered) {
            return Err(failures.swap_remove(answer).1);
        }
        let causes = failures.iter().map(|(host, error)| format!("{host}: {error}"));
        Err(io::Error::other(causes.collect::<Vec<_>>().join("; ")).into())
    }

    async fn try_host(
        &self,
        target: &Target,
        host: Option<&Host>,
        limit: Duration,
    ) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        let options = self.options(target, host)?;
        let security = Security::of(target, &options);
        let (first, fallback) = security.modes();
        let open = async {
            let options = security.with_files(&target.tls, options).await?;
            self.warnings.configured(&security);
            let mut options = options.ssl_mode(first);
            let connected = match (options.connect().await, fallback) {
                (Err(error), Some(other)) if is_about_tls(&error) => {
                    options = options.ssl_mode(other);
                    options.connect().await
                }
                (connected, _) => connected,
            };
            let mut connection = connected.map_err(|error| security.explain(error))?;
            self.warnings.opened(&security, options.get_ssl_mode());
            self.greet(target, &mut connection).await?;
            Ok((connection, options))
        };
        match timeout(limit, Box::pin(open)).await {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    /// Checks that a connection leads to where it should.
    async fn greet(
        &self,
        target: &Target,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        let several = if target.hosts.len() > 1 { Session::ReadWrite } else { Session::Any };
        let session = target.session.unwrap_or(several);
        if session == Session::Any && self.schema().is_none() {
            return Ok(());
        }
        let row = sqlx::raw_sql(GREETING).fetch_one(connection).await?;
        let standby: bool = row.try_get("standby")?;
        let read_only: bool = row.try_get("read_only")?;
        if session != Session::Any && standby {
            return Err(io::Error::other("the server is a standby").into());
        }
        if session == Session::ReadWrite && read_only {
            return Err(io::Error::other("the server is read only").into());
        }
        match (self.schema(), row.try_get::<Option<String>, _>("schema")?) {
            // It may be about to be made.
            (None, _) | (_, None) => Ok(()),
            (Some(wanted), Some(found)) if wanted == found => Ok(()),
            (Some(wanted), Some(found)) => Err(Problem(format!(
                "--database-schema is {wanted}, but connections use {found}: a proxy drops their \
                 settings, so ALTER ROLE … SET search_path = {wanted}"
            ))
            .into()),
        }
    }

    fn options(
        &self,
        target: &Target,
        host: Option<&Host>,
    ) -> Result<PgConnectOptions, sqlx::Error> {
        let mut options = PgConnectOptions::from_str(&canonical(target, host))?;
        if let Some(capacity) = target.statement_cache {
            options = options.statement_cache_capacity(capacity);
        }
        let application = target.application_name.as_deref().unwrap_or("oncegate");
        let schema = self.schema().map(|schema| ("search_path", schema));
        let settings = self.settings.iter().map(|(name, value)| (*name, value.as_str()));
        Ok(options
            // After those that the URL sets: the last counts.
            .options(settings.chain(schema))
            .application_name(application)
            .disable_statement_logging())
    }
}

/// `too_many_connections`: of the role, the database or the server.
pub(super) fn is_too_many(error: &sqlx::Error) -> bool {
    is_code(error, "53300")
}

fn is_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(code)
}
