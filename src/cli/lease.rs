//! `oncegate lease acquire|hold|renew|release|check`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    ClientArgs, Exit,
    client::{Consumer, Output, duration, id_of, moment, seconds, session, with_consumer, within},
    report,
};
use crate::{
    domain::limits::{LEASE_TTL, WAIT},
    grpc::pb::{
        AcquireSessionLeaseRequest, CheckSessionLeaseRequest, HoldSessionLeaseRequest, LeaseHeld,
        LeaseQueued, ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, SessionKey,
        SessionLease, SessionWaiting, acquire_session_lease_response::Outcome,
        hold_session_lease_response::News,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Acquire the lease of a session
    #[command(after_help = "Exit codes: 0 granted, 10 held, or bound to another epic")]
    Acquire(Acquire),
    /// Acquire the lease of a session, and renew it until this command ends
    #[command(
        after_help = "Exit codes: 10 held, lost, or bound to another epic; runs until it is \
        interrupted while the lease is held"
    )]
    Hold(Wanted),
    /// Renew a lease
    #[command(after_help = "Exit codes: 0 renewed, 10 lost")]
    Renew(Renew),
    /// Release a lease
    #[command(after_help = "Exit codes: 0 released, 10 no longer held")]
    Release(Release),
    /// Check whether a fencing token is current
    #[command(after_help = "Exit codes: 0 current, 10 stale")]
    Check(Check),
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// The team of the session
    pub(super) team: String,
    /// The session's id, such as TEAM:CHANNEL:THREAD
    pub(super) session: String,
    #[command(flatten)]
    pub(super) consumer: Consumer,
}

impl Target {
    pub(super) fn key(self) -> SessionKey {
        session(self.team, self.session, &self.consumer)
    }
}

