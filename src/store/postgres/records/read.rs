//! Reading records.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::json::{micros, text, value};
use crate::{
    domain::{
        Attempts, Detail, FencingToken, Labels, LeaseId, PayloadDigest, ProcessedBy, RequestId,
        ResumedBy, SessionKey, Timestamp, TurnResult, limits::CLAIM_MEMORY,
    },
    rules::{Event, Latest, Session, Snapshot, State, Version, Waiter, Wanted},
    store::{
        StoreError,
        postgres::{
            steps::{Overlong, claim_end},
            timestamp::PgTimestamp,
        },
    },
};

/// Reads sessions and events, all as of one snapshot. $1: the moment, or null for the database's
/// clock. $2: sessions, each with its place, and whether its queue is wanted even if nobody waits.
/// $3: names of events, each with its place, and whether its result is wanted. $4: this replica: it
/// is there, whatever its latest heartbeat says.
///
/// LATERAL with OFFSET 0 leaves the planner one way, by the key.
pub(in super::super) const READ: &str = concat!(
    "
WITH clock AS MATERIALIZED (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at,
        (SELECT floor FROM oncegate_fence WHERE id) AS floor
)
SELECT true AS is_session, a.place, clock.at, clock.floor,
    CASE WHEN s.team_id IS NOT NULL THEN json_build_array(s.version, s.fencing_token, s.lease_id,
        s.request_id, s.holder, s.labels, s.epic_id, ",
    micros!("s.acquired_at"),
    ", ",
    micros!("s.expires_at"),
    ", s.released, s.repeated, s.resumed_by, s.waiting, s.ttl_micros)::text END AS record,
    CASE WHEN s.waiting OR a.queue THEN (
        SELECT json_agg(json_build_array(w.ticket, w.lease_id, w.request_id, w.holder, w.labels,
            w.epic_id, w.ttl_micros, w.digest, ",
    micros!("w.left_at"),
    ", w.is_there) ORDER BY w.ticket)::text
        FROM (
            SELECT t.*, t.replica = $4 OR ((SELECT r.expires_at FROM oncegate_replicas r
                WHERE r.replica = t.replica) > clock.at) IS TRUE AS is_there
            FROM oncegate_waiters t
            WHERE t.team_id = a.team AND t.session_id = a.id OFFSET 0) AS w) END AS queue
FROM clock CROSS JOIN json_to_recordset($2::json)
        AS a (place bigint, team text, id text, queue boolean)
    LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version, t.* FROM oncegate_sessions t
        WHERE t.team_id = a.team AND t.session_id = a.id OFFSET 0) AS s ON true
UNION ALL
SELECT false, a.place, clock.at, clock.floor, json_build_array(e.version, e.event_id, ",
    micros!("e.processed_at"),
    ", ",
    micros!("e.expires_at"),
    ", e.request_id, ",
    micros!("e.claimed_until"),
    ", e.attempt, e.holder, to_json(e.names), e.digest, e.detail, e.uncounted, e.interrupted,
        e.repeated, e.resumed_by, e.result IS NOT NULL,
        e.rejected_at IS NOT DISTINCT FROM e.processed_at,
        CASE WHEN a.result THEN encode(e.result, 'hex') END,
        CASE WHEN a.result THEN e.result_type END)::text, NULL
FROM clock CROSS JOIN json_to_recordset($3::json)
        AS a (place bigint, team text, id text, result boolean)
    CROSS JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version, t.* FROM processed_events t
        WHERE t.team_id = a.team AND t.event_id = a.id OFFSET 0) AS e
UNION ALL
SELECT NULL, NULL, at, floor, NULL, NULL FROM clock
"
);

/// What is asked for, as [`READ`] takes it.
pub(super) fn asked(wanted: &Wanted) -> Result<(String, String), StoreError> {
    let sessions = wanted.sessions.iter().enumerate().map(|(place, (key, queue))| {
        json!({"place": place, "team": key.team, "id": key.session, "queue": queue})
    });
    let events = wanted.events.iter().enumerate().map(|(place, (key, result))| {
        json!({"place": place, "team": key.team, "id": key.event, "result": result})
    });
    Ok((text(&sessions.collect::<Vec<_>>())?, text(&events.collect::<Vec<_>>())?))
}

/// What was read.
pub(super) struct Found<'a> {
    pub(super) snapshot: Snapshot,
    /// Leases and claims that are written to end later than they count.
    pub(super) leases: Vec<(&'a SessionKey, LeaseId)>,
    pub(super) claims: Overlong<'a>,
}

/// What the rows of [`READ`] say.
pub(super) fn found<'a>(wanted: &'a Wanted, rows: &[PgRow]) -> Result<Found<'a>, StoreError> {
    let mut snapshot = Snapshot::empty(Timestamp::from_micros(0));
    let (mut leases, mut claims) = (Vec::new(), Overlong::default());
    let sessions: Vec<_> = wanted.sessions.keys().collect();
    let events: Vec<_> = wanted.events.keys().collect();
    for row in rows {
        let head = || {
            let place: Option<i64> = row.try_get("place")?;
            let at = row.try_get::<PgTimestamp, _>("at")?.0;
            Ok((row.try_get("is_session")?, place, at, row.try_get("floor")?))
        };
        let (is_session, place, at, floor): (Option<bool>, _, _, Option<i64>) =
            head().map_err(|error: sqlx::Error| StoreError::internal(error))?;
        (snapshot.now, snapshot.floor) = (at, FencingToken(floor.unwrap_or_default()));
        let Some((is_session, place)) = is_session.zip(place) else { continue };
        let place = usize::try_from(place).map_err(StoreError::internal)?;
        let unexpected = || StoreError::internal("unexpected row in the answer");
        if is_session {
            let latest: Option<SessionRecord> = value(row, "record")?;
            let queue: Option<Vec<PlaceRecord>> = value(row, "queue")?;
            let key = *sessions.get(place).ok_or_else(unexpected)?;
            let written = latest.as_ref().map(SessionRecord::expires);
            let latest = latest.map(|record| record.latest(at));
            let counts = latest.as_ref().map(|latest| (latest.expire_time, latest.lease));
            if let Some((written, (counts, lease))) = written.zip(counts)
                && counts < written
            {
                leases.push((key, lease));
            }
            let session = Session {
                latest,
                queue: queue.unwrap_or_default().into_iter().map(PlaceRecord::waiter).collect(),
            };
            snapshot.sessions.insert(key.clone(), session);
        } else if let Some(record) = value::<EventRecord>(row, "record")? {
            let key = *events.get(place).ok_or_else(unexpected)?;
            let written = record.until();
            let event = record.event(at)?;
            if let (Some(written), Some(request)) = (written, event.request)
                && event.ends() < written
            {
                claims.add(&key.team, &event.names, request.as_uuid());
            }
            snapshot.events.insert(key.clone(), event);
        }
    }
    Ok(Found { snapshot, leases, claims })
}

