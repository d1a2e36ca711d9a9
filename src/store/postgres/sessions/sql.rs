//! The statements on sessions. The first parameter of those that write is the
//! moment, or null for the database's clock; the next three arrays are
//! [`Keys`](super::Keys).

/// The row of a session that exists passes to a new holder, if it is free. The
/// token is drawn while the row is locked, so it rises even where advisory locks
/// do nothing.
macro_rules! or_take_over {
    () => {
        "ON CONFLICT (team_id, session_id) DO UPDATE
        SET fencing_token = nextval('session_fencing_tokens'), lease_id = EXCLUDED.lease_id,
            request_id = EXCLUDED.request_id, holder = EXCLUDED.holder,
            labels = EXCLUDED.labels, epic_id = COALESCE(s.epic_id, EXCLUDED.epic_id),
            released = false, repeated = false,
            (acquired_at, expires_at) = (
                SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.acquired_at)
                FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock)
        WHERE (s.released OR s.expires_at <= COALESCE($1::timestamptz, clock_timestamp()))
            AND (s.epic_id = EXCLUDED.epic_id) IS NOT FALSE AND NOT s.waiting"
    };
}

/// Takes the leases of free sessions, which is what nearly all who ask for one
/// come to, and tells what they do not know of them.
macro_rules! take {
    () => {
        concat!(
            "INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
                holder, labels, epic_id, acquired_at, expires_at)
            SELECT a.team_id, a.session_id, nextval('session_fencing_tokens'), a.lease_id,
                a.request_id, a.holder, a.labels, a.epic_id,
                a.at, a.at + a.ttl_micros * interval '1 microsecond'
            FROM (
                SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
                FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[],
                        $7::text[], $8::text[], $9::text[], $10::bigint[])
                    AS a (team_id, session_id, lock_key, lease_id, request_id,
                        holder, labels, epic_id, ttl_micros)
                WHERE pg_try_advisory_xact_lock(a.lock_key) OFFSET 0) AS a ",
            or_take_over!(),
            " RETURNING lease_id, fencing_token, epic_id, acquired_at, expires_at,
                COALESCE($1::timestamptz, clock_timestamp()) AS at"
        )
    };
}

