//! The statements on sessions. The first parameter of those that write is the
//! moment, or null for the database's clock; the next three arrays are
//! [`Keys`](super::Keys).

use crate::store::postgres::{
    fence::{new_token, next_token, token_of},
    steps::{lease_ttl, run_on},
};

/// The row of a session that exists passes to a new holder, if it is free.
macro_rules! or_take_over {
    () => {
        concat!(
            "ON CONFLICT (team_id, session_id) DO UPDATE
        SET fencing_token = ",
            next_token!("s", "EXCLUDED.fencing_token"),
            ", lease_id = EXCLUDED.lease_id, ttl_micros = EXCLUDED.ttl_micros,
            request_id = EXCLUDED.request_id, holder = EXCLUDED.holder,
            labels = EXCLUDED.labels, epic_id = COALESCE(s.epic_id, EXCLUDED.epic_id),
            released = false, repeated = false, resumed_by = NULL,
            (acquired_at, expires_at) = (
                SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.acquired_at)
                FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock)
        WHERE (s.released OR s.expires_at <= COALESCE($1::timestamptz, clock_timestamp()))
            AND (s.epic_id = EXCLUDED.epic_id) IS NOT FALSE AND NOT s.waiting"
        )
    };
}

pub(in super::super) use or_take_over;

