//! Sweeping what has expired: how fast, and what marks feel of it.

use std::{
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    Bound::{AtLeast, AtMost},
    Criterion, Goal, Subject, ratio,
    subjects::{self, CHECKPOINT, NO_SWEEP},
};
use crate::{
    bench::{Bench, GrpcLoad},
    cluster::Database,
    load::Work,
    run::Run,
    server::Server,
};

const EXPIRED: f64 = 5e6;

/// Events that were marked 25 to 26 hours ago, for 24 hours.
const FILL_EXPIRED: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id, sweep_after)
SELECT 'T' || n % 8,
    'Ev' || lpad(to_hex((extract(epoch FROM at) * 1000000)::bigint), 13, '0')
         || lpad(to_hex(n % 8), 2, '0') || lpad(to_hex(n % 65536), 4, '0'),
    at, at + interval '24 hours', gen_random_uuid(),
    date_trunc('hour', at) + interval '25 hours'
FROM (SELECT n, now() - interval '26 hours' + n * interval '720 microseconds' AS at
      FROM generate_series(1, 5000000) AS n) AS events
";
const VACUUM: &str = "VACUUM (ANALYZE) processed_events";

/// The sweeper never rests for longer.
const SWEEP: [&str; 2] = ["--sweep-interval", "1s"];
const SWEPT: &str = "oncegate_swept_rows_total{kind=\"event\"}";

/// How long all of it may take: at a tenth of the goal's pace.
const PATIENCE: Duration = Duration::from_mins(3);

pub const CLEANUP: Goal = Goal {
    name: "P8",
    title: "sweeping 5 million expired rows",
    full_only: true,
    criteria: &[
        Criterion {
            what: "swept, with nothing else to do",
            unit: "rows/s",
            bound: AtLeast(300_000.0),
            figure: |round| round.figure("sweep", "rows_per_s"),
        },
        ratio("p99 of marks: during the sweep ÷ without", AtMost(2.0), |round| {
            let p99 = |id| Ok::<_, anyhow::Error>(round.run(id)?.load.p99_us);
            Ok(p99("during")? / p99("without")?)
        }),
    ],
    subjects: |bench| {
        let database = bench.cluster.create()?;
        drop(bench.serve(&database.url, &NO_SWEEP)?);
        eprintln!("  filling a table with 5 million expired rows");
        for step in [FILL_EXPIRED, VACUUM, CHECKPOINT] {
            database.execute(step)?;
        }
        let rows = Rc::new(database);
        Ok(vec![
            on_copy(bench, &rows, "sweep", "oncegate: the sweep alone", sweep),
            on_copy(bench, &rows, "without", "oncegate: 64 callers, no sweep", without),
            on_copy(bench, &rows, "during", "oncegate: 64 callers, during the sweep", during),
        ])
    },
};

/// Something that is run on a copy of the expired rows.
fn on_copy<'a>(
    bench: &'a Bench,
    rows: &Rc<Database<'a>>,
    id: &'static str,
    what: &str,
    run: fn(&Bench, &Database<'_>) -> anyhow::Result<Run>,
) -> Subject<'a> {
    let rows = Rc::clone(rows);
    let run = move || {
        let database = bench.cluster.copy(&rows)?;
        database.execute(CHECKPOINT)?;
        let outcome = run(bench, &database);
        database.remove()?;
        outcome
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

/// How many rows a server has swept.
fn swept(server: &Server) -> anyhow::Result<f64> {
    Ok(server.metric(SWEPT)?.unwrap_or(0.0))
}

/// Waits until more than `count` rows are swept, and answers how many and when.
fn await_swept(server: &Server, count: f64) -> anyhow::Result<(f64, Instant)> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let now = swept(server)?;
        if now > count {
            return Ok((now, Instant::now()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("it has swept {} rows in {PATIENCE:?}", swept(server)?)
}

fn sweep(bench: &Bench, database: &Database<'_>) -> anyhow::Result<Run> {
    let server = bench.serve(&database.url, &SWEEP)?;
    let before = bench.cluster.cpu()?;
    // From the first batch to the last: it is not known when the first began.
    let (first, begun) = await_swept(&server, 0.0)?;
    let (all, ended) = await_swept(&server, EXPIRED - 1.0)?;
    let rows_per_s = (all - first) / (ended - begun).as_secs_f64();
    let database_cpu = Some(bench.cluster.cpu()? - before);
    Ok(Run { database_cpu, ..Run::of([("rows_per_s", rows_per_s)]) })
}

fn load(bench: &Bench, server: &Server) -> anyhow::Result<Run> {
    subjects::on(bench, server, GrpcLoad::new(Work::Mark, 64))
}

fn without(bench: &Bench, database: &Database<'_>) -> anyhow::Result<Run> {
    load(bench, &bench.serve(&database.url, &NO_SWEEP)?)
}

fn during(bench: &Bench, database: &Database<'_>) -> anyhow::Result<Run> {
    let server = bench.serve(&database.url, &SWEEP)?;
    let (before, _) = await_swept(&server, 0.0)?;
    let run = load(bench, &server)?;
    let rows = swept(&server).context("after the load")?;
    // The warm-up must have had its share of the sweep, and the end too.
    ensure!(rows < EXPIRED, "the sweep ended before the load did: shorten it with --seconds");
    Ok(Run { figures: [("swept_rows", rows - before)].into(), ..run })
}
