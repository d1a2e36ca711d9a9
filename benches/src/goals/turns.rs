//! Turns, beside the calls that they replace.

use super::{
    Bound::{AtMost, None},
    Goal, ratio, subjects,
};
use crate::{bench::GrpcLoad, load::Work};

/// How many callers the rival has.
const CALLERS: usize = 32;

pub const TURNS: Goal = Goal {
    name: "P10",
    title: "an event handled in its session",
    full_only: false,
    criteria: &[
        ratio("256 callers: a turn's time ÷ the four calls'", AtMost(0.6), |round| {
            round.rates("calls 256", "256")
        }),
        ratio("32 callers: a turn's time ÷ the four calls'", AtMost(0.6), |round| {
            round.rates("calls 32", "32")
        }),
        ratio("256 callers ÷ SQL", None, |round| round.rates("256", "sql")),
        ratio("32 callers ÷ SQL", None, |round| round.rates("32", "sql")),
    ],
    subjects: |bench| {
        let load = |id, what: &str, work, callers| {
            let load = GrpcLoad::new(work, callers);
            let what = format!("oncegate: {what}; {callers} callers");
            subjects::oncegate(bench, id, &what, load)
        };
        Ok(vec![
            load("32", "BeginTurn, FinishTurn", Work::Turn, CALLERS),
            load("calls 32", "look, acquire, mark, release", Work::FourCalls, CALLERS),
            subjects::statement_turns(bench, "sql", CALLERS),
            load("256", "BeginTurn, FinishTurn", Work::Turn, 256),
            load("calls 256", "look, acquire, mark, release", Work::FourCalls, 256),
        ])
    },
};
