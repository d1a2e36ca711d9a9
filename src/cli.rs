//! The command line: one file a command.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::{
    config::{LogConfig, ServeConfig, StoreConfig},
    store::Clock,
};

mod admin;
mod check;
mod cleanup;
mod client;
mod doctor;
mod exec;
mod fence;
mod given;
mod health;
mod lease;
mod mark;
mod serve;
mod server_info;
mod token;
mod turns;

use client::ClientArgs;

/// How a command ends. The same numbers stand in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// Yes: first, processed, granted, renewed, released, current, closed,
    /// forgotten, serving.
    Yes = 0,
    /// Something failed that has no number of its own.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// Some lines of the input could not be marked.
    BadLines = 3,
    /// The service is away, busy or too slow: try again.
    Unavailable = 4,
    /// No: duplicate, not seen, held, lost, not released, stale, bound to
    /// another epic, not on record, not serving.
    No = 10,
    /// `check`: a run is processing the event.
    InProgress = 11,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Marks an error that the arguments are to blame for, where their parser
/// cannot see it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("wrong arguments")]
struct WrongArguments;

const EXIT_CODES: &str = "\
Exit codes:
   0  yes: first, processed, granted, renewed, released, current, closed,
      forgotten, serving
   1  failed
   2  wrong arguments
   3  some input lines could not be marked (mark --slack)
   4  the service is unavailable, busy or too slow; retry
  10  no: duplicate, not seen, held, lease lost, not released, stale, bound to
      another epic, not on record, not serving
  11  in progress (check)";

/// Idempotency and session leases for bots in any language.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten, next_help_heading = "Log")]
    log: LogConfig,
    /// The clock of the service that is run: [`Clock::Store`] but in tests.
    #[arg(skip)]
    pub clock: Clock,
    /// The settings that differ from their defaults.
    #[arg(skip)]
    given: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    #[command(after_help = crate::domain::limits::summary())]
    Serve(Box<ServeConfig>),
    /// Migrate the database schema, and exit
    Migrate(StoreConfig),
    /// Check the store that `serve` would use with the same settings
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(Box<doctor::Args>),
    /// Show the floor of fencing tokens, or raise it after a restore
    #[command(subcommand)]
    Fence(fence::Command),
    /// Mark an event, or a stream of Slack deliveries, as processed
    #[command(after_help = "Exit codes: 0 first, 10 duplicate; with --slack 0, or 3 if some \
        lines could not be marked")]
    Mark(mark::Args),
    /// Check whether an event has been processed
    #[command(after_help = "Exit codes: 0 processed, 10 not seen, 11 in progress")]
    Check(check::Args),
    /// Acquire, hold, renew, release or check the lease of a session
    #[command(subcommand)]
    Lease(lease::Command),
    /// Run a command while holding the lease of a session
    #[command(after_help = exec::EXIT_CODES)]
    Exec(exec::Args),
    /// Inspect and repair sessions
    #[command(subcommand)]
    Sessions(admin::Command),
    /// List events that are in progress, failed, given up or rejected
    Turns(turns::Args),
    /// Delete the record of an event, so that its next delivery is first
    #[command(after_help = "Exit codes: 0 forgotten, 10 not on record")]
    Forget(admin::Forget),
    /// Count events, sessions and waiters
    Stats(admin::Stats),
    /// Delete expired or old rows
    Cleanup(cleanup::Args),
    /// Check whether the service is healthy
    #[command(after_help = "Exit codes: 0 serving, 4 cannot be reached, 10 not serving or unknown")]
    Health(health::Args),
    /// Show the version, limits and features of a server
    ServerInfo(server_info::Args),
    /// Make tokens for the `--auth` file
    #[command(subcommand)]
    Token(token::Command),
}

impl Cli {
    /// Reads the command line and the environment; ends the process if they are wrong.
    #[must_use]
    pub fn read() -> Self {
        let mut command = Self::command();
        command.build();
        let matches = command.clone().get_matches();
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        Self { given: given::given(&command, &matches), ..cli }
    }

    /// Runs the command.
    #[must_use]
    pub fn run(self) -> ExitCode {
        self.execute().unwrap_or_else(|error| {
            let nobody_reads = error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
            if !nobody_reads {
                report(format_args!("error: {}", client::explain(&error)));
            }
            client::exit_of(&error).into()
        })
    }

    fn execute(self) -> anyhow::Result<ExitCode> {
        crate::telemetry::init_logs(&self.log.log, self.log.log_format)
            .context("--log")
            .context(WrongArguments)?;
        // The service has threads of its own for its calls.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build()?.block_on(async {
            let exit = match self.command {
                // Ends as its command does.
                Command::Exec(args) => return exec::run(args).await,
                Command::Serve(config) => serve::run(*config, self.clock, &self.given).await,
                Command::Migrate(config) => serve::migrate(config).await,
                Command::Doctor(args) => doctor::run(*args).await,
                Command::Fence(command) => fence::run(command).await,
                Command::Mark(args) => mark::run(args).await,
                Command::Check(args) => check::run(args).await,
                Command::Lease(command) => lease::run(command).await,
                Command::Sessions(command) => admin::sessions(command).await,
                Command::Turns(args) => turns::run(args).await,
                Command::Forget(args) => admin::forget(args).await,
                Command::Stats(args) => admin::stats(args).await,
                Command::Cleanup(args) => cleanup::run(args).await,
                Command::Health(args) => health::run(args).await,
                Command::ServerInfo(args) => server_info::run(args).await,
                Command::Token(command) => token::run(&command),
            };
            exit.map(ExitCode::from)
        })
    }
}

/// Tells a person something; nothing depends on whether they can read it.
fn report(what: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
