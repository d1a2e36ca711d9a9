//! `oncegate exec`: a command that runs while it holds a session's lease.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use self::{
    command::{Run, Signals},
    keeper::{Keeper, Lost, RELEASE_TIMEOUT},
    moment::BootInstant,
};
use super::{
    ClientArgs, Exit, WrongArguments,
    client::{Consumer, exit_of, explain, session},
    lease::Terms,
    report,
};
use crate::{
    config,
    domain::limits::{DEFAULT_LEASE_TTL, WAIT},
    grpc::pb::{SessionKey, acquire_session_lease_response::Outcome},
};

mod command;
mod keeper;
mod moment;

pub(super) const EXIT_CODES: &str = "\
Exit codes: the command's own; 128+N if signal N ended it; 12 if the lease was lost and
oncegate stopped the command. If the command did not run: 1, or --conflict-exit-code, if the
session was not acquired in time; 2 wrong arguments; 4 the service is unavailable; 10 the session
is bound to another epic; 126 the command cannot be run, 127 the command was not found";

/// The lease was lost, and the command ended for it.
const LOST: u8 = 12;
/// The command is there, and cannot be run; or is not there. As `env` has it.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended the command, as shells do.
const BY_SIGNAL: i32 = 128;

/// How soon a server that is away is asked again.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The session: TEAM:CHANNEL:THREAD, or any id that begins with its team
    #[arg(long, value_name = "TEAM:CHANNEL:THREAD", value_parser = team_and_session)]
    session: (String, String),
    #[command(flatten)]
    consumer: Consumer,
    /// Fail immediately if the session is held
    #[arg(short, long, conflicts_with = "wait")]
    nonblock: bool,
    /// Maximum time to wait for the session; unset: no limit
    #[arg(short, long, value_parser = config::duration)]
    wait: Option<Duration>,
    /// Exit code if the session is not acquired in time
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = 1)]
    conflict_exit_code: u8,
    /// Grace period between SIGTERM and SIGKILL. If the lease cannot be renewed, the
    /// command gets SIGTERM this long before the lease ends, and SIGKILL just before it ends.
    /// --ttl must be at least one and a half times (this + 250 ms)
    #[arg(long, default_value = "5s", value_parser = config::duration)]
    kill_after: Duration,
    #[command(flatten)]
    terms: Terms,
    /// The command to run, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
    // Last: its heading holds for all that follows.
    #[command(flatten)]
    client: ClientArgs,
}

/// Reads `--session`: an id that begins with its team.
fn team_and_session(given: &str) -> Result<(String, String), String> {
    match given.split_once(':') {
        Some((team, rest)) if !team.is_empty() && !rest.is_empty() => {
            Ok((team.to_owned(), given.to_owned()))
        }
        _ => Err("must be TEAM:CHANNEL:THREAD".into()),
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    check_times(&args).context(WrongArguments)?;
    // Before there is anything to end, so that none is missed.
    let mut signals = Signals::listen()?;
    let wait = if args.nonblock { Some(Duration::ZERO) } else { args.wait };
    let wanted = Wanted::new(&args);
    let asked = tokio::select! {
        biased;
        asked = wanted.acquire(wait) => asked?,
        signal = signals.next() => {
            // The lease may be on its way.
            let again = wanted.acquire(Some(Duration::ZERO));
            if let Ok(Ok(Ok(keeper))) = timeout(RELEASE_TIMEOUT, again).await {
                keeper.release().await;
            }
            return Ok(exit_code(BY_SIGNAL + signal.as_raw()));
        }
    };
    let keeper = match asked {
        Ok(keeper) => keeper,
        Err(reason) => {
            report(reason);
            return Ok(ExitCode::from(args.conflict_exit_code));
        }
    };
    supervise(&args, keeper, &mut signals).await
}

/// The command must be able to end, and its lease to be renewed before that, within one TTL.
fn check_times(args: &Args) -> anyhow::Result<()> {
    let ttl = args.terms.ttl.unwrap_or(DEFAULT_LEASE_TTL);
    let least = Keeper::least_ttl(args.kill_after);
    ensure!(
        ttl >= least,
        "--ttl {} is too short for --kill-after {}: must be {} or more, so that the command ends \
         before its lease",
        humantime::format_duration(ttl),
        humantime::format_duration(args.kill_after),
        humantime::format_duration(least),
    );
    Ok(())
}

/// One attempt at the lease, however often it is asked for: a lost answer is found
/// again.
struct Wanted<'a> {
    args: &'a Args,
    key: SessionKey,
    request_id: String,
}

