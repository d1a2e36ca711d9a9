//! One random sequence of operations in memory, in `SQLite` and in PostgreSQL: equal answers, and
//! equal rows.
//!
//! `ONCEGATE_TEST_SEEDS=400-900 cargo test --test suite differential::all` runs other sequences. A
//! sequence that fails is printed with as few steps as still show the difference; `of 12.1` is
//! what item 1 of step 12 was granted.

mod cases;
mod dice;
mod names;
mod side;
mod steps;

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc, time::Duration};

use oncegate::store::{
    Clock, ManualClock, Store, Work,
    memory::{self, Memory},
    postgres::{self, Postgres},
    sqlite::{self, Sqlite},
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::harness::{postgres::new_database, sqlite_url};
use dice::{Dice, Granted, events, sessions};
use side::Side;
use steps::{Op, Step};

/// Each is a sequence of its own.
const SEEDS: RangeInclusive<u64> = 62..=85;
/// Names other seeds, as in `400-900`.
const OTHER_SEEDS: &str = "ONCEGATE_TEST_SEEDS";
/// How long a sequence is.
const STEPS: usize = 200;
/// After so many steps the rows are compared.
const INTERVAL: usize = 5;
/// A moment in 2026, in microseconds.
const START: i64 = 1_790_000_000_000_000;

/// The most runs in which a sequence that fails is made shorter.
const MAX_RUNS: usize = 150;
/// What the sequences come to among other things, as the answers spell it.
const OUTCOMES: [&str; 31] = [
    "Busy(",
    "by: Mark",
    "by: GaveUp",
    "by: Rejected",
    "by: Turn",
    "Err(Claim)",
    "Decided(Enqueued(Free))",
    "Decided(Enqueued(Full))",
    "Decided(Enqueued(Given))",
    "Decided(Renewed(Gone))",
    "Decided(Enqueued(Taken(",
    "Err(Replaced)",
    "detail: Some",
    "Ok((",
    "Ok(None",
    "Ok(Some",
    "Found(",
    "obtained: Found(Call",
    "obtained: Found(Nobody",
    "obtained: Granted",
    "obtained: Resumed(",
    "obtained: Some(Found(Call",
    "obtained: Some(Found(Nobody",
    "obtained: Some(Found(Stream",
    "obtained: Some(Resumed(",
    "Granted {",
    "Err(Lease(None",
    "Err(Lease(Some",
    "NotAvailable(Claimed",
    "took over",
    "waits",
];
/// How much of an answer is shown before and from where it differs.
const CONTEXT: usize = 100;
const SHOWN: usize = 600;

const CLEAR: &str = "
DELETE FROM processed_events;
DELETE FROM oncegate_sessions;
DELETE FROM oncegate_waiters;
DELETE FROM oncegate_replicas;
UPDATE oncegate_fence SET floor = 0;
";

/// Where sequences run, one after the other.
struct Ground {
    url: String,
    postgres: Postgres,
    clock: Arc<ManualClock>,
}

impl Ground {
    async fn new() -> Self {
        let url = new_database().await;
        let clock = Arc::new(ManualClock::at(START));
        let manual = Clock::Manual(Arc::clone(&clock));
        let postgres = Postgres::new(&url, Duration::from_mins(1), manual).unwrap();
        postgres.migrate().await.unwrap();
        Self { url, postgres, clock }
    }

    /// Empty stores.
    async fn sides(&self) -> Sides {
        self.clock.set(START);
        let mut database = PgConnection::connect(&self.url).await.unwrap();
        database.execute(CLEAR).await.unwrap();
        let manual = || Clock::Manual(Arc::clone(&self.clock));
        let directory = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&sqlite_url(&directory), manual()).await.unwrap();
        sqlite.migrate().await.unwrap();
        let memory = Memory::new(manual());
        let mut sides = Sides {
            clock: Arc::clone(&self.clock),
            memory: Side::new(connections(&memory)),
            sqlite: Side::new(connections(&sqlite)),
            postgres: Side::new(connections(&self.postgres)),
            seen: BTreeSet::new(),
            _directory: directory,
        };
        let begin = Step { number: usize::MAX, op: Op::Advance(Duration::ZERO) };
        assert_eq!(sides.take(&begin).await, None);
        sides
    }

    /// Runs `steps`. Answers the place of the first that has a difference, and what it is.
    async fn replay(&self, steps: &[Step]) -> Option<(usize, String)> {
        let mut sides = self.sides().await;
        for (place, step) in steps.iter().enumerate() {
            let difference = match sides.take(step).await {
                None => sides.rows().await,
                difference => difference,
            };
            if let Some(difference) = difference {
                return Some((place, difference));
            }
        }
        None
    }

    /// Draws a sequence and runs it. If there is a difference, answers the steps until then, or
    /// else which outcomes there were.
    async fn run(&self, seed: u64) -> Result<BTreeSet<&'static str>, Vec<Step>> {
        let mut sides = self.sides().await;
        let (mut dice, mut steps) = (Dice::new(seed), Vec::new());
        while steps.len() < STEPS {
            let Side { leases, turns, claim_times, .. } = &sides.memory;
            let step = dice.step(&Granted { leases, turns, claim_times });
            let mut difference = sides.take(&step).await;
            steps.push(step);
            if difference.is_none() && steps.len().is_multiple_of(INTERVAL) {
                difference = sides.rows().await;
            }
            if difference.is_some() {
                return Err(steps);
            }
        }
        Ok(sides.seen)
    }

    /// The fewest of `steps` that still show a difference, as far as they are found soon.
    async fn shortened(&self, mut steps: Vec<Step>) -> String {
        let Some((last, mut difference)) = self.replay(&steps).await else {
            return "no difference when it is run again".to_owned();
        };
        steps.truncate(last + 1);
        let (mut size, mut runs) = (steps.len() / 2, 0);
        while size > 0 {
            let mut place = 0;
            while place < steps.len() && runs < MAX_RUNS {
                let mut fewer = steps.clone();
                fewer.drain(place..(place + size).min(steps.len()));
                runs += 1;
                match self.replay(&fewer).await {
                    Some((last, found)) => {
                        fewer.truncate(last + 1);
                        (steps, difference) = (fewer, found);
                    }
                    None => place += size,
                }
            }
            size /= 2;
        }
        let lines: Vec<String> =
            steps.iter().map(|Step { number, op }| format!("{number}: {op:?}")).collect();
        format!("{}\n{difference}", lines.join("\n"))
    }
}

