//! Everything that can be set, as flags and as `ONCEGATE_*` variables, with its
//! default and its bounds.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args};
use humantime::format_duration;

use crate::telemetry::LogFormat;

pub mod exposure;
mod tls;
mod traces;
mod validate;

use exposure::Protection;
pub use tls::{TlsClient, TlsConfig};
pub use traces::TraceConfig;

/// Where the service listens, and where clients look for it.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7411";
/// The embedded store, in the directory that the service is started in.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://oncegate.db";

/// How long endpoints of a pod that is no longer ready may still get calls.
const LAME_DUCK_IN_A_POD: Duration = Duration::from_secs(5);

/// The longest span.
const MAX_SPAN: Duration = Duration::from_hours(30 * 24);

/// Reads a duration.
pub(crate) fn duration(given: &str) -> Result<Duration, String> {
    humantime::parse_duration(given).map_err(|_| "must be a duration such as 30s or 5m".to_owned())
}

/// Reads a span: longer ones than [`MAX_SPAN`] would overflow the clock.
fn span(given: &str) -> Result<Duration, String> {
    let span = duration(given)?;
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
    /// Log filter: a level, or directives such as `info,oncegate=debug`
    #[arg(long, env = "ONCEGATE_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Log format
    #[arg(long, env = "ONCEGATE_LOG_FORMAT", value_enum, default_value = "auto", global = true)]
    pub log_format: LogFormat,
}

/// Which database, and how it is used.
#[derive(Debug, Clone, Args)]
pub struct StoreConfig {
    /// Database URL: `sqlite://FILE` for one process on one machine, `postgres://…`
    /// for any number of replicas, `memory:` for unit tests of a bot: the server
    /// loses every record when it stops
    #[arg(long, env = "ONCEGATE_DATABASE_URL", default_value = DEFAULT_DATABASE_URL,
        hide_env_values = true)]
    pub database_url: Secret,
    /// File with the database URL, read again for every new connection; unset:
    /// --database-url applies
    #[arg(
        long,
        env = "ONCEGATE_DATABASE_URL_FILE",
        conflicts_with = "database_url",
        value_name = "FILE"
    )]
    pub database_url_file: Option<PathBuf>,
    /// File with the PostgreSQL password, read again for every new connection;
    /// unset: the password in the URL
    #[arg(long, env = "ONCEGATE_DATABASE_PASSWORD_FILE", value_name = "FILE")]
    pub database_password_file: Option<PathBuf>,
    /// PostgreSQL schema for oncegate's tables, created if it is missing; unset:
    /// the first in the role's search path
    #[arg(long, env = "ONCEGATE_DATABASE_SCHEMA", value_name = "NAME")]
    pub database_schema: Option<String>,
    /// Timeout for reaching the database at startup
    #[arg(long, env = "ONCEGATE_CONNECT_TIMEOUT", default_value = "30s",
        value_parser = span)]
    pub connect_timeout: Duration,
    /// Timeout for one statement; after it, the outcome counts as unknown
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
pub struct DuplicateCacheConfig {
    /// Maximum number of events in the duplicate cache, which answers their
    /// duplicates without the store; 0: no cache
    #[arg(long, env = "ONCEGATE_DUPLICATE_CACHE_ENTRIES", default_value_t = 100_000)]
    pub duplicate_cache_entries: usize,
    /// Maximum time that an event stays in the duplicate cache, even if its TTL is longer
    #[arg(long, env = "ONCEGATE_DUPLICATE_CACHE_MAX_AGE", default_value = "5m",
        value_parser = span)]
    pub duplicate_cache_max_age: Duration,
}

/// What bounds the service: connections, calls, time.
#[derive(Debug, Clone, Args)]
pub struct LimitConfig {
    /// Maximum number of connections; lowered if the limit on open files is too
    /// low. A further connection replaces the oldest that has had --preface-timeout without an
    /// accepted call; otherwise the server answers only health and reflection on it, and on 31 more
    #[arg(long, env = "ONCEGATE_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
    /// Maximum number of concurrent calls per connection
    #[arg(long, env = "ONCEGATE_MAX_STREAMS", default_value_t = 1_024)]
    pub max_streams: u32,
    /// Maximum number of calls in progress; further calls fail with
    /// `RESOURCE_EXHAUSTED`. A call counts once its message is complete; as many
    /// again may still be sending theirs
    #[arg(long, env = "ONCEGATE_MAX_CALLS", default_value_t = 16_384)]
    pub max_calls: usize,
    /// Maximum number of events or sessions queued per lane; further ones fail
    /// with `RESOURCE_EXHAUSTED`
    #[arg(long, env = "ONCEGATE_QUEUE_CAPACITY", default_value_t = 16_384)]
    pub queue_capacity: usize,
    /// Timeout for one call, excluding its wait for a lease
    #[arg(long, env = "ONCEGATE_CALL_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub call_timeout: Duration,
    /// Timeout for the TLS handshake and the HTTP/2 connection preface or the
    /// headers of an HTTP/1.1 request, and for each call from its headers until
    /// its first message is complete. An idle HTTP/1.1 connection is closed after it
    #[arg(long, env = "ONCEGATE_PREFACE_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub preface_timeout: Duration,
    /// Maximum age of a connection, varied by up to 10 %; then the server asks the
    /// client to reconnect, so that new replicas get their share of connections;
    /// 0s: unlimited
    #[arg(long, env = "ONCEGATE_MAX_CONNECTION_AGE", default_value = "30m",
        value_parser = span)]
    pub max_connection_age: Duration,
    /// Timeout for the calls of a connection that has reached its maximum age; then
    /// the server closes it: a stream ends with `UNAVAILABLE` and its lease or turn
    /// stays valid, any other call ends as if its caller had cancelled it; unset:
    /// --max-hold plus 15m, which is enough for every lease
    #[arg(long, env = "ONCEGATE_MAX_CONNECTION_AGE_GRACE",
        value_parser = span)]
    pub max_connection_age_grace: Option<Duration>,
    /// Interval of keepalive pings on an idle connection
    #[arg(long, env = "ONCEGATE_KEEPALIVE_INTERVAL", default_value = "30s",
        value_parser = span)]
    pub keepalive_interval: Duration,
    /// Timeout for the answer to a keepalive ping
    #[arg(long, env = "ONCEGATE_KEEPALIVE_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub keepalive_timeout: Duration,
}

