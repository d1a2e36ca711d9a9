//! A simulation of the whole core: several replicas over one store in memory, in one thread and in
//! simulated time. What happens depends on the seed alone, and on the code. Calls of the store are
//! late, fail before or after they are committed, or never return, as the replica is killed; the
//! store's clock steps; notifications are lost. What callers see goes to a checker.

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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64, minutes: u64, bug: Option<Bug>) -> Settings {
        let span = Duration::from_secs(60 * minutes);
        Settings { seed, replicas: 3, span, bug, keeps_history: false }
    }

    #[test]
    fn the_same_seed_gives_the_same_history() {
        let run = || simulate(&Settings { keeps_history: true, ..settings(7, 20, None) });
        let (one, other) = (run(), run());
        assert!(one.history.len() > 1_000, "{}", one.history.len());
        assert_eq!(one.history, other.history);
        assert_eq!(one.counts, other.counts);
    }

    /// What is simulated each time: a seed, how many replicas, and how many minutes. A seed that
    /// broke a rule is added, with as few minutes as show it.
    const KEPT: [(u64, usize, u64); 7] = [
        (1, 3, 30),
        (2, 3, 30),
        (3, 3, 30),
        (4, 3, 30),
        (9_000_204, 3, 26),
        (9_000_211, 3, 27),
        (9_200_000, 3, 11),
    ];

    #[test]
    fn no_rule_is_broken() {
        let mut counts = std::collections::BTreeMap::<_, u64>::new();
        for (seed, replicas, minutes) in KEPT {
            let report = simulate(&Settings { replicas, ..settings(seed, minutes, None) });
            assert_eq!(report.violations, Vec::<String>::new(), "seed {seed}");
            report.counts.into_iter().for_each(|(what, count)| {
                *counts.entry(what).or_default() += count;
            });
        }
        let at_least = |least: u64, all: &[&str]| {
            for what in all {
                let count = counts.get(what).copied().unwrap_or_default();
                assert!(count >= least, "{what}: {counts:?}");
            }
        };
        at_least(
            20,
            &[
                "clock stepped back",
                "clock stepped forward",
                "failure after the commit",
                "failure before the commit",
                "conflict after a lost answer",
                "late call",
                "lost answer",
                "lost notification",
                "replica drained",
                "replica killed",
            ],
        );
        // Nothing is found wrong with callers that are granted nothing.
        at_least(20, &["repeated finish"]);
        at_least(60, &["repair", "repeated lease", "repeated turn", "hand-over of a turn"]);
        at_least(300, &["finished turn", "released lease", "renewed turn", "turn"]);
        at_least(
            1_000,
            &["duplicate", "first mark", "hand-over of a lease", "lease", "renewed lease"],
        );
    }

    #[test]
    fn planted_bugs_are_found() {
        for bug in Bug::ALL {
            let reports = (1..=8).map(|seed| simulate(&settings(seed, 60, Some(bug))).violations);
            let first = reports.into_iter().find_map(|violations| violations.into_iter().next());
            let first = first.unwrap_or_else(|| panic!("{bug:?} is not found"));
            assert!(bug.shows_as().iter().any(|text| first.contains(text)), "{bug:?}: {first}");
        }
    }
}
