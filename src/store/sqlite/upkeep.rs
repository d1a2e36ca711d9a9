//! Sweeping and probing `SQLite`.

use sqlx::{Row as _, Sqlite, Transaction};

use super::{Handle, begin, classify};
use crate::{
    domain::Timestamp,
    store::{Age, StoreError, Sweep, Swept, Upkeep},
};

// The rows that a sweep is about. $1: the latest moment. $2: the team, or null
// for all. $3: the most rows.

macro_rules! expired_events {
    () => {
        "FROM processed_events WHERE expires_at <= $1 AND ($2 IS NULL OR team_id = $2)
        ORDER BY expires_at LIMIT $3"
    };
}

macro_rules! old_events {
    () => {
        "FROM processed_events WHERE processed_at <= $1 AND ($2 IS NULL OR team_id = $2) LIMIT $3"
    };
}

// A released lease ended when it was released, so one test serves all.
macro_rules! idle_sessions {
    () => {
        "FROM sessions
        WHERE epic_id IS NULL AND expires_at <= $1 AND ($2 IS NULL OR team_id = $2) LIMIT $3"
    };
}

macro_rules! count {
    ($rows:expr) => {
        concat!("SELECT count(*) FROM (SELECT 1 ", $rows, ")")
    };
}

macro_rules! delete {
    ($table:literal, $id:literal, $rows:expr) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE (team_id, ",
            $id,
            ") IN (SELECT team_id, ",
            $id,
            " ",
            $rows,
            ")"
        )
    };
}

pub(super) const COUNT_EXPIRED_EVENTS: &str = count!(expired_events!());
pub(super) const COUNT_OLD_EVENTS: &str = count!(old_events!());
pub(super) const COUNT_SESSIONS: &str = count!(idle_sessions!());
pub(super) const DELETE_EXPIRED_EVENTS: &str =
    delete!("processed_events", "event_id", expired_events!());
pub(super) const DELETE_OLD_EVENTS: &str = delete!("processed_events", "event_id", old_events!());
pub(super) const DELETE_SESSIONS: &str = delete!("sessions", "session_id", idle_sessions!());

pub(super) const COUNT_LEASES: &str = "
SELECT count(*) FROM sessions WHERE NOT released AND expires_at > $1
";

pub(super) const PING: &str = "SELECT count(*) FROM sqlite_schema";

impl Upkeep for Handle {
    async fn sweep(&mut self, sweep: &Sweep) -> Result<Swept, StoreError> {
        let (events, sessions) = match (sweep.dry_run, sweep.age) {
            (true, Age::Expired) => (COUNT_EXPIRED_EVENTS, COUNT_SESSIONS),
            (true, Age::AtLeast(_)) => (COUNT_OLD_EVENTS, COUNT_SESSIONS),
            (false, Age::Expired) => (DELETE_EXPIRED_EVENTS, DELETE_SESSIONS),
            (false, Age::AtLeast(_)) => (DELETE_OLD_EVENTS, DELETE_SESSIONS),
        };
        let until = Timestamp::from_micros(self.now().as_micros() - sweep.age.as_micros());
        if sweep.dry_run {
            let mut counted = [0; 2];
            let mut limit = i64::from(sweep.limit);
            for (count, statement) in counted.iter_mut().zip([events, sessions]) {
                let found: i64 = sqlx::query_scalar(statement)
                    .bind(until.as_micros())
                    .bind(&sweep.team)
                    .bind(limit)
                    .fetch_one(self.reader().await?)
                    .await
                    .map_err(classify)?;
                limit -= found;
                *count = u64::try_from(found).unwrap_or(0);
            }
            let [events, sessions] = counted;
            return Ok(Swept { events, sessions });
        }
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let limit = u64::from(sweep.limit);
        let events = delete(&mut batch, events, until, sweep, limit).await?;
        let sessions =
            delete(&mut batch, sessions, until, sweep, limit - events.min(limit)).await?;
        batch.commit().await.map_err(classify)?;
        Ok(Swept { events, sessions })
    }

    async fn count_leases(&mut self) -> Result<u64, StoreError> {
        let now = self.now().as_micros();
        let count: i64 = sqlx::query_scalar(COUNT_LEASES)
            .bind(now)
            .fetch_one(self.reader().await?)
            .await
            .map_err(classify)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        let answer = sqlx::query(PING).fetch_one(self.reader().await?).await;
        answer.and_then(|row| row.try_get::<i64, _>(0)).map_err(classify)?;
        Ok(())
    }
}

async fn delete(
    batch: &mut Transaction<'_, Sqlite>,
    statement: &'static str,
    until: Timestamp,
    sweep: &Sweep,
    limit: u64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(statement)
        .bind(until.as_micros())
        .bind(&sweep.team)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .execute(&mut **batch)
        .await
        .map_err(classify)?;
    Ok(done.rows_affected())
}
