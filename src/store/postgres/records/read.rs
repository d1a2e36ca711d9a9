//! Reading records.

use std::{sync::Arc, time::Duration};

use sqlx::{FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::json::value;
use crate::{
    domain::{
        Attempts, Detail, EventKey, FencingToken, Labels, LeaseId, PayloadDigest, ProcessedBy,
        RequestId, ResumedBy, SessionKey, Timestamp, TurnResult, limits::CLAIM_MEMORY,
    },
    rules::{Event, Latest, Session, Snapshot, State, Version, Wanted},
    store::{
        StoreError,
        postgres::{
            steps::{Overlong, claim_end},
            timestamp::PgTimestamp,
        },
        records::place::PlaceRecord,
    },
};

mod statement;

pub(super) use statement::Asked;
pub(in super::super) use statement::{
    LIST_EVENTS, LIST_SESSIONS, READ, READ_EVENTS, READ_SESSIONS,
};

/// What was read.
pub(super) struct Found<'a> {
    pub(super) snapshot: Snapshot,
    /// Leases and claims that are written to end later than they count.
    pub(super) leases: Vec<(&'a SessionKey, LeaseId)>,
    pub(super) claims: Overlong<'a>,
}

/// What the rows of a statement for `wanted` say.
pub(super) fn found<'a>(wanted: &'a Wanted, rows: &[PgRow]) -> Result<Found<'a>, StoreError> {
    let mut found = Found {
        snapshot: Snapshot::empty(Timestamp::from_micros(0)),
        leases: Vec::new(),
        claims: Overlong::default(),
    };
    let sessions: Vec<_> = wanted.sessions.keys().collect();
    let events: Vec<_> = wanted.events.keys().collect();
    for row in rows {
        let head = || {
            let place: Option<i64> = row.try_get("place")?;
            let floor: Option<i64> = row.try_get("floor")?;
            Ok((row.try_get::<PgTimestamp, _>("at")?.0, floor.unwrap_or_default(), place))
        };
        let (at, floor, place) =
            head().map_err(|error: sqlx::Error| StoreError::internal(error))?;
        (found.snapshot.now, found.snapshot.floor) = (at, FencingToken(floor));
        let Some(place) = place else { continue };
        let place = usize::try_from(place - 1).map_err(StoreError::internal)?;
        if let Some(key) = sessions.get(place) {
            found.session(key, row)?;
        }
        if let Some(key) = events.get(place) {
            found.event(key, row)?;
        }
    }
    Ok(found)
}

impl<'a> Found<'a> {
    /// Adds the session of a row.
    fn session(&mut self, key: &'a SessionKey, row: &PgRow) -> Result<(), StoreError> {
        let (session, written) = session(row, self.snapshot.now)?;
        if let (Some(latest), Some(written)) = (&session.latest, written)
            && latest.expire_time < written
        {
            self.leases.push((key, latest.lease));
        }
        self.snapshot.sessions.insert(key.clone(), session);
        Ok(())
    }

    /// Adds the event of a row, if it has one.
    fn event(&mut self, key: &'a EventKey, row: &PgRow) -> Result<(), StoreError> {
        let Some((event, written)) = event(row, key, self.snapshot.now)? else { return Ok(()) };
        if let (Some(written), Some(request)) = (written, event.request)
            && event.ends() < written
        {
            self.claims.add(&key.team, &event.names, request.as_uuid());
        }
        self.snapshot.events.insert(key.clone(), event);
        Ok(())
    }
}

/// The session of a row, and when its lease is written to end.
pub(in super::super) fn session(
    row: &PgRow,
    now: Timestamp,
) -> Result<(Session, Option<Timestamp>), StoreError> {
    let record: Option<SessionRecord> = record(row, "session_version")?;
    let written = record.as_ref().map(|record| record.expires_at.0);
    let latest = record.map(|record| record.latest(now));
    let queue: Option<Vec<PlaceRecord>> = value(row, "queue")?;
    let queue = queue.unwrap_or_default().into_iter().map(PlaceRecord::waiter).collect();
    Ok((Session { latest, queue }, written))
}

/// The event of a row, by this name, and when a claim to it is written to end.
pub(in super::super) fn event(
    row: &PgRow,
    key: &EventKey,
    now: Timestamp,
) -> Result<Option<(Event, Option<Timestamp>)>, StoreError> {
    let record: Option<EventRecord> = record(row, "event_version")?;
    Ok(record.map(|record| {
        let written = record.claimed_until.map(|until| until.0);
        (record.event(key, now), written)
    }))
}

