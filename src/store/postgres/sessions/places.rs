//! Places in queues: taking, leaving and keeping them.

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Keys, Locks, Statement, slot};
use crate::{
    domain::{LeaseId, SessionKey},
    store::StoreError,
};

/// Takes places in queues. $11: the replica where those wait; it counts as there
/// until $12. Under the session's lock, so that tickets rise in the order in which
/// places were taken; above those of the session that are there, because a sequence stays
/// behind its rows when they are moved by logical replication. A place that a lost run of this
/// took is found again, or the lease that has come of it since. At most $13 wait, but for those
/// who wait on a replica that has gone.
///
/// A call that is repeated takes the place of the `earlier` one, if $14 says so: one whose replica
/// is there, or that was left less than $15 ago, as far as the replica could tell.
pub(in super::super) const ENQUEUE: &str = concat!(
    "
WITH present AS (
    INSERT INTO oncegate_replicas AS r (replica, expires_at)
    SELECT $11::uuid, COALESCE($1::timestamptz, clock_timestamp()) + $12::interval
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
    WHERE r.expires_at < EXCLUDED.expires_at - $12::interval / 4
), mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[],
            $7::text[], $8::text[], $9::text[], $10::bigint[], $14::boolean[],
            $16::uuid[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros, takes_over, digest, ord)
    WHERE pg_try_advisory_xact_lock(a.lock_key)
), held AS (
    UPDATE oncegate_sessions s SET waiting = true
    FROM mine m
    WHERE ",
    same_key!("session_id", "s", "m"),
    " AND (s.waiting OR NOT s.released AND s.expires_at > m.at)
    RETURNING m.ord, s.lease_id = m.lease_id AND NOT s.released AND s.expires_at > m.at AS own
), earlier AS MATERIALIZED (
    SELECT m.ord, w.ticket, w.lease_id, w.replica
    FROM mine m JOIN held h USING (ord) CROSS JOIN LATERAL (
        SELECT * FROM oncegate_waiters t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id
            AND t.request_id = m.request_id AND t.digest IS NOT DISTINCT FROM m.digest
            AND (t.left_at > m.at - $15::interval OR t.replica = $11 OR EXISTS (
                SELECT FROM oncegate_replicas r
                WHERE r.replica = t.replica AND r.expires_at > m.at - $15::interval))
        ORDER BY t.ticket LIMIT 1 FOR UPDATE OF t) AS w
    WHERE NOT h.own AND (
        SELECT true FROM oncegate_waiters t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id
            AND t.lease_id = m.lease_id) IS NULL
), taken_over AS (
    UPDATE oncegate_waiters w
    SET lease_id = m.lease_id, holder = m.holder, labels = m.labels, epic_id = m.epic_id,
        ttl_micros = m.ttl_micros, replica = $11, left_at = NULL
    FROM mine m JOIN earlier e USING (ord)
    WHERE ",
    same_key!("session_id", "w", "m"),
    " AND w.ticket = e.ticket AND m.takes_over
    RETURNING m.ord, w.ticket
), placed AS (
    INSERT INTO oncegate_waiters (team_id, session_id, ticket, lease_id, request_id,
        holder, labels, epic_id, ttl_micros, replica, digest)
    SELECT m.team_id, m.session_id, GREATEST(nextval('oncegate_tickets'), (
            SELECT max(w.ticket) + 1 FROM oncegate_waiters w
            WHERE w.team_id = m.team_id AND w.session_id = m.session_id)),
        m.lease_id, m.request_id,
        m.holder, m.labels, m.epic_id, m.ttl_micros, $11, m.digest
    FROM mine m JOIN held h USING (ord)
    WHERE NOT h.own AND m.ord NOT IN (SELECT ord FROM earlier) AND (
        SELECT count(*) FROM oncegate_waiters w
        WHERE w.team_id = m.team_id AND w.session_id = m.session_id
            AND (w.replica = $11 OR EXISTS (
                SELECT FROM oncegate_replicas r WHERE r.replica = w.replica AND r.expires_at > m.at)))
        < $13::bigint
    ON CONFLICT (team_id, session_id, lease_id) DO NOTHING
    RETURNING lease_id, ticket
)
SELECT m.ord, h.ord IS NOT NULL AS held, h.own IS TRUE AS own,
    COALESCE(p.ticket, o.ticket, w.ticket) AS ticket, e.lease_id AS earlier,
    CASE WHEN p.ticket IS NOT NULL OR o.ticket IS NOT NULL THEN ",
    notify_session!("m.lock_key", "$11"),
    " END,
    CASE WHEN o.ticket IS NOT NULL AND e.replica <> $11 THEN pg_notify(",
    hint_channel!(),
    ", 't' || e.lease_id) END
FROM mine m LEFT JOIN held h USING (ord) LEFT JOIN earlier e USING (ord)
LEFT JOIN taken_over o USING (ord) LEFT JOIN placed p ON p.lease_id = m.lease_id
LEFT JOIN LATERAL (
    SELECT ticket FROM oncegate_waiters t
    WHERE t.team_id = m.team_id AND t.session_id = m.session_id AND t.lease_id = m.lease_id
    OFFSET 0) AS w ON true
"
);

