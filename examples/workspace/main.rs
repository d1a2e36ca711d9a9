//! A Slack workspace, simulated: threads full of messages that are delivered late, out of
//! order, by two names, and again when they are not acknowledged; and bots that answer
//! them, of which one is killed every few seconds.
//!
//! ```sh
//! cargo run --release --locked --example workspace
//! cargo run --release --locked --example workspace -- --database-url postgres://…
//! ```
//!
//! Each bot is a process with its own replica of oncegate beside it: three of them on one
//! PostgreSQL, or a single one on an SQLite file. They write to a resource that knows
//! fencing tokens, and which judges in the end: every message had its effect, once, by one
//! run at a time. Time is simulated, too: the stores have the clock of the workspace.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use plan::Plan;
use workspace::Workspace;

mod bot;
mod log;
mod plan;
mod process;
mod wire;
mod workspace;

/// A second of the simulated clock, which counts microseconds.
const SECOND: i64 = 1_000_000;
/// Where that clock begins: a moment in 2026.
const START: i64 = 1_790_000_000 * SECOND;
/// How long a run may take before another may have its event.
const CLAIM_TTL: i64 = 30 * SECOND;

/// Simulates a Slack workspace and its bots, and tells whether every message was handled once
#[derive(Debug, Parser)]
#[command(name = "workspace", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many threads there are
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=900))]
    threads: u16,
    /// How many deliveries there are, repetitions not counted
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    deliveries: u32,
    /// How many of 100 messages come twice, under two event ids
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=100))]
    pairs: u32,
    /// What decides all that is left to chance, but for what processes do at the same time
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// After how many deliveries a bot is killed, again and again; unset: 1,000, or 3,000 where
    /// there is one bot
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    kill_every: Option<u64>,
    /// A `postgres://…` for three bots; unset: one bot, on an SQLite file of its own
    #[arg(long)]
    database_url: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// One of the bots
    #[command(hide = true)]
    Bot(bot::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Command::Bot(args)) = cli.command {
        bot::run(args).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let directory = tempfile::tempdir()?;
    let embedded = format!("sqlite://{}", directory.path().join("oncegate.db").display());
    let database_url = cli.database_url.as_ref().unwrap_or(&embedded);
    // The embedded store is for one process.
    let bots = if database_url.starts_with("sqlite:") { 1 } else { 3 };
    let kill_every = cli.kill_every.unwrap_or(3_000 / bots as u64);
    let (threads, deliveries) = (usize::from(cli.threads), usize::try_from(cli.deliveries)?);
    let plan = Plan::new(threads, deliveries, cli.pairs, cli.seed);
    println!("{bots} bots, seed {}", cli.seed);
    let began = Instant::now();
    let mut workspace = Workspace::start(plan, bots, database_url, kill_every, cli.seed)?;
    if let Err(error) = workspace.run().await {
        workspace.log.wrongs.push(format!("{error:#}"));
    }
    Ok(tell(&workspace, began.elapsed()))
}

/// Tells what was seen, and whether it is as it must be.
fn tell(workspace: &Workspace, took: Duration) -> ExitCode {
    let Workspace { plan, figures, log, now, .. } = workspace;
    let seen = &log.seen;
    let [threads, messages, deliveries, lost] =
        [plan.threads, plan.messages.len(), plan.deliveries.len(), log.missing()]
            .map(|count| count as u64);
    for (count, what) in [
        (threads, "threads"),
        (messages, "messages"),
        (deliveries - messages, "messages by another name"),
        (figures.reordered, "messages overtaken by a later one of their thread"),
        (figures.tries, "deliveries"),
        (figures.tries - figures.delivered, "deliveries repeated"),
        (figures.duplicates, "deliveries answered as duplicates"),
        (figures.in_progress, "deliveries answered as in progress"),
        (figures.busy, "deliveries answered as busy"),
        (figures.given_up, "deliveries given up by Slack, of messages handled by another name"),
        (figures.kills, "bots killed"),
        (figures.stalls, "runs that stood still for longer than their claim"),
        (seen.granted, "turns granted"),
        (seen.attempted_again, "turns granted to a later attempt"),
        (figures.handled, "turns ended with success"),
        (figures.failed, "turns ended as failed"),
        (seen.lost, "turns ended too late, and refused"),
        (seen.refused, "stale effects refused by their fencing token"),
        (seen.repeated, "effects repeated for a run that died or stood still, and known"),
        (lost, "messages lost"),
        (seen.twice, "messages handled twice"),
    ] {
        println!("{count:>8} {what}");
    }
    let simulated = Duration::from_micros((now - START).unsigned_abs());
    println!(
        "{} simulated in {:.1} s",
        humantime::format_duration(Duration::from_secs(simulated.as_secs())),
        took.as_secs_f64()
    );
    for wrong in &log.wrongs {
        println!("WRONG: {wrong}");
    }
    if lost == 0 && log.wrongs.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
