//! A database that is half a millisecond away.
//!
//! A proxy in the benchmark's process delays every byte by a quarter of a millisecond in each
//! direction. The same load runs through the same proxy without the delay, so that the proxy's
//! own cost is in both figures. What the added round trips alone would leave follows from that:
//! in a closed loop of `N` callers at a rate of `R` each unit of work takes `N / R`. Far from the
//! database it takes longer by its own round trips, one for each call that must be durable, and
//! nothing else changes: the rate is then `N / (N / R + trips × delay)`. A server is below that
//! if a call waits for round trips of others, or if its own need several. It is above that if
//! work that waited for the processor now waits for the network instead.
//!
//! The delay is measured, too: by one caller that asks for nothing.

use std::{ops::RangeInclusive, rc::Rc, time::Duration};

use anyhow::ensure;

use super::{
    Bound::{AtLeast, None},
    Criterion, Goal, Round, Subject, ratio,
    subjects::{self, EMPTY_LEASES, LEASES_TABLE, Lazy},
};
use crate::{
    bench::{Bench, GrpcLoad, RivalLoad},
    load::Work,
    proxy::Proxy,
    rivals::Work as Rival,
};

/// Each way.
const DELAY: Duration = Duration::from_micros(250);

/// What a round trip may take longer, in seconds. More means that the machine is too busy.
const CREDIBLE: RangeInclusive<f64> = 0.45e-3..=0.7e-3;

/// One load, without the delay and with it.
struct Pair {
    near: &'static str,
    far: &'static str,
    callers: usize,
    /// How many calls of a unit of work are durable before they are answered.
    trips: usize,
}

const MARKS: Pair = Pair { near: "mark 256", far: "mark 256 far", callers: 256, trips: 1 };
const FEW_LEASES: Pair = Pair { near: "lease 32", far: "lease 32 far", callers: 32, trips: 2 };
const LEASES: Pair = Pair { near: "lease 256", far: "lease 256 far", callers: 256, trips: 2 };
const FEW_TURNS: Pair = Pair { near: "turn 32", far: "turn 32 far", callers: 32, trips: 2 };
const TURNS: Pair = Pair { near: "turn 256", far: "turn 256 far", callers: 256, trips: 2 };
/// Not batched: what the delay alone does. It shows how exact the comparison is.
const SQL: Pair = Pair { near: "sql", far: "sql far", callers: 32, trips: 2 };
const PING: Pair = Pair { near: "ping", far: "ping far", callers: 1, trips: 1 };

pub const DISTANCE: Goal = Goal {
    name: "P18",
    title: "0.5 ms to the database ÷ what the added round trips alone would leave",
    full_only: false,
    criteria: &[
        Criterion {
            what: "what a round trip takes longer",
            unit: "ms",
            bound: None,
            figure: |round| Ok(delay(round)? * 1e3),
        },
        ratio("P1, 256 callers", AtLeast(0.9), |round| left(round, &MARKS)),
        ratio("P5, 32 callers", AtLeast(0.9), |round| left(round, &FEW_LEASES)),
        ratio("P5, 256 callers", AtLeast(0.9), |round| left(round, &LEASES)),
        ratio("P10, 32 callers", AtLeast(0.9), |round| left(round, &FEW_TURNS)),
        ratio("P10, 256 callers", AtLeast(0.9), |round| left(round, &TURNS)),
        ratio("SQL, 32 connections", None, |round| left(round, &SQL)),
        ratio("P1, 256 callers: with ÷ without", None, |round| kept(round, &MARKS)),
        ratio("P5, 256 callers: with ÷ without", None, |round| kept(round, &LEASES)),
        ratio("P10, 256 callers: with ÷ without", None, |round| kept(round, &TURNS)),
    ],
    subjects: |bench| {
        let address = bench.cluster.address()?;
        let start = |delay| Proxy::start(address, delay).map(Rc::new);
        let proxies = [start(Duration::ZERO)?, start(DELAY)?];
        let mut all = Vec::new();
        for (pair, what, work) in [
            (&PING, "SQL: empty statements", Rival::PostgresPing),
            (&SQL, "SQL: a statement takes, one gives back", Rival::PostgresLease),
        ] {
            let Pair { callers, .. } = *pair;
            let load = RivalLoad { work, connections: callers, callers, items: 1 };
            let what = format!("{what}; {callers} connections");
            all.extend(both(bench, &proxies, pair, (LEASES_TABLE, &what), |database, id, what| {
                subjects::direct(database, id, what, EMPTY_LEASES, load)
            }));
        }
        for (pair, what, work) in [
            (&MARKS, "MarkProcessed", Work::Mark),
            (&FEW_LEASES, "acquire, release", Work::Lease),
            (&LEASES, "acquire, release", Work::Lease),
            (&FEW_TURNS, "BeginTurn, FinishTurn", Work::Turn),
            (&TURNS, "BeginTurn, FinishTurn", Work::Turn),
        ] {
            let load = GrpcLoad::new(work, pair.callers);
            let what = format!("oncegate: {what}; {} callers", pair.callers);
            all.extend(both(bench, &proxies, pair, ("", &what), |database, id, what| {
                subjects::served(database, id, what, load)
            }));
        }
        Ok(all)
    },
};

/// A load through the proxy that does not delay, then through the one that does.
fn both<'a>(
    bench: &'a Bench,
    [near, far]: &[Rc<Proxy>; 2],
    pair: &Pair,
    (schema, what): (&'static str, &str),
    subject: impl Fn(Lazy<'a>, &'static str, &str) -> Subject<'a>,
) -> [Subject<'a>; 2] {
    let places =
        [(near, pair.near, String::new()), (far, pair.far, format!(", {:?} away", 2 * DELAY))];
    places.map(|(proxy, id, place)| {
        let database = Lazy::new(bench, schema).through(Rc::clone(proxy));
        subject(database, id, &format!("{what}{place}"))
    })
}

/// What the delay adds to one round trip, in seconds.
fn delay(round: &Round<'_>) -> anyhow::Result<f64> {
    // The medians: on a busy machine the means hold much that is no delay.
    let p50 = |id| anyhow::Ok(round.run(id)?.load.p50_us);
    let delay = (p50(PING.far)? - p50(PING.near)?) / 1e6;
    ensure!(CREDIBLE.contains(&delay), "a round trip took longer by {:.3} ms", delay * 1e3);
    Ok(delay)
}

/// The rate with the delay ÷ what the added round trips alone would leave.
fn left(round: &Round<'_>, pair: &Pair) -> anyhow::Result<f64> {
    let callers = pair.callers as f64;
    let each = callers / round.rate(pair.near)? + pair.trips as f64 * delay(round)?;
    Ok(round.rate(pair.far)? * each / callers)
}

/// The rate with the delay ÷ the rate without.
fn kept(round: &Round<'_>, pair: &Pair) -> anyhow::Result<f64> {
    round.rates(pair.far, pair.near)
}