/// A row's record, if there is one: then it has a `version`.
fn record<'r, T: FromRow<'r, PgRow>>(
    row: &'r PgRow,
    version: &str,
) -> Result<Option<T>, StoreError> {
    let version: Option<i64> = row.try_get(version).map_err(StoreError::internal)?;
    version.map(|_| T::from_row(row).map_err(StoreError::internal)).transpose()
}

/// A session's columns.
#[derive(FromRow)]
struct SessionRecord {
    session_version: i64,
    fencing_token: i64,
    lease_id: Uuid,
    request_id: Uuid,
    holder: String,
    labels: String,
    epic_id: Option<String>,
    acquired_at: PgTimestamp,
    expires_at: PgTimestamp,
    released: bool,
    repeated: bool,
    resumed_by: Option<Uuid>,
    waiting: bool,
    ttl_micros: Option<i64>,
}

impl SessionRecord {
    fn latest(self, now: Timestamp) -> Latest {
        let (acquired, expires) = (self.acquired_at.0, self.expires_at.0);
        let ttl = self.ttl_micros.map(|ttl| Duration::from_micros(ttl.unsigned_abs()));
        let written_for = ttl.unwrap_or_else(|| expires.since(acquired));
        Latest {
            version: Version(self.session_version),
            lease: LeaseId::from_uuid(self.lease_id),
            token: FencingToken(self.fencing_token),
            holder: self.holder,
            labels: Labels::from_json(&self.labels),
            epic: self.epic_id,
            request: RequestId::from_uuid(self.request_id),
            acquire_time: acquired.trusted(Duration::ZERO, now),
            expire_time: if self.released { expires } else { expires.trusted(written_for, now) },
            released: self.released,
            ttl,
            resumed: ResumedBy::of_row(self.repeated, self.resumed_by),
            waiting: self.waiting,
        }
    }
}

/// An event's columns.
#[derive(FromRow)]
struct EventRecord {
    event_version: i64,
    processed_at: PgTimestamp,
    kept_until: PgTimestamp,
    claimed_by: Option<Uuid>,
    claimed_until: Option<PgTimestamp>,
    attempt: Option<i32>,
    claim_holder: Option<String>,
    names: Option<Vec<String>>,
    digest: Option<Uuid>,
    detail: Option<String>,
    uncounted: Option<i32>,
    interrupted: Option<i32>,
    claim_repeated: Option<bool>,
    claim_resumed_by: Option<Uuid>,
    has_result: bool,
    is_rejected: bool,
    result: Option<Vec<u8>>,
    result_type: Option<String>,
}

impl EventRecord {
    fn event(self, key: &EventKey, now: Timestamp) -> Event {
        let (time, expires) = (self.processed_at.0, self.kept_until.0);
        let until = self.claimed_until.map(|until| until.0);
        let ends = until.map(|until| claim_end(until, time, expires, now));
        let (made, kept) = match (until, ends) {
            (Some(until), Some(ends)) if until > time => {
                // The clock was stepped back since, by so much that the claim is shortened: it
                // would look as if it had ended before it was made. Otherwise the time, which names
                // the claim, must not differ from read to read while the clock catches up.
                let made = if ends < until { time.min(now) } else { time };
                (made, expires.min(now.plus(CLAIM_MEMORY)))
            }
            _ => (time, expires),
        };
        let attempt = self.attempt.map(count);
        let state = if let Some(ends) = ends {
            State::Claimed(ends)
        } else {
            let type_name = self.result_type;
            let result = self.result.map(|bytes| Arc::new(TurnResult { bytes, type_name }));
            let by = ProcessedBy::of_row(attempt, self.has_result, self.is_rejected);
            State::Handled(by, result)
        };
        Event {
            version: Version(self.event_version),
            names: self.names.unwrap_or_else(|| vec![key.event.clone()]),
            request: self.claimed_by.map(RequestId::from_uuid),
            digest: self.digest.map(PayloadDigest::from_uuid),
            time: made,
            expire_time: kept,
            state,
            attempts: attempt.map(|claimed| Attempts {
                claimed,
                uncounted: self.uncounted.map_or(0, count),
                interrupted: self.interrupted.map(count),
            }),
            holder: self.claim_holder,
            detail: self.detail.map(Detail::from_row),
            resumed: ResumedBy::of_row(self.claim_repeated == Some(true), self.claim_resumed_by),
        }
    }
}

/// A count as the database has it.
fn count(count: i32) -> u32 {
    u32::try_from(count).unwrap_or_default()
}
