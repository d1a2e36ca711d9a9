//! `oncegate sessions list|show|bind|release|close`, `oncegate forget` and `oncegate stats`: the
//! operator API.

use std::{io, time::Duration};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use serde_json::json;
use tonic::{Code, Response, Status};

use super::{
    ClientArgs, Exit,
    client::{Consumer, Output, event, id_of, moment, seconds, with_consumer},
    lease::Target,
    report,
};
use crate::{
    domain::limits::MAX_PAGE_SIZE,
    grpc::pb::{
        BindEpicRequest, CloseSessionRequest, ForceReleaseSessionLeaseRequest, ForgetEventRequest,
        GetSessionRequest, GetStatsRequest, ListSessionsRequest, Session, SessionState,
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the sessions on record, ordered by id
    List(List),
    /// Show one session
    #[command(after_help = "Exit codes: 0 on record, 10 not on record")]
    Show(Show),
    /// Bind a session to another epic, or to none
    Bind(Bind),
    /// Force-release the lease of a session
    #[command(after_help = "Exit codes: 0 released, 10 not held")]
    Release(Release),
    /// Force-release the lease of a session, and delete the session with its epic
    #[command(after_help = "Exit codes: 0 closed, 10 not on record")]
    Close(Close),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only this team's sessions
    #[arg(long)]
    team: Option<String>,
    /// Only sessions in this state
    #[arg(long, value_enum)]
    state: Option<ListedSessions>,
    /// Maximum number of sessions to print; 0: all
    #[arg(long, value_name = "SESSIONS", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which sessions are listed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ListedSessions {
    /// A caller holds its lease.
    Held,
    /// No caller does.
    Free,
}

impl From<ListedSessions> for SessionState {
    fn from(state: ListedSessions) -> Self {
        match state {
            ListedSessions::Held => Self::Held,
            ListedSessions::Free => Self::Free,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    client: ClientArgs,
}

/// Who changes something.
#[derive(Debug, clap::Args)]
struct Actor {
    /// Actor, for the server's audit log
    #[arg(long, env = "USER", default_value = "oncegate-cli")]
    actor: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Bind {
    #[command(flatten)]
    target: Target,
    // Not empty, as an unset variable is: nothing is unbound by mistake.
    /// The epic to bind it to
    #[arg(required_unless_present = "unbind", value_parser = NonEmptyStringValueParser::new())]
    epic: Option<String>,
    /// Bind it to none
    #[arg(long, conflicts_with = "epic")]
    unbind: bool,
    /// Reason, for the server's audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Release {
    #[command(flatten)]
    target: Target,
    /// Reason, for the server's audit log
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Close {
    #[command(flatten)]
    target: Target,
    /// Reason, for the server's audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Forget {
    /// The team of the event
    team: String,
    /// The event's id, as stored
    event: String,
    #[command(flatten)]
    consumer: Consumer,
    /// Reason, for the server's audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    /// Only this team's events and sessions
    #[arg(long)]
    team: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn sessions(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List(args) => list(args).await,
        Command::Show(args) => show(args).await,
        Command::Bind(args) => bind(args).await,
        Command::Release(args) => release(args).await,
        Command::Close(args) => close(args).await,
    }
}

async fn list(args: List) -> anyhow::Result<Exit> {
    let mut client = args.client.admin().await?;
    let mut left = if args.limit == 0 { u32::MAX } else { args.limit };
    let mut page_token = String::new();
    loop {
        let message = ListSessionsRequest {
            team_id: args.team.clone().unwrap_or_default(),
            state: args.state.map_or(SessionState::Unspecified, SessionState::from).into(),
            page_size: left.min(MAX_PAGE_SIZE).cast_signed(),
            page_token,
        };
        let request = args.client.request(message, Duration::ZERO);
        let answer = client.list_sessions(request).await?.into_inner();
        for session in &answer.sessions {
            print_session(args.client.output, session)?;
            left = left.saturating_sub(1);
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(Exit::Yes);
        }
        if left == 0 {
            report("more sessions exist; --limit 0 lists all");
            return Ok(Exit::Yes);
        }
    }
}

async fn show(args: Show) -> anyhow::Result<Exit> {
    let Target { team, session, consumer } = &args.target;
    let not_found = json!({ "team_id": team, "session_id": session, "state": "NOT_FOUND" });
    let not_found = with_consumer(not_found, &consumer.name());
    let text = format!("not on record {team} {}", id_of(session, &consumer.name()));
    let message = GetSessionRequest { session: Some(args.target.key()) };
    let request = args.client.request(message, Duration::ZERO);
    let Some(answer) = found(args.client.admin().await?.get_session(request).await)? else {
        args.client.output.print(&not_found, text)?;
        return Ok(Exit::No);
    };
    print_session(args.client.output, &answer.session.context("the response has no session")?)?;
    Ok(Exit::Yes)
}

async fn bind(args: Bind) -> anyhow::Result<Exit> {
    let message = BindEpicRequest {
        session: Some(args.target.key()),
        epic_id: args.epic.filter(|_| !args.unbind).unwrap_or_default(),
        actor: args.actor.actor,
        reason: args.reason.unwrap_or_default(),
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.admin().await?.bind_epic(request).await?.into_inner();
    print_session(args.client.output, &answer.session.context("the response has no session")?)?;
    Ok(Exit::Yes)
}

async fn release(args: Release) -> anyhow::Result<Exit> {
    let Target { team, session, consumer } = args.target.clone();
    let message = ForceReleaseSessionLeaseRequest {
        session: Some(args.target.key()),
        actor: args.actor.actor,
        reason: args.reason,
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.admin().await?.force_release_session_lease(request).await?;
    let released = answer.into_inner().released;
    let json = json!({ "team_id": team, "session_id": session, "released": released });
    let outcome = if released { "released" } else { "not held" };
    let (json, id) = (with_consumer(json, &consumer.name()), id_of(&session, &consumer.name()));
    args.client.output.print(&json, format_args!("{outcome} {team} {id}"))?;
    Ok(if released { Exit::Yes } else { Exit::No })
}

async fn close(args: Close) -> anyhow::Result<Exit> {
    let Target { team, session, consumer } = args.target.clone();
    let message = CloseSessionRequest {
        session: Some(args.target.key()),
        actor: args.actor.actor,
        reason: args.reason.unwrap_or_default(),
    };
    let request = args.client.request(message, Duration::ZERO);
    let closed = args.client.admin().await?.close_session(request).await?.into_inner().closed;
    let json = json!({ "team_id": team, "session_id": session, "closed": closed });
    let outcome = if closed { "closed" } else { "not on record" };
    let (json, id) = (with_consumer(json, &consumer.name()), id_of(&session, &consumer.name()));
    args.client.output.print(&json, format_args!("{outcome} {team} {id}"))?;
    Ok(if closed { Exit::Yes } else { Exit::No })
}

pub(super) async fn forget(args: Forget) -> anyhow::Result<Exit> {
    let message = ForgetEventRequest {
        event: Some(event(args.team.clone(), args.event.clone(), &args.consumer)),
        actor: args.actor.actor,
        reason: args.reason.unwrap_or_default(),
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = found(args.client.admin().await?.forget_event(request).await)?;
    let forgotten = answer.is_some();
    let event = answer.and_then(|answer| answer.event).unwrap_or_default();
    let json = json!({
        "team_id": args.team,
        "event_id": args.event,
        "forgotten": forgotten,
        "process_time": moment(event.process_time),
        "expire_time": moment(event.expire_time),
    });
    let outcome = if forgotten { "forgotten" } else { "not on record" };
    let consumer = args.consumer.name();
    let (json, id) = (with_consumer(json, &consumer), id_of(&args.event, &consumer));
    args.client.output.print(&json, format_args!("{outcome} {} {id}", args.team))?;
    Ok(if forgotten { Exit::Yes } else { Exit::No })
}

pub(super) async fn stats(args: Stats) -> anyhow::Result<Exit> {
    let message = GetStatsRequest { team_id: args.team.unwrap_or_default() };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.admin().await?.get_stats(request).await?.into_inner();
    let json = json!({
        "events": answer.events,
        "expired_events": answer.expired_events,
        "sessions": answer.sessions,
        "held_sessions": answer.held_sessions,
        "waiters": answer.waiters,
    });
    let text = format!(
        "{} events, {} expired, {} sessions, {} held, {} waiting",
        answer.events, answer.expired_events, answer.sessions, answer.held_sessions, answer.waiters,
    );
    args.client.output.print(&json, text)?;
    Ok(Exit::Yes)
}

/// What was found; none where nothing is on record.
fn found<T>(answer: Result<Response<T>, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

fn print_session(output: Output, session: &Session) -> io::Result<()> {
    let json = json!({
        "team_id": session.team_id,
        "session_id": session.session_id,
        "state": session.state().as_str_name(),
        "holder": session.holder,
        "fencing_token": session.fencing_token,
        "acquire_time": moment(session.acquire_time),
        "expire_time": moment(session.expire_time),
        "remaining_seconds": session.remaining.map(|left| seconds(Some(left))),
        "epic_id": session.epic_id,
        "labels": session.labels,
        "waiters": session.waiters,
    });
    output.print(&with_consumer(json, &session.consumer), line(session))
}

fn line(session: &Session) -> String {
    let Session { team_id, session_id, holder, epic_id, .. } = session;
    // A canonical id begins with its team.
    let names_team = session_id.strip_prefix(team_id).is_some_and(|rest| rest.starts_with(':'));
    let team = if names_team { String::new() } else { format!("{team_id} ") };
    let state = if session.state() == SessionState::Held {
        format!("held by {holder} for {:.1} s", seconds(session.remaining))
    } else {
        "free".to_owned()
    };
    let waiting = match session.waiters {
        0 => String::new(),
        waiters => format!(", {waiters} waiting"),
    };
    let epic = if epic_id.is_empty() { String::new() } else { format!(", epic {epic_id}") };
    let id = id_of(session_id, &session.consumer);
    format!("{team}{id} {state}, token {}{waiting}{epic}", session.fencing_token)
}
