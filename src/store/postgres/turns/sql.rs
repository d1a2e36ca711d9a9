//! The statements on turns. Each decides on an event and a session at once. $1: the
//! moment, or null for the database's clock.
//!
//! An event has no advisory lock: its row decides, as for marks. A session has, and
//! its row is locked besides where a statement writes to the event because of it.

use super::super::sessions::sql::{hand_on, or_take_over};

/// A session's columns, as a turn's row tells them.
macro_rules! session_columns {
    ($row:literal, $live:literal, $queue:expr) => {
        concat!(
            $row,
            ".fencing_token, ",
            $row,
            ".lease_id, ",
            $row,
            ".request_id AS session_request, ",
            $row,
            ".holder AS session_holder, ",
            $row,
            ".labels, ",
            $row,
            ".epic_id, ",
            $row,
            ".acquired_at, ",
            $row,
            ".expires_at AS lease_expires_at, ",
            $live,
            " AS live, ",
            $row,
            ".waiting, ",
            $queue
        )
    };
}

/// The row of a turn's session, where the turn has one.
macro_rules! session_of {
    ($turn:literal) => {
        concat!(
            "LEFT JOIN LATERAL (
    SELECT * FROM sessions t
    WHERE t.team_id = ",
            $turn,
            ".team_id AND t.session_id = ",
            $turn,
            ".session_id OFFSET 0) AS s ON true"
        )
    };
}

/// Begins turns of events that have no row in sessions that are free, which is what
/// nearly all who ask for one come to. Its parameters are those of [`BEGIN`]. Tells which
/// leases were taken, and which events were claimed: a lease without its event is to be
/// given back.
///
/// `IS TRUE` keeps the planner from a join, which it would make by comparing each with
/// each, for it expects one.
pub(in super::super) const BEGIN_NEW: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[], $6::text[], $7::integer[],
            $8::text[], $9::bigint[], $10::uuid[], $11::uuid[], $12::text[], $13::bigint[],
            $14::text[], $16::uuid[])
        AS a (team_id, event_id, request_id, claim_ttl, holder, max_attempts,
            session_id, lock_key, lease_id, session_request, epic_id, ttl_micros, labels, digest)
    WHERE (SELECT true FROM processed_events p
            WHERE p.team_id = a.team_id AND p.event_id = a.event_id) IS NULL
        AND pg_try_advisory_xact_lock(a.lock_key)
), taken AS (
    INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at)
    SELECT m.team_id, m.session_id, nextval('session_fencing_tokens'), m.lease_id,
        m.session_request, m.holder, m.labels, m.epic_id,
        m.at, m.at + m.ttl_micros * interval '1 microsecond'
    FROM mine m ",
    or_take_over!(),
    " RETURNING lease_id, fencing_token, epic_id, acquired_at, expires_at
), claimed AS (
    INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
        claimed_until, attempt, holder, digest)
    SELECT m.team_id, m.event_id, m.at, m.at + $15::interval, m.request_id,
        m.at + m.claim_ttl, 1, m.holder, m.digest
    FROM mine m WHERE (m.lease_id IN (SELECT lease_id FROM taken)) IS TRUE
    ORDER BY m.team_id COLLATE \"C\", m.event_id COLLATE \"C\"
    ON CONFLICT DO NOTHING
    RETURNING request_id, processed_at
)
SELECT lease_id, fencing_token, epic_id, acquired_at, expires_at,
    COALESCE($1::timestamptz, clock_timestamp()) AS at,
    NULL::uuid AS claimed, NULL::timestamptz AS claimed_at
FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, request_id, processed_at FROM claimed
"
);

