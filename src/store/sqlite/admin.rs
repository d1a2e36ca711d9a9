//! The operator API on `SQLite`.

use sqlx::{
    Row as _, Sqlite,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    Handle, classify,
    events::{event, event_columns},
    sessions::{queue, session, session_columns},
};
use crate::{
    domain::{EventKey, SessionKey, SessionRow, Team, Timestamp},
    store::{AdminStore, Counts, EventFilter, EventStatus, Events, Page, StoreError},
};

// $1: the moment.

// What lists takes the page as $2 to $5: the team, or null for all; the team and the id
// that it comes after; the most rows.

pub(super) const LIST_SESSIONS: &str = concat!(
    "SELECT team_id, session_id, ",
    session_columns!(),
    ", ",
    queue!("s.team_id", "s.session_id", "s.waiting"),
    "
FROM oncegate_sessions AS s
WHERE ($2 IS NULL OR team_id = $2) AND (team_id, session_id) > ($3, $4)
    AND ($6 IS NULL OR (NOT released AND expires_at > $1) = $6)
ORDER BY team_id, session_id LIMIT $5
"
);

/// $6: how they stand, or null for all. $7, $8: the moments that they are later than,
/// and no later than, or null. A claim of attempt 0 was answered to nobody. An event
/// of several names is listed once.
pub(super) const LIST_EVENTS: &str = concat!(
    "SELECT team_id, ",
    event_columns!("false"),
    "
FROM processed_events
WHERE (names IS NULL OR names ->> 0 = event_id)
    AND ($2 IS NULL OR team_id = $2) AND (team_id, event_id) > ($3, $4)
    AND expires_at > $1 AND attempt IS NOT 0
    AND CASE $6
        WHEN 'claimed' THEN claimed_until > $1
        WHEN 'free' THEN claimed_until <= $1
        WHEN 'processed' THEN claimed_until IS NULL
        WHEN 'succeeded' THEN claimed_until IS NULL AND result IS NOT NULL
        WHEN 'rejected' THEN claimed_until IS NULL AND result IS NULL
            AND rejected_at IS processed_at
        WHEN 'gave_up' THEN claimed_until IS NULL AND result IS NULL AND attempt IS NOT NULL
            AND rejected_at IS NOT processed_at
        ELSE true END
    AND ($7 IS NULL OR processed_at > $7) AND ($8 IS NULL OR processed_at <= $8)
ORDER BY team_id, event_id LIMIT $5
"
);

pub(super) const COUNT: &str = "
SELECT count(*) FILTER (WHERE expires_at > $1) AS events,
    count(*) FILTER (WHERE expires_at <= $1) AS expired_events,
    (SELECT count(*) FROM oncegate_sessions WHERE $2 IS NULL OR team_id = $2) AS sessions,
    (SELECT count(*) FROM oncegate_sessions
        WHERE ($2 IS NULL OR team_id = $2) AND NOT released AND expires_at > $1) AS held_sessions,
    (SELECT count(*) FROM oncegate_waiters
        WHERE ($2 IS NULL OR team_id = $2) AND left_at IS NULL) AS waiters
FROM processed_events
WHERE ($2 IS NULL OR team_id = $2) AND (names IS NULL OR names ->> 0 = event_id)
";

impl AdminStore for Handle {
    async fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> Result<Vec<(SessionKey, SessionRow)>, StoreError> {
        let now = self.now();
        let rows = list(LIST_SESSIONS, now, page)
            .bind(held)
            .fetch_all(self.reader().await?)
            .await
            .map_err(classify)?;
        let listed = |row: &SqliteRow| {
            let key = || {
                Ok((Team::stored(row.try_get::<String, _>("team_id")?), row.try_get("session_id")?))
            };
            let (team, id) = key().map_err(|error: sqlx::Error| StoreError::internal(error))?;
            Ok(session(row)?.row(now).map(|row| (SessionKey { team, session: id }, row)))
        };
        rows.iter().filter_map(|row| listed(row).transpose()).collect()
    }

    async fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> Result<Events, StoreError> {
        let at = self.now();
        let ago = |span| at.minus(span).as_micros();
        let rows = list(LIST_EVENTS, at, page)
            .bind(filter.standing.map(EventStatus::label))
            .bind(filter.newer_than.map(ago))
            .bind(filter.older_than.map(ago))
            .fetch_all(self.reader().await?)
            .await
            .map_err(classify)?;
        let listed = |row: &SqliteRow| {
            let key = || {
                Ok((Team::stored(row.try_get::<String, _>("team_id")?), row.try_get("event_id")?))
            };
            let (team, id) = key().map_err(|error: sqlx::Error| StoreError::internal(error))?;
            Ok((EventKey { team, event: id }, event(row)?.row(at)))
        };
        Ok(Events { at, rows: rows.iter().map(listed).collect::<Result<_, _>>()? })
    }

    async fn count(&mut self, team: Option<&str>) -> Result<Counts, StoreError> {
        let now = self.now().as_micros();
        let row = sqlx::query(COUNT)
            .bind(now)
            .bind(team)
            .fetch_one(self.reader().await?)
            .await
            .map_err(classify)?;
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
fn list<'q>(
    statement: &'static str,
    now: Timestamp,
    page: &'q Page,
) -> Query<'q, Sqlite, SqliteArguments> {
    let (team, id) = &page.after;
    sqlx::query(statement)
        .bind(now.as_micros())
        .bind(page.team.team())
        .bind(team)
        .bind(id)
        .bind(page.limit)
}