/// Deletes places, and returns which existed. $5: the replica that asks.
pub(in super::super) const LEAVE: &str = concat!(
    "
DELETE FROM oncegate_waiters w
USING unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[]) WITH ORDINALITY
    AS a (team_id, session_id, lock_key, lease_id, ord)
WHERE ",
    same_key!("session_id", "w", "a"),
    " AND w.lease_id = a.lease_id
RETURNING a.ord, ",
    notify_session!("a.lock_key", "$5")
);

/// Keeps places on no replica, and returns which existed. The rest as in [`LEAVE`]; $6:
/// the moment.
pub(in super::super) const KEEP: &str = concat!(
    "
UPDATE oncegate_waiters w
SET replica = '00000000-0000-0000-0000-000000000000',
    left_at = COALESCE($6::timestamptz, clock_timestamp())
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[]) WITH ORDINALITY
    AS a (team_id, session_id, lock_key, lease_id, ord)
WHERE ",
    same_key!("session_id", "w", "a"),
    " AND w.lease_id = a.lease_id
RETURNING a.ord, ",
    notify_session!("a.lock_key", "$5")
);

/// Heartbeat: the replica is present until $3. Deletes the waiters of other replicas
/// that have been gone for a minute, and places that were left $4 ago. No other counts as there
/// for longer than $3 from now: one that is written so was before the clock was stepped back.
/// Answers the places of those who wait on this one.
pub(in super::super) const BEAT: &str = "
WITH present AS (
    INSERT INTO oncegate_replicas (replica, expires_at)
    VALUES ($2::uuid, COALESCE($1::timestamptz, clock_timestamp()) + $3::interval)
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
), overlong AS (
    SELECT replica FROM oncegate_replicas
    WHERE expires_at > COALESCE($1::timestamptz, clock_timestamp()) + $3::interval
        AND replica <> $2
    FOR UPDATE SKIP LOCKED
), shortened AS (
    UPDATE oncegate_replicas r
    SET expires_at = COALESCE($1::timestamptz, clock_timestamp()) + $3::interval
    FROM overlong o WHERE r.replica = o.replica
), lost AS (
    DELETE FROM oncegate_replicas
    WHERE expires_at < COALESCE($1::timestamptz, clock_timestamp()) - interval '1 minute'
        AND replica <> $2
    RETURNING replica
), forgotten AS (
    DELETE FROM oncegate_waiters w USING lost WHERE w.replica = ANY (ARRAY[lost.replica])
), left_behind AS (
    DELETE FROM oncegate_waiters
    WHERE replica = '00000000-0000-0000-0000-000000000000'
        AND left_at <= COALESCE($1::timestamptz, clock_timestamp()) - $4::interval
)
SELECT team_id, session_id, lease_id FROM oncegate_waiters WHERE replica = $2
";

/// Places in queues that are left, as four of a statement's arrays.
pub(super) struct Left<'a> {
    keys: Keys<'a>,
    leases: Vec<Uuid>,
}

impl<'a> Left<'a> {
    pub(super) fn of(locks: Locks, places: &[(&'a SessionKey, LeaseId)]) -> Self {
        Self {
            keys: Keys::of(locks, places.iter().map(|(key, _)| *key)),
            leases: places.iter().map(|(_, lease)| lease.as_uuid()).collect(),
        }
    }

    pub(super) fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        self.keys.bind(statement).bind(&self.leases)
    }

    /// Whether each was there, by the rows of a statement.
    pub(super) fn found(&self, rows: Vec<PgRow>) -> Result<Vec<bool>, StoreError> {
        let mut found = vec![false; self.leases.len()];
        for row in rows {
            *slot(&mut found, row.try_get("ord"))? = true;
        }
        Ok(found)
    }
}