/// Begins turns: claims an event, under all of its names, and takes its session. $15: for
/// how long attempts are counted. $17: the names of those that have several. `kind` tells what a row is about: `granted`, with event and session; `taken`,
/// the event as it stands, with its result, or as its attempts are `spent`, and the session, which to a repetition of
/// the request that has it is told only once that is noted; `busy`, the session, where
/// the event is free; `lost`, a lease that was taken for an event that somebody else got
/// in the very moment, and is to be given back.
///
/// The session is taken first, and the event only for those who got theirs: both are
/// decided again as they are written. Of an event's names that are `known` one counts: a
/// live one, of this attempt before others; else the one that was claimed most often.
pub(in super::super) const BEGIN: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[], $6::text[], $7::integer[],
            $8::text[], $9::bigint[], $10::uuid[], $11::uuid[], $12::text[], $13::bigint[],
            $14::text[], $16::uuid[], $17::text[]) WITH ORDINALITY
        AS a (team_id, event_id, request_id, claim_ttl, holder, max_attempts, session_id,
            lock_key, lease_id, session_request, epic_id, ttl_micros, labels, digest, names, ord)
    WHERE a.session_id IS NULL OR pg_try_advisory_xact_lock(a.lock_key)
), named AS MATERIALIZED (
    SELECT m.ord, n.name, n.place
    FROM mine m CROSS JOIN LATERAL unnest(
            COALESCE(string_to_array(m.names, E'\\x1f'), ARRAY[m.event_id])) WITH ORDINALITY
        AS n (name, place)
), known AS MATERIALIZED (
    SELECT DISTINCT ON (m.ord) m.ord, m.at, m.session_id, m.max_attempts,
        m.request_id = e.request_id AS own, m.session_request, m.lease_id,
        e.claimed_until > e.processed_at AS lapsed, ",
    live_event!("e", "m.at"),
    " AS is_live, e.*
    FROM mine m JOIN named n USING (ord) CROSS JOIN LATERAL (
        SELECT * FROM processed_events p
        WHERE p.team_id = m.team_id AND p.event_id = n.name OFFSET 0) AS e
    WHERE e.expires_at > m.at
    ORDER BY m.ord, is_live DESC, own DESC NULLS LAST, e.attempt DESC NULLS LAST, n.place
), lease_told_again AS (
    UPDATE sessions s SET repeated = true
    FROM known n
    WHERE ",
    same_key!("session_id", "s", "n"),
    " AND n.own AND n.is_live AND n.claimed_until IS NOT NULL
        AND s.request_id = n.session_request AND s.lease_id <> n.lease_id
        AND NOT s.released AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING n.ord
), told_again AS (
    UPDATE processed_events e SET repeated = true
    FROM known n
    WHERE ",
    same_key!("event_id", "e", "n"),
    " AND n.own AND n.is_live AND e.request_id = n.request_id
        AND e.claimed_until > COALESCE($1::timestamptz, clock_timestamp())
        AND (n.session_id IS NULL OR n.ord IN (SELECT ord FROM lease_told_again))
    RETURNING n.ord
), spent AS (
    UPDATE processed_events e
    SET claimed_until = NULL, processed_at = n.at, expires_at = n.at + $15::interval
    FROM known n
    WHERE e.team_id = ANY (ARRAY[n.team_id])
        AND e.event_id = ANY (COALESCE(n.names, ARRAY[n.event_id]))
        AND NOT n.is_live AND n.attempt >= n.max_attempts
        AND e.request_id = n.request_id AND e.claimed_until = n.claimed_until
    RETURNING n.ord, n.at, n.lapsed, e.*
), wanted AS MATERIALIZED (
    SELECT m.*, COALESCE(n.attempt, 0) + 1 AS attempt, n.lapsed
    FROM mine m LEFT JOIN known n USING (ord)
    WHERE n.is_live IS NOT TRUE AND COALESCE(n.attempt, 0) < m.max_attempts
), taken AS (
    INSERT INTO sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at)
    SELECT w.team_id, w.session_id, nextval('session_fencing_tokens'), w.lease_id,
        w.session_request, w.holder, w.labels, w.epic_id,
        w.at, w.at + w.ttl_micros * interval '1 microsecond'
    FROM wanted w WHERE w.session_id IS NOT NULL ORDER BY w.team_id, w.session_id ",
    or_take_over!(),
    " RETURNING s.*
), claimed AS (
    INSERT INTO processed_events AS e (team_id, event_id, processed_at, expires_at, request_id,
        claimed_until, attempt, holder, names, digest)
    SELECT w.team_id, n.name, w.at, w.at + $15::interval, w.request_id,
        w.at + w.claim_ttl, w.attempt, w.holder, string_to_array(w.names, E'\\x1f'),
        CASE WHEN n.place = 1 THEN w.digest END
    FROM wanted w JOIN named n USING (ord)
    WHERE w.session_id IS NULL OR w.lease_id IN (SELECT lease_id FROM taken)
    ORDER BY w.team_id COLLATE \"C\", n.name COLLATE \"C\"
    ON CONFLICT (team_id, event_id) DO UPDATE
    SET (processed_at, expires_at, claimed_until) = (
            SELECT at, at + (EXCLUDED.expires_at - EXCLUDED.processed_at),
                at + (EXCLUDED.claimed_until - EXCLUDED.processed_at)
            FROM ",
    moment!(),
    "),
        request_id = EXCLUDED.request_id, attempt = EXCLUDED.attempt, holder = EXCLUDED.holder,
        names = EXCLUDED.names, digest = EXCLUDED.digest, result = NULL, repeated = NULL
    WHERE NOT ",
    live_event!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
    " AND (e.expires_at <= COALESCE($1::timestamptz, clock_timestamp())
        OR e.attempt < EXCLUDED.attempt)
    RETURNING e.*
), ",
    whole!("claimed"),
    "
