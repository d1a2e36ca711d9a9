//! Events in `SQLite`.

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::fmt::Simple;

use super::{Handle, classify, hex, json, slot};
use crate::{
    domain::{
        By, Claim, Delivered, Detail, EventRow, Mark, PayloadDigest, RequestId, StoredEvent,
        Timestamp, TurnResult,
    },
    store::{EventStore, Look, Looked, StoreError, Verdict},
};

// $1: a JSON array with an array for each item. $2: the moment.

/// An item for each name of each event.
pub(super) const MARK: &str = "
INSERT INTO processed_events
    (team_id, event_id, processed_at, expires_at, request_id, names, digest)
SELECT value ->> 0, value ->> 1, $2, $2 + (value ->> 2), value ->> 3, value ->> 4, value ->> 5
FROM json_each($1) WHERE true
ON CONFLICT (team_id, event_id) DO UPDATE
SET processed_at = excluded.processed_at, expires_at = excluded.expires_at,
    request_id = excluded.request_id, names = excluded.names, digest = excluded.digest,
    claimed_until = NULL, attempt = NULL, holder = NULL, result = NULL, result_type = NULL,
    rejected_at = NULL, detail = NULL, uncounted = NULL, interrupted = NULL, repeated = NULL,
    resumed_by = NULL
WHERE processed_events.expires_at <= excluded.processed_at
    OR processed_events.claimed_until <= excluded.processed_at
";

/// A result is long, and read only of those that it is asked for of.
pub(super) const LOOK: &str = "
SELECT a.key, e.processed_at, e.expires_at, e.request_id, e.claimed_until, e.attempt, e.holder,
    e.digest, e.detail, e.result IS NOT NULL AS succeeded,
    e.rejected_at IS e.processed_at AS rejected,
    CASE WHEN a.value ->> 2 IS true THEN e.result END AS result,
    CASE WHEN a.value ->> 2 IS true THEN e.result_type END AS result_type
FROM json_each($1) AS a CROSS JOIN processed_events AS e
    ON e.team_id = a.value ->> 0 AND e.event_id = a.value ->> 1
WHERE e.expires_at > $2 AND (e.claimed_until IS NULL OR e.claimed_until > $2)
";

impl EventStore for Handle {
    async fn mark(&mut self, marks: &[&Mark]) -> Result<Vec<Verdict<EventRow>>, StoreError> {
        let mut asked = Vec::with_capacity(marks.len());
        for mark in marks {
            let Delivered { key, digest, .. } = &mark.event;
            let (ttl, request) = (mark.ttl.as_micros(), hex(mark.request.as_uuid()));
            let names = names(&mark.event)?;
            for name in mark.event.names() {
                let digest = digest.filter(|_| key.event == name).map(|own| hex(own.as_uuid()));
                asked.push((&key.team, name, ttl, request.clone(), names.clone(), digest));
            }
        }

        // Whoever has the writer is alone in writing: what one statement left is still
        // there to be read by the next.
        let mut writer = self.writer.lock().await;
        let now = self.now();
        if asked.len() > marks.len() {
            let live = look(&mut writer, &json(&asked)?, asked.len(), now).await?;
            return mark_whole(&mut writer, marks, &asked, live, now).await;
        }
        let asked = json(&asked)?;
        if write(&mut writer, &asked, now).await? == marks.len() as u64 {
            let first = marks.iter().map(|mark| first(mark, now));
            return Ok(first.map(Verdict::Decided).collect());
        }
        let live = look(&mut writer, &asked, marks.len(), now).await?;
        live.into_iter()
            .map(|event| event.map(Verdict::Decided))
            .collect::<Option<_>>()
            .ok_or_else(|| StoreError::fault("the mark returned no row"))
    }

    async fn look_events(&mut self, asked: &[&Look]) -> Result<Vec<Option<Looked>>, StoreError> {
        let looks: Vec<_> = asked
            .iter()
            .map(|Look { key, with_result }| (&key.team, &key.event, with_result))
            .collect();
        let looks = json(&looks)?;
        let now = self.now();
        let reader = self.reader().await?;
        look_by(reader, &looks, asked.len(), now, |row| {
            Ok((event_row(row, now)?, turn_result(row)?))
        })
        .await
    }
}

/// All names of an event that has several.
pub(super) fn names(event: &Delivered) -> Result<Option<String>, StoreError> {
    if event.aliases.is_empty() {
        return Ok(None);
    }
    json(&event.names().collect::<Vec<_>>()).map(Some)
}