/// A session's columns, in the order of [`READ`].
#[derive(serde::Deserialize)]
struct SessionRecord(
    i64,
    i64,
    Uuid,
    Uuid,
    String,
    String,
    Option<String>,
    i64,
    i64,
    bool,
    bool,
    Option<Uuid>,
    bool,
    Option<i64>,
);

impl SessionRecord {
    /// When the lease ends, as it is written.
    const fn expires(&self) -> Timestamp {
        Timestamp::from_micros(self.8)
    }

    fn latest(self, now: Timestamp) -> Latest {
        let Self(version, token, lease, request, holder, labels, epic, acquired, ..) = self;
        let Self(.., expires, released, repeated, resumed_by, waiting, ttl) = self;
        let (acquired, expires) =
            (Timestamp::from_micros(acquired), Timestamp::from_micros(expires));
        let ttl = ttl.map(|ttl| Duration::from_micros(ttl.unsigned_abs()));
        let written_for = ttl.unwrap_or_else(|| expires.since(acquired));
        Latest {
            version: Version(version),
            lease: LeaseId::from_uuid(lease),
            token: FencingToken(token),
            holder,
            labels: Labels::from_json(&labels),
            epic,
            request: RequestId::from_uuid(request),
            // It cannot be later than now, unless the clock was stepped back since.
            acquire_time: acquired.min(now),
            expire_time: if released { expires } else { expires.trusted(written_for, now) },
            released,
            ttl,
            resumed: ResumedBy::of_row(repeated, resumed_by),
            waiting,
        }
    }
}

