//! The operator API on PostgreSQL.

use sqlx::{Row as _, postgres::PgRow};

use super::{
    Handle,
    events::{event_row, interval},
    handle::Statement,
    sessions::session_row,
    timestamp::PgTimestamp,
};
use crate::{
    domain::{EventKey, SessionKey, SessionRow, Team},
    store::{AdminStore, Counts, EventFilter, EventStatus, Events, Page, StoreError},
};

// $1: the moment, or null for the database's clock. What lists takes the page as $2 to $5: the
// team, or null for all; the team and the id that it comes after; the most rows.

pub(super) const LIST_SESSIONS: &str = concat!(
    "
SELECT s.team_id, s.session_id, clock.at, s.fencing_token, s.lease_id, s.request_id, s.holder,
    s.labels, s.epic_id, s.acquired_at, s.expires_at,
    NOT s.released AND s.expires_at > clock.at AS live, s.waiting, s.ttl_micros, ",
    queue!("s", "clock.at"),
    "
FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock, oncegate_sessions s
WHERE ($2::text IS NULL OR s.team_id = $2)
    AND (s.team_id, s.session_id) > ($3::text, $4::text)
    AND ($6::boolean IS NULL OR (NOT s.released AND s.expires_at > clock.at) = $6)
ORDER BY s.team_id, s.session_id LIMIT $5::bigint
"
);

/// $6: how they stand, or null for all. $7, $8: less, and at least, how long ago. If
/// there is none, one row still carries the time.
///
/// LIMIT within LATERAL: so the planner reads by the key, and stops when it has enough.
/// A claim of attempt 0 was answered to nobody. An event of several names is listed once.
pub(super) const LIST_EVENTS: &str = concat!(
    "
SELECT clock.at, e.*
FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock
LEFT JOIN LATERAL (
    SELECT p.team_id, p.event_id, ",
    event_columns!("p"),
    "
    FROM processed_events p
    WHERE ($2::text IS NULL OR p.team_id = $2)
        AND (p.team_id, p.event_id) > ($3::text, $4::text)
        AND p.expires_at > clock.at AND p.attempt IS DISTINCT FROM 0
        AND (p.names IS NULL OR p.names[1] = p.event_id)
        AND CASE $6::text
            WHEN 'claimed' THEN ",
    running!("p", "clock.at"),
    "
            WHEN 'free' THEN NOT ",
    running!("p", "clock.at"),
    "
            WHEN 'processed' THEN p.claimed_until IS NULL
            WHEN 'succeeded' THEN p.claimed_until IS NULL AND p.result IS NOT NULL
            WHEN 'rejected' THEN p.claimed_until IS NULL AND p.result IS NULL AND ",
    rejected!("p"),
    "
            WHEN 'gave_up' THEN p.claimed_until IS NULL AND p.result IS NULL
                AND p.attempt IS NOT NULL AND NOT ",
    rejected!("p"),
    "
            ELSE true END
        AND ($7::interval IS NULL OR p.processed_at > clock.at - $7)
        AND ($8::interval IS NULL OR p.processed_at <= clock.at - $8)
    ORDER BY p.team_id, p.event_id LIMIT $5::bigint) AS e ON true
ORDER BY e.team_id, e.event_id
"
);

pub(super) const COUNT: &str = "
SELECT e.live AS events, e.all_rows - e.live AS expired_events,
    s.all_rows AS sessions, s.live AS held_sessions,
    (SELECT count(*) FROM oncegate_waiters w JOIN oncegate_replicas r USING (replica)
        WHERE r.expires_at > at AND ($2::text IS NULL OR w.team_id = $2)) AS waiters
FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock,
    LATERAL (SELECT count(*) AS all_rows, count(*) FILTER (WHERE expires_at > at) AS live
        FROM processed_events
        WHERE ($2::text IS NULL OR team_id = $2)
            AND (names IS NULL OR names[1] = event_id)) AS e,
    LATERAL (SELECT count(*) AS all_rows,
        count(*) FILTER (WHERE NOT released AND expires_at > at) AS live
        FROM oncegate_sessions WHERE $2::text IS NULL OR team_id = $2) AS s
";

impl AdminStore for Handle {
    async fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> Result<Vec<(SessionKey, SessionRow)>, StoreError> {
        let now = self.now();
        let rows = self.fetch(|| list(LIST_SESSIONS, now, page).bind(held)).await?;
        let session = |row: &PgRow| {
            let (team, session) = (text(row, "team_id")?, text(row, "session_id")?);
            Ok((SessionKey { team: Team::stored(team), session }, session_row(row)?))
        };
        rows.iter().map(session).collect()
    }

    async fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> Result<Events, StoreError> {
        let now = self.now();
        let rows = self
            .fetch(|| {
                list(LIST_EVENTS, now, page)
                    .bind(filter.standing.map(EventStatus::label))
                    .bind(filter.newer_than.map(interval))
                    .bind(filter.older_than.map(interval))
            })
            .await?;
        let first = rows
            .first()
            .ok_or_else(|| StoreError::internal("the list statement returned no row"))?;
        let PgTimestamp(at) = first.try_get("at").map_err(StoreError::internal)?;
        let there: Option<&str> = first.try_get("team_id").map_err(StoreError::internal)?;
        let event = |row: &PgRow| {
            let (team, event) = (text(row, "team_id")?, text(row, "event_id")?);
            Ok((EventKey { team: Team::stored(team), event }, event_row(row)?))
        };
        let rows = if there.is_some() { &rows[..] } else { &[] };
        Ok(Events { at, rows: rows.iter().map(event).collect::<Result<_, _>>()? })
    }

    async fn count(&mut self, team: Option<&str>) -> Result<Counts, StoreError> {
        let now = self.now();
        let rows = self.fetch(|| sqlx::query(COUNT).bind(now).bind(team)).await?;
        let row = rows
            .first()
            .ok_or_else(|| StoreError::internal("the count statement returned no row"))?;
        let count = |column| {
            let count: i64 = row.try_get(column).map_err(StoreError::internal)?;
            u64::try_from(count).map_err(StoreError::internal)
        };
        Ok(Counts {
            events: count("events")?,
            expired_events: count("expired_events")?,
            sessions: count("sessions")?,
            held_sessions: count("held_sessions")?,
            waiters: count("waiters")?,
        })
    }
}

/// A statement that lists, with its page bound.
fn list<'q>(statement: &'static str, now: Option<PgTimestamp>, page: &'q Page) -> Statement<'q> {
    let (team, id) = &page.after;
    sqlx::query(statement)
        .bind(now)
        .bind(page.team.team())
        .bind(team)
        .bind(id)
        .bind(i64::from(page.limit))
}

/// A text of a row that is listed.
fn text(row: &PgRow, column: &str) -> Result<String, StoreError> {
    row.try_get(column).map_err(StoreError::internal)
}