SELECT w.ord, 'granted' AS kind, c.processed_at AS at, true AS fresh, true AS told, w.lapsed, ",
    event_columns!("c"),
    ", NULL::bytea AS result, ",
    session_columns!("t", "true", "NULL::uuid[] AS queue"),
    "
FROM claimed c JOIN whole USING (request_id) JOIN wanted w USING (request_id)
    LEFT JOIN taken t USING (lease_id)
WHERE whole = 1
UNION ALL
SELECT n.ord, 'taken', n.at, (s.lease_id = n.lease_id) IS TRUE,
    n.ord IN (SELECT ord FROM told_again) OR (s.lease_id = n.lease_id) IS TRUE, NULL, ",
    event_columns!("n"),
    ", n.result, ",
    session_columns!("s", "NOT s.released AND s.expires_at > n.at", "NULL"),
    "
FROM known n ",
    session_of!("n"),
    " WHERE n.is_live AND (NOT n.own OR n.claimed_until IS NULL
    OR n.ord IN (SELECT ord FROM told_again) OR s.lease_id = n.lease_id
    -- A claim that has lost its lease. Else it ended just now: that is asked again.
    OR n.session_id IS NOT NULL AND (s.request_id = n.session_request
        AND NOT s.released AND s.expires_at > n.at) IS NOT TRUE)
UNION ALL
SELECT p.ord, 'spent', p.at, false, false, p.lapsed, ",
    event_columns!("p"),
    ", NULL, ",
    session_columns!("s", "false", "NULL"),
    "
FROM spent p LEFT JOIN sessions s ON false
UNION ALL
SELECT b.ord, 'busy', b.at, false, false, NULL, ",
    event_columns!("e"),
    ", NULL, ",
    session_columns!("s", "NOT s.released AND s.expires_at > b.at", queue!("s", "b.at")),
    "
FROM wanted b LEFT JOIN processed_events e ON false CROSS JOIN LATERAL (
    SELECT * FROM sessions t
    WHERE t.team_id = b.team_id AND t.session_id = b.session_id OFFSET 0) AS s
WHERE b.lease_id NOT IN (SELECT lease_id FROM taken)
UNION ALL
SELECT w.ord, 'lost', w.at, false, false, NULL, ",
    event_columns!("e"),
    ", NULL, ",
    session_columns!("t", "true", "NULL"),
    "
FROM taken t JOIN wanted w USING (lease_id) LEFT JOIN processed_events e ON false
WHERE w.request_id NOT IN (SELECT request_id FROM claimed)
"
);

