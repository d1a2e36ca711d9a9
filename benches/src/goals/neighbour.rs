//! A quiet team beside one with many large batches under way: on one server, and apart, where the other team has
//! a server and a database of its own on the same machine. What the quiet team waits for there are the processors
//! and the disk, which no order of a server's calls can give it.
//!
//! A refused caller backs off for the time in the answer.

use std::thread;

use anyhow::{Context as _, ensure};

use super::{
    Bound::{AtLeast, AtMost, None},
    Criterion, Goal, Subject, ratio,
    subjects::{self, Lazy, NO_SWEEP},
};
use crate::{
    bench::{Bench, GrpcLoad},
    load::Work,
    run::{self, Job, Run, Watched},
    server::Server,
};

/// Marks, by eight callers of one team.
const QUIET: GrpcLoad = GrpcLoad { connections: 1, team: Some(0), ..GrpcLoad::new(Work::Mark, 8) };
/// Batches of 1,000, 256 of them under way, all of another team: each over a connection of its own,
/// whose window has no room for several.
const NOISY: GrpcLoad =
    GrpcLoad { items: 1_000, team: Some(1), connections: 256, ..GrpcLoad::new(Work::Batch, 256) };

pub const NEIGHBOUR: Goal = Goal {
    name: "P14",
    title: "a quiet team beside 256 batches of 1,000 of another",
    full_only: false,
    criteria: &[
        ratio("p50 of the quiet team: beside ÷ alone", None, |round| {
            Ok(round.run("beside")?.load.p50_us / round.run("alone")?.load.p50_us)
        }),
        ratio("p99 of the quiet team: beside ÷ alone", AtMost(3.0), |round| {
            Ok(round.run("beside")?.load.p99_us / round.run("alone")?.load.p99_us)
        }),
        ratio("p50 of the quiet team: beside ÷ apart", None, |round| {
            Ok(round.run("beside")?.load.p50_us / round.run("apart")?.load.p50_us)
        }),
        ratio("p99 of the quiet team: beside ÷ apart", None, |round| {
            Ok(round.run("beside")?.load.p99_us / round.run("apart")?.load.p99_us)
        }),
        Criterion {
            what: "calls of the quiet team that were refused",
            unit: "calls",
            bound: AtMost(0.0),
            figure: |round| round.figure("beside", "quiet_refused"),
        },
        ratio("marks of the noisy team: beside ÷ alone", AtLeast(0.9), |round| {
            Ok(round.figure("beside", "noisy_rate")? / round.rate("noisy")?)
        }),
    ],
    subjects: |bench| {
        let noisy = "oncegate: 256 batches of 1,000 under way, one team";
        Ok(vec![
            subjects::oncegate(bench, "alone", "oncegate: marks, 8 callers of one team", QUIET),
            shedding(subjects::oncegate(bench, "noisy", noisy, NOISY)),
            both(bench, "apart"),
            both(bench, "beside"),
        ])
    },
};

/// A subject of which a part is meant to be refused.
fn shedding(subject: Subject<'_>) -> Subject<'_> {
    let Subject { id, what, mut run } = subject;
    Subject { id, what, run: Box::new(move || Ok(Run { sheds: true, ..run()? })) }
}

/// Both at once, `beside` each other on one server or `apart`; the figures are of the quiet team, if they are not
/// said to be of the other.
fn both<'a>(bench: &'a Bench, id: &'static str) -> Subject<'a> {
    let databases = [Lazy::new(bench, ""), Lazy::new(bench, "")];
    let run = move || {
        let server = subjects::fresh(&databases[0], &NO_SWEEP)?;
        let other =
            (id == "apart").then(|| subjects::fresh(&databases[1], &NO_SWEEP)).transpose()?;
        let job = |server: &Server, load| Job::Grpc(bench.load(&[&server.address], load));
        let (quiet, noisy) = (job(&server, QUIET), job(other.as_ref().unwrap_or(&server), NOISY));
        let watched = Watched { server: Some(server.pid()), cluster: Some(&bench.cluster) };
        let (quiet, noisy) = thread::scope(|scope| {
            let noisy = scope.spawn(|| run::load(&noisy, Watched::default()));
            let quiet = run::load(&quiet, watched);
            (quiet, noisy.join())
        });
        let (quiet, noisy) = (quiet?, noisy.ok().context("the noisy load panicked")??);
        ensure!(noisy.load.wrong == 0, "{} answers to the noisy team were wrong", noisy.load.wrong);
        let figures = [
            ("quiet_refused", quiet.load.failed as f64),
            ("noisy_rate", noisy.load.rate),
            ("noisy_refused", noisy.load.failed as f64),
        ];
        for database in &databases[..if other.is_some() { 2 } else { 1 }] {
            database.get()?.execute(subjects::EMPTY_ONCEGATE)?;
        }
        Ok(Run { figures: figures.into(), sheds: true, ..quiet })
    };
    let what = match id {
        "apart" => "the same, beside 256 batches of 1,000 that another server has",
        _ => "the same, beside 256 batches of 1,000 of another team",
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}
