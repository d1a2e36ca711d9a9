//! Sweeping and probing PostgreSQL.

use sqlx::Row as _;

use super::{
    Handle,
    fence::{new_token, raise_floor, token_of},
    line::{Fetched, Repeat},
};
use crate::{
    domain::{LeaseId, SessionKey},
    store::{Age, Figures, Kind, StoreError, Sweep, Swept, Upkeep},
};

// The rows that a sweep is about. $1: the moment, or null for the database's
// clock. $2: how long ago, in microseconds. $3: the team, or null for all. $4:
// the lock that elects the sweeper, or null where no election is asked for. $5:
// the most rows.

/// Whether this sweep is to be done: it is asked for the lock once, for all of the statement.
macro_rules! election {
    () => {
        "WITH election AS MATERIALIZED (
    SELECT $4::bigint IS NULL OR pg_try_advisory_xact_lock($4) AS won
)"
    };
}

macro_rules! expired_events {
    () => {
        "FROM processed_events
        WHERE expires_at <= (SELECT COALESCE($1::timestamptz, clock_timestamp())
                - $2::bigint * interval '1 microsecond')
            AND ($3::text IS NULL OR team_id = $3)
            AND (SELECT won FROM election)
        LIMIT $5::bigint"
    };
}

// A claim that runs stays, however long ago it was made.
macro_rules! old_events {
    () => {
        concat!(
            "FROM processed_events
        WHERE processed_at <= (SELECT COALESCE($1::timestamptz, clock_timestamp())
                - $2::bigint * interval '1 microsecond')
            AND ",
            running!("processed_events", "COALESCE($1::timestamptz, clock_timestamp())"),
            " IS NOT TRUE
            AND ($3::text IS NULL OR team_id = $3)
            AND (SELECT won FROM election)
        LIMIT $5::bigint"
        )
    };
}

// A released lease ended when it was released, so one test serves all. A row whose token is
// above the clock, which was stepped back, stays until the clock has passed it: see
// `new_token!`.
macro_rules! idle_sessions {
    () => {
        concat!(
            "FROM oncegate_sessions
        WHERE epic_id IS NULL AND NOT EXISTS (
                SELECT FROM oncegate_waiters w
                WHERE w.team_id = oncegate_sessions.team_id
                    AND w.session_id = oncegate_sessions.session_id AND w.left_at IS NULL)
            AND expires_at <= (SELECT COALESCE($1::timestamptz, clock_timestamp())
                - $2::bigint * interval '1 microsecond')
            AND ($3::text IS NULL OR team_id = $3)
            AND fencing_token <= (SELECT ",
            token_of!("COALESCE($1::timestamptz, clock_timestamp())"),
            " - 10000000) -- FencingToken::UNSWEPT_MICROS
            AND (SELECT won FROM election)
        LIMIT $5::bigint"
        )
    };
}

/// Counts rows without touching them.
macro_rules! count {
    ($rows:expr) => {
        concat!(
            election!(),
            "
SELECT count(*) AS rows, false AS busy, (SELECT won FROM election) AS elected
FROM (SELECT 1 ",
            $rows,
            ") AS doomed"
        )
    };
}

/// Whether a replica has work for the database at this moment, whose CPU and disk a sweep needs as
/// well.
macro_rules! busy {
    () => {
        "EXISTS (
                SELECT FROM pg_stat_activity
                WHERE datname = current_database()
                    AND application_name = current_setting('application_name')
                    AND state = 'active' AND pid <> pg_backend_pid()) AS busy"
    };
}

/// Deletes rows by ctid, the shortest way to a row, passing over those that
/// are being taken up again just now.
macro_rules! delete {
    ($table:literal, $rows:expr) => {
        delete!($table, $rows, "")
    };
    ($table:literal, $rows:expr, $further:expr) => {
        delete!($table, $rows, $further, "1)")
    };
    ($table:literal, $rows:expr, $further:expr, $returning:expr) => {
        concat!(
            election!(),
            ", gone AS (DELETE FROM ",
            $table,
            " WHERE ctid = ANY (ARRAY(SELECT ctid ",
            $rows,
            " FOR UPDATE SKIP LOCKED)) RETURNING ",
            $returning,
            "
            SELECT rows, (SELECT won FROM election) AS elected, ",
            busy!(),
            $further,
            " FROM (SELECT count(*) AS rows FROM gone) AS counted"
        )
    };
}

/// Notifies every replica, at the commit, that rows were deleted. A mark that has not expired may
/// be among them.
macro_rules! notify {
    () => {
        concat!(", CASE WHEN rows > 0 THEN pg_notify(", channel!(), ", '') END")
    };
}

pub(super) const COUNT_EXPIRED_EVENTS: &str = count!(expired_events!());
pub(super) const COUNT_OLD_EVENTS: &str = count!(old_events!());
pub(super) const COUNT_SESSIONS: &str = count!(idle_sessions!());
/// Reads the whole table: see [`Handle::sweep_expired`].
pub(super) const DELETE_EXPIRED_EVENTS: &str = delete!("processed_events", expired_events!());

/// Deletes the events whose `sweep_after` has passed, found by its index. A row among them that has
/// not expired was written by a binary without that column; its `sweep_after` is corrected. `looked`
/// counts both. Without an election, it takes the events as well that expired in the current hour.
pub(super) const SWEEP_EVENTS: &str = concat!(
    election!(),
    ", clock AS MATERIALIZED (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) - $2::bigint * interval '1 microsecond' AS at
), due AS MATERIALIZED (
    SELECT ctid AS place, expires_at <= (SELECT at FROM clock) AS is_expired FROM processed_events
    WHERE sweep_after <= (SELECT at FROM clock)
            + CASE WHEN $4::bigint IS NULL THEN interval '1 hour' ELSE interval '0' END
        AND (sweep_after <= (SELECT at FROM clock) OR expires_at <= (SELECT at FROM clock))
        AND ($3::text IS NULL OR team_id = $3)
        AND (SELECT won FROM election)
    ORDER BY sweep_after LIMIT $5::bigint FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM processed_events
    WHERE ctid = ANY (ARRAY(SELECT place FROM due WHERE is_expired)) RETURNING 1
), corrected AS (
    UPDATE processed_events SET sweep_after = ",
    sweep_after!("expires_at", "expires_at - processed_at < interval '24 hours'"),
    "
    WHERE ctid = ANY (ARRAY(SELECT place FROM due WHERE NOT is_expired))
)
SELECT (SELECT count(*) FROM gone) AS rows, (SELECT count(*) FROM due) AS looked,
    (SELECT won FROM election) AS elected, ",
    busy!()
);
pub(super) const DELETE_OLD_EVENTS: &str = delete!("processed_events", old_events!(), notify!());
pub(super) const DELETE_SESSIONS: &str = delete!(
    "oncegate_sessions",
    idle_sessions!(),
    "",
    concat!("fencing_token), ", raise_floor!("gone"))
);

