//! `oncegate lease acquire|renew|release|check`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    ClientArgs, Exit,
    client::{Output, duration, moment, seconds, session},
};
use crate::grpc::pb::{
    AcquireSessionLeaseRequest, CheckSessionLeaseRequest, ReleaseSessionLeaseRequest,
    RenewSessionLeaseRequest, SessionKey, SessionLease, acquire_session_lease_response::Outcome,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Take the lease of a session
    Acquire(Acquire),
    /// Let a lease run on
    Renew(Renew),
    /// Give a lease back
    Release(Release),
    /// Ask whether a fencing token is the current one
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The team of the session
    team: String,
    /// The session's id, such as TEAM:CHANNEL:THREAD
    session: String,
}

impl Target {
    fn key(self) -> SessionKey {
        session(self.team, self.session)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Acquire {
    #[command(flatten)]
    target: Target,
    /// Who asks, shown to others
    #[arg(long, env = "HOSTNAME", default_value = "oncegate-cli")]
    holder: String,
    /// How long the lease runs, 1s to 15m; unset: 30s
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How long to queue while the session is held, up to 10m
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// The work to bind the session to
    #[arg(long, default_value = "")]
    epic: String,
    /// A label, NAME=VALUE; up to 8
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Names this attempt, so that it can be repeated
    #[arg(long, default_value = "")]
    request_id: String,
    #[command(flatten)]
    client: ClientArgs,
}

fn label(given: &str) -> Result<(String, String), String> {
    let (name, value) = given.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, clap::Args)]
pub(super) struct Renew {
    #[command(flatten)]
    target: Target,
    /// The lease, as acquire printed it
    lease_id: String,
    /// How long it runs from now, 1s to 15m; unset: 30s
    #[arg(long, value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Release {
    #[command(flatten)]
    target: Target,
    /// The lease, as acquire printed it
    lease_id: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    #[command(flatten)]
    target: Target,
    /// The fencing token
    fencing_token: i64,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Acquire(args) => acquire(args).await,
        Command::Renew(args) => renew(args).await,
        Command::Release(args) => release(args).await,
        Command::Check(args) => check(args).await,
    }
}

async fn acquire(args: Acquire) -> anyhow::Result<Exit> {
    let message = AcquireSessionLeaseRequest {
        session: Some(args.target.key()),
        holder: args.holder,
        request_id: args.request_id,
        ttl: duration(args.ttl)?,
        wait: duration(Some(args.wait))?,
        epic_id: args.epic,
        labels: args.labels.into_iter().collect(),
    };
    let request = args.client.request(message, args.wait);
    let answer = args.client.connect().await?.acquire_session_lease(request).await?.into_inner();
    match answer.outcome.context("the server gave no outcome")? {
        Outcome::Lease(lease) => {
            print_lease(args.client.output, "granted", &lease)?;
            Ok(Exit::Yes)
        }
        Outcome::Held(held) => {
            let remaining = seconds(held.remaining);
            let json = json!({
                "outcome": "held",
                "holder": held.holder,
                "remaining_seconds": remaining,
                "queue_length": held.queue_length,
            });
            let text = format!(
                "held by {} for {remaining:.1} s, {} waiting",
                held.holder, held.queue_length
            );
            args.client.output.print(&json, text)?;
            Ok(Exit::No)
        }
    }
}

async fn renew(args: Renew) -> anyhow::Result<Exit> {
    let message = RenewSessionLeaseRequest {
        session: Some(args.target.key()),
        lease_id: args.lease_id,
        ttl: duration(args.ttl)?,
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.renew_session_lease(request).await?.into_inner();
    print_lease(args.client.output, "renewed", &answer.lease.context("the server gave no lease")?)?;
    Ok(Exit::Yes)
}

async fn release(args: Release) -> anyhow::Result<Exit> {
    let message =
        ReleaseSessionLeaseRequest { session: Some(args.target.key()), lease_id: args.lease_id };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.release_session_lease(request).await?.into_inner();
    let text = if answer.released { "released" } else { "not released: not held any more" };
    args.client.output.print(&json!({ "released": answer.released }), text)?;
    Ok(if answer.released { Exit::Yes } else { Exit::No })
}

async fn check(args: Check) -> anyhow::Result<Exit> {
    let message = CheckSessionLeaseRequest {
        session: Some(args.target.key()),
        fencing_token: args.fencing_token,
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.check_session_lease(request).await?.into_inner();
    let json = json!({ "current": answer.current, "fencing_token": answer.fencing_token });
    let text = if answer.current {
        "current".to_owned()
    } else {
        format!("stale: the latest fencing token is {}", answer.fencing_token)
    };
    args.client.output.print(&json, text)?;
    Ok(if answer.current { Exit::Yes } else { Exit::No })
}

fn print_lease(output: Output, outcome: &str, lease: &SessionLease) -> std::io::Result<()> {
    let remaining = seconds(lease.remaining);
    let json: Value = json!({
        "outcome": outcome,
        "team_id": lease.team_id,
        "session_id": lease.session_id,
        "lease_id": lease.lease_id,
        "fencing_token": lease.fencing_token,
        "holder": lease.holder,
        "expire_time": moment(lease.expire_time),
        "remaining_seconds": remaining,
        "epic_id": lease.epic_id,
        "labels": lease.labels,
    });
    let text = format!(
        "{outcome}: lease {} of {}, fencing token {}, {remaining:.1} s",
        lease.lease_id, lease.session_id, lease.fencing_token
    );
    output.print(&json, text)
}