/// The turns that are asked about, whose session's lock was had; of those the ones whose
/// lease runs, their rows locked: what is written to the event because of that is true
/// when it is committed; and the ones whose event is there, its rows locked under all of
/// its names, in the order in which every statement takes them.
macro_rules! turns {
    ($further:literal, $names:literal, $unless:literal) => {
        concat!(
            "
WITH asked AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $8::uuid[],
            $9::integer[]",
            $further,
            ") WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, event_id, request_id, attempt",
            $names,
            ", ord)
    WHERE a.session_id IS NULL OR pg_try_advisory_xact_lock(a.lock_key)
), held AS MATERIALIZED (
    SELECT q.ord FROM asked q CROSS JOIN LATERAL (
        SELECT FROM sessions t
        WHERE t.team_id = q.team_id AND t.session_id = q.session_id
            AND t.lease_id = q.lease_id AND NOT t.released
            AND t.expires_at > COALESCE($1::timestamptz, clock_timestamp())",
            $unless,
            "
        FOR UPDATE) AS s
), there AS MATERIALIZED (
    SELECT n.ord FROM (
        SELECT q.ord, q.team_id, q.request_id, u.name
        FROM asked q CROSS JOIN LATERAL (
            SELECT names FROM processed_events p
            WHERE p.team_id = q.team_id AND p.event_id = q.event_id
                AND p.request_id = q.request_id OFFSET 0) AS p
        CROSS JOIN LATERAL unnest(COALESCE(p.names, ARRAY[q.event_id])) AS u (name)
        ORDER BY q.team_id COLLATE \"C\", u.name COLLATE \"C\") AS n
    CROSS JOIN LATERAL (
        SELECT FROM processed_events p
        WHERE p.team_id = n.team_id AND p.event_id = n.name AND p.request_id = n.request_id
        FOR UPDATE) AS e
)"
        )
    };
}

/// Writes $set to the rows of the aliases of the events in $done, from those.
macro_rules! aliases {
    ($done:literal, $set:literal) => {
        concat!(
            "aliases AS (
    UPDATE processed_events e SET ",
            $set,
            "
    FROM ",
            $done,
            " d
    WHERE e.team_id = ANY (ARRAY[d.team_id]) AND e.event_id = ANY (d.names)
        AND e.event_id <> d.event_id AND e.request_id = d.request_id
)"
        )
    };
}

/// Reads what there is to tell of turns that are not in $done: the event, and whether
/// the lease runs.
macro_rules! others {
    ($done:literal) => {
        concat!(
            "
SELECT q.ord, false AS done, q.session_id IS NULL OR (SELECT true FROM sessions t
        WHERE t.team_id = q.team_id AND t.session_id = q.session_id
            AND t.lease_id = q.lease_id AND NOT t.released AND t.expires_at > q.at) IS TRUE AS held,
    q.at, ",
            event_columns!("e"),
            ", e.request_id = q.request_id AND e.attempt = q.attempt AS own, ",
            session_columns!("s", "false", "NULL::uuid[] AS queue"),
            ", false AS given_back
FROM asked q LEFT JOIN LATERAL (
    SELECT * FROM processed_events p
    WHERE p.team_id = q.team_id AND p.event_id = q.event_id AND p.expires_at > q.at OFFSET 0)
    AS e ON true
LEFT JOIN sessions s ON false
WHERE q.ord NOT IN (SELECT ord FROM ",
            $done,
            ")
"
        )
    };
}

/// Ends turns with success whose event has one name and whose claim runs, as does their
/// lease, and for whose session nobody waits. $7: TTLs. $10: results. Should a claim lapse in the very moment, its lease
/// has ended all the same.
pub(in super::super) const SUCCEED: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT a.*
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::interval[],
            $8::uuid[], $9::integer[], $10::bytea[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, event_id, ttl, request_id, attempt,
            result, ord)
    WHERE (SELECT p.request_id = a.request_id AND p.attempt = a.attempt AND p.names IS NULL
                AND p.claimed_until > COALESCE($1::timestamptz, clock_timestamp())
            FROM processed_events p
            WHERE p.team_id = a.team_id AND p.event_id = a.event_id)
        AND pg_try_advisory_xact_lock(a.lock_key)
), ended AS (
    UPDATE sessions s
    SET released = true, expires_at = COALESCE($1::timestamptz, clock_timestamp())
    FROM mine m
    WHERE ",
    same_key!("session_id", "s", "m"),
    " AND s.lease_id = m.lease_id AND NOT s.released AND NOT s.waiting
        AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING m.*, s.expires_at AS at
)
UPDATE processed_events e
SET claimed_until = NULL, processed_at = m.at, expires_at = m.at + m.ttl, result = m.result
FROM ended m
WHERE ",
    same_key!("event_id", "e", "m"),
    " AND e.request_id = m.request_id AND e.attempt = m.attempt
    AND e.claimed_until > COALESCE($1::timestamptz, clock_timestamp())
RETURNING m.ord, m.at, ",
    event_columns!("e")
);

