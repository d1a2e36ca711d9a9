//! Looking after `SQLite`'s sessions and events by hand.

use sqlx::{
    Row as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    Handle, begin, classify,
    events::event_row,
    fence::{next_token, raise_floor},
    sessions::{Stored, look, stored, write},
};
use crate::{
    domain::{
        EventKey, EventRow, FencingToken, Labels, Lease, LeaseId, RequestId, ResumedBy, SessionKey,
        SessionRow, Timestamp,
    },
    store::{AdminStore, Counts, EventFilter, Events, Page, Standing, StoreError, Verdict},
};

// $1: the moment.

// What lists takes the page as $2 to $5: the team, or null for all; the team and the id
// that it comes after; the most rows.

pub(super) const LIST_SESSIONS: &str = concat!(
    "
SELECT team_id, session_id, fencing_token, lease_id, request_id, holder, labels, epic_id,
    acquired_at, expires_at, released, repeated, resumed_by, waiting, ttl_micros, ",
    queue!(),
    "
FROM oncegate_sessions AS s
WHERE ($2 IS NULL OR team_id = $2) AND (team_id, session_id) > ($3, $4)
    AND ($6 IS NULL OR (NOT released AND expires_at > $1) = $6)
ORDER BY team_id, session_id LIMIT $5
"
);

/// $6: how they stand, or null for all. $7, $8: the moments that they are later than,
/// and no later than, or null. A claim of no attempt is one that nobody was told of. An
/// event of several names is told once.
pub(super) const LIST_EVENTS: &str = "
SELECT team_id, event_id, request_id, processed_at, expires_at, claimed_until, attempt, holder,
    digest, detail, result IS NOT NULL AS succeeded, rejected_at IS processed_at AS rejected
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
";

pub(super) const CLOSE: &str =
    "DELETE FROM oncegate_sessions WHERE team_id = $1 AND session_id = $2";

/// With all its names. `listed`: whether [`LIST_EVENTS`] would have listed it at $3.
pub(super) const FORGET: &str = "
DELETE FROM processed_events
WHERE (team_id, event_id, request_id, COALESCE(names, '')) IN (
    SELECT e.team_id, n.value, e.request_id, COALESCE(e.names, '')
    FROM processed_events AS e, json_each(COALESCE(e.names, json_array(e.event_id))) AS n
    WHERE e.team_id = $1 AND e.event_id = $2)
RETURNING event_id, request_id, processed_at, expires_at, claimed_until, attempt, holder, digest,
    detail, result IS NOT NULL AS succeeded, rejected_at IS processed_at AS rejected,
    expires_at > $3 AND attempt IS NOT 0 AS listed
