//! Events in PostgreSQL.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{
    Link,
    answers::{fill, left, slot},
    link::Statement,
    timestamp::PgTimestamp,
};
use crate::{
    domain::{By, Claim, EventKey, EventRow, Mark, RequestId, StoredEvent},
    store::{EventStore, StoreError, Verdict},
};

/// Marks what has no row, which is nearly all of what is asked: the least work
/// there is for it, and one answer for the whole batch. What it finds taken it
/// neither locks nor reads. The clock is read before any wait for another
/// transaction that inserts the same event, and once more at the end: should
/// that one have rolled back so late that a mark has ended by then, it is not
/// answered, and taken up again.
///
/// Intervals are added in UTC, which the connection sets, where a day has 24
/// hours.
pub(super) const INSERT: &str = "
WITH clock AS MATERIALIZED (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at
), won AS (
    INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
    SELECT team_id, event_id, (SELECT at FROM clock), (SELECT at FROM clock) + ttl, request_id
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[])
        AS a (team_id, event_id, request_id, ttl)
    ON CONFLICT (team_id, event_id) DO NOTHING
    RETURNING request_id
)
SELECT array_agg(request_id) AS won, (SELECT at FROM clock) AS at,
    COALESCE($1::timestamptz, clock_timestamp()) AS ended
FROM won
";

/// [`INSERT`] for a mark that is alone in its batch: where there is no load to
/// spread it over, an array and a second level cost a quarter of the statement.
pub(super) const INSERT_ONE: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
SELECT $2::text, $3::text, at, at + $5::interval, $4::uuid
FROM (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock
ON CONFLICT (team_id, event_id) DO NOTHING
RETURNING ARRAY[request_id] AS won, processed_at AS at,
    COALESCE($1::timestamptz, clock_timestamp()) AS ended
";

/// Marks what is not live, and reads what is.
///
/// `live` looks before `won` writes, so that duplicates, the common case of a
/// redelivery, lock no row. What another replica decided between the two is in
/// neither, and is asked again. The clock is read once a row, and after a lock
/// wait once more: ON CONFLICT's own SET and WHERE see the row as it is by
/// then. LATERAL with OFFSET 0 leaves the planner one way, by the key: on a
/// table that is new to it, it would rather read the whole.
pub(super) const MARK: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[]) WITH ORDINALITY
        AS a (team_id, event_id, request_id, ttl, ord)
), live AS MATERIALIZED (
    SELECT a.ord, a.at, ",
    event_columns!("e"),
    "
    FROM asked a CROSS JOIN LATERAL (
        SELECT * FROM processed_events p
        WHERE p.team_id = a.team_id AND p.event_id = a.event_id OFFSET 0) AS e
    WHERE ",
    live_event!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    "
), missing AS MATERIALIZED (
    SELECT a.team_id, a.event_id, a.request_id, a.ttl, a.ord,
        COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM asked a WHERE NOT EXISTS (SELECT FROM live l WHERE l.ord = a.ord)
), won AS (
    INSERT INTO processed_events AS e
        (team_id, event_id, processed_at, expires_at, request_id)
    SELECT team_id, event_id, at, at + ttl, request_id
    FROM missing ORDER BY ord
    ON CONFLICT (team_id, event_id) DO UPDATE
    SET (processed_at, expires_at, request_id) = (
            SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.processed_at), EXCLUDED.request_id
            FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock),
        claimed_until = NULL, attempt = NULL, holder = NULL, result = NULL, repeated = NULL
    WHERE NOT ",
    live_event!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    "
    RETURNING e.*
)
SELECT * FROM live
UNION ALL
SELECT NULL, e.processed_at, ",
    event_columns!("e"),
    "
FROM won e WHERE e.expires_at > COALESCE($1::timestamptz, clock_timestamp())
"
);

