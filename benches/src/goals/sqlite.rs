//! The embedded store, a new file for each run.

use super::{Bound::AtLeast, Goal, Subject, batches, ratio, subjects::NO_SWEEP};
use crate::{
    bench::{Bench, GrpcLoad, RivalLoad},
    load::Work,
    rivals::Work as Rival,
    run::{self, Job, Watched},
};

pub const SQLITE: Goal = Goal {
    name: "P11",
    title: "the embedded store",
    full_only: false,
    criteria: &[
        ratio("256 callers ÷ one-row transactions", AtLeast(8.0), |round| {
            round.rates("256", "single")
        }),
        ratio("batches of 1,000 ÷ the array ceiling", AtLeast(0.8), |round| {
            round.rates("batches", "arrays")
        }),
    ],
    subjects: |bench| {
        let batches = batches::load(Work::Batch);
        let arrays = "SQLite: json_each of 1,000 rows, cache of 256 MB";
        Ok(vec![
            served(bench, "256", "oncegate: 256 callers", GrpcLoad::new(Work::Mark, 256)),
            alone(bench, "single", "SQLite: a transaction a row", Rival::SqliteInsert, 1),
            served(bench, "batches", "oncegate: batches of 1,000, 4 under way", batches),
            alone(bench, "arrays", arrays, Rival::SqliteArrays, batches.items),
        ])
    },
};

fn served<'a>(bench: &'a Bench, id: &'static str, what: &str, load: GrpcLoad) -> Subject<'a> {
    let run = move || {
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite://{}", directory.path().join("oncegate.db").display());
        let server = bench.serve(&url, &NO_SWEEP)?;
        let watched = Watched { server: Some(server.pid()), cluster: None };
        bench.grpc(&server.address, load, watched)
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

fn alone<'a>(
    bench: &'a Bench,
    id: &'static str,
    what: &str,
    work: Rival,
    items: usize,
) -> Subject<'a> {
    let run = move || {
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite://{}", directory.path().join("rival.db").display());
        let load = RivalLoad { work, connections: 1, callers: 1, items };
        run::load(&Job::Rival(bench.rival(&url, load)), Watched::default())
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}