/// Ends turns: $10 is 1 for success, 0 for a failure, 2 where nobody was told of it. $7:
/// the replica that asks. $14: for how long attempts are counted.
pub(in super::super) const FINISH: &str = concat!(
    hand_on!(concat!(
        turns!(
            ", $10::integer[], $11::bytea[], $12::interval[], $13::integer[]",
            ", ending, result, ttl, max_attempts",
            " AND NOT (q.ending = 2 AND t.repeated)"
        ),
        ", done AS (
    UPDATE processed_events e
    SET claimed_until = CASE WHEN q.ending = 1 OR q.ending = 0 AND e.attempt >= q.max_attempts
            THEN NULL ELSE q.at END,
        attempt = e.attempt - (q.ending = 2)::integer, processed_at = q.at,
        expires_at = q.at + CASE WHEN q.ending = 1 THEN q.ttl ELSE $14::interval END,
        result = CASE WHEN q.ending = 1 THEN q.result END
    FROM asked q
    WHERE ",
        same_key!("event_id", "e", "q"),
        " AND e.request_id = q.request_id AND e.attempt = q.attempt
        AND e.claimed_until > COALESCE($1::timestamptz, clock_timestamp())
        AND NOT (q.ending = 2 AND e.repeated IS TRUE) AND q.ord IN (SELECT ord FROM there)
        AND (q.session_id IS NULL OR q.ord IN (SELECT ord FROM held))
    RETURNING q.ord, e.*
), ",
        aliases!(
            "done",
            "claimed_until = d.claimed_until, attempt = d.attempt,
        processed_at = d.processed_at, expires_at = d.expires_at, result = d.result"
        ),
        ", mine AS MATERIALIZED (
    SELECT q.team_id, q.session_id, q.lease_id, false AS unless_repeated, q.ord, q.at
    FROM asked q JOIN done USING (ord) WHERE q.session_id IS NOT NULL
)"
    )),
    "
SELECT d.ord, true AS done, true AS held, q.at, ",
    event_columns!("d"),
    ", true AS own, ",
    session_columns!("c", "c.ticket IS NOT NULL", "NULL::uuid[] AS queue"),
    ", c.given_back IS TRUE OR q.session_id IS NULL AS given_back,
    CASE WHEN c.replica <> $7::uuid THEN pg_notify('",
    handed_channel!(),
    "', c.lease_id::text) END AS notified
FROM done d JOIN asked q USING (ord) LEFT JOIN changed c USING (ord)
UNION ALL
SELECT *, NULL FROM (",
    others!("done"),
    ") AS others"
);

/// Lets turns run on. $12: how long a lease may be held in all.
pub(in super::super) const PROLONG: &str = concat!(
    turns!(", $10::interval[], $11::bigint[]", ", claim_ttl, ttl_micros", ""),
    ", own AS MATERIALIZED (
    SELECT q.ord FROM asked q CROSS JOIN LATERAL (
        SELECT FROM processed_events p
        WHERE p.team_id = q.team_id AND p.event_id = q.event_id AND p.request_id = q.request_id
            AND p.attempt = q.attempt AND p.claimed_until > COALESCE($1::timestamptz, clock_timestamp())
        FOR UPDATE) AS e
    WHERE q.ord IN (SELECT ord FROM there)
        AND (q.session_id IS NULL OR q.ord IN (SELECT ord FROM held))
), claims AS (
    UPDATE processed_events e
    SET claimed_until = q.at + q.claim_ttl, expires_at = GREATEST(e.expires_at, q.at + $7::interval)
    FROM asked q JOIN own USING (ord)
    WHERE ",
    same_key!("event_id", "e", "q"),
    "
    RETURNING q.ord, e.*
), ",
    aliases!("claims", "claimed_until = d.claimed_until, expires_at = d.expires_at"),
    ", leases AS (
    UPDATE sessions s
    SET expires_at = LEAST(GREATEST(s.expires_at, s.acquired_at + $12::interval),
        q.at + q.ttl_micros * interval '1 microsecond')
    FROM asked q JOIN own USING (ord)
    WHERE ",
    same_key!("session_id", "s", "q"),
    "
    RETURNING q.ord, s.*
)
SELECT c.ord, true AS done, true AS held, q.at, ",
    event_columns!("c"),
    ", true AS own, ",
    session_columns!("l", "true", "NULL::uuid[] AS queue"),
    ", false AS given_back
FROM claims c JOIN asked q USING (ord) LEFT JOIN leases l USING (ord)
UNION ALL ",
    others!("own"),
);
