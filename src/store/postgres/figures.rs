//! The state of the database, for metrics and for `oncegate doctor`.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};

use super::{Handle, classify, line::Repeat, timestamp::PgTimestamp};
use crate::{
    store::{Figures, StoreError},
    telemetry::TableFigures,
};

/// The tables that grow and shrink with the calls.
pub(super) const NAMES: [&str; 4] =
    ["processed_events", "oncegate_sessions", "oncegate_waiters", "oncegate_replicas"];

/// A row for each table. $1: their names.
pub(super) const TABLES: &str = "
SELECT c.relname::text AS table, pg_total_relation_size(c.oid) AS bytes,
    COALESCE(pg_stat_get_dead_tuples(c.oid), 0) AS dead, COALESCE(pg_stat_get_live_tuples(c.oid), 0) AS live,
    extract(epoch FROM pg_stat_get_last_autovacuum_time(c.oid))::float8 AS last_autovacuum,
    COALESCE((SELECT option_value::boolean FROM pg_options_to_table(c.reloptions)
        WHERE option_name = 'autovacuum_enabled'), true) AS is_vacuumed
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relname = ANY ($1)
ORDER BY dead DESC, c.relname
";

/// Of a table's rows it reads the first that the index has. $1: the moment, or null for the
/// database's clock.
pub(super) const SWEEP_LAG: &str = "
SELECT extract(epoch FROM COALESCE($1::timestamptz, clock_timestamp()) - min(sweep_after))::float8
FROM processed_events
";

pub(super) const SCHEMA_VERSION: &str = "SELECT max(version) FROM oncegate_migrations";

/// Of all databases of the server: each of them makes all refuse writes.
pub(super) const AGES: &str = "
SELECT max(age(datfrozenxid))::bigint AS xid_age, max(mxid_age(datminmxid))::bigint AS multixact_age,
    (array_agg(datname::text ORDER BY age(datfrozenxid) DESC, datname))[1] AS oldest,
    (array_agg(datname::text ORDER BY mxid_age(datminmxid) DESC, datname))[1] AS oldest_multixact,
    current_setting('autovacuum_freeze_max_age')::bigint AS freeze,
    current_setting('autovacuum_multixact_freeze_max_age')::bigint AS freeze_multixact
FROM pg_database
";

/// $1: the moment, or null for the database's clock.
pub(super) const CLOCK: &str = "SELECT COALESCE($1::timestamptz, clock_timestamp())";

/// The state of one table.
pub(super) struct Table {
    pub(super) figures: TableFigures,
    /// Whether it is vacuumed where autovacuum is on.
    pub(super) is_vacuumed: bool,
}

/// Of transaction ids, or of those of several transactions that lock a row.
pub(super) struct OldestId {
    /// Since the oldest one that is not frozen.
    pub(super) age: i64,
    /// From when PostgreSQL freezes by itself.
    pub(super) freeze: i64,
    /// The database that has it.
    pub(super) database: String,
}

impl Table {
    fn of(row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
        let name: String = row.try_get("table")?;
        let Some(table) = NAMES.into_iter().find(|table| *table == name) else { return Ok(None) };
        let figures = TableFigures {
            table,
            bytes: row.try_get("bytes")?,
            live_rows: row.try_get("live")?,
            dead_rows: row.try_get("dead")?,
            last_autovacuum: row.try_get("last_autovacuum")?,
        };
        Ok(Some(Self { figures, is_vacuumed: row.try_get("is_vacuumed")? }))
    }
}

/// What [`TABLES`] answers: the table with most dead rows first.
pub(super) fn tables(rows: &[PgRow]) -> Result<Vec<Table>, StoreError> {
    let read = rows.iter().filter_map(|row| Table::of(row).transpose());
    read.collect::<Result<_, _>>().map_err(classify)
}

/// What [`AGES`] answers: of transactions and of multixacts.
pub(super) fn ages(row: &PgRow) -> Result<[OldestId; 2], StoreError> {
    let age = |age, freeze, database| {
        let (age, freeze) = (row.try_get(age)?, row.try_get(freeze)?);
        Ok::<_, sqlx::Error>(OldestId { age, freeze, database: row.try_get(database)? })
    };
    let both = || {
        let multixacts = age("multixact_age", "freeze_multixact", "oldest_multixact")?;
        Ok([age("xid_age", "freeze", "oldest")?, multixacts])
    };
    both().map_err(classify)
}

/// The database is away: what has not been read cannot be now.
struct Away;

impl Figures {
    /// A part of them, if it could be read.
    fn part<T>(&mut self, read: Result<T, StoreError>) -> Result<Option<T>, Away> {
        match read {
            Ok(part) => Ok(Some(part)),
            Err(error) => {
                let is_away =
                    matches!(error, StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_));
                self.error = Some(error);
                if is_away { Err(Away) } else { Ok(None) }
            }
        }
    }
}

impl Handle {
    pub(super) async fn read_figures(&self, with_lag: bool) -> Figures {
        let mut figures = Figures::default();
        let _ = self.read_into(&mut figures, with_lag).await;
        figures
    }

    /// Reads each part by itself: one that fails, as for a privilege, does not keep the others.
    async fn read_into(&self, figures: &mut Figures, with_lag: bool) -> Result<(), Away> {
        let now = self.now();
        let read = self.fetch(|| sqlx::query(TABLES).bind(&NAMES[..])).await;
        let read = read.and_then(|rows| tables(&rows));
        let found = figures.part(read)?.unwrap_or_default();
        figures.tables = found.into_iter().map(|table| table.figures).collect();

        let read = self.fetch(|| sqlx::query(SCHEMA_VERSION)).await;
        figures.schema_version = figures.part(read.and_then(|rows| first(&rows)))?;

        let read = self.fetch(|| sqlx::query(AGES)).await;
        let read = read.and_then(|rows| ages(only(&rows)?));
        figures.xid_age = figures.part(read)?.map(|[transactions, _]| transactions.age);

        if with_lag {
            // Planned each time: a plan that was made while the table was small would read all.
            let read = self.fetch(|| sqlx::query(SWEEP_LAG).persistent(false).bind(now)).await;
            let read = read.and_then(|rows| first::<Option<f64>>(&rows));
            // No event is kept at all, or none is due yet.
            let lag = |lag: Option<f64>| {
                Duration::try_from_secs_f64(lag.unwrap_or_default()).unwrap_or_default()
            };
            figures.sweep_lag = figures.part(read)?.map(lag);
        }

        let read = self.run(Repeat::Safe, || sqlx::query(CLOCK).bind(now)).await;
        let read = read.and_then(|fetched| {
            let PgTimestamp(at) = first(&fetched.rows)?;
            Ok((at, fetched.took))
        });
        figures.clock = figures.part(read)?;
        Ok(())
    }
}

/// The row that a statement answers.
fn only(rows: &[PgRow]) -> Result<&PgRow, StoreError> {
    rows.first().ok_or_else(|| StoreError::internal("a statement has answered no row"))
}

/// The value that a statement answers.
fn first<'r, T>(rows: &'r [PgRow]) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    only(rows)?.try_get(0).map_err(classify)
}
