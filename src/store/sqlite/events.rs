//! Events in `SQLite`.

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::fmt::Simple;

use super::{Handle, classify, json, slot};
use crate::{
    domain::{By, Claim, EventKey, EventRow, Mark, RequestId, StoredEvent, Timestamp},
    store::{EventStore, StoreError, Verdict},
};

// $1: a JSON array with an array for each item. $2: the moment.

pub(super) const MARK: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
SELECT value ->> 0, value ->> 1, $2, $2 + (value ->> 2), value ->> 3
FROM json_each($1) WHERE true
ON CONFLICT (team_id, event_id) DO UPDATE
SET processed_at = excluded.processed_at, expires_at = excluded.expires_at,
    request_id = excluded.request_id, claimed_until = NULL, attempt = NULL, holder = NULL,
    result = NULL, repeated = NULL
WHERE processed_events.expires_at <= excluded.processed_at
    OR processed_events.claimed_until <= excluded.processed_at
";

pub(super) const LOOK: &str = "
SELECT a.key, e.processed_at, e.expires_at, e.request_id, e.claimed_until, e.attempt, e.holder,
    e.result IS NOT NULL AS succeeded
FROM json_each($1) AS a CROSS JOIN processed_events AS e
    ON e.team_id = a.value ->> 0 AND e.event_id = a.value ->> 1
WHERE e.expires_at > $2 AND (e.claimed_until IS NULL OR e.claimed_until > $2)
";

impl EventStore for Handle {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let asked: Vec<_> = marks
            .iter()
            .map(|mark| {
                let request = mark.request.as_uuid().simple().to_string();
                (&mark.key.team, &mark.key.event, mark.ttl.as_micros(), request)
            })
            .collect();
        let asked = json(&asked)?;

        // Whoever has the writer is alone in writing: the statement needs no
        // transaction around it, and what it left is still there to be read.
        let mut writer = self.writer.lock().await;
        let now = self.now();
        let marked = sqlx::query(MARK)
            .bind(&asked)
            .bind(now.as_micros())
            .execute(&mut *writer)
            .await
            .map_err(classify)?;
        if marked.rows_affected() == marks.len() as u64 {
            let first = |mark: &&Mark| StoredEvent {
                process_time: now,
                expire_time: now.after(mark.ttl),
                request: Some(mark.request),
                by: By::Mark,
            };
            let first = marks.iter().map(first).map(EventRow::Processed);
            return Ok(first.map(Verdict::Decided).collect());
        }
        let live = look(&mut writer, &asked, marks.len(), now).await?;
        live.into_iter()
            .map(|event| event.map(Verdict::Decided))
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::fault("a mark left no row"))
    }

    async fn look_events(
        &mut self,
        keys: &[&EventKey],
    ) -> Result<Vec<Option<EventRow>>, StoreError> {
        let asked: Vec<_> = keys.iter().map(|key| (&key.team, &key.event)).collect();
        let asked = json(&asked)?;
        let now = self.now();
        look(self.reader().await?, &asked, keys.len(), now).await
    }
}

async fn look(
    connection: &mut SqliteConnection,
    asked: &str,
    count: usize,
    now: Timestamp,
) -> Result<Vec<Option<EventRow>>, StoreError> {
    let rows = sqlx::query(LOOK)
        .bind(asked)
        .bind(now.as_micros())
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let mut found = vec![None; count];
    for row in rows {
        let read = || Ok((row.try_get("key")?, event_row(&row, now)?));
        let (key, event) = read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
        *slot(&mut found, key)? = Some(event);
    }
    Ok(found)
}

pub(super) fn event_row(row: &SqliteRow, now: Timestamp) -> Result<EventRow, sqlx::Error> {
    let time = |column| row.try_get(column).map(Timestamp::from_micros);
    let request = RequestId::from_uuid(row.try_get::<Simple, _>("request_id")?.into());
    let attempt: Option<u32> = row.try_get("attempt")?;
    if let Some(until) = row.try_get::<Option<i64>, _>("claimed_until")? {
        let lapse_time = Timestamp::from_micros(until);
        return Ok(EventRow::Claimed(Claim {
            request,
            holder: row.try_get::<Option<String>, _>("holder")?.unwrap_or_default(),
            attempt: attempt.unwrap_or_default(),
            claim_time: time("processed_at")?,
            lapse_time,
            remaining: lapse_time.since(now),
        }));
    }
    let by = match attempt {
        None => By::Mark,
        Some(attempt) if row.try_get("succeeded")? => By::Turn(attempt),
        Some(attempt) => By::Nobody(attempt),
    };
    Ok(EventRow::Processed(StoredEvent {
        process_time: time("processed_at")?,
        expire_time: time("expires_at")?,
        request: Some(request),
        by,
    }))
}
