//! The mode of this program that a replica runs: `oncegate serve`, with a clock that the testbed
//! moves, and an end as soon as the testbed has ended.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use clap::Parser as _;
use oncegate::{
    cli::Cli,
    store::{Clock, ManualClock},
};
use rustix::process::{Signal, getpid, kill_process};

/// The first argument.
pub const MODE: &str = "serve";
/// What it prints once it has moved its clock.
pub const MOVED: &str = "moved";

/// What is first on standard input, and after it on each line how far the clock moves, in
/// milliseconds.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum FirstLine {
    /// The store's own clock is used, and does not move.
    Store,
    /// A clock that runs, so far ahead of the machine's, in milliseconds.
    Ahead(u64),
}

/// Runs the service.
pub fn run() -> anyhow::Result<ExitCode> {
    // It ends with the testbed's main thread, even if it is stopped.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let mut cli = Cli::parse();
    let clock = match serde_json::from_str(&line)? {
        FirstLine::Store => None,
        FirstLine::Ahead(ahead) => {
            let clock = Arc::new(ManualClock::running_from(machine_micros()?));
            clock.advance(Duration::from_millis(ahead));
            cli.clock = Clock::Manual(Arc::clone(&clock));
            Some(clock)
        }
    };
    thread::spawn(move || {
        let _ = follow(clock.as_deref());
        // For systems without a death signal.
        let _ = kill_process(getpid(), Signal::KILL);
    });
    Ok(cli.run())
}

/// Moves the clock until standard input closes.
fn follow(clock: Option<&ManualClock>) -> anyhow::Result<()> {
    for line in io::stdin().lines() {
        let span = Duration::from_millis(line?.parse()?);
        if let Some(clock) = clock {
            clock.advance(span);
        }
        writeln!(io::stdout(), "{MOVED}")?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the embedded store's clock is this machine's")]
fn machine_micros() -> anyhow::Result<i64> {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(time.as_micros().try_into()?)
}
