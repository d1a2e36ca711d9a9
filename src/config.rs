//! Everything that can be set, as flags and as `ONCEGATE_*` variables, with its
//! default and its bounds.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::ensure;
use clap::{ArgAction, Args};
use humantime::format_duration;
use tokio::sync::Semaphore;

use crate::{
    domain::limits::{MAX_BATCH_ITEMS, MAX_HOLD},
    telemetry::LogFormat,
};

/// Where the service listens, and where clients look for it.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7411";
/// The embedded store, in the directory that the service is started in.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://oncegate.db";

/// How long endpoints of a pod that is no longer ready may still get calls.
const LAME_DUCK_IN_A_POD: Duration = Duration::from_secs(5);

/// The shortest span, unless 0s has a meaning.
const LEAST_SPAN: Duration = Duration::from_millis(10);
/// The longest span.
const MAX_SPAN: Duration = Duration::from_hours(30 * 24);
/// The most of what is counted by a semaphore.
const MAX_COUNT: usize = Semaphore::MAX_PERMITS;
/// The most threads, and connections to the database of one kind.
const MAX_WORKERS: usize = 1_024;

/// Reads a span: longer ones than [`MAX_SPAN`] would overflow the clock.
fn span(given: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(given).map_err(|error| error.to_string())?;
    if span > MAX_SPAN {
        return Err(format!("must be {} or less", format_duration(MAX_SPAN)));
    }
    Ok(span)
}

/// A TCP address or a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `host:port`, the host a number.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if let Some(path) = given.strip_prefix("unix:") {
            // unix:///path is how gRPC clients spell it.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("unix: needs a path, as in unix:/run/oncegate/oncegate.sock".into());
            }
            return Ok(Self::Unix(path.into()));
        }
        given.parse().map(Self::Tcp).map_err(|_| {
            "must be an address such as 127.0.0.1:7411, [::1]:7411 or unix:/path".to_owned()
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How logs are written.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// What to log: a level, or directives such as `info,oncegate=debug`
    #[arg(long, env = "ONCEGATE_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How to write the log
    #[arg(long, env = "ONCEGATE_LOG_FORMAT", value_enum, default_value = "auto", global = true)]
    pub log_format: LogFormat,
}

/// Which database, and how it is used.
#[derive(Debug, Clone, Args)]
pub struct StoreConfig {
    /// `sqlite://FILE` for one process on one machine, `postgres://…` for any
    /// number of replicas
    #[arg(long, env = "ONCEGATE_DATABASE_URL", default_value = DEFAULT_DATABASE_URL,
        hide_env_values = true)]
    pub database_url: Secret,
    /// A file with the database's URL, read again for every new connection;
    /// unset: see --database-url
    #[arg(
        long,
        env = "ONCEGATE_DATABASE_URL_FILE",
        conflicts_with = "database_url",
        value_name = "FILE"
    )]
    pub database_url_file: Option<PathBuf>,
    /// A file with the password for PostgreSQL, read again for every new
    /// connection; unset: as in the URL
    #[arg(long, env = "ONCEGATE_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
    /// The schema with oncegate's tables in PostgreSQL, made if it is missing;
    /// unset: the first in the role's search path
    #[arg(long, env = "ONCEGATE_DATABASE_SCHEMA", value_name = "NAME")]
    pub database_schema: Option<String>,
    /// How long to try to reach the database at start
    #[arg(long, env = "ONCEGATE_CONNECT_TIMEOUT", default_value = "30s",
        value_parser = span)]
    pub connect_timeout: Duration,
    /// How long one statement may take before its outcome counts as unknown
    #[arg(long, env = "ONCEGATE_STORE_TIMEOUT", default_value = "5s",
        value_parser = span)]
    pub store_timeout: Duration,
}

/// What is not to be printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// What it is.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What is answered from memory.
#[derive(Debug, Clone, Args)]
pub struct KnownConfig {
    /// How many marked events are remembered, so that their duplicates are
    /// answered without the store; 0: none
    #[arg(long, env = "ONCEGATE_KNOWN_EVENTS", default_value_t = 100_000)]
    pub known_events: usize,
    /// How long one is remembered at most, whatever its TTL
    #[arg(long, env = "ONCEGATE_KNOWN_MAX_AGE", default_value = "5m",
        value_parser = span)]
    pub known_max_age: Duration,
}

