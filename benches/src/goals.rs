//! The goals: what is run for each, and what must come of it.
//!
//! A goal's subjects run in turn, once in every round, and what is compared is
//! compared within a round: the machine's drift then meets all alike.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail, ensure};

use crate::{bench::Bench, run::Run};

mod batches;
mod callers;
mod churn;
mod cleanup;
mod distance;
mod growth;
mod handover;
mod hot_session;
mod leases;
mod memory;
mod neighbour;
mod security;
mod sqlite;
mod subjects;
mod traces;
mod turns;

pub use callers::CURVE;
pub use churn::CHURN;

/// One thing that is measured.
pub struct Subject<'a> {
    /// Its name within its goal.
    pub id: &'static str,
    /// What it is, for a person to read.
    pub what: String,
    /// Runs it once.
    pub run: Box<dyn FnMut() -> anyhow::Result<Run> + 'a>,
}

/// What a goal asks of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At least this much.
    AtLeast(f64),
    /// At most this much.
    AtMost(f64),
    /// Nothing: it is told for its own sake.
    None,
}

impl Bound {
    /// Whether `figure` is as it should be.
    pub fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
            Self::None => true,
        }
    }
}

/// One figure of a goal.
pub struct Criterion {
    /// What it compares.
    pub what: &'static str,
    /// Its unit; `×` for a ratio.
    pub unit: &'static str,
    /// What is asked of its median over the rounds.
    pub bound: Bound,
    /// The figure in one round.
    pub figure: fn(&Round<'_>) -> anyhow::Result<f64>,
}

/// A ratio.
const fn ratio(
    what: &'static str,
    bound: Bound,
    figure: fn(&Round<'_>) -> anyhow::Result<f64>,
) -> Criterion {
    Criterion { what, unit: "×", bound, figure }
}

/// One of the goals.
pub struct Goal {
    /// Its number in the list of goals, `P1` and so on.
    pub name: &'static str,
    /// The work that it is about.
    pub title: &'static str,
    /// Whether it takes too long for a quick look.
    pub full_only: bool,
    /// What is asked of it.
    pub criteria: &'static [Criterion],
    /// Prepares what is run, in the order in which it is.
    pub subjects: for<'a> fn(&'a Bench) -> anyhow::Result<Vec<Subject<'a>>>,
}

/// All goals, in the order in which they are measured.
pub const GOALS: &[Goal] = &[
    callers::UNARY,
    batches::BATCHES,
    callers::KNOWN,
    callers::ALONE,
    leases::LEASES,
    handover::HANDOVER,
    growth::GROWTH,
    cleanup::CLEANUP,
    memory::MEMORY,
    turns::TURNS,
    sqlite::SQLITE,
    callers::OVERLOAD,
    hot_session::HOT_SESSION,
    neighbour::NEIGHBOUR,
    security::SECURITY,
    distance::DISTANCE,
    traces::TRACES,
    CURVE,
    CHURN,
];

/// What the subjects of one goal came to in one round; the error says why
/// nothing was measured.
#[derive(Default)]
pub struct Round<'a>(pub BTreeMap<&'static str, &'a Result<Run, String>>);

impl Round<'_> {
    /// A subject's run, if it is worth anything.
    ///
    /// # Errors
    /// Why it is not.
    pub fn run(&self, id: &str) -> anyhow::Result<&Run> {
        let run = match self.0.get(id) {
            Some(Ok(run)) => run,
            Some(Err(error)) => bail!("{id}: {error}"),
            None => bail!("{id}: not run"),
        };
        let (wrong, failed) = (run.load.wrong, run.load.failed);
        ensure!(wrong == 0, "{id}: {wrong} answers were wrong");
        ensure!(failed == 0 || run.sheds, "{id}: {failed} requests failed");
        Ok(run)
    }

    /// How many a second.
    pub fn rate(&self, id: &str) -> anyhow::Result<f64> {
        let load = &self.run(id)?.load;
        ensure!(load.done > 0, "{id}: nothing was done");
        Ok(load.rate)
    }

    /// How many times as many a second as another.
    pub fn rates(&self, id: &str, other: &str) -> anyhow::Result<f64> {
        Ok(self.rate(id)? / self.rate(other)?)
    }

    /// What an operation of `id` costs the server, divided by one of `other`, whatever the client does with the
    /// processors.
    pub fn server_cpus(&self, id: &str, other: &str) -> anyhow::Result<f64> {
        let each = |id| {
            let run = self.run(id)?;
            let used = run.server_cpu.context("the server's CPU was not measured")?;
            anyhow::Ok(used / run.load.done as f64)
        };
        Ok(each(id)? / each(other)?)
    }

    /// What else a subject measured.
    pub fn figure(&self, id: &str, name: &str) -> anyhow::Result<f64> {
        let figure = self.run(id)?.figures.get(name).copied();
        figure.ok_or_else(|| anyhow!("{id}: no {name}"))
    }
}
