//! Callers that each ask for one thing at a time: many of them, one alone, ones
//! that ask again, and too many.

use super::{
    Bound::{AtLeast, AtMost, None},
    Criterion, Goal, Round, Subject, ratio,
    subjects::{self, CHECKPOINT, EMPTY_EVENTS, Lazy, NO_SWEEP},
};
use crate::{
    bench::{Bench, GrpcLoad},
    load::Work,
    pgbench, process,
    rivals::Work as Rival,
    run::{Run, Watched},
    server::Server,
};

/// The faster of the two best ways to insert one row a statement.
fn best(round: &Round<'_>) -> anyhow::Result<f64> {
    Ok(round.rate("tokio-postgres")?.max(round.rate("pgbench")?))
}

pub const UNARY: Goal = Goal {
    name: "P1",
    title: "MarkProcessed, new events",
    full_only: false,
    criteria: &[
        ratio("256 callers ÷ the best single statements", AtLeast(2.5), |round| {
            Ok(round.rate("256")? / best(round)?)
        }),
        ratio("1,024 callers ÷ the best single statements", AtLeast(3.0), |round| {
            Ok(round.rate("1024")? / best(round)?)
        }),
        ratio("256 callers ÷ sqlx", AtLeast(4.5), |round| round.rates("256", "sqlx")),
        ratio("1,024 callers ÷ sqlx", AtLeast(4.5), |round| round.rates("1024", "sqlx")),
        ratio("256 callers ÷ asyncpg", AtLeast(10.0), |round| round.rates("256", "asyncpg")),
        ratio("1,024 callers ÷ asyncpg", AtLeast(10.0), |round| round.rates("1024", "asyncpg")),
    ],
    subjects: |bench| {
        let inserts = |id, what, work, size| subjects::inserts(bench, id, what, work, size);
        Ok(vec![
            marks(bench, "256", 256),
            inserts(
                "tokio-postgres",
                "tokio-postgres: single inserts, 32 connections, 64 callers",
                Rival::PostgresInsert,
                (32, 64),
            ),
            by_pgbench(bench, "pgbench"),
            marks(bench, "1024", 1_024),
            inserts(
                "sqlx",
                "sqlx: single inserts, pool of 32, 64 callers",
                Rival::SqlxInsert,
                (32, 64),
            ),
            inserts(
                "asyncpg",
                "asyncpg: single inserts, pool of 10, 64 callers",
                Rival::AsyncpgInsert,
                (10, 64),
            ),
        ])
    },
};

fn marks<'a>(bench: &'a Bench, id: &'static str, callers: usize) -> Subject<'a> {
    let load = GrpcLoad::new(Work::Mark, callers);
    let what = format!("oncegate: {callers} callers, {} connections", load.connections);
    subjects::oncegate(bench, id, &what, load)
}

/// pgbench with 64 clients, on the table that a bot has today.
fn by_pgbench<'a>(bench: &'a Bench, id: &'static str) -> Subject<'a> {
    let database = Lazy::new(bench, subjects::BOTS_TABLE);
    let run = move || {
        let database = database.get()?;
        database.execute(EMPTY_EVENTS)?;
        database.execute(CHECKPOINT)?;
        let spec = pgbench::Spec {
            program: bench.pgbench()?,
            database,
            clients: 64,
            seconds: bench.times.seconds,
            warmup: bench.times.warmup,
            seed: bench.seed(),
        };
        let watched = Watched { server: Option::None, cluster: Some(&bench.cluster) };
        let run = pgbench::run(&spec, watched);
        database.execute(EMPTY_EVENTS)?;
        run
    };
    let what = "pgbench: single inserts, 64 clients, prepared".to_owned();
    Subject { id, what, run: Box::new(run) }
}

pub const KNOWN: Goal = Goal {
    name: "P3",
    title: "duplicates that the replica has seen",
    full_only: false,
    criteria: &[ratio("duplicates ÷ empty calls", AtLeast(0.9), |round| {
        round.rates("known", "empty")
    })],
    subjects: |bench| {
        let known = GrpcLoad::new(Work::MarkKnown, 256);
        let empty = GrpcLoad::new(Work::Empty, 256);
        Ok(vec![
            subjects::oncegate(bench, "known", "oncegate: the same few events, 256 callers", known),
            subjects::oncegate(bench, "empty", "oncegate: empty calls, 256 callers", empty),
        ])
    },
};