fn connections<S: Store>(store: &S) -> [S::Connection; 3] {
    std::array::from_fn(|_| store.connection(Work::Short))
}

/// The same in all stores.
struct Sides {
    clock: Arc<ManualClock>,
    memory: Side<memory::Handle>,
    sqlite: Side<sqlite::Handle>,
    postgres: Side<postgres::Handle>,
    /// Which of [`OUTCOMES`] there were.
    seen: BTreeSet<&'static str>,
    _directory: TempDir,
}

impl Sides {
    /// Takes a step in all stores. Answers how they differ.
    async fn take(&mut self, step: &Step) -> Option<String> {
        difference(&self.answers(step).await)
    }

    /// Takes a step in all stores. Returns the answer of each.
    async fn answers(&mut self, step: &Step) -> [String; 3] {
        if let Op::Advance(span) = step.op {
            self.clock.advance(span);
        }
        let memory = self.memory.take(step).await;
        let sqlite = self.sqlite.take(step).await;
        let postgres = self.postgres.take(step).await;
        self.seen.extend(OUTCOMES.iter().filter(|text| memory.contains(**text)));
        [memory, sqlite, postgres]
    }

    /// How their rows differ.
    async fn rows(&mut self) -> Option<String> {
        let (sessions, events) = (sessions(), events());
        let memory = self.memory.rows(&sessions, &events).await;
        let sqlite = self.sqlite.rows(&sessions, &events).await;
        let postgres = self.postgres.rows(&sessions, &events).await;
        difference(&[memory, sqlite, postgres])
    }
}

/// The lines that are not the same in all stores, from where they differ.
fn difference(answers: &[String; 3]) -> Option<String> {
    let mut lines = answers.each_ref().map(|text| text.lines());
    let mut text = String::new();
    loop {
        let next = lines.each_mut().map(Iterator::next);
        let [memory, sqlite, postgres] = next;
        if next == [None; 3] {
            return (!text.is_empty()).then_some(text);
        }
        if memory == sqlite && memory == postgres {
            continue;
        }
        let line = |line: Option<&str>| line.unwrap_or("nothing").to_owned();
        let texts = next.map(line);
        let bytes = |place| texts.each_ref().map(|line| line.as_bytes().get(place).copied());
        let differs = |place: &usize| {
            let [memory, sqlite, postgres] = bytes(*place);
            memory != sqlite || memory != postgres
        };
        let longest = texts.iter().map(String::len).max().unwrap_or_default();
        let from = (0..longest).find(differs).unwrap_or_default().saturating_sub(CONTEXT);
        for (store, line) in ["memory", "SQLite", "PostgreSQL"].iter().zip(&texts) {
            let shown: String = line.chars().skip(from).take(SHOWN).collect();
            text.extend([store, ": … ", &shown, "\n"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stores_answer_alike_and_leave_equal_rows() {
    let ground = Ground::new().await;
    let mut seen = BTreeSet::new();
    let others = other_seeds();
    for seed in others.clone().unwrap_or(SEEDS) {
        match ground.run(seed).await {
            Ok(outcomes) => seen.extend(outcomes),
            Err(steps) => panic!("seed {seed}:\n{}", ground.shortened(steps).await),
        }
    }
    let never: Vec<_> = OUTCOMES.iter().filter(|outcome| !seen.contains(*outcome)).collect();
    assert!(others.is_some() || never.is_empty(), "these sequences never come to: {never:?}");
}

#[expect(clippy::disallowed_methods, reason = "for a developer, who looks for differences")]
fn other_seeds() -> Option<RangeInclusive<u64>> {
    let given = std::env::var(OTHER_SEEDS).ok()?;
    let (first, last) = given.split_once('-').expect("two seeds");
    Some(first.parse().expect("a seed")..=last.parse().expect("a seed"))
}
