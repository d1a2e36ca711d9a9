//! `SQLite` through sqlx, on oncegate's own schema, as durable as oncegate is.

use std::str::FromStr as _;

use anyhow::Context as _;
use sqlx::{
    ConnectOptions as _, Executor as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use uuid::Uuid;

use super::{Caller, Spec, drive};
use crate::load::Report;
use crate::load::keys::Keys;

const SCHEMA: &str = include_str!("../../../migrations/sqlite/0001_processed_events.sql");

const INSERT: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
VALUES ($1, $2, $3, $3 + 86400000000, $4) ON CONFLICT DO NOTHING
";

const INSERT_ARRAY: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
SELECT value ->> 0, value ->> 1, $2, $2 + 86400000000, value ->> 2
FROM json_each($1) WHERE true ON CONFLICT DO NOTHING RETURNING event_id
";

/// 256 MB, in KiB; negative as `SQLite` wants it.
const CACHE_KIB: &str = "-262144";

/// Opens the file and makes the schema.
async fn open(spec: &Spec) -> anyhow::Result<SqliteConnection> {
    let mut connection = SqliteConnectOptions::from_str(&spec.target)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", CACHE_KIB)
        .disable_statement_logging()
        .connect()
        .await
        .with_context(|| format!("open {}", spec.target))?;
    connection.execute(SCHEMA).await?;
    Ok(connection)
}

/// A moment that rises, in microseconds since 1970, as near to the truth as a
/// row needs.
fn moment(spec: &Spec) -> i64 {
    spec.seed.cast_signed()
}

struct Inserts {
    connection: SqliteConnection,
    keys: Keys,
    id: String,
    now: i64,
}

impl Caller for Inserts {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.keys.rising(&mut self.id);
        self.now += 1;
        let insert = sqlx::query(INSERT)
            .bind(self.keys.team())
            .bind(&self.id)
            .bind(self.now)
            .bind(Uuid::new_v4().simple().to_string());
        let inserted = insert.execute(&mut self.connection).await?.rows_affected();
        Ok((inserted == 1).then_some(1))
    }
}

pub(super) async fn inserts(spec: &Spec) -> anyhow::Result<Report> {
    let connection = open(spec).await?;
    let keys = Keys::new(spec.seed, 0);
    drive(spec, [Inserts { connection, keys, id: String::new(), now: moment(spec) }]).await
}

struct Arrays {
    connection: SqliteConnection,
    keys: Keys,
    id: String,
    items: usize,
    now: i64,
}

impl Caller for Arrays {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.now += 1;
        let mut events = Vec::with_capacity(self.items);
        for _ in 0..self.items {
            self.keys.rising(&mut self.id);
            let request = Uuid::new_v4().simple().to_string();
            events.push((self.keys.team(), self.id.clone(), request));
        }
        let events = serde_json::to_string(&events)?;
        let insert = sqlx::query(INSERT_ARRAY).bind(events).bind(self.now);
        let new = insert.fetch_all(&mut self.connection).await?.len();
        Ok((new == self.items).then_some(new as u64))
    }
}

pub(super) async fn arrays(spec: &Spec) -> anyhow::Result<Report> {
    let connection = open(spec).await?;
    let keys = Keys::new(spec.seed, 0);
    let (items, now) = (spec.items, moment(spec));
    drive(spec, [Arrays { connection, keys, id: String::new(), items, now }]).await
}