/// What bounds the service: connections, calls, time.
#[derive(Debug, Clone, Args)]
pub struct LimitConfig {
    /// The most connections at once, as far as the limit on open files allows;
    /// on 32 more, only health and reflection are answered
    #[arg(long, env = "ONCEGATE_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// The most calls at once on one connection
    #[arg(long, env = "ONCEGATE_MAX_STREAMS", default_value_t = 1_024)]
    pub max_streams: u32,
    /// The most calls under way; more are answered `RESOURCE_EXHAUSTED`. A call
    /// counts once its message is complete; as many again may wait for theirs
    #[arg(long, env = "ONCEGATE_MAX_CALLS", default_value_t = 16_384)]
    pub max_calls: usize,
    /// The most events, or sessions, queued for one lane; more are answered
    /// `RESOURCE_EXHAUSTED`
    #[arg(long, env = "ONCEGATE_QUEUE_CAPACITY", default_value_t = 16_384)]
    pub queue_capacity: usize,
    /// How long one call may take, a wait for a lease not counted
    #[arg(long, env = "ONCEGATE_CALL_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub call_timeout: Duration,
    /// Timeout for the HTTP/2 connection preface, and for each call from its
    /// headers until its first message is complete
    #[arg(long, env = "ONCEGATE_PREFACE_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub preface_timeout: Duration,
    /// How long a connection may live, give or take a tenth, before its caller is
    /// asked to open another one, so that replicas that were added get their
    /// share; 0s: forever
    #[arg(long, env = "ONCEGATE_MAX_CONNECTION_AGE", default_value = "30m",
        value_parser = span)]
    pub max_connection_age: Duration,
    /// How long the calls of such a connection may still take; then the connection
    /// is closed: a stream ends with `UNAVAILABLE` and its lease or turn stays
    /// valid, any other call ends as if its caller had; unset: 15m more than
    /// --max-hold, which is enough for every lease
    #[arg(long, env = "ONCEGATE_MAX_CONNECTION_AGE_GRACE",
        value_parser = span)]
    pub max_connection_age_grace: Option<Duration>,
    /// How often an idle connection is asked whether its peer is still there
    #[arg(long, env = "ONCEGATE_KEEPALIVE_INTERVAL", default_value = "30s",
        value_parser = span)]
    pub keepalive_interval: Duration,
    /// How long a peer may take to answer that
    #[arg(long, env = "ONCEGATE_KEEPALIVE_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub keepalive_timeout: Duration,
}

/// `oncegate serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Where to listen: ADDRESS:PORT, or `unix:/path`; several, given one by one
    /// or with commas
    #[arg(long, env = "ONCEGATE_LISTEN", default_value = DEFAULT_ADDRESS, value_delimiter = ',')]
    pub listen: Vec<Address>,
    /// Where to serve /metrics for Prometheus, /livez and /readyz over HTTP;
    /// unset: nowhere
    #[arg(long, env = "ONCEGATE_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Bring the schema up to date at start; otherwise only check it
    #[arg(long, env = "ONCEGATE_MIGRATE", default_value_t = true, action = ArgAction::Set,
        value_name = "BOOL")]
    pub migrate: bool,
    /// How many threads serve calls; unset: one a core
    #[arg(long, env = "ONCEGATE_WORKERS")]
    pub workers: Option<usize>,
    /// How many connections write marks, how many take and give back leases, and
    /// how many begin and finish turns: two keep two cores busy; fewer where the database allows
    /// for fewer; the embedded store always has one
    #[arg(long, env = "ONCEGATE_WRITERS", default_value_t = 2)]
    pub writers: usize,
    /// How long a lease may be held, however often it is renewed: a holder that
    /// was forgotten does not keep its session for ever; 15m to 30d
    #[arg(long, env = "ONCEGATE_MAX_HOLD", default_value = "1h",
        value_parser = span)]
    pub max_hold: Duration,
    /// How often expired rows are swept
    #[arg(long, env = "ONCEGATE_SWEEP_INTERVAL", default_value = "30s",
        value_parser = span)]
    pub sweep_interval: Duration,
    /// How often the store is probed; readiness follows
    #[arg(long, env = "ONCEGATE_PROBE_INTERVAL", default_value = "1s",
        value_parser = span)]
    pub probe_interval: Duration,
    /// How long to go on serving after SIGTERM, no longer ready, until load
    /// balancers stop routing here; a second SIGTERM ends it; unset: 5s in a
    /// Kubernetes pod, 0s elsewhere
    #[arg(long, env = "ONCEGATE_LAME_DUCK", value_parser = span)]
    pub lame_duck: Option<Duration>,
    /// Set in every pod.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub kubernetes_service_host: Option<String>,
    /// How long calls under way may still take after that
    #[arg(long, env = "ONCEGATE_DRAIN_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub drain_timeout: Duration,
    /// The database.
    #[command(flatten)]
    pub store: StoreConfig,
    /// The memory.
    #[command(flatten)]
    pub known: KnownConfig,
    /// The bounds.
    #[command(flatten)]
    pub limits: LimitConfig,
}

