//! oncegate beside its rivals, on one machine, in one run:
//!
//! ```sh
//! cargo run --release -p oncegate-bench               # everything: three quarters of an hour
//! cargo run --release -p oncegate-bench -- --quick    # a look: about a minute
//! cargo run --release -p oncegate-bench -- --only P1,P5 --rounds 3 --json results.json
//! cargo run --release -p oncegate-bench -- --only curve --chart curve.svg
//! cargo run --release -p oncegate-bench -- --only churn --rounds 1    # half an hour
//! ```
//!
//! It starts a private PostgreSQL with `fsync` and `synchronous_commit` on, and
//! Redis and etcd where they are on the path, all on one disk, which `TMPDIR`
//! chooses; and the release build of `oncegate serve` anew for each run. Every
//! load is a process of its own, this program again, so that its cost is known.
//! In each round everything that a goal compares runs once, in turn; a ratio is
//! taken within its round, and its median over the rounds is what meets the goal
//! or misses it.
//!
//! Nothing is left out without a word: what is not there, fails or answers
//! wrongly makes its goals NOT MEASURED, and the report says why.
//!
//! Progress goes to standard error, the report to standard output. Linux only:
//! what things cost is read from `/proc`.

#![expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};

use bench::{Bench, Churn, Times};
use goals::{GOALS, Goal};
use machine::Machine;
use results::{GoalResult, Results, Spread, SubjectResult};
use run::{Job, Run};

mod bench;
mod chart;
mod cluster;
mod goals;
mod handover;
mod http;
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::doc_markdown,
    clippy::many_single_char_names,
    reason = "small numbers are cut out of large ones: buckets, frames, digits"
)]
mod load;
mod machine;
mod peers;
mod pgbench;
mod process;
mod proxy;
mod results;
mod rivals;
mod run;
mod server;
mod table;

/// Runs oncegate and its rivals in turn, and tells which goals are met
#[derive(Debug, Parser)]
#[command(name = "oncegate-bench")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// One short round, without what takes long to prepare
    #[arg(long)]
    quick: bool,
    /// How many rounds; 5 unless --quick
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each load measures, in seconds; 5 unless --quick
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these, such as P1,P3,curve
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// `churn`: how often marks come, expire and are swept, 3 or more
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    churn_rounds: usize,
    /// `churn`: how many marks come each time
    #[arg(long, value_name = "COUNT", default_value_t = 5_000_000)]
    churn_marks: u64,
    /// `churn`: how long they live, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    churn_ttl: i64,
    /// Where to write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to draw the curve over the callers
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one load, and prints its report
    #[command(hide = true)]
    Load {
        /// A `Job`, in JSON
        job: String,
    },
}

