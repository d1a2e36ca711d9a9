//! What came of the goals: medians, spreads, verdicts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    goals::{Bound, Criterion, Goal, Round, Subject},
    machine::Machine,
    run::Run,
};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    /// In how many rounds.
    pub rounds: usize,
    /// For how long each load ran before it measured, in seconds.
    pub warmup: f64,
    /// For how long each load measured, in seconds.
    pub seconds: f64,
    pub goals: Vec<GoalResult>,
}

/// What came of one goal.
#[derive(Debug, Serialize)]
pub struct GoalResult {
    pub name: &'static str,
    pub title: &'static str,
    /// Why nothing was run for it.
    pub not_run: Option<String>,
    /// What a sync to the disk cost before each round, in microseconds: where
    /// that varies, so does everything that is durable.
    pub fdatasync_us: Option<Spread>,
    pub subjects: Vec<SubjectResult>,
    pub criteria: Vec<CriterionResult>,
}

impl GoalResult {
    /// A goal for which nothing was run.
    pub fn not_run(name: &'static str, title: &'static str, why: impl Into<String>) -> Self {
        let not_run = Some(why.into());
        let (subjects, criteria) = (Vec::new(), Vec::new());
        Self { name, title, not_run, fdatasync_us: None, subjects, criteria }
    }

    /// A goal whose subjects have been run.
    pub fn of(goal: &Goal, subjects: Vec<SubjectResult>, fdatasync_us: Option<Spread>) -> Self {
        let rounds = subjects.first().map_or(0, |subject| subject.runs.len());
        let rounds: Vec<Round<'_>> = (0..rounds)
            .map(|round| Round(subjects.iter().map(|s| (s.id, &s.runs[round])).collect()))
            .collect();
        let judge = |criterion: &Criterion| CriterionResult::of(criterion, &rounds);
        let criteria = goal.criteria.iter().map(judge).collect();
        let Goal { name, title, .. } = *goal;
        Self { name, title, not_run: None, fdatasync_us, subjects, criteria }
    }
}

/// The middle of several figures, and how far apart they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Of some figures; none of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (&min, &max) = (figures.first()?, figures.last()?);
        let upper = figures[figures.len() / 2];
        let lower = figures[(figures.len() - 1) / 2];
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

/// What came of one subject.
#[derive(Debug, Serialize)]
pub struct SubjectResult {
    pub id: &'static str,
    pub what: String,
    /// Over the runs that came to something.
    pub summary: Option<Summary>,
    /// One a round; the error says why there was none.
    pub runs: Vec<Result<Run, String>>,
}

impl SubjectResult {
    pub fn of(subject: &Subject<'_>, runs: Vec<Result<Run, String>>) -> Self {
        let sound: Vec<&Run> = runs.iter().flatten().collect();
        let summary = Summary::of(&sound);
        Self { id: subject.id, what: subject.what.clone(), summary, runs }
    }

    /// What makes its figures doubtful, if anything does.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.runs.iter().filter_map(|run| run.as_ref().err().cloned()).collect();
        problems.dedup();
        let sound = || self.runs.iter().flatten();
        let wrong: u64 = sound().map(|run| run.load.wrong).sum();
        let failed: u64 = sound().filter(|run| !run.sheds).map(|run| run.load.failed).sum();
        if wrong > 0 {
            problems.push(format!("{wrong} answers were WRONG"));
        }
        if failed > 0 {
            problems.push(format!("{failed} requests FAILED"));
        }
        problems
    }
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// A second; none for what is no load.
    pub rate: Option<Spread>,
    /// None where the load does not tell.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// CPU within the measured time, in seconds.
    pub client_cpu: Option<f64>,
    pub server_cpu: Option<f64>,
    pub database_cpu: Option<f64>,
    pub figures: BTreeMap<&'static str, f64>,
}

impl Summary {
    fn of(runs: &[&Run]) -> Option<Self> {
        let first = runs.first()?;
        let loads = || runs.iter().filter(|run| run.load.done > 0);
        let median = |figures: Vec<f64>| Spread::of(figures).map(|spread| spread.median);
        let told = |figure: fn(&Run) -> f64| {
            median(loads().map(|run| figure(run)).filter(|figure| *figure > 0.0).collect())
        };
        let client_cpu = loads().map(|run| run.load.client_cpu);
        let used = |figure: fn(&Run) -> Option<f64>| {
            median(runs.iter().filter_map(|run| figure(run)).collect())
        };
        let figure = |name| runs.iter().filter_map(|run| run.figures.get(name).copied()).collect();
        Some(Self {
            rate: Spread::of(loads().map(|run| run.load.rate)),
            p50_ms: told(|run| run.load.p50_us / 1e3),
            p99_ms: told(|run| run.load.p99_us / 1e3),
            client_cpu: median(client_cpu.filter(|used| used.is_finite()).collect()),
            server_cpu: used(|run| run.server_cpu),
            database_cpu: used(|run| run.database_cpu),
            figures: first
                .figures
                .keys()
                .filter_map(|name| Some((*name, median(figure(name))?)))
                .collect(),
        })
    }
}

/// What became of a criterion.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Met,
    Missed,
    /// Nothing is asked.
    Told,
    /// And why.
    NotMeasured(String),
}

/// What came of one figure of a goal.
#[derive(Debug, Serialize)]
pub struct CriterionResult {
    pub what: &'static str,
    pub unit: &'static str,
    /// What was asked, such as `≥ 2.5`.
    pub goal: String,
    /// The figure over the rounds in which it could be taken.
    pub figure: Option<Spread>,
    pub verdict: Verdict,
    /// In each round.
    pub rounds: Vec<Option<f64>>,
}

impl CriterionResult {
    fn of(criterion: &Criterion, rounds: &[Round<'_>]) -> Self {
        let Criterion { what, unit, bound, figure } = *criterion;
        let figures: Vec<_> = rounds.iter().map(figure).collect();
        let trouble = figures.iter().find_map(|figure| figure.as_ref().err());
        let spread = Spread::of(figures.iter().flatten().copied());
        let verdict = match (trouble, spread) {
            (Some(error), _) => Verdict::NotMeasured(format!("{error:#}")),
            (None, None) => Verdict::NotMeasured("no round".to_owned()),
            (None, Some(_)) if bound == Bound::None => Verdict::Told,
            (None, Some(spread)) if bound.holds(spread.median) => Verdict::Met,
            (None, Some(_)) => Verdict::Missed,
        };
        let goal = match bound {
            Bound::AtLeast(least) => format!("≥ {least}"),
            Bound::AtMost(most) => format!("≤ {most}"),
            Bound::None => String::new(),
        };
        let rounds = figures.into_iter().map(Result::ok).collect();
        Self { what, unit, goal, figure: spread, verdict, rounds }
    }
}
