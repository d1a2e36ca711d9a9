//! A table of 10 million rows, against an empty one.

use std::rc::Rc;

use super::{
    Bound::AtLeast,
    Goal, Subject, batches, ratio,
    subjects::{self, CHECKPOINT, NO_SWEEP},
};
use crate::{
    bench::{Bench, GrpcLoad},
    cluster::Database,
    load::Work,
};

/// Events of the last hour, their ids rising with time over eight teams, as
/// those of the load do.
const FILL_RISING: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
    sweep_after)
SELECT (ARRAY['T024BE7LD', 'T0G9PQBBK', 'T061EG9R6', 'T2ABCDEF1',
              'T3XYZQWE2', 'T4MNBVCX3', 'T5LKJHGF4', 'T6POIUYT5'])[1 + n % 8],
    'Ev' || lpad(to_hex((extract(epoch FROM at) * 1000000)::bigint), 13, '0')
         || lpad(to_hex(n % 8), 2, '0') || lpad(to_hex(n % 65536), 4, '0'),
    at, at + interval '24 hours', gen_random_uuid(),
    date_trunc('hour', at) + interval '25 hours'
FROM (SELECT n, now() - interval '1 hour' + n * interval '360 microseconds' AS at
      FROM generate_series(1, 10000000) AS n) AS events
";

/// The same, their ids random.
const FILL_RANDOM: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
    sweep_after)
SELECT (ARRAY['T024BE7LD', 'T0G9PQBBK', 'T061EG9R6', 'T2ABCDEF1',
              'T3XYZQWE2', 'T4MNBVCX3', 'T5LKJHGF4', 'T6POIUYT5'])[1 + n % 8],
    'Ev' || left(md5(n::text), 16) || lpad(to_hex(n % 4096), 3, '0'),
    at, at + interval '24 hours', gen_random_uuid(),
    date_trunc('hour', at) + interval '25 hours'
FROM (SELECT n, now() - interval '1 hour' + n * interval '360 microseconds' AS at
      FROM generate_series(1, 10000000) AS n) AS events
";

/// No vacuum falls into a measurement.
const VACUUM: &str = "VACUUM (ANALYZE) processed_events";

pub const GROWTH: Goal = Goal {
    name: "P7",
    title: "10 million rows in the table",
    full_only: true,
    criteria: &[
        ratio("unary, time-ordered: full ÷ empty", AtLeast(0.9), |round| {
            round.rates("unary, full", "unary, empty")
        }),
        ratio("batches, time-ordered: full ÷ empty", AtLeast(0.9), |round| {
            round.rates("batches, full", "batches, empty")
        }),
        ratio("unary, random: full ÷ empty", AtLeast(0.5), |round| {
            round.rates("unary, full, random", "unary, empty, random")
        }),
        ratio("batches, random: full ÷ empty", AtLeast(0.5), |round| {
            round.rates("batches, full, random", "batches, empty, random")
        }),
    ],
    subjects: |bench| {
        let unary = |work| GrpcLoad::new(work, 256);
        let empty = |id, load| subjects::oncegate(bench, id, &format!("oncegate: {id}"), load);
        let mut all = vec![
            empty("unary, empty", unary(Work::Mark)),
            empty("batches, empty", batches::load(Work::Batch)),
            empty("unary, empty, random", unary(Work::MarkRandom)),
            empty("batches, empty, random", batches::load(Work::BatchRandom)),
        ];
        let rising = Rc::new(filled(bench, FILL_RISING)?);
        let random = Rc::new(filled(bench, FILL_RANDOM)?);
        let mut full = |id, load, rows: &Rc<_>| all.push(full(bench, id, load, Rc::clone(rows)));
        full("unary, full", unary(Work::Mark), &rising);
        full("batches, full", batches::load(Work::Batch), &rising);
        full("unary, full, random", unary(Work::MarkRandom), &random);
        full("batches, full, random", batches::load(Work::BatchRandom), &random);
        Ok(all)
    },
};

/// A database with oncegate's schema and 10 million rows.
fn filled<'a>(bench: &'a Bench, fill: &str) -> anyhow::Result<Database<'a>> {
    let database = bench.cluster.create()?;
    drop(bench.serve(&database.url, &NO_SWEEP)?);
    eprintln!("  filling a table with 10 million rows");
    for step in [fill, VACUUM, CHECKPOINT] {
        database.execute(step)?;
    }
    Ok(database)
}

/// oncegate on a copy of a full table, so that no run sees the rows of another.
/// PostgreSQL has read none of the copy yet, but it is in the system's memory.
fn full<'a>(
    bench: &'a Bench,
    id: &'static str,
    load: GrpcLoad,
    rows: Rc<Database<'a>>,
) -> Subject<'a> {
    let run = move || {
        let database = bench.cluster.copy(&rows)?;
        let server = bench.serve(&database.url, &NO_SWEEP)?;
        database.execute(CHECKPOINT)?;
        let run = subjects::on(bench, &server, load);
        drop(server);
        database.remove()?;
        run
    };
    Subject { id, what: format!("oncegate: {id}"), run: Box::new(run) }
}
