//! The replicas on which callers wait.

/// Heartbeat: the replica is present until $3. Deletes the waiters of other replicas
/// that have been gone for a minute, and places that were left $4 ago. No other counts as there
/// for longer than $3 from now: one that is written so was before the clock was stepped back.
/// Returns the places of callers that wait on this one.
pub(in super::super) const HEARTBEAT: &str = "
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
), gone AS MATERIALIZED (
    SELECT replica FROM oncegate_replicas
    WHERE expires_at < COALESCE($1::timestamptz, clock_timestamp()) - interval '1 minute'
        AND replica <> $2
    FOR UPDATE SKIP LOCKED
), nobodys AS MATERIALIZED (
    -- A place that is locked is changed just now, by a statement that may wait for this one.
    SELECT w.* FROM (
        SELECT replica FROM gone
        UNION ALL SELECT '00000000-0000-0000-0000-000000000000'::uuid) AS g,
    LATERAL (
        SELECT t.team_id, t.session_id, t.ticket FROM oncegate_waiters t
        WHERE t.replica = g.replica AND (t.left_at IS NULL
            OR t.left_at <= COALESCE($1::timestamptz, clock_timestamp()) - $4::interval)
        FOR UPDATE SKIP LOCKED) AS w
), forgotten AS (
    DELETE FROM oncegate_waiters w USING nobodys n
    WHERE w.team_id = ANY (ARRAY[n.team_id]) AND w.session_id = n.session_id
        AND w.ticket = n.ticket
), lost AS (
    -- Once none of its places is left.
    DELETE FROM oncegate_replicas r USING gone
    WHERE r.replica = ANY (ARRAY[gone.replica])
        AND NOT EXISTS (SELECT FROM oncegate_waiters w WHERE w.replica = r.replica)
)
SELECT team_id, session_id, lease_id FROM oncegate_waiters WHERE replica = $2
";
