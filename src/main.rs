//! The `oncegate` binary: one service, and the commands that ask it.

use std::process::ExitCode;

use clap::Parser as _;

/// Half of what a call costs here is memory: see `docs/performance.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    oncegate::cli::Cli::parse().run()
}