/// `oncegate serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address to listen on: ADDRESS:PORT or `unix:/path`; repeat the flag, or
    /// separate addresses with commas, for several
    #[arg(long, env = "ONCEGATE_LISTEN", default_value = DEFAULT_ADDRESS, value_delimiter = ',')]
    pub listen: Vec<Address>,
    /// Address for operations: /metrics for Prometheus, /livez and /readyz over HTTP,
    /// and gRPC health; without TLS unless --ops-tls is set; unset: disabled
    #[arg(long, env = "ONCEGATE_OPS_LISTEN")]
    pub ops_listen: Option<SocketAddr>,
    /// TOML file of the principals that may call: their roles, teams and credentials;
    /// read again when it changes; unset: every caller may do everything
    #[arg(long, env = "ONCEGATE_AUTH", value_name = "FILE")]
    pub auth: Option<PathBuf>,
    /// Serve other machines without TLS or authentication; logged at every start
    #[arg(long, env = "ONCEGATE_INSECURE")]
    pub insecure: bool,
    /// Interval at which certificates and other files are checked for changes; SIGHUP
    /// checks them at once
    #[arg(long, env = "ONCEGATE_RELOAD_INTERVAL", default_value = "10s",
        value_parser = span)]
    pub reload_interval: Duration,
    /// Migrate the schema at startup; otherwise only check it
    #[arg(long, env = "ONCEGATE_MIGRATE", default_value_t = true, action = ArgAction::Set,
        value_name = "BOOL")]
    pub migrate: bool,
    /// Number of threads that serve calls; unset: one per core
    #[arg(long, env = "ONCEGATE_WORKERS")]
    pub workers: Option<usize>,
    /// Number of database connections for marks, and as many again for leases and turns.
    /// Two keep two cores busy; lowered if the database allows fewer; SQLite always has one
    #[arg(long, env = "ONCEGATE_WRITERS", default_value_t = 2)]
    pub writers: usize,
    /// Maximum lease lifetime, renewals included; 15m to 30d
    #[arg(long, env = "ONCEGATE_MAX_HOLD", default_value = "1h",
        value_parser = span)]
    pub max_hold: Duration,
    /// Interval of the sweep that deletes expired rows
    #[arg(long, env = "ONCEGATE_SWEEP_INTERVAL", default_value = "30s",
        value_parser = span)]
    pub sweep_interval: Duration,
    /// Interval of the store probe, which sets readiness
    #[arg(long, env = "ONCEGATE_PROBE_INTERVAL", default_value = "1s",
        value_parser = span)]
    pub probe_interval: Duration,
    /// Log calls that take at least this long, without their wait for a session:
    /// at most 10 in 10s; 0s: none
    #[arg(long, env = "ONCEGATE_SLOW_CALL", default_value = "1s",
        value_parser = span)]
    pub slow_call: Duration,
    /// How long to keep serving after SIGTERM, while not ready, until load
    /// balancers stop routing here; a second SIGTERM ends it; unset: 5s in a
    /// Kubernetes pod, 0s elsewhere
    #[arg(long, env = "ONCEGATE_LAME_DUCK", value_parser = span)]
    pub lame_duck: Option<Duration>,
    /// Set in every pod.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub kubernetes_service_host: Option<String>,
    /// Timeout for calls in progress after the lame-duck period
    #[arg(long, env = "ONCEGATE_DRAIN_TIMEOUT", default_value = "10s",
        value_parser = span)]
    pub drain_timeout: Duration,
    /// The database.
    #[command(flatten)]
    pub store: StoreConfig,
    /// The duplicate cache.
    #[command(flatten)]
    pub duplicate_cache: DuplicateCacheConfig,
    /// The bounds.
    #[command(flatten)]
    pub limits: LimitConfig,
    /// The certificates.
    #[command(flatten)]
    pub tls: TlsConfig,
    /// The traces.
    #[command(flatten)]
    pub traces: TraceConfig,
}

impl ServeConfig {
    /// How long to go on serving once readiness is off.
    #[must_use]
    pub fn lame_duck(&self) -> Duration {
        let in_a_pod = self.kubernetes_service_host.is_some();
        self.lame_duck.unwrap_or(if in_a_pod { LAME_DUCK_IN_A_POD } else { Duration::ZERO })
    }

    /// What protects its calls.
    #[must_use]
    pub fn protection(&self) -> Protection {
        Protection {
            tls: self.tls.tls_cert.is_some(),
            auth: self.auth.is_some(),
            insecure: self.insecure,
        }
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