pub(super) const COUNT_LEASES: &str = "
SELECT count(*) FROM oncegate_sessions
WHERE NOT released AND expires_at > (SELECT COALESCE($1::timestamptz, clock_timestamp()))
";

/// What a probe does to a table: all that calls do, to a row of a team that no caller can
/// name. Each connection has a row of its own, so that probes do not wait for each other.
macro_rules! rehearse {
    ($table:literal, $columns:literal, $values:expr, $set:literal) => {
        rehearse!(
            $table,
            $columns,
            $values,
            "team_id = '' AND session_id = pg_backend_pid()::text",
            $set
        )
    };
    ($table:literal, $columns:literal, $values:expr, $key:literal, $set:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (",
            $columns,
            ") VALUES (",
            $values,
            ");
UPDATE ",
            $table,
            " SET ",
            $set,
            " = ",
            $set,
            " WHERE ",
            $key,
            ";
DELETE FROM ",
            $table,
            " WHERE ",
            $key,
            ";\n"
        )
    };
}

/// Writes a row to each table and takes it back, in one round trip: the same privileges,
/// triggers and checks as for a call's row, and a transaction id, which there may be none
/// left of. That costs an id for each probe, 86,400 a day at the default interval, of
/// 2,000,000,000; and no flush, since nothing is committed. What is left are dead rows,
/// which are dead for every snapshot at once. The one row of `oncegate_fence` is only read:
/// a sweep may keep it locked for longer than a probe waits. That it may be written is
/// checked as a statement begins, whatever it finds.
pub(super) const PING: &str = concat!(
    "BEGIN;\n",
    rehearse!(
        "processed_events",
        "team_id, event_id, processed_at, expires_at, request_id",
        "'', pg_backend_pid()::text, now(), now(), gen_random_uuid()",
        "team_id = '' AND event_id = pg_backend_pid()::text",
        "expires_at"
    ),
    rehearse!(
        "oncegate_sessions",
        "team_id, session_id, fencing_token, lease_id, request_id, holder, labels, acquired_at,
    expires_at, released",
        concat!(
            "'', pg_backend_pid()::text, ",
            new_token!("now()"),
            ", gen_random_uuid(), gen_random_uuid(), '', '{}', now(), now(), true"
        ),
        "expires_at"
    ),
    rehearse!(
        "oncegate_waiters",
        "team_id, session_id, lease_id, request_id, holder, labels, ttl_micros, replica",
        "'', pg_backend_pid()::text, gen_random_uuid(), gen_random_uuid(), '', '{}', 0,
    gen_random_uuid()",
        "ttl_micros"
    ),
    rehearse!(
        "oncegate_replicas",
        "replica, expires_at",
        "lpad(pg_backend_pid()::text, 32, '0')::uuid, now()",
        "replica = lpad(pg_backend_pid()::text, 32, '0')::uuid",
        "expires_at"
    ),
    "UPDATE oncegate_fence SET floor = floor WHERE false;
ROLLBACK"
);

