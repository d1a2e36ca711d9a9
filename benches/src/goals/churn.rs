//! Marks that come, expire and are swept, again and again: the table must not grow by it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{
    Bound::{AtLeast, AtMost},
    Criterion, Goal, Subject, batches, ratio,
};
use crate::{
    bench::{Bench, Churn},
    cluster::Database,
    load::{Spec, Work},
    run::{self, Job, Run, Watched},
    server::Server,
};

/// The sweeper looks for work as often.
const SWEEP: [&str; 2] = ["--sweep-interval", "1s"];
/// The longest that one round of marks may take: a hundredth of the usual pace.
const MARKING: f64 = 3600.0;
/// A row that lives for less than a day is swept from the end of the minute in which it expires.
const MINUTE: Duration = Duration::from_mins(1);
/// How long all rows of a round may take to be swept, beyond that.
const SWEEPING: Duration = Duration::from_mins(5);
/// PostgreSQL looks once a minute for tables to vacuum.
const VACUUMING: Duration = Duration::from_mins(3);

const ROWS: &str = "SELECT count(*) FROM (SELECT FROM processed_events LIMIT 1) AS one";
const TABLE_BYTES: &str = "SELECT pg_table_size('processed_events')";
const INDEX_BYTES: &str = "SELECT pg_indexes_size('processed_events')";
const AUTOVACUUMS: &str = "SELECT autovacuum_count FROM pg_stat_user_tables
    WHERE relname = 'processed_events'";

pub const CHURN: Goal = Goal {
    name: "churn",
    title: "the size of the table while marks come and are swept",
    full_only: true,
    criteria: &[
        ratio("table: the largest of round 3 on ÷ round 2", AtMost(1.5), |round| {
            round.figure("churn", "table_growth")
        }),
        ratio("indexes: the largest of round 3 on ÷ round 2", AtMost(1.5), |round| {
            round.figure("churn", "index_growth")
        }),
        Criterion {
            what: "times that autovacuum came",
            unit: "runs",
            bound: AtLeast(1.0),
            figure: |round| round.figure("churn", "autovacuums"),
        },
    ],
    subjects: |bench| {
        let Churn { rounds, marks, ttl_s } = bench.churn;
        let what = format!("oncegate: {marks} marks that live {ttl_s} s, {rounds} times");
        Ok(vec![Subject { id: "churn", what, run: Box::new(move || churn(bench)) }])
    },
};

/// What the table and its indexes take once all marks of a round are there.
struct Size {
    table: f64,
    indexes: f64,
}

fn churn(bench: &Bench) -> anyhow::Result<Run> {
    let database = bench.cluster.create()?;
    let server = bench.serve(&database.url, &SWEEP)?;
    let (mut sizes, mut pace) = (Vec::new(), 0.0_f64);
    for number in 1..=bench.churn.rounds {
        let marked = mark(bench, &server)?;
        let size = Size {
            table: database.number(TABLE_BYTES)? as f64,
            indexes: database.number(INDEX_BYTES)? as f64,
        };
        await_sweep(bench, &database)?;
        eprintln!(
            "    round {number}: {:.0} marks/s, table {:.1} MB, indexes {:.1} MB, {} autovacuums",
            marked.load.rate,
            size.table / 1e6,
            size.indexes / 1e6,
            database.number(AUTOVACUUMS)?
        );
        pace = pace.max(marked.load.rate);
        sizes.push(size);
    }
    let until = Instant::now() + VACUUMING;
    while database.number(AUTOVACUUMS)? == 0 && Instant::now() < until {
        thread::sleep(Duration::from_secs(1));
    }
    let largest = |of: fn(&Size) -> f64| sizes[2..].iter().map(of).fold(0.0, f64::max);
    let (table, indexes) = (largest(|size| size.table), largest(|size| size.indexes));
    let figures = [
        ("table_growth", table / sizes[1].table),
        ("index_growth", indexes / sizes[1].indexes),
        ("table_mb", table / 1e6),
        ("index_mb", indexes / 1e6),
        ("autovacuums", database.number(AUTOVACUUMS)? as f64),
        ("best_marks_per_s", pace),
    ];
    drop(server);
    database.remove()?;
    Ok(Run::of(figures))
}

/// Marks as many new events as a round has.
fn mark(bench: &Bench, server: &Server) -> anyhow::Result<Run> {
    let Churn { marks, ttl_s, .. } = bench.churn;
    let spec = Spec {
        warmup: 0.0,
        seconds: MARKING,
        most: Some(marks),
        ttl_s: Some(ttl_s),
        ..bench.load(&[&server.address], batches::load(Work::Batch))
    };
    let watched = Watched { server: Some(server.pid()), cluster: Some(&bench.cluster) };
    let run = run::load(&Job::Grpc(spec), watched).context("mark")?;
    let (wrong, failed, done) = (run.load.wrong, run.load.failed, run.load.done);
    ensure!(wrong == 0 && failed == 0, "{wrong} answers were wrong, {failed} calls failed");
    ensure!(done >= marks, "only {done} of {marks} marks in {MARKING} s");
    Ok(run)
}

/// Waits until no row is left.
fn await_sweep(bench: &Bench, database: &Database<'_>) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(bench.churn.ttl_s.cast_unsigned());
    let until = Instant::now() + ttl + MINUTE + SWEEPING;
    loop {
        let rows = database.number(ROWS)?;
        if rows == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{rows} rows are not swept");
        thread::sleep(Duration::from_secs(1));
    }
}
