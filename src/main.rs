//! The `oncegate` binary: one service, and the commands that ask it.

use std::process::ExitCode;

/// A call is many small allocations, on the thread that frees them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    oncegate::cli::Cli::read().run()
}