/// Marks those events of which no name is taken. `asked` has an entry for each name of each,
/// and `live` the row that is there.
async fn mark_whole<T: serde::Serialize>(
    writer: &mut SqliteConnection,
    marks: &[&Mark],
    asked: &[T],
    live: Vec<Option<EventRow>>,
    now: Timestamp,
) -> Result<Vec<Verdict<EventRow>>, StoreError> {
    let (mut entries, mut live) = (asked.iter(), live.into_iter());
    let (mut free, mut rows) = (Vec::new(), Vec::with_capacity(marks.len()));
    for mark in marks {
        let count = mark.event.names().count();
        let own: Vec<&T> = entries.by_ref().take(count).collect();
        let found = mark.event.names().zip(live.by_ref().take(count));
        let found = found.filter_map(|(name, row)| Some((name.to_owned(), row?))).collect();
        rows.push(mark.event.telling(mark.request, found).unwrap_or_else(|| {
            free.extend(own);
            first(mark, now)
        }));
    }
    write(writer, &json(&free)?, now).await?;
    Ok(rows.into_iter().map(Verdict::Decided).collect())
}

/// What a mark leaves that is the first.
fn first(mark: &Mark, now: Timestamp) -> EventRow {
    EventRow::Processed(StoredEvent {
        process_time: now,
        expire_time: now.after(mark.ttl),
        request: Some(mark.request),
        by: By::Mark,
        detail: None,
        digest: mark.event.digest,
    })
}

/// Answers how many names were free.
async fn write(
    writer: &mut SqliteConnection,
    asked: &str,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let marked = sqlx::query(MARK).bind(asked).bind(now.as_micros()).execute(writer).await;
    Ok(marked.map_err(classify)?.rows_affected())
}

async fn look(
    connection: &mut SqliteConnection,
    asked: &str,
    count: usize,
    now: Timestamp,
) -> Result<Vec<Option<EventRow>>, StoreError> {
    look_by(connection, asked, count, now, |row| event_row(row, now)).await
}

/// Reads the rows of what is `asked` for.
async fn look_by<T: Clone>(
    connection: &mut SqliteConnection,
    asked: &str,
    count: usize,
    now: Timestamp,
    read: impl Fn(&SqliteRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<Option<T>>, StoreError> {
    let rows = sqlx::query(LOOK)
        .bind(asked)
        .bind(now.as_micros())
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let mut found = vec![None; count];
    for row in rows {
        let keyed = || Ok((row.try_get("key")?, read(&row)?));
        let (key, event) = keyed().map_err(|error: sqlx::Error| StoreError::fault(error))?;
        *slot(&mut found, key)? = Some(event);
    }
    Ok(found)
}

pub(super) fn event_row(row: &SqliteRow, now: Timestamp) -> Result<EventRow, sqlx::Error> {
    let time = |column| row.try_get(column).map(Timestamp::from_micros);
    let request = RequestId::from_uuid(row.try_get::<Simple, _>("request_id")?.into());
    let digest = row.try_get::<Option<Simple>, _>("digest")?;
    let digest = digest.map(|digest| PayloadDigest::from_uuid(digest.into()));
    let attempt: Option<u32> = row.try_get("attempt")?;
    let detail = row.try_get::<Option<String>, _>("detail")?.map(Detail::from_row);
    if let Some(until) = row.try_get::<Option<i64>, _>("claimed_until")? {
        let lapse_time = Timestamp::from_micros(until);
        return Ok(EventRow::Claimed(Claim {
            request,
            holder: row.try_get::<Option<String>, _>("holder")?.unwrap_or_default(),
            attempt: attempt.unwrap_or_default(),
            claim_time: time("processed_at")?,
            lapse_time,
            remaining: lapse_time.since(now),
            digest,
            detail,
        }));
    }
    let by = By::of_row(attempt, row.try_get("succeeded")?, row.try_get("rejected")?);
    Ok(EventRow::Processed(StoredEvent {
        process_time: time("processed_at")?,
        expire_time: time("expires_at")?,
        request: Some(request),
        by,
        detail: detail.filter(|_| by.has_detail()),
        digest,
    }))
}

/// What the turn of a row left, if it is read.
pub(super) fn turn_result(row: &SqliteRow) -> Result<Option<TurnResult>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get("result")?;
    let type_name = row.try_get("result_type")?;
    Ok(bytes.map(|bytes| TurnResult { bytes, type_name }))
}