";

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
        let session = |row: &SqliteRow| {
            let read = || {
                let (team, session) = (row.try_get("team_id")?, row.try_get("session_id")?);
                Ok((SessionKey { team, session }, stored(row, now)?.row))
            };
            read().map_err(|error: sqlx::Error| StoreError::fault(error))
        };
        rows.iter().map(session).collect()
    }

    async fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> Result<Events, StoreError> {
        let at = self.now();
        let ago = |span| at.minus(span).as_micros();
        let rows = list(LIST_EVENTS, at, page)
            .bind(filter.standing.map(Standing::label))
            .bind(filter.newer_than.map(ago))
            .bind(filter.older_than.map(ago))
            .fetch_all(self.reader().await?)
            .await
            .map_err(classify)?;
        let event = |row: &SqliteRow| {
            let (team, event) = (row.try_get("team_id")?, row.try_get("event_id")?);
            Ok((EventKey { team, event }, event_row(row, at)?))
        };
        let rows = rows.iter().map(event).collect::<Result<_, sqlx::Error>>();
        Ok(Events { at, rows: rows.map_err(StoreError::fault)? })
    }

    async fn bind_epic(
        &mut self,
        key: &SessionKey,
        epic: Option<&str>,
    ) -> Result<Verdict<()>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let found = look(&mut batch, &[key], now).await?.pop().flatten();
        let mut session = if let Some(session) = found {
            session
        } else {
            idle(next_token(&mut batch, None, now).await?, now)
        };
        session.row.lease.epic = epic.map(str::to_owned);
        write(&mut batch, &[(key, session)]).await?;
        batch.commit().await.map_err(classify)?;
        Ok(Verdict::Decided(()))
    }

    async fn force_release(&mut self, key: &SessionKey) -> Result<Verdict<bool>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let found = look(&mut batch, &[key], now).await?.pop().flatten();
        let Some(mut session) = found.filter(|session| session.row.live) else {
            return Ok(Verdict::Decided(false));
        };
        end(&mut batch, &mut session, now).await?;
        write(&mut batch, &[(key, session)]).await?;
        batch.commit().await.map_err(classify)?;
        Ok(Verdict::Decided(true))
    }

    async fn close_session(&mut self, key: &SessionKey) -> Result<Verdict<bool>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        match look(&mut batch, &[key], now).await?.pop().flatten() {
            None => return Ok(Verdict::Decided(false)),
            // A token above the clock: as in PostgreSQL, the row goes with a sweep, later.
            Some(mut session)
                if session.row.waiting || session.row.lease.token.0 > now.as_micros() =>
            {
                end(&mut batch, &mut session, now).await?;
                session.row.lease.epic = None;
                write(&mut batch, &[(key, session)]).await?;
            }
            Some(session) => {
                raise_floor(&mut batch, session.row.lease.token).await?;
                let close = sqlx::query(CLOSE).bind(&key.team).bind(&key.session);
                close.execute(&mut *batch).await.map_err(classify)?;
            }
        }
        batch.commit().await.map_err(classify)?;
        Ok(Verdict::Decided(true))
    }

    async fn forget_event(&mut self, key: &EventKey) -> Result<Option<EventRow>, StoreError> {
        let mut writer = self.writer.lock().await;
        let now = self.now();
        let gone = sqlx::query(FORGET)
            .bind(&key.team)
            .bind(&key.event)
            .bind(now.as_micros())
            .fetch_all(&mut *writer)
            .await;
        // Even if it failed: it may have been committed.
        self.marks.invalidate();
        let gone = gone.map_err(classify)?;
        let own = gone.iter().find(|row| row.try_get("event_id").ok() == Some(key.event.as_str()));
        let Some(row) = own else { return Ok(None) };
        let read = || {
            let listed: bool = row.try_get("listed")?;
            listed.then(|| event_row(row, now)).transpose()
        };
        read().map_err(|error: sqlx::Error| StoreError::fault(error))
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
            let count: i64 = row.try_get(column).map_err(StoreError::fault)?;
            u64::try_from(count).map_err(StoreError::fault)
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
        .bind(&page.team)
        .bind(team)
        .bind(id)
        .bind(page.limit)
}

/// Ends a session's lease, whoever holds it, and raises its fence.
async fn end(
    batch: &mut SqliteConnection,
    session: &mut Stored,
    now: Timestamp,
) -> Result<(), StoreError> {
    session.released = true;
    let lease = &mut session.row.lease;
    lease.expire_time = lease.expire_time.min(now);
    lease.token = next_token(batch, Some(lease.token), now).await?;
    lease.id = LeaseId::random();
    Ok(())
}

/// A session that nobody has held yet.
fn idle(token: FencingToken, now: Timestamp) -> Stored {
    let lease = Lease {
        id: LeaseId::random(),
        token,
        holder: String::new(),
        acquire_time: now,
        expire_time: now,
        remaining: std::time::Duration::ZERO,
        epic: None,
        labels: Labels::default(),
    };
    let request = RequestId::from_uuid(uuid::Uuid::new_v4());
    Stored {
        row: SessionRow { lease, request, live: false, waiting: false, queue: Vec::new() },
        released: true,
        ttl: None,
        resumed: ResumedBy::Nobody,
    }
}
