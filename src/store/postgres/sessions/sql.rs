//! The short statements on sessions. The first parameter is the moment, or null for the database's
//! clock. The next three are the arrays of [`Keys`](super::Keys).

use crate::store::postgres::fence::{new_token, next_token, token_of};

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

/// Takes the leases of free sessions, and returns the columns that their callers do not know.
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

/// Ends live leases, except resumed ones where those are to be spared, and returns which. The
/// parameters of its arrays are given by name, because a `take` beside it has others.
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
