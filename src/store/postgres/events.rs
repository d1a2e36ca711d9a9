//! Events in PostgreSQL.

use std::{collections::HashSet, time::Duration};

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{
    Handle,
    handle::Statement,
    ordinality::{fail, fill, left},
    timestamp::PgTimestamp,
};
use crate::{
    domain::{EventRow, Mark, ProcessedBy, StoredEvent},
    store::{EventStore, Look, Looked, StoreError, Verdict, records},
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
pub(super) const INSERT: &str = concat!(
    "
WITH clock AS MATERIALIZED (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at
), won AS (
    INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
        sweep_after)
    SELECT team_id, event_id, (SELECT at FROM clock), (SELECT at FROM clock) + ttl, request_id,
        ",
    sweep_after!("(SELECT at FROM clock) + ttl", "ttl < interval '24 hours'"),
    "
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[])
        AS a (team_id, event_id, request_id, ttl)
    ON CONFLICT (team_id, event_id) DO NOTHING
    RETURNING request_id
)
SELECT array_agg(request_id) AS won, (SELECT at FROM clock) AS at,
    COALESCE($1::timestamptz, clock_timestamp()) AS ended
FROM won
"
);

/// [`INSERT`] for a mark that is alone in its batch: where there is no load to
/// spread it over, an array and a second level cost a quarter of the statement.
pub(super) const INSERT_ONE: &str = concat!(
    "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id, sweep_after)
SELECT $2::text, $3::text, at, at + $5::interval, $4::uuid,
    ",
    sweep_after!("at + $5::interval", "$5::interval < interval '24 hours'"),
    "
FROM (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock
ON CONFLICT (team_id, event_id) DO NOTHING
RETURNING ARRAY[request_id] AS won, processed_at AS at,
    COALESCE($1::timestamptz, clock_timestamp()) AS ended
"
);

impl EventStore for Handle {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let mut verdicts = vec![Verdict::Retry; marks.len()];
        let is_plain = |mark: &Mark| mark.event.aliases.is_empty() && mark.event.digest.is_none();
        let plain = marks.iter().copied().enumerate().filter(|(_, mark)| is_plain(mark));
        let (places, plain): (Vec<usize>, Vec<&Mark>) = plain.unzip();
        if !plain.is_empty() {
            let inserted = self.insert(&plain).await?;
            fill(&mut verdicts, places, inserted);
        }
        let (places, taken) = left(&verdicts, marks);
        if !taken.is_empty() {
            match records::answers(self, &taken).await {
                Ok(marked) => fill(&mut verdicts, places, marked),
                // What is decided has been committed.
                Err(error) if taken.len() < marks.len() => fail(&mut verdicts, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(verdicts)
    }

    async fn look_events(&mut self, asked: &[&Look]) -> Result<Vec<Option<Looked>>, StoreError> {
        records::answers::look_events(self, asked).await
    }
}

impl Handle {
    /// Marks what has no row.
    async fn insert(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let asked = Asked::of(self.now(), marks);
        let rows = match marks {
            [mark] => self.fetch(|| asked.bind_one(mark)).await?,
            _ => self.fetch(|| asked.bind()).await?,
        };
        let read = |row: &PgRow| {
            let time = |column| row.try_get::<PgTimestamp, _>(column);
            Ok((row.try_get("won")?, time("at")?.0, time("ended")?.0))
        };
        let row = rows.first().map(read).transpose();
        let row = row.map_err(|error: sqlx::Error| StoreError::internal(error))?;
        let Some((Some(won), at, ended)): Option<(Option<Vec<Uuid>>, _, _)> = row else {
            return Ok(vec![Verdict::Retry; marks.len()]);
        };
        // RETURNING cannot name a row's place in the arrays, but each attempt has
        // an id of its own.
        let all = won.len() == marks.len();
        let won: HashSet<Uuid> = if all { HashSet::new() } else { won.into_iter().collect() };
        let verdict = |mark: &&Mark| {
            let expire_time = at.after(mark.ttl);
            if expire_time <= ended || !(all || won.contains(&mark.request.as_uuid())) {
                return Verdict::Retry;
            }
            let request = Some(mark.request);
            let (process_time, by, detail, digest) = (at, ProcessedBy::Mark, None, None);
            let event = StoredEvent { process_time, expire_time, request, by, detail, digest };
            Verdict::Decided(EventRow::Processed(event))
        };
        Ok(marks.iter().map(verdict).collect())
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
            teams: marks.iter().map(|mark| mark.event.key.team.as_str()).collect(),
            events: marks.iter().map(|mark| mark.event.key.event.as_str()).collect(),
            requests: marks.iter().map(|mark| mark.request.as_uuid()).collect(),
            ttls: marks.iter().map(|mark| interval(mark.ttl.span())).collect(),
            now,
        }
    }

    fn bind_one(&'a self, mark: &'a Mark) -> Statement<'a> {
        sqlx::query(INSERT_ONE)
            .bind(self.now)
            .bind(mark.event.key.team.as_str())
            .bind(&mark.event.key.event)
            .bind(mark.request.as_uuid())
            .bind(interval(mark.ttl.span()))
    }

    fn bind(&'a self) -> Statement<'a> {
        sqlx::query(INSERT)
            .bind(self.now)
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.ttls)
    }
}