/// The columns of a place in a queue, in the order of [`READ`].
#[derive(serde::Deserialize)]
struct PlaceRecord(
    i64,
    Uuid,
    Uuid,
    String,
    String,
    Option<String>,
    i64,
    Option<Uuid>,
    Option<i64>,
    bool,
);

impl PlaceRecord {
    fn waiter(self) -> Waiter {
        let Self(ticket, lease, request, holder, labels, epic, ttl, digest, left_at, is_there) =
            self;
        Waiter {
            ticket: Some(ticket),
            lease: LeaseId::from_uuid(lease),
            request: RequestId::from_uuid(request),
            holder,
            labels: Labels::from_json(&labels),
            epic,
            ttl: Duration::from_micros(ttl.unsigned_abs()),
            digest: digest.map(PayloadDigest::from_uuid),
            left_at: left_at.map(Timestamp::from_micros),
            is_there,
        }
    }
}

/// An event's columns, in the order of [`READ`].
#[derive(serde::Deserialize)]
struct EventRecord(
    i64,
    String,
    i64,
    i64,
    Option<Uuid>,
    Option<i64>,
    Option<u32>,
    Option<String>,
    Option<Vec<String>>,
    Option<Uuid>,
    Option<String>,
    Option<u32>,
    Option<u32>,
    Option<bool>,
    Option<Uuid>,
    bool,
    bool,
    Option<String>,
    Option<String>,
);

impl EventRecord {
    /// When the claim lapses, as it is written.
    fn until(&self) -> Option<Timestamp> {
        self.5.map(Timestamp::from_micros)
    }

    fn event(self, now: Timestamp) -> Result<Event, StoreError> {
        let Self(version, event_id, time, expires, request, until, attempt, holder, names, ..) =
            self;
        let Self(.., digest, detail, uncounted, interrupted, repeated, resumed_by, _, _, _, _) =
            self;
        let Self(.., has_result, is_rejected, result, type_name) = self;
        let (time, expires) = (Timestamp::from_micros(time), Timestamp::from_micros(expires));
        let until = until.map(Timestamp::from_micros);
        // A claim that runs cannot be made later than now, unless the clock was stepped back since.
        let (made, kept) = match until {
            Some(until) if until > time => (time.min(now), expires.min(now.plus(CLAIM_MEMORY))),
            _ => (time, expires),
        };
        let state = match until {
            Some(until) => State::Claimed(claim_end(until, time, expires, now)),
            None => State::Handled(ProcessedBy::of_row(attempt, has_result, is_rejected), {
                let bytes = result.map(|result| bytes(&result)).transpose()?;
                bytes.map(|bytes| Arc::new(TurnResult { bytes, type_name }))
            }),
        };
        Ok(Event {
            version: Version(version),
            names: names.unwrap_or_else(|| vec![event_id]),
            request: request.map(RequestId::from_uuid),
            digest: digest.map(PayloadDigest::from_uuid),
            time: made,
            expire_time: kept,
            state,
            attempts: attempt.map(|claimed| Attempts {
                claimed,
                uncounted: uncounted.unwrap_or_default(),
                interrupted,
            }),
            holder,
            detail: detail.map(Detail::from_row),
            resumed: ResumedBy::of_row(repeated == Some(true), resumed_by),
        })
    }
}

/// Bytes as JSON carries them.
fn bytes(hex: &str) -> Result<Vec<u8>, StoreError> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |digits: &[u8]| {
        let text = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Option<Vec<u8>> = digits.map(byte).collect();
    bytes.ok_or_else(|| StoreError::internal("a result is not hexadecimal"))
}
