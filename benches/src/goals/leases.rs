//! Leases: acquire and release, a session a caller.

use super::{Bound::AtLeast, Goal, Subject, ratio, subjects};
use crate::{
    bench::{Bench, GrpcLoad},
    load::Work,
    rivals::Work as Rival,
    run::Watched,
};

/// How many callers the rivals have.
const CALLERS: usize = 32;

pub const LEASES: Goal = Goal {
    name: "P5",
    title: "lease cycles: acquire and release",
    full_only: false,
    criteria: &[
        ratio("32 callers ÷ SQL", AtLeast(2.5), |round| round.rates("32", "sql")),
        ratio("256 callers ÷ SQL", AtLeast(2.5), |round| round.rates("256", "sql")),
        ratio("32 callers ÷ etcd", AtLeast(4.0), |round| round.rates("32", "etcd")),
        ratio("256 callers ÷ etcd", AtLeast(4.0), |round| round.rates("256", "etcd")),
        ratio("32 callers ÷ Redis", AtLeast(1.0), |round| round.rates("32", "redis")),
        ratio("256 callers ÷ Redis", AtLeast(1.0), |round| round.rates("256", "redis")),
    ],
    subjects: |bench| {
        let cycles = |id, callers| {
            let load = GrpcLoad::new(Work::Lease, callers);
            let what = format!("oncegate: {callers} callers, {} connections", load.connections);
            subjects::oncegate(bench, id, &what, load)
        };
        let redis = "Redis: SET NX PX, then a script; appendfsync always, 32 callers";
        Ok(vec![
            cycles("32", CALLERS),
            subjects::statement_leases(bench, "sql", CALLERS),
            etcd(bench, "etcd"),
            cycles("256", 256),
            subjects::redis(bench, "redis", redis, Rival::RedisLock, CALLERS),
        ])
    },
};

fn etcd<'a>(bench: &'a Bench, id: &'static str) -> Subject<'a> {
    let run = move || {
        let etcd = bench.etcd()?;
        let watched = Watched { server: Some(etcd.pid()), cluster: None };
        bench.grpc(&etcd.address, GrpcLoad::new(Work::EtcdLock, CALLERS), watched)
    };
    let what = format!("etcd: Lock, Unlock; {CALLERS} callers");
    Subject { id, what, run: Box::new(run) }
}
