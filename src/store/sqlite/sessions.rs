//! Sessions and their queues as rows.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use uuid::{Uuid, fmt::Simple};

use super::{
    classify,
    rows::{hex, run, slot, text},
};
use crate::{
    domain::{FencingToken, Labels, LeaseId, RequestId, ResumedBy, SessionKey, Timestamp},
    rules::{Change, Latest, Session, SessionWrite, Version, Waiter},
    store::{StoreError, records::place::PlaceRecord},
};

/// The waiters for the session `$session` of `$team`, first to last, if `$wanted`.
macro_rules! queue {
    ($team:literal, $session:literal, $wanted:literal) => {
        concat!(
            "CASE WHEN ",
            $wanted,
            " THEN (
        SELECT json_group_array(json_array(w.ticket, w.lease_id, w.request_id, w.holder, w.labels,
            w.epic_id, w.ttl_micros, w.digest, w.left_at, json('true')) ORDER BY w.ticket)
        FROM oncegate_waiters AS w
        WHERE w.team_id = ",
            $team,
            " AND w.session_id = ",
            $session,
            ") END AS queue"
        )
    };
}
pub(super) use queue;

/// What is read of a session, its queue apart.
macro_rules! session_columns {
    () => {
        "version, fencing_token, lease_id, request_id, holder, labels, epic_id, acquired_at,
    expires_at, released, repeated, resumed_by, waiting, ttl_micros"
    };
}
pub(super) use session_columns;

// $1: a JSON array with an array for each item.

/// Of each, its team, its id, and whether its queue is wanted even without waiters.
pub(super) const READ: &str = concat!(
    "SELECT a.key, ",
    session_columns!(),
    ", ",
    queue!("a.value ->> 0", "a.value ->> 1", "s.waiting OR a.value ->> 2"),
    "
FROM json_each($1) AS a LEFT JOIN oncegate_sessions AS s
    ON s.team_id = a.value ->> 0 AND s.session_id = a.value ->> 1
"
);

pub(super) const VERSIONS: &str = "
SELECT a.key, s.version
FROM json_each($1) AS a CROSS JOIN oncegate_sessions AS s
    ON s.team_id = a.value ->> 0 AND s.session_id = a.value ->> 1
";

pub(super) const PUT: &str = "
REPLACE INTO oncegate_sessions (team_id, session_id, version, fencing_token, lease_id, request_id,
    holder, labels, epic_id, acquired_at, expires_at, released, repeated, resumed_by, waiting,
    ttl_micros)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
    value ->> 13, value ->> 14, value ->> 15
FROM json_each($1)
";

pub(super) const DELETE: &str = "
DELETE FROM oncegate_sessions
WHERE (team_id, session_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each($1))
";

