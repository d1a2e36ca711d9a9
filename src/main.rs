//! The `oncegate` binary: one service, and the commands that ask it.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    oncegate::cli::Cli::parse().run()
}
