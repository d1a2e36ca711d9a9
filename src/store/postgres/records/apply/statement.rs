//! The statement that writes plans.

use super::super::json::{micros, moment_of};

/// The columns of an event that change with how it stands, as a plan has them.
macro_rules! event_state {
    () => {
        "time bigint, expires bigint, until bigint, attempt integer, holder text, result text,
        result_type text, repeated boolean, resumed_by uuid, rejected bigint, detail text,
        uncounted integer, interrupted integer"
    };
}

/// The same as they are written.
macro_rules! event_values {
    () => {
        concat!(
            moment_of!("x.time"),
            ", ",
            moment_of!("x.expires"),
            ", ",
            moment_of!("x.until"),
            ", x.attempt, x.holder, decode(x.result, 'hex'), x.result_type, x.repeated,
        x.resumed_by, ",
            moment_of!("x.rejected"),
            ", x.detail, x.uncounted, x.interrupted, ",
            sweep_after!(moment_of!("x.expires"), "x.expires - 86400000000 < x.time")
        )
    };
}

macro_rules! event_targets {
    () => {
        "processed_at, expires_at, claimed_until, attempt, holder, result, result_type, repeated,
        resumed_by, rejected_at, detail, uncounted, interrupted, sweep_after"
    };
}

/// The columns of a session, as a plan has them, and as they are written.
macro_rules! session_state {
    () => {
        "token bigint, lease uuid, request uuid, holder text, labels text, epic text,
        acquired bigint, expires bigint, released boolean, repeated boolean, resumed_by uuid,
        waiting boolean, ttl bigint"
    };
}

macro_rules! session_values {
    () => {
        concat!(
            "x.token, x.lease, x.request, x.holder, x.labels, x.epic, ",
            moment_of!("x.acquired"),
            ", ",
            moment_of!("x.expires"),
            ", x.released, x.repeated, x.resumed_by, x.waiting, x.ttl"
        )
    };
}

macro_rules! session_targets {
    () => {
        "fencing_token, lease_id, request_id, holder, labels, epic_id, acquired_at, expires_at,
        released, repeated, resumed_by, waiting, ttl_micros"
    };
}

/// Locks the sessions that plans rest on, if no other replica has them.
macro_rules! lock_sessions {
    () => {
        "
WITH plans AS MATERIALIZED (
    SELECT * FROM json_to_recordset($2::json)
        AS x (plan integer, valid_from bigint, valid_until bigint, token bigint, adds boolean,
            floor bigint)
), asked AS MATERIALIZED (
    SELECT x.*, pg_try_advisory_xact_lock(x.lock_key) AS is_free
    FROM json_to_recordset($3::json)
        AS x (plan integer, team text, id text, lock_key bigint, version bigint)
), sessions AS MATERIALIZED (
    SELECT x.plan, x.is_free AND s.version IS NOT DISTINCT FROM x.version AS holds
    FROM asked x LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version FROM oncegate_sessions t
        WHERE x.is_free AND t.team_id = x.team AND t.session_id = x.id FOR UPDATE) AS s ON true
), open AS MATERIALIZED (
    -- One whose session another replica has waits for nothing that this one locks next.
    SELECT p.plan FROM plans p
    WHERE (SELECT count(*) FROM sessions) >= 0
        AND NOT EXISTS (SELECT FROM sessions s WHERE s.plan = p.plan AND NOT s.holds)
)"
    };
}

/// Then the events.
macro_rules! lock_events {
    () => {
        ", events AS MATERIALIZED (
    SELECT x.plan, NOT x.is_read OR e.version IS NOT DISTINCT FROM x.version AS holds
    FROM (
        SELECT x.* FROM json_to_recordset($11::json)
            AS x (plan integer, team text, id text, version bigint, is_read boolean)
        WHERE x.plan IN (SELECT plan FROM open) OFFSET 0) AS x
    LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version FROM processed_events t
        WHERE t.team_id = x.team AND t.event_id = x.id FOR UPDATE) AS e ON true
)"
    };
}