impl<'a> Wanted<'a> {
    fn new(args: &'a Args) -> Self {
        let (team, id) = &args.session;
        let request_id = uuid::Uuid::new_v4().to_string();
        Self { args, key: session(team.clone(), id.clone(), &args.consumer), request_id }
    }

    /// Acquires a lease that a command can start under, or returns why there is none when the
    /// wait has ended.
    async fn acquire(&self, wait: Option<Duration>) -> anyhow::Result<Result<Keeper, String>> {
        let begun = Instant::now();
        let mut is_quiet = true;
        loop {
            let left = wait.map(|wait| wait.saturating_sub(begun.elapsed()));
            let is_last = left.is_some_and(|left| left.is_zero());
            let mut granted = None;
            let attempt = match self.ask(left.unwrap_or(*WAIT.end()).min(*WAIT.end())).await {
                Ok(Ok(mut keeper)) => match keeper.prepare().await {
                    Ok(()) => return Ok(Ok(keeper)),
                    Err(status) if status.code() == Code::FailedPrecondition => {
                        let session = &self.args.session.1;
                        Ok(format!("the lease of {session} was lost before the command started"))
                    }
                    Err(status) => {
                        granted = Some(keeper);
                        Err(status.into())
                    }
                },
                Ok(Err(held)) => Ok(held),
                Err(error) => Err(error),
            };
            match attempt {
                Ok(reason) if is_last => return Ok(Err(reason)),
                // A caller that means to wait is not put off by a server that ends, or is
                // away; nor by one that is full.
                Err(error) if is_last || !is_passing(&error) => {
                    if let Some(keeper) = granted {
                        keeper.release().await;
                    }
                    return Err(error);
                }
                Err(error) if std::mem::take(&mut is_quiet) => {
                    report(format_args!("waiting: {}", explain(&error)));
                }
                Ok(_) | Err(_) => {}
            }
            let left = wait.map_or(PAUSE, |wait| wait.saturating_sub(begun.elapsed()));
            sleep(left.min(PAUSE)).await;
        }
    }

    /// Asks once, and waits for as long. Returns who holds the session if it is not granted.
    async fn ask(&self, wait: Duration) -> anyhow::Result<Result<Keeper, String>> {
        let args = &self.args.client;
        let mut client = args.connect().await?;
        let message = self.args.terms.request(self.key.clone(), wait, self.request_id.clone());
        let sent = BootInstant::now();
        let answer = client.acquire_session_lease(args.request(message, wait)).await?.into_inner();
        let lease = match answer.outcome.context("the response has no outcome")? {
            Outcome::Held(held) => {
                let holder = if held.holder.is_empty() { "another holder" } else { &held.holder };
                return Ok(Err(format!("{} is held by {holder}", self.args.session.1)));
            }
            Outcome::Lease(lease) => lease,
        };
        Ok(Ok(Keeper {
            client,
            args: args.clone(),
            key: self.key.clone(),
            lease,
            ttl: self.args.terms.ttl.unwrap_or(DEFAULT_LEASE_TTL),
            kill_after: self.args.kill_after,
            sent,
        }))
    }
}

/// Whether a call that failed so may succeed when it is repeated.
fn is_passing(error: &anyhow::Error) -> bool {
    exit_of(error) == Exit::Unavailable
}

/// Runs the command, until it ends or the lease is lost, and gives the lease back.
async fn supervise(
    args: &Args,
    mut keeper: Keeper,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let mut run = match Run::start(&args.command, &keeper.lease) {
        Ok(run) => run,
        Err(error) => {
            keeper.release().await;
            let (program, _) = args.command.split_first().context("no command")?;
            report(format_args!("error: cannot run {}: {error}", program.display()));
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if is_missing { NOT_FOUND } else { CANNOT_RUN }));
        }
    };
    let kept = tokio::select! {
        // A command that has ended by itself has not lost its lease.
        biased;
        ended = run.end(signals) => Ok(ended),
        lost = keeper.keep() => Err(lost),
    };
    let (exit, is_held) = match kept {
        Ok(ended) => (ended.map(code_of), true),
        Err(Lost { reason, by, is_held }) => {
            report(format_args!(
                "lost the lease of {}: {reason}; stopping the command",
                args.session.1
            ));
            (run.stop(by, signals).await.map(|()| ExitCode::from(LOST)), is_held)
        }
    };
    if is_held {
        keeper.release().await;
    }
    Ok(exit?)
}

/// As the command ended, so do we.
fn code_of(status: ExitStatus) -> ExitCode {
    exit_code(status.code().or_else(|| Some(BY_SIGNAL + status.signal()?)).unwrap_or(1))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
