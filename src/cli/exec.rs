//! `oncegate exec`: a command that runs while it holds a session's lease.

use std::{
    ffi::OsString,
    future::poll_fn,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    process::{ExitCode, ExitStatus},
    task::Poll,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    signal::unix::{self, SignalKind},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tonic::{Code, transport::Channel};

use super::{
    ClientArgs, Exit,
    client::{duration, exit_of, explain, session},
    lease::Terms,
    tell,
};
use crate::{
    domain::limits::{DEFAULT_LEASE_TTL, WAIT},
    grpc::pb::{
        LeaseHeld, ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, SessionKey, SessionLease,
        acquire_session_lease_response::Outcome,
        idempotency_service_client::IdempotencyServiceClient,
    },
};

pub(super) const EXIT_CODES: &str = "\
Exit codes: the command's own; 128+N where signal N ended it. Where it did not run: 1, or
--conflict-exit-code, where the session could not be had in time; 2 wrong arguments; 4 the
service is away; 10 the session is bound to another epic; 126 the command cannot be run, 127
there is none. 12 where the lease was lost, and the command ended for it";

/// The lease was lost, and the command ended for it.
const LOST: u8 = 12;
/// The command is there, and cannot be run; or is not there. As `env` has it.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended the command, as shells do.
const BY_SIGNAL: i32 = 128;

/// What is passed on to the command.
const FORWARDED: [SignalKind; 6] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// How soon a server that is away is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long to look for a lease that is on its way as a signal comes.
const LAST_WORD: Duration = Duration::from_secs(2);
/// How soon one renewal may follow another.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The session, TEAM:CHANNEL:THREAD, or any id that begins with its team
    #[arg(long, value_name = "TEAM:CHANNEL:THREAD", value_parser = team_and_session)]
    session: (String, String),
    /// Do not wait for the session
    #[arg(short, long, conflicts_with = "wait")]
    nonblock: bool,
    /// How long to wait for the session; unset: until it can be had
    #[arg(short, long, value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// The exit code where the session cannot be had in time
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = 1)]
    conflict_exit_code: u8,
    /// How long the command has to end once the lease is lost, before it is killed
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    kill_after: Duration,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    client: ClientArgs,
    /// The command to run, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
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
            if let Ok(Ok(Ok(keeper))) = timeout(LAST_WORD, again).await {
                keeper.release().await;
            }
            return Ok(exit_code(BY_SIGNAL + signal.as_raw()));
        }
    };
    let mut keeper = match asked {
        Ok(keeper) => keeper,
        Err(held) => {
            let holder = if held.holder.is_empty() { "another" } else { &held.holder };
            tell(format_args!("{} is held by {holder}", args.session.1));
            return Ok(ExitCode::from(args.conflict_exit_code));
        }
    };
    let exit = supervise(&args, &mut keeper, &mut signals).await;
    keeper.release().await;
    exit
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
        Self { args, key: session(team.clone(), id.clone()), request_id }
    }

    /// Takes the lease, or tells who holds it still when the wait has ended.
    async fn acquire(&self, wait: Option<Duration>) -> anyhow::Result<Result<Keeper, LeaseHeld>> {
        let begun = Instant::now();
        let mut is_quiet = true;
        loop {
            let left = wait.map(|wait| wait.saturating_sub(begun.elapsed()));
            let is_last = left.is_some_and(|left| left.is_zero());
            match self.ask(left.unwrap_or(*WAIT.end()).min(*WAIT.end())).await {
                Ok(Err(held)) if is_last => return Ok(Err(held)),
                // Whoever means to wait is not put off by a server that ends, or is
                // away; nor by one that is full.
                Err(error) if is_last || !is_passing(&error) => return Err(error),
                Err(error) if std::mem::take(&mut is_quiet) => {
                    tell(format_args!("waiting: {}", explain(&error)));
                }
                Ok(Ok(keeper)) => return Ok(Ok(keeper)),
                Ok(Err(_)) | Err(_) => {}
            }
            let left = wait.map_or(PAUSE, |wait| wait.saturating_sub(begun.elapsed()));
            sleep(left.min(PAUSE)).await;
        }
    }

    /// Asks once, and waits for as long.
    async fn ask(&self, wait: Duration) -> anyhow::Result<Result<Keeper, LeaseHeld>> {
        let args = &self.args.client;
        let mut client = args.connect().await?;
        let message = self.args.terms.request(self.key.clone(), wait, self.request_id.clone());
        let sent = Instant::now();
        let answer = client.acquire_session_lease(args.request(message, wait)).await?.into_inner();
        Ok(match answer.outcome.context("the server gave no outcome")? {
            Outcome::Held(held) => Err(held),
            Outcome::Lease(lease) => Ok(Keeper {
                client,
                args: args.clone(),
                key: self.key.clone(),
                ttl: self.args.terms.ttl.unwrap_or(DEFAULT_LEASE_TTL),
                ends: sent + remaining(&lease),
                lease,
            }),
        })
    }
}

/// Whether a call that failed so may succeed when it is repeated.
fn is_passing(error: &anyhow::Error) -> bool {
    exit_of(error) == Exit::Unavailable
}

fn remaining(lease: &SessionLease) -> Duration {
    lease.remaining.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default()
}