/// What a lease is asked for with.
#[derive(Debug, clap::Args)]
pub(super) struct Terms {
    /// Name of the holder, shown to other callers
    #[arg(long, env = "HOSTNAME", default_value = "oncegate-cli")]
    holder: String,
    /// TTL of the lease, 1s to 15m; unset: 30s
    #[arg(long, value_parser = within(LEASE_TTL))]
    pub(super) ttl: Option<Duration>,
    /// The epic to bind the session to
    #[arg(long)]
    epic: Option<String>,
    /// Label shown with the lease; up to 8
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl Terms {
    /// A request for the lease of `session`.
    pub(super) fn request(
        &self,
        session: SessionKey,
        wait: Duration,
        request_id: String,
    ) -> AcquireSessionLeaseRequest {
        AcquireSessionLeaseRequest {
            session: Some(session),
            holder: self.holder.clone(),
            request_id,
            ttl: self.ttl.map(duration),
            wait: Some(duration(wait)),
            epic_id: self.epic.clone().unwrap_or_default(),
            labels: self.labels.iter().cloned().collect(),
        }
    }
}

/// A session, and how its lease is wanted.
#[derive(Debug, clap::Args)]
pub(super) struct Wanted {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    terms: Terms,
    /// Maximum time to queue while the session is held, up to 10m
    #[arg(long, default_value = "0s", value_parser = within(WAIT))]
    wait: Duration,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Acquire {
    /// Id of this attempt; a retry with the same id returns the same lease
    #[arg(long)]
    request_id: Option<String>,
    // Last: the heading of its last arguments holds for all that follows.
    #[command(flatten)]
    wanted: Wanted,
}

fn label(given: &str) -> Result<(String, String), String> {
    let (name, value) = given.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, clap::Args)]
pub(super) struct Renew {
    #[command(flatten)]
    target: Target,
    /// Id of the lease, as printed by acquire
    lease_id: String,
    /// TTL from now on unless the lease ends later already, 1s to 15m; unset: 30s
    #[arg(long, value_parser = within(LEASE_TTL))]
    ttl: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Release {
    #[command(flatten)]
    target: Target,
    /// Id of the lease, as printed by acquire
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
        Command::Hold(args) => hold(args).await,
        Command::Renew(args) => renew(args).await,
        Command::Release(args) => release(args).await,
        Command::Check(args) => check(args).await,
    }
}

async fn acquire(args: Acquire) -> anyhow::Result<Exit> {
    let Wanted { target, terms, wait, client } = args.wanted;
    let message = terms.request(target.key(), wait, args.request_id.unwrap_or_default());
    let request = client.request(message, wait);
    let answer = client.connect().await?.acquire_session_lease(request).await?.into_inner();
    match answer.outcome.context("the response has no outcome")? {
        Outcome::Lease(lease) => {
            print_lease(client.output, "granted", &lease)?;
            Ok(Exit::Yes)
        }
        Outcome::Held(held) => {
            print_held(client.output, &held)?;
            Ok(Exit::No)
        }
    }
}

async fn hold(args: Wanted) -> anyhow::Result<Exit> {
    let AcquireSessionLeaseRequest { session, holder, request_id, ttl, wait, epic_id, labels } =
        args.terms.request(args.target.key(), args.wait, String::new());
    let message =
        HoldSessionLeaseRequest { session, holder, request_id, ttl, wait, epic_id, labels };
    let output = args.client.output;
    // Without a deadline: the lease is held while this command runs.
    let mut client = args.client.connect().await?;
    let sent = Instant::now();
    let mut events = client.hold_session_lease(message).await?.into_inner();
    // When the lease ends that was granted or renewed last.
    let mut ends: Option<Instant> = None;
    loop {
        let answer = match ends {
            Some(ends) => timeout_at(ends, events.message()).await,
            None => Ok(events.message().await),
        };
        let Ok(answer) = answer else {
            report("the lease is lost: the server did not renew it in time");
            return Ok(Exit::No);
        };
        let Some(answer) = answer? else { return Ok(Exit::No) };
        let lease = |lease: Option<SessionLease>| lease.context("the response has no lease");
        match answer.news.context("the response has no news")? {
            News::Queued(LeaseQueued { position }) => {
                let json = json!({ "outcome": "queued", "position": position });
                output.print(&json, format_args!("queued at {position}"))?;
            }
            News::Granted(granted) => {
                let lease = lease(granted.lease)?;
                ends = Some(end_of(sent, &lease));
                print_lease(output, "granted", &lease)?;
            }
            News::Renewed(renewed) => {
                let lease = lease(renewed.lease)?;
                ends = Some(end_of(sent, &lease));
                print_lease(output, "renewed", &lease)?;
            }
            News::Held(held) => print_held(output, &held)?,
            News::Waiting(SessionWaiting { waiters }) => {
                let json = json!({ "outcome": "waiting", "waiters": waiters });
                output.print(&json, format_args!("{waiters} waiting"))?;
            }
            News::Alive(_) => {}
        }
    }
}

/// When a lease ends, at the earliest, that the call which was sent at `sent` reports.
fn end_of(sent: Instant, lease: &SessionLease) -> Instant {
    sent + left_after_sending(lease)
}

/// How long after its request was sent a lease ends, at the earliest.
pub(super) fn left_after_sending(lease: &SessionLease) -> Duration {
    let span = |span: Option<prost_types::Duration>| {
        span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default()
    };
    span(lease.elapsed).saturating_add(span(lease.remaining))
}

fn print_held(output: Output, held: &LeaseHeld) -> std::io::Result<()> {
    let remaining = seconds(held.remaining);
    let json = json!({
        "outcome": "held",
        "holder": held.holder,
        "remaining_seconds": remaining,
        "queue_length": held.queue_length,
    });
    let holder = if held.holder.is_empty() {
        "for the next waiter".to_owned()
    } else {
        format!("by {} for {remaining:.1} s", held.holder)
    };
    output.print(&json, format_args!("held {holder}, {} waiting", held.queue_length))
}

async fn renew(args: Renew) -> anyhow::Result<Exit> {
    let message = RenewSessionLeaseRequest {
        session: Some(args.target.key()),
        lease_id: args.lease_id,
        ttl: args.ttl.map(duration),
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.renew_session_lease(request).await?.into_inner();
    print_lease(
        args.client.output,
        "renewed",
        &answer.lease.context("the response has no lease")?,
    )?;
    Ok(Exit::Yes)
}

async fn release(args: Release) -> anyhow::Result<Exit> {
    let message =
        ReleaseSessionLeaseRequest { session: Some(args.target.key()), lease_id: args.lease_id };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.release_session_lease(request).await?.into_inner();
    let text = if answer.released { "released" } else { "not released: no longer held" };
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
    let text = match answer.fencing_token {
        _ if answer.current => "current".to_owned(),
        0 => "stale: no lease of this session is on record".to_owned(),
        latest if latest == args.fencing_token => "stale: its lease has ended".to_owned(),
        latest => format!("stale: the latest fencing token is {latest}"),
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
        lease.lease_id,
        id_of(&lease.session_id, &lease.consumer),
        lease.fencing_token
    );
    output.print(&with_consumer(json, &lease.consumer), text)
}
