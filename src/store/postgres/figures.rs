//! The state of the database, for metrics.

use std::time::{Duration, Instant};

use sqlx::{Row as _, postgres::PgRow};

use super::{Handle, classify, timestamp::PgTimestamp};
use crate::{
    store::{Figures, StoreError},
    telemetry::TableFigures,
};

/// The tables that grow and shrink with the calls.
const TABLES: [&str; 4] =
    ["processed_events", "oncegate_sessions", "oncegate_waiters", "oncegate_replicas"];

/// A row for each table. $1: the moment, or null for the database's clock; $2: their names. Of a
/// table's rows it reads the first that the index has.
pub(super) const FIGURES: &str = "
SELECT c.relname::text AS table, pg_total_relation_size(c.oid) AS bytes,
    pg_stat_get_dead_tuples(c.oid) AS dead_rows,
    extract(epoch FROM pg_stat_get_last_autovacuum_time(c.oid))::float8 AS last_autovacuum,
    (SELECT extract(epoch FROM COALESCE($1::timestamptz, clock_timestamp()) - min(sweep_after))
        FROM processed_events)::float8 AS sweep_lag,
    (SELECT max(version) FROM oncegate_migrations) AS schema_version,
    (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database())::bigint AS xid_age
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY ($2)
";

pub(super) const CLOCK: &str = "SELECT COALESCE($1::timestamptz, clock_timestamp())";

impl Handle {
    pub(super) async fn read_figures(&self) -> Result<Figures, StoreError> {
        let now = self.now();
        // Planned each time: a plan that was made while the table was small would read all of it.
        let statement = || sqlx::query(FIGURES).persistent(false).bind(now).bind(&TABLES[..]);
        let rows = self.fetch(statement).await?;
        // After the other statement: the connection is open by now.
        let asked = Instant::now();
        let clock = self.fetch(|| sqlx::query(CLOCK).bind(now)).await?;
        let took = asked.elapsed();
        let clock = clock.first().and_then(|row| row.try_get(0).ok());
        let clock = clock.map(|PgTimestamp(at)| (at, took));
        let tables: Result<Vec<_>, sqlx::Error> = rows.iter().filter_map(table).collect();
        let mut figures =
            Figures { clock, tables: tables.map_err(classify)?, ..Figures::default() };
        if let Some(row) = rows.first() {
            let lag: Option<f64> = row.try_get("sweep_lag").map_err(classify)?;
            // No event is kept at all, or none is due yet.
            let lag = Duration::try_from_secs_f64(lag.unwrap_or_default()).unwrap_or_default();
            figures.sweep_lag = Some(lag);
            figures.schema_version = row.try_get("schema_version").map_err(classify)?;
            figures.xid_age = row.try_get("xid_age").map_err(classify)?;
        }
        Ok(figures)
    }
}

fn table(row: &PgRow) -> Option<Result<TableFigures, sqlx::Error>> {
    let name = match row.try_get::<String, _>("table") {
        Ok(name) => name,
        Err(error) => return Some(Err(error)),
    };
    let table = *TABLES.iter().find(|table| **table == name)?;
    let read = || {
        Ok(TableFigures {
            table,
            bytes: row.try_get("bytes")?,
            dead_rows: row.try_get("dead_rows")?,
            last_autovacuum: row.try_get("last_autovacuum")?,
        })
    };
    Some(read())
}
