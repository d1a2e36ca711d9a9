//! Places in queues: taking, leaving and keeping them.

use std::collections::HashSet;

use sqlx::{Row as _, SqliteConnection};
use uuid::{Uuid, fmt::Simple};

use super::super::{classify, hex, json};
use crate::{
    domain::{Acquire, LeaseId, SessionKey, Timestamp, limits::MAX_WAITERS_PER_SESSION},
    store::{Enqueue, Enqueued, PLACE_KEPT, StoreError},
};

/// $1: team, $2: session, $3: the most that may wait.
pub(in super::super) const ENQUEUE: &str = "
INSERT INTO oncegate_waiters (team_id, session_id, lease_id, request_id,
    holder, labels, epic_id, ttl_micros, digest)
SELECT $1, $2, $4, $5, $6, $7, $8, $9, $10
WHERE (
    SELECT count(*) FROM oncegate_waiters
    WHERE team_id = $1 AND session_id = $2 AND left_at IS NULL) < $3
RETURNING ticket
";

/// Who is next for a session, of those who want it for the work it is bound to.
pub(in super::super) const NEXT: &str = "
DELETE FROM oncegate_waiters
WHERE ticket = (
    SELECT min(ticket) FROM oncegate_waiters
    WHERE team_id = $1 AND session_id = $2 AND left_at IS NULL
        AND (epic_id IS NULL OR $3 IS NULL OR epic_id = $3))
RETURNING lease_id, request_id, holder, labels, epic_id, ttl_micros
";

pub(in super::super) const ANYBODY: &str = "
SELECT EXISTS (
    SELECT 1 FROM oncegate_waiters
    WHERE team_id = $1 AND session_id = $2 AND left_at IS NULL)
";

/// $1: a JSON array of team, session and lease.
pub(in super::super) const LEAVE: &str = "
DELETE FROM oncegate_waiters WHERE (team_id, session_id, lease_id) IN (
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each($1))
RETURNING lease_id
";

pub(in super::super) const PLACES: &str = "
SELECT team_id, session_id, lease_id FROM oncegate_waiters WHERE left_at IS NULL
";

/// The place of an earlier call with the same request, $3, and payload, $4.
pub(in super::super) const EARLIER: &str = "
SELECT ticket, lease_id FROM oncegate_waiters
WHERE team_id = $1 AND session_id = $2 AND request_id = $3 AND digest IS $4
ORDER BY ticket LIMIT 1
";

/// $1: the ticket.
pub(in super::super) const TAKE_OVER: &str = "
UPDATE oncegate_waiters
SET lease_id = $2, holder = $3, labels = $4, epic_id = $5, ttl_micros = $6, left_at = NULL
WHERE ticket = $1
";

/// $1: as in [`LEAVE`]. $2: the moment.
pub(in super::super) const KEEP: &str = "
UPDATE oncegate_waiters SET left_at = $2 WHERE (team_id, session_id, lease_id) IN (
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each($1))
RETURNING lease_id
";

/// The places of callers that waited when the process before this one crashed. $1: the moment.
pub(in super::super) const KEEP_ALL: &str =
    "UPDATE oncegate_waiters SET left_at = $1 WHERE left_at IS NULL";

/// Places that have been left for long enough, at $1.
pub(in super::super) const FORGET: &str = "DELETE FROM oncegate_waiters WHERE left_at <= $1";

/// Nobody waits yet in this process.
pub(in super::super) const NOBODY_WAITS: &str =
    "UPDATE oncegate_sessions SET waiting = 0 WHERE waiting";

/// Takes a place in the queue of a session, or the one of an earlier call with the same request.
pub(super) async fn place(
    batch: &mut SqliteConnection,
    enqueue: &Enqueue,
) -> Result<Enqueued, StoreError> {
    let Acquire { key, holder, request, ttl, epic, labels, digest, .. } = &enqueue.acquire;
    let digest = digest.map(|digest| hex(digest.as_uuid()));
    let (lease, request) = (hex(enqueue.lease.as_uuid()), hex(request.as_uuid()));
    let earlier: Option<(i64, Simple)> = sqlx::query_as(EARLIER)
        .bind(&key.team)
        .bind(&key.session)
        .bind(&request)
        .bind(&digest)
        .fetch_optional(&mut *batch)
        .await
        .map_err(classify)?;
    if let Some((ticket, earlier)) = earlier {
        if !enqueue.takes_over {
            return Ok(Enqueued::Replaced);
        }
        sqlx::query(TAKE_OVER)
            .bind(ticket)
            .bind(lease)
            .bind(holder)
            .bind(labels.to_json())
            .bind(epic)
            .bind(ttl.as_micros())
            .execute(batch)
            .await
            .map_err(classify)?;
        return Ok(Enqueued::TookOver(ticket, LeaseId::from_uuid(earlier.into())));
    }
    let placed = sqlx::query(ENQUEUE)
        .bind(&key.team)
        .bind(&key.session)
        .bind(i64::try_from(MAX_WAITERS_PER_SESSION).map_err(StoreError::fault)?)
        .bind(lease)
        .bind(request)
        .bind(holder)
        .bind(labels.to_json())
        .bind(epic)
        .bind(ttl.as_micros())
        .bind(digest)
        .fetch_optional(batch)
        .await
        .map_err(classify)?;
    let ticket = placed.map(|row| row.try_get(0).map_err(StoreError::fault)).transpose()?;
    Ok(ticket.map_or(Enqueued::Full, Enqueued::Waits))
}

/// Keeps the places of callers that waited in the process before this one.
pub(in super::super) async fn keep_all(
    writer: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), StoreError> {
    let keep = sqlx::query(KEEP_ALL).bind(now.as_micros());
    keep.execute(&mut *writer).await.map_err(classify)?;
    forget(writer, now).await?;
    sqlx::query(NOBODY_WAITS).execute(writer).await.map_err(classify)?;
    Ok(())
}

/// Forgets places that nobody has taken up again in time.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), StoreError> {
    let forget = sqlx::query(FORGET).bind(now.minus(PLACE_KEPT).as_micros());
    forget.execute(connection).await.map_err(classify)?;
    Ok(())
}

/// Places as a statement's array.
pub(super) fn leases(places: &[(&SessionKey, LeaseId)]) -> Result<String, StoreError> {
    let place = |(key, lease): &(&SessionKey, LeaseId)| {
        (key.team.clone(), key.session.clone(), hex(lease.as_uuid()))
    };
    json(&places.iter().map(place).collect::<Vec<_>>())
}

/// Which of `places` a statement found, by their leases.
pub(super) fn found(places: &[(&SessionKey, LeaseId)], leases: Vec<Simple>) -> Vec<bool> {
    let leases: HashSet<Uuid> = leases.into_iter().map(Uuid::from).collect();
    places.iter().map(|(_, lease)| leases.contains(&lease.as_uuid())).collect()
}
