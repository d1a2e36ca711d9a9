//! The loads on everything that oncegate is measured beside and that does not
//! speak gRPC: each is the best way that was found to ask that rival for the
//! same work. What they report is what the gRPC loads report.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::load::{Report, Tally, process_cpu};

pub mod hand_over;
mod postgres;
mod redis;
mod sqlite;
mod sqlx_pool;

/// The asyncpg rival, a program that takes a [`Spec`] and prints a [`Report`].
pub const ASYNCPG: &str = include_str!("rivals/asyncpg_pool.py");

/// What a rival does, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// sqlx: one `INSERT … ON CONFLICT DO NOTHING` an event, over a pool.
    SqlxInsert,
    /// tokio-postgres: the same, over as many connections.
    PostgresInsert,
    /// tokio-postgres: `items` events in one statement over arrays, into
    /// oncegate's table.
    PostgresArrays,
    /// tokio-postgres: one statement takes a lease, one gives it back.
    PostgresLease,
    /// tokio-postgres: four statements for an event: it is looked up, a lease is taken,
    /// the event is inserted, the lease is given back.
    PostgresTurn,
    /// tokio-postgres: a statement that reads and writes nothing.
    PostgresPing,
    /// tokio-postgres: `pg_advisory_lock` of one key that all callers share, and its unlock.
    PostgresAdvisoryLock,
    /// asyncpg: as `SqlxInsert`, from Python.
    AsyncpgInsert,
    /// Redis: `SET … NX EX` an event, over one connection.
    RedisClaim,
    /// Redis: `SET … NX PX` takes a lock, a script gives it back.
    RedisLock,
    /// `SQLite`: a transaction an event.
    SqliteInsert,
    /// `SQLite`: `items` events in one statement over a JSON array.
    SqliteArrays,
}

/// One load on a rival.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// A database's URL, a file, or `HOST:PORT`.
    pub target: String,
    /// What is done.
    pub work: Work,
    /// Over how many connections.
    pub connections: usize,
    /// How many callers there are in all, each with one request under way.
    pub callers: usize,
    /// How many events one statement holds.
    pub items: usize,
    /// How long is measured, in seconds.
    pub seconds: f64,
    /// How long the load runs before that, in seconds.
    pub warmup: f64,
    /// Keeps the keys of different loads apart; rises from load to load by the
    /// microseconds between them.
    pub seed: u64,
}

/// Runs one load, and reports.
pub fn run(spec: &Spec) -> anyhow::Result<Report> {
    match spec.work {
        Work::SqlxInsert => block_on(sqlx_pool::inserts(spec)),
        Work::PostgresInsert => block_on(postgres::inserts(spec)),
        Work::PostgresArrays => block_on(postgres::arrays(spec)),
        Work::PostgresLease => block_on(postgres::leases(spec)),
        Work::PostgresTurn => block_on(postgres::turns(spec)),
        Work::PostgresPing => block_on(postgres::pings(spec)),
        Work::PostgresAdvisoryLock => block_on(postgres::advisory_locks(spec)),
        Work::RedisClaim => redis::claims(spec),
        Work::RedisLock => redis::locks(spec),
        Work::SqliteInsert => block_on(sqlite::inserts(spec)),
        Work::SqliteArrays => block_on(sqlite::arrays(spec)),
        Work::AsyncpgInsert => anyhow::bail!("a program of its own: see ASYNCPG"),
    }
}

fn block_on(load: impl Future<Output = anyhow::Result<Report>>) -> anyhow::Result<Report> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(load)
}

/// When is measured.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
}

impl Window {
    /// The window of a load that begins now.
    fn of(spec: &Spec) -> Self {
        let from = Instant::now() + Duration::from_secs_f64(spec.warmup);
        Self { from, until: from + Duration::from_secs_f64(spec.seconds) }
    }

    fn tally(self) -> Tally {
        Tally::new(self.from, self.until)
    }

    /// Measures what this process uses within the window, in seconds of CPU.
    fn cpu(self) -> JoinHandle<anyhow::Result<f64>> {
        thread::spawn(move || {
            thread::sleep(self.from.saturating_duration_since(Instant::now()));
            let before = process_cpu()?;
            thread::sleep(self.until.saturating_duration_since(Instant::now()));
            Ok(process_cpu()? - before)
        })
    }
}

/// One caller of a rival that is asked asynchronously.
trait Caller: Send + 'static {
    /// Does one piece of work. Answers how many things are done; none means
    /// that the answer is not the one that the work expects.
    fn work(&mut self) -> impl Future<Output = anyhow::Result<Option<u64>>> + Send;
}

/// Runs each caller in a task of its own until the load is over. The window
/// begins now.
async fn drive<C: Caller>(
    spec: &Spec,
    callers: impl IntoIterator<Item = C>,
) -> anyhow::Result<Report> {
    let window = Window::of(spec);
    let cpu = window.cpu();
    let tasks: Vec<_> =
        callers.into_iter().map(|caller| tokio::spawn(repeat(caller, window.tally()))).collect();
    let mut tallies = Vec::with_capacity(tasks.len());
    for task in tasks {
        tallies.push(task.await?);
    }
    let cpu = tokio::task::spawn_blocking(|| cpu.join());
    Ok(Tally::report(tallies, cpu.await?.ok().context("the CPU's watch panicked")??))
}

async fn repeat(mut caller: impl Caller, mut tally: Tally) -> Tally {
    let mut told = false;
    loop {
        let begun = Instant::now();
        if tally.over(begun) {
            return tally;
        }
        let outcome = caller.work().await;
        let now = Instant::now();
        match outcome {
            Ok(Some(count)) => tally.done(begun, now, count),
            Ok(None) => tally.wrong(),
            Err(error) => {
                tally.failed(begun, now);
                if !std::mem::replace(&mut told, true) {
                    eprintln!("a request failed: {error:#}");
                }
                // What fails at once must not be asked at full speed.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