impl Upkeep for Handle {
    async fn sweep(&mut self, sweep: &Sweep) -> Result<Swept, StoreError> {
        let statement = match (sweep.kind, sweep.scope.age, sweep.scope.dry_run) {
            (Kind::Events, Age::Expired, true) => COUNT_EXPIRED_EVENTS,
            (Kind::Events, Age::Expired, false) => return self.sweep_expired(sweep).await,
            (Kind::Events, Age::AtLeast(_), true) => COUNT_OLD_EVENTS,
            (Kind::Events, Age::AtLeast(_), false) => DELETE_OLD_EVENTS,
            (Kind::Sessions, _, true) => COUNT_SESSIONS,
            (Kind::Sessions, _, false) => DELETE_SESSIONS,
        };
        let swept = self.sweep_by(statement, sweep, sweep.limit).await;
        if sweep.takes_live_marks() {
            // Even if it failed: it may have been committed.
            self.invalidate();
        }
        swept
    }

    async fn heartbeat(&mut self) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        self.report_presence().await
    }

    async fn count_leases(&mut self) -> Result<u64, StoreError> {
        let now = self.now();
        let rows = self.fetch(|| sqlx::query(COUNT_LEASES).bind(now)).await?;
        count(&rows)
    }

    async fn figures(&mut self, with_lag: bool) -> Figures {
        self.read_figures(with_lag).await
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.rehearse(PING).await
    }
}

impl Handle {
    /// Deletes events that have expired: by the index on `sweep_after`, which is all that the
    /// background sweep does. A cleanup deletes every expired event at once, and reads the table as
    /// well: a row that a binary without that column wrote may expire long before it.
    async fn sweep_expired(&mut self, sweep: &Sweep) -> Result<Swept, StoreError> {
        let found = self.sweep_by(SWEEP_EVENTS, sweep, sweep.limit).await?;
        if found.more || sweep.scope.elected {
            return Ok(found);
        }
        let left = sweep.limit.saturating_sub(u32::try_from(found.rows).unwrap_or(u32::MAX));
        match self.sweep_by(DELETE_EXPIRED_EVENTS, sweep, left).await {
            Ok(others) => Ok(Swept { rows: found.rows + others.rows, ..others }),
            // It may have deleted as many again as it was asked to.
            Err(error @ StoreError::OutcomeUnknown(_)) => Err(error),
            // The rows that were found are deleted; the next batch meets the error again.
            Err(_) if found.rows > 0 => Ok(Swept { more: true, ..found }),
            Err(error) => Err(error),
        }
    }

    /// Runs a statement of a sweep, for up to `limit` rows.
    async fn sweep_by(
        &mut self,
        statement: &'static str,
        sweep: &Sweep,
        limit: u32,
    ) -> Result<Swept, StoreError> {
        let now = self.now();
        let lock = sweep.scope.elected.then_some(self.locks.sweeper());
        // Another run would delete as many again, which is meant where no number was asked for.
        let is_safe = sweep.scope.dry_run || sweep.scope.elected;
        let repeat = if is_safe { Repeat::Safe } else { Repeat::Never };
        let Fetched { rows, .. } = self
            .run(repeat, || {
                sqlx::query(statement)
                    .bind(now)
                    .bind(sweep.scope.age.as_micros())
                    .bind(sweep.scope.team.team())
                    .bind(lock)
                    .bind(i64::from(limit))
            })
            .await?;
        let is = |column| rows.first().and_then(|row| row.try_get(column).ok());
        let (busy, elected) = (is("busy").unwrap_or(false), is("elected").unwrap_or(false));
        let count = count(&rows)?;
        let looked = rows.first().and_then(|row| row.try_get::<i64, _>("looked").ok());
        let looked = looked.and_then(|looked| u64::try_from(looked).ok()).unwrap_or(count);
        Ok(Swept { rows: count, more: looked >= u64::from(limit), busy, elected })
    }
}

/// The one number that a statement answered, or the first of them.
fn count(rows: &[sqlx::postgres::PgRow]) -> Result<u64, StoreError> {
    let count = rows.first().and_then(|row| row.try_get::<i64, _>(0).ok());
    count
        .and_then(|count| u64::try_from(count).ok())
        .ok_or_else(|| StoreError::internal("a count is not a valid number"))
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
