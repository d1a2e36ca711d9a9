//! Simulates replicas, one seed after the other, and prints what broke a rule and how to repeat it:
//! `cargo run --example simulate -- --seed N --replicas 3 --hours 24`.

#[path = "mod.rs"]
mod simulation;

use std::{
    io::{self, Write as _},
    panic,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use simulation::{Bug, Settings, simulate};

/// Simulate replicas over one store, with faults at every call of it
#[derive(Parser)]
struct Args {
    /// What all that happens depends on, as long as the code is the same; unset: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// Number of replicas
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// How much time to simulate with one seed, in hours
    #[arg(long, default_value_t = 1)]
    hours: u32,
    /// Continue with the next seed until so many seconds have passed; unset: one seed
    #[arg(long)]
    seconds: Option<u64>,
    /// Plant this bug
    #[arg(long)]
    bug: Option<String>,
    /// Print what callers saw
    #[arg(long)]
    history: bool,
}

impl Args {
    /// The command that repeats what one seed led to.
    fn repeating(&self, seed: u64) -> String {
        let Self { replicas, hours, bug, .. } = self;
        let bug = bug.as_ref().map(|bug| format!(" --bug {bug}")).unwrap_or_default();
        format!(
            "cargo run --locked --example simulate -- --seed {seed} --replicas {replicas} \
             --hours {hours}{bug} --history"
        )
    }
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
        let span = Duration::from_hours(1) * args.hours;
        let settings =
            Settings { seed, replicas: args.replicas, span, bug, keeps_history: args.history };
        // Before it runs: it may also hang.
        print!("seed {seed}: ");
        let _ = io::stdout().flush();
        let report = panic::catch_unwind(|| simulate(&settings));
        runs += 1;
        let is_well = match &report {
            Ok(report) => {
                println!("{} h, {:?}", args.hours, report.counts);
                report.history.iter().for_each(|line| println!("{line}"));
                report.violations.iter().take(5).for_each(|text| println!("VIOLATION {text}"));
                report.violations.is_empty()
            }
            Err(_) => false,
        };
        if !is_well {
            println!("FAILED. Repeat it with the same code:\n{}", args.repeating(seed));
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
