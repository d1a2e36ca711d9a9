//! How long a session takes from one who gives it back to one who waits for it:
//! two parties hand it to and fro, each of them on a connection of its own.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::load::{Report, Tally, grpc, process_cpu};
use crate::rivals::hand_over as sql;

/// How it is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// `AcquireSessionLease` with a wait, and `ReleaseSessionLease`.
    Oncegate,
    /// etcd: `v3lockpb.Lock/Lock` and `Unlock`.
    EtcdLock,
    /// PostgreSQL: `pg_advisory_lock`, and `pg_advisory_unlock`.
    AdvisoryLock,
    /// PostgreSQL: a statement that takes a lease, over and over; and one that gives
    /// it back.
    Polling,
}

impl Way {
    /// How long the holder keeps it: the other one waits by then, and can be told.
    const fn rest(self) -> Duration {
        Duration::from_millis(match self {
            // A watch from a revision that is over by then hears nothing before
            // `watchResyncPeriod`, 100 ms:
            // <https://github.com/etcd-io/etcd/blob/v3.4.23/mvcc/watchable_store.go>.
            Self::EtcdLock => 150,
            Self::Oncegate | Self::AdvisoryLock | Self::Polling => 5,
        })
    }
}

/// One load of this kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Where each party is connected: `HOST:PORT`, or a database's URL.
    pub targets: [String; 2],
    pub way: Way,
    /// How long is measured, in seconds.
    pub seconds: f64,
    /// How long the load runs before that, in seconds.
    pub warmup: f64,
    /// Keeps the sessions of different loads apart.
    pub seed: u64,
}

/// One of the two.
pub trait Party: Send {
    /// Returns once it holds.
    fn take(&mut self) -> anyhow::Result<()>;

    /// Gives it back.
    fn give(&mut self) -> anyhow::Result<()>;
}

fn party(spec: &Spec, target: &str) -> anyhow::Result<Box<dyn Party>> {
    Ok(match spec.way {
        Way::Oncegate => grpc::oncegate_party(target, spec.seed)?,
        Way::EtcdLock => grpc::etcd_party(target, spec.seed)?,
        Way::AdvisoryLock => Box::new(sql::Advisory::connect(target, spec.seed)?),
        Way::Polling => Box::new(sql::Polling::connect(target, spec.seed)?),
    })
}

/// Runs one load. Its latencies are those from before one party gives back until
/// the other holds.
pub fn run(spec: &Spec) -> anyhow::Result<Report> {
    let [here, there] = &spec.targets;
    let (mut holder, mut waiter) = (party(spec, here)?, party(spec, there)?);
    holder.take()?;
    let from = Instant::now() + Duration::from_secs_f64(spec.warmup);
    let until = from + Duration::from_secs_f64(spec.seconds);
    let mut tally = Tally::new(from, until);
    let before = process_cpu()?;
    while !tally.over(Instant::now()) {
        let (begun, ended) = thread::scope(|scope| {
            let taking = scope.spawn(|| waiter.take().map(|()| Instant::now()));
            thread::sleep(spec.way.rest());
            let begun = Instant::now();
            holder.give()?;
            let ended = taking.join().ok().context("the one who waited panicked")??;
            anyhow::Ok((begun, ended))
        })?;
        tally.done(begun, ended, 1);
        (holder, waiter) = (waiter, holder);
    }
    Ok(Tally::report(vec![tally], process_cpu()? - before))
}