impl ServeConfig {
    /// How long to go on serving once readiness is off.
    #[must_use]
    pub fn lame_duck(&self) -> Duration {
        let in_a_pod = self.kubernetes_service_host.is_some();
        self.lame_duck.unwrap_or(if in_a_pod { LAME_DUCK_IN_A_POD } else { Duration::ZERO })
    }

    /// Checks what no single flag can: that the settings fit each other.
    ///
    /// # Errors
    /// Naming the flags that do not.
    pub fn validate(&self) -> anyhow::Result<()> {
        let Self { store, known, limits, .. } = self;
        ensure!(
            MAX_HOLD.contains(&self.max_hold),
            "--max-hold must be {} to {}: the longest TTL must fit",
            format_duration(*MAX_HOLD.start()),
            format_duration(*MAX_HOLD.end())
        );
        for (flag, count, most) in [
            ("workers", self.workers.unwrap_or(1), MAX_WORKERS),
            ("writers", self.writers, MAX_WORKERS),
            ("max-connections", limits.max_connections, MAX_COUNT),
            ("max-streams", usize::try_from(limits.max_streams)?, MAX_COUNT),
            ("max-calls", limits.max_calls, MAX_COUNT),
            ("queue-capacity", limits.queue_capacity, MAX_COUNT),
            // There may be none.
            ("known-events", known.known_events.max(1), MAX_COUNT),
        ] {
            ensure!(count > 0, "--{flag} must be 1 or more");
            ensure!(count <= most, "--{flag} must be {most} or less, is {count}");
        }
        ensure!(
            limits.queue_capacity >= MAX_BATCH_ITEMS,
            "--queue-capacity must be {MAX_BATCH_ITEMS} or more: one batch must fit"
        );
        ensure!(
            store.store_timeout < limits.call_timeout,
            "--store-timeout must be shorter than --call-timeout: or calls end before the store \
             is known to be away"
        );
        let off_or = |span: Duration| if span.is_zero() { LEAST_SPAN } else { span };
        for (flag, span) in [
            ("connect-timeout", off_or(store.connect_timeout)),
            ("store-timeout", store.store_timeout),
            ("call-timeout", limits.call_timeout),
            ("preface-timeout", limits.preface_timeout),
            ("max-connection-age", off_or(limits.max_connection_age)),
            ("keepalive-interval", limits.keepalive_interval),
            ("keepalive-timeout", limits.keepalive_timeout),
            ("sweep-interval", self.sweep_interval),
            ("probe-interval", self.probe_interval),
            ("known-max-age", known.known_max_age),
        ] {
            ensure!(
                span >= LEAST_SPAN,
                "--{flag} must be {} or more, is {}",
                format_duration(LEAST_SPAN),
                format_duration(span)
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed_alike() {
        for text in ["127.0.0.1:7411", "[::1]:0", "unix:/run/oncegate.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("unix:///run/x".parse::<Address>().unwrap().to_string(), "unix:/run/x");
        for bad in ["", "unix:", "7411", "localhost"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
