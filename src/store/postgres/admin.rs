//! The operator API on PostgreSQL.

use sqlx::{Row as _, postgres::PgRow};

use super::{
    Handle,
    events::interval,
    handle::Statement,
    records::{self, LIST_EVENTS, LIST_SESSIONS},
    timestamp::PgTimestamp,
};
use crate::{
    domain::{EventKey, SessionKey, SessionRow, Team, Timestamp},
    store::{AdminStore, Counts, EventFilter, EventStatus, Events, Page, StoreError},
};

/// $1: the moment, or null for the database's clock. $2: the team, or null for all. $3: this replica: it is there.
pub(super) const COUNT: &str = "
SELECT e.live AS events, e.all_rows - e.live AS expired_events,
    s.all_rows AS sessions, s.live AS held_sessions,
    (SELECT count(*) FROM oncegate_waiters w JOIN oncegate_replicas r USING (replica)
        WHERE (r.expires_at > at OR w.replica = $3) AND ($2::text IS NULL OR w.team_id = $2)) AS waiters
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
        let (now, replica) = (self.now(), self.replica);
        let rows = self.fetch(|| list(LIST_SESSIONS, now, page).bind(held).bind(replica)).await?;
        let (at, rows) = listed(&rows)?;
        let session = |row: &PgRow| {
            let (team, session) = key(row)?;
            let (found, _) = records::session(row, at)?;
            Ok(found.row(at).map(|found| (SessionKey { team, session }, found)))
        };
        rows.iter().filter_map(|row| session(row).transpose()).collect()
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
        let (at, rows) = listed(&rows)?;
        let event = |row: &PgRow| {
            let (team, event) = key(row)?;
            let key = EventKey { team, event };
            let found = records::event(row, &key, at)?;
            Ok(found.map(|(event, _)| (key, event.row(at))))
        };
        let rows = rows.iter().filter_map(|row| event(row).transpose());
        Ok(Events { at, rows: rows.collect::<Result<_, _>>()? })
    }

    async fn count(&mut self, team: Option<&str>) -> Result<Counts, StoreError> {
        let (now, replica) = (self.now(), self.replica);
        let rows = self.fetch(|| sqlx::query(COUNT).bind(now).bind(team).bind(replica)).await?;
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

/// The time of a list, and its rows. If there is none, one still carries the time.
fn listed(rows: &[PgRow]) -> Result<(Timestamp, &[PgRow]), StoreError> {
    let first =
        rows.first().ok_or_else(|| StoreError::internal("the list statement returned no row"))?;
    let PgTimestamp(at) = first.try_get("at").map_err(StoreError::internal)?;
    let place: Option<i64> = first.try_get("place").map_err(StoreError::internal)?;
    Ok((at, if place.is_some() { rows } else { &[] }))
}

/// The team and the id of a row that is listed.
fn key(row: &PgRow) -> Result<(Team, String), StoreError> {
    let text = |column| row.try_get::<String, _>(column).map_err(StoreError::internal);
    Ok((Team::stored(text("team")?), text("id")?))
}
