//! Events as rows: one for each name.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::fmt::Simple;

use super::{
    classify,
    rows::{hex, run, slot, text},
    sessions::resumed_by,
};
use crate::{
    domain::{
        Attempts, Detail, EventKey, PayloadDigest, ProcessedBy, RequestId, Timestamp, TurnResult,
    },
    rules::{Event, EventUpdate, State, Version},
    store::{StoreError, records::state::StateColumns},
};

/// What is read of an event; its result, which may be long, if `$result`.
macro_rules! event_columns {
    ($result:literal) => {
        concat!(
            "event_id, version, processed_at, expires_at, request_id, claimed_until, attempt, holder,
    names, digest, detail, uncounted, interrupted, repeated, resumed_by,
    result IS NOT NULL AS succeeded, rejected_at IS processed_at AS rejected,
    CASE WHEN ",
            $result,
            " THEN result END AS result, CASE WHEN ",
            $result,
            " THEN result_type END AS result_type"
        )
    };
}
pub(super) use event_columns;

// $1: a JSON array with an array for each item.

/// Of each, its team, its name, and whether its result is wanted: it may be long.
pub(super) const READ: &str = concat!(
    "SELECT a.key, ",
    event_columns!("a.value ->> 2"),
    "
FROM json_each($1) AS a CROSS JOIN processed_events AS e
    ON e.team_id = a.value ->> 0 AND e.event_id = a.value ->> 1
"
);

pub(super) const VERSIONS: &str = "
SELECT a.key, e.version
FROM json_each($1) AS a CROSS JOIN processed_events AS e
    ON e.team_id = a.value ->> 0 AND e.event_id = a.value ->> 1
";

macro_rules! put {
    ($verb:literal) => {
        concat!(
            $verb,
            " INTO processed_events (version, processed_at, expires_at, claimed_until, attempt,
    holder, result, result_type, repeated, resumed_by, rejected_at, detail, uncounted, interrupted,
    team_id, event_id, request_id, names, digest)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    unhex(value ->> 6), value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11,
    value ->> 12, value ->> 13, value ->> 14, value ->> 15, value ->> 16, value ->> 17,
    value ->> 18
FROM json_each($1)"
        )
    };
}

pub(super) const PUT: &str = put!("REPLACE");

/// Where there is no row.
pub(super) const ADD: &str = put!("INSERT OR IGNORE");

/// Under those of the names, at 17, whose row has the version at 15 and the request at 16.
pub(super) const UPDATE: &str = "
REPLACE INTO processed_events (version, processed_at, expires_at, claimed_until, attempt, holder,
    result, result_type, repeated, resumed_by, rejected_at, detail, uncounted, interrupted,
    team_id, event_id, request_id, names, digest)
SELECT a.value ->> 0, a.value ->> 1, a.value ->> 2, a.value ->> 3, a.value ->> 4, a.value ->> 5,
    unhex(a.value ->> 6), a.value ->> 7, a.value ->> 8, a.value ->> 9, a.value ->> 10,
    a.value ->> 11, a.value ->> 12, a.value ->> 13, e.team_id, e.event_id, e.request_id, e.names,
    e.digest
FROM json_each($1) AS a CROSS JOIN json_each(a.value, '$[17]') AS n
    CROSS JOIN processed_events AS e
    ON e.team_id = a.value ->> 14 AND e.event_id = n.value AND e.version = a.value ->> 15
        AND e.request_id = a.value ->> 16
";

/// Of each, its team, its version, its request and its names.
pub(super) const DELETE: &str = "
DELETE FROM processed_events
WHERE (team_id, event_id, version, request_id) IN (
    SELECT a.value ->> 0, n.value, a.value ->> 1, a.value ->> 2
    FROM json_each($1) AS a CROSS JOIN json_each(a.value, '$[3]') AS n)
";

/// Reads what is on record under the names that are `wanted`.
pub(super) async fn read(
    reader: &mut SqliteConnection,
    wanted: &BTreeMap<EventKey, bool>,
) -> Result<BTreeMap<EventKey, Event>, StoreError> {
    let asked: Vec<_> =
        wanted.iter().map(|(key, result)| (key.team.as_str(), &key.event, result)).collect();
    let rows = sqlx::query(READ).bind(text(&asked)?).fetch_all(reader).await.map_err(classify)?;
    let mut found = vec![None; wanted.len()];
    for row in rows {
        let key = row.try_get("key").map_err(StoreError::internal)?;
        *slot(&mut found, key)? = Some(event(&row)?);
    }
    let found = wanted.keys().cloned().zip(found);
    Ok(found.filter_map(|(key, event)| Some((key, event?))).collect())
}