impl Cli {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    fn times(&self) -> Times {
        let (warmup, seconds) = if self.quick { (0.3, 1.0) } else { (1.0, 5.0) };
        Times { warmup, seconds: self.seconds.unwrap_or(seconds) }
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.rounds() > 0, "--rounds must be 1 or more");
        let seconds = self.times().seconds;
        ensure!((0.1..=3600.0).contains(&seconds), "--seconds must be 0.1 to 3600");
        ensure!(self.churn_rounds >= 3, "--churn-rounds must be 3 or more");
        ensure!(self.churn_marks > 0, "--churn-marks must be 1 or more");
        ensure!((1..=3600).contains(&self.churn_ttl), "--churn-ttl must be 1 to 3600");
        for name in &self.only {
            let known: Vec<_> = GOALS.iter().map(|goal| goal.name).collect();
            ensure!(known.contains(&name.as_str()), "--only {name}: one of {}", known.join(", "));
        }
        let curve = self.why_not(&goals::CURVE).is_none();
        ensure!(self.chart.is_none() || curve, "--chart draws the curve: add it to --only");
        Ok(())
    }

    /// Why a goal is not run, if it is not.
    fn why_not(&self, goal: &Goal) -> Option<&'static str> {
        if self.only.iter().any(|name| name == goal.name) {
            return None;
        }
        if !self.only.is_empty() {
            return Some("not asked for: see --only");
        }
        if goal.name == goals::CHURN.name {
            return Some("takes half an hour: ask for it with --only churn");
        }
        (self.quick && goal.full_only).then_some("takes too long for --quick")
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if let Some(Command::Load { job }) = &cli.command {
        let job: Job = serde_json::from_str(job).context("read the job")?;
        println!("{}", serde_json::to_string(&job.run()?)?);
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(!cfg!(debug_assertions), "an unoptimised client measures itself: use --release");
    cli.check()?;
    let results = measure(&cli)?;
    println!("{}", table::render(&results));
    if let Some(file) = &cli.json {
        let json = serde_json::to_string_pretty(&results)?;
        fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(file) = &cli.chart {
        let curve = results.goals.iter().find(|goal| goal.name == goals::CURVE.name);
        chart::draw(curve.context("no curve")?, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(cli: &Cli) -> anyhow::Result<Results> {
    eprintln!("building oncegate; starting PostgreSQL and the peers");
    let churn = Churn { rounds: cli.churn_rounds, marks: cli.churn_marks, ttl_s: cli.churn_ttl };
    let bench = Bench::start(cli.times(), churn)?;
    let arguments = std::env::args().skip(1).collect();
    let machine = Machine::look(&bench, arguments)?;
    for (name, version) in &machine.programs {
        eprintln!("  {name}: {version}");
    }
    let goals: Vec<GoalResult> = GOALS
        .iter()
        .map(|goal| match cli.why_not(goal) {
            Some(why) => GoalResult::not_run(goal.name, goal.title, why),
            None => pursue(goal, &bench, cli.rounds()),
        })
        .collect();
    let Times { warmup, seconds } = cli.times();
    Ok(Results { machine, rounds: cli.rounds(), warmup, seconds, goals })
}

/// Runs what a goal compares, round by round.
fn pursue(goal: &Goal, bench: &Bench, rounds: usize) -> GoalResult {
    eprintln!("{}  {}", goal.name, goal.title);
    let mut subjects = match (goal.subjects)(bench) {
        Ok(subjects) => subjects,
        Err(error) => {
            eprintln!("  !! {error:#}");
            return GoalResult::not_run(goal.name, goal.title, format!("{error:#}"));
        }
    };
    let mut runs: Vec<Vec<Result<Run, String>>> = vec![Vec::new(); subjects.len()];
    let mut syncs = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        syncs.extend(machine::fdatasync_us());
        for (subject, runs) in subjects.iter_mut().zip(&mut runs) {
            let outcome = (subject.run)().map_err(|error| format!("{error:#}"));
            progress(goal, round, rounds, &subject.what, &outcome);
            runs.push(outcome);
        }
    }
    let results =
        subjects.iter().zip(runs).map(|(subject, runs)| SubjectResult::of(subject, runs)).collect();
    GoalResult::of(goal, results, Spread::of(syncs))
}

/// Tells what has just been run.
fn progress(goal: &Goal, round: usize, rounds: usize, what: &str, outcome: &Result<Run, String>) {
    let place = format!("  [{} {round}/{rounds}]", goal.name);
    match outcome {
        Err(error) => eprintln!("{place} {what}: !! {error}"),
        Ok(run) if run.load.wrong > 0 => {
            eprintln!("{place} {what}: !! {} answers were wrong", run.load.wrong);
        }
        Ok(run) if run.load.done > 0 => {
            let load = &run.load;
            let failed =
                if load.failed > 0 { format!(", {} failed", load.failed) } else { String::new() };
            eprintln!("{place} {what}: {}/s{failed}", table::count(load.rate));
        }
        Ok(run) => eprintln!("{place} {what}: {:?}", run.figures),
    }
}
