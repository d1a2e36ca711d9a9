//! Single inserts through sqlx's pool: what a bot in Rust does today.

use anyhow::Context as _;
use sqlx::postgres::{PgPool, PgPoolOptions};

use super::{Caller, Spec, drive};
use crate::load::Report;
use crate::load::keys::Keys;

const INSERT: &str =
    "INSERT INTO processed_events (team_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";

struct Inserts {
    pool: PgPool,
    keys: Keys,
    id: String,
}

impl Caller for Inserts {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.keys.rising(&mut self.id);
        let insert = sqlx::query(INSERT).bind(self.keys.team()).bind(&self.id);
        let inserted = insert.execute(&self.pool).await?.rows_affected();
        Ok((inserted == 1).then_some(1))
    }
}

pub(super) async fn inserts(spec: &Spec) -> anyhow::Result<Report> {
    let size = u32::try_from(spec.connections)?;
    let pool = PgPoolOptions::new()
        .min_connections(size)
        .max_connections(size)
        // A round trip more for each statement, which nobody needs here.
        .test_before_acquire(false)
        .connect(&spec.target)
        .await
        .context("connect the pool")?;
    let caller = |number| Inserts {
        pool: pool.clone(),
        keys: Keys::new(spec.seed, number),
        id: String::new(),
    };
    drive(spec, (0..spec.callers).map(caller)).await
}
