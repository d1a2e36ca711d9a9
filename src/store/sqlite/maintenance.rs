//! Sweeping and probing `SQLite`.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Handle, classify,
    fence::raise_floor,
    sessions::{FORGET, KEEP_ALL, NOBODY_WAITS, PLACES, lease},
    writer::begin,
};
use crate::{
    domain::{FencingToken, LeaseId, SessionKey, Team, Timestamp},
    rules::queue::PLACE_KEPT,
    store::{Age, Figures, Kind, StoreError, Sweep, Swept, Upkeep},
};

// The rows that a sweep is about. $1: the moment. $2: how long ago, in
// microseconds. $3: the team, or null for all. $4: the most rows.

macro_rules! expired_events {
    () => {
        "FROM processed_events WHERE expires_at <= $1 - $2 AND ($3 IS NULL OR team_id = $3)
        ORDER BY expires_at LIMIT $4"
    };
}

// A claim that runs stays, however long ago it was made.
macro_rules! old_events {
    () => {
        "FROM processed_events
        WHERE processed_at <= $1 - $2 AND (claimed_until > $1) IS NOT TRUE
            AND ($3 IS NULL OR team_id = $3) LIMIT $4"
    };
}

// A released lease ended when it was released, so one test serves all. $4: the moment, as a
// token: a row stays for FencingToken::UNSWEPT_MICROS after its token, as in PostgreSQL.
macro_rules! idle_sessions {
    () => {
        "FROM oncegate_sessions
        WHERE epic_id IS NULL AND NOT EXISTS (
                SELECT 1 FROM oncegate_waiters AS w
                WHERE w.team_id = oncegate_sessions.team_id
                    AND w.session_id = oncegate_sessions.session_id AND w.left_at IS NULL)
            AND expires_at <= $1 - $2 AND ($3 IS NULL OR team_id = $3) AND fencing_token <= $1 - 10000000 LIMIT $4"
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
pub(super) const DELETE_SESSIONS: &str = concat!(
    delete!("oncegate_sessions", "session_id", idle_sessions!()),
    " RETURNING fencing_token"
);

pub(super) const COUNT_LEASES: &str = "
SELECT count(*) FROM oncegate_sessions WHERE NOT released AND expires_at > $1
";

/// When the next event is due for deletion, and the newest migration.
pub(super) const FIGURES: &str = "
SELECT (SELECT min(expires_at) FROM processed_events) AS next,
    (SELECT max(version) FROM oncegate_migrations) AS schema_version
";

/// What a probe does to a table: all that calls do, to a row of a team that no caller can
/// name. It is rolled back.
macro_rules! rehearse {
    ($table:literal, $columns:literal, $values:literal, $set:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (",
            $columns,
            ") VALUES (",
            $values,
            "); UPDATE ",
            $table,
            " SET ",
            $set,
            " = ",
            $set,
            " WHERE team_id = ''; DELETE FROM ",
            $table,
            " WHERE team_id = ''"
        )
    };
}

pub(super) const PROBE_EVENTS: &str = rehearse!(
    "processed_events",
    "team_id, event_id, processed_at, expires_at, request_id",
    "'', '', 0, 0, ''",
    "expires_at"
);
pub(super) const PROBE_SESSIONS: &str = rehearse!(
    "oncegate_sessions",
    "team_id, session_id, fencing_token, lease_id, request_id, holder, labels, acquired_at, \
     expires_at, released",
    "'', '', (SELECT floor FROM oncegate_fence), '', '', '', '{}', 0, 0, 1",
    "expires_at"
);
pub(super) const PROBE_WAITERS: &str = rehearse!(
    "oncegate_waiters",
    "team_id, session_id, lease_id, request_id, holder, labels, ttl_micros",
    "'', '', '', '', '', '{}', 0",
    "ttl_micros"
);

pub(super) const PROBE_FENCE: &str = "UPDATE oncegate_fence SET floor = floor";

impl Upkeep for Handle {
    async fn sweep(&mut self, sweep: &Sweep) -> Result<Swept, StoreError> {
        let statement = match (sweep.kind, sweep.scope.age, sweep.scope.dry_run) {
            (Kind::Events, Age::Expired, true) => COUNT_EXPIRED_EVENTS,
            (Kind::Events, Age::Expired, false) => DELETE_EXPIRED_EVENTS,
            (Kind::Events, Age::AtLeast(_), true) => COUNT_OLD_EVENTS,
            (Kind::Events, Age::AtLeast(_), false) => DELETE_OLD_EVENTS,
            (Kind::Sessions, _, true) => COUNT_SESSIONS,
            (Kind::Sessions, _, false) => DELETE_SESSIONS,
        };
        let now = self.now().as_micros();
        if sweep.scope.dry_run {
            let count: i64 = sqlx::query_scalar(statement)
                .bind(now)
                .bind(sweep.scope.age.as_micros())
                .bind(sweep.scope.team.team())
                .bind(sweep.limit)
                .fetch_one(self.reader().await?)
                .await
                .map_err(classify)?;
            return Ok(sweep.done(u64::try_from(count).unwrap_or(0), false));
        }
        let mut writer = self.writer.lock().await;
        if sweep.kind == Kind::Sessions {
            let mut batch = begin(&mut writer).await?;
            let gone: Vec<i64> = sqlx::query_scalar(statement)
                .bind(now)
                .bind(sweep.scope.age.as_micros())
                .bind(sweep.scope.team.team())
                .bind(sweep.limit)
                .fetch_all(&mut *batch)
                .await
                .map_err(classify)?;
            forget_places(&mut batch, Timestamp::from_micros(now)).await?;
            if let Some(highest) = gone.iter().max() {
                raise_floor(&mut batch, FencingToken(*highest)).await?;
            }
            batch.commit().await.map_err(classify)?;
            return Ok(sweep.done(gone.len() as u64, self.writer.is_wanted()));
        }
        // One statement is a transaction of its own.
        let done = sqlx::query(statement)
            .bind(now)
            .bind(sweep.scope.age.as_micros())
            .bind(sweep.scope.team.team())
            .bind(sweep.limit)
            .execute(&mut *writer)
            .await;
        if sweep.takes_live_marks() {
            // Even if it failed: it may have been committed.
            self.marks.invalidate();
        }
        Ok(sweep.done(done.map_err(classify)?.rows_affected(), self.writer.is_wanted()))
    }

    async fn heartbeat(&mut self) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let rows = sqlx::query(PLACES).fetch_all(self.reader().await?).await.map_err(classify)?;
        let place = |row: &SqliteRow| {
            let (team, session) =
                (row.try_get::<String, _>("team_id")?, row.try_get("session_id")?);
            Ok((SessionKey { team: Team::stored(team), session }, lease(row, "lease_id")?))
        };
        let places: Result<_, sqlx::Error> = rows.iter().map(place).collect();
        places.map_err(StoreError::internal)
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

    async fn figures(&mut self, with_lag: bool) -> Figures {
        let now = self.now();
        let read = async {
            let row = sqlx::query(FIGURES).fetch_one(self.reader().await?).await;
            let row = row.map_err(classify)?;
            let next: Option<i64> = row.try_get("next").map_err(StoreError::internal)?;
            let lag = next.map_or(0, |next| now.as_micros().saturating_sub(next));
            let lag = Duration::from_micros(u64::try_from(lag).unwrap_or(0));
            Ok((lag, row.try_get("schema_version").map_err(StoreError::internal)?))
        };
        let clock = Some((now, Duration::ZERO));
        match read.await {
            Ok((lag, schema_version)) => {
                let sweep_lag = with_lag.then_some(lag);
                Figures { clock, sweep_lag, schema_version, ..Figures::default() }
            }
            Err(error) => Figures { clock, error: Some(error), ..Figures::default() },
        }
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.file.check()?;
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        for statement in [PROBE_EVENTS, PROBE_SESSIONS, PROBE_WAITERS, PROBE_FENCE] {
            sqlx::raw_sql(statement).execute(&mut *batch).await.map_err(classify)?;
        }
        batch.rollback().await.map_err(classify)
    }
}

/// Keeps the places of callers that waited in the process before this one.
pub(super) async fn keep_places(
    writer: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), StoreError> {
    let keep = sqlx::query(KEEP_ALL).bind(now.as_micros());
    keep.execute(&mut *writer).await.map_err(classify)?;
    forget_places(writer, now).await?;
    sqlx::query(NOBODY_WAITS).execute(writer).await.map(drop).map_err(classify)
}

/// Forgets places that nobody has taken up again in time. The version of their session stays: a
/// decision that reads such a place rests on the moment at which it is forgotten.
async fn forget_places(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), StoreError> {
    let forget = sqlx::query(FORGET).bind(now.minus(PLACE_KEPT).as_micros());
    forget.execute(connection).await.map(drop).map_err(classify)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::FencingToken;

    #[test]
    fn a_session_stays_for_as_long_as_the_rule_says() {
        let stays = format!("- {}", FencingToken::UNSWEPT_MICROS);
        assert!([DELETE_SESSIONS, COUNT_SESSIONS].iter().all(|sql| sql.contains(&stays)));
    }
}
