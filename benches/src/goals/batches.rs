//! Batches.

use super::{Bound::AtLeast, Goal, ratio, subjects};
use crate::{bench::GrpcLoad, load::Work, rivals::Work as Rival};

/// The most that one batch holds.
const ITEMS: usize = 1_000;

/// Four batches under way, each over a connection of its own.
pub const fn load(work: Work) -> GrpcLoad {
    GrpcLoad { connections: 4, items: ITEMS, ..GrpcLoad::new(work, 4) }
}

pub const BATCHES: Goal = Goal {
    name: "P2",
    title: "BatchMarkProcessed of 1,000 new events",
    full_only: false,
    criteria: &[
        ratio("batches ÷ raw unnest", AtLeast(0.95), |round| round.rates("batches", "unnest")),
        ratio("batches ÷ durable Redis claims", AtLeast(2.0), |round| {
            round.rates("batches", "redis")
        }),
    ],
    subjects: |bench| {
        let what = "oncegate: batches of 1,000, 4 under way over 4 connections";
        let redis = "Redis: SET NX EX, appendfsync always, 64 callers on one connection";
        Ok(vec![
            subjects::oncegate(bench, "batches", what, load(Work::Batch)),
            subjects::arrays(bench, "unnest", ITEMS),
            subjects::redis(bench, "redis", redis, Rival::RedisClaim, 64),
        ])
    },
};