/// Writes events.
pub(super) async fn write(
    batch: &mut SqliteConnection,
    updates: &[EventUpdate],
    puts: &[(EventKey, Event)],
) -> Result<(), StoreError> {
    let (mut changed, mut deleted) = (vec![], vec![]);
    for EventUpdate { team, was, request, names, event, .. } in updates {
        let request = request.map(|request| hex(request.as_uuid()));
        match event {
            None => deleted.push(json!([team.as_str(), was.0, request, names])),
            Some(event) => {
                let mut row = columns(event);
                row.extend([json!(team.as_str()), json!(was.0), json!(request), json!(names)]);
                changed.push(Value::from(row));
            }
        }
    }
    let put = puts.iter().map(|(key, event)| row(key, event)).collect();
    for (statement, rows) in [(UPDATE, changed), (DELETE, deleted), (PUT, put)] {
        run(batch, statement, rows).await?;
    }
    Ok(())
}

/// Adds events, each under its one name, where there is none. Answers how many it added.
pub(super) async fn add(
    writer: &mut SqliteConnection,
    added: &[(&EventKey, &Event)],
) -> Result<u64, StoreError> {
    let added: Vec<Value> = added.iter().map(|(key, event)| row(key, event)).collect();
    let add = sqlx::query(ADD).bind(Value::from(added).to_string());
    Ok(add.execute(writer).await.map_err(classify)?.rows_affected())
}

/// The row of an event under one of its names.
fn row(key: &EventKey, event: &Event) -> Value {
    let names = (event.names.len() > 1).then(|| json!(event.names).to_string());
    let request = event.request.map(|request| hex(request.as_uuid()));
    let digest = event.digest.map(|digest| hex(digest.as_uuid()));
    let mut row = columns(event);
    row.extend([
        json!(key.team.as_str()),
        json!(key.event),
        json!(request),
        json!(names),
        json!(digest),
    ]);
    Value::from(row)
}

/// The columns that change with how an event stands.
fn columns(event: &Event) -> Vec<Value> {
    let state = StateColumns::of(event);
    vec![
        json!(event.version.0),
        json!(state.time),
        json!(state.expires),
        json!(state.until),
        json!(state.attempt),
        json!(state.holder),
        json!(state.result),
        json!(state.result_type),
        json!(state.repeated.map(u8::from)),
        json!(state.resumed_by.map(hex)),
        json!(state.rejected),
        json!(state.detail),
        json!(state.uncounted),
        json!(state.interrupted),
    ]
}

/// The event of a row.
pub(super) fn event(row: &SqliteRow) -> Result<Event, StoreError> {
    let event_id: String = row.try_get("event_id").map_err(StoreError::internal)?;
    let names: Option<&str> = row.try_get("names").map_err(StoreError::internal)?;
    let names = match names {
        Some(names) => serde_json::from_str(names).map_err(StoreError::internal)?,
        None => vec![event_id],
    };
    let read = || {
        let time = |column| row.try_get(column).map(Timestamp::from_micros);
        let attempt: Option<u32> = row.try_get("attempt")?;
        let until: Option<i64> = row.try_get("claimed_until")?;
        let uncounted: Option<u32> = row.try_get("uncounted")?;
        let digest: Option<Simple> = row.try_get("digest")?;
        let interrupted = row.try_get("interrupted")?;
        let state = match until {
            Some(until) => State::Claimed(Timestamp::from_micros(until)),
            None => State::Handled(
                ProcessedBy::of_row(attempt, row.try_get("succeeded")?, row.try_get("rejected")?),
                turn_result(row)?.map(Arc::new),
            ),
        };
        Ok(Event {
            version: Version(row.try_get("version")?),
            names,
            request: Some(RequestId::from_uuid(row.try_get::<Simple, _>("request_id")?.into())),
            digest: digest.map(|digest| PayloadDigest::from_uuid(digest.into())),
            time: time("processed_at")?,
            expire_time: time("expires_at")?,
            state,
            attempts: attempt.map(|claimed| Attempts {
                claimed,
                uncounted: uncounted.unwrap_or_default(),
                interrupted,
            }),
            holder: row.try_get("holder")?,
            detail: row.try_get::<Option<String>, _>("detail")?.map(Detail::from_row),
            resumed: resumed_by(row)?,
        })
    };
    read().map_err(|error: sqlx::Error| StoreError::internal(error))
}

/// What the turn of a row left, if it is read.
fn turn_result(row: &SqliteRow) -> Result<Option<TurnResult>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get("result")?;
    let type_name = row.try_get("result_type")?;
    Ok(bytes.map(|bytes| TurnResult { bytes, type_name }))
}
