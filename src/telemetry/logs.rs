//! How logs are written.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to standard error. `filter` is a directive list such as
/// `info,oncegate=debug`.
///
/// # Errors
/// When `filter` cannot be read, or logging has been started before.
pub fn init_logs(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // sqlx warns of connection parameters, and of lines of a password file, with
    // what they hold. No directive of the operator goes before these.
    let mut filter = EnvFilter::try_new(filter)?;
    for target in ["sqlx_postgres::options", "sqlx_postgres::options::pgpass"] {
        filter = filter.add_directive(format!("{target}=off").parse()?);
    }
    let terminal = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // They would go to standard error, and panic if that is closed.
        .log_internal_errors(false);
    let started = match (format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            logs.json().flatten_event(true).with_span_list(false).try_init()
        }
        (LogFormat::Text, _) | (LogFormat::Auto, true) => {
            logs.with_ansi(terminal).with_target(false).try_init()
        }
    };
    started.map_err(|error| anyhow::anyhow!("{error}"))
}

/// Lets through one of many like log lines: the first, and then one every ten
/// seconds.
#[derive(Debug, Default)]
pub struct LogThrottle(Option<Instant>);

impl LogThrottle {
    /// Whether to log now.
    pub fn now(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
