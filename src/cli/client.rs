//! What the commands that ask a server share.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::Value;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::Exit;
use crate::{
    config::DEFAULT_ADDRESS,
    grpc::pb::{
        EventKey, SessionKey, event_key, idempotency_service_client::IdempotencyServiceClient,
        session_key,
    },
};

/// Which server is asked, and how its answer is printed.
#[derive(Debug, Clone, Args)]
pub(super) struct ClientArgs {
    /// The server: HOST:PORT, or `unix:/path`
    #[arg(long, env = "ONCEGATE_SERVER", default_value = DEFAULT_ADDRESS)]
    server: String,
    /// How to print the answer
    #[arg(long, env = "ONCEGATE_OUTPUT", value_enum, default_value = "text")]
    pub(super) output: Output,
    /// How long to wait for an answer, a wait for a lease not counted
    #[arg(long, env = "ONCEGATE_TIMEOUT", default_value = "10s",
        value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

impl Output {
    /// Prints one answer. Fails where nobody reads it any more.
    pub(super) fn print(self, json: &Value, text: impl std::fmt::Display) -> io::Result<()> {
        match self {
            Self::Text => writeln!(io::stdout(), "{text}"),
            Self::Json => writeln!(io::stdout(), "{json}"),
        }
    }
}

impl ClientArgs {
    pub(super) async fn channel(&self) -> anyhow::Result<Channel> {
        let uri = if self.server.starts_with("unix:") {
            self.server.clone()
        } else {
            format!("http://{}", self.server)
        };
        let endpoint = Endpoint::from_shared(uri)
            .with_context(|| format!("--server {} is not an address", self.server))?
            .connect_timeout(self.timeout);
        endpoint.connect().await.map_err(|error| {
            Status::unavailable(format!("cannot reach {}: {}", self.server, root_cause(&error)))
                .into()
        })
    }

    pub(super) async fn connect(&self) -> anyhow::Result<IdempotencyServiceClient<Channel>> {
        Ok(IdempotencyServiceClient::new(self.channel().await?))
    }

    /// A request with the deadline of a call that may also wait for `wait`.
    pub(super) fn request<T>(&self, message: T, wait: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout + wait);
        request
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
    match error.downcast_ref::<Status>().map(Status::code) {
        Some(Code::InvalidArgument) => Exit::Usage,
        Some(Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted) => {
            Exit::Unavailable
        }
        Some(Code::FailedPrecondition) => Exit::No,
        _ => Exit::Failed,
    }
}

/// An error as a person reads it: its code, and what the server said.
pub(super) fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Status>() {
        Some(status) => format!("{:?}: {}", status.code(), status.message()),
        None => format!("{error:#}"),
    }
}

pub(super) fn event(team_id: String, event_id: String) -> EventKey {
    EventKey { team_id, key: Some(event_key::Key::EventId(event_id)) }
}

pub(super) fn session(team_id: String, session_id: String) -> SessionKey {
    SessionKey { team_id, key: Some(session_key::Key::SessionId(session_id)) }
}

/// A flag's duration on the wire.
pub(super) fn duration(span: Option<Duration>) -> anyhow::Result<Option<prost_types::Duration>> {
    span.map(|span| span.try_into().context("the duration is too long")).transpose()
}

/// A moment as people and `date -d` read it.
pub(super) fn moment(at: Option<prost_types::Timestamp>) -> String {
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// How much time is left, in seconds.
pub(super) fn seconds(span: Option<prost_types::Duration>) -> f64 {
    span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default().as_secs_f64()
}