/// Ends live leases, but for repeated ones where those are to be spared, and
/// tells which. Its arrays are the parameters that are named: a `take` beside it
/// has others.
macro_rules! end {
    ($teams:literal, $sessions:literal, $locks:literal, $leases:literal, $spared:literal) => {
        concat!(
            "UPDATE sessions s
            SET released = true, expires_at = COALESCE($1::timestamptz, clock_timestamp())
            FROM (
                SELECT a.* FROM unnest(",
            $teams,
            "::text[], ",
            $sessions,
            "::text[], ",
            $locks,
            "::bigint[], ",
            $leases,
            "::uuid[], ",
            $spared,
            "::boolean[]) WITH ORDINALITY
                    AS a (team_id, session_id, lock_key, lease_id, unless_repeated, ord)
                WHERE pg_try_advisory_xact_lock(a.lock_key) OFFSET 0) AS m
            WHERE s.team_id = m.team_id AND s.session_id = m.session_id
                AND s.lease_id = m.lease_id AND NOT s.released
                AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
                AND NOT (m.unless_repeated AND s.repeated) AND NOT s.waiting
            RETURNING m.ord"
        )
    };
}

pub(in super::super) const TAKE: &str = take!();

pub(in super::super) const END: &str = end!("$2", "$3", "$4", "$5", "$6");

/// [`TAKE`] and [`END`] in one statement, and so one commit. They are never
/// about the same session.
pub(in super::super) const TAKE_AND_END: &str = concat!(
    "WITH taken AS (",
    take!(),
    "), ended AS (",
    end!("$11", "$12", "$13", "$14", "$15"),
    ")
SELECT NULL::bigint AS ord, lease_id, fencing_token, epic_id, acquired_at, expires_at, at
FROM taken
UNION ALL
SELECT ord, NULL, NULL, NULL, NULL, NULL, NULL FROM ended
"
);

/// Takes the leases of free sessions as `take` does, and reads the others'
/// rows. A lease that is granted again, to a repetition of its request, is noted
/// as repeated; `fresh` tells it from one that this very statement, or `take`
/// before it, took in a run that lost its answer.
pub(in super::super) const ACQUIRE: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[],
            $7::text[], $8::text[], $9::text[], $10::bigint[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros, ord)
), mine AS MATERIALIZED (
    SELECT *, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), seen AS MATERIALIZED (
    SELECT m.ord, m.at, s.*, NOT s.released AND s.expires_at > m.at AS live,
        s.request_id = m.request_id AND NOT s.released AND s.expires_at > m.at AS own,
        s.lease_id = m.lease_id AS fresh
    FROM mine m CROSS JOIN LATERAL (
        SELECT * FROM sessions t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
), told_again AS (
    UPDATE sessions s SET repeated = true
    FROM seen n
    WHERE n.own AND NOT n.fresh AND NOT n.repeated
        AND s.team_id = n.team_id AND s.session_id = n.session_id AND s.lease_id = n.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING n.ord
), taken AS (
    INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at)
    SELECT m.team_id, m.session_id, nextval('session_fencing_tokens'), m.lease_id, m.request_id,
        m.holder, m.labels, m.epic_id, m.at, m.at + m.ttl_micros * interval '1 microsecond'
    FROM mine m LEFT JOIN seen n USING (ord)
    WHERE n.live IS NOT TRUE AND (n.epic_id = m.epic_id) IS NOT FALSE AND n.waiting IS NOT TRUE
    ORDER BY m.ord ",
    or_take_over!(),
    " RETURNING s.*
)
SELECT m.ord, COALESCE($1::timestamptz, clock_timestamp()) AS at, t.fencing_token, t.lease_id,
    t.request_id, t.holder, t.labels, t.epic_id, t.acquired_at, t.expires_at, true AS live,
    t.waiting, true AS fresh
FROM taken t JOIN mine m ON m.lease_id = t.lease_id
UNION ALL
SELECT ord, at, fencing_token, lease_id, request_id, holder, labels, epic_id,
    acquired_at, expires_at, live, waiting, own AND fresh
FROM seen n WHERE NOT n.own OR n.fresh OR n.repeated OR n.ord IN (SELECT ord FROM told_again)
"
);

/// Ends live leases as `end` does, and reads what there is to tell of the
/// others. One that lives in the statement's snapshot, and was not there to be
/// ended, another replica changed in between: it is asked again.
pub(in super::super) const RELEASE: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::boolean[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, unless_repeated, ord)
), mine AS MATERIALIZED (
    SELECT * FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), ended AS (",
    end!("$2", "$3", "$4", "$5", "$6"),
    ")
SELECT m.ord, e.ord IS NOT NULL OR COALESCE(s.released, false) AS released
FROM mine m LEFT JOIN ended e USING (ord)
LEFT JOIN sessions s
    ON s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
WHERE e.ord IS NOT NULL
    OR (s.released OR s.expires_at <= COALESCE($1::timestamptz, clock_timestamp())
        OR (m.unless_repeated AND s.repeated)) IS NOT FALSE
"
);

/// Lets live leases run on, but no longer than $7 in all; and reads those that
/// ended without being given back.
pub(in super::super) const RENEW: &str = "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::bigint[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, ttl_micros, ord)
), mine AS MATERIALIZED (
    SELECT * FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), renewed AS (
    UPDATE sessions s
    SET expires_at = LEAST(GREATEST(s.expires_at, s.acquired_at + $7::interval),
        COALESCE($1::timestamptz, clock_timestamp()) + m.ttl_micros * interval '1 microsecond')
    FROM mine m
    WHERE s.team_id = m.team_id AND s.session_id = m.session_id AND s.lease_id = m.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING m.ord, s.*
)
SELECT ord, COALESCE($1::timestamptz, clock_timestamp()) AS at, fencing_token, lease_id,
    request_id, holder, labels, epic_id, acquired_at, expires_at, true AS live, waiting
