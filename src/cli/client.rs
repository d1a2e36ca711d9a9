//! What the commands that ask a server share.

use std::{
    error::Error as _,
    io::{self, Write as _},
    ops::RangeInclusive,
    time::Duration,
};

use clap::{Args, ValueEnum};
use oncegate_client::{Connection, Error, Gate};
use serde_json::Value;
use tonic::{Code, Request, Status};

mod security;

use security::{SecurityArgs, hint, misconfigured};

use super::{Exit, WrongArguments};
use crate::{
    config::{self, DEFAULT_ADDRESS},
    grpc::{
        code,
        pb::{
            EventKey, SessionKey, admin_service_client::AdminServiceClient, event_key,
            idempotency_service_client::IdempotencyServiceClient, session_key,
        },
    },
};

/// How long an answer may be waited for.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);

/// Which server is asked, and how its answer is printed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server and output")]
pub(super) struct ClientArgs {
    /// Server address: HOST:PORT, `https://HOST:PORT` for TLS, `unix:/path`, or `dns:///NAME:PORT`
    #[arg(long, env = "ONCEGATE_SERVER", default_value = DEFAULT_ADDRESS)]
    server: String,
    /// Output format
    #[arg(long, env = "ONCEGATE_OUTPUT", value_enum, default_value = "text")]
    pub(super) output: Output,
    /// Timeout for an answer, excluding the wait for a lease
    #[arg(long, env = "ONCEGATE_TIMEOUT", default_value = "10s", value_parser = within(TIMEOUT))]
    pub(super) timeout: Duration,
    #[command(flatten)]
    security: SecurityArgs,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Output {
    /// Prints one answer. Fails if the reader has closed the output.
    pub(super) fn print(self, json: &Value, text: impl std::fmt::Display) -> io::Result<()> {
        match self {
            Self::Text => writeln!(io::stdout(), "{text}"),
            Self::Json => writeln!(io::stdout(), "{json}"),
        }
    }
}

impl ClientArgs {
    pub(super) async fn connection(&self) -> anyhow::Result<Connection> {
        let builder = self.security.apply(Gate::builder().server(&self.server));
        let connecting = async { builder.build()?.connect(self.timeout).await };
        let server = &self.server;
        let problem = match connecting.await {
            Ok(connection) => return Ok(connection),
            Err(Error::Misconfigured { option, problem, allowed_by, .. }) => {
                return Err(misconfigured(option, &problem, allowed_by).context(WrongArguments));
            }
            Err(error) => root_cause(&error),
        };
        match hint(&problem) {
            // Another try would fail as well.
            Some(hint) => anyhow::bail!("cannot use {server}: {problem}; {hint}"),
            None => Err(Status::unavailable(format!("cannot reach {server}: {problem}")).into()),
        }
    }

    pub(super) async fn connect(&self) -> anyhow::Result<IdempotencyServiceClient<Connection>> {
        Ok(IdempotencyServiceClient::new(self.connection().await?))
    }

    pub(super) async fn admin(&self) -> anyhow::Result<AdminServiceClient<Connection>> {
        Ok(AdminServiceClient::new(self.connection().await?))
    }

    /// A request with the deadline of a call that may also wait for `wait`.
    pub(super) fn request<T>(&self, message: T, wait: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout + wait);
        request
    }
}

/// Reads a flag's duration, which must lie within `range`.
pub(super) fn within(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |given| {
        let span = config::duration(given)?;
        if range.contains(&span) {
            return Ok(span);
        }
        let [least, most] =
            [range.start(), range.end()].map(|end| humantime::format_duration(*end));
        Err(format!("must be {least} to {most}"))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The exit code that an error stands for.
pub(super) fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<WrongArguments>() {
        return Exit::Usage;
    }
    let Some(status) = error.downcast_ref::<Status>() else {
        return Exit::Failed;
    };
    match status.code() {
        _ if !answered(status) => Exit::Unavailable,
        // OUT_OF_RANGE: the message is longer than a request may be.
        Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Exit::Unavailable,
        Code::FailedPrecondition => Exit::No,
        _ => Exit::Failed,
    }
}

/// An error as a person reads it: what was done, the answer's code, and what the
/// server said.
pub(super) fn explain(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        match cause.downcast_ref::<Status>() {
            Some(status) if answered(status) => {
                parts.push(format!("{}: {}", code::name(status.code()), status.message()));
                break;
            }
            Some(status) => {
                let cause = root_cause(status);
                let hint = hint(&cause).map_or(String::new(), |hint| format!("; {hint}"));
                parts.push(format!("no answer from the server: {cause}{hint}"));
                break;
            }
            // Many errors contain their cause.
            None if parts.last().is_some_and(|last| last.ends_with(&cause.to_string())) => {}
            None => parts.push(cause.to_string()),
        }
    }
    parts.join(": ")
}

/// Whether a server sent this. What tonic makes of a broken connection, or of
/// its own timeout, has many codes, but always a source.
fn answered(status: &Status) -> bool {
    status.source().is_none()
}

/// Which application's events and sessions are meant.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Consumer {
    /// Application that handles the event or owns the session. Several apps in one workspace
    /// receive the same event: set a consumer per app, such as its `api_app_id`, and each handles
    /// the event once. Unset: shared by all callers
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

impl Consumer {
    /// Its name; empty for the one that all share.
    pub(super) fn name(&self) -> String {
        self.consumer.clone().unwrap_or_default()
    }
}

pub(super) fn event(team_id: String, event_id: String, consumer: &Consumer) -> EventKey {
    let key = Some(event_key::Key::EventId(event_id));
    EventKey { team_id, key, consumer: consumer.name(), ..Default::default() }
}

pub(super) fn session(team_id: String, session_id: String, consumer: &Consumer) -> SessionKey {
    let key = Some(session_key::Key::SessionId(session_id));
    SessionKey { team_id, key, consumer: consumer.name(), ..Default::default() }
}

/// The id of an event or a session as a person reads it, with its consumer if it has one.
pub(super) fn id_of(id: &str, consumer: &str) -> String {
    if consumer.is_empty() { id.to_owned() } else { format!("{id} (consumer {consumer})") }
}

/// The answer about an event or a session, with its consumer if it has one.
pub(super) fn with_consumer(mut answer: Value, consumer: &str) -> Value {
    if !consumer.is_empty() {
        answer["consumer"] = consumer.into();
    }
    answer
}

/// A flag's duration on the wire.
pub(super) fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: span.as_secs().cast_signed(),
        nanos: span.subsec_nanos().cast_signed(),
    }
}

/// A moment as people and `date -d` read it; null where there is none.
pub(super) fn moment(at: Option<prost_types::Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

/// How much time is left, in seconds.
pub(super) fn seconds(span: Option<prost_types::Duration>) -> f64 {
    span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(within(TIMEOUT)("5m"), Ok(Duration::from_mins(5)));
        for bad in ["foo", "30", ""] {
            assert_eq!(within(TIMEOUT)(bad).unwrap_err(), "must be a duration such as 30s or 5m");
        }
    }
}
