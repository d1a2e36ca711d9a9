//! Simulates replicas for a while, and prints what broke a rule:
//! `cargo run --example simulate -- --seed N --replicas 3 --hours 24`.

#[path = "mod.rs"]
mod simulation;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use simulation::{Bug, Settings, simulate};

/// Simulates replicas over one store.
#[derive(Parser)]
struct Args {
    /// What all that happens depends on; a new one for each run, if it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many replicas there are.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// How much time is simulated, in hours.
    #[arg(long, default_value_t = 1)]
    hours: u32,
    /// Go on with further seeds for so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<String>,
    /// Print what callers saw.
    #[arg(long)]
    history: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let bug = args.bug.as_ref().map(|name| {
        let bug = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == *name);
        bug.unwrap_or_else(|| panic!("a bug is one of {:?}", Bug::ALL))
    });
    let begun = std::time::Instant::now();
    let mut seed = args.seed.unwrap_or_else(rand::random);
    let mut runs = 0;
    loop {
        let span = Duration::from_secs(3_600) * args.hours;
        let settings =
            Settings { seed, replicas: args.replicas, span, bug, keeps_history: args.history };
        let report = simulate(&settings);
        runs += 1;
        report.history.iter().for_each(|line| println!("{line}"));
        println!("seed {seed}: {} h, {:?}", args.hours, report.counts);
        if !report.violations.is_empty() {
            report.violations.iter().take(5).for_each(|text| println!("VIOLATION {text}"));
            println!("repeat: --seed {seed} --replicas {} --hours {}", args.replicas, args.hours);
            return ExitCode::FAILURE;
        }
        let limit = args.seconds.map(Duration::from_secs);
        if limit.is_none_or(|limit| begun.elapsed() >= limit) {
            let minutes = begun.elapsed().as_secs_f64() / 60.0;
            let hours = f64::from(args.hours * runs);
            println!(
                "{runs} seeds, {hours} h in {minutes:.2} min: {:.1} h a minute",
                hours / minutes
            );
            return ExitCode::SUCCESS;
        }
        seed = seed.wrapping_add(1);
    }
}