/// Runs the command, until it ends or the lease is lost.
async fn supervise(
    args: &Args,
    keeper: &mut Keeper,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let mut run = match Run::start(args, &keeper.lease) {
        Ok(run) => run,
        Err(error) => {
            let (program, _) = args.command.split_first().context("no command")?;
            tell(format_args!("error: cannot run {}: {error}", program.display()));
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if is_missing { NOT_FOUND } else { CANNOT_RUN }));
        }
    };
    tokio::select! {
        // A command that has ended by itself has not lost its lease.
        biased;
        ended = run.end(signals) => Ok(code_of(ended?)),
        reason = keeper.keep() => {
            tell(format_args!("the lease of {} is lost: {reason}", args.session.1));
            run.stop(args.kill_after, signals).await?;
            Ok(ExitCode::from(LOST))
        }
    }
}

/// What it takes to keep a lease.
struct Keeper {
    client: IdempotencyServiceClient<Channel>,
    args: ClientArgs,
    key: SessionKey,
    lease: SessionLease,
    ttl: Duration,
    /// When it ends, counted from when it was asked for.
    ends: Instant,
}

impl Keeper {
    /// Renews the lease for as long as that can be done, and tells why it cannot
    /// any more; no later than it ends.
    async fn keep(&mut self) -> String {
        let mut sent = Instant::now();
        loop {
            // When a third of what is left is over.
            let pause = (self.ends.saturating_duration_since(sent) / 3).max(LEAST_PAUSE);
            sleep_until((sent + pause).min(self.ends)).await;
            sent = Instant::now();
            let message = RenewSessionLeaseRequest {
                session: Some(self.key.clone()),
                lease_id: self.lease.lease_id.clone(),
                ttl: Some(duration(self.ttl)),
            };
            let request = self.args.request(message, Duration::ZERO);
            match timeout_at(self.ends, self.client.renew_session_lease(request)).await {
                Ok(Ok(answer)) => {
                    if let Some(lease) = answer.into_inner().lease {
                        self.ends = sent + remaining(&lease);
                    }
                }
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                    return status.message().to_owned();
                }
                // It is tried again, when a third of what is left is over.
                Ok(Err(_)) if Instant::now() < self.ends => {}
                Ok(Err(status)) => return format!("not renewed in time: {}", status.message()),
                Err(_) => return "it has ended".to_owned(),
            }
        }
    }

    /// Gives the lease back. If that fails, it ends with its TTL.
    async fn release(mut self) {
        let session = Some(self.key.clone());
        let message = ReleaseSessionLeaseRequest { session, lease_id: self.lease.lease_id.clone() };
        let request = self.args.request(message, Duration::ZERO);
        if let Err(status) = self.client.release_session_lease(request).await {
            tell(format_args!("the lease ends with its TTL: {}", status.message()));
        }
    }
}

/// The command, as it runs.
struct Run {
    child: Child,
    pid: Pid,
    /// Whether it has a process group of its own. At a terminal it has ours: or
    /// it could not read from there, and would not see its keys.
    is_group: bool,
}

impl Run {
    fn start(args: &Args, lease: &SessionLease) -> io::Result<Self> {
        let is_group = !io::stdin().is_terminal();
        let mut words = args.command.iter();
        let mut command = Command::new(words.next().ok_or(io::ErrorKind::InvalidInput)?);
        command
            .args(words)
            .env("ONCEGATE_SESSION", &lease.session_id)
            .env("ONCEGATE_LEASE_ID", &lease.lease_id)
            .env("ONCEGATE_FENCING_TOKEN", lease.fencing_token.to_string());
        if is_group {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("it has no process id"))?;
        Ok(Self { child, pid, is_group })
    }

    /// Waits until the command ends, and passes signals on to it.
    async fn end(&mut self, signals: &mut Signals) -> io::Result<ExitStatus> {
        loop {
            tokio::select! {
                ended = self.child.wait() => return ended,
                signal = signals.next() => {
                    // The terminal has told everybody already.
                    let is_keyed = matches!(signal, Signal::INT | Signal::QUIT | Signal::HUP);
                    if self.is_group || !is_keyed {
                        self.send(signal);
                    }
                }
            }
        }
    }

    /// Ends the command: by force, if it has not ended after `grace`.
    async fn stop(&mut self, grace: Duration, signals: &mut Signals) -> io::Result<()> {
        self.send(Signal::TERM);
        let ended = timeout(grace, self.end(signals)).await;
        if self.is_group || ended.is_err() {
            // What it has started goes with it.
            self.send(Signal::KILL);
        }
        self.child.wait().await.map(drop)
    }

    /// It may have ended by now.
    fn send(&self, signal: Signal) {
        let send = if self.is_group { kill_process_group } else { kill_process };
        let _ = send(self.pid, signal);
    }
}

/// The signals that are passed on.
struct Signals(Vec<(SignalKind, unix::Signal)>);

impl Signals {
    fn listen() -> io::Result<Self> {
        // One that was ignored before us, as `nohup` does, stays ignored: by the
        // command as well, which would not know of it otherwise.
        let ignored = ignored();
        let heeded = |kind: &SignalKind| ignored >> (kind.as_raw_value() - 1) & 1 == 0;
        let listen = |kind| Ok((kind, unix::signal(kind)?));
        FORWARDED.into_iter().filter(heeded).map(listen).collect::<io::Result<_>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            for (kind, signals) in &mut self.0 {
                if let Poll::Ready(Some(())) = signals.poll_recv(context)
                    && let Some(signal) = Signal::from_named_raw(kind.as_raw_value())
                {
                    return Poll::Ready(signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The signals that this process was started to ignore, as a mask; none where the
/// system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// As the command ended, so do we.
fn code_of(status: ExitStatus) -> ExitCode {
    exit_code(status.code().or_else(|| Some(BY_SIGNAL + status.signal()?)).unwrap_or(1))
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