/// Then the places in queues, once `$before` is locked, and reads the clock; then finds which plans hold,
/// with their events if `$events` says so.
macro_rules! hold {
    ($before:literal, $events:literal) => {
        concat!(
            ", waiters AS MATERIALIZED (
    SELECT x.plan, w.ticket IS NOT NULL AS holds
    FROM (
        SELECT x.* FROM json_to_recordset($10::json)
            AS x (plan integer, team text, id text, ticket bigint, lease uuid, waits boolean)
        WHERE x.plan IN (SELECT plan FROM open) AND (SELECT count(*) FROM ",
            $before,
            ") >= 0 OFFSET 0) AS x
    LEFT JOIN LATERAL (
        SELECT t.ticket FROM oncegate_waiters t
        WHERE t.team_id = x.team AND t.session_id = x.id AND t.ticket = x.ticket
            AND t.lease_id = x.lease AND (t.left_at IS NULL OR NOT x.waits) FOR UPDATE) AS w ON true
    WHERE (SELECT count(*) FROM ",
            $before,
            ") >= 0
), clock AS MATERIALIZED (
    SELECT at, ",
            micros!("at"),
            " AS micros
    FROM (SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at
        FROM (SELECT count(*) AS locked FROM waiters OFFSET 0) AS l WHERE locked >= 0 OFFSET 0) AS c
), latest_floor AS MATERIALIZED (
    -- KEY SHARE would be content with the row as it was.
    SELECT f.floor FROM oncegate_fence f
    WHERE f.id AND (SELECT micros FROM clock) IS NOT NULL FOR SHARE SKIP LOCKED
), holds AS MATERIALIZED (
    SELECT p.plan, p.floor FROM plans p JOIN open USING (plan) CROSS JOIN clock
    WHERE clock.micros >= p.valid_from AND clock.micros < p.valid_until
        AND (p.token IS NULL OR p.token > CASE
            -- The row may have been deleted since the snapshot, which has raised the floor.
            WHEN p.adds THEN (SELECT floor FROM latest_floor)
            ELSE (SELECT floor FROM oncegate_fence WHERE id) END)
        AND NOT EXISTS (SELECT FROM waiters w WHERE w.plan = p.plan AND NOT w.holds)",
            $events,
            "
)"
        )
    };
}

macro_rules! write_sessions {
    () => {
        concat!(
            ", put AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($4::json)
        AS x (plan integer, kind text, team text, id text, ",
            session_state!(),
            ") JOIN holds USING (plan)
), added_sessions AS (
    INSERT INTO oncegate_sessions (team_id, session_id, ",
            session_targets!(),
            ")
    SELECT x.team, x.id, ",
            session_values!(),
            " FROM put x WHERE x.kind = 'add'
    -- Two statements that add the same rows add them in one order.
    ORDER BY x.team COLLATE \"C\", x.id COLLATE \"C\"
), changed_sessions AS (
    UPDATE oncegate_sessions s SET (",
            session_targets!(),
            ") = ROW(",
            session_values!(),
            ")
    FROM put x WHERE x.kind = 'change' AND s.team_id = ANY (ARRAY[x.team]) AND s.session_id = x.id
), deleted_sessions AS (
    DELETE FROM oncegate_sessions s USING put x
    WHERE x.kind = 'delete' AND s.team_id = ANY (ARRAY[x.team]) AND s.session_id = x.id
)"
        )
    };
}

macro_rules! write_events {
    () => {
        concat!(
            ", put_events AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($12::json)
        AS x (plan integer, is_new boolean, team text, id text, request uuid, names json,
            digest uuid, ",
            event_state!(),
            ") JOIN holds USING (plan)
), added_events AS (
    INSERT INTO processed_events (team_id, event_id, request_id, names, digest, ",
            event_targets!(),
            ")
    SELECT x.team, x.id, x.request,
        CASE WHEN x.names IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.names)) END,
        x.digest, ",
            event_values!(),
            " FROM put_events x WHERE x.is_new
    ORDER BY x.team COLLATE \"C\", x.id COLLATE \"C\"
), replaced_events AS (
    UPDATE processed_events e SET (request_id, names, digest, ",
            event_targets!(),
            ") = ROW(x.request,
        CASE WHEN x.names IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(x.names)) END,
        x.digest, ",
            event_values!(),
            ")
    FROM put_events x
    WHERE NOT x.is_new AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
), updates AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($13::json)
        AS x (plan integer, is_gone boolean, team text, id text, request uuid,
            taken_with json, ",
            event_state!(),
            ") JOIN holds USING (plan)
), updated_events AS (
    UPDATE processed_events e SET (",
            event_targets!(),
            ") = ROW(",
            event_values!(),
            ")
    FROM updates x
    WHERE NOT x.is_gone AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
        AND e.request_id IS NOT DISTINCT FROM x.request
        AND (e.names IS NULL AND x.taken_with IS NULL
            OR e.names = ARRAY(SELECT json_array_elements_text(x.taken_with)))
), deleted_events AS (
    DELETE FROM processed_events e USING updates x
    WHERE x.is_gone AND e.team_id = ANY (ARRAY[x.team]) AND e.event_id = x.id
        AND e.request_id IS NOT DISTINCT FROM x.request
        AND (e.names IS NULL AND x.taken_with IS NULL
            OR e.names = ARRAY(SELECT json_array_elements_text(x.taken_with)))
    RETURNING e.request_id
)"
        )
    };
}

macro_rules! write_places {
    () => {
        concat!(
            ", places AS MATERIALIZED (
    SELECT x.* FROM json_to_recordset($5::json)
        AS x (plan integer, nth bigint, ticket bigint, team text, id text, lease uuid,
            request uuid, holder text, labels text, epic text, ttl bigint, digest uuid,
            left_at bigint)
    JOIN holds USING (plan)
), present AS (
    INSERT INTO oncegate_replicas AS r (replica, expires_at)
    SELECT $8::uuid, clock.at + $9::bigint * interval '1 microsecond' FROM clock
    WHERE EXISTS (SELECT FROM places WHERE left_at IS NULL)
    ON CONFLICT (replica) DO UPDATE SET expires_at = EXCLUDED.expires_at
    WHERE r.expires_at < EXCLUDED.expires_at - $9::bigint * interval '1 microsecond' / 4
), placed AS (
    INSERT INTO oncegate_waiters (team_id, session_id, ticket, lease_id, request_id, holder,
        labels, epic_id, ttl_micros, digest, replica)
    SELECT x.team, x.id, GREATEST(nextval('oncegate_tickets'), x.behind + (
            SELECT max(w.ticket) FROM oncegate_waiters w
            WHERE w.team_id = x.team AND w.session_id = x.id)),
        x.lease, x.request, x.holder, x.labels, x.epic, x.ttl, x.digest, $8
    -- In the order in which the callers came.
    FROM (SELECT p.*, row_number() OVER (PARTITION BY p.team, p.id ORDER BY p.nth) AS behind
        FROM places p WHERE p.ticket IS NULL ORDER BY p.nth OFFSET 0) AS x
    RETURNING lease_id, ticket
), changed_places AS (
    UPDATE oncegate_waiters w
    SET lease_id = x.lease, holder = x.holder, labels = x.labels, epic_id = x.epic,
        ttl_micros = x.ttl, left_at = ",
            moment_of!("x.left_at"),
            ",
        replica = CASE WHEN x.left_at IS NULL THEN $8
            ELSE '00000000-0000-0000-0000-000000000000' END
    FROM places x
    WHERE w.team_id = ANY (ARRAY[x.team]) AND w.session_id = x.id AND w.ticket = x.ticket
), left_places AS (
    DELETE FROM oncegate_waiters w
    USING json_to_recordset($6::json) AS x (plan integer, team text, id text, ticket bigint)
        JOIN holds USING (plan)
    WHERE w.team_id = ANY (ARRAY[x.team]) AND w.session_id = x.id AND w.ticket = x.ticket
)"
        )
    };
}

/// Raises the floor, returns which plans are written, and notifies, also of `$forgotten` events.
macro_rules! written {
    ($forgotten:expr) => {
        concat!(
            ", raised AS (
    UPDATE oncegate_fence f SET floor = h.floor
    FROM (SELECT max(floor) AS floor FROM holds) AS h WHERE f.id AND f.floor < h.floor
)
SELECT plan::bigint, NULL::uuid AS lease_id, NULL::bigint AS ticket FROM holds
UNION ALL
SELECT NULL, lease_id, ticket FROM placed
UNION ALL
SELECT NULL, NULL, count(sent) FROM (
    SELECT pg_notify(",
            hint_channel!(),
            ", x.payload) AS sent
    FROM json_to_recordset($7::json) AS x (plan integer, payload text) JOIN holds USING (plan)",
            $forgotten,
            ") AS notified
"
        )
    };
}

/// Writes plans, each as a whole if all that it rests on is as it was read, and not at all
/// otherwise. Answers the plans that are written, and the tickets of new places.
///
/// $1: the moment, or null for the database's clock. $2: the plans. $3: the sessions that they rest
/// on, sorted, so that two statements lock rows in one order. $4: sessions. $5: places in queues;
/// those that have a ticket are there already. $6: tickets of places that are gone. $7: what is
/// notified. $8: this replica. $9: for how long it counts as there. $10: the places that they rest
/// on, sorted. $11: the names of events that they rest on or write, sorted. $12 and $13: events
/// under each name, and changes of events under each name.
///
/// The rows are locked first, and the clock is read once they are. A row that others
/// insert meanwhile is not seen: then the INSERT fails, and with it all of the statement.
pub(in super::super::super) const APPLY: &str = concat!(
    lock_sessions!(),
    lock_events!(),
    hold!(
        "events",
        "
        AND NOT EXISTS (SELECT FROM events e WHERE e.plan = p.plan AND NOT e.holds)"
    ),
    write_sessions!(),
    write_events!(),
    write_places!(),
    written!(concat!(
        "
    UNION ALL
    SELECT pg_notify(",
        channel!(),
        ", '') FROM (SELECT FROM deleted_events LIMIT 1) AS deleted"
    ))
);

/// [`APPLY`] for plans that are not about events: starting all of it takes the database longer than
/// running it.
pub(in super::super::super) const APPLY_SESSIONS: &str =
    concat!(lock_sessions!(), hold!("open", ""), write_sessions!(), write_places!(), written!(""));
