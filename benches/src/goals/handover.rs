//! From one who gives a session back to one who waits for it elsewhere.

use super::{
    Bound::{AtMost, None},
    Criterion, Goal, Round, Subject, ratio,
    subjects::{self, EMPTY_LEASES, LEASES_TABLE, Lazy, NO_SWEEP},
};
use crate::{bench::Bench, handover::Way, rivals::Work as Rival, run::Watched};

pub const HANDOVER: Goal = Goal {
    name: "P6",
    title: "from a release to the grant of one who waits on another replica",
    full_only: false,
    criteria: &[
        ratio("p50 ÷ one commit", AtMost(3.0), |round| p50s(round, "oncegate", "commit")),
        Criterion {
            what: "p99",
            unit: "ms",
            bound: AtMost(20.0),
            figure: |round| Ok(round.run("oncegate")?.load.p99_us / 1e3),
        },
        ratio("p50 ÷ etcd's lock", None, |round| p50s(round, "oncegate", "etcd")),
        ratio("p50 ÷ pg_advisory_lock", None, |round| p50s(round, "oncegate", "advisory")),
        ratio("p50 ÷ polling", None, |round| p50s(round, "oncegate", "polling")),
    ],
    subjects: |bench| {
        let insert = "tokio-postgres: single inserts, one connection, one caller";
        Ok(vec![
            oncegate(bench, "oncegate"),
            subjects::inserts(bench, "commit", insert, Rival::PostgresInsert, (1, 1)),
            etcd(bench, "etcd"),
            sql(bench, "advisory", "SQL: pg_advisory_lock, two connections", Way::AdvisoryLock),
            sql(bench, "polling", "SQL: a lease, asked for every 100 ms", Way::Polling),
        ])
    },
};

fn p50s(round: &Round<'_>, id: &str, other: &str) -> anyhow::Result<f64> {
    Ok(round.run(id)?.load.p50_us / round.run(other)?.load.p50_us)
}

fn oncegate<'a>(bench: &'a Bench, id: &'static str) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let run = move || {
        let here = subjects::fresh(&database, &NO_SWEEP)?;
        let there = bench.serve(&database.url()?, &NO_SWEEP)?;
        let watched = Watched { server: Some(here.pid()), cluster: Some(&bench.cluster) };
        bench.hand_over(Way::Oncegate, [&here.address, &there.address], watched)
    };
    Subject { id, what: "oncegate: two replicas".to_owned(), run: Box::new(run) }
}

fn etcd<'a>(bench: &'a Bench, id: &'static str) -> Subject<'a> {
    let run = move || {
        let etcd = bench.etcd()?;
        let watched = Watched { server: Some(etcd.pid()), cluster: Option::None };
        bench.hand_over(Way::EtcdLock, [&etcd.address, &etcd.address], watched)
    };
    Subject { id, what: "etcd: Lock, Unlock; two connections".to_owned(), run: Box::new(run) }
}

fn sql<'a>(bench: &'a Bench, id: &'static str, what: &str, way: Way) -> Subject<'a> {
    let database = Lazy::new(bench, LEASES_TABLE);
    let run = move || {
        let database = database.get()?;
        database.execute(EMPTY_LEASES)?;
        let watched = Watched { server: Option::None, cluster: Some(&bench.cluster) };
        bench.hand_over(way, [&database.url, &database.url], watched)
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}
