//! One session that everybody wants.

use super::{
    Bound::{AtLeast, None},
    Criterion, Goal, Subject, ratio,
    subjects::{self, Lazy, NO_SWEEP},
};
use crate::{
    bench::{Bench, GrpcLoad},
    load::Work,
    rivals::Work as Rival,
    run::Watched,
};

/// As many as one session's queue admits by default.
const CALLERS: usize = 64;

pub const HOT_SESSION: Goal = Goal {
    name: "P13",
    title: "a hot session: 64 callers on two replicas take turns",
    full_only: false,
    criteria: &[
        Criterion {
            what: "hand-overs",
            unit: "/s",
            bound: AtLeast(3_000.0),
            figure: |round| round.rate("oncegate"),
        },
        ratio("turns ÷ hand-overs", None, |round| round.rates("turns", "oncegate")),
        ratio("÷ commits one after another", None, |round| round.rates("oncegate", "commit")),
        ratio("÷ pg_advisory_lock", None, |round| round.rates("oncegate", "advisory")),
    ],
    subjects: |bench| {
        let insert = "tokio-postgres: single inserts, one connection, one caller";
        Ok(vec![
            oncegate(bench, "oncegate", Work::HotLease),
            oncegate(bench, "turns", Work::HotTurn),
            subjects::inserts(bench, "commit", insert, Rival::PostgresInsert, (1, 1)),
            subjects::advisory_lock(bench, "advisory", CALLERS),
        ])
    },
};

fn oncegate<'a>(bench: &'a Bench, id: &'static str, work: Work) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let load = GrpcLoad::new(work, CALLERS);
    let run = move || {
        let here = subjects::fresh(&database, &NO_SWEEP)?;
        let there = bench.serve(&database.url()?, &NO_SWEEP)?;
        let watched = Watched { server: Some(here.pid()), cluster: Some(&bench.cluster) };
        bench.replicas(&[&here.address, &there.address], load, watched)
    };
    let calls = if work == Work::HotTurn { "turns" } else { "leases" };
    let connections = load.connections;
    let what =
        format!("oncegate: {calls}, two replicas, {CALLERS} callers, {connections} connections");
    Subject { id, what, run: Box::new(run) }
}