/// Takes the leases of free sessions, which is what nearly all who ask for one
/// come to, and tells what they do not know of them.
macro_rules! take {
    () => {
        concat!(
            "INSERT INTO oncegate_sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
                holder, labels, epic_id, acquired_at, expires_at, ttl_micros)
            SELECT a.team_id, a.session_id, ",
            new_token!("a.at"),
            ", a.lease_id,
                a.request_id, a.holder, a.labels, a.epic_id,
                a.at, a.at + a.ttl_micros * interval '1 microsecond', a.ttl_micros
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

/// Ends live leases, but for resumed ones where those are to be spared, and
/// tells which. Its arrays are the parameters that are named: a `take` beside it
/// has others.
macro_rules! end {
    ($teams:literal, $sessions:literal, $locks:literal, $leases:literal, $spared:literal) => {
        concat!(
            "UPDATE oncegate_sessions s
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
            "::uuid[]) WITH ORDINALITY
                    AS a (team_id, session_id, lock_key, lease_id, unless_resumed, ord)
                WHERE pg_try_advisory_xact_lock(a.lock_key) OFFSET 0) AS m
            WHERE ",
            same_key!("session_id", "s", "m"),
            " AND s.lease_id = m.lease_id AND NOT s.released
                AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
                AND ",
            unless_resumed!("s", "m.unless_resumed"),
            " AND NOT s.waiting
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
/// as resumed; `fresh` tells it from one that this very statement, or `take`
/// before it, took in a run that lost its answer.
pub(in super::super) const ACQUIRE: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[],
            $7::text[], $8::text[], $9::text[], $10::bigint[], $11::uuid[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, request_id,
            holder, labels, epic_id, ttl_micros, stream, ord)
), mine AS MATERIALIZED (
    SELECT *, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), seen AS MATERIALIZED (
    SELECT m.ord, m.at, m.stream, s.*, NOT s.released AND s.expires_at > m.at AS live,
        s.request_id = m.request_id AND NOT s.released AND s.expires_at > m.at AS own,
        s.lease_id = m.lease_id AS fresh
    FROM mine m CROSS JOIN LATERAL (
        SELECT * FROM oncegate_sessions t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
), told_again AS (
    UPDATE oncegate_sessions s SET ",
    repeated_by!("n"),
    "
    FROM seen n
    WHERE n.own AND NOT n.fresh AND ",
    same_key!("session_id", "s", "n"),
    " AND s.lease_id = n.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING n.ord
), taken AS (
    INSERT INTO oncegate_sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at, ttl_micros)
    SELECT m.team_id, m.session_id, ",
    new_token!("m.at"),
    ", m.lease_id, m.request_id,
        m.holder, m.labels, m.epic_id, m.at, m.at + m.ttl_micros * interval '1 microsecond',
        m.ttl_micros
    FROM mine m LEFT JOIN seen n USING (ord)
    WHERE n.live IS NOT TRUE AND (n.epic_id = m.epic_id) IS NOT FALSE AND n.waiting IS NOT TRUE
    ORDER BY m.ord ",
    or_take_over!(),
    " RETURNING s.*
)
SELECT m.ord, COALESCE($1::timestamptz, clock_timestamp()) AS at, t.fencing_token, t.lease_id,
    t.request_id, t.holder, t.labels, t.epic_id, t.acquired_at, t.expires_at, true AS live,
    t.waiting, NULL::uuid[] AS queue, true AS fresh, t.ttl_micros
FROM taken t JOIN mine m ON m.lease_id = t.lease_id
UNION ALL
SELECT ord, at, fencing_token, lease_id, request_id, holder, labels, epic_id,
    acquired_at, expires_at, live, waiting, ",
    queue!("n", "n.at"),
    ", own AND fresh, ttl_micros
FROM seen n WHERE NOT n.own OR n.fresh OR n.ord IN (SELECT ord FROM told_again)
"
);

/// Tells of leases that are not there to be ended whether they were given back, or
/// are to be spared. One that lives, another replica changed in between: it is asked
/// again.
pub(in super::super) const RELEASE: &str = concat!(
    "
SELECT m.ord, COALESCE(s.released, false) AS released
FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[]) WITH ORDINALITY
    AS m (team_id, session_id, lock_key, lease_id, unless_resumed, ord)
LEFT JOIN LATERAL (
    SELECT * FROM oncegate_sessions t
    WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
    ON s.lease_id = m.lease_id
WHERE (s.released OR s.expires_at <= COALESCE($1::timestamptz, clock_timestamp())
    OR NOT ",
    unless_resumed!("s", "m.unless_resumed"),
    ") IS NOT FALSE
"
);

/// Lets live leases run on, but no longer than $7 in all, unless another stream than the
/// one in $8 has taken them over; and reads those that ended without being given back.
pub(in super::super) const RENEW: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT a.* FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::bigint[],
            $8::uuid[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, ttl_micros, stream, ord)
), mine AS MATERIALIZED (
    SELECT * FROM asked WHERE pg_try_advisory_xact_lock(lock_key)
), renewed AS (
    UPDATE oncegate_sessions s
    SET (acquired_at, expires_at, ttl_micros) = (
        SELECT ",
    run_on!("$7"),
    ", m.ttl_micros
        FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock),
        ",
    renewed_by!("s", "m.stream"),
    "
    FROM mine m
    WHERE ",
    same_key!("session_id", "s", "m"),
    " AND s.lease_id = m.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
        AND NOT ",
    is_replaced!("s", "m.stream"),
    "
    RETURNING m.ord, s.*
)
SELECT ord, COALESCE($1::timestamptz, clock_timestamp()) AS at, fencing_token, lease_id,
    request_id, holder, labels, epic_id, acquired_at, expires_at, true AS live, waiting,
    NULL::uuid[] AS queue, ttl_micros, false AS resumed
FROM renewed
UNION ALL
SELECT m.ord, COALESCE($1::timestamptz, clock_timestamp()), s.fencing_token, s.lease_id,
    s.request_id, s.holder, s.labels, s.epic_id, s.acquired_at, s.expires_at, false, s.waiting,
    NULL, s.ttl_micros, s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
FROM mine m LEFT JOIN LATERAL (
    SELECT * FROM oncegate_sessions t
    WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
    ON s.lease_id = m.lease_id AND NOT s.released
WHERE m.ord NOT IN (SELECT ord FROM renewed)
    -- One that another replica changed in between is asked again.
    AND (s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
        AND NOT ",
    is_replaced!("s", "m.stream"),
    ") IS NOT TRUE
"
);

pub(in super::super) const LOOK: &str = concat!(
    "
SELECT a.ord, clock.at, s.fencing_token, s.lease_id, s.request_id, s.holder, s.labels, s.epic_id,
    s.acquired_at, s.expires_at, NOT s.released AND s.expires_at > clock.at AS live, s.waiting,
    s.ttl_micros, ",
    queue!("s", "clock.at"),
    "
FROM (SELECT COALESCE($3::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock,
    unnest($1::text[], $2::text[]) WITH ORDINALITY AS a (team_id, session_id, ord)
CROSS JOIN LATERAL (
    SELECT * FROM oncegate_sessions t
    WHERE t.team_id = a.team_id AND t.session_id = a.session_id OFFSET 0) AS s
"
);

/// Hands sessions on that are free, or whose lease $5 is given back by this, to the
/// first in their queue who waits on a replica that is there, for the same work. Where
/// nobody waits, a lease that is given back ends, and nobody is looked for any more.
/// $7: the replica that asks.
///
/// `seen` is of the statement's snapshot, from before the lock was had, and so is what
/// is seen of the queue. A row that another has written in between, as whoever takes a
/// place does, is left alone. A place is locked before it counts: one that is being
/// given up is passed over.
///
/// `mine` are the sessions, locked, after `WITH`.
macro_rules! hand_on {
    ($mine:expr) => {
        concat!(
            $mine,
            ", seen AS MATERIALIZED (
    SELECT m.ord, m.at, s.*,
        NOT s.released AND s.expires_at > m.at AS live,
        (NOT s.released AND s.expires_at > m.at AND s.lease_id = m.lease_id
            AND ",
            unless_resumed!("s", "m.unless_resumed"),
            ") IS TRUE AS given_back
    FROM mine m CROSS JOIN LATERAL (
        SELECT t.xmin AS version, t.* FROM oncegate_sessions t
        WHERE t.team_id = m.team_id AND t.session_id = m.session_id OFFSET 0) AS s
), due AS MATERIALIZED (
    SELECT n.*, w.ticket, w.lease_id AS next_lease, w.request_id AS next_request,
        w.holder AS next_holder, w.labels AS next_labels, w.epic_id AS next_epic,
        w.ttl_micros AS next_ttl, w.replica
    FROM seen n LEFT JOIN LATERAL (
        SELECT * FROM oncegate_waiters w
        WHERE w.team_id = n.team_id AND w.session_id = n.session_id
            AND (w.epic_id = n.epic_id) IS NOT FALSE
            AND (w.replica = $7::uuid OR EXISTS (
                SELECT FROM oncegate_replicas r WHERE r.replica = w.replica AND r.expires_at > n.at))
        ORDER BY w.ticket LIMIT 1 FOR UPDATE OF w SKIP LOCKED) AS w ON true
    WHERE n.given_back OR NOT n.live
), changed AS (
    UPDATE oncegate_sessions s
    SET fencing_token = CASE WHEN d.ticket IS NULL THEN s.fencing_token
            ELSE ",
            next_token!("s", new_token!("d.at")),
            " END,
        lease_id = COALESCE(d.next_lease, s.lease_id),
        request_id = COALESCE(d.next_request, s.request_id),
        holder = COALESCE(d.next_holder, s.holder),
        labels = COALESCE(d.next_labels, s.labels),
        epic_id = COALESCE(s.epic_id, d.next_epic),
        acquired_at = CASE WHEN d.ticket IS NULL THEN s.acquired_at ELSE d.at END,
        expires_at = CASE WHEN d.ticket IS NULL THEN LEAST(s.expires_at, d.at)
            ELSE d.at + d.next_ttl * interval '1 microsecond' END,
        ttl_micros = COALESCE(d.next_ttl, s.ttl_micros),
        released = d.ticket IS NULL AND (s.released OR d.given_back),
        repeated = s.repeated AND d.ticket IS NULL,
        resumed_by = CASE WHEN d.ticket IS NULL THEN s.resumed_by END,
        waiting = d.ticket IS NOT NULL AND EXISTS (
            SELECT FROM oncegate_waiters o
            WHERE o.team_id = d.team_id AND o.session_id = d.session_id AND o.ticket <> d.ticket)
    FROM due d
    WHERE ",
    same_key!("session_id", "s", "d"),
    " AND s.xmin = d.version
        AND (d.ticket IS NOT NULL OR d.given_back OR d.waiting)
    RETURNING d.ord, d.given_back, d.ticket, d.replica, s.*
), gone AS (
    DELETE FROM oncegate_waiters w USING changed c
    WHERE ",
    same_key!("session_id", "w", "c"),
    " AND w.ticket = c.ticket
)"
        )
    };
}

macro_rules! asked_for {
    () => {
        "
WITH mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, unless_resumed, ord)
    WHERE pg_try_advisory_xact_lock(a.lock_key)
)"
    };
}

/// What is told of a session that was handed on, whose replica is notified by this.
macro_rules! handed {
    ($queue:expr) => {
        concat!(
            "
SELECT c.ord, c.given_back, clock.at, c.fencing_token, c.lease_id, c.request_id, c.holder,
    c.labels, c.epic_id, c.acquired_at, c.expires_at, c.ticket IS NOT NULL AS live, c.waiting,
    c.ttl_micros, ",
            $queue,
            ",
    CASE WHEN c.replica <> $7::uuid THEN pg_notify(",
            hint_channel!(),
            ", c.lease_id::text) END
FROM changed c, (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at OFFSET 0) AS clock
"
        )
    };
}

pub(in super::super) use hand_on;

/// Gives leases back, and hands their sessions on. Tells of those that were there.
pub(in super::super) const GIVE_BACK: &str =
    concat!(hand_on!(asked_for!()), handed!("NULL::uuid[] AS queue"));

/// Hands sessions on that are free, and tells of all how they stand then; of one that
/// has no row, a row of nulls. One that another has just written is told nothing of.
pub(in super::super) const HAND_ON: &str = concat!(
    hand_on!(asked_for!()),
    ", noted AS (
    UPDATE oncegate_sessions s SET waiting = true
    FROM seen n
    WHERE ",
    same_key!("session_id", "s", "n"),
    " AND NOT s.waiting AND n.live AND (
        SELECT true FROM oncegate_waiters w
        WHERE w.team_id = n.team_id AND w.session_id = n.session_id LIMIT 1)
)",
    handed!(queue!("c", "clock.at", " AND w.ticket IS DISTINCT FROM c.ticket")),
    "UNION ALL
SELECT m.ord, false, m.at, n.fencing_token, n.lease_id, n.request_id, n.holder,
    n.labels, n.epic_id, n.acquired_at, n.expires_at, n.live, n.waiting, n.ttl_micros, ",
    queue!("n", "n.at"),
    ", NULL
FROM mine m LEFT JOIN seen n USING (ord)
WHERE m.ord NOT IN (
    SELECT ord FROM due WHERE ticket IS NOT NULL OR given_back OR waiting)
"
);