FROM renewed
UNION ALL
SELECT m.ord, COALESCE($1::timestamptz, clock_timestamp()), s.fencing_token, s.lease_id,
    s.request_id, s.holder, s.labels, s.epic_id, s.acquired_at, s.expires_at, false, s.waiting
FROM mine m LEFT JOIN LATERAL (
    SELECT * FROM sessions t
    WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
    ON s.lease_id = m.lease_id AND NOT s.released
WHERE m.ord NOT IN (SELECT ord FROM renewed)
";

pub(in super::super) const LOOK: &str = "
SELECT a.ord, clock.at, s.fencing_token, s.lease_id, s.request_id, s.holder, s.labels, s.epic_id,
    s.acquired_at, s.expires_at, NOT s.released AND s.expires_at > clock.at AS live, s.waiting
FROM (SELECT COALESCE($3::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock,
    unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (team_id, session_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM sessions t
    WHERE t.team_id = a.team_id AND t.session_id = a.session_id OFFSET 0) AS s
";

/// Takes places in queues. $11: the replica where those wait; it counts as there
/// until $12. Under the session's lock, so that tickets rise in the order in which
/// places were taken. A place that a lost run of this took is found again.
pub(in super::super) const ENQUEUE: &str = "
WITH present AS (
    INSERT INTO replicas AS r (replica, expires_at)
    SELECT $11::uuid, COALESCE($1::timestamptz, clock_timestamp()) + $12::interval
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
    WHERE r.expires_at < EXCLUDED.expires_at - $12::interval / 4
), mine AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[],
            $7::text[], $8::text[], $9::text[], $10::bigint[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros, ord)
    WHERE pg_try_advisory_xact_lock(a.lock_key)
), held AS (
    UPDATE sessions s SET waiting = true
    FROM mine m
    WHERE s.team_id = m.team_id AND s.session_id = m.session_id
        AND (s.waiting OR NOT s.released
            AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp()))
    RETURNING m.ord
), placed AS (
    INSERT INTO session_waiters (team_id, session_id, lease_id, request_id,
        holder, labels, epic_id, ttl_micros, replica)
    SELECT m.team_id, m.session_id, m.lease_id, m.request_id,
        m.holder, m.labels, m.epic_id, m.ttl_micros, $11
    FROM mine m JOIN held USING (ord)
    WHERE (SELECT count(*) FROM session_waiters w
        WHERE w.team_id = m.team_id AND w.session_id = m.session_id) < $13::bigint
    ON CONFLICT (lease_id) DO NOTHING
    RETURNING lease_id
)
SELECT m.ord, m.ord IN (SELECT ord FROM held) AS held,
    m.lease_id IN (SELECT lease_id FROM placed)
        OR EXISTS (SELECT FROM session_waiters w WHERE w.lease_id = m.lease_id) AS waits
FROM mine m
";

/// Hands sessions on that are free, or whose lease $5 is given back by this, to the
/// first in their queue who waits on a replica that is there, for the same work; and
/// notifies that replica. Where nobody waits, a lease that is given back ends, and
/// nobody is looked for any more. $7: the replica that asks.
///
/// `seen` is of the statement's snapshot, from before the lock was had: a row that
/// another changed in between is left alone, and so is its queue. A place is locked
/// before it counts: one that is being given up is passed over.
pub(in super::super) const HAND_ON: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::boolean[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, unless_repeated, ord)
    WHERE pg_try_advisory_xact_lock(a.lock_key)
), seen AS MATERIALIZED (
    SELECT m.ord, m.at, m.lease_id IS NULL AS looks, s.*,
        NOT s.released AND s.expires_at > m.at AS live,
        (NOT s.released AND s.expires_at > m.at AND s.lease_id = m.lease_id
            AND NOT (m.unless_repeated AND s.repeated)) IS TRUE AS given_back
    FROM mine m CROSS JOIN LATERAL (
        SELECT * FROM sessions t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
), due AS MATERIALIZED (
    SELECT n.*, w.ticket, w.lease_id AS next_lease, w.request_id AS next_request,
        w.holder AS next_holder, w.labels AS next_labels, w.epic_id AS next_epic,
        w.ttl_micros, w.replica
    FROM seen n LEFT JOIN LATERAL (
        SELECT * FROM session_waiters w
        WHERE w.team_id = n.team_id AND w.session_id = n.session_id
            AND (w.epic_id = n.epic_id) IS NOT FALSE
            AND (w.replica = $7::uuid OR EXISTS (
                SELECT FROM replicas r WHERE r.replica = w.replica AND r.expires_at > n.at))
        ORDER BY w.ticket LIMIT 1 FOR UPDATE OF w SKIP LOCKED) AS w ON true
    WHERE n.given_back OR NOT n.live
), changed AS (
    UPDATE sessions s
    SET fencing_token = CASE WHEN d.ticket IS NULL THEN s.fencing_token
            ELSE nextval('session_fencing_tokens') END,
        lease_id = COALESCE(d.next_lease, s.lease_id),
        request_id = COALESCE(d.next_request, s.request_id),
        holder = COALESCE(d.next_holder, s.holder),
        labels = COALESCE(d.next_labels, s.labels),
        epic_id = COALESCE(s.epic_id, d.next_epic),
        acquired_at = CASE WHEN d.ticket IS NULL THEN s.acquired_at ELSE d.at END,
        expires_at = CASE WHEN d.ticket IS NULL THEN LEAST(s.expires_at, d.at)
            ELSE d.at + d.ttl_micros * interval '1 microsecond' END,
        released = d.ticket IS NULL AND (s.released OR d.given_back),
        repeated = s.repeated AND d.ticket IS NULL,
        waiting = d.ticket IS NOT NULL AND EXISTS (
            SELECT FROM session_waiters o
            WHERE o.team_id = d.team_id AND o.session_id = d.session_id AND o.ticket <> d.ticket)
    FROM due d
    WHERE s.team_id = d.team_id AND s.session_id = d.session_id
        AND s.lease_id = d.lease_id AND s.fencing_token = d.fencing_token
        AND s.released = d.released AND s.expires_at = d.expires_at
        AND (d.ticket IS NOT NULL OR d.given_back OR s.waiting)
    RETURNING d.ord, d.given_back, d.ticket, d.replica, s.*
), gone AS (
    DELETE FROM session_waiters w USING changed c
    WHERE w.team_id = c.team_id AND w.session_id = c.session_id AND w.ticket = c.ticket
), noted AS (
    UPDATE sessions s SET waiting = true
    FROM seen n
    WHERE s.team_id = n.team_id AND s.session_id = n.session_id AND NOT s.waiting
        AND n.looks AND n.live AND EXISTS (
            SELECT FROM session_waiters w
            WHERE w.team_id = n.team_id AND w.session_id = n.session_id)
)
SELECT ord, given_back, replica, COALESCE($1::timestamptz, clock_timestamp()) AS at,
    fencing_token, lease_id, request_id, holder, labels, epic_id, acquired_at, expires_at,
    ticket IS NOT NULL AS live, waiting,
    CASE WHEN replica <> $7::uuid THEN pg_notify('",
    handed_channel!(),
    "', lease_id::text) END
FROM changed
"
);

pub(in super::super) const LEAVE: &str = "
DELETE FROM session_waiters WHERE lease_id = ANY ($1::uuid[])
";

/// Tells that a replica is there until $3, and forgets those who waited on others
/// that have been gone for a minute.
pub(in super::super) const BEAT: &str = "
WITH present AS (
    INSERT INTO replicas (replica, expires_at)
    VALUES ($2::uuid, COALESCE($1::timestamptz, clock_timestamp()) + $3::interval)
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
), lost AS (
    DELETE FROM replicas
    WHERE expires_at < COALESCE($1::timestamptz, clock_timestamp()) - interval '1 minute'
        AND replica <> $2
    RETURNING replica
)
DELETE FROM session_waiters w USING lost WHERE w.replica = lost.replica
";