pub(super) const LOOK: &str = concat!(
    "
SELECT a.ord, clock.at, ",
    event_columns!("e"),
    "
FROM (SELECT COALESCE($3::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock,
    unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (team_id, event_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM processed_events p
    WHERE p.team_id = a.team_id AND p.event_id = a.event_id OFFSET 0) AS e
WHERE ",
    live_event!("e", "clock.at"),
    "
"
);

impl EventStore for Link {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let mut verdicts = self.insert(marks).await?;
        let (places, taken) = left(&verdicts, marks);
        if !taken.is_empty() {
            fill(&mut verdicts, places, self.mark_taken(&taken).await?);
        }
        Ok(verdicts)
    }

    async fn look_events(
        &mut self,
        keys: &[&EventKey],
    ) -> Result<Vec<Option<EventRow>>, StoreError> {
        let teams: Vec<&str> = keys.iter().map(|key| key.team.as_str()).collect();
        let events: Vec<&str> = keys.iter().map(|key| key.event.as_str()).collect();
        let now = self.now();
        let rows = self.fetch(|| sqlx::query(LOOK).bind(&teams).bind(&events).bind(now)).await?;
        let mut found = vec![None; keys.len()];
        for row in rows {
            *slot(&mut found, row.try_get("ord"))? = Some(event_row(&row)?);
        }
        Ok(found)
    }
}

impl Link {
    /// Marks what has no row.
    async fn insert(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let asked = Asked::of(self.now(), marks);
        let rows = match marks {
            [mark] => self.fetch(|| asked.bind_one(mark)).await?,
            _ => self.fetch(|| asked.bind(INSERT)).await?,
        };
        let read = |row: &PgRow| {
            let time = |column| row.try_get::<PgTimestamp, _>(column);
            Ok((row.try_get("won")?, time("at")?.0, time("ended")?.0))
        };
        let row = rows.first().map(read).transpose();
        let row = row.map_err(|error: sqlx::Error| StoreError::fault(error))?;
        let Some((Some(won), at, ended)): Option<(Option<Vec<Uuid>>, _, _)> = row else {
            return Ok(vec![Verdict::Again; marks.len()]);
        };
        // RETURNING cannot name a row's place in the arrays, but each attempt has
        // an id of its own.
        let all = won.len() == marks.len();
        let won: HashSet<Uuid> = if all { HashSet::new() } else { won.into_iter().collect() };
        let verdict = |mark: &&Mark| {
            let expire_time = at.after(mark.ttl);
            if expire_time <= ended || !(all || won.contains(&mark.request.as_uuid())) {
                return Verdict::Again;
            }
            let request = Some(mark.request);
            let event = StoredEvent { process_time: at, expire_time, request, by: By::Mark };
            Verdict::Decided(EventRow::Processed(event))
        };
        Ok(marks.iter().map(verdict).collect())
    }

    /// Marks what may have a row.
    async fn mark_taken(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let asked = Asked::of(self.now(), marks);
        let rows = self.fetch(|| asked.bind(MARK)).await?;
        let places: HashMap<Uuid, usize> = asked.requests.iter().copied().zip(0..).collect();
        let mut verdicts = vec![Verdict::Again; marks.len()];
        for row in rows {
            let event = event_row(&row)?;
            let won = match &event {
                EventRow::Processed(event) => event.request,
                EventRow::Claimed(_) => None,
            };
            let place = match row.try_get::<Option<i64>, _>("ord").map_err(StoreError::fault)? {
                Some(ord) => usize::try_from(ord - 1).ok(),
                None => won.and_then(|won| places.get(&won.as_uuid()).copied()),
            };
            let verdict = place.and_then(|place| verdicts.get_mut(place));
            *verdict.ok_or_else(|| StoreError::fault("a row nobody asked for"))? =
                Verdict::Decided(event);
        }
        Ok(verdicts)
    }
}

pub(super) fn interval(span: Duration) -> PgInterval {
    let microseconds = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// Marks as a statement's arrays.
struct Asked<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    ttls: Vec<PgInterval>,
    now: Option<PgTimestamp>,
}

impl<'a> Asked<'a> {
    fn of(now: Option<PgTimestamp>, marks: &[&'a Mark]) -> Self {
        Self {
            teams: marks.iter().map(|mark| mark.key.team.as_str()).collect(),
            events: marks.iter().map(|mark| mark.key.event.as_str()).collect(),
            requests: marks.iter().map(|mark| mark.request.as_uuid()).collect(),
            ttls: marks.iter().map(|mark| interval(mark.ttl.span())).collect(),
            now,
        }
    }

    fn bind_one(&'a self, mark: &'a Mark) -> Statement<'a> {
        sqlx::query(INSERT_ONE)
            .bind(self.now)
            .bind(&mark.key.team)
            .bind(&mark.key.event)
            .bind(mark.request.as_uuid())
            .bind(interval(mark.ttl.span()))
    }

    fn bind(&'a self, sql: &'static str) -> Statement<'a> {
        sqlx::query(sql)
            .bind(self.now)
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.ttls)
    }
}

/// A row's `event_columns` and, for a claim's rest, `at`.
pub(super) fn event_row(row: &PgRow) -> Result<EventRow, StoreError> {
    let read = || {
        let time = |column| row.try_get::<PgTimestamp, _>(column).map(|time| time.0);
        let request = row.try_get::<Option<Uuid>, _>("request_id")?.map(RequestId::from_uuid);
        let attempt: Option<i32> = row.try_get("attempt")?;
        let attempt = attempt.map(|attempt| u32::try_from(attempt).unwrap_or(0));
        let claimed_until: Option<PgTimestamp> = row.try_get("claimed_until")?;
        if let (Some(PgTimestamp(lapse_time)), Some(request)) = (claimed_until, request) {
            return Ok(EventRow::Claimed(Claim {
                request,
                holder: row.try_get::<Option<String>, _>("holder")?.unwrap_or_default(),
                attempt: attempt.unwrap_or_default(),
                claim_time: time("processed_at")?,
                lapse_time,
                remaining: lapse_time.since(time("at")?),
            }));
        }
        let by = match attempt {
            None => By::Mark,
            Some(attempt) if row.try_get("succeeded")? => By::Turn(attempt),
            Some(attempt) => By::Nobody(attempt),
        };
        let (process_time, expire_time) = (time("processed_at")?, time("expires_at")?);
        Ok(EventRow::Processed(StoredEvent { process_time, expire_time, request, by }))
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}