/// Places in queues: those that have a ticket are changed, the others are new.
pub(super) const PUT_PLACES: &str = "
REPLACE INTO oncegate_waiters (ticket, team_id, session_id, lease_id, request_id, holder, labels,
    epic_id, ttl_micros, digest, left_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, value ->> 10
FROM json_each($1) ORDER BY key
RETURNING ticket, lease_id
";

/// $1: a JSON array of tickets.
pub(super) const DELETE_PLACES: &str = "
DELETE FROM oncegate_waiters WHERE ticket IN (SELECT value FROM json_each($1))
";

/// The places whose callers wait.
pub(super) const PLACES: &str = "
SELECT team_id, session_id, lease_id FROM oncegate_waiters WHERE left_at IS NULL
";

/// The places of callers that waited when the process before this one crashed. $1: the moment.
pub(super) const KEEP_ALL: &str = "UPDATE oncegate_waiters SET left_at = $1 WHERE left_at IS NULL";

/// Places that have been left for long enough, at $1.
pub(super) const FORGET: &str = "DELETE FROM oncegate_waiters WHERE left_at <= $1";

/// There are no waiters yet in this process.
pub(super) const NOBODY_WAITS: &str = "UPDATE oncegate_sessions SET waiting = 0 WHERE waiting";

/// Reads the sessions that are `wanted`.
pub(super) async fn read(
    reader: &mut SqliteConnection,
    wanted: &BTreeMap<SessionKey, bool>,
) -> Result<BTreeMap<SessionKey, Session>, StoreError> {
    let asked: Vec<_> =
        wanted.iter().map(|(key, queue)| (key.team.as_str(), &key.session, queue)).collect();
    let rows = sqlx::query(READ).bind(text(&asked)?).fetch_all(reader).await.map_err(classify)?;
    let mut found = vec![None; wanted.len()];
    for row in rows {
        let key = row.try_get("key").map_err(StoreError::internal)?;
        *slot(&mut found, key)? = Some(session(&row)?);
    }
    let found = wanted.keys().cloned().zip(found);
    Ok(found.filter_map(|(key, session)| Some((key, session?))).collect())
}

/// Writes sessions and places. Answers the tickets of new places.
pub(super) async fn write(
    batch: &mut SqliteConnection,
    writes: &[SessionWrite],
) -> Result<BTreeMap<LeaseId, i64>, StoreError> {
    let (mut puts, mut deletes, mut places, mut gone) = (vec![], vec![], vec![], vec![]);
    for SessionWrite { key, latest, add, change, remove } in writes {
        match latest {
            Change::Keep => {}
            Change::Put(latest) => puts.push(columns(key, latest)),
            Change::Delete => deletes.push(json!([key.team.as_str(), key.session])),
        }
        places.extend(change.iter().chain(add).map(|waiter| place_columns(key, waiter)));
        gone.extend(remove.iter().copied());
    }
    for (statement, rows) in [(PUT, puts), (DELETE, deletes)] {
        run(batch, statement, rows).await?;
    }
    if !gone.is_empty() {
        let delete = sqlx::query(DELETE_PLACES).bind(text(&gone)?);
        delete.execute(&mut *batch).await.map_err(classify)?;
    }
    let mut tickets = BTreeMap::new();
    if !places.is_empty() {
        let put = sqlx::query(PUT_PLACES).bind(Value::from(places).to_string());
        for row in put.fetch_all(batch).await.map_err(classify)? {
            let ticket = || Ok((lease(&row, "lease_id")?, row.try_get("ticket")?));
            let (lease, ticket) =
                ticket().map_err(|error: sqlx::Error| StoreError::internal(error))?;
            tickets.insert(lease, ticket);
        }
    }
    Ok(tickets)
}

fn columns(key: &SessionKey, latest: &Latest) -> Value {
    json!([
        key.team.as_str(),
        key.session,
        latest.version.0,
        latest.token.0,
        hex(latest.lease.as_uuid()),
        hex(latest.request.as_uuid()),
        latest.holder,
        latest.labels.to_json(),
        latest.epic,
        latest.acquire_time.as_micros(),
        latest.expire_time.as_micros(),
        i64::from(latest.released),
        i64::from(latest.resumed.is_repeated()),
        latest.resumed.as_uuid().map(hex),
        i64::from(latest.waiting),
        latest.ttl.map(micros),
    ])
}

fn place_columns(key: &SessionKey, waiter: &Waiter) -> Value {
    json!([
        waiter.ticket,
        key.team.as_str(),
        key.session,
        hex(waiter.lease.as_uuid()),
        hex(waiter.request.as_uuid()),
        waiter.holder,
        waiter.labels.to_json(),
        waiter.epic,
        micros(waiter.ttl),
        waiter.digest.map(|digest| hex(digest.as_uuid())),
        waiter.left_at.map(Timestamp::as_micros),
    ])
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// The session of a row with its queue.
pub(super) fn session(row: &SqliteRow) -> Result<Session, StoreError> {
    let latest = latest(row).map_err(StoreError::internal)?;
    let queue: Option<&str> = row.try_get("queue").map_err(StoreError::internal)?;
    let places: Vec<PlaceRecord> =
        serde_json::from_str(queue.unwrap_or("[]")).map_err(StoreError::internal)?;
    Ok(Session { latest, queue: places.into_iter().map(PlaceRecord::waiter).collect() })
}

fn latest(row: &SqliteRow) -> Result<Option<Latest>, sqlx::Error> {
    let Some(version) = row.try_get("version")? else { return Ok(None) };
    let uuid = |column| row.try_get::<Simple, _>(column).map(Uuid::from);
    let time = |column| row.try_get(column).map(Timestamp::from_micros);
    let ttl: Option<i64> = row.try_get("ttl_micros")?;
    Ok(Some(Latest {
        version: Version(version),
        lease: lease(row, "lease_id")?,
        token: FencingToken(row.try_get("fencing_token")?),
        holder: row.try_get("holder")?,
        labels: Labels::from_json(row.try_get("labels")?),
        epic: row.try_get("epic_id")?,
        request: RequestId::from_uuid(uuid("request_id")?),
        acquire_time: time("acquired_at")?,
        expire_time: time("expires_at")?,
        released: row.try_get("released")?,
        ttl: ttl.map(|ttl| Duration::from_micros(ttl.unsigned_abs())),
        resumed: resumed_by(row)?,
        waiting: row.try_get("waiting")?,
    }))
}

pub(super) fn lease(row: &SqliteRow, column: &str) -> Result<LeaseId, sqlx::Error> {
    Ok(LeaseId::from_uuid(row.try_get::<Simple, _>(column)?.into()))
}

/// Who has carried on what a row grants.
pub(super) fn resumed_by(row: &SqliteRow) -> Result<ResumedBy, sqlx::Error> {
    let repeated: Option<bool> = row.try_get("repeated")?;
    let noted: Option<Simple> = row.try_get("resumed_by")?;
    Ok(ResumedBy::of_row(repeated == Some(true), noted.map(Uuid::from)))
}
