//! A simulation of the whole core: several replicas over one store in memory, in one thread and in
//! simulated time. What happens depends on the seed alone. Calls of the store are late, fail before
//! or after they are committed, or never return, as the replica is killed; clocks step;
//! notifications are lost. What callers see goes to a checker.

mod bots;
mod bugs;
mod chance;
mod checker;
mod store;
mod world;

use std::time::Duration;

pub use bugs::Bug;

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What all that happens depends on.
    pub seed: u64,
    /// How many replicas there are.
    pub replicas: usize,
    /// How much time passes.
    pub span: Duration,
    /// A bug that is planted.
    pub bug: Option<Bug>,
    /// Whether the history is kept, line by line.
    pub keeps_history: bool,
}

/// What came of a simulation.
#[derive(Debug, Default)]
pub struct Report {
    /// What broke a rule, first to last.
    pub violations: Vec<String>,
    /// How often each thing happened.
    pub counts: std::collections::BTreeMap<&'static str, u64>,
    /// What callers saw, if it was kept.
    pub history: Vec<String>,
}

/// Simulates.
///
/// # Panics
/// If there is no runtime.
#[must_use]
pub fn simulate(settings: &Settings) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(world::run(settings.clone()))
}
