//! Gives mutated bytes to everything that reads bytes of strangers, and checks that nothing
//! panics, that memory stays bounded, and what each target guarantees:
//! `cargo run --release --example fuzz -- --inputs 2000000`.

mod chance;
mod data;
mod frames;
mod json;
mod messages;
mod mutate;
mod policy;
mod remembered;
mod run;
mod server;
mod target;
mod targets;

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use peak_alloc::PeakAlloc;
use run::{Failure, Run};

/// Counts what is allocated.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Fuzz the server with inputs that depend on the seed alone
#[derive(Parser)]
struct Args {
    /// What the inputs depend on, as long as the code is the same; unset: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// Number of inputs, over all targets
    #[arg(long, default_value_t = 20_000)]
    inputs: u64,
    /// Fuzz this target only
    #[arg(long)]
    target: Option<String>,
    /// Number of the first input
    #[arg(long, default_value_t = 0)]
    skip: u64,
    /// Run the input in this file only
    #[arg(long, requires = "target")]
    file: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    run::watch_panics();
    run::log_to_nowhere();
    let seed = args.seed.unwrap_or_else(rand::random);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.expect("a runtime").block_on(all(&args, seed));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("FAILED {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn all(args: &Args, seed: u64) -> Result<(), Failure> {
    println!("seed {seed}");
    let begun = Instant::now();
    let targets = targets::chosen(args.target.as_deref());
    assert!(!targets.is_empty(), "there is no such target");
    let shares: u64 = targets.iter().map(|target| target.share().max(1)).sum();
    let mut inputs = 0;
    for mut target in targets {
        let mut run = Run::new(&mut *target, seed);
        if let Some(file) = &args.file {
            let input = std::fs::read(file).expect("the file");
            run.file(file, input).await?;
            continue;
        }
        run.kept().await?;
        let count = (args.inputs * run.share()).div_ceil(shares);
        run.inputs(args.skip, count).await?;
        inputs += count;
    }
    println!("{inputs} inputs in {:.1} s: nothing found", begun.elapsed().as_secs_f64());
    Ok(())
}