pub const ALONE: Goal = Goal {
    name: "P4",
    title: "one caller, one mark at a time",
    full_only: false,
    criteria: &[
        ratio("p50 ÷ (empty call + direct insert)", AtMost(1.1), |round| {
            let p50 = |id| Ok::<_, anyhow::Error>(round.run(id)?.load.p50_us);
            Ok(p50("mark")? / (p50("empty")? + p50("insert")?))
        }),
        ratio("p99 ÷ (empty call + direct insert)", AtMost(1.1), |round| {
            let p99 = |id| Ok::<_, anyhow::Error>(round.run(id)?.load.p99_us);
            Ok(p99("mark")? / (p99("empty")? + p99("insert")?))
        }),
    ],
    subjects: |bench| {
        let mark = GrpcLoad::new(Work::Mark, 1);
        let empty = GrpcLoad::new(Work::Empty, 1);
        let insert = "tokio-postgres: single inserts, one connection, one caller";
        Ok(vec![
            subjects::oncegate(bench, "mark", "oncegate: new events, one caller", mark),
            subjects::oncegate(bench, "empty", "oncegate: empty calls, one caller", empty),
            subjects::inserts(bench, "insert", insert, Rival::PostgresInsert, (1, 1)),
        ])
    },
};

/// The most calls under way that the server of the overload takes, and its
/// callers at their best.
const BOUND: usize = 1_024;
/// What an overloaded caller waits for, in milliseconds.
const DEADLINE_MS: u64 = 1_000;

pub const OVERLOAD: Goal = Goal {
    name: "P12",
    title: "overload: 4,096 callers where 1,024 are taken",
    full_only: false,
    criteria: &[
        ratio("answered under overload ÷ at the peak", AtLeast(0.9), |round| {
            round.rates("overload", "peak")
        }),
        Criterion {
            what: "the slowest answer, given or refused",
            unit: "ms",
            bound: AtMost(DEADLINE_MS as f64),
            figure: |round| {
                let load = &round.run("overload")?.load;
                Ok(load.max_us.max(load.max_failed_us) / 1e3)
            },
        },
        Criterion {
            what: "refused, of all calls",
            unit: "%",
            bound: None,
            figure: |round| {
                let load = &round.run("overload")?.load;
                Ok(100.0 * load.failed as f64 / (load.failed + load.done) as f64)
            },
        },
        // That it is bounded at all is the goal; that it is bounded by little
        // is what can be checked in a few seconds.
        ratio("the most memory under overload ÷ at the peak", AtMost(2.0), |round| {
            Ok(round.figure("overload", "most_mb")? / round.figure("peak", "most_mb")?)
        }),
    ],
    subjects: |bench| {
        let peak = GrpcLoad::new(Work::Mark, BOUND);
        let overload =
            GrpcLoad { timeout_ms: Some(DEADLINE_MS), ..GrpcLoad::new(Work::Mark, 4 * BOUND) };
        Ok(vec![
            bounded(bench, "peak", "oncegate --max-calls 1024: 1,024 callers", peak),
            bounded(bench, "overload", "the same: 4,096 callers, deadline 1 s", overload),
        ])
    },
};

/// oncegate with a bound on its calls, and its memory before and after.
fn bounded<'a>(bench: &'a Bench, id: &'static str, what: &str, load: GrpcLoad) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let run = move || {
        let bound = BOUND.to_string();
        let flags = [&NO_SWEEP[..], &["--max-calls", &bound]].concat();
        let server: Server = subjects::fresh(&database, &flags)?;
        let before = process::resident(server.pid())? / 1e6;
        let run = subjects::on(bench, &server, load)?;
        let figures = [
            ("before_mb", before),
            ("after_mb", process::resident(server.pid())? / 1e6),
            ("most_mb", process::most_resident(server.pid())? / 1e6),
        ];
        Ok(Run { figures: figures.into(), sheds: load.timeout_ms.is_some(), ..run })
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

pub const CURVE: Goal = Goal {
    name: "curve",
    title: "MarkProcessed, new events, by how many ask at once",
    full_only: false,
    criteria: &[],
    subjects: |bench| {
        let points = [
            ("1", 1),
            ("4", 4),
            ("16", 16),
            ("64", 64),
            ("256", 256),
            ("1024", 1_024),
            ("4096", 4_096),
        ];
        Ok(points.into_iter().map(|(id, callers)| marks(bench, id, callers)).collect())
    },
};
